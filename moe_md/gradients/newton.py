"""Newton steps towards a stationary point of the enthalpy, and the condition that defines it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from moe_md.gradients.trajectory import moved_fractions

LENGTH = 2.5  # Å, a bond: scale by which strains of the cell are measured against moves of atoms
LONGEST_MOVE = 0.1  # Å, of an atom in one Newton step


class Given(NamedTuple):
    """What an equilibrium structure depends on."""

    position: Float[Array, "atoms 3"]
    fixed_mask: Bool[Array, " atoms"]
    neighbors: Any
    params: Any
    region: Any
    box: Float[Array, "3 3"] | None  # Å
    strains: Float[Array, "n 3 3"] | None
    volume: Float[Array, ""] | None  # Å^3
    pressure: Float[Array, ""]  # eV/Å^3


class Unknowns(NamedTuple):
    """Changes of the given structure, in Å for atoms and cell, so that all forces have one unit."""

    move: Float[Array, "atoms 3"]
    stretch: Float[Array, " n"] | None  # strains times LENGTH sqrt(n_atoms)


def _shift(fraction: Array, move: Array, box: Array) -> Array:
    return fraction + jnp.linalg.solve(box, move.T).T


def structure_of(z: Unknowns, given: Given) -> tuple[Float[Array, "atoms 3"], Float[Array, "3 3"]]:
    """Positions before the strain, and the strain."""
    move = jnp.where(given.fixed_mask[:, None], 0.0, z.move)
    position = (
        given.position + move
        if given.box is None
        else moved_fractions(_shift, given.position, move, given.box)
    )
    strain = jnp.zeros((3, 3), given.position.dtype)
    if z.stretch is not None and given.strains is not None:
        strain = jnp.tensordot(z.stretch, given.strains, 1) / (LENGTH * jnp.sqrt(1.0 * given.fixed_mask.size))
    return position, strain


def _plain_enthalpy(energy_fn, z: Unknowns, given: Given) -> Array:
    position, strain = structure_of(z, given)
    given_kwargs = {
        name: getattr(given, name) for name in ("params", "region", "box") if getattr(given, name) is not None
    }
    if given.neighbors is not None:
        given_kwargs["neighbor"] = given.neighbors
    if z.stretch is None or given.volume is None:
        return jnp.sum(energy_fn(position, **given_kwargs))
    F = jnp.eye(3, dtype=position.dtype) + strain
    return jnp.sum(
        energy_fn(position, perturbation=F, **given_kwargs)
    ) + given.pressure * given.volume * jnp.linalg.det(F)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def enthalpy(energy_fn: Callable, z: Unknowns, given: Given) -> Float[Array, ""]:
    """The enthalpy; at equilibrium it is independent of z to first order."""
    return _plain_enthalpy(energy_fn, z, given)


@enthalpy.defjvp
def _enthalpy_jvp(energy_fn, primals, tangents):
    z, given = primals
    return jax.jvp(lambda given: _plain_enthalpy(energy_fn, z, given), (given,), (tangents[1],))


def slope_of(energy_fn: Callable, z: Unknowns, given: Given) -> Unknowns:
    """dH/dz, eV/Å."""
    return jax.grad(_plain_enthalpy, argnums=1)(energy_fn, z, given)


def condition(energy_fn: Callable, invariant: tuple[bool, bool], given: Given, z: Unknowns) -> Unknowns:
    """Zero at equilibrium only; fixed atoms and common moves of all atoms are excluded."""
    return _balanced(invariant, given, z, slope_of(energy_fn, z, given))


def _balanced(invariant, given: Given, z: Unknowns, slope: Unknowns) -> Unknowns:
    free = ~given.fixed_mask[:, None]
    common = common_move(z.move, jax.lax.stop_gradient(given), *invariant)
    return slope._replace(move=jnp.where(free, slope.move, z.move) + common)


def common_move(
    move: Float[Array, "atoms 3"], given: Given, translations: bool, rotations: bool
) -> Float[Array, "atoms 3"]:
    """The part of a move that translates or rotates all atoms together."""
    any_fixed = jnp.any(given.fixed_mask)
    part = jnp.zeros_like(move)
    if translations:
        part += jnp.mean(move, axis=0, keepdims=True)
    if rotations:
        place = given.position if given.box is None else given.position @ given.box.T
        place = place - jnp.mean(place, axis=0, keepdims=True)
        turns = jnp.stack(
            [jnp.cross(axis, place) for axis in jnp.eye(3, dtype=move.dtype)]
        )  # [3, n_atoms, 3]
        gram = jnp.einsum("aij,bij->ab", turns, turns)
        # A linear molecule has two rotations, not three.
        along = jnp.linalg.pinv(gram, rtol=1e-6, hermitian=True) @ jnp.einsum("aij,ij->a", turns, move)
        part += jnp.tensordot(along, turns, 1)
    return jnp.where(any_fixed, 0.0, part)


def newton(
    energy_fn: Callable,
    invariant: tuple[bool, bool],
    n_steps: int,
    solver: Callable,
    given: Given,
    force_tolerance: Float[ArrayLike, ""],
    solver_tolerance: Float[ArrayLike, ""],
) -> tuple[Unknowns, Any, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Newton steps towards the nearest stationary point.

    Returns:
        The changes, neighbours and largest forces at the end.
    """
    n = None if given.strains is None else given.strains.shape[0]
    z = Unknowns(jnp.zeros_like(given.position), None if n is None else jnp.zeros(n, given.position.dtype))

    def updated(z: Unknowns, neighbors):
        if neighbors is None:
            return None
        position, strain = structure_of(z, given)
        kwargs = {
            name: getattr(given, name) for name in ("region", "box") if getattr(given, name) is not None
        }
        if z.stretch is not None:
            kwargs["perturbation"] = jnp.eye(3, dtype=position.dtype) + strain
        return neighbors.update(position, **kwargs)

    def goes_on(carry):
        *_, moving = carry
        return moving

    def step(carry):
        z, neighbors, k, _, _ = carry
        neighbors = updated(z, neighbors)
        current = given._replace(neighbors=neighbors)

        def condition(z):
            slope = slope_of(energy_fn, z, current)
            return _balanced(invariant, current, z, slope), slope

        at, matvec, slope = jax.linearize(condition, z, has_aux=True)
        forces = _largest(slope, current)
        moving = (k < n_steps) & ((forces[0] > force_tolerance) | (forces[1] > force_tolerance))
        full_step = solver(matvec, jax.tree.map(lambda x: jnp.where(moving, x, 0.0), at), solver_tolerance)
        longest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(full_step)]))
        part = jnp.where(moving, LONGEST_MOVE / jnp.maximum(longest, LONGEST_MOVE), 0.0)
        return (
            jax.tree.map(lambda a, b: jnp.where(moving, a - part * b, a), z, full_step),
            neighbors,
            k + 1,
            forces,
            moving,
        )

    unknown = jnp.full((), jnp.nan, given.position.dtype)
    start = (z, given.neighbors, jnp.zeros((), jnp.int32), (unknown, unknown), jnp.ones((), bool))
    z, neighbors, _, forces, _ = jax.lax.while_loop(goes_on, step, start)
    return z, neighbors, forces


def _largest(slope: Unknowns, given: Given) -> tuple[Array, Array]:
    """Largest force on a free atom, eV/Å, and on the cell, eV; NaN where the cell is fixed."""
    free = jnp.sqrt(jnp.max(jnp.where(given.fixed_mask, 0.0, jnp.sum(slope.move**2, axis=1))))
    if slope.stretch is None:
        return free, jnp.full((), jnp.nan, free.dtype)
    return free, LENGTH * jnp.max(jnp.abs(slope.stretch)) / jnp.sqrt(1.0 * given.fixed_mask.size).astype(
        free.dtype
    )
