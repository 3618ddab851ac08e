"""A mixture against its expensive expert: two runs at constant energy from one state.

The state comes from Langevin dynamics under the expensive expert. From it both
runs start, with the same positions and velocities; they part ways, as chaos
will have it, and are compared by what they measure: drift of the energy,
structure, motion and vibration, with error bars.

Drift arises at the seam or nowhere, so it is also given as a flux through the seam.
Where the seam is a plane, its area is the cell's. Where it is not, bonds across
it are counted: nearest neighbours at distance d in an fcc crystal cross a plane
3 sqrt(2) / d^2 times per area on average over its orientation, so each bond
stands for d^2 / (3 sqrt(2)) (a (111) plane, with 2 sqrt(3) / d^2, would come out
18 % too small).
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from moe_md import lazy_jax_md as jax_md
from moe_md import regions, simulate
from moe_md.analysis import dynamics
from moe_md.analysis.environments import SHELL, Rule, bonds_across, boundary_distance
from moe_md.checkpoint import Checkpoint
from moe_md.data.reading import frame_from_atoms
from moe_md.experts.base import Expert
from moe_md.mixture.energy import mixture_neighbor_list
from moe_md.reporters.trajectory import drift

BIN = 0.05  # Å, of distances
FRICTION = 0.02  # 1/fs, of the equilibration


class Trajectory(NamedTuple):
    """What a run at constant energy leaves behind."""

    log: simulate.Log
    position: np.ndarray  # [n_frames, n_atoms, 3] Å, unwrapped
    velocity: np.ndarray  # [n_frames, n_atoms, 3] ASE's unit


def boundary_area(atoms: Atoms, owner: np.ndarray, nearest: float, *, planar: bool = False) -> float:
    """Area of the seam, Å^2: the cell's cross-section where it is a plane, else by counting bonds.

    Args:
        atoms: the structure.
        owner: `[n_atoms]` int.
        nearest: Å, nearest-neighbour distance of the metal.
        planar: the seam is a plane across the third axis.
    """
    if planar:
        return float(np.linalg.norm(np.cross(*atoms.cell.array[:2])))
    return float(
        bonds_across(frame_from_atoms(atoms), owner, SHELL * nearest) * nearest**2 / (3 * np.sqrt(2))
    )


def paired_runs(
    checkpoint: Checkpoint,
    atoms: Atoms,
    rule: Rule,
    *,
    nearest: float,
    planar: bool = False,
    temperature_K: float = 300.0,
    timestep_fs: float = 1.0,
    relax_steps: int = 50,
    equilibration_steps: int = 1000,
    production_steps: int = 4000,
    log_every: int = 4,
    n_blocks: int = 5,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Both runs, and what they measure.

    Args:
        checkpoint: two experts; only the first runs alone.
        atoms: where both start; a rectangular box wider than twice the cutoff.
        rule: which expert of the mixture owns which atom. Asked once the slab is
            warm; from then on each atom keeps its expert.
        nearest: Å, nearest-neighbour distance of the metal.
        planar: see `boundary_area`.
        temperature_K, timestep_fs: of the equilibration, and of both.
        relax_steps, equilibration_steps, production_steps: of each part.
        log_every: steps between frames; at most a quarter of the fastest period.
        n_blocks: for error bars.
        seed: of velocities and thermostat.
        say: told about each stage.

    Returns:
        Fit for JSON. `n_atoms`, `n_expensive`, `seam_area_A2`, `time_ps`;
        `out_of_domain_fraction`, the share of frames in which the cheap expert met what its
        domain does not hold; for `expensive` and `mixed` `temperature_K`,
        `drift_meV_per_atom_per_ps`, `drift_stderr`, `seconds_per_step`, and of
        the mixture also `flux_eV_per_ps_per_A2` and `flux_stderr`; `curves`, for
        each a `label`, `x_label`, `y_label`, `x`, `expensive`, `expensive_error`,
        `mixed`, `mixed_error` and `deviation`, what `dynamics.compare` says. In the dtype jax runs in.

    Raises:
        ValueError: an argument is out of range, an expert owns nothing, or a
            species is unknown.
        SimulationError: the dynamics failed.
    """
    check_shared(rule(frame_from_atoms(atoms)))
    if production_steps < 20 * n_blocks * log_every:
        raise ValueError(
            f"production_steps must be at least 20 x n_blocks x log_every = {20 * n_blocks * log_every}, "
            f"got {production_steps}."
        )
    box = atoms.cell.lengths()
    _, shift_fn = jax_md.space.periodic(box)
    alone = _system(checkpoint, atoms, 1, regions.fixed(np.zeros(len(atoms), int), n_experts=1))
    relaxed = simulate.relax(*alone, shift_fn, jnp.asarray(atoms.positions), n_steps=relax_steps)
    warm = simulate.run(
        *alone,
        simulate.langevin(shift_fn, timestep_fs, temperature_K, friction_per_fs=FRICTION),
        relaxed.position,
        masses=atoms.get_masses(),
        temperature_K=2 * temperature_K,  # half of it flows into vibration
        key=jax.random.key(seed),
        n_steps=equilibration_steps,
        chunk_steps=max(log_every, 25),
        neighbors=relaxed.neighbors,
    ).state
    start = atoms.copy()
    start.positions = np.asarray(warm.position, float)
    frame = frame_from_atoms(start)
    owner = np.asarray(rule(frame))
    check_shared(owner)
    say(
        f"equilibrated for {warm.time_ps:.2f} ps; "
        f"the expensive expert owns {np.sum(owner == 0)} of {len(owner)} atoms"
    )
    systems = {"expensive": alone, "mixed": _system(checkpoint, atoms, 2, regions.fixed(owner))}
    area = boundary_area(start, owner, nearest, planar=planar)
    report: dict = {
        "n_atoms": len(atoms),
        "n_expensive": int(np.sum(owner == 0)),
        "seam_area_A2": area,
        "time_ps": production_steps * timestep_fs * 1e-3,
    }
    found = {}
    for name, system in systems.items():
        begun = time.perf_counter()
        run = _production(
            system, simulate.nve(shift_fn, timestep_fs), warm, atoms, production_steps, log_every
        )
        slope = drift(run.log.time_ps, run.log.total, len(atoms))
        report[name] = {
            "temperature_K": float(run.log.temperature_K.mean()),
            "drift_meV_per_atom_per_ps": slope.slope,
            "drift_stderr": slope.standard_error,
            "seconds_per_step": (time.perf_counter() - begun) / production_steps,
        }
        say(
            f"{name}: {production_steps} steps, "
            f"drift {slope.slope:+.5f} ± {slope.standard_error:.5f} meV/atom/ps"
        )
        found[name] = run
    to_flux = 1e-3 * len(atoms) / area
    report["mixed"]["flux_eV_per_ps_per_A2"] = to_flux * report["mixed"]["drift_meV_per_atom_per_ps"]
    report["mixed"]["flux_stderr"] = to_flux * report["mixed"]["drift_stderr"]
    report["out_of_domain_fraction"] = _out_of_domain_fraction(
        found["mixed"], atoms, owner, checkpoint.experts[1]
    )
    distance = np.abs(boundary_distance(frame, owner))
    metal = np.array(atoms.symbols) == _metal(atoms)
    groups = {"metal": metal, "metal at the seam": metal & (distance < SHELL * nearest)}
    interval_ps = log_every * timestep_fs * 1e-3
    report["curves"] = _curves(found, box, atoms.get_masses(), groups, interval_ps, n_blocks)
    return report


def _system(checkpoint: Checkpoint, atoms: Atoms, n_experts: int, region):
    """`(neighbor_fn, energy_fn)` of the first experts."""
    displacement_fn, _ = jax_md.space.periodic(atoms.cell.lengths())
    species = [checkpoint.experts[0].species.index(s) for s in atoms.symbols]
    first = slice(0, n_experts)
    return mixture_neighbor_list(
        displacement_fn,
        atoms.cell.lengths(),
        checkpoint.potentials[first],
        species,
        region,
    )


def _production(
    system, integrator, start: simulate.State, atoms: Atoms, n_steps: int, log_every: int
) -> Trajectory:
    positions, velocities = [], []

    def keep(frame: simulate.Frame) -> None:
        positions.append(frame.position)
        velocities.append(frame.velocity)

    run = simulate.run(
        *system,
        integrator,
        start.position,
        masses=atoms.get_masses(),
        velocity=start.velocity,
        n_steps=n_steps,
        chunk_steps=log_every,
        reporters=[keep],
    )
    return Trajectory(run.log, dynamics.unwrap(positions, atoms.cell.lengths()), np.array(velocities, float))


def check_shared(owner: np.ndarray) -> None:
    """Raise `ValueError` where one expert owns everything."""
    if np.ptp(owner) == 0:
        which = ("expensive", "cheap")[int(owner[0])]
        raise ValueError(
            f"region must leave atoms to both experts, got all {len(owner)} of the slab on the {which} one."
        )


def _out_of_domain_fraction(run: Trajectory, atoms: Atoms, owner: np.ndarray, cheap: Expert) -> float:
    """Share of frames in which the cheap expert had an atom of another species within its cutoff."""
    out_of_domain = ~np.isin(atoms.get_chemical_symbols(), cheap.allowed_species)
    if not out_of_domain.any():
        return 0.0
    box = atoms.cell.lengths()
    apart = run.position[:, out_of_domain, None] - run.position[:, None, owner == 1]  # few such atoms
    apart -= box * np.round(apart / box)
    return float(np.mean(np.any(np.linalg.norm(apart, axis=-1) < cheap.cutoff, axis=(1, 2))))


def _metal(atoms: Atoms) -> str:
    """The species that there is most of."""
    return max(set(atoms.symbols), key=atoms.get_chemical_symbols().count)


def _curves(found: dict[str, Trajectory], box, masses, groups, interval_ps: float, n_blocks: int) -> dict:
    metal, r_max = groups["metal"], min(8.0, 0.5 * float(np.min(box)))

    def structure(run: Trajectory, group):
        return dynamics.radial_distribution(
            run.position, box, group, metal, r_max=r_max, n_bins=int(r_max / BIN), n_blocks=n_blocks
        )

    def motion(run: Trajectory, group):
        return dynamics.mean_square_displacement(run.position, interval_ps, group, n_blocks=n_blocks)

    def vibration(run: Trajectory, group):
        return dynamics.vibrational_density_of_states(
            run.velocity, interval_ps, masses, group, max_THz=top, n_blocks=n_blocks
        )

    top = None
    whole = vibration(found["expensive"], metal)
    # The band of the metal and half as much again; beyond there is nothing to compare.
    top = 1.5 * float(whole.x[np.searchsorted(np.cumsum(whole.value), 0.95 * whole.value.sum())])
    measures = (
        ("radial_distribution", structure, "distance / Å", "g"),
        ("mean_square_displacement", motion, "time / ps", "mean square displacement / Å²"),
        ("vibration", vibration, "frequency / THz", "density of states / THz⁻¹"),
    )
    curves = {}
    for key, measure, x_label, y_label in measures:
        for name, group in groups.items():
            a, b = (measure(found[who], group) for who in ("expensive", "mixed"))
            curves[f"{key}_{name.split()[-1]}"] = {
                "label": name,
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
