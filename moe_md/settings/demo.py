"""Settings of the demonstration and of `moe-md bench`."""

from dataclasses import dataclass

from moe_md.checks import check_fields
from moe_md.settings.option import option


@dataclass(frozen=True)
class DemoSettings:
    """The demonstration; keys of the `[demo]` table of a settings file."""

    checkpoint: str = option("ptco", "name or path")
    columns: int = option(8, "Pt atoms along x, even", positive=True)
    rows: int = option(8, "rows of Pt atoms along y, a multiple of 4", positive=True)
    layers: int = option(32, "layers of Pt", positive=True)
    vacuum: float = option(16.0, "Å, between periodic images of the slab", positive=True)
    temperature_K: float = option(500.0, "of equilibration", positive=True)
    timestep_fs: float = option(1.0, "the C-O stretch has a period of 16 fs", positive=True)
    relax_steps: int = option(40, "steps of energy minimisation", least=0)
    equilibration_steps: int = option(500, "steps of Langevin dynamics", least=0)
    production_steps: int = option(1000, "steps at constant energy")
    log_every: int = option(10, "steps", positive=True)
    trajectory_every: int = option(50, "steps, a multiple of log_every", positive=True)
    snapshots: int = option(
        4, "frames whose forces are compared with those of the expensive expert", positive=True
    )
    timing_rounds: int = option(9, "timed steps of each program", positive=True)
    chunk_size: int = option(64, "rows computed at a time", positive=True)
    seed: int = option(0, "of the velocities", least=0)

    def __post_init__(self):
        check_fields(self)
        if self.columns % 2 or self.rows % 4:
            raise ValueError(
                "columns must be even and rows a multiple of 4, so that a p(2x2) pattern fits, got"
                f" {self.columns} and {self.rows}."
            )
        if self.production_steps < 20 * self.log_every:
            raise ValueError(
                f"production_steps must be at least 20 x log_every = {20 * self.log_every}, so that the drift"
                f" has an error bar, got {self.production_steps}."
            )
        if self.trajectory_every % self.log_every:
            raise ValueError(
                f"trajectory_every must be a multiple of log_every = {self.log_every}, got"
                f" {self.trajectory_every}."
            )


@dataclass(frozen=True)
class BenchSettings:
    """A timing; keys of the `[bench]` table of a settings file."""

    checkpoint: str = option("ptco", "name or path")
    columns: int = option(8, "Pt atoms along x, even", positive=True)
    rows: int = option(8, "rows of Pt atoms along y, a multiple of 4", positive=True)
    layers: int = option(32, "layers of Pt", positive=True)
    rounds: int = option(9, "timed steps of each program", positive=True)
    timestep_fs: float = option(1.0, "length of one step", positive=True)
    chunk_size: int = option(64, "rows computed at a time", positive=True)
    dtype: str = option("float32", "float32 or float64", choices=("float32", "float64"))
    seed: int = option(0, "of the random displacements", least=0)

    def __post_init__(self):
        check_fields(self)
