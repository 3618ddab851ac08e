"""Relaxation of positions, and of the cell: FIRE in jitted chunks of steps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real, Shaped

from moe_md import units
from moe_md.checks import check_count, check_positive, check_value
from moe_md.failures import Status
from moe_md.simulate.advance import Chunk, System, advance, allocate, check_shift
from moe_md.simulate.integrators.fire import CellFire, Fire
from moe_md.simulate.integrators.frozen import freeze
from moe_md.simulate.interrupts import never
from moe_md.simulate.run import volume_of
from moe_md.simulate.start import checked_box, checked_position
from moe_md.simulate.state import State


class Relaxation(NamedTuple):
    """A finished relaxation."""

    position: Float[Array, "atoms 3"]
    energy: float  # eV
    max_force: float  # eV/Å, norm of the largest force on an atom
    n_steps: int
    converged: bool
    neighbors: Any
    box: Float[Array, "3 3"] | None = None  # Å, columns; None where it was not given
    max_stress_GPa: float | None = None  # largest component, less the pressure; None where the cell was fixed


def relax(
    neighbor_fn,
    energy_fn: Callable,
    shift_fn: Callable,
    position: Float[ArrayLike, "atoms 3"] | Sequence,
    *,
    n_steps: int = 500,
    force_tolerance: float = 0.05,
    box: Real[ArrayLike, "..."] | Sequence | None = None,
    relax_cell: bool = False,
    pressure_GPa: float = 0.0,
    cell_mask: Shaped[ArrayLike, "3 3"] | Sequence | None = None,
    fixed_mask: Shaped[ArrayLike, "..."] | Sequence | None = None,
    neighbors=None,
    params=None,
    region=None,
    chunk_steps: int = 50,
    max_reallocations: int = 8,
    stop_fn: Callable[[], str] = never,
) -> Relaxation:
    """Minimise with FIRE until no force exceeds `force_tolerance`; the cell too, if asked for.

    Args:
        neighbor_fn, energy_fn, params, region, neighbors, max_reallocations: as in
            `run`.
        shift_fn: from `jax_md.space`.
        position: in the coordinates of the energy.
        n_steps: at most so many.
        force_tolerance: eV/Å, positive; checked at every step.
        box: Å, as in `start`; `relax_cell` needs it.
        relax_cell: strain the box too; the energy takes fractional coordinates.
            The force on it, (dE/d strain + p V) / n_atoms in eV, obeys
            `force_tolerance` as ASE's `UnitCellFilter` has it.
        pressure_GPa: external pressure, where the cell relaxes.
        cell_mask: symmetric, one where the cell may strain and zero
            where not; default everywhere.
        fixed_mask: `[n_atoms]` bool, atoms that hold still, or `[n_atoms, 3]` bool,
            their Cartesian components; their forces do not count. Default none.
            Where the cell relaxes, whole atoms only, which keep their fractions.
        chunk_steps: steps between checks of the flags.
        stop_fn: as in `run`; a relaxation that it ends has not converged.

    Returns:
        The relaxed positions, and box. `converged` says whether the tolerance was met.

    Raises:
        ValueError, SimulationError: as in `run`.
    """
    check_count("n_steps", n_steps, 0)
    check_count("chunk_steps", chunk_steps, 1)
    check_count("max_reallocations", max_reallocations, 0)
    check_positive("force_tolerance", force_tolerance)
    position = checked_position(position)
    box = None if box is None else checked_box(box, position.dtype)
    minimiser: Any = (
        _cell_fire(box, pressure_GPa, cell_mask, position.dtype) if relax_cell else Fire(shift_fn)
    )
    state = State(minimiser.init(position), 0, 0.0, box)
    if fixed_mask is not None:
        minimiser = freeze(minimiser, _checked_mask(fixed_mask, len(position), relax_cell))
    system = System(neighbor_fn, energy_fn, minimiser, params, region, max_reallocations)
    check_shift(system, state)
    neighbors = allocate(system, state) if neighbors is None else neighbors
    evaluate_first = True
    while True:
        n = min(chunk_steps, n_steps - state.step)
        state, chunk = advance(system, state, neighbors, evaluate_first, n, force_tolerance)
        neighbors, evaluate_first = chunk.neighbors, False
        converged = int(chunk.status) == Status.CONVERGED
        if converged or state.step >= n_steps or stop_fn():
            break
    return _relaxation(minimiser, state, chunk, converged, position.shape[0])


def _relaxation(minimiser, state: State, chunk: Chunk, converged: bool, n_atoms: int) -> Relaxation:
    force = np.asarray(state.dynamics.force, float)
    position, box = minimiser.positions_and_box(state.dynamics, state.box)
    max_stress = None
    if minimiser.changes_box:
        position = position % 1.0
        max_stress = np.abs(force[n_atoms:]).max() * n_atoms / volume_of(box) / units.GPa
    return Relaxation(
        position=position,
        energy=float(chunk.energy),
        max_force=float(np.linalg.norm(force[:n_atoms], axis=1).max()),
        n_steps=state.step,
        converged=converged,
        neighbors=chunk.neighbors,
        box=box,
        max_stress_GPa=max_stress,
    )


def _checked_mask(fixed_mask, n_atoms: int, relax_cell: bool) -> np.ndarray:
    """The mask of a minimiser: the rows of the cell, after those of the atoms, are free."""
    mask = np.asarray(fixed_mask)
    shapes = [(n_atoms,)] if relax_cell else [(n_atoms,), (n_atoms, 3)]
    if mask.dtype != bool or mask.shape not in shapes:
        raise ValueError(
            f"fixed_mask must be {' or '.join(map(str, shapes))} booleans"
            f"{' where the cell relaxes' if relax_cell else ''}, got {mask.dtype} {mask.shape}."
        )
    return np.concatenate([mask, np.zeros(3, bool)]) if relax_cell else mask


def _cell_fire(box, pressure_GPa: float, cell_mask, dtype) -> CellFire:
    if box is None:
        raise ValueError(
            "box must be given where relax_cell = True (Å, a number, edges or columns), got None."
        )
    mask = np.ones((3, 3)) if cell_mask is None else np.asarray(cell_mask, float)
    if mask.shape != (3, 3) or not np.isin(mask, (0.0, 1.0)).all() or (mask != mask.T).any():
        raise ValueError(f"cell_mask must be a symmetric [3, 3] array of zeros and ones, got {cell_mask!r}.")
    check_value("pressure_GPa", pressure_GPa, float)
    return CellFire(box, float(pressure_GPa), jnp.asarray(mask, dtype))
