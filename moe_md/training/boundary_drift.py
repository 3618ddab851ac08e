"""The motion that an expert boundary causes in an ideal crystal, as a term of the training's loss.

In an ideal crystal whose atoms are at rest by symmetry, such as fcc, bcc, hcp, diamond and rock salt,
all forces are zero under either expert. Divided by planes between two experts it starts
to move under ghost forces, and displacements under a constant force add up. The term is the mean square of
the constant force that moves an atom of mass m by its displacement u in the time
t of the trajectory,

    mean_i |2 m u_i / t^2|^2      (eV/Å)^2

on the scale of the loss of forces. In the limit of short times it is the mean
square ghost force of the ideal crystal. Over longer times (the period of a lattice
vibration is about 200 fs), forces that average out do not count. Agreement of partial
forces (`losses`) constrains all boundaries from one evaluation; this term constrains
one boundary, through the error of a simulation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jax import Array
from jaxtyping import Float, Int

from moe_md import lazy_jax_md as jax_md
from moe_md import regions, units
from moe_md.checks import check_count, check_positive
from moe_md.data.planes import cut_at_widest_gap, oriented_cell, repeats_to_width, widest_planes
from moe_md.experts.base import Expert, Params, check_two_experts, potentials
from moe_md.gradients.rollout import rollout
from moe_md.mixture import mixture_neighbor_list
from moe_md.simulate.integrators import nve


def boundary_drift(
    experts: Sequence[Expert],
    atoms: Atoms,
    *,
    n_steps: int = 10,
    timestep_fs: float = 5.0,
    weight: float = 1.0,
    every: int = 1,
    skin: float = 0.5,
) -> Callable[[tuple[Params, ...], Int[Array, ""] | int], Float[Array, ""]]:
    """A loss function for `cotrain(..., extra_loss=)`.

    Args:
        experts: two; the second owns the lower half of the crystal.
        atoms: primitive cell of a crystal of the experts' species, periodic in all directions. It is
            divided along its most widely spaced lattice plane. Its atoms must be at rest by symmetry:
            in other crystals, forces that either expert has alone count as well.
        n_steps: steps of the trajectory, at constant energy from rest. In single
            precision, displacements within less than about 20 fs are lost to rounding.
        timestep_fs: time step, positive.
        weight: factor of the term, (Å/eV)^2, as `LossWeights.forces`.
        every: training steps from one trajectory to the next; the weight is
            multiplied by it in these steps, and zero in others.
        skin: skin of the neighbour list, Å; the loss is NaN, and training stops,
            where an atom moves by more than half of it.

    Returns:
        `(params, step) -> number`, pure and differentiable. Reverse differentiation
        stores states of some steps only and computes the others again (`rollout`).

    Raises:
        ValueError: an argument is out of range, the crystal has other species, or there are not
            two experts.
    """
    experts = tuple(experts)
    check_two_experts(experts)
    check_positive("weight", weight)
    check_positive("skin", skin)
    check_count("n_steps", n_steps, 1)
    check_count("every", every, 1)
    if not np.all(atoms.pbc):
        raise ValueError(f"atoms must be periodic in all directions, got pbc {atoms.pbc.tolist()}.")
    unknown = sorted(set(atoms.symbols) - set(experts[0].species))
    if unknown:
        raise ValueError(
            f"atoms must be of the experts' species {experts[0].species}, got {', '.join(unknown)}."
        )
    crystal = _divided_crystal(experts, atoms, skin)
    constant_force_fn = partial(
        _mean_square_constant_force,
        crystal,
        nve(crystal.shift_fn, timestep_fs),
        n_steps,
        n_steps * timestep_fs * units.fs,
    )

    def boundary_drift_loss(params: tuple[Params, ...], step: Int[Array, ""] | int) -> Float[Array, ""]:
        if every == 1:
            return weight * constant_force_fn(params)
        return jax.lax.cond(
            step % every == 0,
            lambda p: weight * every * constant_force_fn(p),
            lambda p: jnp.zeros((), crystal.site.dtype),
            params,
        )

    return boundary_drift_loss


@dataclass(frozen=True)
class _DividedCrystal:
    """An ideal crystal whose halves belong to two experts, and the functions that move it."""

    site: Float[Array, "atoms 3"]  # Å, lattice sites
    mass: Float[np.ndarray, " atoms"]  # amu
    neighbors: Any  # list of the ideal crystal, from `neighbor_fn.allocate`
    energy_fn: Callable
    displacement_fn: Callable
    shift_fn: Callable


def _divided_crystal(experts: tuple[Expert, ...], atoms: Atoms, skin: float) -> _DividedCrystal:
    """A crystal of which expert 1 owns the lower and expert 0 the upper half."""
    (widest,) = widest_planes(atoms.cell.array, 1)
    cell, _ = cut_at_widest_gap(oriented_cell(atoms, widest))
    # Wider than two cutoffs in all directions, so each half is at least as thick as the largest cutoff.
    n_a, n_b, n_c = repeats_to_width(cell.cell.array, 2 * max(e.cutoff for e in experts) + 0.01)
    n_c += n_c % 2
    whole = cell * (n_a, n_b, n_c)
    region = regions.fixed((whole.get_scaled_positions()[:, 2] < 0.5).astype(int))
    box = whole.cell.array.T  # columns
    displacement_fn, shift_fn = jax_md.space.periodic_general(
        jnp.asarray(box, float), fractional_coordinates=False
    )
    # The mixture is built with any parameters; the loss passes those of the training step.
    params = tuple(e.init(jax.random.key(0)) for e in experts)
    species = [experts[0].species.index(symbol) for symbol in whole.symbols]
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn, box, potentials(experts, params), species, region, dr_threshold=skin
    )
    site = jnp.asarray(whole.positions, float)
    return _DividedCrystal(
        site, whole.get_masses(), neighbor_fn.allocate(site), energy_fn, displacement_fn, shift_fn
    )


def _mean_square_constant_force(
    crystal: _DividedCrystal, integrator, n_steps: int, time: float, params: tuple[Params, ...]
) -> Array:
    """Mean square of the constant forces that would cause the displacements of a trajectory, (eV/Å)^2."""
    site, mass = crystal.site, jnp.asarray(crystal.mass, crystal.site.dtype)
    rest = integrator.init(site, jnp.zeros_like(site), mass, None, None)
    out = rollout(
        crystal.energy_fn,
        integrator,
        rest,
        crystal.neighbors,
        n_steps,
        params=params,
        update_every=None,
        checkpoint="sqrt" if n_steps > 4 else None,
    )
    moved = jax.vmap(crystal.displacement_fn)(out.state.position, site)
    return jnp.mean(jnp.sum((2 * mass[:, None] / time**2 * moved) ** 2, axis=1))
