"""Regions of what an atom's neighbours say: their number, a committee's spread, any smooth function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from moe_md.checks import check_value
from moe_md.neighbors.rows import Neighborhood, map_rows, rows_from_neighbor_list
from moe_md.regions.combined import Complement, complement
from moe_md.regions.protocol import RegionNeighbors, length, switch

CHUNK = 256  # rows at a time


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

    is_dynamic: ClassVar[bool] = True

    def gate(self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None) -> Array:
        """Inside is switch((number - low) / (high - low))."""
        low, high = (x.astype(position.dtype) for x in (self.low, self.high))
        inside = switch((self.numbers(position, displacement_fn, near) - low) / (high - low))
        return jnp.stack([inside, 1.0 - inside], axis=1)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: RegionNeighbors | None = None
    ) -> Array:
        """`[n_atoms, 2]` bool; as good as `slack`."""
        number = self.numbers(position, displacement_fn, near)
        return jnp.stack([number < self.high + self.slack, number > self.low - self.slack], axis=1)

    def required_neighbors(self, margin: float) -> None:
        """None."""

    def numbers(
        self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None
    ) -> Array:
        """`[n_atoms]`, what the function says of each atom.

        Raises:
            ValueError: there is no list of neighbours, or a shorter one.
        """
        if near is None or near.cutoff < self.cutoff:
            known = None if near is None else near.cutoff
            raise ValueError(
                f"near must hold neighbours within {self.cutoff} Å, the region's cutoff, "
                f"got {known}: an expert must see as far."
            )
        everyone = jnp.arange(position.shape[0], dtype=jnp.int32)
        rows = rows_from_neighbor_list(position, near.species, near.idx, displacement_fn, everyone)
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
    bounds = (jnp.asarray(float(x)) for x in (low, high, slack))
    return Descriptor(parameters, *bounds, scalar_fn=scalar_fn, cutoff=float(cutoff))


def coordination(
    low: float, high: float, *, r_full: float, r_none: float, slack: float | None = None
) -> Descriptor:
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
        descriptor(
            _spread(expert.atom_energies), low, high, expert.cutoff, parameters=parameters, slack=slack
        )
    )


def _coordination(radii: tuple[Array, Array], rows: Neighborhood) -> Array:
    """Neighbours of each centre, `[n]`."""
    full, none = (r.astype(rows.displacement.dtype) for r in radii)
    distance = length(rows.displacement)
    return jnp.sum(jnp.where(rows.mask, switch((distance - full) / (none - full)), 0.0), axis=1)


@lru_cache
def _spread(atom_energies: Callable) -> Callable:
    """One function for one architecture, so that nothing is compiled twice."""

    def spread(parameters, rows: Neighborhood) -> Array:
        least, members = parameters
        energies = jax.vmap(atom_energies, (0, None))(members, rows)
        return jnp.sqrt(jnp.var(energies, axis=0) + least.astype(energies.dtype) ** 2)

    return spread
