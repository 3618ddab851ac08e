"""Spheres that follow atoms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md.checks import check_value
from moe_md.regions.protocol import NeighborRequest, RegionNeighbors, finite_array, length, switch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Around:
    """Spheres about atoms, which they follow, melted into one another; two experts."""

    seeds: Array  # [n_seeds] int
    r_core: Array  # Å
    r_blend: Array  # Å

    is_dynamic: ClassVar[bool] = True

    def gate(self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None) -> Array:
        """Inside is 1 - prod_s [1 - switch((r_s - r_core) / r_blend)]."""
        atoms, real, distance = self._pairs(position, displacement_fn, near)
        r_core, r_blend = (r.astype(position.dtype) for r in (self.r_core, self.r_blend))
        out = jnp.where(real, 1.0 - switch((distance - r_core) / r_blend), 1.0)
        # The product over the seeds of an atom, as sums: of logarithms, and of zeros apart.
        zero = out < jnp.finfo(position.dtype).tiny * 1e6
        logs = jnp.log(jnp.where(zero, 1.0, out))
        sums = jnp.zeros((position.shape[0], 2), position.dtype)
        sums = sums.at[atoms].add(jnp.stack([logs, zero.astype(position.dtype)], axis=-1), mode="drop")
        outside = jnp.where(sums[:, 1] > 0, 0.0, jnp.exp(sums[:, 0]))
        outside = outside * jnp.where(self._unknown(position, near), jnp.nan, 1.0).astype(position.dtype)
        return jnp.stack([1.0 - outside, outside], axis=1)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: RegionNeighbors | None = None
    ) -> Array:
        """`[n_atoms, 2]` bool."""
        atoms, real, distance = self._pairs(position, displacement_fn, near)

        def within(reach):
            return jnp.zeros(position.shape[0], bool).at[atoms].max(real & (distance <= reach), mode="drop")

        return jnp.stack([within(self.r_core + self.r_blend + margin), ~within(self.r_core - margin)], axis=1)

    def required_neighbors(self, margin: float) -> NeighborRequest:
        """Around the seeds, as far as the gate may reach after a move."""
        return NeighborRequest(self.seeds, self.r_core + self.r_blend + margin)

    def _pairs(
        self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None
    ) -> tuple[Array, Array, Array]:
        """`[n_seeds, K]`: atoms near each seed, itself first; whether there is one; its distance in Å."""
        n_atoms = position.shape[0]
        if near is None:
            others = jnp.broadcast_to(jnp.arange(n_atoms, dtype=jnp.int32), (self.seeds.shape[0], n_atoms))
            others = jnp.where(others == self.seeds[:, None], n_atoms, others)
        else:
            others = near.requested.idx[0]
        atoms = jnp.concatenate([self.seeds[:, None], others], axis=1)
        safe = jnp.minimum(atoms, n_atoms - 1)
        middle = position[jnp.minimum(self.seeds, n_atoms - 1)]
        displacement = jax.vmap(jax.vmap(displacement_fn, (0, None)))(position[safe], middle)
        return atoms, atoms < n_atoms, length(displacement)

    def _unknown(self, position: Array, near: RegionNeighbors | None) -> Array:
        """A seed that is no atom, or a list that was made for other seeds or shorter radii.

        No energy is better than a wrong one.
        """
        unknown = jnp.any(self.seeds >= position.shape[0])
        if near is None:
            return unknown
        known = near.requested
        too_far = self.r_core + self.r_blend > known.cutoffs[0]
        return unknown | too_far | jnp.any(known.centers != self.seeds)


def around(seeds, r_core: float, r_blend: float) -> Around:
    """Spheres about some atoms go to expert 0, what is outside all of them to expert 1.

    The spheres follow the atoms.

    In a mixture, each seed is compared with the atoms near it, so that the cost
    grows with the seeds and not with the atoms. Nearest images count: where a
    sphere is wider than half the box, atoms midway between two images of a seed
    feel a kink.

    Args:
        seeds: `[n_seeds]` int, atoms in the middle of a sphere, each once.
        r_core: Å, within which an atom is all expert 0's. At least the cheap
            expert's cutoff where seeds are outside its domain.
        r_blend: Å, thickness of the shell in which both share an atom; positive,
            or energy would not be conserved.

    Returns:
        A region; its radii and seeds are leaves, so that gradients with respect
        to the radii exist.

    Raises:
        ValueError: seeds are no integers, or a length is out of range.
    """
    values = finite_array("seeds", seeds)
    check_value("r_core", r_core, float)
    check_value("r_blend", r_blend, float)
    if (
        values.ndim != 1
        or values.size == 0
        or not np.issubdtype(values.dtype, np.integer)
        or values.min() < 0
    ):
        raise ValueError(f"seeds must be a vector of atom indices, at least one, got {seeds!r}.")
    if not r_core >= 0 or not r_blend > 0:
        raise ValueError(f"r_core must not be negative and r_blend positive (Å), got {r_core} and {r_blend}.")
    return Around(jnp.asarray(values, jnp.int32), jnp.asarray(float(r_core)), jnp.asarray(float(r_blend)))
