"""The demonstration, `moe-md demo`: a CO-covered Pt(111) slab under two experts.

Builds the slab, minimises its energy, equilibrates it, runs it at constant
energy, times the mixture against either expert alone, and compares forces.
Results are `summary.json`, `report.md` with pictures, a log and a trajectory.

    f      share of atoms on the expensive expert
    r      cost of the expensive expert over that of the cheap one, per atom
    S_max  1 / (f + (1 - f) / r), the largest possible speed-up
"""

import json
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import bulk
from jaxtyping import Float

from moe_md import checkpoint as checkpoints
from moe_md import lazy_jax_md as jax_md
from moe_md import simulate
from moe_md.analysis import expert_boundary
from moe_md.analysis.bulk import relax_crystal
from moe_md.checkpoint import Checkpoint
from moe_md.commands import demo_report, settings_file
from moe_md.commands.demo_slab import MARGIN, METAL, build, check_experts, lower_plane
from moe_md.data import frame_from_atoms
from moe_md.data.batching import frame_rows
from moe_md.files import write_atomic
from moe_md.mixture import mixture_neighbor_list
from moe_md.reporters.trajectory import Drift, LogWriter, XYZWriter, drift
from moe_md.settings import DemoSettings
from moe_md.timing import SKIN, Stepper, System, Timings, interleave, steppers

HOP = 1.3  # Å, half the distance to the next site
STRAINS = (0.98, 1.0, 1.02)  # lattice constants of the crystals with an expert boundary, relative
SUMMARY_KEYS = (
    *("n_atoms", "f", "r", "speedup", "s_max", "fraction_of_bound"),
    *("drift_meV_per_atom_per_ps", "drift_stderr", "force_rmse", "ghost_force"),
)


def command(settings: DemoSettings, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md demo`; see `run`."""
    settings = smoke_settings(settings) if parsed.small else settings
    settings_file.echo(parsed.out, {"demo": settings}, parsed.typed)
    result = run(settings, parsed.out, log)
    log(
        f"{result['n_atoms']} atoms, {result['f']:.1%} on the expensive expert: {result['speedup']:.1f} times"
        f" faster than the expensive expert alone, {result['fraction_of_bound']:.0%} of the bound"
        f" (S_max = {result['s_max']:.1f})."
    )
    return result


def smoke_settings(settings: DemoSettings) -> DemoSettings:
    """The same settings with fewer layers and steps: a demonstration in seconds, for tests."""
    return replace(
        settings,
        columns=4,
        rows=8,
        layers=8,
        relax_steps=5,
        equilibration_steps=10,
        production_steps=40,
        log_every=2,
        trajectory_every=10,
        snapshots=2,
        timing_rounds=2,
    )


def run(settings: DemoSettings, folder, log: Callable[[str], None] = print) -> dict:
    """Run the full demonstration.

    Args:
        settings: see `DemoSettings`.
        folder: of all results; made if it does not exist.
        log: takes lines of text.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: the checkpoint does not fit.
        SimulationError: the dynamics failed.
    """
    folder, started = Path(folder), time.perf_counter()
    stage = partial(_log_stage, log, started)
    model = checkpoints.load(settings.checkpoint)
    check_experts(model)
    folder.mkdir(parents=True, exist_ok=True)
    crystal = relax_crystal(*model.cheap, bulk(METAL))
    a = (4 * crystal.volume) ** (1 / 3)  # fcc
    stage(f"lattice constant {a:.3f} Å, bulk modulus {crystal.bulk_modulus_GPa:.0f} GPa (cheap expert)")
    system = build(model, settings, a)
    n_atoms, n_expensive = len(system.atoms), int(np.sum(system.assignment == 0))
    edges = " x ".join(f"{edge:.1f}" for edge in system.box)
    stage(
        f"{n_atoms} atoms in {edges} Å, {n_expensive} ({n_expensive / n_atoms:.1%}) on the expensive expert"
    )

    simulation = _simulation(model, system, settings)
    start = _equilibrate(simulation, system, settings, stage)
    production = _produce(simulation, system, settings, start, folder, stage)
    cases, timings = _time(model, system, settings, production.result.state, stage)
    forces = _compare_forces(cases["expensive"], production.snapshots, settings.snapshots, stage)
    final = _unwrapped(system, production.result.state.position)
    boundary = _boundary(model, final, a, system.position.dtype, stage)

    summary = {
        "n_atoms": n_atoms,
        **speed(timings),
        "drift_meV_per_atom_per_ps": production.drift.slope,
        "drift_stderr": production.drift.standard_error,
        "force_rmse": 1e3 * _rms(forces.difference),
        "ghost_force": boundary.largest_ghost_force,
    }
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_atomic(folder / "summary.json", text.encode())
    results = demo_report.Results(
        settings=settings,
        experts=model.experts,
        system=system,
        final=final,
        lattice_constant=a,
        plane=lower_plane(system.atoms, model.experts[1].cutoff),
        margin=MARGIN,
        n_hopped=_count_hopped(system, final),
        hop=HOP,
        summary=summary,
        timings=timings,
        log=production.result.log,
        time_ps=production.result.state.time_ps,
        drift=production.drift,
        production_seconds=production.seconds,
        exact=forces.exact,
        difference=forces.difference,
        mismatch=boundary.mismatch,
        ghost_forces=boundary.ghost_forces,
    )
    demo_report.draw(results, folder)
    report = demo_report.markdown(results, total_seconds=time.perf_counter() - started)
    write_atomic(folder / "report.md", report.encode())
    stage(f"wrote {folder / 'report.md'}")
    return summary


def speed(timings: Timings) -> dict[str, float]:
    """Share, cost ratio, speed-up and bound of a mixture, by the names of `summary.json`."""
    return {
        "f": timings.f,
        "r": timings.r,
        "speedup": timings.speedup,
        "s_max": timings.s_max,
        "fraction_of_bound": timings.speedup / timings.s_max,
    }


def _log_stage(log: Callable[[str], None], started: float, text: str) -> None:
    """Log a line with the seconds since the start."""
    log(f"[{time.perf_counter() - started:5.0f} s] {text}")


# Dynamics --------------------------------------------------------------------


class _Simulation(NamedTuple):
    """The mixture as functions, and what its energies are relative to."""

    neighbor_fn: Any
    energy_fn: Callable  # eV, relative to the initial structure
    shift_fn: Callable
    neighbors: Any  # of the initial structure
    zero_energy: float  # eV, of the initial structure


class _Production(NamedTuple):
    """The run at constant energy."""

    result: simulate.Result
    snapshots: list[simulate.Frame]
    drift: Drift
    seconds: float


def _simulation(model: Checkpoint, system: System, settings: DemoSettings) -> _Simulation:
    """The mixture of a slab, with energies relative to the initial structure.

    In float32 a total energy of -12,000 eV is resolved to 1 meV; the difference is resolved far better.
    """
    displacement_fn, shift_fn = jax_md.space.periodic(jnp.asarray(system.box))
    neighbor_fn, atom_energy_fn = mixture_neighbor_list(
        displacement_fn,
        system.box,
        model.potentials,
        system.species,
        system.region,
        dr_threshold=SKIN,
        per_particle=True,
        chunk_size=settings.chunk_size,
    )
    neighbors = neighbor_fn.allocate(jnp.asarray(system.position))
    reference = jax.jit(atom_energy_fn)(jnp.asarray(system.position), neighbors)  # [n_atoms] eV
    energy_fn = partial(_relative_energy, atom_energy_fn, reference)
    return _Simulation(
        neighbor_fn, energy_fn, shift_fn, neighbors, float(np.sum(np.asarray(reference, float)))
    )


def _relative_energy(atom_energy_fn: Callable, reference, R, neighbor, **kwargs):
    """Sum of atomic energies relative to a reference, eV."""
    return jnp.sum(atom_energy_fn(R, neighbor, **kwargs) - reference)


def _equilibrate(
    simulation: _Simulation, system: System, settings: DemoSettings, stage: Callable
) -> simulate.Result:
    """Minimise the energy, then run Langevin dynamics."""
    relaxed = simulate.relax(
        simulation.neighbor_fn,
        simulation.energy_fn,
        simulation.shift_fn,
        jnp.asarray(system.position),
        n_steps=settings.relax_steps,
        neighbors=simulation.neighbors,
        chunk_steps=10,
    )
    stage(
        f"relaxed by {1e3 * relaxed.energy / len(system.atoms):.2f} meV/atom in {relaxed.n_steps} steps,"
        f" largest force {relaxed.max_force:.2f} eV/Å"
    )
    thermostat = simulate.langevin(
        simulation.shift_fn, settings.timestep_fs, settings.temperature_K, friction_per_fs=0.02
    )
    # Half of the kinetic energy becomes potential energy: twice the temperature at the start.
    equilibrated = simulate.run(
        simulation.neighbor_fn,
        simulation.energy_fn,
        thermostat,
        simulate.start(
            thermostat,
            relaxed.position,
            masses=system.atoms.get_masses(),
            temperature_K=2 * settings.temperature_K,
            key=jax.random.key(settings.seed),
        ),
        n_steps=settings.equilibration_steps,
        chunk_steps=settings.log_every,
        neighbors=relaxed.neighbors,
    )
    stage(
        f"equilibrated for {equilibrated.state.time_ps:.2f} ps,"
        f" now at {equilibrated.log.temperature_K[-1]:.0f} K"
    )
    return equilibrated


class _Files:
    """Log and trajectory with total energies, and the frames of the trajectory; a reporter."""

    def __init__(self, folder: Path, system: System, every: int, zero_energy: float):
        symbols = system.atoms.get_chemical_symbols()
        self._log = LogWriter(folder / "log.csv")
        self._trajectory = XYZWriter(
            folder / "trajectory.extxyz", symbols, system.box, True, expert=system.assignment
        )
        self._every = every
        self._zero_energy = zero_energy
        self.frames: list[simulate.Frame] = []

    def __call__(self, frame: simulate.Frame) -> None:
        names = ("potential", "total", "conserved")
        total = frame._replace(**{name: getattr(frame, name) + self._zero_energy for name in names})
        self._log(total)
        if frame.step % self._every == 0:
            self._trajectory(total)
            self.frames.append(frame)

    def close(self) -> None:
        self._log.close()
        self._trajectory.close()


def _produce(
    simulation: _Simulation,
    system: System,
    settings: DemoSettings,
    start: simulate.Result,
    folder: Path,
    stage: Callable,
) -> _Production:
    """Run at constant energy; writes log and trajectory."""
    files = _Files(folder, system, settings.trajectory_every, simulation.zero_energy)
    started = time.perf_counter()
    result = simulate.run(
        simulation.neighbor_fn,
        simulation.energy_fn,
        simulate.nve(simulation.shift_fn, settings.timestep_fs),
        simulate.start(
            simulate.nve(simulation.shift_fn, settings.timestep_fs),
            start.state.position,
            masses=system.atoms.get_masses(),
            velocity=start.state.velocity,
        ),
        n_steps=settings.production_steps,
        chunk_steps=settings.log_every,
        neighbors=start.neighbors,
        reporters=[files],
    )
    seconds = time.perf_counter() - started
    files.close()
    slope = drift(result.log.time_ps, result.log.total, len(system.atoms))
    stage(
        f"constant energy for {result.state.time_ps:.2f} ps: drift {slope.slope:+.4f} ±"
        f" {slope.standard_error:.4f} meV/atom/ps"
    )
    return _Production(result, files.frames, slope, seconds)


# Measurements ----------------------------------------------------------------


class _Forces(NamedTuple):
    """Forces on snapshots, eV/Å."""

    exact: Float[np.ndarray, "frames atoms 3"]  # of the expensive expert on every atom
    difference: Float[np.ndarray, "frames atoms 3"]  # mixture minus exact


class _Boundary(NamedTuple):
    """Disagreement of the experts, atom by atom and at expert boundaries."""

    mismatch: expert_boundary.Mismatch
    ghost_forces: dict  # from `expert_boundary.ghost_force_report`, at the lattice constants of `STRAINS`
    largest_ghost_force: float  # meV/Å, at the relaxed lattice constant


def _time(
    model: Checkpoint, system: System, settings: DemoSettings, state: simulate.State, stage: Callable
) -> tuple[dict[str, Stepper], Timings]:
    """Time one step of the mixture and of either expert alone."""
    cases = steppers(model, system, settings.timestep_fs, settings.chunk_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # out-of-domain rows of the cheap expert: only its time is used
        timings = interleave(cases, system, state.position, state.velocity, settings.timing_rounds)
    stage(f"speed-up {timings.speedup:.2f} of at most {timings.s_max:.2f}")
    return cases, timings


def _compare_forces(expensive: Stepper, frames: list[simulate.Frame], count: int, stage: Callable) -> _Forces:
    """Forces of the mixture and of the expensive expert, on evenly spaced frames but the first."""
    chosen = [frames[k] for k in np.unique(np.linspace(1, len(frames) - 1, count).round().astype(int))]
    exact = np.array([expensive.forces(frame.position) for frame in chosen], float)
    difference = np.array([frame.force for frame in chosen], float) - exact
    stage(
        f"forces differ from those of the expensive expert by {1e3 * _rms(difference):.1f} meV/Å"
        f" on {len(chosen)} snapshots"
    )
    return _Forces(exact, difference)


def _boundary(model: Checkpoint, final: Atoms, lattice_constant: float, dtype, stage: Callable) -> _Boundary:
    """Compare the experts on each atom of the last frame, and at expert boundaries in ideal crystals."""
    species, cutoff = model.experts[0].species, max(e.cutoff for e in model.experts)
    rows = frame_rows(frame_from_atoms(final), species, cutoff, dtype=dtype)
    mismatch = expert_boundary.mismatch(model.experts, model.params, rows)
    crystal = bulk(METAL, "fcc", a=lattice_constant)
    ghost = expert_boundary.ghost_force_report(model, crystal, [s - 1 for s in STRAINS])
    largest = max(ghost[name]["max"][STRAINS.index(1.0)] for name in ("100", "111", "sphere"))
    stage(f"ghost force at an expert boundary in an ideal crystal: at most {largest:.1f} meV/Å")
    return _Boundary(mismatch, ghost, largest)


def _unwrapped(system: System, position) -> Atoms:
    """The slab at new positions, each the periodic image nearest to the initial one."""
    atoms = system.atoms.copy()
    moved = np.asarray(position, float) - atoms.positions
    atoms.positions += moved - system.box * np.round(moved / system.box)
    return atoms


def _count_hopped(system: System, final: Atoms) -> int:
    """Number of metal atoms that left their site."""
    distance = np.linalg.norm(final.positions - system.atoms.positions, axis=1)
    return int(np.sum((distance > HOP) & (np.array(final.symbols) == METAL)))


def _rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
