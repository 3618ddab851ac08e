"""Spheres that follow atoms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Integer

from moe_md.checks import check_value
from moe_md.neighbors.capacity import bucket_size
from moe_md.regions.protocol import (
    NeighborRequest,
    Region,
    RegionNeighbors,
    check_missing,
    check_two_columns,
    finite_array,
    length,
    switch,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Around(Region):
    """Smooth union of spheres around atoms, which it follows; two experts."""

    seeds: Array  # [n_seeds] int, atoms at the centres of the spheres
    r_core: Array  # Å
    r_blend: Array  # Å

    is_dynamic: ClassVar[bool] = True
    is_translation_invariant: ClassVar[bool] = True

    def gate(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "atoms 2"]:
        """Inside is 1 - prod_s [1 - switch((r_s - r_core) / r_blend)]."""
        atoms, real, distance = self._pairs(position, displacement_fn, neighbors)
        r_core, r_blend = (r.astype(position.dtype) for r in (self.r_core, self.r_blend))
        factor = jnp.where(real, 1.0 - switch((distance - r_core) / r_blend), 1.0)
        # The product over seeds as a sum of logarithms; factors of zero are counted separately.
        zero = factor < jnp.finfo(position.dtype).tiny * 1e6
        logs = jnp.log(jnp.where(zero, 1.0, factor))
        sums = jnp.zeros((position.shape[0], 2), position.dtype)
        sums = sums.at[atoms].add(jnp.stack([logs, zero.astype(position.dtype)], axis=-1), mode="drop")
        outside = jnp.where(sums[:, 1] > 0, 0.0, jnp.exp(sums[:, 0]))
        outside = outside * jnp.where(self._is_invalid(position, neighbors), jnp.nan, 1.0).astype(
            position.dtype
        )
        return jnp.stack([1.0 - outside, outside], axis=1)

    def support(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        margin: float,
        neighbors: RegionNeighbors | None = None,
    ) -> Bool[Array, "atoms 2"]:
        """The shell between the radii is widened by the margin on both sides."""
        atoms, real, distance = self._pairs(position, displacement_fn, neighbors)

        def within(radius):
            return jnp.zeros(position.shape[0], bool).at[atoms].max(real & (distance <= radius), mode="drop")

        return jnp.stack([within(self.r_core + self.r_blend + margin), ~within(self.r_core - margin)], axis=1)

    def required_neighbors(self, margin: float) -> NeighborRequest:
        """The atoms around the seeds within `r_core + r_blend + margin`."""
        return NeighborRequest(self.seeds, self.r_core + self.r_blend + margin)

    def interaction_range(self) -> float:
        """Å, `r_core + r_blend`."""
        return float(self.r_core) + float(self.r_blend)

    def restrict(self, index: Int[np.ndarray, " n"]) -> "Around":
        """Spheres around every image of a seed; the number of seeds is padded with the last entry."""
        seeds = np.flatnonzero(np.isin(index, np.asarray(self.seeds))).astype(np.int32)
        padding = (0, bucket_size(len(seeds) + 1) - len(seeds))
        return replace(self, seeds=np.pad(seeds, padding, constant_values=len(index) - 1))

    def check_size(self, n_atoms: int, n_experts: int) -> None:
        """Raise `ValueError` where a seed is no atom, or where there are not two experts."""
        check_two_columns(n_experts)
        largest = int(np.max(self.seeds, initial=-1))
        if largest >= n_atoms:
            raise ValueError(
                f"region must have seeds below the number of atoms, {n_atoms}, got a seed of {largest}."
            )

    def with_centers(self, centers: Int[Array | np.ndarray, " n"]) -> "Around":
        """Spheres around the same atoms, which have other numbers."""
        return replace(self, seeds=centers)

    def to_dict(self) -> dict:
        """Seeds and radii."""
        return {
            "kind": "around",
            "seeds": np.asarray(self.seeds).tolist(),
            "r_core": float(self.r_core),
            "r_blend": float(self.r_blend),
        }

    def _pairs(
        self, position: Array | np.ndarray, displacement_fn: Callable, neighbors: RegionNeighbors | None
    ) -> tuple[Array, Array, Array]:
        """Atoms near each seed, the seed itself first: index, whether it is real, distance in Å.

        Each is `[n_seeds, K]`. Without lists these are all atoms.
        """
        listed = None if neighbors is None else neighbors.requested.idx[0]
        return pairs_around(self.seeds, listed, position, displacement_fn)

    def _is_invalid(self, position: Array | np.ndarray, neighbors: RegionNeighbors | None) -> Array:
        """Whether a seed is no atom, or the list is of other seeds or a shorter cutoff; bool.

        The gate is then NaN, so that no wrong energy is returned.
        """
        invalid = jnp.any(self.seeds >= position.shape[0])
        if neighbors is None:
            return invalid
        listed = neighbors.requested
        too_far = self.r_core + self.r_blend > listed.cutoffs[0]
        return invalid | too_far | jnp.any(listed.centers != self.seeds)


def pairs_around(
    centers: Int[Array | np.ndarray, " n"],
    listed: Int[Array, "n K"] | None,
    position: Float[Array | np.ndarray, "atoms 3"],
    displacement_fn: Callable,
) -> tuple[Int[Array, "n M"], Bool[Array, "n M"], Float[Array, "n M"]]:
    """Atoms near each centre, the centre itself first.

    Args:
        centers: atoms; the number of atoms where padded.
        listed: other atoms near each of them, padded alike; None for all other atoms.
        position: in the units of `displacement_fn`.
        displacement_fn: from `jax_md.space`.

    Returns:
        The atoms, whether each is an atom, and its distance from the centre in Å.
    """
    n_atoms = position.shape[0]
    if listed is None:
        listed = jnp.broadcast_to(jnp.arange(n_atoms, dtype=jnp.int32), (centers.shape[0], n_atoms))
        listed = jnp.where(listed == centers[:, None], n_atoms, listed)
    atoms = jnp.concatenate([centers[:, None], listed], axis=1)
    safe = jnp.minimum(atoms, n_atoms - 1)
    center = position[jnp.minimum(centers, n_atoms - 1)]
    displacement = jax.vmap(jax.vmap(displacement_fn, (0, None)))(position[safe], center)
    return atoms, atoms < n_atoms, length(displacement)


def around(
    seeds: Integer[ArrayLike, " seeds"] | Sequence,
    r_core: float,
    r_blend: float,
    *,
    missing: str = "error",
) -> Around:
    """Smooth union of spheres around atoms: expert 0 inside, expert 1 outside.

    The spheres follow the atoms. In a mixture each seed is compared with the atoms
    near it, so the cost grows with the number of seeds, not of atoms. Distances are
    to the nearest image: where a sphere is wider than half the box, the gate of atoms
    midway between two images of a seed has a kink.

    Args:
        seeds: atoms at the centres of the spheres, each once.
        r_core: Å; within it expert 0 supplies the full energy. Choose at least the
            cheap expert's cutoff where seeds are outside its domain.
        r_blend: Å, thickness of the shell in which both experts share an atom;
            positive, or the energy is not conserved.
        missing: what happens without a seed: "error", or "cheap", expert 1 owns all
            atoms.

    Returns:
        A region. Its radii and seeds are leaves, so gradients with respect to the
        radii exist.

    Raises:
        ValueError: seeds are not integers, there are none, or a length is out of range.

    >>> import numpy as np
    >>> from jax_md import space
    >>> around([0], 1.0, 2.0).gate(jnp.zeros((1, 3)), space.free()[0]).tolist()
    [[1.0, 0.0]]
    """
    values = finite_array("seeds", seeds)
    check_value("r_core", r_core, float)
    check_value("r_blend", r_blend, float)
    check_missing(missing)
    if values.shape == (0,) and missing == "cheap":
        values = values.astype(int)
    elif (
        values.ndim != 1
        or values.size == 0
        or not np.issubdtype(values.dtype, np.integer)
        or values.min() < 0
    ):
        raise ValueError(
            f"seeds must be a vector of atom indices, at least one, got {seeds!r}. "
            'With missing="cheap" there may be none.'
        )
    if not r_core >= 0 or not r_blend > 0:
        raise ValueError(f"r_core must not be negative and r_blend positive (Å), got {r_core} and {r_blend}.")
    return Around(jnp.asarray(values, jnp.int32), jnp.asarray(float(r_core)), jnp.asarray(float(r_blend)))
