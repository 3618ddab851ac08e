"""Timing and records, shared by the benchmarks.

Programs are compiled first and then called in turn, once per round, so that
other load on the machine affects all of them alike. A call ends when its
results are ready. The spread is the interquartile range.
"""

import datetime
import json
import os
import platform
import subprocess
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import moe_md as mm
from moe_md import checkpoint, experts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"

# Configurations of the shipped checkpoint, for timings with random parameters.
PTCO_SPECIES = ("Pt", "C", "O")
PTCO_CONFIGS = (
    {"builder": "allegro", "species": PTCO_SPECIES, "cutoff": 5.0},
    {"builder": "density_moments", "species": PTCO_SPECIES, "allowed_species": ("Pt",), "cutoff": 5.0},
)

# Changes to the configurations of a pair of experts for smoke runs.
TINY = (
    {
        "cutoff": 4.0,
        "l_max": 1,
        "num_layers": 1,
        "num_scalar_features": 8,
        "num_tensor_features": 4,
        "scalar_embed_mlp": (8,),
        "allegro_mlp": (8,),
    },
    {"cutoff": 4.0, "num_radial": (4, 2), "hidden": (8,)},
)


class Case:
    """A compiled program and its state.

    Args:
        fn: `state -> state`, pure; shapes stay the same.
        state: the initial state, a pytree.
    """

    def __init__(self, fn: Callable, state: Any):
        started = time.perf_counter()
        self._call = jax.jit(fn, compiler_options=mm.compiler_options()).lower(state).compile()
        self.compile_seconds = time.perf_counter() - started
        self.state = jax.block_until_ready(state)

    def advance(self) -> float:
        """Call the program once; returns the time in seconds."""
        started = time.perf_counter()
        self.state = jax.block_until_ready(self._call(self.state))
        return time.perf_counter() - started


def dynamics_step(integrator, energy_fn: Callable) -> Callable:
    """The step of `simulate.run` as a function `(state, neighbors) -> (state, neighbors)`."""

    def step(state, neighbors):
        def evaluate(position, box):
            updated = neighbors.update(position)
            return integrator.evaluate(energy_fn, 0, position, neighbor=updated), updated

        state, _, _, updated = mm.simulate.md_step(integrator, state, None, evaluate)
        return state, updated

    return step


class Timing(NamedTuple):
    """Seconds per call."""

    median: float
    lower: float  # first quartile
    upper: float  # third quartile
    repeats: int


def timing(seconds: Sequence[float]) -> Timing:
    """Median and quartiles of the times of calls, in seconds."""
    lower, median, upper = np.percentile(np.asarray(seconds, float), [25, 50, 75])
    return Timing(float(median), float(lower), float(upper), len(seconds))


def interleave(cases: dict[str, Case], *, repeats: int, warmup: int = 1) -> dict[str, Timing]:
    """Time cases in turn.

    Args:
        cases: compiled programs by name.
        repeats: timed rounds, at least 1. Each round starts with the next case.
        warmup: rounds that are not timed, before the others.

    Returns:
        The timing of each case, by name.

    Raises:
        ValueError: `repeats` is not positive, or `warmup` is negative.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}.")
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            spent = cases[name].advance()
            if turn >= 0:
                seconds[name].append(spent)
    return {name: timing(values) for name, values in seconds.items()}


def environment() -> dict:
    """Commit, date, device and versions of a measurement, as JSON values."""
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    device = jax.devices()[0]
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device.device_kind,
        "platform": device.platform,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def append(folder, name: str, record: dict) -> Path:
    """Append a record as a JSON line to `folder/name.jsonl`; returns the path.

    Raises:
        ValueError: the record holds a number that is not finite.
    """
    path = Path(folder) / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False)
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    return path


def read(folder, name: str) -> list[dict]:
    """Records of `folder/name.jsonl`, oldest first; an empty list if there is no file."""
    path = Path(folder) / f"{name}.jsonl"
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if path.exists()
        else []
    )


def two_experts(name_or_path: str, *, random: bool = False, tiny: bool = False) -> mm.Checkpoint:
    """The pair of experts to time.

    Args:
        name_or_path: of a checkpoint.
        random: random parameters for the configurations of the shipped checkpoint instead.
        tiny: random parameters for tiny experts instead.
    """
    if not (random or tiny):
        return mm.load(name_or_path)
    built = small_experts(tiny=True) if tiny else tuple(experts.build(config) for config in PTCO_CONFIGS)
    params = tuple(expert.init(jax.random.key(n)) for n, expert in enumerate(built))
    return checkpoint.Checkpoint(built, params, {}, {})


def small_experts(*, tiny: bool = False) -> tuple[experts.Expert, experts.Expert]:
    """The experts of `ptco-small`: thousands of steps take minutes, or seconds if they are tiny."""
    if tiny:
        return tuple(experts.build({**config, **change}) for config, change in zip(PTCO_CONFIGS, TINY))
    settings = tomllib.loads((ROOT / "benchmarks/ptco/ptco-small.toml").read_text(encoding="utf-8"))
    return tuple(experts.build(settings[name]) for name in ("expensive", "cheap"))


def _git(*arguments: str) -> str | None:
    """Output of a git command in the repository; None if it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
