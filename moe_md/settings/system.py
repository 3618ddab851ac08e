"""Settings of `moe-md run` and `moe-md export`: a structure, its region, and a run."""

from dataclasses import dataclass

from moe_md.checks import check_fields
from moe_md.settings.option import option

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class SystemSettings:
    """A structure, its experts and its region; keys of every table that has a structure."""

    checkpoint: str = option("ptco", "name or path")
    structure: str = option("", "any file that ASE reads: the last frame, with velocities if present")
    repeat: str = option("", "copies along each lattice vector, such as 2,2,1, for a small cell")
    region_lower: float | None = option(None, "Å: atoms above this plane go to the expensive expert")
    region_upper: float | None = option(None, "Å: atoms below this plane go to the expensive expert")
    region_axis: int = option(2, "normal of those planes: 0, 1 or 2", choices=(0, 1, 2))
    region_around: str = option("", "chemical symbols, such as C,O: the region follows these atoms")
    region_indices: str = option(
        "",
        "atoms, such as 0,4,10-19, counted from 0 after `repeat`: the region follows these atoms",
    )
    region_coordination: str = option(
        "",
        "LOW,HIGH or LOW,HIGH,R_FULL,R_NONE: the region follows atoms with few neighbours, fully up to LOW,"
        " not from HIGH on; a neighbour counts fully up to R_FULL Å and not from R_NONE on",
    )
    region_unfamiliar: str = option(
        "",
        "LOW,HIGH, such as 0.6,0.9: the region follows atoms unlike the crystals of the training; their"
        " distance, 1 at the limit of strained crystals, counts from LOW on, fully from HIGH on",
    )
    region_core: float = option(
        6.0, "Å, radius around atoms that are followed, in which only the expensive expert counts", least=0
    )
    region_blend: float = option(
        2.0, "Å, width of the shell beyond, in which the experts share an atom", positive=True
    )
    region_layers: int = option(
        0, "number of top layers that go to the expensive expert; atoms keep their expert", least=0
    )
    region_tags: str = option(
        "", "tags of ASE, such as 1,2, whose atoms go to the expensive expert; atoms keep their expert"
    )

    region_missing: str = option(
        "error",
        "what happens where the region selects no atom: error, or cheap, the cheap expert owns all atoms",
        choices=("error", "cheap"),
    )

    def __post_init__(self):
        check_fields(self)
        if not self.structure:
            raise ValueError("structure must be given: a file that ASE reads.")
        planes = not (self.region_lower is None and self.region_upper is None)
        ways = {
            "region_lower or region_upper": planes,
            "region_around": self.region_around,
            "region_indices": self.region_indices,
            "region_coordination": self.region_coordination,
            "region_unfamiliar": self.region_unfamiliar,
            "region_layers": self.region_layers,
            "region_tags": self.region_tags,
        }
        given = [name for name, way in ways.items() if way]
        if len(given) > 1:
            raise ValueError(
                f"a region must be chosen in one way, got {' and '.join(given)}: keep one of them."
            )


@dataclass(frozen=True)
class RunSettings(SystemSettings):
    """Molecular dynamics; keys of the `[run]` table of a settings file."""

    ensemble: str = option(
        "nve", "nve, langevin, nose_hoover or npt", choices=("nve", "langevin", "nose_hoover", "npt")
    )
    temperature_K: float = option(
        300.0, "of the thermostat, and of the initial velocities if the structure has none", least=0
    )
    friction_per_fs: float = option(0.01, "of langevin", positive=True)
    tau_fs: float = option(100.0, "period of the thermostat of nose_hoover and npt", positive=True)
    pressure_GPa: float = option(0.0, "of npt")
    barostat_tau_fs: float = option(1000.0, "period of the barostat of npt", positive=True)
    timestep_fs: float = option(1.0, "length of one step", positive=True)
    inner_potential: str = option(
        "", "checkpoint whose first expert replaces the expensive one between two of its evaluations"
    )
    outer_every: int = option(1, "steps between those evaluations; for nve and langevin")
    steps: int = option(1000, "of molecular dynamics", least=0)
    relax_steps: int = option(0, "steps of energy minimisation before the dynamics", least=0)
    log_every: int = option(10, "steps")
    trajectory_every: int = option(100, "steps, a multiple of log_every")
    trajectory_format: str = option("extxyz", "extxyz or h5md", choices=("extxyz", "h5md"))
    restart_every: int = option(100, "steps, a multiple of log_every")
    max_energy_change_eV_per_atom: float = option(
        0.1, "of the conserved energy since the start; beyond it the run ends", positive=True
    )
    max_energy_change_factor: float = option(
        1.0, "the run also ends where that change exceeds so many times the kinetic energy", positive=True
    )
    max_temperature_factor: float = option(
        10.0, "the run ends beyond so many times the temperature", positive=True
    )
    max_temperature_K: float = option(1000.0, "but not below this temperature", positive=True)
    max_move_A: float = option(
        0.4, "Å, of an atom in one step; the default is the skin of the lists", positive=True
    )
    chunk_size: int = option(64, "rows computed at a time; lower it where memory runs out", positive=True)
    dtype: str = option("float64", "float32 or float64", choices=DTYPES)
    seed: int = option(0, "of the velocities and of langevin", least=0)

    def __post_init__(self):
        super().__post_init__()
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
    """A run in another program; keys of the `[export]` table of a settings file."""

    temperature_K: float = option(300.0, "of the initial velocities if the structure has none", least=0)
    timestep_fs: float = option(1.0, "length of one step", positive=True)
    steps: int = option(1000, "of molecular dynamics", least=0)
    skin: float = option(1.0, "Å, of the neighbour lists", positive=True)
    dtype: str = option("float64", "float32 or float64", choices=DTYPES)
    seed: int = option(1, "of the velocities, positive", positive=True)
