"""One energy of many experts, in jax-md's `(neighbor_fn, energy_fn)` convention."""

from moe_md.mixture.energy import (
    MixtureNeighborFns,
    MixtureNeighbors,
    Parts,
    mixture_neighbor_list,
)

__all__ = ["MixtureNeighborFns", "MixtureNeighbors", "Parts", "mixture_neighbor_list"]
