"""Static regions: the gate of each atom is constant."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Integer, Real

from moe_md.checks import check_value
from moe_md.regions.protocol import Region, RegionNeighbors, check_missing, finite_array, switch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed(Region):
    """Each atom belongs to one expert, always."""

    assignment: Array  # [n_atoms] int, the expert of each atom
    n_experts: int = field(metadata={"static": True})

    is_dynamic: ClassVar[bool] = False
    is_translation_invariant: ClassVar[bool] = True

    def gate(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "atoms experts"]:
        """One for the owner, zero for the others."""
        del displacement_fn, neighbors
        return jax.nn.one_hot(self.assignment, self.n_experts, dtype=position.dtype)

    def support(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        margin: float,
        neighbors: RegionNeighbors | None = None,
    ) -> Bool[Array, "atoms experts"]:
        """The atoms with a gate above zero."""
        del position, displacement_fn, margin, neighbors
        return self.assignment[:, None] == jnp.arange(self.n_experts)[None]

    def interaction_range(self) -> float:
        """Å, zero: gates are constant."""
        return 0.0

    def restrict(self, index: Int[np.ndarray, " n"]) -> "Fixed":
        """The experts of a subset of atoms; a padded entry has that of the last atom."""
        return replace(self, assignment=np.asarray(self.assignment)[index])

    def check_size(self, n_atoms: int, n_experts: int) -> None:
        """Raise `ValueError` where the region does not fit so many atoms and experts."""
        _check_shape((len(self.assignment), self.n_experts), n_atoms, n_experts)

    def to_dict(self) -> dict:
        """The assignment and the number of experts."""
        return {
            "kind": "fixed",
            "assignment": np.asarray(self.assignment).tolist(),
            "n_experts": self.n_experts,
        }


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FixedGates(Region):
    """Experts share atoms; the gates are constant."""

    gates: Array  # [n_atoms, n_experts], rows sum to 1

    is_dynamic: ClassVar[bool] = False
    is_translation_invariant: ClassVar[bool] = True

    def gate(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "atoms experts"]:
        """The stored gates, in the dtype of the positions."""
        del displacement_fn, neighbors
        return jnp.asarray(self.gates, position.dtype)

    def support(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        margin: float,
        neighbors: RegionNeighbors | None = None,
    ) -> Bool[Array, "atoms experts"]:
        """The atoms with a gate above zero."""
        del position, displacement_fn, margin, neighbors
        return jnp.asarray(self.gates > 0)

    def interaction_range(self) -> float:
        """Å, zero: gates are constant."""
        return 0.0

    def restrict(self, index: Int[np.ndarray, " n"]) -> "FixedGates":
        """The gates of a subset of atoms; a padded entry has those of the last atom."""
        return replace(self, gates=np.asarray(self.gates)[index])

    def check_size(self, n_atoms: int, n_experts: int) -> None:
        """Raise `ValueError` where the region does not fit so many atoms and experts."""
        _check_shape(self.gates.shape, n_atoms, n_experts)

    def to_dict(self) -> dict:
        """The gates, under the key that region files have had from the start."""
        return {"kind": "weighted", "weights": np.asarray(self.gates, float).tolist()}


def fixed(assignment: Integer[ArrayLike, " atoms"] | Sequence, n_experts: int = 2) -> Fixed:
    """A static region from the expert of each atom.

    Args:
        assignment: 0 for the first (most expensive) expert.
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
    position: Real[ArrayLike, "atoms 3"] | Sequence,
    *,
    lower: float = -np.inf,
    upper: float = np.inf,
    axis: int = 2,
    n_experts: int = 2,
    missing: str = "error",
) -> Fixed:
    """A static region: atoms now between two planes belong to expert 0, the others to expert 1.

    Args:
        position: Å, current positions.
        lower, upper: Å, positions of the planes; an atom on a plane is inside.
        axis: 0, 1 or 2, direction of the planes' normal.
        n_experts: number of experts of the mixture, at least 2.
        missing: what happens where no atom is inside: "error", or "cheap", expert 1
            gets all atoms.

    Returns:
        A `fixed` region.

    Raises:
        ValueError: a wrong shape or axis, fewer than two experts, or no atom is inside.

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
    check_missing(missing)
    if n_experts < 2:
        raise ValueError(f"n_experts must be at least 2 for a slab, got {n_experts}.")
    height = values[:, axis]
    inside = (height >= lower) & (height <= upper)
    if not inside.any() and missing == "error":
        span = f"{height.min():.3f} to {height.max():.3f} Å" if height.size else "empty"
        raise ValueError(
            f"slab must select at least one atom: lower = {lower}, upper = {upper}, "
            f'but positions along axis {axis} span {span}. With missing="cheap" there may be none.'
        )
    return fixed(np.where(inside, 0, 1), n_experts)


def sphere(
    position: Real[ArrayLike, "atoms 3"] | Sequence,
    center: Real[ArrayLike, "3"] | Sequence,
    radius: float,
    *,
    blend: float = 0.0,
    displacement_fn: Callable | None = None,
    missing: str = "error",
) -> Fixed | FixedGates:
    """A static region: atoms now in a sphere belong to expert 0, the others to expert 1.

    Args:
        position: Å, current positions.
        center: Å.
        radius: Å, positive.
        blend: Å, thickness of the shell outside `radius` in which both experts
            share the atoms.
        displacement_fn: from `jax_md.space`, default open space.
        missing: what happens where no atom is inside: "error", or "cheap", atoms
            beyond the radius are as they are otherwise.

    Returns:
        A region of one expert for each atom, or of constant gates where `blend` is positive.

    Raises:
        ValueError: a wrong shape or length, or no atom is inside.

    >>> import numpy as np
    >>> sphere(np.diag([1.0, 2.0, 3.0]), [0.0, 0.0, 0.0], 2.5).assignment.tolist()
    [0, 0, 1]
    """
    values, center = finite_array("position", position), finite_array("center", center)
    check_value("radius", radius, float)
    check_value("blend", blend, float)
    check_missing(missing)
    if displacement_fn is not None and not callable(displacement_fn):
        raise ValueError(f"displacement_fn must be a function, got {displacement_fn!r:.80}.")
    if values.ndim != 2 or values.shape[1] != 3 or center.shape != (3,):
        raise ValueError(
            "position and center must have shapes [n_atoms, 3] and [3], "
            f"got {values.shape} and {center.shape}."
        )
    if not radius > 0 or not blend >= 0:
        raise ValueError(f"radius must be positive and blend not negative (Å), got {radius} and {blend}.")
    displacement = values - center
    if displacement_fn is not None:
        displacement = jax.vmap(displacement_fn, (0, None))(
            jnp.asarray(values), jnp.asarray(center, values.dtype)
        )
    distance = np.linalg.norm(displacement, axis=1)
    if not (distance <= radius).any() and missing == "error":
        raise ValueError(
            f"sphere must select at least one atom: radius = {radius} Å, but the nearest atom is "
            f"{distance.min() if distance.size else np.inf:.3f} Å from center = {center.tolist()}. "
            'With missing="cheap" there may be none.'
        )
    if blend == 0:
        return fixed(np.where(distance <= radius, 0, 1))
    inside = np.asarray(switch((distance - radius) / blend))
    return FixedGates(jnp.asarray(np.stack([inside, 1.0 - inside], axis=1)))


def _check_shape(shape: tuple[int, ...], n_atoms: int, n_experts: int) -> None:
    if shape != (n_atoms, n_experts):
        raise ValueError(
            f"region must assign each of the {n_atoms} atoms to one of {n_experts} experts, "
            f"got gates of shape [n_atoms, n_experts] = {list(shape)}."
        )
