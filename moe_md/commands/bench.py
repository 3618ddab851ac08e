"""Speed of a mixture beside either expert alone, on a slab: `moe-md bench`."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from moe_md import checkpoint as checkpoints
from moe_md.analysis.bulk import relax_fcc
from moe_md.commands import demo
from moe_md.files import write_json
from moe_md.settings import BenchSettings, DemoSettings
from moe_md.timing import interleave, steppers, timing_lines


def run(settings: BenchSettings, folder, say: Callable = print) -> dict:
    """Time a mixture against either expert alone.

    Args:
        settings: the slab, and how often.
        folder: for `bench.json`.
        say: takes lines of text.

    Returns:
        What `bench.json` holds.
    """
    with jax.enable_x64(True) if settings.dtype == "float64" else contextlib.nullcontext():
        return _run(settings, Path(folder), say)


def _run(settings: BenchSettings, folder: Path, say: Callable) -> dict:
    model = checkpoints.load(settings.checkpoint)
    demo.check_experts(model)
    shape = DemoSettings(columns=settings.columns, rows=settings.rows, layers=settings.layers)
    crystal = relax_fcc(model.experts[1], model.params[1], demo.METAL)
    system = demo.build(model, shape, crystal.lattice_constant, np.dtype(settings.dtype))
    say(f"{len(system.atoms)} atoms, {settings.dtype}; compiling three programs")
    rng = np.random.default_rng(settings.seed)
    position = system.position + 0.05 * rng.standard_normal(system.position.shape)
    velocity = np.zeros_like(position)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cheap expert meets C and O: only its time is wanted
        cases = steppers(model, system, settings.timestep_fs, settings.chunk_size)
        timings = interleave(cases, system, position, velocity, settings.rounds)
    say("\n".join(timing_lines(timings)))
    say(
        f"f = {timings.f:.3f}, r = {timings.r:.1f}: speed-up {timings.speedup:.2f} of at most"
        f" {timings.s_max:.2f}, {timings.speedup / timings.s_max:.0%}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "settings": asdict(settings),
        "n_atoms": len(system.atoms),
        "f": timings.f,
        "r": timings.r,
        "speedup": timings.speedup,
        "s_max": timings.s_max,
        "fraction_of_bound": timings.speedup / timings.s_max,
        "seconds": {name: getattr(timings, name)._asdict() for name in ("expensive", "mixed", "cheap")},
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    write_json(folder / "bench.json", record)
    say(f"wrote {folder / 'bench.json'}")
    return record
