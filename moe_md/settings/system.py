"""What a run in this program or another is told."""

from dataclasses import dataclass

from moe_md.checks import check_fields
from moe_md.settings.option import option


@dataclass(frozen=True)
class SystemSettings:
    """Which atoms and which experts; keys of every table of settings that has a structure."""

    checkpoint: str = option("ptco", "name or path")
    structure: str = option("", "any file that ASE reads; its last frame, with its velocities if it has any")
    repeat: str = option("", "copies along each lattice vector, as 2,2,1, where the cell is too narrow")
    region_lower: float | None = option(None, "Å: atoms above go to the expensive expert")
    region_upper: float | None = option(None, "Å: atoms below go to the expensive expert")
    region_axis: int = option(2, "normal of those planes: 0, 1 or 2")
    region_around: str = option("", "chemical symbols, as C,O: the expensive expert follows these atoms")
    region_core: float = option(6.0, "Å around them that are all the expensive expert's")
    region_blend: float = option(2.0, "Å beyond, in which both share an atom")
    region_layers: int = option(0, "so many layers on top go to the expensive expert, for good")
    region_tags: str = option("", "ASE's tags, as 1,2: their atoms go to the expensive expert, for good")

    def __post_init__(self):
        check_fields(self)
        if not self.structure:
            raise ValueError("structure must be given: a file that ASE reads.")
        if self.region_axis not in (0, 1, 2):
            raise ValueError(f"region_axis must be one of (0, 1, 2), got {self.region_axis!r}.")
        if self.region_layers < 0:
            raise ValueError(f"region_layers must not be negative, got {self.region_layers}.")
        if not self.region_blend > 0:
            raise ValueError(f"region_blend must be positive, got {self.region_blend}.")
        planes = not (self.region_lower is None and self.region_upper is None)
        ways = {
            "region_lower or region_upper": planes,
            "region_around": self.region_around,
            "region_layers": self.region_layers,
            "region_tags": self.region_tags,
        }
        given = [name for name, way in ways.items() if way]
        if len(given) > 1:
            raise ValueError(f"a region must be chosen in one way, got {' and '.join(given)}.")


@dataclass(frozen=True)
class RunSettings(SystemSettings):
    """Molecular dynamics; keys of the `[run]` table of a settings file."""

    ensemble: str = option("nve", "nve, langevin, nose_hoover or npt")
    temperature_K: float = option(300.0, "of the thermostat, and of the velocities where the file has none")
    friction_per_fs: float = option(0.01, "of langevin")
    tau_fs: float = option(100.0, "period of the thermostat of nose_hoover and npt")
    pressure_GPa: float = option(0.0, "of npt")
    barostat_tau_fs: float = option(1000.0, "period of the barostat of npt")
    timestep_fs: float = 1.0
    inner_potential: str = option(
        "", "checkpoint whose first expert stands in for the expensive one between two of its forces"
    )
    outer_every: int = option(1, "steps between those forces; of nve and langevin")
    steps: int = 1000
    relax_steps: int = option(0, "walk downhill first")
    log_every: int = option(10, "steps")
    trajectory_every: int = option(100, "steps, a multiple of log_every")
    trajectory_format: str = option("extxyz", "extxyz or h5md")
    restart_every: int = option(100, "steps, a multiple of log_every")
    dtype: str = option("float64", "float32 or float64")
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (
            ("ensemble", ("nve", "langevin", "nose_hoover", "npt")),
            ("trajectory_format", ("extxyz", "h5md")),
            ("dtype", ("float32", "float64")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in ("steps", "relax_steps", "seed", "temperature_K"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        for name in ("timestep_fs", "friction_per_fs", "tau_fs", "barostat_tau_fs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("trajectory_every", "restart_every"):
            every = getattr(self, name)
            if self.log_every < 1 or every < 1 or every % self.log_every:
                raise ValueError(
                    f"log_every must be positive and {name} a multiple of it, got {self.log_every} and"
                    f" {every}."
                )
        if self.steps % self.log_every:
            raise ValueError(f"steps must be a multiple of log_every, got {self.steps} and {self.log_every}.")
        if self.outer_every < 1 or self.log_every % self.outer_every:
            raise ValueError(
                f"outer_every must be positive and log_every a multiple of it, got {self.outer_every} and"
                f" {self.log_every}."
            )
        if self.outer_every > 1 and not (self.inner_potential and self.ensemble in ("nve", "langevin")):
            raise ValueError(
                "outer_every above 1 must come with inner_potential and ensemble nve or langevin, "
                f"got {self.inner_potential!r} and {self.ensemble}."
            )


@dataclass(frozen=True)
class ExportSettings(SystemSettings):
    """A run of another program; keys of the `[export]` table of a settings file."""

    temperature_K: float = option(300.0, "of the velocities where the file has none")
    timestep_fs: float = 1.0
    steps: int = 1000
    skin: float = option(1.0, "Å, of the neighbour lists")
    dtype: str = option("float64", "float32 or float64")
    seed: int = option(1, "of the velocities, positive")

    def __post_init__(self):
        super().__post_init__()
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}.")
        for name in ("timestep_fs", "skin", "seed"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("temperature_K", "steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
