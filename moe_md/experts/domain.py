"""The domain of an expert: the environments that it may be used in.

An environment is one row: a centre with its neighbours within the cutoff. It is
in the domain if the centre and all these neighbours are among
`Expert.allowed_species`, and if its distance from the environments that the expert
was trained for (`Expert.familiarity`) is at most 1.
"""

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from moe_md.experts.base import Expert
from moe_md.neighbors.rows import Neighborhood


def has_every_row(expert: Expert) -> bool:
    """Whether every row is in the expert's domain."""
    return expert.familiarity is None and set(expert.allowed_species) == set(expert.species)


def in_domain(expert: Expert, rows: Neighborhood) -> Bool[Array | np.ndarray, " n"]:
    """Rows whose centre and neighbours within the cutoff are of allowed species, and familiar.

    Args:
        expert: the potential; its `allowed_species`, `cutoff` and `familiarity` are used.
        rows: `n` rows of `K` neighbour slots, in numpy or jax arrays. Neighbours
            beyond the cutoff (skin) do not count.

    Returns:
        For each row, in the arrays' own kind. Padded rows have a meaningless value.

    >>> from moe_md.experts import lennard_jones
    >>> argon = lennard_jones(("Ar", "Kr"), 5.0, allowed_species=("Ar",))
    >>> distance = np.array([4.0, 6.0]).reshape(2, 1, 1) * np.array([1.0, 0.0, 0.0])
    >>> krypton = np.ones((2, 1), int)
    >>> in_domain(argon, Neighborhood(distance, krypton > 0, np.zeros(2, int), krypton, krypton)).tolist()
    [False, True]
    """
    xp = jnp if isinstance(rows.displacement, jax.Array) else np
    allowed = xp.asarray([symbol in expert.allowed_species for symbol in expert.species])  # [n_species]
    within_cutoff = rows.mask & (xp.sum(rows.displacement**2, axis=-1) < expert.cutoff**2)
    disallowed_neighbor = within_cutoff & ~allowed[rows.neighbor_species]
    of_species = allowed[rows.center_species] & ~xp.any(disallowed_neighbor, axis=1)
    if expert.familiarity is None:
        return of_species
    return of_species & (expert.familiarity.distance(rows) <= 1.0)


def warn_out_of_domain(
    experts: Sequence[Expert], counts: Int[np.ndarray, " experts"], *, stacklevel: int = 3
) -> bool:
    """Warn of experts that a region gives atoms outside their domains.

    Args:
        experts: of the mixture.
        counts: atoms of each expert that are out of its domain.
        stacklevel: as of `warnings.warn`, counted from this function.

    Returns:
        Whether all counts are zero.
    """
    for e in np.flatnonzero(counts):
        warnings.warn(
            f"region gives expert {e} {counts[e]} atoms outside its domain: its energies there are "
            f"untrained. {_remedy(experts[e])}",
            stacklevel=stacklevel,
        )
    return not np.any(counts)


def _remedy(expert: Expert) -> str:
    """What the domain is, and how a region leaves it to another expert."""
    species = ", ".join(expert.allowed_species)
    if expert.familiarity is None:
        return f"It may meet {species} alone: enlarge the region by its cutoff, {expert.cutoff} Å."
    return (
        f"It was trained for {species} in environments like those of its references. Enlarge the region by "
        f"its cutoff, {expert.cutoff} Å, join it with regions.unfamiliar, or train on such environments."
    )
