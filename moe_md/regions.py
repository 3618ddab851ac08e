"""Regions: which expert owns which atom.

A region is a pytree with two methods,

    gate(position, displacement_fn)            -> [n_atoms, n_experts], rows sum to 1
    support(position, displacement_fn, margin) -> [n_atoms, n_experts] bool,
                                                  a superset of gate > 0

`fixed` is any assignment; `slab` makes one from positions, once: regions fixed
in space would break momentum conservation if atoms crossed them, so an atom
keeps its expert.
"""

from dataclasses import dataclass, field
from typing import Callable, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Region(Protocol):
    """What a mixture asks of a region."""

    def gate(self, position: Array, displacement_fn: Callable) -> Array: ...

    def support(self, position: Array, displacement_fn: Callable, margin: float) -> Array: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed:
    """Each atom belongs to one expert for good."""

    assignment: Array  # [n_atoms] int, the expert of each atom
    n_experts: int = field(metadata={"static": True})

    def gate(self, position: Array, displacement_fn: Callable) -> Array:
        """One for the owner, zero for the others: `[n_atoms, n_experts]`."""
        del displacement_fn
        return jax.nn.one_hot(self.assignment, self.n_experts, dtype=position.dtype)

    def support(self, position: Array, displacement_fn: Callable, margin: float) -> Array:
        """`[n_atoms, n_experts]` bool."""
        del position, displacement_fn, margin
        return self.assignment[:, None] == jnp.arange(self.n_experts)


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
    values = np.asarray(assignment)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"assignment must be a vector of integers, one per atom, got shape {values.shape} and dtype {values.dtype}."
        )
    if n_experts < 1:
        raise ValueError(f"n_experts must be at least 1, got {n_experts}.")
    if values.size and not (0 <= values.min() and values.max() < n_experts):
        raise ValueError(
            f"assignment must lie between 0 and n_experts - 1 = {n_experts - 1}, got {values.min()} to {values.max()}."
        )
    return Fixed(jnp.asarray(values, jnp.int32), n_experts)


def slab(position, *, lower: float = -np.inf, upper: float = np.inf, axis: int = 2, n_experts: int = 2) -> Fixed:
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
    values = np.asarray(position)
    if values.ndim != 2 or values.shape[1] != 3:
        raise ValueError(f"position must have shape [n_atoms, 3], got {values.shape}.")
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2, got {axis}.")
    if n_experts < 2:
        raise ValueError(f"n_experts must be at least 2 for a slab, got {n_experts}.")
    height = values[:, axis]
    inside = (height >= lower) & (height <= upper)
    if not inside.any():
        span = f"{height.min():.3f} to {height.max():.3f} Å" if height.size else "empty"
        raise ValueError(
            f"slab must select at least one atom: lower = {lower}, upper = {upper}, but positions along axis {axis} span {span}."
        )
    return fixed(np.where(inside, 0, 1), n_experts)
