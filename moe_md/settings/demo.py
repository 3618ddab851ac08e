"""What the demonstration and the timing of a slab are told."""

from dataclasses import dataclass

from moe_md.checks import check_fields
from moe_md.settings.option import option


@dataclass(frozen=True)
class DemoSettings:
    """What the demonstration is told; keys of the `[demo]` table of a settings file."""

    checkpoint: str = option("ptco", "name or path")
    columns: int = option(8, "Pt atoms along x, even")
    rows: int = option(8, "rows of Pt atoms along y, a multiple of 4")
    layers: int = 32
    vacuum: float = option(16.0, "Å, between the slab's images")
    temperature_K: float = 500.0
    timestep_fs: float = option(1.0, "the C-O stretch takes 16 fs")
    relax_steps: int = 40
    equilibration_steps: int = 500
    production_steps: int = 1000
    log_every: int = option(10, "steps")
    trajectory_every: int = option(50, "steps")
    snapshots: int = option(4, "on which forces are compared with the expensive expert's")
    timing_rounds: int = 9
    chunk_size: int = option(64, "rows computed at a time")
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        if self.columns < 2 or self.columns % 2 or self.rows < 4 or self.rows % 4:
            raise ValueError(
                "columns must be even and rows a multiple of 4, so that a p(2x2) pattern fits, got"
                f" {self.columns} and {self.rows}."
            )
        for name in (
            "layers",
            "vacuum",
            "temperature_K",
            "timestep_fs",
            "log_every",
            "trajectory_every",
            "timing_rounds",
            "snapshots",
            "chunk_size",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("relax_steps", "equilibration_steps", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.production_steps < 20 * self.log_every:
            raise ValueError(
                f"production_steps must be at least 20 x log_every = {20 * self.log_every}, or the drift"
                f" means nothing, got {self.production_steps}."
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
    columns: int = option(8, "Pt atoms along x, even")
    rows: int = option(8, "rows of Pt atoms along y, a multiple of 4")
    layers: int = 32
    rounds: int = 9
    timestep_fs: float = 1.0
    chunk_size: int = option(64, "rows computed at a time")
    dtype: str = option("float32", "float32 or float64")
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}.")
        for name in ("columns", "rows", "layers", "rounds", "timestep_fs", "chunk_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
