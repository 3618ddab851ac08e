"""What stays the same through the life of a mixture, and the neighbours that change."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from moe_md.experts.base import Expert, Params
from moe_md.neighbors.images import nearest_images
from moe_md.neighbors.neighbor_list import Box, NeighborList, NeighborListFns, Perturbation
from moe_md.regions import Region, RegionNeighbors

# The skin's part of the neighbours varies less within a cutoff than within cutoff and skin. Packed rows
# get this share of the extra capacity.
THERMAL_CAPACITY_FACTOR = 0.3


@dataclass(frozen=True, eq=False)  # hashed by identity, so that it can be static under jit
class MixtureConfig:
    """Static arguments of the functions of a mixture.

    `potentials` below are the experts of the mixture, followed by the inner
    potential where there is one.
    """

    displacement_fn: Callable
    box: Box
    species: Int[Array, " atoms"]
    region: Region  # the builder's
    experts: tuple[Expert, ...]
    params: tuple[Params, ...]  # of the experts, the builder's
    inner_potential: tuple[Expert, Params] | None
    dr_threshold: float  # Å, skin
    capacity_multiplier: float
    per_particle: bool
    fractional_coordinates: bool
    cutoffs: tuple[float, ...]  # Å, those of all potentials, longest first
    level: tuple[int, ...]  # per potential, the place of its cutoff in `cutoffs`
    chunk_size: int  # rows computed at a time
    energy_fns: tuple[Callable, ...]  # per potential (params, rows, wanted=None) -> [n] eV
    list_fns: NeighborListFns  # for `cutoffs`

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.species.shape[0]

    @property
    def potentials(self) -> tuple[Expert, ...]:
        """The experts, then the inner potential's where there is one."""
        return self.experts if self.inner_potential is None else (*self.experts, self.inner_potential[0])

    def is_packed(self, potential: int) -> bool:
        """Whether a potential gets rows without the neighbours of the skin."""
        expert = self.potentials[potential]
        return expert.pack_neighbors and expert.num_hops == 1

    def box_arguments(self, box: Box | None = None, perturbation: Perturbation | None = None) -> dict:
        """Keyword arguments of the displacement function that are given.

        Raises:
            ValueError: `box` is given without fractional coordinates.
        """
        if box is not None and not self.fractional_coordinates:
            raise ValueError(
                "box can be given only where fractional_coordinates = True: positions in Å would not scale."
            )
        return {k: v for k, v in (("box", box), ("perturbation", perturbation)) if v is not None}

    def displacement(self, **kwargs) -> Callable:
        """The displacement function under a box and a perturbation."""
        return partial(self.displacement_fn, **kwargs)

    def nearest_images(
        self, dtype, box: Box | None = None, perturbation: Perturbation | None = None
    ) -> Callable:
        """The displacement function of differences of positions, component by component."""
        return nearest_images(
            self.box if box is None else box,
            perturbation,
            fractional_coordinates=self.fractional_coordinates,
            dtype=dtype,
        )

    def region_neighbors(self, full_list: NeighborList, requested) -> RegionNeighbors:
        """The lists that gates are computed from."""
        return RegionNeighbors(self.species, full_list.idx[0], self.cutoffs[0], requested)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixtureNeighbors:
    """Neighbours of every atom, and the atoms that each expert computes."""

    list: NeighborList  # neighbours of all atoms, for each cutoff
    centers: tuple[Array, ...]  # per expert [capacity] int, atoms that it computes; n_atoms where padded
    halo: tuple[Array, ...]  # per expert [capacity] int, other atoms whose rows it needs; padded alike
    # per potential of sums over neighbours [capacity, K] int, neighbours of its centres; None for others
    rows_of_sums: tuple[Array | None, ...]
    requested: Any  # the answer to each request of the region, as in `RegionNeighbors`
    centers_overflow: Array  # bool, an expert has more atoms or neighbours than its capacity; stays True
    # per potential, columns of its packed rows or of its rows of sums; None for others
    max_neighbors: tuple[int | None, ...] = field(metadata={"static": True})
    update_fn: Callable = field(metadata={"static": True})
    stale_fn: Callable = field(metadata={"static": True})

    def update(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        *,
        region: Region | None = None,
        renew: bool = False,
        **kwargs,
    ) -> "MixtureNeighbors":
        """The neighbours at new positions, with the same capacities; safe under jit.

        Args:
            position: in the coordinates of the mixture.
            region: default the builder's.
            renew: rebuild the lists also where they are still valid, so that they
                depend on position, region and capacities alone.
            **kwargs: `box`, `perturbation`.
        """
        return self.update_fn(position, self, region=region, renew=renew, **kwargs)

    def stale(
        self, position: Float[Array | np.ndarray, "atoms 3"], *, region: Region | None = None, **kwargs
    ) -> Bool[Array, ""]:
        """Whether these lists may miss pairs at new positions; arguments as for `update`."""
        return self.stale_fn(position, self, region=region, **kwargs)

    @property
    def idx(self) -> Int[Array, "atoms K"]:
        """Neighbours of every atom within the longest cutoff and the skin."""
        return self.list.idx[0]

    @property
    def did_buffer_overflow(self) -> Bool[Array, ""]:
        """Whether results are wrong: return to the last valid state and allocate again, larger."""
        return self._list_overflow | self.centers_overflow

    @property
    def error(self) -> Int[Array, ""]:
        """Bits.

        1: rows, cells or centres of a list overflowed, or the box became too narrow.
        256: an expert has more atoms or neighbours than its capacity.
        """
        return jnp.where(self._list_overflow, 1, 0) | jnp.where(self.centers_overflow, 256, 0)

    @property
    def _list_overflow(self) -> Array:
        leaves = jax.tree.leaves(self.requested, is_leaf=lambda x: isinstance(x, NeighborList))
        lists = [self.list, *(leaf for leaf in leaves if isinstance(leaf, NeighborList))]
        return jnp.any(jnp.stack([each.did_buffer_overflow for each in lists]))


class Parts(NamedTuple):
    """Factors of a mixture's energy: it is the sum of their product."""

    gate: Float[Array, "atoms experts"]  # share of an atom's energy that an expert supplies
    energy: Float[Array, "atoms experts"]  # eV; zero where the gate is zero


class MixtureNeighborFns(NamedTuple):
    """Host-side allocation and jitted update, as jax-md's `NeighborListFns`."""

    allocate: Callable  # (position, extra_capacity=0, *, region=None, **kwargs) -> MixtureNeighbors
    update: Callable  # (position, neighbors, *, region=None, renew=False, **kwargs) -> MixtureNeighbors
    # (position, neighbors, *, region=None, **kwargs) -> bool, all atoms are in their experts' domains; warns
    check_domains: Callable
    chunk_size: int  # rows computed at a time
    check_shift: Callable  # (shift_fn, box=None); raises `ValueError` where it does not wrap by the box
    parts: Callable  # (position, neighbors, *, params=None, region=None, **kwargs) -> Parts
    gate: Callable  # (position, neighbors, *, region=None, **kwargs) -> [n_atoms, n_experts]
    # (position, neighbors, region, **kwargs) -> the `reassigned` region with its atoms assigned here
    assign: Callable
    # (position, neighbors, *, params=None, region=None, **kwargs) -> eV, with the inner potential as expert 0
    inner_energy: Callable | None  # None without an inner potential
    # the same arguments -> [2] eV, the inner energy, and the energy less the inner energy
    inner_outer_split: Callable | None
