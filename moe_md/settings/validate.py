"""What validation is told."""

from dataclasses import dataclass

from moe_md.checks import check_fields
from moe_md.settings.option import option

SECTIONS = ("errors", "crystal", "surfaces", "seam", "dynamics")


@dataclass(frozen=True)
class ValidateSettings:
    """What validation is told; keys of the `[validate]` table of a settings file."""

    sections: str = option(",".join(SECTIONS), "which to do, as errors,seam")
    metal: str = option("Pt", "fcc, in the domain of both experts")
    adsorbate: str = option("CO", "on the slab of dynamics: a molecule that ASE knows; empty for none")
    region: str = option(
        "near",
        "near: what the cheap expert may not meet and all around it; top_layers: those of a slab instead",
    )
    region_margin: float = option(0.5, "Å, near: beyond the cheap expert's cutoff")
    region_layers: int = option(3, "top_layers: how many")
    max_atoms: int = option(64, "rows of a batch of labelled frames")
    surface_steps: int = option(300, "at most, of each relaxation of a vacancy, surface or molecule")
    strains: int = option(9, "of the crystal that is cut in two, odd: from -2 to 2 %")
    columns: int | None = option(
        None, "metal atoms along x, of the slab of dynamics; default wider than twice the cutoff"
    )
    rows: int | None = option(None, "rows of metal atoms along y, even; default as columns")
    layers: int = 6
    vacuum: float = option(12.0, "Å")
    temperature_K: float = 300.0
    timestep_fs: float = 1.0
    relax_steps: int = 50
    equilibration_steps: int = 1000
    production_steps: int = 4000
    log_every: int = option(4, "steps")
    blocks: int = option(5, "a run is cut into, for error bars")
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        for name in self.chosen:
            if name not in SECTIONS:
                raise ValueError(f"sections must be of {SECTIONS}, got {name!r}.")
        if not self.chosen:
            raise ValueError(f"sections must name at least one of {SECTIONS}, got {self.sections!r}.")
        if self.region not in ("near", "top_layers"):
            raise ValueError(f"region must be one of ('near', 'top_layers'), got {self.region!r}.")
        positive = (
            "region_layers",
            "max_atoms",
            "columns",
            "rows",
            "layers",
            "vacuum",
            "timestep_fs",
            "log_every",
            "surface_steps",
        )
        for name in positive:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("region_margin", "temperature_K", "relax_steps", "equilibration_steps", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.rows is not None and self.rows % 2:
            raise ValueError(f"rows must be even, or the slab does not close on itself, got {self.rows}.")
        if self.strains < 3 or self.strains % 2 == 0:
            raise ValueError(f"strains must be odd and at least 3, or none is zero, got {self.strains}.")
        if self.blocks < 2:
            raise ValueError(f"blocks must be at least 2, got {self.blocks}.")
        shortest = 20 * self.blocks * self.log_every
        if self.production_steps < shortest:
            raise ValueError(
                f"production_steps must be at least 20 x blocks x log_every = {shortest}, or error bars mean"
                f" nothing, got {self.production_steps}."
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The sections, one by one."""
        return tuple(name.strip() for name in self.sections.split(",") if name.strip())
