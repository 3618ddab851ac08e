"""Regions whose atoms keep their weights for good."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md.checks import check_value
from moe_md.regions.protocol import RegionNeighbors, finite_array, switch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed:
    """Each atom belongs to one expert for good."""

    assignment: Array  # [n_atoms] int, the expert of each atom
    n_experts: int = field(metadata={"static": True})

    is_dynamic: ClassVar[bool] = False

    def gate(self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None) -> Array:
        """One for the owner, zero for the others: `[n_atoms, n_experts]`."""
        del displacement_fn, near
        return jax.nn.one_hot(self.assignment, self.n_experts, dtype=position.dtype)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: RegionNeighbors | None = None
    ) -> Array:
        """`[n_atoms, n_experts]` bool."""
        del position, displacement_fn, margin, near
        return self.assignment[:, None] == jnp.arange(self.n_experts)[None]

    def required_neighbors(self, margin: float) -> None:
        """None."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weighted:
    """Each atom keeps its weights for good."""

    weights: Array  # [n_atoms, n_experts]

    is_dynamic: ClassVar[bool] = False

    def gate(self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None) -> Array:
        """The weights, in the dtype of the positions."""
        del displacement_fn, near
        return self.weights.astype(position.dtype)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: RegionNeighbors | None = None
    ) -> Array:
        """`[n_atoms, n_experts]` bool."""
        del position, displacement_fn, margin, near
        return self.weights > 0

    def required_neighbors(self, margin: float) -> None:
        """None."""


def fixed(assignment, n_experts: int = 2) -> Fixed:
    """A region from a list: the expert of each atom.

    Args:
        assignment: `[n_atoms]` int, 0 for the first (most expensive) expert.
        n_experts: number of experts of the mixture.

    Raises:
        ValueError: not a vector of integers between 0 and `n_experts - 1`.

    >>> fixed([0, 1, 1]).assignment.shape
    (3,)
    """
    values = finite_array("assignment", assignment)
    check_value("n_experts", n_experts, int)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            "assignment must be a vector of integers, one per atom, "
            f"got shape {values.shape} and dtype {values.dtype}."
        )
    if n_experts < 1:
        raise ValueError(f"n_experts must be at least 1, got {n_experts}.")
    if values.size and not (values.min() >= 0 and values.max() < n_experts):
        raise ValueError(
            f"assignment must lie between 0 and n_experts - 1 = {n_experts - 1}, "
            f"got {values.min()} to {values.max()}."
        )
    return Fixed(jnp.asarray(values, jnp.int32), n_experts)


def slab(
    position, *, lower: float = -np.inf, upper: float = np.inf, axis: int = 2, n_experts: int = 2
) -> Fixed:
    """Atoms between two planes go to expert 0, the others to expert 1, for good.

    Args:
        position: `[n_atoms, 3]` Å, where the atoms are now.
        lower, upper: Å, the planes; an atom on a plane is inside.
        axis: 0, 1 or 2, the planes' normal.
        n_experts: number of experts of the mixture, at least 2.

    Returns:
        A fixed region.

    Raises:
        ValueError: a bad shape or axis, fewer than two experts, or no atom is inside.

    >>> import numpy as np
    >>> slab(np.diag([1.0, 2.0, 3.0]), lower=2.5).assignment.tolist()
    [1, 1, 0]
    """
    values = finite_array("position", position)
    if values.ndim != 2 or values.shape[1] != 3:
        raise ValueError(f"position must have shape [n_atoms, 3], got {values.shape}.")
    check_value("axis", axis, int)
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2, got {axis}.")
    check_value("n_experts", n_experts, int)
    check_value("lower", lower, float, finite=False)
    check_value("upper", upper, float, finite=False)
    if n_experts < 2:
        raise ValueError(f"n_experts must be at least 2 for a slab, got {n_experts}.")
    height = values[:, axis]
    inside = (height >= lower) & (height <= upper)
    if not inside.any():
        span = f"{height.min():.3f} to {height.max():.3f} Å" if height.size else "empty"
        raise ValueError(
            f"slab must select at least one atom: lower = {lower}, upper = {upper}, "
            f"but positions along axis {axis} span {span}."
        )
    return fixed(np.where(inside, 0, 1), n_experts)


def sphere(
    position, center, radius: float, *, blend: float = 0.0, displacement_fn: Callable | None = None
) -> Fixed | Weighted:
    """Atoms in a sphere go to expert 0, the others to expert 1, for good.

    Args:
        position: `[n_atoms, 3]` Å, where the atoms are now.
        center: `[3]` Å.
        radius: Å, positive.
        blend: Å, thickness of the shell outside `radius` in which both experts
            share the atoms.
        displacement_fn: of the box; default free space.

    Returns:
        A fixed region, or one of frozen weights where `blend` is positive.

    Raises:
        ValueError: a bad shape or length, or no atom is inside.

    >>> import numpy as np
    >>> sphere(np.diag([1.0, 2.0, 3.0]), [0.0, 0.0, 0.0], 2.5).assignment.tolist()
    [0, 0, 1]
    """
    values, middle = finite_array("position", position), finite_array("center", center)
    check_value("radius", radius, float)
    check_value("blend", blend, float)
    if displacement_fn is not None and not callable(displacement_fn):
        raise ValueError(f"displacement_fn must be a function, got {displacement_fn!r:.80}.")
    if values.ndim != 2 or values.shape[1] != 3 or middle.shape != (3,):
        raise ValueError(
            "position and center must have shapes [n_atoms, 3] and [3], "
            f"got {values.shape} and {middle.shape}."
        )
    if not radius > 0 or not blend >= 0:
        raise ValueError(f"radius must be positive and blend not negative (Å), got {radius} and {blend}.")
    displacement = values - middle
    if displacement_fn is not None:
        displacement = jax.vmap(displacement_fn, (0, None))(
            jnp.asarray(values), jnp.asarray(middle, values.dtype)
        )
    distance = np.linalg.norm(displacement, axis=1)
    if not (distance <= radius).any():
        raise ValueError(
            f"sphere must select at least one atom: radius = {radius} Å, but the nearest atom is "
            f"{distance.min() if distance.size else np.inf:.3f} Å from center = {middle.tolist()}."
        )
    if blend == 0:
        return fixed(np.where(distance <= radius, 0, 1))
    inside = np.asarray(switch((distance - radius) / blend))
    return Weighted(jnp.asarray(np.stack([inside, 1.0 - inside], axis=1)))
