"""Settings of `moe-md validate`."""

from dataclasses import dataclass

from moe_md import renamed
from moe_md.checks import check_fields
from moe_md.settings.option import option

SECTIONS = ("errors", "crystal", "surfaces", "expert_boundary", "dynamics")


@dataclass(frozen=True)
class ValidateSettings:
    """Settings of a validation; keys of the `[validate]` table of a settings file."""

    sections: str = option(",".join(SECTIONS), "sections of the report, as errors,expert_boundary")
    references: str = option(
        "", "files of perfect crystals, separated by commas; default those of the checkpoint"
    )
    structure: str = option(
        "",
        "a slab or another structure for dynamics, any file that ASE reads; default a slab of the first"
        " reference along its most widely spaced lattice plane",
    )
    adsorbate: str = option(
        "", "molecule on the fcc (111) slab of dynamics, of ASE's names; CO also for its adsorption energies"
    )
    region: str | None = option(
        None,
        "near: species outside the cheap expert's domain and all atoms near them; top_layers: these"
        " species and the uppermost layers of a slab; default near where there are such species, else"
        " top_layers",
        choices=("near", "top_layers"),
    )
    region_margin: float = option(0.5, "Å, added to the cheap expert's cutoff where region is near", least=0)
    region_layers: int = option(3, "number of layers where region is top_layers", positive=True)
    max_atoms: int = option(64, "atoms in a batch of labelled frames", positive=True)
    surface_steps: int = option(300, "largest number of steps of each relaxation in surfaces", positive=True)
    strains: int = option(9, "number of strains from -2 to 2 % in expert_boundary, odd")
    width: float | None = option(
        None,
        "Å, smallest length of the slab of dynamics along x and y; default wider than twice the cutoff",
        positive=True,
    )
    thickness: float = option(13.0, "Å, smallest thickness of the slab of dynamics", positive=True)
    vacuum: float = option(12.0, "Å", positive=True)
    temperature_K: float = option(300.0, least=0)
    timestep_fs: float = option(1.0, positive=True)
    relax_steps: int = option(50, least=0)
    equilibration_steps: int = option(1000, least=0)
    production_steps: int = 4000
    log_every: int = option(4, "steps", positive=True)
    blocks: int = option(5, "number of blocks of a run, for error bars", least=2)
    seed: int = option(0, least=0)

    def __post_init__(self):
        check_fields(self)
        self._check_sections()
        if self.structure and self.adsorbate:
            raise ValueError(
                f"adsorbate must be empty where structure is given, got {self.adsorbate!r} and"
                f" {self.structure}: put the molecule into the file."
            )
        if self.strains < 3 or self.strains % 2 == 0:
            raise ValueError(
                f"strains must be odd and at least 3, so that one of them is zero, got {self.strains}."
            )
        shortest = 20 * self.blocks * self.log_every
        if self.production_steps < shortest:
            raise ValueError(
                f"production_steps must be at least 20 x blocks x log_every = {shortest} for meaningful"
                f" error bars, got {self.production_steps}."
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the sections to compute."""
        return tuple(name.strip() for name in self.sections.split(",") if name.strip())

    def _check_sections(self) -> None:
        for name in self.chosen:
            if name in renamed.SECTIONS:
                raise ValueError(
                    f"sections must be of {SECTIONS}, got {name!r}: it is now {renamed.SECTIONS[name]!r}."
                )
            if name not in SECTIONS:
                raise ValueError(f"sections must be of {SECTIONS}, got {name!r}.")
        if not self.chosen:
            raise ValueError(f"sections must name at least one of {SECTIONS}, got {self.sections!r}.")
