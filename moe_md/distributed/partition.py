"""Which device owns which atoms, and what devices exchange."""

from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Real, Shaped

from moe_md.neighbors.capacity import first_true

SUBDOMAIN = "subdomain"  # name of the mesh's axis

Leaf = TypeVar("Leaf", Array, np.ndarray, float)  # on devices; on the host; the value of an empty slot


class Atoms(NamedTuple, Generic[Leaf]):
    """Slots for the atoms of a subdomain, `n` each; or all atoms in their order."""

    index: Leaf  # [n] int, number of the atom in the slot; n_atoms where the slot is empty
    species: Leaf  # [n] int
    gate: Leaf  # [n, n_experts], gates of a static region
    mass: Leaf  # [n, 1] amu
    position: Leaf  # [n, 3] Å
    momentum: Leaf  # [n, 3] amu Å / (Å sqrt(amu / eV))
    force: Leaf  # [n, 3] eV/Å

    @property
    def velocity(self) -> Any:
        """`[n, 3]`, ASE's unit."""
        return self.momentum / self.mass


class Capacities(NamedTuple):
    """Sizes of a subdomain's arrays, the same on every device."""

    atoms: int
    halo: int  # atoms sent through a face
    cell: int  # atoms in a cell of the neighbour list
    near_seeds: int  # atoms near a seed
    max_neighbors: tuple[int, ...]  # for each cutoff
    centers: tuple[int, ...]  # atoms of each expert


class Lists(NamedTuple):
    """Neighbour lists of a subdomain. `n_local` counts its slots and those of its two halos."""

    before: Int[Array, " halo"]  # own slots that are sent to the subdomain before
    after: Int[Array, " halo"]  # own slots that are sent to the subdomain after
    species: Int[Array, " n_local"]
    idx: tuple[Int[Array, "n K"], ...]  # for each cutoff, neighbours of own slots; n_local where padded
    # For each expert, own slots that it computes; n_local where padded.
    centers: tuple[Int[Array, " centers"], ...]
    seeds: Int[Array, " seeds"]  # own slot of each seed of the region; out of range on other devices
    near_seeds: Int[Array, "seeds K"]  # own slots near each seed
    reference_position: Float[Array, "n 3"]  # Å, own positions when the lists were built
    needed: Int[Array, "1 capacities"]  # `Capacities` that would have sufficed on every device
    out_of_domain: Int[Array, "1 experts"]  # atoms on all devices that are outside an expert's domain
    is_complete: Bool[Array, " 1"]  # no atom was lost


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """State of a trajectory; arrays are divided along their first axis, a part on each device."""

    atoms: Atoms
    lists: Lists
    energy: Array  # [n_subdomains] eV, of own atoms
    key: Array | None  # [n_subdomains] random keys
    n_steps: Array  # [n_subdomains] int, steps taken so far
    capacities: Capacities = field(metadata={"static": True})

    @property
    def potential(self) -> float:
        """eV; NaN before the first evaluation."""
        return float(np.sum(np.asarray(self.energy, float)))


@dataclass(frozen=True)
class Partition:
    """A box divided into equal subdomains along one axis.

    Along the axis a subdomain with its halos is a piece of open space: two images of
    an atom are two atoms. The methods from `take` on run on each device.
    """

    n_atoms: int
    n_subdomains: int
    axis: int
    edges: Float[np.ndarray, " 3"]  # Å, of the box
    halo_width: float  # Å

    def __post_init__(self):
        if self.n_subdomains == 0:
            raise ValueError("devices must be at least one, got none.")
        length = self.edges[self.axis]
        if not self.width >= self.halo_width:
            raise ValueError(
                "devices must be so few that subdomains are as wide as the longest cutoff and the skin, "
                f"{self.halo_width:g} Å, got {self.n_subdomains} devices: "
                f"{self.n_subdomains} subdomains of {length:g} Å along axis {self.axis} are {self.width:g} Å "
                f"wide, at most {int(length // self.halo_width)} fit."
            )

    @property
    def width(self) -> float:
        """Å, of a subdomain."""
        return float(self.edges[self.axis]) / self.n_subdomains

    @property
    def local_box(self) -> Float[np.ndarray, " 3"]:
        """Å, edges of a subdomain with its halos."""
        return np.where(np.arange(3) == self.axis, self.width + 2 * self.halo_width, self.edges)

    @property
    def empty(self) -> Atoms[float]:
        """Values of an empty slot."""
        return Atoms(self.n_atoms, 0, 0.0, 1.0, 0.0, 0.0, 0.0)

    def wrap(self, position: Real[Array | np.ndarray, "n 3"]) -> Real[Array | np.ndarray, "n 3"]:
        """Positions inside the box."""
        return position % self.edges[None].astype(position.dtype)

    def owner(self, position: Real[Array | np.ndarray, "n 3"]) -> Int[Array | np.ndarray, " n"]:
        """The subdomain of each atom inside the box."""
        return (position[:, self.axis] / self.width).astype(np.int32).clip(0, self.n_subdomains - 1)

    def take(self, atoms: Atoms, slots: Int[Array, " slots"]) -> Atoms:
        """The atoms in some slots; slots out of range are empty."""
        return jax.tree.map(
            lambda x, empty: x.at[slots].get(mode="fill", fill_value=empty), atoms, self.empty
        )

    def shift(self, values, step: int) -> Any:
        """Values from the subdomain `step` places before this one."""
        pairs = [(d, (d + step) % self.n_subdomains) for d in range(self.n_subdomains)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, SUBDOMAIN, pairs), values)

    def with_halo(
        self,
        values: Shaped[Array, "n *shape"],
        before: Int[Array, " halo"],
        after: Int[Array, " halo"],
        fill: int | float = 0,
    ) -> Shaped[Array, "n+2*halo *shape"]:
        """Own values, then those of the halo before and of the halo after."""
        to_before, to_after = (
            values.at[slots].get(mode="fill", fill_value=fill) for slots in (before, after)
        )
        return jnp.concatenate([values, self.shift(to_after, 1), self.shift(to_before, -1)])

    def local_positions(
        self, position: Float[Array, "n 3"], before: Int[Array, " halo"], after: Int[Array, " halo"]
    ) -> Float[Array, "n+2*halo 3"]:
        """Own positions and those of the halos, Å, without a jump at the ends of the box."""
        subdomain, length = jax.lax.axis_index(SUBDOMAIN), float(self.edges[self.axis])
        own, end = len(position), len(position) + len(after)
        local = self.with_halo(position, before, after)
        at_first = jnp.where(subdomain == 0, -length, 0.0).astype(position.dtype)
        at_last = jnp.where(subdomain == self.n_subdomains - 1, length, 0.0).astype(position.dtype)
        return local.at[own:end, self.axis].add(at_first).at[end:, self.axis].add(at_last)

    def near_faces(self, atoms: Atoms) -> tuple[Bool[Array, " n"], Bool[Array, " n"]]:
        """Own atoms that belong to the halo of the subdomain before, and after."""
        low = self.width * jax.lax.axis_index(SUBDOMAIN)
        along, is_real = atoms.position[:, self.axis], atoms.index < self.n_atoms
        return (
            is_real & (along < low + self.halo_width),
            is_real & (along >= low + self.width - self.halo_width),
        )

    def migrate(self, atoms: Atoms, capacity: int) -> tuple[Any, Int[Array, ""], Int[Array, ""]]:
        """Atoms on the device that owns them, inside the box.

        Args:
            atoms: of this subdomain, moved by less than its width.
            capacity: atoms that can pass a face.

        Returns:
            The atoms, the larger number of atoms that passed a face, and the number of atoms here.
        """
        atoms = atoms._replace(position=self.wrap(atoms.position))
        step = (self.owner(atoms.position) - jax.lax.axis_index(SUBDOMAIN)) % self.n_subdomains
        is_real, stays = atoms.index < self.n_atoms, step == 0
        to_after = (step == 1) & (self.n_subdomains > 1)
        to_before = (step == self.n_subdomains - 1) & ~stays & ~to_after
        leaving = [self.take(atoms, first_true(is_real & moves, capacity)) for moves in (to_after, to_before)]
        staying = atoms._replace(index=jnp.where(stays, atoms.index, self.n_atoms))
        arrived = (self.shift(leaving[0], 1), self.shift(leaving[1], -1))
        everyone = jax.tree.map(lambda *x: jnp.concatenate(x), staying, *arrived)
        is_here = everyone.index < self.n_atoms
        passing = jnp.maximum(jnp.sum(is_real & to_after), jnp.sum(is_real & to_before))
        return self.take(everyone, first_true(is_here, len(is_real))), passing, jnp.sum(is_here)
