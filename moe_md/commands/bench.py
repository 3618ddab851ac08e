"""Speed of a mixture beside either expert alone, on a slab: `moe-md bench`."""

import contextlib
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from ase.build import bulk

from moe_md import checkpoint as checkpoints
from moe_md.analysis.bulk import relax_crystal
from moe_md.commands import demo, demo_slab, settings_file
from moe_md.files import write_json
from moe_md.settings import BenchSettings, DemoSettings
from moe_md.timing import interleave, steppers, timing_lines

RATTLE = 0.05  # Å, standard deviation of the random displacements


def command(settings: BenchSettings, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md bench`; see `run`."""
    settings_file.echo(parsed.out, {"bench": settings}, parsed.typed)
    return run(settings, parsed.out, log)


def run(settings: BenchSettings, folder, log: Callable = print) -> dict:
    """Time a mixture against either expert alone.

    Args:
        settings: the slab and the number of timed steps.
        folder: for `bench.json`; made if it does not exist.
        log: takes lines of text.

    Returns:
        The content of `bench.json`.

    Raises:
        ValueError: the checkpoint does not fit.
    """
    with jax.enable_x64(True) if settings.dtype == "float64" else contextlib.nullcontext():
        record = _measure(settings, log)
    path = Path(folder) / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    log(f"wrote {path}")
    return record


def _measure(settings: BenchSettings, log: Callable) -> dict:
    model = checkpoints.load(settings.checkpoint)
    demo_slab.check_experts(model)
    shape = DemoSettings(columns=settings.columns, rows=settings.rows, layers=settings.layers)
    crystal = relax_crystal(*model.cheap, bulk(demo_slab.METAL))
    lattice_constant = (4 * crystal.volume) ** (1 / 3)  # fcc
    system = demo_slab.build(model, shape, lattice_constant, np.dtype(settings.dtype))
    log(f"{len(system.atoms)} atoms, {settings.dtype}; compiling three programs")
    rng = np.random.default_rng(settings.seed)
    position = system.position + RATTLE * rng.standard_normal(system.position.shape)
    velocity = np.zeros_like(position)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # out-of-domain rows of the cheap expert: only its time is used
        cases = steppers(model, system, settings.timestep_fs, settings.chunk_size)
        timings = interleave(cases, system, position, velocity, settings.rounds)
    log("\n".join(timing_lines(timings)))
    log(
        f"f = {timings.f:.3f}, r = {timings.r:.1f}: speed-up {timings.speedup:.2f} of at most"
        f" {timings.s_max:.2f}, {timings.speedup / timings.s_max:.0%}"
    )
    return {
        "settings": asdict(settings),
        "n_atoms": len(system.atoms),
        **demo.speed(timings),
        "seconds": {name: getattr(timings, name)._asdict() for name in ("expensive", "mixed", "cheap")},
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
