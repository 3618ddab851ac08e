"""Diffusion of atoms on a surface from independent runs; part of `bench_adsorbate.py`."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import defect_systems as systems
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

import moe_md as mm
from moe_md import simulate
from moe_md.analysis.dynamics import unwrap
from moe_md.reporters.trajectory import drift

FRICTION = 0.02  # 1/fs, of the thermalisation
FRAME_FS = 10.0  # fs between frames
STAYS_PS = 0.1  # an atom has jumped where it stays for so long
CENTERS = {  # in cells of the surface, from an atom of the first layer
    "top": ((0.0, 0.0),),
    "hollow": ((0.5, 0.5),),
    "bridge": ((0.5, 0.0), (0.0, 0.5)),
}


class Trajectory(NamedTuple):
    """A run at constant energy."""

    time_ps: np.ndarray  # [n_frames]
    adsorbed: np.ndarray  # [n_frames, n_adsorbed, 3] Å
    energy: np.ndarray  # eV
    temperature_K: np.ndarray
    seconds: np.ndarray  # a number, of the steps alone


def measure(model: mm.Checkpoint, atoms: Atoms, slab: Atoms, region, a: float, arguments) -> dict:
    """Diffusion under the expensive expert and the mixture, from the same starts.

    Args:
        model: the experts.
        atoms: the slab and the adsorbed atoms, which are the last ones.
        slab: the clean slab, unrelaxed; its constraint holds the fixed atoms.
        region: of the mixture.
        a: Å, edge of the surface's cell.
        arguments: of the program.
    """
    runs: dict[str, list[Trajectory]] = {"expensive": [], "mixture": []}
    lists: dict[str, Any] = dict.fromkeys(runs)  # kept, as lists of other shapes compile again
    built = {
        name: systems.build(model, atoms, chosen, "float32")
        for name, chosen in (("expensive", 0), ("mixture", region))
    }
    fixed = np.zeros(len(atoms), bool)
    fixed[slab.constraints[0].index] = True
    for seed in range(arguments.runs):
        start = None
        for name, system in built.items():
            path = arguments.folder and arguments.folder / f"{name}-{seed}.npz"
            if path and path.exists():
                runs[name].append(stored(path))
                continue
            start = start or thermalized(built["expensive"], atoms, fixed, arguments, seed)
            done, lists[name] = run(system, atoms, fixed, start, lists[name], arguments.ps)
            runs[name].append(done)
            print(f"run {seed}, {name}: {done.seconds:.0f} s, {done.temperature_K.mean():.0f} K", flush=True)
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(path, **done._asdict())
    box, origin = atoms.cell.lengths(), slab.positions[slab.get_tags() == 1][0, :2]
    return {
        "temperature_K": arguments.temperature_K,
        "runs": arguments.runs,
        "ps": arguments.ps,
        "fit_ps": list(arguments.fit_ps),
        "diffusion": {
            name: summary(some, box, origin, a, arguments.fit_ps, len(atoms)) for name, some in runs.items()
        },
    }


def stored(path: Path) -> Trajectory:
    """A run from its file."""
    with np.load(path) as content:
        return Trajectory(**{name: content[name] for name in Trajectory._fields})


def thermalized(system: systems.System, atoms: Atoms, fixed: np.ndarray, arguments, seed: int):
    """The state after Langevin dynamics from the relaxed slab."""
    integrator = simulate.freeze(
        simulate.langevin(system.shift_fn, 1.0, arguments.temperature_K, friction_per_fs=FRICTION), fixed
    )
    state = simulate.start(
        integrator,
        jnp.asarray(atoms.get_positions(wrap=True), jnp.float32),
        masses=atoms.get_masses(),
        temperature_K=2 * arguments.temperature_K,
        key=jax.random.key(seed),
    )
    n_steps = round(1e3 * arguments.thermalize_ps)
    return simulate.run(system.neighbor_fn, system.energy_fn, integrator, state, n_steps=n_steps).state


def run(
    system: systems.System, atoms: Atoms, fixed: np.ndarray, start: simulate.State, neighbors, ps: float
) -> tuple[Trajectory, Any]:
    """A run at constant energy from positions and velocities of a state, and its lists.

    Args:
        system: functions of the potential.
        atoms: for masses; the adsorbed atoms are those without a tag.
        fixed: atoms that hold still.
        start: of the thermalisation.
        neighbors: lists of an earlier run of the system, or None.
        ps: length.
    """
    frames: list[tuple] = []
    adsorbed = atoms.get_tags() == 0

    def store(frame: simulate.Frame) -> None:
        frames.append((frame.time_ps, frame.position[adsorbed], frame.total, frame.temperature_K))

    integrator = simulate.freeze(simulate.nve(system.shift_fn, 1.0), fixed)
    state = simulate.start(integrator, start.position, masses=atoms.get_masses(), velocity=start.velocity)
    fns = (system.neighbor_fn, system.energy_fn, integrator)
    options = {"chunk_steps": round(FRAME_FS), "reporters": [store]}
    first = simulate.run(*fns, state, n_steps=0, neighbors=neighbors, **options)  # compiles
    began = time.perf_counter()
    end = simulate.run(*fns, first.state, neighbors=first.neighbors, n_steps=round(1e3 * ps), **options)
    seconds = time.perf_counter() - began
    return Trajectory(*(np.array(column) for column in zip(*frames)), np.array(seconds)), end.neighbors


def summary(
    runs: list[Trajectory], box: np.ndarray, origin: np.ndarray, a: float, fit_ps, n_atoms: int
) -> dict:
    """Diffusion constant, jumps, residence, temperature and drift over some runs, as JSON values.

    Args:
        runs: of one length.
        box: `[3]` Å.
        origin: `[2]` Å, an atom of the first layer.
        a: Å, edge of the surface's cell.
        fit_ps: times between which the slope of the mean square displacement is fitted.
        n_atoms: of the slab and on it.

    Raises:
        ValueError: fewer than two lags are fitted, or the runs differ in length.
    """
    if len({len(each.time_ps) for each in runs}) != 1:
        raise ValueError("runs must be of one length: give --folder an empty folder.")
    paths = [unwrap(each.adsorbed, box) for each in runs]
    times = runs[0].time_ps - runs[0].time_ps[0]
    half = len(times) // 2
    msd = np.array([in_plane_msd(path, half) for path in paths])
    fitted = (times[:half] >= fit_ps[0] - 1e-9) & (times[:half] <= fit_ps[1] + 1e-9)
    if fitted.sum() < 2:
        raise ValueError(
            f"--fit-ps must lie below half the length of a run, {times[half]:g} ps, got {fit_ps}."
        )
    constants = np.array([np.polyfit(times[:half][fitted], curve[fitted], 1)[0] / 4 for curve in msd])
    stays = round(STAYS_PS / (1e-3 * FRAME_FS))
    counts = np.array([hollow_jumps(path, origin, a, stays) for path in paths])
    n_adsorbed = paths[0].shape[1]
    drifts = [drift(each.time_ps, each.energy, n_atoms).slope for each in runs]
    every = max(1, half // 50)
    return {
        "D_A2_per_ps": float(constants.mean()),
        "D_stderr": standard_error(constants),
        "jumps": int(counts.sum()),
        "jumps_per_ps": float(counts.mean() / times[-1] / n_adsorbed),
        "jumps_stderr": standard_error(counts / times[-1] / n_adsorbed),
        "residence": residence(np.concatenate(paths), origin, a),
        "temperature_K": float(np.mean([each.temperature_K.mean() for each in runs])),
        "drift_meV_per_atom_per_ps": float(np.mean(drifts)),
        "ms_per_step": 1e3 * float(np.mean([each.seconds for each in runs])) / round(1e3 * times[-1]),
        "lag_ps": times[:half:every].tolist(),
        "msd_A2": msd.mean(axis=0)[::every].tolist(),
        "msd_stderr": [standard_error(column) for column in msd.T[::every]],
    }


def in_plane_msd(path: np.ndarray, n_lags: int) -> np.ndarray:
    """`[n_lags]` Å², mean square displacement parallel to the surface, over atoms and time origins."""
    flat = path[..., :2]
    lags = [np.mean(np.sum((flat[lag:] - flat[:-lag]) ** 2, axis=-1)) for lag in range(1, n_lags)]
    return np.array([0.0, *lags])


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values; 0 for one value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def residence(path: np.ndarray, origin: np.ndarray, a: float) -> dict[str, float]:
    """Share of frames in which an atom is nearest to a site of each kind."""
    cell = np.mod((path[..., :2] - origin) / a, 1.0)
    distance = []
    for centers in CENTERS.values():
        away = [cell - np.array(center) for center in centers]
        distance.append(np.min([np.linalg.norm(d - np.round(d), axis=-1) for d in away], axis=0))
    nearest = np.argmin(distance, axis=0)
    return {name: float(np.mean(nearest == n)) for n, name in enumerate(CENTERS)}


def hollow_jumps(path: np.ndarray, origin: np.ndarray, a: float, stays: int) -> int:
    """Changes of the square of surface atoms above which an atom is.

    Args:
        path: `[n_frames, n_adsorbed, 3]` Å, unwrapped.
        origin: Å, an atom of the first layer.
        a: Å, edge of the squares.
        stays: frames for which an atom stays in a square before it counts.
    """
    square = np.floor((path[..., :2] - origin) / a).astype(int)
    jumps = 0
    for one in square.transpose(1, 0, 2):
        edges = np.flatnonzero(np.any(np.diff(one, axis=0) != 0, axis=1)) + 1
        lasting = [part[0] for part in np.split(one, edges) if len(part) >= stays]
        jumps += sum(bool((after != before).any()) for before, after in pairwise(lasting))
    return jumps
