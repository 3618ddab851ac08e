"""Regions: which expert owns which atom.

A region is a pytree with three methods,

    gate(position, displacement_fn, near)            -> [n_atoms, n_experts], rows sum to 1
    support(position, displacement_fn, margin, near) -> [n_atoms, n_experts] bool,
                                                        a superset of gate > 0 wherever no atom moved
                                                        by more than half the margin
    spheres(margin)                                  -> which atoms' surroundings it wants in `near`

`near` is what a mixture's lists know (`Surroundings`); without it, `None`, a
region that follows atoms looks at every pair.

Static: `fixed` is any assignment; `slab` and `sphere` make one from positions,
once, with a blend shell of frozen weights if asked for. Regions fixed in space
would break momentum conservation if atoms crossed them, so an atom keeps its
weight.

Moving: `around` follows atoms, `descriptor` a number that each atom's
neighbours say (`coordination`, `committee`, a learned one), `custom` does what
a function says. Gates are part of the energy and their gradient part of the
force, so energy is conserved while weights change; momentum is where gates
depend on atoms relative to atoms.

`union`, `complement` and `nested` build on any of them.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Callable, ClassVar, NamedTuple, Protocol, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md.neighborhood import Neighborhood, map_rows, rows_from_neighbor_list
from moe_md.settings import check_value

CHUNK = 256  # rows of a descriptor at a time


class Sphere(NamedTuple):
    """A wish: all atoms that are so near to these."""

    centers: Array  # [n] int
    reach: Array  # Å


class Surroundings(NamedTuple):
    """What the lists of a mixture know, for gates."""

    species: Array  # [n_atoms] int
    idx: Array  # [n_atoms, K] int, neighbours of every atom, n_atoms where none
    cutoff: float  # Å, up to which `idx` is whole
    spheres: Any  # a `NeighborList` for each `Sphere` that the region wants, as it wants them


class Region(Protocol):
    """What a mixture asks of a region."""

    moves: bool  # whether atoms may change hands

    def gate(self, position: Array, displacement_fn: Callable, near: Surroundings | None = None) -> Array: ...

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: Surroundings | None = None
    ) -> Array: ...

    def spheres(self, margin: float) -> Any: ...  # a pytree of `Sphere`, or None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed:
    """Each atom belongs to one expert for good."""

    assignment: Array  # [n_atoms] int, the expert of each atom
    n_experts: int = field(metadata={"static": True})

    moves: ClassVar[bool] = False

    def gate(self, position: Array, displacement_fn: Callable, near: Surroundings | None = None) -> Array:
        """One for the owner, zero for the others: `[n_atoms, n_experts]`."""
        del displacement_fn, near
        return jax.nn.one_hot(self.assignment, self.n_experts, dtype=position.dtype)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: Surroundings | None = None
    ) -> Array:
        """`[n_atoms, n_experts]` bool."""
        del position, displacement_fn, margin, near
        return self.assignment[:, None] == jnp.arange(self.n_experts)

    def spheres(self, margin: float) -> None:
        """None."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weighted:
    """Each atom keeps its weights for good."""

    weights: Array  # [n_atoms, n_experts]

    moves: ClassVar[bool] = False

    def gate(self, position: Array, displacement_fn: Callable, near: Surroundings | None = None) -> Array:
        """The weights, in the dtype of the positions."""
        del displacement_fn, near
        return self.weights.astype(position.dtype)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: Surroundings | None = None
    ) -> Array:
        """`[n_atoms, n_experts]` bool."""
        del position, displacement_fn, margin, near
        return self.weights > 0

    def spheres(self, margin: float) -> None:
        """None."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Around:
    """Spheres about atoms, which they follow, melted into one another; two experts."""

    seeds: Array  # [n_seeds] int
    r_core: Array  # Å
    r_blend: Array  # Å

    moves: ClassVar[bool] = True

    def gate(self, position: Array, displacement_fn: Callable, near: Surroundings | None = None) -> Array:
        """Inside is 1 - prod_s [1 - switch((r_s - r_core) / r_blend)]."""
        atoms, real, distance = self._pairs(position, displacement_fn, near)
        r_core, r_blend = (r.astype(position.dtype) for r in (self.r_core, self.r_blend))
        out = jnp.where(real, 1.0 - switch((distance - r_core) / r_blend), 1.0)
        # The product over the seeds of an atom, as sums: of logarithms, and of zeros apart.
        zero = out < jnp.finfo(position.dtype).tiny * 1e6
        logs = jnp.log(jnp.where(zero, 1.0, out))
        sums = jnp.zeros((position.shape[0], 2), position.dtype)
        sums = sums.at[atoms].add(jnp.stack([logs, zero.astype(position.dtype)], axis=-1), mode="drop")
        outside = jnp.where(sums[:, 1] > 0, 0.0, jnp.exp(sums[:, 0]))
        outside = outside * jnp.where(self._unknown(position, near), jnp.nan, 1.0).astype(position.dtype)
        return jnp.stack([1.0 - outside, outside], axis=1)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: Surroundings | None = None
    ) -> Array:
        """`[n_atoms, 2]` bool."""
        atoms, real, distance = self._pairs(position, displacement_fn, near)

        def within(reach):
            return jnp.zeros(position.shape[0], bool).at[atoms].max(real & (distance <= reach), mode="drop")

        return jnp.stack([within(self.r_core + self.r_blend + margin), ~within(self.r_core - margin)], axis=1)

    def spheres(self, margin: float) -> Sphere:
        """Around the seeds, as far as the gate may reach after a move."""
        return Sphere(self.seeds, self.r_core + self.r_blend + margin)

    def _pairs(self, position: Array, displacement_fn: Callable, near: Surroundings | None) -> tuple[Array, Array, Array]:
        """`[n_seeds, K]`: atoms near each seed, itself first; whether there is one; its distance in Å."""
        n_atoms = position.shape[0]
        if near is None:
            others = jnp.broadcast_to(jnp.arange(n_atoms, dtype=jnp.int32), (self.seeds.shape[0], n_atoms))
            others = jnp.where(others == self.seeds[:, None], n_atoms, others)
        else:
            others = near.spheres.idx[0]
        atoms = jnp.concatenate([self.seeds[:, None], others], axis=1)
        safe = jnp.minimum(atoms, n_atoms - 1)
        middle = position[jnp.minimum(self.seeds, n_atoms - 1)]
        displacement = jax.vmap(jax.vmap(displacement_fn, (0, None)))(position[safe], middle)
        return atoms, atoms < n_atoms, _length(displacement)

    def _unknown(self, position: Array, near: Surroundings | None) -> Array:
        """A seed that is no atom, or a list that was made for other seeds or shorter radii: no energy is better than a wrong one."""
        unknown = jnp.any(self.seeds >= position.shape[0])
        if near is None:
            return unknown
        known = near.spheres
        too_far = self.r_core + self.r_blend > known.cutoffs[0]
        return unknown | too_far | jnp.any(known.centers != self.seeds)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Descriptor:
    """Atoms of which a number, made of their neighbours, is low go to expert 0; two experts."""

    parameters: Any  # a pytree, handed to the function
    low: Array  # up to which an atom is all expert 0's
    high: Array  # from which it is all expert 1's
    slack: Array  # by which the number may change where atoms move by half a skin
    scalar_fn: Callable = field(metadata={"static": True})
    cutoff: float = field(metadata={"static": True})  # Å, of the function

    moves: ClassVar[bool] = True

    def gate(self, position: Array, displacement_fn: Callable, near: Surroundings | None = None) -> Array:
        """Inside is switch((number - low) / (high - low))."""
        low, high = (x.astype(position.dtype) for x in (self.low, self.high))
        inside = switch((self.numbers(position, displacement_fn, near) - low) / (high - low))
        return jnp.stack([inside, 1.0 - inside], axis=1)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: Surroundings | None = None
    ) -> Array:
        """`[n_atoms, 2]` bool; as good as `slack`."""
        number = self.numbers(position, displacement_fn, near)
        return jnp.stack([number < self.high + self.slack, number > self.low - self.slack], axis=1)

    def spheres(self, margin: float) -> None:
        """None."""

    def numbers(self, position: Array, displacement_fn: Callable, near: Surroundings | None = None) -> Array:
        """`[n_atoms]`, what the function says of each atom.

        Raises:
            ValueError: there is no list of neighbours, or a shorter one.
        """
        if near is None or near.cutoff < self.cutoff:
            known = None if near is None else near.cutoff
            raise ValueError(f"near must hold neighbours within {self.cutoff} Å, the region's cutoff, got {known}: an expert must see as far.")
        everyone = jnp.arange(position.shape[0], dtype=jnp.int32)
        rows = rows_from_neighbor_list(position, near.species, near.idx, displacement_fn, everyone)
        return map_rows(lambda chunk: self.scalar_fn(self.parameters, chunk), rows, CHUNK)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Custom:
    """What two functions say."""

    parameters: Any  # a pytree, handed to both functions
    gate_fn: Callable = field(metadata={"static": True})
    support_fn: Callable | None = field(metadata={"static": True})

    moves: ClassVar[bool] = True

    def gate(self, position: Array, displacement_fn: Callable, near: Surroundings | None = None) -> Array:
        """`[n_atoms, n_experts]`."""
        del near
        return self.gate_fn(self.parameters, position, displacement_fn)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: Surroundings | None = None
    ) -> Array:
        """All atoms on all experts, where no function says better."""
        if self.support_fn is None:
            shape = jax.eval_shape(lambda R: self.gate(R, displacement_fn), position).shape
            return jnp.ones(shape, bool)
        return self.support_fn(self.parameters, position, displacement_fn, margin)

    def spheres(self, margin: float) -> None:
        """None."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nested:
    """The first region's inside to expert 0, what is left of the second's to expert 1, and so on; the rest to the last."""

    regions: tuple[Region, ...]  # of two experts each

    @property
    def moves(self) -> bool:
        """Whether any of them does."""
        return any(region.moves for region in self.regions)

    def gate(self, position: Array, displacement_fn: Callable, near: Surroundings | None = None) -> Array:
        """`[n_atoms, len(regions) + 1]`."""
        left = jnp.ones(len(position), position.dtype)
        columns = []
        for n, region in enumerate(self.regions):
            inside, outside = _two(region.gate(position, displacement_fn, _part(near, n))).T
            columns.append(left * inside)
            left = left * outside
        return jnp.stack([*columns, left], axis=1)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: Surroundings | None = None
    ) -> Array:
        """`[n_atoms, len(regions) + 1]` bool."""
        left = jnp.ones(len(position), bool)
        columns = []
        for n, region in enumerate(self.regions):
            inside, outside = _two(region.support(position, displacement_fn, margin, _part(near, n))).T
            columns.append(left & inside)
            left = left & outside
        return jnp.stack([*columns, left], axis=1)

    def spheres(self, margin: float) -> tuple:
        """Those of each."""
        return tuple(region.spheres(margin) for region in self.regions)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Union:
    """Inside any of its regions; two experts."""

    regions: tuple[Region, ...]

    @property
    def moves(self) -> bool:
        """Whether any of them does."""
        return any(region.moves for region in self.regions)

    def gate(self, position: Array, displacement_fn: Callable, near: Surroundings | None = None) -> Array:
        """Outside is the product of what is outside each."""
        gates = [_two(r.gate(position, displacement_fn, _part(near, n)))[:, 1] for n, r in enumerate(self.regions)]
        outside = jnp.prod(jnp.stack(gates), axis=0)
        return jnp.stack([1.0 - outside, outside], axis=1)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: Surroundings | None = None
    ) -> Array:
        """`[n_atoms, 2]` bool."""
        held = [_two(r.support(position, displacement_fn, margin, _part(near, n))) for n, r in enumerate(self.regions)]
        held = jnp.stack(held)
        return jnp.stack([jnp.any(held[..., 0], axis=0), jnp.all(held[..., 1], axis=0)], axis=1)

    def spheres(self, margin: float) -> tuple:
        """Those of each."""
        return tuple(region.spheres(margin) for region in self.regions)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Complement:
    """Inside and outside exchanged; two experts."""

    region: Region

    @property
    def moves(self) -> bool:
        """Whether the region does."""
        return self.region.moves

    def gate(self, position: Array, displacement_fn: Callable, near: Surroundings | None = None) -> Array:
        """`[n_atoms, 2]`."""
        return _two(self.region.gate(position, displacement_fn, near))[:, ::-1]

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: Surroundings | None = None
    ) -> Array:
        """`[n_atoms, 2]` bool."""
        return _two(self.region.support(position, displacement_fn, margin, near))[:, ::-1]

    def spheres(self, margin: float) -> Any:
        """The region's."""
        return self.region.spheres(margin)


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
            f"{distance.min() if distance.size else np.inf:.3f} Å from center = {middle.tolist()}."
        )
    if blend == 0:
        return fixed(np.where(distance <= radius, 0, 1))
    inside = np.asarray(switch((distance - radius) / blend))
    return Weighted(jnp.asarray(np.stack([inside, 1.0 - inside], axis=1)))


def around(seeds, r_core: float, r_blend: float) -> Around:
    """Spheres about some atoms go to expert 0, what is outside all of them to expert 1; they follow the atoms.

    In a mixture, each seed is compared with the atoms near it, so that the cost
    grows with the seeds and not with the atoms. Nearest images count: where a
    sphere is wider than half the box, atoms midway between two images of a seed
    feel a kink.

    Args:
        seeds: `[n_seeds]` int, atoms in the middle of a sphere, each once.
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


def descriptor(scalar_fn: Callable, low: float, high: float, cutoff: float, *, parameters: Any = None, slack: float | None = None) -> Descriptor:
    """Atoms whose neighbours make a low number go to expert 0, those of a high one to expert 1.

    Args:
        scalar_fn: `(parameters, Neighborhood) -> [n]`, two continuous
            derivatives in the displacements and zero weight to neighbours from
            the cutoff on, as an `Expert.atom_energies`, which serves: a learned
            number.
        low, high: up to `low` an atom is all expert 0's, from `high` on all
            expert 1's; exchange them with `complement`.
        cutoff: Å, of the function; no more than the experts' longest.
        parameters: a pytree; gradients with respect to it, `low` and `high` exist.
        slack: by how much the number may change where atoms move by half the
            skin, between two updates of the lists; default a fifth of
            `high - low`. `simulate.run` updates before each force, and asks no
            slack. Too little gives NaN, never a wrong energy.

    Returns:
        A region.

    Raises:
        ValueError: no function, or a number is out of range.
    """
    if not callable(scalar_fn):
        raise ValueError(f"scalar_fn must be a function, got {scalar_fn!r:.80}.")
    for name, value in (("low", low), ("high", high), ("cutoff", cutoff)):
        check_value(name, value, float)
    if not high > low or not cutoff > 0:
        raise ValueError(f"high must exceed low and cutoff be positive (Å), got {high}, {low} and {cutoff}.")
    slack = 0.2 * (high - low) if slack is None else slack
    check_value("slack", slack, float)
    if not slack >= 0:
        raise ValueError(f"slack must not be negative, got {slack}.")
    low, high, slack = (jnp.asarray(float(x)) for x in (low, high, slack))
    return Descriptor(parameters, low, high, slack, scalar_fn, float(cutoff))


def coordination(low: float, high: float, *, r_full: float, r_none: float, slack: float | None = None) -> Descriptor:
    """Atoms with few neighbours go to expert 0: surfaces, steps, adatoms, rims of vacancies.

    The number of neighbours is sum_j switch((r_ij - r_full) / (r_none - r_full)).

    Args:
        low, high: neighbours; up to `low` an atom is all expert 0's, from `high`
            on all expert 1's.
        r_full, r_none: Å; a neighbour counts 1 up to `r_full` and 0 from
            `r_none`. For fcc, between the first and the second shell:
            0.8 and 0.95 lattice constants.
        slack: as of `descriptor`.

    Raises:
        ValueError: a number is out of range.
    """
    check_value("r_full", r_full, float)
    check_value("r_none", r_none, float)
    if not 0 < r_full < r_none:
        raise ValueError(f"r_full must be positive and below r_none (Å), got {r_full} and {r_none}.")
    radii = (jnp.asarray(float(r_full)), jnp.asarray(float(r_none)))
    return descriptor(_coordination, low, high, r_none, parameters=radii, slack=slack)


def committee(expert, params: Sequence, low: float, high: float, *, slack: float | None = None) -> Complement:
    """Atoms on which a committee of cheap experts disagrees go to expert 0.

    The disagreement is the standard deviation of their energies of the atom,
    smoothed: sqrt(variance + (low / 2)^2).

    Args:
        expert: their architecture, as `mm.experts.power_spectrum(...)`; it does
            not pass messages.
        params: two or more trees of parameters.
        low, high: eV, positive; up to `low` an atom is all expert 1's, from
            `high` on all expert 0's.
        slack: as of `descriptor`.

    Returns:
        A region. What the committee does not know (species outside its domain)
        belongs to `around`: take the `union`.

    Raises:
        ValueError: fewer than two members, an expert that passes messages, or a number is out of range.
    """
    if not callable(getattr(expert, "atom_energies", None)) or expert.num_hops > 1:
        raise ValueError(f"expert must be an expert that passes no messages, got {expert!r:.80}.")
    if not isinstance(params, (tuple, list)) or len({jax.tree.structure(tree) for tree in params}) != 1 or len(params) < 2:
        raise ValueError(f"params must be two or more trees of one structure, got {params!r:.80}.")
    check_value("low", low, float)
    if not low > 0:
        raise ValueError(f"low must be positive (eV), got {low}.")
    parameters = (jnp.asarray(0.5 * low), jax.tree.map(lambda *x: jnp.stack(x), *params))
    return complement(descriptor(_spread(expert.atom_energies), low, high, expert.cutoff, parameters=parameters, slack=slack))


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
    if not all(callable(getattr(region, name, None)) for name in ("gate", "support", "spheres")):
        raise ValueError(f"region must have a gate, a support and spheres, got {region!r:.80}.")


def _coordination(radii: tuple[Array, Array], rows: Neighborhood) -> Array:
    """Neighbours of each centre, `[n]`."""
    full, none = (r.astype(rows.displacement.dtype) for r in radii)
    distance = _length(rows.displacement)
    return jnp.sum(jnp.where(rows.mask, switch((distance - full) / (none - full)), 0.0), axis=1)


@lru_cache
def _spread(atom_energies: Callable) -> Callable:
    """One function for one architecture, so that nothing is compiled twice."""

    def spread(parameters, rows: Neighborhood) -> Array:
        least, members = parameters
        energies = jax.vmap(atom_energies, (0, None))(members, rows)
        return jnp.sqrt(jnp.var(energies, axis=0) + least.astype(energies.dtype) ** 2)

    return spread


def _part(near: Surroundings | None, n: int) -> Surroundings | None:
    """What the n-th of several regions asked for."""
    return None if near is None else near._replace(spheres=near.spheres[n])


def _two(columns: Array) -> Array:
    if columns.shape[1] != 2:
        raise ValueError(f"a region that others build on must be of two experts, got {columns.shape[1]}.")
    return columns


def _length(displacement: Array) -> Array:
    """Norms whose gradient at zero is zero."""
    square = jnp.sum(displacement**2, axis=-1)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
