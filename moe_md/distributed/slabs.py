"""Which device holds which atoms, and what it is sent."""

from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

SLAB = "slab"  # the axis of the mesh


Leaf = TypeVar("Leaf", Array, np.ndarray, float)  # on devices; on the host; what fills an empty slot


class Atoms(NamedTuple, Generic[Leaf]):
    """Slots for atoms, `n` in a slab; or all atoms in their order."""

    index: Leaf  # [n] int, the atom in the slot; n_atoms where there is none
    species: Leaf  # [n] int
    weight: Leaf  # [n, n_experts], shares in a region that does not move
    mass: Leaf  # [n, 1] amu
    position: Leaf  # [n, 3] Å
    momentum: Leaf  # [n, 3] amu Å / (Å sqrt(amu / eV))
    force: Leaf  # [n, 3] eV/Å

    @property
    def velocity(self) -> Any:
        """`[n, 3]`, ASE's unit."""
        return self.momentum / self.mass


class Sizes(NamedTuple):
    """Capacities of a slab."""

    atoms: int
    halo: int  # atoms sent through a face
    cell: int  # atoms in a cell of the neighbour list
    near: int  # atoms near a seed
    slots: tuple[int, ...]  # neighbours, for each cutoff
    rows: tuple[int, ...]  # atoms of each expert


class Lists(NamedTuple):
    """What a slab knows since lists were last made; `n_local` are its slots and those of its two halos."""

    before: Array  # [halo] int, own slots that the slab before is sent
    after: Array  # [halo] int, and the one after
    species: Array  # [n_local] int
    idx: tuple[Array, ...]  # for each cutoff [atoms, K] int, neighbours of own slots, n_local where none
    centers: tuple[Array, ...]  # for each expert [rows] int, own slots that it computes, n_local where none
    # [n_seeds] int, the own slot of each atom that the region follows,
    # past the last where another device has it
    seeds: Array
    near: Array  # [n_seeds, near] int, own slots near it
    reference: Array  # [atoms, 3] Å, where own atoms were
    needed: Array  # [1, n] int, what `Sizes` would have sufficed, on any device
    out_of_domain: (
        Array  # [1, n_experts] int, atoms, on all devices, that an expert computes outside its domain
    )
    whole: Array  # [1] bool, whether no atom was lost


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Where a trajectory stands; arrays are cut along their first axis, a piece on each device."""

    atoms: Atoms
    lists: Lists
    energy: Array  # [n_slabs] eV, of own atoms
    key: Array | None  # [n_slabs] random keys
    n_steps: Array  # [n_slabs] int, taken so far
    sizes: Sizes = field(metadata={"static": True})

    @property
    def potential(self) -> float:
        """eV; NaN before forces are known."""
        return float(np.sum(np.asarray(self.energy, float)))


@dataclass(frozen=True)
class Cut:
    """A box in slabs; what is below `taken` runs on each device.

    Along the axis a slab and its halos are a piece of open space: two images of
    an atom are two atoms.
    """

    n_atoms: int
    n_slabs: int
    axis: int
    edges: np.ndarray  # [3] Å
    reach: float  # Å, width of a halo

    def __post_init__(self):
        if self.n_slabs == 0:
            raise ValueError("devices must be at least one, got none.")
        length, most = self.edges[self.axis], int(self.edges[self.axis] // self.reach)
        if not self.width >= self.reach:
            raise ValueError(
                "devices must be so few that slabs are as wide as the longest cutoff and the skin, "
                f"{self.reach:g} Å: "
                f"{self.n_slabs} slabs of {length:g} Å along axis {self.axis} are {self.width:g} Å wide, "
                f"at most {most} fit."
            )

    @property
    def width(self) -> float:
        """Å."""
        return float(self.edges[self.axis]) / self.n_slabs

    @property
    def local_box(self) -> np.ndarray:
        """`[3]` Å, as large as a slab and its halos."""
        return np.where(np.arange(3) == self.axis, self.width + 2 * self.reach, self.edges)

    @property
    def empty(self) -> Atoms[float]:
        """A slot without an atom."""
        return Atoms(self.n_atoms, 0, 0.0, 1.0, 0.0, 0.0, 0.0)

    def wrapped(self, position):
        """Inside the box."""
        return position % self.edges[None].astype(position.dtype)

    def home(self, position):
        """`[n]` int, the slab of each atom inside the box."""
        return (position[:, self.axis] / self.width).astype(np.int32).clip(0, self.n_slabs - 1)

    def taken(self, atoms: Atoms, slots: Array) -> Atoms:
        """What is in some slots; beyond the last there is nothing."""
        return jax.tree.map(
            lambda x, nothing: x.at[slots].get(mode="fill", fill_value=nothing), atoms, self.empty
        )

    def passed(self, values, step: int):
        """What the slab has that is so many before this one."""
        pairs = [(d, (d + step) % self.n_slabs) for d in range(self.n_slabs)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, SLAB, pairs), values)

    def with_halo(self, values: Array, before: Array, after: Array, fill=0) -> Array:
        """Own values, then those of the halo before and of the one after."""
        to_before, to_after = (
            values.at[slots].get(mode="fill", fill_value=fill) for slots in (before, after)
        )
        return jnp.concatenate([values, self.passed(to_after, 1), self.passed(to_before, -1)])

    def places(self, position: Array, before: Array, after: Array) -> Array:
        """Own positions and those of the halo.

        They are in one piece also where the halo reaches across an end of the box.
        """
        me, length, own, end = (
            jax.lax.axis_index(SLAB),
            float(self.edges[self.axis]),
            len(position),
            len(position) + len(after),
        )
        everywhere = self.with_halo(position, before, after)
        everywhere = everywhere.at[own:end, self.axis].add(
            jnp.where(me == 0, -length, 0.0).astype(position.dtype)
        )
        return everywhere.at[end:, self.axis].add(
            jnp.where(me == self.n_slabs - 1, length, 0.0).astype(position.dtype)
        )

    def near_faces(self, atoms: Atoms) -> tuple[Array, Array]:
        """`[n]` bool each, own atoms that the slab before and the one after must know."""
        low, along, real = (
            self.width * jax.lax.axis_index(SLAB),
            atoms.position[:, self.axis],
            atoms.index < self.n_atoms,
        )
        return real & (along < low + self.reach), real & (along >= low + self.width - self.reach)

    def migrated(self, atoms: Atoms, most: int) -> tuple[Atoms, Array, Array]:
        """Every atom on its device, inside the box.

        Also how many passed the busier face, at most `most`, and how many are here.
        """
        atoms = atoms._replace(position=self.wrapped(atoms.position))
        step = (self.home(atoms.position) - jax.lax.axis_index(SLAB)) % self.n_slabs
        real, stays, after = atoms.index < self.n_atoms, step == 0, (step == 1) & (self.n_slabs > 1)
        before = (step == self.n_slabs - 1) & ~stays & ~after
        leaving = [self.taken(atoms, which(real & there, most)) for there in (after, before)]
        staying = atoms._replace(index=jnp.where(stays, atoms.index, self.n_atoms))
        everyone = jax.tree.map(
            lambda *x: jnp.concatenate(x), staying, self.passed(leaving[0], 1), self.passed(leaving[1], -1)
        )
        here = everyone.index < self.n_atoms
        passing = jnp.maximum(jnp.sum(real & after), jnp.sum(real & before))
        return self.taken(everyone, which(here, len(real))), passing, jnp.sum(here)


def which(mask: Array, size: int, fill: int | None = None) -> Array:
    """The first `size` places where the mask is true, padded with its length or `fill`."""
    return jnp.nonzero(mask, size=size, fill_value=len(mask) if fill is None else fill)[0].astype(jnp.int32)
