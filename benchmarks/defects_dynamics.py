"""Constant-energy dynamics of a crystal with a vacancy that jumps; part of `bench_defects.py`."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import defect_systems as systems
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from scipy.spatial import cKDTree
from vacancy_jump import vacancy_jump

import moe_md as mm
from moe_md import simulate
from moe_md.reporters.blending import BlendWatch
from moe_md.reporters.trajectory import drift

# K, below melting, so that a vacancy jumps within picoseconds.
TEMPERATURES_K = {"Si": 1000.0, "Mo": 2600.0, "W": 3300.0, "Li": 400.0}
FRICTION = 0.02  # 1/fs, of the thermalisation
FRAME_FS, REASSIGN = 10.0, 20  # fs between frames; steps between reassignments
STAYS_PS = 0.1  # a vacancy has jumped where it stays for so long
START = 100  # steps between frames of the thermalisation
LONG = ("blending", "empty_sites", "inside_of_time")  # values that are not printed


class Run(NamedTuple):
    """Options of one run."""

    timestep_fs: float = 1.0
    reassigned: bool = False


class Stored(NamedTuple):
    """Values of one frame, or arrays over all frames."""

    time_ps: float | np.ndarray
    conserved: float | np.ndarray  # eV, without the work of reassignments
    total: float | np.ndarray  # eV
    temperature_K: float | np.ndarray
    momentum: float | np.ndarray
    position: np.ndarray  # [n_atoms, 3] Å


RUNS = {"grown": Run(), "half step": Run(timestep_fs=0.5), "reassigned": Run(reassigned=True)}


def simulate_runs(model: mm.Checkpoint, crystal: systems.Crystal, arguments) -> Iterator[dict]:
    """The records of the runs, each when it has ended."""
    temperature_K = arguments.temperature_K or TEMPERATURES_K.get(arguments.symbol)
    if temperature_K is None:
        raise ValueError(f"--temperature-K must be given for {arguments.symbol}.")
    perfect = systems.repeated(crystal.cell, 216, arguments.cells)
    atoms = vacancy_jump(perfect, systems.RIM * crystal.shell).first
    selected = systems.SELECTIONS[arguments.selection](model, crystal, arguments.counted)
    region = mm.regions.grown(selected, arguments.core, arguments.blend)
    with jax.enable_x64(True):
        system = systems.build(model, atoms, region)
        began = time.perf_counter()
        start = thermalized(system, atoms, temperature_K, arguments.thermalize_ps)
        print(f"thermalised in {time.perf_counter() - began:.0f} s", flush=True)
        for name in arguments.runs:
            record = simulate_one(system, region, RUNS[name], atoms, start, perfect.positions, arguments.ps)
            record = {"run": name, "target_K": temperature_K, "core": arguments.core, **record}
            print({k: v for k, v in record.items() if k not in LONG}, flush=True)
            yield record


def thermalized(
    system: systems.System, atoms: Atoms, temperature_K: float, ps: float, seed: int = 0
) -> simulate.State:
    """The state after Langevin dynamics of the mixture, from the sites of the crystal."""
    integrator = simulate.langevin(system.shift_fn, 1.0, temperature_K, friction_per_fs=FRICTION)
    state = simulate.start(
        integrator,
        jnp.asarray(atoms.get_positions(wrap=True)),
        masses=atoms.get_masses(),
        temperature_K=2 * temperature_K,
        key=jax.random.key(seed),
    )
    fns = (system.neighbor_fn, system.energy_fn)
    return simulate.run(*fns, integrator, state, n_steps=round(1e3 * ps), chunk_steps=START).state


def simulate_one(
    system: systems.System,
    region,
    run: Run,
    atoms: Atoms,
    start: simulate.State,
    sites: np.ndarray,
    ps: float,
) -> dict:
    """Drift, fluctuation, momentum, region and jumps of one run at constant energy."""
    switches = {"region": mm.regions.reassigned(region)} if run.reassigned else {}
    watch = BlendWatch(system.neighbor_fn, atomic_volume=atoms.get_volume() / len(sites), **switches)
    stored: list[Stored] = []

    def store(frame: simulate.Frame) -> None:
        stored.append(Stored(*(getattr(frame, name) for name in Stored._fields)))

    integrator = simulate.nve(system.shift_fn, run.timestep_fs)
    state = simulate.start(integrator, start.position, masses=atoms.get_masses(), velocity=start.velocity)
    options = {"chunk_steps": round(FRAME_FS / run.timestep_fs), "reporters": [store, watch], **switches}
    if run.reassigned:
        options["reassign_every"] = REASSIGN
    advance = simulate.run_reassigned if run.reassigned else simulate.run
    fns = (system.neighbor_fn, system.energy_fn, integrator)
    first = advance(*fns, state, n_steps=0, **options)  # compiles
    began = time.perf_counter()
    n_steps = round(1e3 * ps / run.timestep_fs)
    end = advance(*fns, first.state, neighbors=first.neighbors, n_steps=n_steps, **options).state
    seconds = time.perf_counter() - began
    frames = Stored(*(np.array(column) for column in zip(*stored)))
    inside = len(atoms) * watch.log.share[:, 0]
    return {
        "dtype": "float64",
        "atoms": len(atoms),
        "ps": ps,
        **run._asdict(),
        **conservation(frames, len(atoms)),
        **jumps(frames.position, atoms, sites, round(STAYS_PS / (1e-3 * FRAME_FS))),
        "atoms_inside": [float(f(inside)) for f in (np.mean, np.min, np.max)],
        "inside_of_time": np.round(inside[:: max(1, len(inside) // 100)]).astype(int).tolist(),
        "blending": watch.summary(),
        "switching_work_eV": float(end.work),
        "n_reallocations": end.n_reallocations,
        "ms_per_step": 1e3 * seconds / n_steps,
    }


def conservation(frames: Stored, n_atoms: int) -> dict:
    """Drift, with and without the work of reassignments, fluctuation, momentum and temperature."""
    times, energy = frames.time_ps[1:], frames.conserved[1:]
    counted, uncounted = drift(times, energy, n_atoms), drift(times, frames.total[1:], n_atoms)
    return {
        "temperature_K": float(np.mean(frames.temperature_K)),
        "drift_meV_per_atom_per_ps": counted.slope,
        "drift_stderr": counted.standard_error,
        "total_drift_meV_per_atom_per_ps": uncounted.slope,  # the work of reassignments left in
        "total_drift_stderr": uncounted.standard_error,
        "fluctuation_meV": 1e3 * float(np.std(energy - np.polyval(np.polyfit(times, energy, 1), times))),
        "momentum": float(np.max(frames.momentum)),
    }


def jumps(position: np.ndarray, atoms: Atoms, sites: np.ndarray, stays: int) -> dict:
    """Jumps of the vacancy: changes of the site that has no atom.

    Args:
        position: `[n_frames, n_atoms, 3]` Å.
        atoms: for the box.
        sites: `[n_atoms + 1, 3]` Å, of the lattice.
        stays: frames for which a site stays empty before it counts; shorter visits are left out.

    Returns:
        `jumps`, `empty_sites` in their order, and `frames_with_one`, the share of frames in which one
        site alone is empty.
    """
    box = atoms.cell.lengths()
    tree = cKDTree(in_box(sites, box), boxsize=box)
    empty = np.full(len(position), -1)
    for n, frame in enumerate(position):
        _, nearest = tree.query(in_box(frame, box))
        missing = np.flatnonzero(np.bincount(nearest, minlength=len(sites)) == 0)
        if len(missing) == 1:
            empty[n] = missing[0]
    edges = np.flatnonzero(np.diff(empty)) + 1
    lasting = [part[0] for part in np.split(empty, edges) if len(part) >= stays and part[0] >= 0]
    visited = [int(site) for n, site in enumerate(lasting) if n == 0 or site != lasting[n - 1]]
    return {
        "jumps": max(0, len(visited) - 1),
        "empty_sites": visited,
        "frames_with_one": float(np.mean(empty >= 0)),
    }


def in_box(position: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Positions of at least 0 and below the edges of the box, also after rounding."""
    wrapped = np.mod(position, box)
    return np.where(wrapped < box, wrapped, 0.0)
