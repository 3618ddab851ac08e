"""Regions: which expert owns which atom.

A region is a pytree with two methods,

    gate(position, displacement_fn)            -> [n_atoms, n_experts], rows sum to 1
    support(position, displacement_fn, margin) -> [n_atoms, n_experts] bool,
                                                  a superset of gate > 0 wherever no atom moved
                                                  by more than half the margin

Static: `fixed` is any assignment; `slab` and `sphere` make one from positions,
once, with a blend shell of frozen weights if asked for. Regions fixed in space
would break momentum conservation if atoms crossed them, so an atom keeps its
weight.

Moving: `around` follows atoms, `custom` does what a function says. Gates are
part of the energy and their gradient part of the force, so energy is conserved
while weights change; momentum is where gates depend on atoms relative to atoms.

`union`, `complement` and `nested` build on any of them.
"""

from dataclasses import dataclass, field
from typing import Any, Callable, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md.settings import check_value


class Region(Protocol):
    """What a mixture asks of a region."""

    moves: bool  # whether atoms may change hands

    def gate(self, position: Array, displacement_fn: Callable) -> Array: ...

    def support(self, position: Array, displacement_fn: Callable, margin: float) -> Array: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed:
    """Each atom belongs to one expert for good."""

    assignment: Array  # [n_atoms] int, the expert of each atom
    n_experts: int = field(metadata={"static": True})

    moves: ClassVar[bool] = False

    def gate(self, position: Array, displacement_fn: Callable) -> Array:
        """One for the owner, zero for the others: `[n_atoms, n_experts]`."""
        del displacement_fn
        return jax.nn.one_hot(self.assignment, self.n_experts, dtype=position.dtype)

    def support(self, position: Array, displacement_fn: Callable, margin: float) -> Array:
        """`[n_atoms, n_experts]` bool."""
        del position, displacement_fn, margin
        return self.assignment[:, None] == jnp.arange(self.n_experts)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weighted:
    """Each atom keeps its weights for good."""

    weights: Array  # [n_atoms, n_experts]

    moves: ClassVar[bool] = False

    def gate(self, position: Array, displacement_fn: Callable) -> Array:
        """The weights, in the dtype of the positions."""
        del displacement_fn
        return self.weights.astype(position.dtype)

    def support(self, position: Array, displacement_fn: Callable, margin: float) -> Array:
        """`[n_atoms, n_experts]` bool."""
        del position, displacement_fn, margin
        return self.weights > 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Around:
    """Spheres about atoms, which they follow, melted into one another; two experts."""

    seeds: Array  # [n_seeds] int
    r_core: Array  # Å
    r_blend: Array  # Å

    moves: ClassVar[bool] = True

    def gate(self, position: Array, displacement_fn: Callable) -> Array:
        """Inside is 1 - prod_s [1 - switch((r_s - r_core) / r_blend)]."""

        r_core, r_blend = (r.astype(position.dtype) for r in (self.r_core, self.r_blend))
        outside = 1.0 - switch((self._distances(position, displacement_fn) - r_core) / r_blend)
        outside = jnp.prod(outside, axis=0)
        return jnp.stack([1.0 - outside, outside], axis=1)

    def support(self, position: Array, displacement_fn: Callable, margin: float) -> Array:
        """`[n_atoms, 2]` bool."""
        nearest = jnp.min(self._distances(position, displacement_fn), axis=0)
        return jnp.stack([nearest < self.r_core + self.r_blend + margin, nearest > self.r_core - margin], axis=1)

    def _distances(self, position: Array, displacement_fn: Callable) -> Array:
        """`[n_seeds, n_atoms]` Å; every pair is looked at."""

        def of_seed(seed):
            middle = position.at[seed].get(mode="fill", fill_value=jnp.nan)  # never another atom
            displacement = jax.vmap(displacement_fn, (0, None))(position, middle)
            return _length(displacement)

        return jax.vmap(of_seed)(self.seeds)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Custom:
    """What two functions say."""

    parameters: Any  # a pytree, handed to both functions
    gate_fn: Callable = field(metadata={"static": True})
    support_fn: Callable | None = field(metadata={"static": True})

    moves: ClassVar[bool] = True

    def gate(self, position: Array, displacement_fn: Callable) -> Array:
        """`[n_atoms, n_experts]`."""
        return self.gate_fn(self.parameters, position, displacement_fn)

    def support(self, position: Array, displacement_fn: Callable, margin: float) -> Array:
        """All atoms on all experts, where no function says better."""
        if self.support_fn is None:
            shape = jax.eval_shape(lambda R: self.gate(R, displacement_fn), position).shape
            return jnp.ones(shape, bool)
        return self.support_fn(self.parameters, position, displacement_fn, margin)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nested:
    """The first region's inside to expert 0, what is left of the second's to expert 1, and so on; the rest to the last."""

    regions: tuple[Region, ...]  # of two experts each

    @property
    def moves(self) -> bool:
        """Whether any of them does."""
        return any(region.moves for region in self.regions)

    def gate(self, position: Array, displacement_fn: Callable) -> Array:
        """`[n_atoms, len(regions) + 1]`."""
        left = jnp.ones(len(position), position.dtype)
        columns = []
        for region in self.regions:
            inside, outside = _two(region.gate(position, displacement_fn)).T
            columns.append(left * inside)
            left = left * outside
        return jnp.stack([*columns, left], axis=1)

    def support(self, position: Array, displacement_fn: Callable, margin: float) -> Array:
        """`[n_atoms, len(regions) + 1]` bool."""
        left = jnp.ones(len(position), bool)
        columns = []
        for region in self.regions:
            inside, outside = _two(region.support(position, displacement_fn, margin)).T
            columns.append(left & inside)
            left = left & outside
        return jnp.stack([*columns, left], axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Union:
    """Inside any of its regions; two experts."""

    regions: tuple[Region, ...]

    @property
    def moves(self) -> bool:
        """Whether any of them does."""
        return any(region.moves for region in self.regions)

    def gate(self, position: Array, displacement_fn: Callable) -> Array:
        """Outside is the product of what is outside each."""
        outside = jnp.prod(jnp.stack([_two(r.gate(position, displacement_fn))[:, 1] for r in self.regions]), axis=0)
        return jnp.stack([1.0 - outside, outside], axis=1)

    def support(self, position: Array, displacement_fn: Callable, margin: float) -> Array:
        """`[n_atoms, 2]` bool."""
        held = jnp.stack([_two(r.support(position, displacement_fn, margin)) for r in self.regions])
        return jnp.stack([jnp.any(held[..., 0], axis=0), jnp.all(held[..., 1], axis=0)], axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Complement:
    """Inside and outside exchanged; two experts."""

    region: Region

    @property
    def moves(self) -> bool:
        """Whether the region does."""
        return self.region.moves

    def gate(self, position: Array, displacement_fn: Callable) -> Array:
        """`[n_atoms, 2]`."""
        return _two(self.region.gate(position, displacement_fn))[:, ::-1]

    def support(self, position: Array, displacement_fn: Callable, margin: float) -> Array:
        """`[n_atoms, 2]` bool."""
        return _two(self.region.support(position, displacement_fn, margin))[:, ::-1]


def switch(x: Array) -> Array:
    """One below 0, zero above 1, two continuous derivatives: 1 - 10 x^3 + 15 x^4 - 6 x^5."""
    x = jnp.clip(x, 0.0, 1.0)
    return 1.0 - x**3 * (10.0 - 15.0 * x + 6.0 * x**2)


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
    values = _array("assignment", assignment)
    check_value("n_experts", n_experts, int)
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
    values = _array("position", position)
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
            f"slab must select at least one atom: lower = {lower}, upper = {upper}, but positions along axis {axis} span {span}."
        )
    return fixed(np.where(inside, 0, 1), n_experts)


def sphere(position, center, radius: float, *, blend: float = 0.0, displacement_fn: Callable | None = None) -> Fixed | Weighted:
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
    values, middle = _array("position", position), _array("center", center)
    check_value("radius", radius, float)
    check_value("blend", blend, float)
    if displacement_fn is not None and not callable(displacement_fn):
        raise ValueError(f"displacement_fn must be a function, got {displacement_fn!r:.80}.")
    if values.ndim != 2 or values.shape[1] != 3 or middle.shape != (3,):
        raise ValueError(
            f"position and center must have shapes [n_atoms, 3] and [3], got {values.shape} and {middle.shape}."
        )
    if not radius > 0 or not blend >= 0:
        raise ValueError(f"radius must be positive and blend not negative (Å), got {radius} and {blend}.")
    displacement = values - middle
    if displacement_fn is not None:
        displacement = jax.vmap(displacement_fn, (0, None))(jnp.asarray(values), jnp.asarray(middle, values.dtype))
    distance = np.linalg.norm(displacement, axis=1)
    if not (distance <= radius).any():
        raise ValueError(
            f"sphere must select at least one atom: radius = {radius} Å, but the nearest atom is "
            f"{distance.min() if distance.size else np.inf:.3f} Å away."
        )
    if blend == 0:
        return fixed(np.where(distance <= radius, 0, 1))
    inside = np.asarray(switch((distance - radius) / blend))
    return Weighted(jnp.asarray(np.stack([inside, 1.0 - inside], axis=1)))


def around(seeds, r_core: float, r_blend: float) -> Around:
    """Spheres about some atoms go to expert 0, what is outside all of them to expert 1; they follow the atoms.

    Every atom is compared with every seed: meant for tens of seeds.

    Args:
        seeds: `[n_seeds]` int, atoms in the middle of a sphere.
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
    values = _array("seeds", seeds)
    check_value("r_core", r_core, float)
    check_value("r_blend", r_blend, float)
    if values.ndim != 1 or values.size == 0 or not np.issubdtype(values.dtype, np.integer) or values.min() < 0:
        raise ValueError(f"seeds must be a vector of atom indices, at least one, got {seeds!r}.")
    if not r_core >= 0 or not r_blend > 0:
        raise ValueError(f"r_core must not be negative and r_blend positive (Å), got {r_core} and {r_blend}.")
    return Around(jnp.asarray(values, jnp.int32), jnp.asarray(float(r_core)), jnp.asarray(float(r_blend)))


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
    if not regions:
        raise ValueError("regions must be at least one, got none.")
    for region in regions:
        check_region(region)
    return Union(regions)


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
    if not regions:
        raise ValueError("regions must be at least one, got none.")
    for region in regions:
        check_region(region)
    return Nested(regions)


def _array(name: str, value) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers, got {value!r:.80}.")
    return array


def check_region(region) -> None:
    """Raise `ValueError` where something is no region."""
    if not callable(getattr(region, "gate", None)) or not callable(getattr(region, "support", None)):
        raise ValueError(f"region must have a gate and a support, got {region!r:.80}.")


def _two(columns: Array) -> Array:
    if columns.shape[1] != 2:
        raise ValueError(f"a region that others build on must be of two experts, got {columns.shape[1]}.")
    return columns


def _length(displacement: Array) -> Array:
    """Norms whose gradient at zero is zero."""
    square = jnp.sum(displacement**2, axis=-1)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
