"""The contract of a region, and what all regions share.

A region says which expert owns which atom. Its gate g_ie >= 0, sum_e g_ie = 1, is
the share of atom i's energy that expert e supplies. A region is a pytree, so that
gradients with respect to its arrays exist.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Real, Shaped


class NeighborRequest(NamedTuple):
    """A request for the atoms around some centres."""

    centers: Int[Array, " n"]  # atoms
    cutoff: Float[Array, ""]  # Å, all atoms within it are wanted


class SupportRequest(NamedTuple):
    """A request for the atoms around those that a region of two experts may give to expert 0."""

    region: Any  # a `Region`, whose support says which atoms these are
    cutoff: Float[Array, ""]  # Å, all atoms within it are wanted
    requests: Any  # of that region, from its `required_neighbors`


class SupportNeighbors(NamedTuple):
    """The answer to a `SupportRequest`."""

    # A `NeighborList`. Its centres hold all atoms with a gate above zero; the number of atoms where padded.
    list: Any
    support: Bool[Array, "atoms 2"]  # of the region, at the positions of the last update
    requested: Any  # the answers to the region's own requests


class RegionNeighbors(NamedTuple):
    """Neighbour lists that gates are computed from."""

    species: Int[Array, " atoms"]
    idx: Int[Array, "atoms K"]  # neighbours of every atom; the number of atoms where padded
    cutoff: float  # Å, `idx` holds all neighbours within it
    # in place of each request of `required_neighbors`: a `NeighborList` for a `NeighborRequest`, and
    # `SupportNeighbors` for a `SupportRequest`
    requested: Any


class Region(Protocol):
    """Which expert owns which atom.

    A class of your own derives from this one and defines `gate` and `support`.
    The other methods have defaults. Those that LAMMPS and region files need raise
    a `ValueError` unless the class defines them. Register the class as a pytree
    (`jax.tree_util.register_dataclass`).
    """

    def __getstate__(self) -> dict:
        """For pickle: arrays of numpy, as jax would cast float64 where it reads them."""
        return {name: jax.tree.map(_on_host, value) for name, value in vars(self).items()}

    @property
    def is_dynamic(self) -> bool:
        """Whether gates depend on the positions, so that atoms may switch expert."""
        return True

    @property
    def smooth(self) -> bool:
        """Whether gates are differentiable; if not, the energy jumps as atoms switch expert."""
        return True

    @property
    def is_translation_invariant(self) -> bool:
        """Whether gates depend on atoms relative to atoms only.

        Positions are then taken relative to the atoms before they are cast to
        float32. Otherwise the gate gets the coordinates of the user.
        """
        return False

    def gate(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "atoms experts"]:
        """Share of each atom's energy that each expert supplies.

        Args:
            position: in the units of `displacement_fn`.
            displacement_fn: from `jax_md.space`.
            neighbors: lists for this region; None where there are none.

        Returns:
            Rows sum to 1, dtype of `position`. They have two continuous derivatives
            in the positions, or the energy is not conserved.
        """
        ...

    def gate_of(
        self,
        atoms: Int[Array | np.ndarray, " n"],
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "n experts"]:
        """Rows of `gate` of some atoms, at less cost where a class can.

        `atoms` may be padded with the number of atoms; these rows are of no meaning.
        """
        gate = self.gate(position, displacement_fn, neighbors)
        return gate[jnp.minimum(atoms, gate.shape[0] - 1)]

    def support(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        margin: float,
        neighbors: RegionNeighbors | None = None,
    ) -> Bool[Array, "atoms experts"]:
        """Atoms that each expert computes.

        It contains every entry with a gate above zero, also after all atoms have
        moved by up to half of `margin`, Å.
        """
        ...

    def required_neighbors(self, margin: float) -> Any:
        """A pytree of `NeighborRequest` and `SupportRequest`, or None; `margin` is the lists' skin, Å."""
        return None

    def neighbor_cutoff(self) -> float:
        """Å, cutoff of the neighbours of every atom that gates are computed from; 0 for none."""
        return 0.0

    def interaction_range(self) -> float:
        """Å, largest distance over which an atom influences the gate of another one.

        Raises:
            ValueError: it is not known.
        """
        raise _missing_method(self, "interaction_range")

    def restrict(self, index: Int[np.ndarray, " n"]) -> "Region":
        """The region of a subset of atoms.

        Args:
            index: for each atom of the subset its number in the full
                system, or -1 for a padded entry. An atom may occur several times
                (images). The last entry is padded.

        Raises:
            ValueError: the region has no such method.
        """
        raise _missing_method(self, "restrict")

    def check_size(self, n_atoms: int, n_experts: int) -> None:
        """Raise `ValueError` where the region does not fit so many atoms and experts."""
        return

    def with_centers(self, centers: Int[Array | np.ndarray, " n"]) -> "Region":
        """The region with other centres in its one `NeighborRequest`.

        Args:
            centers: the same atoms, as they are numbered in another array.

        Raises:
            ValueError: the region is not defined by the positions of some centres alone.
        """
        raise ValueError(
            f"region must be static, or around seeds, on several devices, got a {type(self).__name__}."
        )

    def to_dict(self) -> dict:
        """The region as plain values for a JSON file; `serialize.region_from_dict` reads them.

        Raises:
            ValueError: the region cannot be written.
        """
        raise _missing_method(self, "to_dict")


def check_region(region, *more: str) -> None:
    """Raise `ValueError` unless something has the methods of a region.

    Args:
        region: to be checked.
        *more: methods that are needed besides `gate`, `support` and `required_neighbors`.
    """
    names = ("gate", "support", "required_neighbors", *more)
    if not all(callable(getattr(region, name, None)) for name in names):
        raise ValueError(
            f"region must have the methods {', '.join(names[:-1])} and {names[-1]}, got {region!r:.80}. "
            "Derive a class of your own from mm.regions.Region."
        )


def check_two_columns(n_experts: int) -> None:
    """Raise `ValueError` where a region of two experts is used for another number of them."""
    if n_experts != 2:
        raise ValueError(
            f"region must be of the {n_experts} experts of the mixture, got one of 2: use regions.nested."
        )


def check_missing(missing) -> None:
    """Raise `ValueError` unless `missing` says what happens where a region selects no atom."""
    if missing not in ("error", "cheap"):
        raise ValueError(f"missing must be 'error' or 'cheap', got {missing!r:.80}.")


def two_columns(columns: Shaped[Array, "atoms experts"]) -> Shaped[Array, "atoms 2"]:
    """Gates or support of a region that another one is built on; `ValueError` unless of two experts."""
    if columns.shape[1] != 2:
        raise ValueError(f"a region that others build on must be of two experts, got {columns.shape[1]}.")
    return columns


def map_requests(fn: Callable, requests, *others):
    """`fn` of every request of a pytree, and of what `others` hold in its place.

    Requests inside a `SupportRequest` are not visited.
    """
    return jax.tree.map(fn, requests, *others, is_leaf=_is_request)


def flat_requests(requests) -> list[NeighborRequest | SupportRequest]:
    """Every request of a pytree, those inside a `SupportRequest` before it."""
    found = []
    for request in jax.tree.leaves(requests, is_leaf=_is_request):
        found += [*flat_requests(getattr(request, "requests", None)), request]
    return found


def switch(x: Real[ArrayLike, "*n"]) -> Float[Array, "*n"]:
    """1 - 10 x^3 + 15 x^4 - 6 x^5: one below 0, zero above 1, two continuous derivatives."""
    x = jnp.clip(x, 0.0, 1.0)
    return 1.0 - x**3 * (10.0 - 15.0 * x + 6.0 * x**2)


def length(displacement: Float[Array | np.ndarray, "*n d"]) -> Float[Array, "*n"]:
    """Norms along the last axis; the gradient at zero is zero."""
    square = jnp.sum(displacement**2, axis=-1)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def finite_array(name: str, value: Shaped[ArrayLike, "..."] | Sequence) -> Shaped[np.ndarray, "..."]:
    """An argument as an array; `ValueError` unless it holds finite numbers."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers, got {value!r:.80}.")
    return array


def _is_request(x) -> bool:
    return isinstance(x, (NeighborRequest, SupportRequest))


def _on_host(value):
    return np.asarray(value) if isinstance(value, Array) else value


def _missing_method(region, name: str) -> ValueError:
    purpose = "be written to a file" if name == "to_dict" else "run in LAMMPS"
    smooth = "" if name == "to_dict" else "committee, descriptor, "
    return ValueError(
        f"region must be one of fixed, slab, sphere, around, coordination, {smooth}grown, or a union, "
        f"complement or nest of these, to {purpose}, got {type(region).__name__}. "
        f"A class of your own must define {name}."
    )
