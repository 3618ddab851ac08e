"""The motion that an expert boundary causes in an ideal crystal, as a term of the training's loss.

In an ideal crystal all forces are zero by symmetry, so that its atoms stay at
rest. A crystal divided by planes between two experts starts to move under ghost
forces, and displacements under a constant force add up. The term is the mean square of
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
from ase.data import atomic_masses, atomic_numbers
from jax import Array
from jaxtyping import Float, Int

from moe_md import lazy_jax_md as jax_md
from moe_md import regions, units
from moe_md.checks import check_count, check_positive
from moe_md.data.structures import fcc_supercell
from moe_md.experts.base import Expert, Params, check_two_experts, potentials
from moe_md.gradients.rollout import rollout
from moe_md.mixture import mixture_neighbor_list
from moe_md.simulate.integrators import nve


def boundary_drift(
    experts: Sequence[Expert],
    *,
    symbol: str,
    lattice_constant: float,
    n_steps: int = 10,
    timestep_fs: float = 5.0,
    weight: float = 1.0,
    every: int = 1,
    skin: float = 0.5,
) -> Callable[[tuple[Params, ...], Int[Array, ""] | int], Float[Array, ""]]:
    """A loss function for `cotrain(..., extra_loss=)`.

    Args:
        experts: two; the second owns the lower half of the crystal.
        symbol: an fcc metal that is a species of both.
        lattice_constant: Å.
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
        ValueError: an argument is out of range, or there are not two experts.
    """
    experts = tuple(experts)
    check_two_experts(experts)
    check_positive("weight", weight)
    check_positive("skin", skin)
    check_positive("lattice_constant", lattice_constant)
    check_count("n_steps", n_steps, 1)
    check_count("every", every, 1)
    if symbol not in experts[0].species:
        raise ValueError(f"symbol must be one of the experts' species {experts[0].species}, got {symbol!r}.")
    crystal = _divided_crystal(experts, symbol, lattice_constant, skin)
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
    mass: float  # amu
    neighbors: Any  # list of the ideal crystal, from `neighbor_fn.allocate`
    energy_fn: Callable
    displacement_fn: Callable
    shift_fn: Callable


def _divided_crystal(
    experts: tuple[Expert, ...], symbol: str, lattice_constant: float, skin: float
) -> _DividedCrystal:
    """A crystal of which expert 1 owns the lower and expert 0 the upper half."""
    width = int(2 * max(e.cutoff for e in experts) / lattice_constant) + 1
    # Each half is at least as thick as the largest cutoff.
    frame = fcc_supercell(symbol, lattice_constant, (width, width, max(width, 2 * -(-width // 2))))
    edges, n_atoms = np.diag(frame.cell), len(frame.symbols)
    height = frame.positions[:, 2] % edges[2]
    region = regions.fixed((height < 0.5 * edges[2] - 1e-3).astype(int))
    displacement_fn, shift_fn = jax_md.space.periodic(jnp.asarray(edges, float))
    # The mixture is built with any parameters; the loss passes those of the training step.
    params = tuple(e.init(jax.random.key(0)) for e in experts)
    species = np.full(n_atoms, experts[0].species.index(symbol))
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn, edges, potentials(experts, params), species, region, dr_threshold=skin
    )
    site = jnp.asarray(frame.positions, float)
    mass = float(atomic_masses[atomic_numbers[symbol]])
    return _DividedCrystal(site, mass, neighbor_fn.allocate(site), energy_fn, displacement_fn, shift_fn)


def _mean_square_constant_force(
    crystal: _DividedCrystal, integrator, n_steps: int, time: float, params: tuple[Params, ...]
) -> Array:
    """Mean square of the constant forces that would cause the displacements of a trajectory, (eV/Å)^2."""
    site, mass = crystal.site, crystal.mass
    rest = integrator.init(site, jnp.zeros_like(site), jnp.full(len(site), mass, site.dtype), None, None)
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
    return jnp.mean(jnp.sum((2 * mass / time**2 * moved) ** 2, axis=1))
