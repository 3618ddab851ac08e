"""Molecular dynamics of a structure from a file: `moe-md run`."""

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from moe_md import checkpoint as checkpoints
from moe_md import lazy_jax_md as jax_md
from moe_md import regions, simulate
from moe_md.commands.system import load_mixed
from moe_md.files import write_json
from moe_md.mixture import mixture_neighbor_list
from moe_md.reporters.blending import BlendWatch
from moe_md.reporters.h5md import H5MDWriter
from moe_md.reporters.restart import Restart, load_restart
from moe_md.reporters.trajectory import LastState, LogWriter, XYZWriter, drift
from moe_md.settings import RunSettings


def run(settings: RunSettings, folder, say: Callable = print) -> dict:
    """Molecular dynamics of a structure; a run in a folder that holds one goes on where that stopped.

    Args:
        settings: what, how and how long.
        folder: for log, trajectory, restart, the last frame and `run.json`.
        say: takes lines of text.

    Returns:
        What `run.json` holds.

    Raises:
        ValueError: structure, region or checkpoint do not fit one another.
        SimulationError: the run blew up; the last good state is saved.
    """
    with jax.enable_x64(True) if settings.dtype == "float64" else contextlib.nullcontext():
        return _run(settings, Path(folder), say)


def _run(settings: RunSettings, folder: Path, say: Callable) -> dict:
    standing_in = checkpoints.load(settings.inner_potential) if settings.inner_potential else None
    inner_potential = None if standing_in is None else (standing_in.experts[0], standing_in.params[0])
    model, atoms, region = load_mixed(settings, () if inner_potential is None else inner_potential[:1])
    dtype = np.dtype(settings.dtype)
    potentials = model.experts if inner_potential is None else (*model.experts, inner_potential[0])
    known = model.experts[0].species
    n_atoms = len(atoms)
    species = np.array([known.index(s) for s in atoms.symbols], np.int32)
    breathes = settings.ensemble == "npt"
    # A rectangular box is three edges to jax-md, any other its columns.
    rectangular = np.allclose(atoms.cell.array, np.diag(atoms.cell.lengths())) and not breathes
    box = (atoms.cell.lengths() if rectangular else atoms.cell.array.T).astype(dtype)
    make_space = (
        jax_md.space.periodic
        if rectangular
        else partial(jax_md.space.periodic_general, fractional_coordinates=breathes)
    )
    displacement_fn, shift_fn = make_space(box)
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn,
        box,
        model.potentials,
        species,
        region,
        fractional_coordinates=breathes,
        inner_potential=inner_potential,
    )
    integrator = _integrator(settings, shift_fn)
    steps = partial(simulate.run, neighbor_fn, energy_fn, integrator, chunk_steps=settings.log_every)
    begin: dict[str, Any] = {
        "masses": atoms.get_masses(),
        "key": jax.random.key(settings.seed),
        "box": box if breathes else None,
    }
    position = jnp.asarray(
        atoms.get_scaled_positions() if breathes else atoms.get_positions(wrap=True), dtype
    )

    folder.mkdir(parents=True, exist_ok=True)
    restart = folder / "restart.msgpack"
    cut: dict[str, Any] = {}  # how log and trajectory go on
    fingerprint = {k: v for k, v in asdict(settings).items() if k != "steps"}
    trees = model.params if inner_potential is None else (*model.params, inner_potential[1])
    fingerprint |= {"experts": [e.config for e in potentials], "digest": _digest(trees, atoms)}
    if restart.exists():
        like = steps(position, n_steps=0, temperature_K=0.0, **begin)
        state, neighbors = load_restart(restart, like.state, like.neighbors, fingerprint)
        cut = {"append": True, "until_step": state.step}
        begin = {"state": state, "neighbors": neighbors}
        n_steps = max(0, settings.steps - state.step)
        say(f"taking up the run in {folder} at step {state.step}")
    else:
        neighbors, n_steps = neighbor_fn.allocate(position), settings.steps
        if settings.relax_steps:
            relaxed = simulate.relax(
                neighbor_fn,
                energy_fn,
                shift_fn,
                position,
                n_steps=settings.relax_steps,
                box=begin["box"],
                neighbors=neighbors,
            )
            position, neighbors = relaxed.position, relaxed.neighbors
            say(
                f"relaxed to {relaxed.energy:.4f} eV in {relaxed.n_steps} steps, largest force"
                f" {relaxed.max_force:.3f} eV/Å"
            )
        moving = atoms.has("momenta") and np.abs(atoms.get_momenta()).max() > 0 and not settings.relax_steps
        speed = {"velocity": atoms.get_velocities()} if moving else {"temperature_K": settings.temperature_K}
        begin |= {"position": position, "neighbors": neighbors, **speed}
    share = float(np.mean(np.asarray(region.gate(position, displacement_fn))[:, 0] > 0))
    say(f"{n_atoms} atoms, {share:.1%} on the expensive expert, {settings.dtype}")

    system: dict[str, Any] = {"symbols": atoms.get_chemical_symbols(), "cell": atoms.cell.array, "pbc": True}
    if isinstance(region, regions.Fixed):
        system["expert"] = region.assignment
    log = LogWriter(folder / "log.csv", **cut)
    trajectory = (
        XYZWriter(folder / "trajectory.extxyz", **system, **cut)
        if settings.trajectory_format == "extxyz"
        else H5MDWriter(folder / "trajectory.h5", **system, **cut)
    )
    watch = BlendWatch(neighbor_fn)
    keeper = Restart(restart, every=settings.restart_every // settings.log_every, fingerprint=fingerprint)
    last: list[simulate.Frame] = []

    def report(frame: simulate.Frame) -> None:
        log(frame)
        last[:] = [frame]
        if frame.step % settings.trajectory_every == 0:
            trajectory(frame)

    def tell(frame: simulate.Frame) -> None:
        if (
            frame.step
            % max(settings.log_every, settings.steps // 10 // settings.log_every * settings.log_every)
            == 0
        ):
            say(
                f"step {frame.step:7d}  {frame.time_ps:8.3f} ps  {frame.temperature_K:6.0f} K "
                f" {frame.total:.5f} eV"
            )

    started = time.perf_counter()
    try:
        result = steps(
            n_steps=n_steps,
            reporters=[
                report,
                tell,
                *([watch] if region.is_dynamic else []),
                keeper,
                LastState(folder / "last_good.npz"),
            ],
            **begin,
        )
    finally:
        keeper.close()
        log.close()
        trajectory.close()
        if last:
            final = XYZWriter(folder / "final.extxyz", **system)
            final(last[-1])
            final.close()
    seconds = time.perf_counter() - started
    record = {
        "settings": asdict(settings),
        "n_atoms": n_atoms,
        "f": share,
        "seconds": seconds,
        "time_ps": result.state.time_ps,
    }
    times, energies = np.genfromtxt(
        folder / "log.csv",
        delimiter=",",
        names=True,
        usecols=("time_ps", "conserved"),  # ty: ignore[invalid-argument-type]  numpy takes names too
        unpack=True,
    )
    if settings.ensemble != "langevin" and np.size(times) >= 20:
        slope = drift(times, energies, n_atoms)
        record |= {"drift_meV_per_atom_per_ps": slope.slope, "drift_stderr": slope.standard_error}
        say(f"drift {slope.slope:+.5f} ± {slope.standard_error:.5f} meV/atom/ps")
    if region.is_dynamic and n_steps:
        record["blend"] = blend = watch.summary()
        if "gate_over_thermal" in blend:
            _, least, most = blend["share"][0]
            say(
                f"{least:.1%} to {most:.1%} of the atoms on the expensive expert; the gate's force is"
                f" {blend['gate_over_thermal']:.2%} of all force in the blend"
            )
    write_json(folder / "run.json", record)
    say(f"{n_steps} steps in {seconds:.1f} s, compilation included; wrote {folder / 'log.csv'}")
    return record


def _digest(params, atoms: Atoms) -> str:
    """Of what a run starts from: another one must not be taken for it."""
    arrays = [*jax.tree.leaves(params), atoms.positions, atoms.cell.array, atoms.numbers, atoms.get_momenta()]
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in arrays)).hexdigest()


def _integrator(settings: RunSettings, shift_fn) -> simulate.Integrator:
    if settings.ensemble == "nve":
        return simulate.nve(shift_fn, settings.timestep_fs, outer_every=settings.outer_every)
    thermostat = (shift_fn, settings.timestep_fs, settings.temperature_K)
    if settings.ensemble == "langevin":
        return simulate.langevin(*thermostat, settings.friction_per_fs, outer_every=settings.outer_every)
    if settings.ensemble == "nose_hoover":
        return simulate.nose_hoover(*thermostat, settings.tau_fs)
    return simulate.npt(
        *thermostat, settings.pressure_GPa, tau_fs=settings.tau_fs, barostat_tau_fs=settings.barostat_tau_fs
    )
