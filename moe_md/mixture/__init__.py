"""One energy of many experts, in jax-md's `(neighbor_fn, energy_fn)` convention."""

from moe_md.mixture.builder import mixture_neighbor_list
from moe_md.mixture.config import MixtureNeighborFns, MixtureNeighbors, Parts

__all__ = ["MixtureNeighborFns", "MixtureNeighbors", "Parts", "mixture_neighbor_list"]
