"""Regions that grow from the atoms inside another region.

With g_j the gate of expert 0 of the region inside, and switch = 1 for j = i,

    w_i = 1 - prod_j [1 - g_j switch((r_ij - r_core) / r_blend)]

It is the smooth union of spheres around all atoms j with g_j > 0, each as strong as
its gate. It has two continuous derivatives in the positions and in g_j. The region
therefore follows what the region inside finds: vacancies, cracks, dislocations,
molten parts. Source: ours, after the spheres of `around`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from moe_md.checks import check_value
from moe_md.regions.following import pairs_around
from moe_md.regions.protocol import (
    Region,
    RegionNeighbors,
    SupportRequest,
    check_region,
    check_two_columns,
    switch,
    two_columns,
)

# Factors below this are multiplied as they are: the derivatives of their logarithms would overflow.
SMALL_FACTOR = 1e-12


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grown(Region):
    """Smooth union of spheres around the atoms inside a region; two experts."""

    region: Region  # of two experts
    r_core: Array  # Å
    r_blend: Array  # Å

    is_dynamic: ClassVar[bool] = True

    @property
    def is_translation_invariant(self) -> bool:
        """Whether the region inside is."""
        return getattr(self.region, "is_translation_invariant", False)

    def gate(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "atoms 2"]:
        """Inside is 1 - prod_j [1 - g_j switch((r_j - r_core) / r_blend)]."""
        centers, listed = _centers(position, neighbors)
        # The gates of all atoms show whether a centre is missing; derivatives are of those of the centres.
        of_inner = _of_inner(neighbors)
        region, still = jax.lax.stop_gradient((self.region, position))
        inner = two_columns(region.gate(still, displacement_fn, of_inner))[:, 0]
        of_center = self.region.gate_of(centers, position, displacement_fn, of_inner)[:, 0]
        of_center = jnp.where(centers < position.shape[0], of_center, 0.0)
        atoms, real, distance = pairs_around(centers, listed, position, displacement_fn)
        r_core, r_blend = (r.astype(position.dtype) for r in (self.r_core, self.r_blend))
        factor = 1.0 - of_center[:, None] * switch((distance - r_core) / r_blend)
        outside = _products(atoms, jnp.where(real, factor, 1.0), position.shape[0])
        # NaN, never wrong, where an atom with a gate is no centre or the list is too short.
        is_invalid = jnp.sum(inner > 0) > jnp.sum(of_center > 0)
        if neighbors is not None:
            too_short = self.r_core + self.r_blend > neighbors.requested.list.cutoffs[0]
            is_invalid = is_invalid | too_short
        outside = outside * jnp.where(is_invalid, jnp.nan, 1.0).astype(position.dtype)
        return jnp.stack([1.0 - outside, outside], axis=1)

    def support(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        margin: float,
        neighbors: RegionNeighbors | None = None,
    ) -> Bool[Array, "atoms 2"]:
        """Inside: near an atom that may be inside. Outside: not close to an atom that stays inside."""
        if neighbors is None:
            inner = two_columns(self.region.support(position, displacement_fn, margin))
        else:
            inner = neighbors.requested.support
        centers, listed = _centers(position, neighbors)
        atoms, real, distance = pairs_around(centers, listed, position, displacement_fn)
        may_be_inside, may_be_outside = inner.at[centers].get(mode="fill", fill_value=False).T

        def within(radius, of_center):
            near = real & of_center[:, None] & (distance <= radius)
            return jnp.zeros(position.shape[0], bool).at[atoms].max(near, mode="drop")

        inside = within(self.r_core + self.r_blend + margin, may_be_inside)
        return jnp.stack([inside, ~within(self.r_core - margin, ~may_be_outside)], axis=1)

    def required_neighbors(self, margin: float) -> SupportRequest:
        """The atoms within `r_core + r_blend + margin` of those that the region inside may own."""
        cutoff = self.r_core + self.r_blend + margin
        return SupportRequest(self.region, cutoff, self.region.required_neighbors(margin))

    def neighbor_cutoff(self) -> float:
        """Å, of the region inside."""
        return self.region.neighbor_cutoff()

    def interaction_range(self) -> float:
        """Å, `r_core + r_blend` more than that of the region inside."""
        return float(self.r_core) + float(self.r_blend) + self.region.interaction_range()

    def restrict(self, index: Int[np.ndarray, " n"]) -> "Grown":
        """Grown from the restricted region."""
        return replace(self, region=self.region.restrict(index))

    def check_size(self, n_atoms: int, n_experts: int) -> None:
        """Raise `ValueError` where the region inside does not fit so many atoms, or not two experts."""
        check_two_columns(n_experts)
        self.region.check_size(n_atoms, 2)

    def to_dict(self) -> dict:
        """The region inside as plain values, and the radii."""
        return {
            "kind": "grown",
            "region": self.region.to_dict(),
            "r_core": float(self.r_core),
            "r_blend": float(self.r_blend),
        }


def grown(region: Region, r_core: float, r_blend: float) -> Grown:
    """The region around all atoms inside a region: expert 0 near them, expert 1 elsewhere.

    It follows vacancies, cracks, dislocations and molten parts without seeds:
    `grown(coordination(...), r_core, r_blend)`. An atom that joins or leaves the
    region inside brings its sphere along, as strong as its gate. In a mixture only
    atoms near those inside are compared, so the cost grows with their number.
    Distances are to the nearest image, as of `around`.

    Args:
        region: of two experts, any of `mm.regions`, static or not. It may select no
            atom; expert 1 then owns all of them.
        r_core: Å; within it of an atom fully inside, expert 0 supplies the full
            energy. Choose at least the cheap expert's cutoff where the atoms inside
            are outside its domain.
        r_blend: Å, thickness of the shell in which both experts share an atom;
            positive, or the energy is not conserved.

    Returns:
        A region. Its radii are leaves, so gradients with respect to them exist.

    Raises:
        ValueError: `region` lacks the methods of a region, or a length is out of range.

    >>> from jax_md import space
    >>> from moe_md.regions import fixed
    >>> positions = jnp.array([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [4.0, 0.0, 0.0]])
    >>> grown(fixed([0, 1, 1]), 1.0, 1.0).gate(positions, space.free()[0])[:, 0].tolist()
    [1.0, 0.5, 0.0]
    """
    check_region(region, "gate_of")
    check_value("r_core", r_core, float)
    check_value("r_blend", r_blend, float)
    if not r_core >= 0 or not r_blend > 0:
        raise ValueError(f"r_core must not be negative and r_blend positive (Å), got {r_core} and {r_blend}.")
    return Grown(region, jnp.asarray(float(r_core)), jnp.asarray(float(r_blend)))


def _of_inner(neighbors: RegionNeighbors | None) -> RegionNeighbors | None:
    """The lists that the region inside requested."""
    return None if neighbors is None else neighbors._replace(requested=neighbors.requested.requested)


def _centers(position: Array | np.ndarray, neighbors: RegionNeighbors | None) -> tuple[Array, Array | None]:
    """Atoms that spheres may surround, and the atoms near each; without lists all atoms, and None."""
    if neighbors is None:
        return jnp.arange(position.shape[0], dtype=jnp.int32), None
    listed = neighbors.requested.list
    return listed.centers, listed.idx[0]


def _products(atoms: Array, factor: Array, n_atoms: int) -> Array:
    """The product of the factors of each atom, `[n_atoms]`, with two right derivatives also at zeros.

    Args:
        atoms: `[n, M]` int, the atom of each factor; `n_atoms` or more where it has none.
        factor: `[n, M]`, between 0 and 1.
        n_atoms: number of atoms.
    """
    is_small = factor < SMALL_FACTOR
    small = jnp.where(is_small, factor, 0.0)
    logs = jnp.log(jnp.where(is_small, 1.0, factor))
    columns = jnp.stack([logs, is_small.astype(factor.dtype), small, small**2], axis=-1)
    sums = jnp.zeros((n_atoms, 4), factor.dtype).at[atoms].add(columns, mode="drop")
    others, count, total, squares = sums.T
    # The product of two small factors is half of (their sum)^2 less the sum of their squares. That of
    # three is zero to rounding, and so are its first two derivatives.
    pair = 0.5 * (total**2 - squares)
    of_small = jnp.select([count == 0, count == 1, count == 2], [jnp.ones_like(total), total, pair], 0.0)
    return jnp.exp(others) * of_small
