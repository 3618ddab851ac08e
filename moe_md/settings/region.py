"""Settings of `moe-md region`."""

import math
from dataclasses import dataclass

from moe_md.settings.option import option
from moe_md.settings.system import DTYPES, SystemSettings

# What is compared, by the way in which a region is chosen: the setting of `moe-md run` that varies.
SCANNED = {
    "region_around": "region_core",
    "region_indices": "region_core",
    "region_coordination": "region_core",
    "region_unfamiliar": "region_core",
    "region_layers": "region_layers",
}
NOT_SCANNED = ("region_lower", "region_upper", "region_tags")


@dataclass(frozen=True)
class RegionScanSettings(SystemSettings):
    """Regions of several sizes; keys of the `[region]` table of a settings file."""

    values: str = option(
        "",
        "sizes to compare, such as 4,5,6: core radii in Å, or numbers of layers; default up to 7 radii, to"
        " half the box or until all atoms are inside, or up to 8 numbers of layers",
    )
    tolerance: float | None = option(
        None,
        "meV/Å, largest root mean square force difference on the selected atoms; default a third of the"
        " expensive expert's validation error, or 10 where the checkpoint records none",
        positive=True,
    )
    temperature_K: float = option(300.0, "of the run that gives the frames", positive=True)
    timestep_fs: float = option(1.0, "length of one step of that run", positive=True)
    friction_per_fs: float = option(0.02, "of that run", positive=True)
    relax_steps: int = option(0, "steps of energy minimisation before that run", least=0)
    equilibration_steps: int = option(
        100, "steps of that run before the first frame, a multiple of frames_every", least=0
    )
    frames: int = option(5, "number of frames on which forces are compared", positive=True)
    frames_every: int = option(20, "steps between frames", positive=True)
    timing_rounds: int = option(7, "timed evaluations of each expert", positive=True)
    chunk_size: int = option(64, "rows computed at a time; lower it where memory runs out", positive=True)
    dtype: str = option("float64", "float32 or float64", choices=DTYPES)
    seed: int = option(0, "of the velocities and of the thermostat", least=0)

    def __post_init__(self):
        super().__post_init__()
        for name in NOT_SCANNED:
            if getattr(self, name) not in (None, ""):
                raise ValueError(
                    f"{name} must not be given, as planes and tags have no size to compare: choose the atoms"
                    f" by {', '.join(SCANNED)}."
                )
        if self.region_core != SystemSettings.region_core:
            raise ValueError(
                f"region_core must not be given, as it is what varies, got {self.region_core:g}: give the"
                f" radii as values, such as 4,{self.region_core:g},8."
            )
        if self.equilibration_steps % self.frames_every:
            raise ValueError(
                "equilibration_steps must be a multiple of frames_every, got"
                f" {self.equilibration_steps} and {self.frames_every}."
            )
        self._check_values()

    @property
    def way(self) -> str | None:
        """The setting that chooses the region, of `SCANNED`; None where none is given."""
        return next((name for name in SCANNED if getattr(self, name)), None)

    @property
    def sizes(self) -> tuple[float, ...]:
        """The values as numbers, the smallest first."""
        return tuple(sorted({float(part) for part in self.values.split(",")})) if self.values else ()

    def _check_values(self) -> None:
        try:
            sizes = self.sizes
        except ValueError:
            sizes = (math.nan,)
        layers = self.way == "region_layers"
        if layers and not all(size >= 1 and size == round(size) for size in sizes):
            raise ValueError(
                f"values must be numbers of layers from 1 on, with commas between, got {self.values!r:.80}."
            )
        if not all(math.isfinite(size) and size >= 0 for size in sizes):
            raise ValueError(
                f"values must be core radii in Å, with commas between, such as 4,5,6, got"
                f" {self.values!r:.80}."
            )
