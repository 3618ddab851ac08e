"""How large a region must be: `moe-md region`, the convergence test of a region.

A short Langevin run under the mixture of the largest region gives frames: of those that are
compared, it samples the atoms most nearly as the expensive expert alone. On these frames the
forces of every region are compared with the expensive expert's (`analysis.region_scan`).
"""

import contextlib
import shlex
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from moe_md import checkpoint as checkpoints
from moe_md import regions
from moe_md.analysis import region_scan
from moe_md.checkpoint import Checkpoint
from moe_md.commands import region_report, settings_file
from moe_md.commands import run as dynamics
from moe_md.commands.system import LoadedSystem, load_system
from moe_md.data import read_structure
from moe_md.data.extxyz import read_images
from moe_md.data.reading import Frame, frame_from_atoms
from moe_md.experts.base import check_two_experts
from moe_md.files import write_json
from moe_md.neighbors.neighbor_list import perpendicular_widths
from moe_md.plots import region_scan as plots
from moe_md.settings import RegionScanSettings, RunSettings, SystemSettings
from moe_md.settings.region import SCANNED
from moe_md.timing import seconds_per_atom

MAX_LAYERS = 8  # numbers of layers that are compared by default
THIN = 0.01  # Å, blend of a region that selects atoms
DEFAULT_TOLERANCE = 10.0  # meV/Å, where the checkpoint records no error
OF_OWN_ERROR = 1 / 3  # an independent error of this share makes the forces 5 % less accurate


class _Plan(NamedTuple):
    """The regions to compare, the smallest first, and the one that holds the selected atoms."""

    settings: RegionScanSettings  # with a way of choosing atoms
    system: LoadedSystem
    scanned: str  # the setting that varies
    sizes: tuple[float, ...]
    regions: list[regions.Region]
    selection: regions.Region
    selected: str  # which atoms these are, in words


def command(settings: RegionScanSettings, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md region`; see `run`."""
    settings_file.echo(parsed.out, {"region": settings}, parsed.typed)
    return run(settings, parsed.out, log)


def run(settings: RegionScanSettings, folder, log: Callable = print) -> dict:
    """Compare regions of several sizes, and recommend one.

    Args:
        settings: the system, the sizes, and the run that gives frames.
        folder: for `region.json`, `region.png`, and the run in `frames/`; made if it does not exist.
        log: takes lines of text.

    Returns:
        The content of `region.json`.

    Raises:
        ValueError: structure, region or checkpoint do not fit one another, the checkpoint does not hold two
            strictly local experts, or no atom is selected.
        SimulationError: the run failed.
    """
    folder = Path(folder)
    with jax.enable_x64(True) if settings.dtype == "float64" else contextlib.nullcontext():
        plan = _plan(settings, log)
        frames = _frames(plan, folder / "frames", log)
        content = _compare(plan, frames, log)
    write_json(folder / "region.json", content)
    plots.error_and_speed(content).savefig(folder / "region.png", dpi=150)
    log("\n".join([*region_report.table(content), *region_report.advice(content)]))
    log(f"wrote {folder / 'region.json'} and {folder / 'region.png'}")
    return content


def _plan(settings: RegionScanSettings, log: Callable) -> _Plan:
    """The regions to compare."""
    settings = _with_way(settings, log)
    assert settings.way is not None
    scanned = SCANNED[settings.way]
    system = load_system(_system(settings), log=log)
    check_two_experts(system.model.experts, "experts of the checkpoint", strictly_local=True)
    if scanned == "region_layers":
        sizes = settings.sizes or _numbers_of_layers(settings)
        values: Sequence = [int(size) for size in sizes]
        selection, text = _region(settings, region_layers=values[0]), f"of the top {values[0]} layers"
    else:
        followed, start = _followed(settings, system)
        values = sizes = settings.sizes or _radii(system, followed, start, log)
        selection = _region(settings, region_core=start, region_blend=THIN)
        text = "that are followed" + (f", or within {start:g} Å of them" if start else "")
    built = [_region(settings, **{scanned: value}) for value in values]
    return _Plan(settings, system, scanned, tuple(map(float, sizes)), built, selection, text)


def _system(settings: RegionScanSettings, **changes) -> SystemSettings:
    """Checkpoint, structure and region of `moe-md run`, with some settings changed."""
    common = {item.name: getattr(settings, item.name) for item in fields(SystemSettings)}
    return SystemSettings(**{**common, **changes})


def _region(settings: RegionScanSettings, **changes) -> regions.Region:
    """The region of `moe-md run`, with some settings changed."""
    return load_system(_system(settings, **changes)).region


def _with_way(settings: RegionScanSettings, log: Callable) -> RegionScanSettings:
    """The settings with a way of choosing atoms: by default species outside the cheap expert's domain."""
    if settings.way is not None:
        return settings
    model = checkpoints.load(settings.checkpoint)
    symbols = sorted(set(read_structure(settings.structure).symbols))
    outside = [symbol for symbol in symbols if symbol not in model.experts[-1].allowed_species]
    if not outside:
        raise ValueError(
            f"{', '.join(SCANNED)} must choose atoms where all species of the structure,"
            f" {', '.join(symbols)}, are in the cheap expert's domain: give one of them."
        )
    around = ",".join(outside)
    log(f"--region-around {around}: species outside the cheap expert's domain, as no atoms are chosen")
    return replace(settings, region_around=around)


def _numbers_of_layers(settings: RegionScanSettings) -> tuple[int, ...]:
    """From one to all but one, or to `MAX_LAYERS`."""
    found: list[int] = []
    for n in range(1, MAX_LAYERS + 1):
        region = _region(settings, region_layers=n)
        assert isinstance(region, regions.Fixed)
        if not np.asarray(region.assignment).any():
            break
        found.append(n)
    if not found:
        raise ValueError(
            f"region_layers must be of a structure with several layers along axis {settings.region_axis}, got"
            " one: choose region_axis."
        )
    return tuple(found)


def _followed(settings: RegionScanSettings, system: LoadedSystem) -> tuple[np.ndarray, float]:
    """Atoms of the structure that the region follows, `[atoms]` bool, and the least sensible radius, Å.

    The latter is the cheap expert's cutoff where it does not know a species of these atoms, else zero.
    """
    experts, frame = system.model.experts, frame_from_atoms(system.atoms)
    inputs, within = region_scan.gate_inputs([frame], experts[0].species, max(e.cutoff for e in experts))
    region = _region(settings, region_core=0.0, region_blend=THIN)
    (followed,) = _selected(settings, inputs, region, within, "structure")
    species = {symbol for symbol, chosen in zip(frame.symbols, followed) if chosen}
    return followed, 0.0 if species <= set(experts[1].allowed_species) else experts[1].cutoff


def _radii(system: LoadedSystem, followed: np.ndarray, start: float, log: Callable) -> tuple[float, ...]:
    """Core radii from the least sensible one up to half the box, or until all atoms are inside."""
    half = float(perpendicular_widths(system.atoms.cell.array.T).min()) / 2
    last = np.ceil(10 * region_scan.furthest(frame_from_atoms(system.atoms), followed)) / 10
    if last > half:
        last = np.floor(10 * half) / 10
        log(
            f"radii end at half the box, {half:.2f} Å, where a sphere meets its image: repeat the cell for"
            " larger ones"
        )
    return region_scan.radii(start, float(last))


def _selected(settings: RegionScanSettings, inputs, region, within: float, where: str) -> np.ndarray:
    """`[frames, atoms]` bool, the selected atoms; `ValueError` where there are none."""
    selected = region_scan.selection(inputs, region, cutoff=within)
    if not selected.any():
        raise ValueError(
            f"{settings.way} must choose atoms, got {getattr(settings, settings.way or '')!r:.80}, which"
            f" chooses none of the {where}."
        )
    return selected


def _frames(plan: _Plan, folder: Path, log: Callable) -> list[Frame]:
    """Frames of a Langevin run under the mixture of the largest region."""
    settings, last = plan.settings, plan.sizes[-1]
    steps = settings.equilibration_steps + settings.frames * settings.frames_every
    size = int(last) if plan.scanned == "region_layers" else last
    system = asdict(_system(settings, **{plan.scanned: size}))
    log(
        f"{settings.frames} frames of {steps} steps of Langevin dynamics under the mixture of the largest"
        f" region, {region_report.size_text(plan.scanned, last)}"
    )
    every = dict.fromkeys(("log_every", "trajectory_every", "restart_every"), settings.frames_every)
    same = ("temperature_K", "timestep_fs", "friction_per_fs", "relax_steps", "chunk_size", "dtype", "seed")
    run_settings = RunSettings(
        **system,
        **every,
        **{name: getattr(settings, name) for name in same},
        ensemble="langevin",
        steps=steps,
    )
    (folder / dynamics.RESTART).unlink(missing_ok=True)  # a new run, not the one of an earlier comparison
    dynamics.run(run_settings, folder, log)
    images = read_images(folder / "trajectory.extxyz")
    return [frame_from_atoms(atoms) for atoms in images[-settings.frames :]]


def _compare(plan: _Plan, frames: Sequence[Frame], log: Callable) -> dict:
    """The content of `region.json`."""
    settings, model = plan.settings, plan.system.model
    prepared = region_scan.scan_frames(model.experts, model.params, frames, chunk_size=settings.chunk_size)
    selected = _selected(settings, prepared.inputs, plan.selection, prepared.complete_within, "frames")
    atoms = plan.system.atoms.copy()
    atoms.positions = frames[-1].positions
    seconds = seconds_per_atom(
        model.potentials,
        atoms,
        dtype=np.dtype(settings.dtype),
        chunk_size=settings.chunk_size,
        rounds=settings.timing_rounds,
    )
    log(
        f"an atom takes {1e3 * seconds[0]:.3g} ms on the expensive expert, {1e3 * seconds[1]:.3g} ms on the"
        f" cheap one: r = {seconds[0] / seconds[1]:.1f}"
    )
    scores = [region_scan.score(prepared, region, selected, seconds) for region in plan.regions]
    tolerance, source = _tolerance(settings, model)
    best = region_scan.recommended(scores, 1e-3 * tolerance)
    return {
        "settings": asdict(settings),
        "n_atoms": len(atoms),
        "n_selected": float(selected.sum(axis=1).mean()),
        "selected": plan.selected,
        "scanned": plan.scanned,
        "seconds_per_atom": list(seconds),
        "cost_ratio": seconds[0] / seconds[1],
        "tolerance_meV_per_A": tolerance,
        "tolerance_source": source,
        "regions": [_row(size, each) for size, each in zip(plan.sizes, scores)],
        "recommended": None
        if best is None
        else {"size": plan.sizes[best], "command": _run_command(plan, plan.sizes[best])},
    }


def _row(size: float, score: region_scan.Score) -> dict[str, float]:
    """A region in `region.json`."""
    return {
        "size": size,
        "expensive_share": score.shares[0],
        "cheap_share": score.shares[1],
        "speedup": score.speedup,
        "error_selected_meV_per_A": 1e3 * score.error_selected,
        "error_all_meV_per_A": 1e3 * score.error_all,
        "error_largest_meV_per_A": 1e3 * score.error_largest,
        "out_of_domain": score.out_of_domain,
    }


def _tolerance(settings: RegionScanSettings, model: Checkpoint) -> tuple[float, str]:
    """The tolerance in meV/Å, and where it is from."""
    if settings.tolerance is not None:
        return settings.tolerance, "as given"
    history = model.record.get("history")
    own = history[-1]["expensive"]["forces_meV_per_A"] if history else None
    if own is None:
        return DEFAULT_TOLERANCE, "default, as the checkpoint records no validation error"
    return OF_OWN_ERROR * own, f"a third of the expensive expert's validation error, {own:.0f} meV/Å"


def _run_command(plan: _Plan, size: float) -> str:
    """The line of `moe-md run` with the region of a size."""
    chosen = {plan.scanned: f"{size:g}"}
    if plan.scanned == "region_core":
        chosen["region_blend"] = f"{plan.settings.region_blend:g}"
    words = ["moe-md", "run"]
    for item in fields(SystemSettings):
        value = getattr(plan.settings, item.name)
        if item.name in chosen or item.name == "checkpoint" or value != item.default:
            words += [f"--{item.name.replace('_', '-')}", str(chosen.get(item.name, value))]
    return shlex.join(words)
