"""Regions from a scalar descriptor of each atom's neighbours.

The descriptor may be the coordination number, the spread of a committee's
energies, or any smooth function of a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from moe_md.checks import check_value
from moe_md.neighbors.rows import Neighborhood, map_rows, rows_from_neighbor_list
from moe_md.regions.combined import Complement, complement
from moe_md.regions.protocol import Region, RegionNeighbors, check_two_columns, length, switch

CHUNK = 256  # rows computed at a time


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Descriptor(Region):
    """Atoms with a low value of the descriptor belong to expert 0, the others to expert 1."""

    parameters: Any  # a pytree, passed to `scalar_fn`
    low: Array  # number; up to it the gate of expert 0 is 1
    high: Array  # number; from it on the gate of expert 0 is 0
    slack: Array  # number, largest change of the descriptor as atoms move by half the skin
    scalar_fn: Callable = field(metadata={"static": True})  # (parameters, Neighborhood) -> [n]
    cutoff: float = field(metadata={"static": True})  # Å, of `scalar_fn`

    is_dynamic: ClassVar[bool] = True
    is_translation_invariant: ClassVar[bool] = True

    def gate(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "atoms 2"]:
        """Inside is switch((value - low) / (high - low))."""
        return self.gate_of(_every_atom(position), position, displacement_fn, neighbors)

    def gate_of(
        self,
        atoms: Int[Array | np.ndarray, " n"],
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "n 2"]:
        """From the rows of these atoms alone."""
        low, high = (x.astype(position.dtype) for x in (self.low, self.high))
        inside = switch((self.values(position, displacement_fn, neighbors, atoms) - low) / (high - low))
        return jnp.stack([inside, 1.0 - inside], axis=1)

    def support(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        margin: float,
        neighbors: RegionNeighbors | None = None,
    ) -> Bool[Array, "atoms 2"]:
        """Complete where the descriptor changes by less than `slack`."""
        value = self.values(position, displacement_fn, neighbors)
        return jnp.stack([value < self.high + self.slack, value > self.low - self.slack], axis=1)

    def neighbor_cutoff(self) -> float:
        """Å, cutoff of the descriptor."""
        return self.cutoff

    def interaction_range(self) -> float:
        """Å, cutoff of the descriptor."""
        return self.cutoff

    def restrict(self, index: Int[np.ndarray, " n"]) -> "Descriptor":
        """The same region: it holds no array of atoms."""
        return self

    def check_size(self, n_atoms: int, n_experts: int) -> None:
        """Raise `ValueError` where there are not two experts."""
        check_two_columns(n_experts)

    def to_dict(self) -> dict:
        """Of `coordination`, its numbers and distances; other descriptors hold functions."""
        if self.scalar_fn is not _coordination:
            return super().to_dict()
        r_full, r_none = map(float, self.parameters)
        numbers = {name: float(getattr(self, name)) for name in ("low", "high", "slack")}
        return {"kind": "coordination", **numbers, "r_full": r_full, "r_none": r_none}

    def values(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
        atoms: Int[Array | np.ndarray, " n"] | None = None,
    ) -> Float[Array, " n"]:
        """The descriptor of some atoms, default every one.

        Raises:
            ValueError: there is no list of neighbours, or one with a shorter cutoff.
        """
        if neighbors is None or neighbors.cutoff < self.cutoff:
            known = None if neighbors is None else neighbors.cutoff
            raise ValueError(
                f"neighbors must be listed within {self.cutoff} Å, the region's cutoff, "
                f"got {known}: one expert must have a cutoff at least as long."
            )
        atoms = _every_atom(position) if atoms is None else atoms
        rows = rows_from_neighbor_list(position, neighbors.species, neighbors.idx, displacement_fn, atoms)
        return map_rows(lambda chunk: self.scalar_fn(self.parameters, chunk), rows, CHUNK)


def descriptor(
    scalar_fn: Callable,
    low: float,
    high: float,
    cutoff: float,
    *,
    parameters: Any = None,
    slack: float | None = None,
) -> Descriptor:
    """A dynamic region: atoms with a low descriptor belong to expert 0, those with a high one to expert 1.

    Args:
        scalar_fn: `(parameters, Neighborhood) -> [n]`, the descriptor of each row. It
            needs two continuous derivatives in the displacements and must not depend
            on neighbours beyond the cutoff. `Expert.atom_energies` has this form and
            can be used as a learned descriptor.
        low, high: up to `low` expert 0 supplies the full energy of an atom, from
            `high` on expert 1; `complement` exchanges them.
        cutoff: Å, of the function; at most the experts' longest.
        parameters: a pytree; gradients with respect to it, `low` and `high` exist.
        slack: largest change of the descriptor between two updates of the lists, in
            which atoms move by up to half the skin; default a fifth of `high - low`.
            `simulate.run` updates before each force and needs none. Too small a slack
            gives NaN, never a wrong energy.

    Returns:
        A region.

    Raises:
        ValueError: `scalar_fn` is not a function, or a number is out of range.
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
    bounds = (jnp.asarray(float(x)) for x in (low, high, slack))
    return Descriptor(parameters, *bounds, scalar_fn=scalar_fn, cutoff=float(cutoff))


def coordination(
    low: float, high: float, *, r_full: float, r_none: float, slack: float | None = None
) -> Descriptor:
    """A dynamic region: atoms with few neighbours belong to expert 0.

    These are atoms at surfaces, steps and vacancies, and adatoms.

    The number of neighbours is sum_j switch((r_ij - r_full) / (r_none - r_full)).

    Args:
        low, high: numbers of neighbours; up to `low` expert 0 supplies the full
            energy of an atom, from `high` on expert 1.
        r_full, r_none: Å; a neighbour counts 1 up to `r_full` and 0 from
            `r_none`. For fcc, 0.8 and 0.95 lattice constants lie between the first
            and the second shell.
        slack: as for `descriptor`.

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
    """A dynamic region: atoms on which a committee of cheap experts disagrees belong to expert 0.

    The descriptor is the standard deviation of the members' energies of the atom,
    smoothed: sqrt(variance + (low / 2)^2).

    Args:
        expert: the members' architecture, as `mm.experts.power_spectrum(...)`; it must
            not pass messages.
        params: two or more trees of parameters.
        low, high: eV, positive; up to `low` expert 1 supplies the full energy of an
            atom, from `high` on expert 0.
        slack: as for `descriptor`.

    Returns:
        A region. The committee's spread means nothing for species outside its domain:
        take the `union` with `around` of these atoms.

    Raises:
        ValueError: fewer than two members, an expert that passes messages, or a number is out of range.
    """
    if not callable(getattr(expert, "atom_energies", None)) or expert.num_hops > 1:
        raise ValueError(f"expert must be an expert that passes no messages, got {expert!r:.80}.")
    if (
        not isinstance(params, (tuple, list))
        or len({jax.tree.structure(tree) for tree in params}) != 1
        or len(params) < 2
    ):
        raise ValueError(f"params must be two or more trees of one structure, got {params!r:.80}.")
    check_value("low", low, float)
    if not low > 0:
        raise ValueError(f"low must be positive (eV), got {low}.")
    parameters = (jnp.asarray(0.5 * low), jax.tree.map(lambda *x: jnp.stack(x), *params))
    return complement(
        descriptor(_spread(expert), low, high, expert.cutoff, parameters=parameters, slack=slack)
    )


def _every_atom(position: Array | np.ndarray) -> Array:
    return jnp.arange(position.shape[0], dtype=jnp.int32)


def unfamiliar(
    model, low: float = 0.6, high: float = 0.9, *, of: str = "crystal", slack: float | None = None
) -> Complement:
    """A dynamic region: atoms in environments that a cheap expert does not know belong to expert 0.

    The descriptor is the distance of an atom's environment from those of the training,
    in which the limit is 1 (`experts.familiarity`). It finds vacancies, surfaces,
    dislocations, molten parts and foreign atoms. Grow it: `grown(unfamiliar(model), 4.0, 2.0)`.

    Args:
        model: a checkpoint whose cheap expert was trained with a domain, or that expert.
        low, high: up to `low` expert 1 supplies the full energy of an atom, from `high` on
            expert 0. The defaults lie between the strained crystal at low and moderate
            temperature and the rim of a vacancy; take higher ones near melting.
        of: "crystal", the distance from strained crystals alone; or "domain", that from all
            environments of the training, whose limit is where warnings begin.
        slack: as for `descriptor`.

    Returns:
        A region.

    Raises:
        ValueError: the expert has a domain of species alone, or an argument is out of range.
    """
    expert = model.cheap.expert if hasattr(model, "cheap") else model
    familiarity = getattr(expert, "familiarity", None)
    if familiarity is None:
        raise ValueError(
            "model must be a checkpoint whose cheap expert knows the environments of its training, got one "
            "with a domain of species alone: train it with domain_rows of [environments] above 0."
        )
    if of not in _DISTANCES:
        raise ValueError(f"of must be one of {', '.join(_DISTANCES)}, got {of!r:.80}.")
    return complement(
        descriptor(_DISTANCES[of], low, high, familiarity.cutoff, parameters=familiarity, slack=slack)
    )


def _crystal_distance(familiarity, rows: Neighborhood) -> Array:
    return familiarity.crystal_distance(rows)


def _domain_distance(familiarity, rows: Neighborhood) -> Array:
    return familiarity.distance(rows)


_DISTANCES = {"crystal": _crystal_distance, "domain": _domain_distance}


def _coordination(radii: tuple[Array, Array], rows: Neighborhood) -> Array:
    """Smooth number of neighbours of each centre, `[n]`."""
    full, none = (r.astype(rows.displacement.dtype) for r in radii)
    distance = length(rows.displacement)
    return jnp.sum(jnp.where(rows.mask, switch((distance - full) / (none - full)), 0.0), axis=1)


@dataclass(frozen=True)
class _Spread:
    """The descriptor of `committee`; equal for one architecture, which is compiled once, and pickles."""

    atom_energies: Callable
    expert: Any = field(compare=False)  # with these `atom_energies`; a pickle holds it

    def __reduce__(self) -> tuple:
        return _spread, (self.expert,)

    def __call__(self, parameters, rows: Neighborhood) -> Array:
        smoothing, members = parameters
        energies = jax.vmap(self.atom_energies, (0, None))(members, rows)
        return jnp.sqrt(jnp.var(energies, axis=0) + smoothing.astype(energies.dtype) ** 2)


def _spread(expert) -> _Spread:
    return _Spread(expert.atom_energies, expert)
