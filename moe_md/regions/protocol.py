"""What a mixture asks of a region, and what regions share."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array


class NeighborRequest(NamedTuple):
    """A wish: all atoms that are so near to these."""

    centers: Array  # [n] int
    reach: Array  # Å


class RegionNeighbors(NamedTuple):
    """What the lists of a mixture know, for gates."""

    species: Array  # [n_atoms] int
    idx: Array  # [n_atoms, K] int, neighbours of every atom, n_atoms where none
    cutoff: float  # Å, up to which `idx` is whole
    requested: Any  # a `NeighborList` for each `NeighborRequest` that the region wants, as it wants them


class Region(Protocol):
    """What a mixture asks of a region."""

    @property
    def is_dynamic(self) -> bool:
        """Whether atoms may change hands."""
        ...

    def gate(
        self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None
    ) -> Array: ...

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: RegionNeighbors | None = None
    ) -> Array: ...

    def required_neighbors(self, margin: float) -> Any: ...  # a pytree of `NeighborRequest`, or None


def check_region(region) -> None:
    """Raise `ValueError` where something is no region."""
    if not all(callable(getattr(region, name, None)) for name in ("gate", "support", "required_neighbors")):
        raise ValueError(
            f"region must have the methods gate, support and required_neighbors, got {region!r:.80}."
        )


def switch(x: Array) -> Array:
    """One below 0, zero above 1, two continuous derivatives: 1 - 10 x^3 + 15 x^4 - 6 x^5."""
    x = jnp.clip(x, 0.0, 1.0)
    return 1.0 - x**3 * (10.0 - 15.0 * x + 6.0 * x**2)


def length(displacement: Array | np.ndarray) -> Array:
    """Norms whose gradient at zero is zero."""
    square = jnp.sum(displacement**2, axis=-1)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def finite_array(name: str, value) -> np.ndarray:
    """An argument as an array, or `ValueError`."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers, got {value!r:.80}.")
    return array
