"""Regions built from functions, and from other regions."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from moe_md.regions.protocol import Region, RegionNeighbors, check_region, check_two_columns, two_columns


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Custom(Region):
    """Gate and support from two functions."""

    parameters: Any  # a pytree, passed to both functions
    gate_fn: Callable = field(metadata={"static": True})
    support_fn: Callable | None = field(metadata={"static": True})

    is_dynamic: ClassVar[bool] = True

    def gate(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "..."]:
        """From `gate_fn`."""
        del neighbors
        return self.gate_fn(self.parameters, position, displacement_fn)

    def support(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        margin: float,
        neighbors: RegionNeighbors | None = None,
    ) -> Bool[Array, "..."]:
        """From `support_fn`; without one, all atoms on all experts."""
        if self.support_fn is None:
            shape = jax.eval_shape(lambda R: self.gate(R, displacement_fn), position).shape
            return jnp.ones(shape, bool)
        return self.support_fn(self.parameters, position, displacement_fn, margin)


@dataclass(frozen=True)
class _Combined(Region):
    """Methods of regions that are built from several regions."""

    regions: tuple[Region, ...]  # of two experts each

    @property
    def is_dynamic(self) -> bool:
        """Whether any of the regions is dynamic."""
        return any(region.is_dynamic for region in self.regions)

    @property
    def is_translation_invariant(self) -> bool:
        """Whether all of the regions are."""
        return all(getattr(region, "is_translation_invariant", False) for region in self.regions)

    def required_neighbors(self, margin: float) -> tuple:
        """The requests of each region."""
        return tuple(region.required_neighbors(margin) for region in self.regions)

    def neighbor_cutoff(self) -> float:
        """Å, the largest of the regions."""
        return max(region.neighbor_cutoff() for region in self.regions)

    def interaction_range(self) -> float:
        """Å, the largest of the regions."""
        return max(region.interaction_range() for region in self.regions)

    def restrict(self, index: Int[np.ndarray, " n"]) -> Self:
        """Each region of a subset of atoms."""
        return replace(self, regions=tuple(region.restrict(index) for region in self.regions))

    def check_size(self, n_atoms: int, n_experts: int) -> None:
        """Raise `ValueError` where a region does not fit so many atoms, or not two experts."""
        check_two_columns(n_experts)
        for region in self.regions:
            region.check_size(n_atoms, 2)

    def to_dict(self) -> dict:
        """The regions as plain values."""
        return {
            "kind": type(self).__name__.lower(),
            "regions": [region.to_dict() for region in self.regions],
        }


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nested(_Combined):
    """The inside of region n, less that of the regions before it, belongs to expert n.

    All other atoms belong to the last expert.
    """

    def gate(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "atoms experts"]:
        """One expert for each region, and one for the rest."""
        rest = jnp.ones(len(position), position.dtype)  # share that no region has taken yet
        columns = []
        for n, region in enumerate(self.regions):
            inside, outside = two_columns(region.gate(position, displacement_fn, _part(neighbors, n))).T
            columns.append(rest * inside)
            rest = rest * outside
        return jnp.stack([*columns, rest], axis=1)

    def support(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        margin: float,
        neighbors: RegionNeighbors | None = None,
    ) -> Bool[Array, "atoms experts"]:
        """One expert for each region, and one for the rest."""
        rest = jnp.ones(len(position), bool)
        columns = []
        for n, region in enumerate(self.regions):
            inside, outside = two_columns(
                region.support(position, displacement_fn, margin, _part(neighbors, n))
            ).T
            columns.append(rest & inside)
            rest = rest & outside
        return jnp.stack([*columns, rest], axis=1)

    def check_size(self, n_atoms: int, n_experts: int) -> None:
        """Raise `ValueError` where a region does not fit so many atoms, or regions so many experts."""
        found = len(self.regions) + 1
        if found != n_experts:
            raise ValueError(
                f"region must be of the {n_experts} experts of the mixture, got a nest of {found}."
            )
        for region in self.regions:
            region.check_size(n_atoms, 2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Union(_Combined):
    """Inside any of its regions; two experts."""

    def gate(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "atoms 2"]:
        """Outside is the product of the regions' outsides."""
        return _joined(
            [r.gate(position, displacement_fn, _part(neighbors, n)) for n, r in enumerate(self.regions)]
        )

    def gate_of(
        self,
        atoms: Int[Array | np.ndarray, " n"],
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "n 2"]:
        """The same product, from the gates of these atoms."""
        return _joined(
            [
                r.gate_of(atoms, position, displacement_fn, _part(neighbors, n))
                for n, r in enumerate(self.regions)
            ]
        )

    def support(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        margin: float,
        neighbors: RegionNeighbors | None = None,
    ) -> Bool[Array, "atoms 2"]:
        """Inside any support, and outside all."""
        supports = jnp.stack(
            [
                two_columns(r.support(position, displacement_fn, margin, _part(neighbors, n)))
                for n, r in enumerate(self.regions)
            ]
        )  # [n_regions, n_atoms, 2]
        return jnp.stack([jnp.any(supports[..., 0], axis=0), jnp.all(supports[..., 1], axis=0)], axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Complement(Region):
    """Inside and outside exchanged; two experts."""

    region: Region

    @property
    def is_dynamic(self) -> bool:
        """Whether the region inside is dynamic."""
        return self.region.is_dynamic

    @property
    def is_translation_invariant(self) -> bool:
        """Whether the region inside is."""
        return getattr(self.region, "is_translation_invariant", False)

    def gate(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "atoms 2"]:
        """The gates, exchanged."""
        return two_columns(self.region.gate(position, displacement_fn, neighbors))[:, ::-1]

    def gate_of(
        self,
        atoms: Int[Array | np.ndarray, " n"],
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "n 2"]:
        """The gates of these atoms, exchanged."""
        return two_columns(self.region.gate_of(atoms, position, displacement_fn, neighbors))[:, ::-1]

    def support(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        margin: float,
        neighbors: RegionNeighbors | None = None,
    ) -> Bool[Array, "atoms 2"]:
        """The supports, exchanged."""
        return two_columns(self.region.support(position, displacement_fn, margin, neighbors))[:, ::-1]

    def required_neighbors(self, margin: float) -> Any:
        """The requests of the region inside."""
        return self.region.required_neighbors(margin)

    def neighbor_cutoff(self) -> float:
        """Å, of the region inside."""
        return self.region.neighbor_cutoff()

    def interaction_range(self) -> float:
        """Å, of the region inside."""
        return self.region.interaction_range()

    def restrict(self, index: Int[np.ndarray, " n"]) -> "Complement":
        """The complement of the restricted region."""
        return replace(self, region=self.region.restrict(index))

    def check_size(self, n_atoms: int, n_experts: int) -> None:
        """Raise `ValueError` where the region does not fit so many atoms, or not two experts."""
        check_two_columns(n_experts)
        self.region.check_size(n_atoms, n_experts)

    def to_dict(self) -> dict:
        """The region inside as plain values."""
        return {"kind": "complement", "region": self.region.to_dict()}


def custom(gate_fn: Callable, support_fn: Callable | None = None, parameters: Any = None) -> Custom:
    """A region from functions.

    It works in mixtures and under ASE. LAMMPS and region files need more methods:
    derive a class from `Region` for these.

    Args:
        gate_fn: `(parameters, position, displacement_fn) -> [n_atoms, n_experts]`,
            rows of non-negative numbers that sum to one, with two continuous
            derivatives in the positions.
        support_fn: `(parameters, position, displacement_fn, margin) -> [n_atoms, n_experts]`
            bool. It contains every entry with a gate above zero, also after all
            atoms have moved by up to half the margin. The default, all atoms on
            all experts, is always right and never fast.
        parameters: a pytree; gradients with respect to it exist.

    Raises:
        ValueError: `gate_fn` or `support_fn` is not a function.
    """
    for name, fn in (("gate_fn", gate_fn), ("support_fn", support_fn)):
        if not callable(fn) and not (name == "support_fn" and fn is None):
            raise ValueError(f"{name} must be a function, got {fn!r}.")
    return Custom(parameters, gate_fn, support_fn)


def union(*regions: Region) -> Union:
    """The region inside any of some regions of two experts.

    Raises:
        ValueError: no region is given.
    """
    return Union(_checked(regions))


def complement(region: Region) -> Complement:
    """The region whose inside is the outside of a region of two experts.

    Raises:
        ValueError: `region` lacks the methods of a region.
    """
    check_region(region)
    return Complement(region)


def nested(*regions: Region) -> Nested:
    """A region of three or more experts, from regions of two.

    Args:
        *regions: the inside of the first belongs to expert 0, the inside of the
            second, less that of the first, to expert 1, and so on. All other
            atoms belong to the last expert.

    Raises:
        ValueError: no region is given.
    """
    return Nested(_checked(regions))


def _checked(regions: tuple[Region, ...]) -> tuple[Region, ...]:
    if not regions:
        raise ValueError("regions must be at least one, got none.")
    for region in regions:
        check_region(region)
    return regions


def _joined(gates: list[Array]) -> Array:
    """Gates of a union, from those of its regions."""
    outside = jnp.prod(jnp.stack([two_columns(gate)[:, 1] for gate in gates]), axis=0)
    return jnp.stack([1.0 - outside, outside], axis=1)


def _part(neighbors: RegionNeighbors | None, n: int) -> RegionNeighbors | None:
    """The lists that the n-th of several regions requested."""
    return None if neighbors is None else neighbors._replace(requested=neighbors.requested[n])
