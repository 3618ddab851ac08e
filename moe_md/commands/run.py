"""Molecular dynamics of a structure from a file: `moe-md run`."""

import contextlib
import hashlib
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float

from moe_md import checkpoint as checkpoints
from moe_md import lazy_jax_md as jax_md
from moe_md import regions, simulate
from moe_md.commands import settings_file, stopping
from moe_md.commands.system import fixed_in_words, has_own_masses, load_system
from moe_md.experts.base import Potential
from moe_md.files import locked, write_json
from moe_md.mixture import mixture_neighbor_list
from moe_md.reporters.blending import BlendWatch
from moe_md.reporters.h5md import H5MDWriter
from moe_md.reporters.restart import Restart, load_restart
from moe_md.reporters.trajectory import LastState, LogWriter, XYZWriter, drift
from moe_md.settings import RunSettings
from moe_md.simulate.interrupts import never

MIN_LOG_LINES = 20  # for a drift with an error bar
RESTART, LAST_GOOD, FINAL = "restart.msgpack", "last_good.npz", "final.extxyz"
LIMITS = tuple(field.name for field in fields(simulate.Limits))
MAY_CHANGE = ("steps", "chunk_size", *LIMITS)  # settings of a run that is resumed


def command(settings: RunSettings, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md run`; see `run`."""
    with simulate.stop_requests(parsed.max_hours) as stop_fn:
        settings_file.echo(parsed.out, {"run": settings}, parsed.typed)
        record = run(settings, parsed.out, log, stop_fn)
    if "stopped" in record:
        log(stopping.how_to_go_on(record, parsed.typed))
    return record


def run(settings: RunSettings, folder, log: Callable = print, stop_fn: Callable[[], str] = never) -> dict:
    """Molecular dynamics of a structure. A folder that holds an interrupted run resumes it.

    Args:
        settings: the system, the ensemble and the length of the run.
        folder: for log, trajectory, restart, the last frame and `run.json`.
        log: takes lines of text.
        stop_fn: as in `simulate.run`.

    Returns:
        The content of `run.json`. If `stop_fn` ended the run, nothing but `stopped` (its text), `step` and
        `steps`; `run.json` is then not written.

    Raises:
        ValueError: structure, region or checkpoint do not fit one another.
        SimulationError: the run failed, or passed a limit; the last valid state is saved.
        InUseError: another process writes to the folder.
    """
    x64 = jax.enable_x64(True) if settings.dtype == "float64" else contextlib.nullcontext()
    with x64, locked(folder):
        try:
            return _run(settings, Path(folder), log, stop_fn)
        except _StoppedInRelaxationError as stopped:
            return {"stopped": str(stopped), "step": None, "steps": settings.steps}
        except simulate.SimulationError as error:  # of the dynamics, or of the relaxation before
            saved = Path(folder) / LAST_GOOD
            LastState(saved).on_failure(error.state)
            text = f"{error} It is saved in {saved}."
            raise simulate.SimulationError(text, error.state, error.log) from error


class _Simulation(NamedTuple):
    """A structure, its mixture as functions, and the mixture's potentials."""

    atoms: Atoms
    region: regions.Region
    potentials: tuple[Potential, ...]  # of the mixture, then the inner potential if there is one
    shift_fn: Callable
    neighbor_fn: Any
    energy_fn: Callable
    position: Float[jax.Array, "atoms 3"]  # Å, or fractions of the box
    box: Float[np.ndarray, "3 3"] | None  # Å, columns; None unless it changes during the run
    fixed_mask: Bool[np.ndarray, "atoms 3"] | None  # components that hold still


class _StoppedInRelaxationError(Exception):
    """`stop_fn` ended the relaxation, which is not saved; the text is its reason."""


def _run(settings: RunSettings, folder: Path, log: Callable, stop_fn: Callable[[], str]) -> dict:
    simulation = _build(settings, log)
    region, n_atoms = simulation.region, len(simulation.atoms)
    fingerprint = _fingerprint(settings, simulation)
    integrator = _integrator(settings, simulation)
    run_fn = partial(
        simulate.run,
        simulation.neighbor_fn,
        simulation.energy_fn,
        integrator,
        chunk_steps=settings.log_every,
        limits=_limits(settings),
        stop_fn=stop_fn,
    )
    start, neighbors, resumed_at = _start_or_resume(
        settings, simulation, integrator, run_fn, folder, fingerprint, log, stop_fn
    )
    position = start.position if resumed_at is None else simulation.position
    at_start = neighbors if resumed_at is None else simulation.neighbor_fn.allocate(position)
    gates = simulation.neighbor_fn.gate(position, at_start.update(position))
    share = float(np.mean(np.asarray(gates)[:, 0] > 0))
    log(f"{n_atoms} atoms, {share:.1%} on the expensive expert, {settings.dtype}")
    if simulation.fixed_mask is not None:
        log(fixed_in_words(simulation.fixed_mask))

    n_steps = max(0, settings.steps - (resumed_at or 0))
    blend = BlendWatch(simulation.neighbor_fn)
    files = _Files(folder, settings, simulation, resumed_at)
    restart = Restart(
        folder / RESTART, every=settings.restart_every // settings.log_every, fingerprint=fingerprint
    )
    reporters = [
        files,
        partial(_log_progress, log, _progress_every(settings)),
        *([blend] if region.is_dynamic else []),
        restart,
        LastState(folder / LAST_GOOD),
    ]
    started = time.perf_counter()
    try:
        result = run_fn(start, n_steps=n_steps, neighbors=neighbors, reporters=reporters)
    finally:
        restart.close()
        files.close()
    seconds = time.perf_counter() - started
    if result.state.step < settings.steps:
        return {"stopped": stop_fn(), "step": result.state.step, "steps": settings.steps}
    record = {
        "settings": asdict(settings),
        "n_atoms": n_atoms,
        "f": share,
        "seconds": seconds,
        "time_ps": result.state.time_ps,
        **_drift(settings, folder, n_atoms, log),
    }
    if region.is_dynamic and n_steps:
        record["blend"] = _blend(blend, log)
    write_json(folder / "run.json", record)
    log(f"{n_steps} steps in {seconds:.1f} s, compilation included; wrote {folder / 'log.csv'}")
    return record


def _build(settings: RunSettings, log: Callable) -> _Simulation:
    """Load the system and build its mixture."""
    inner_potential = (
        checkpoints.load(settings.inner_potential).expensive if settings.inner_potential else None
    )
    model, atoms, region, fixed_mask = load_system(
        settings, () if inner_potential is None else inner_potential[:1], log
    )
    if model.level_of_theory:
        log(f"level of theory: {model.level_of_theory}")
    dtype = np.dtype(settings.dtype)
    known = model.experts[0].species
    species = np.array([known.index(s) for s in atoms.symbols], np.int32)
    box_changes = settings.ensemble == "npt"
    # jax-md takes a rectangular box as three edges, any other as its columns.
    rectangular = np.allclose(atoms.cell.array, np.diag(atoms.cell.lengths())) and not box_changes
    box = (atoms.cell.lengths() if rectangular else atoms.cell.array.T).astype(dtype)
    displacement_fn, shift_fn = (
        jax_md.space.periodic(box)
        if rectangular
        else jax_md.space.periodic_general(box, fractional_coordinates=box_changes)
    )
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn,
        box,
        model.potentials,
        species,
        region,
        fractional_coordinates=box_changes,
        inner_potential=inner_potential,
        chunk_size=settings.chunk_size,
    )
    position = atoms.get_scaled_positions() if box_changes else atoms.get_positions(wrap=True)
    return _Simulation(
        atoms,
        region,
        model.potentials if inner_potential is None else (*model.potentials, inner_potential),
        shift_fn,
        neighbor_fn,
        energy_fn,
        jnp.asarray(position, dtype),
        box if box_changes else None,
        fixed_mask,
    )


def _start_or_resume(
    settings: RunSettings,
    simulation: _Simulation,
    integrator: simulate.Integrator,
    run_fn: Callable,
    folder: Path,
    fingerprint: dict,
    log: Callable,
    stop_fn: Callable[[], str],
) -> tuple[simulate.State, Any, int | None]:
    """State and neighbours of the start, and the step at which a run resumes, None for a new run."""
    start = partial(
        simulate.start,
        integrator,
        masses=simulation.atoms.get_masses(),
        key=jax.random.key(settings.seed),
        box=simulation.box,
    )
    if not (folder / RESTART).exists():
        position, velocities, neighbors = _initial(settings, simulation, log, stop_fn)
        return start(position, **velocities), neighbors, None
    like = run_fn(start(simulation.position, temperature_K=0.0), n_steps=0)
    state, neighbors = load_restart(folder / RESTART, like.state, like.neighbors, fingerprint)
    log(f"resuming the run in {folder} at step {state.step}")
    return state, neighbors, state.step


def _initial(
    settings: RunSettings, simulation: _Simulation, log: Callable, stop_fn: Callable[[], str]
) -> tuple[jax.Array, dict[str, Any], Any]:
    """Positions, arguments of `simulate.start` for the velocities, and neighbours of a new run."""
    position, atoms = simulation.position, simulation.atoms
    neighbors = simulation.neighbor_fn.allocate(position)
    if settings.relax_steps:
        relaxed = simulate.relax(
            simulation.neighbor_fn,
            simulation.energy_fn,
            simulation.shift_fn,
            position,
            n_steps=settings.relax_steps,
            box=simulation.box,
            fixed_mask=simulation.fixed_mask,
            neighbors=neighbors,
            stop_fn=stop_fn,
        )
        if not relaxed.converged and relaxed.n_steps < settings.relax_steps:
            raise _StoppedInRelaxationError(stop_fn())
        position, neighbors = relaxed.position, relaxed.neighbors
        log(
            f"relaxed to {relaxed.energy:.4f} eV in {relaxed.n_steps} steps, largest force"
            f" {relaxed.max_force:.3f} eV/Å"
        )
    has_velocities = atoms.has("momenta") and np.abs(atoms.get_momenta()).max() > 0
    velocities = (
        {"velocity": atoms.get_velocities()}
        if has_velocities and not settings.relax_steps
        else {"temperature_K": settings.temperature_K}
    )
    return position, velocities, neighbors


class _Files:
    """Log, trajectory and last frame of a run; a reporter.

    Args:
        folder: of the files; it exists.
        settings: of the run.
        simulation: the structure.
        resumed_at: the step at which a resumed run begins, None for a new run.
    """

    def __init__(self, folder: Path, settings: RunSettings, simulation: _Simulation, resumed_at: int | None):
        atoms, region = simulation.atoms, simulation.region
        resumed: dict[str, Any] = {} if resumed_at is None else {"append": True, "until_step": resumed_at}
        self._structure: dict[str, Any] = {
            "symbols": atoms.get_chemical_symbols(),
            "cell": atoms.cell.array,
            "pbc": True,
        }
        if isinstance(region, regions.Fixed):
            self._structure["expert"] = region.assignment
        if has_own_masses(atoms):
            self._structure["masses"] = atoms.get_masses()
        if simulation.fixed_mask is not None:
            self._structure["fixed_mask"] = simulation.fixed_mask
        self._log = LogWriter(folder / "log.csv", **resumed)
        self._trajectory = (
            XYZWriter(folder / "trajectory.extxyz", **self._structure, **resumed)
            if settings.trajectory_format == "extxyz"
            else H5MDWriter(folder / "trajectory.h5", **self._structure, **resumed)
        )
        self._trajectory_every = settings.trajectory_every
        self._final = folder / FINAL
        self._last: simulate.Frame | None = None

    def __call__(self, frame: simulate.Frame) -> None:
        self._log(frame)
        self._last = frame
        if frame.step % self._trajectory_every == 0:
            self._trajectory(frame)

    def close(self) -> None:
        """Close the files and write the last frame."""
        self._log.close()
        self._trajectory.close()
        if self._last is not None:
            final = XYZWriter(self._final, **self._structure)
            final(self._last)
            final.close()


def _progress_every(settings: RunSettings) -> int:
    """Steps between lines of progress: about a tenth of the run."""
    return max(settings.log_every, settings.steps // 10 // settings.log_every * settings.log_every)


def _log_progress(log: Callable, every: int, frame: simulate.Frame) -> None:
    if frame.step % every == 0:
        log(
            f"step {frame.step:7d}  {frame.time_ps:8.3f} ps  {frame.temperature_K:6.0f} K "
            f" {frame.total:.5f} eV"
        )


def _drift(settings: RunSettings, folder: Path, n_atoms: int, log: Callable) -> dict[str, float]:
    """Drift of the conserved energy in `log.csv`; empty under langevin, or if there are few lines."""
    times, energies = np.genfromtxt(
        folder / "log.csv",
        delimiter=",",
        encoding="utf-8",
        names=True,
        usecols=("time_ps", "conserved"),  # ty: ignore[invalid-argument-type]  numpy takes names too
        unpack=True,
    )
    if settings.ensemble == "langevin" or np.size(times) < MIN_LOG_LINES:
        return {}
    slope = drift(times, energies, n_atoms)
    log(f"drift {slope.slope:+.5f} ± {slope.standard_error:.5f} meV/atom/ps")
    return {"drift_meV_per_atom_per_ps": slope.slope, "drift_stderr": slope.standard_error}


def _blend(blend: BlendWatch, log: Callable) -> dict:
    """Summary of the blend of a dynamic region."""
    summary = blend.summary()
    if "gate_over_thermal" in summary:
        _, least, most = summary["share"][0]
        log(
            f"{least:.1%} to {most:.1%} of the atoms on the expensive expert; the gate-gradient force is"
            f" {summary['gate_over_thermal']:.2%} of the force in the blend"
        )
    return summary


def _fingerprint(settings: RunSettings, simulation: _Simulation) -> dict:
    """What a resumed run must have in common with its restart file: settings, experts and initial arrays."""
    atoms = simulation.atoms
    params = tuple(potential.params for potential in simulation.potentials)
    arrays = [*jax.tree.leaves(params), atoms.positions, atoms.cell.array, atoms.numbers, atoms.get_momenta()]
    arrays += [atoms.get_masses()] if has_own_masses(atoms) else []
    arrays += [] if simulation.fixed_mask is None else [simulation.fixed_mask]
    return {
        **{key: value for key, value in asdict(settings).items() if key not in MAY_CHANGE},
        "experts": [potential.expert.config for potential in simulation.potentials],
        "digest": hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in arrays)).hexdigest(),
    }


def _limits(settings: RunSettings) -> simulate.Limits:
    return simulate.Limits(**{name: getattr(settings, name) for name in LIMITS})


def _integrator(settings: RunSettings, simulation: _Simulation) -> simulate.Integrator:
    """The integrator of the chosen ensemble; fixed atoms hold still."""
    shift_fn, thermostat = simulation.shift_fn, (settings.timestep_fs, settings.temperature_K)
    if settings.ensemble == "nve":
        integrator = simulate.nve(shift_fn, settings.timestep_fs)
    elif settings.ensemble == "langevin":
        integrator = simulate.langevin(shift_fn, *thermostat, settings.friction_per_fs)
    elif settings.ensemble == "nose_hoover":
        integrator = simulate.nose_hoover(shift_fn, *thermostat, settings.tau_fs)
    else:
        integrator = simulate.npt(
            shift_fn,
            *thermostat,
            settings.pressure_GPa,
            tau_fs=settings.tau_fs,
            barostat_tau_fs=settings.barostat_tau_fs,
        )
    if simulation.fixed_mask is not None:
        integrator = simulate.freeze(integrator, simulation.fixed_mask)
    if settings.outer_every == 1:
        return integrator
    return simulate.respa(integrator, neighbor_fn=simulation.neighbor_fn, every=settings.outer_every)
