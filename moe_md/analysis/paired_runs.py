"""A mixture against its expensive expert: two runs at constant energy from one state.

The state comes from Langevin dynamics under the expensive expert. Both runs start from
it, with the same positions and velocities. Their trajectories diverge, as molecular
dynamics is chaotic, so averages are compared: energy drift, structure, displacements
and vibrations, with error bars.

Only the expert boundary can make the mixture drift more than its expensive expert, so
the drift is also given as an energy flux through the boundary. A planar boundary has
the area of the cell's cross-section. For any other boundary the bonds across it are
counted, and divided by the number of bonds of the crystal that cross a plane per area, averaged
over its orientation (`environments.bonds_per_area`). In fcc crystals with nearest neighbours at d
this number is 3 sqrt(2) / d^2. (Planes (111) cross 2 sqrt(3) / d^2: their area comes out 18 % too small.)
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from moe_md import lazy_jax_md as jax_md
from moe_md import regions, simulate
from moe_md.analysis import dynamics
from moe_md.analysis.environments import (
    Rule,
    bond_cutoff,
    bonds_across,
    bonds_per_area,
    boundary_distance,
)
from moe_md.checkpoint import Checkpoint
from moe_md.data.reading import Frame, frame_from_atoms
from moe_md.experts.base import Expert
from moe_md.experts.domain import in_domain
from moe_md.mixture import mixture_neighbor_list
from moe_md.neighbors.rows import Neighborhood
from moe_md.reporters.trajectory import drift

BIN_WIDTH = 0.05  # Å, of the radial distribution function
FRICTION = 0.02  # 1/fs, of the equilibration


class Trajectory(NamedTuple):
    """Log and frames of a run at constant energy."""

    log: simulate.Log
    position: Float[np.ndarray, "frames atoms 3"]  # Å, unwrapped
    velocity: Float[np.ndarray, "frames atoms 3"]  # ASE's unit


class AtomGroup(NamedTuple):
    """Atoms whose structure and motion are compared."""

    label: str
    mask: Bool[np.ndarray, " atoms"]


def boundary_area(
    atoms: Atoms, owner: Int[ArrayLike, " atoms"] | Sequence, crystal: Atoms, *, planar: bool = False
) -> float:
    """Area of the expert boundary, Å^2: the cell's cross-section where it is planar, else from bonds.

    Args:
        atoms: the structure.
        owner: the expert of each atom.
        crystal: the perfect crystal that the structure is made of, for the length of its bonds.
        planar: the boundary is a plane across the third axis.
    """
    if planar:
        return float(np.linalg.norm(np.cross(*atoms.cell.array[:2])))
    cutoff = bond_cutoff(crystal)
    return bonds_across(frame_from_atoms(atoms), owner, cutoff) / bonds_per_area(crystal, cutoff)


def paired_runs(
    checkpoint: Checkpoint,
    atoms: Atoms,
    rule: Rule,
    *,
    crystal: Atoms,
    planar: bool = False,
    temperature_K: float = 300.0,
    timestep_fs: float = 1.0,
    relax_steps: int = 50,
    equilibration_steps: int = 1000,
    production_steps: int = 4000,
    log_every: int = 4,
    n_blocks: int = 5,
    seed: int = 0,
    log: Callable[[str], None] = lambda text: None,
) -> dict:
    """Run the expensive expert and the mixture from one state, and compare them.

    Args:
        checkpoint: two experts, the expensive one first.
        atoms: initial structure; a rectangular box wider than twice the cutoff.
        rule: assigns each atom to an expert of the mixture. It is evaluated once,
            after the equilibration; from then on each atom keeps its expert.
        crystal: the perfect crystal that the structure is made of. Its species are compared, and
            the length of its bonds tells which atoms are at the expert boundary.
        planar: see `boundary_area`.
        temperature_K: of the equilibration.
        timestep_fs: of the equilibration and of both runs.
        relax_steps, equilibration_steps, production_steps: steps of each part.
        log_every: steps between frames; at most a quarter of the fastest period.
        n_blocks: number of blocks for error bars.
        seed: of velocities and thermostat.
        log: called with a line of text after each stage.

    Returns:
        A dictionary that JSON can store, computed in the default float dtype:

        - `n_atoms`, `n_expensive`, `boundary_area_A2`, `time_ps`;
        - `expensive` and `mixed`, each with `temperature_K`,
          `drift_meV_per_atom_per_ps`, `drift_stderr` and `seconds_per_step`, the
          mixture also with `flux_eV_per_ps_per_A2` and `flux_stderr`;
        - `out_of_domain_fraction`, the share of frames in which a row of the cheap
          expert was outside its domain;
        - `curves`, each with a `label`, `x_label`, `y_label`, `x`, `expensive`,
          `expensive_error`, `mixed`, `mixed_error` and `deviation`, the result of
          `dynamics.compare`.

    Raises:
        ValueError: an argument is out of range, an expert owns no atom, or a
            species is unknown.
        SimulationError: the dynamics failed.
    """
    check_shared(rule(frame_from_atoms(atoms)))
    _check_length(production_steps, n_blocks, log_every)
    alone = _system(checkpoint, atoms, 1, regions.fixed(np.zeros(len(atoms), int), n_experts=1))
    warm = _equilibrate(
        alone,
        atoms,
        temperature_K=temperature_K,
        timestep_fs=timestep_fs,
        relax_steps=relax_steps,
        n_steps=equilibration_steps,
        chunk_steps=max(log_every, 25),
        seed=seed,
    )
    start = atoms.copy()
    start.positions = np.asarray(warm.position, float)
    frame = frame_from_atoms(start)
    owner = np.asarray(rule(frame))
    check_shared(owner)
    n_expensive = int(np.sum(owner == 0))
    log(f"equilibrated {warm.time_ps:.2f} ps; the expensive expert owns {n_expensive} of {len(owner)} atoms")
    systems = {"expensive": alone, "mixed": _system(checkpoint, atoms, 2, regions.fixed(owner))}
    trajectories, summaries = {}, {}
    for name, system in systems.items():
        trajectories[name], summaries[name] = _production(
            system, warm, atoms, timestep_fs=timestep_fs, n_steps=production_steps, log_every=log_every
        )
        log(f"{name}: {production_steps} steps, drift {_drift_text(summaries[name])}")
    area = boundary_area(start, owner, crystal, planar=planar)
    summaries["mixed"] |= _flux(summaries["mixed"], len(atoms), area)
    groups, interval_ps = _groups(frame, owner, crystal), log_every * timestep_fs * 1e-3
    return {
        "n_atoms": len(atoms),
        "n_expensive": n_expensive,
        "boundary_area_A2": area,
        "time_ps": production_steps * timestep_fs * 1e-3,
        **summaries,
        "out_of_domain_fraction": _out_of_domain_fraction(
            trajectories["mixed"], atoms, owner, checkpoint.experts[1]
        ),
        "curves": _curves(trajectories, atoms, groups, interval_ps, n_blocks),
    }


def check_shared(owner: Int[np.ndarray, " atoms"]) -> None:
    """Raise `ValueError` where one expert owns all atoms."""
    if np.ptp(owner) == 0:
        expert = ("expensive", "cheap")[int(owner[0])]
        raise ValueError(
            f"region must leave atoms to both experts, got all {len(owner)} of the slab on the {expert} one."
        )


def _check_length(production_steps: int, n_blocks: int, log_every: int) -> None:
    shortest = 20 * n_blocks * log_every
    if production_steps < shortest:
        raise ValueError(
            f"production_steps must be at least 20 x n_blocks x log_every = {shortest}, "
            f"got {production_steps}."
        )


def _system(checkpoint: Checkpoint, atoms: Atoms, n_experts: int, region):
    """`(neighbor_fn, energy_fn)` of the first `n_experts` experts."""
    displacement_fn, _ = jax_md.space.periodic(atoms.cell.lengths())
    species = [checkpoint.experts[0].species.index(s) for s in atoms.symbols]
    return mixture_neighbor_list(
        displacement_fn,
        atoms.cell.lengths(),
        checkpoint.potentials[:n_experts],
        species,
        region,
    )


def _equilibrate(
    system,
    atoms: Atoms,
    *,
    temperature_K: float,
    timestep_fs: float,
    relax_steps: int,
    n_steps: int,
    chunk_steps: int,
    seed: int,
) -> simulate.State:
    """State after a relaxation and Langevin dynamics."""
    _, shift_fn = jax_md.space.periodic(atoms.cell.lengths())
    relaxed = simulate.relax(*system, shift_fn, jnp.asarray(atoms.positions), n_steps=relax_steps)
    return simulate.run(
        *system,
        simulate.langevin(shift_fn, timestep_fs, temperature_K, friction_per_fs=FRICTION),
        simulate.start(
            simulate.langevin(shift_fn, timestep_fs, temperature_K, friction_per_fs=FRICTION),
            relaxed.position,
            masses=atoms.get_masses(),
            temperature_K=2 * temperature_K,
            key=jax.random.key(seed),
        ),
        n_steps=n_steps,
        chunk_steps=chunk_steps,
        neighbors=relaxed.neighbors,
    ).state


def _production(
    system, start: simulate.State, atoms: Atoms, *, timestep_fs: float, n_steps: int, log_every: int
) -> tuple[Trajectory, dict]:
    """A run at constant energy: its trajectory, and its temperature, drift and time per step."""
    begun = time.perf_counter()
    positions, velocities = [], []

    def store(frame: simulate.Frame) -> None:
        positions.append(frame.position)
        velocities.append(frame.velocity)

    _, shift_fn = jax_md.space.periodic(atoms.cell.lengths())
    run = simulate.run(
        *system,
        simulate.nve(shift_fn, timestep_fs),
        simulate.start(
            simulate.nve(shift_fn, timestep_fs),
            start.position,
            masses=atoms.get_masses(),
            velocity=start.velocity,
        ),
        n_steps=n_steps,
        chunk_steps=log_every,
        reporters=[store],
    )
    slope = drift(run.log.time_ps, run.log.total, len(atoms))
    trajectory = Trajectory(
        run.log, dynamics.unwrap(positions, atoms.cell.lengths()), np.array(velocities, float)
    )
    return trajectory, {
        "temperature_K": float(run.log.temperature_K.mean()),
        "drift_meV_per_atom_per_ps": slope.slope,
        "drift_stderr": slope.standard_error,
        "seconds_per_step": (time.perf_counter() - begun) / n_steps,
    }


def _out_of_domain_fraction(run: Trajectory, atoms: Atoms, owner: np.ndarray, cheap: Expert) -> float:
    """Share of frames in which the cheap expert had an atom of another species within its cutoff."""
    species = np.array([cheap.species.index(symbol) for symbol in atoms.symbols])
    other = np.flatnonzero(~np.isin(atoms.get_chemical_symbols(), cheap.allowed_species))  # few atoms
    own = np.flatnonzero(owner == 1)
    if len(other) == 0:
        return 0.0
    box = atoms.cell.lengths()
    displacement = run.position[:, None, other] - run.position[:, own, None]
    displacement -= box * np.round(displacement / box)  # [n_frames, n_own, n_other, 3]
    n_frames, shape = len(run.position), (len(run.position) * len(own), len(other))
    rows = Neighborhood(
        displacement=displacement.reshape(*shape, 3),
        mask=np.ones(shape, bool),
        center_species=np.tile(species[own], n_frames),
        neighbor_species=np.broadcast_to(species[other], shape),
        neighbor=np.broadcast_to(other, shape),
    )
    return float(np.mean(np.any(~in_domain(cheap, rows).reshape(n_frames, -1), axis=1)))


def _drift_text(summary: dict) -> str:
    return f"{summary['drift_meV_per_atom_per_ps']:+.5f} ± {summary['drift_stderr']:.5f} meV/atom/ps"


def _flux(summary: dict, n_atoms: int, area: float) -> dict:
    """Energy flux through the expert boundary of `area` Å^2 that corresponds to the drift."""
    to_flux = 1e-3 * n_atoms / area
    return {
        "flux_eV_per_ps_per_A2": to_flux * summary["drift_meV_per_atom_per_ps"],
        "flux_stderr": to_flux * summary["drift_stderr"],
    }


def _groups(frame: Frame, owner: np.ndarray, crystal: Atoms) -> dict[str, AtomGroup]:
    """All atoms of the crystal's species, and those with a neighbour on the other expert."""
    species = list(dict.fromkeys(crystal.get_chemical_symbols()))
    of_crystal = np.isin(frame.symbols, species)
    at_boundary = of_crystal & (np.abs(boundary_distance(frame, owner)) < bond_cutoff(crystal))
    name = ", ".join(species)
    return {
        "crystal": AtomGroup(name, of_crystal),
        "boundary": AtomGroup(f"{name} at the expert boundary", at_boundary),
    }


def _curves(
    runs: dict[str, Trajectory],
    atoms: Atoms,
    groups: dict[str, AtomGroup],
    interval_ps: float,
    n_blocks: int,
) -> dict:
    """Entry `curves` of `paired_runs`: three functions of each group of atoms, under both potentials."""
    box, of_crystal = atoms.cell.lengths(), groups["crystal"].mask
    r_max = min(8.0, 0.5 * float(np.min(box)))
    masses = atoms.get_masses()

    def radial_distribution(run: Trajectory, group):
        return dynamics.radial_distribution(
            run.position,
            box,
            group,
            of_crystal,
            r_max=r_max,
            n_bins=int(r_max / BIN_WIDTH),
            n_blocks=n_blocks,
        )

    def displacement(run: Trajectory, group):
        return dynamics.mean_square_displacement(run.position, interval_ps, group, n_blocks=n_blocks)

    def vibration(run: Trajectory, group, max_THz=None):
        return dynamics.vibrational_density_of_states(
            run.velocity, interval_ps, masses, group, max_THz=max_THz, n_blocks=n_blocks
        )

    full = vibration(runs["expensive"], of_crystal)
    # 1.5 times the frequency below which 95 % of the density of states of the crystal's species lies.
    highest = np.searchsorted(np.cumsum(full.value), 0.95 * full.value.sum())
    crystal_band = partial(vibration, max_THz=1.5 * float(full.x[highest]))
    functions = (
        ("radial_distribution", radial_distribution, "distance / Å", "g"),
        ("mean_square_displacement", displacement, "time / ps", "mean square displacement / Å²"),
        ("vibration", crystal_band, "frequency / THz", "density of states / THz⁻¹"),
    )
    curves = {}
    for key, function, x_label, y_label in functions:
        for suffix, group in groups.items():
            a, b = (function(runs[name], group.mask) for name in ("expensive", "mixed"))
            curves[f"{key}_{suffix}"] = {
                "label": group.label,
                "x_label": x_label,
                "y_label": y_label,
                "x": a.x.tolist(),
                "expensive": a.value.tolist(),
                "expensive_error": a.error.tolist(),
                "mixed": b.value.tolist(),
                "mixed_error": b.error.tolist(),
                "deviation": dynamics.compare(a, b)._asdict(),
            }
    return curves
