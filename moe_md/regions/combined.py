"""Regions of functions, and of other regions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from moe_md.regions.protocol import Region, RegionNeighbors, check_region


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Custom:
    """What two functions say."""

    parameters: Any  # a pytree, handed to both functions
    gate_fn: Callable = field(metadata={"static": True})
    support_fn: Callable | None = field(metadata={"static": True})

    is_dynamic: ClassVar[bool] = True

    def gate(self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None) -> Array:
        """`[n_atoms, n_experts]`."""
        del near
        return self.gate_fn(self.parameters, position, displacement_fn)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: RegionNeighbors | None = None
    ) -> Array:
        """All atoms on all experts, where no function says better."""
        if self.support_fn is None:
            shape = jax.eval_shape(lambda R: self.gate(R, displacement_fn), position).shape
            return jnp.ones(shape, bool)
        return self.support_fn(self.parameters, position, displacement_fn, margin)

    def required_neighbors(self, margin: float) -> None:
        """None."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nested:
    """The first region's inside to expert 0, what is left of the second's to expert 1, and so on.

    The rest goes to the last.
    """

    regions: tuple[Region, ...]  # of two experts each

    @property
    def is_dynamic(self) -> bool:
        """Whether any of them does."""
        return any(region.is_dynamic for region in self.regions)

    def gate(self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None) -> Array:
        """`[n_atoms, len(regions) + 1]`."""
        left = jnp.ones(len(position), position.dtype)
        columns = []
        for n, region in enumerate(self.regions):
            inside, outside = _two(region.gate(position, displacement_fn, _part(near, n))).T
            columns.append(left * inside)
            left = left * outside
        return jnp.stack([*columns, left], axis=1)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: RegionNeighbors | None = None
    ) -> Array:
        """`[n_atoms, len(regions) + 1]` bool."""
        left = jnp.ones(len(position), bool)
        columns = []
        for n, region in enumerate(self.regions):
            inside, outside = _two(region.support(position, displacement_fn, margin, _part(near, n))).T
            columns.append(left & inside)
            left = left & outside
        return jnp.stack([*columns, left], axis=1)

    def required_neighbors(self, margin: float) -> tuple:
        """Those of each."""
        return tuple(region.required_neighbors(margin) for region in self.regions)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Union:
    """Inside any of its regions; two experts."""

    regions: tuple[Region, ...]

    @property
    def is_dynamic(self) -> bool:
        """Whether any of them does."""
        return any(region.is_dynamic for region in self.regions)

    def gate(self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None) -> Array:
        """Outside is the product of what is outside each."""
        gates = [
            _two(r.gate(position, displacement_fn, _part(near, n)))[:, 1] for n, r in enumerate(self.regions)
        ]
        outside = jnp.prod(jnp.stack(gates), axis=0)
        return jnp.stack([1.0 - outside, outside], axis=1)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: RegionNeighbors | None = None
    ) -> Array:
        """`[n_atoms, 2]` bool."""
        held = [
            _two(r.support(position, displacement_fn, margin, _part(near, n)))
            for n, r in enumerate(self.regions)
        ]
        held = jnp.stack(held)
        return jnp.stack([jnp.any(held[..., 0], axis=0), jnp.all(held[..., 1], axis=0)], axis=1)

    def required_neighbors(self, margin: float) -> tuple:
        """Those of each."""
        return tuple(region.required_neighbors(margin) for region in self.regions)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Complement:
    """Inside and outside exchanged; two experts."""

    region: Region

    @property
    def is_dynamic(self) -> bool:
        """Whether the region does."""
        return self.region.is_dynamic

    def gate(self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None) -> Array:
        """`[n_atoms, 2]`."""
        return _two(self.region.gate(position, displacement_fn, near))[:, ::-1]

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: RegionNeighbors | None = None
    ) -> Array:
        """`[n_atoms, 2]` bool."""
        return _two(self.region.support(position, displacement_fn, margin, near))[:, ::-1]

    def required_neighbors(self, margin: float) -> Any:
        """The region's."""
        return self.region.required_neighbors(margin)


def custom(gate_fn: Callable, support_fn: Callable | None = None, parameters: Any = None) -> Custom:
    """A region from functions.

    Args:
        gate_fn: `(parameters, position, displacement_fn) -> [n_atoms, n_experts]`,
            rows of non-negative numbers that sum to one, with two continuous
            derivatives in the positions.
        support_fn: `(parameters, position, displacement_fn, margin) -> [n_atoms, n_experts]`
            bool, a superset of gate > 0 wherever no atom moved by more than half
            the margin; default all atoms on all experts, which is always right
            and never fast.
        parameters: a pytree; gradients with respect to it exist.

    Raises:
        ValueError: a function is none.
    """
    for name, fn in (("gate_fn", gate_fn), ("support_fn", support_fn)):
        if not callable(fn) and not (name == "support_fn" and fn is None):
            raise ValueError(f"{name} must be a function, got {fn!r}.")
    return Custom(parameters, gate_fn, support_fn)


def union(*regions: Region) -> Union:
    """What is inside any of some regions of two experts.

    Raises:
        ValueError: there is none.
    """
    return Union(_checked(regions))


def complement(region: Region) -> Complement:
    """The inside of a region of two experts is the outside of this one.

    Raises:
        ValueError: it is no region.
    """
    check_region(region)
    return Complement(region)


def nested(*regions: Region) -> Nested:
    """A region of three and more experts, from regions of two.

    Args:
        *regions: the inside of the first goes to expert 0, what it leaves of the
            inside of the second to expert 1, and so on; the rest to the last.

    Raises:
        ValueError: there is none.
    """
    return Nested(_checked(regions))


def _checked(regions: tuple[Region, ...]) -> tuple[Region, ...]:
    if not regions:
        raise ValueError("regions must be at least one, got none.")
    for region in regions:
        check_region(region)
    return regions


def _part(near: RegionNeighbors | None, n: int) -> RegionNeighbors | None:
    """What the n-th of several regions asked for."""
    return None if near is None else near._replace(requested=near.requested[n])


def _two(columns: Array) -> Array:
    if columns.shape[1] != 2:
        raise ValueError(f"a region that others build on must be of two experts, got {columns.shape[1]}.")
    return columns
