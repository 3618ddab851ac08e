"""The physics that every energy obeys: one list of checks for experts and mixtures.

A check takes a `Potential`, which hides how rows are filled, and asks only for
energies and forces of an open cluster. `test_expert_contract.py` and
`test_mixture_contract.py` run all of `CHECKS` over theirs.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax_md import space

import moe_md as mm
from moe_md.experts import (
    Expert,
    allegro,
    density_moments,
    embedded_atom,
    lennard_jones,
    nequip,
    power_spectrum,
)
from moe_md.experts.base import FUNCTIONS
from moe_md.mixture import mixture_neighbor_list
from moe_md.neighbors.rows import Neighborhood
from moe_md.regions import fixed

SPECIES = ("Pt", "C")
CUTOFF = 3.0
# Wide enough for two clusters along x; too narrow for jax-md's cell list, so positions may lie outside.
BOX = np.array([20.0, 9.2, 9.2])

# No two atoms are at the cutoff or at the onset of the Lennard-Jones switch; pairs 0-5 and 2-5 are beyond the
# cutoff.
POSITION = np.array(
    [
        [0.03, -0.04, 0.11],
        [1.71, 0.32, -0.25],
        [-0.52, 1.63, 0.44],
        [0.67, -0.35, 1.82],
        [1.35, 1.72, 1.21],
        [2.45, -0.97, 2.34],
    ]
)
ATOMS = np.array([0, 1, 0, 0, 1, 0])  # species
OWNERS = np.array([1, 0, 0, 1, 1, 0])  # experts, where a mixture has two


class Potential(NamedTuple):
    """An energy of atoms in open space."""

    evaluate: Callable  # (position [n, 3], species [n], owner [n]) -> energies [n] eV, forces [n, 3] eV/Å
    cutoff: float  # Å


def cluster_rows(
    position, species, *, extra_slots: int = 0, extra_rows: int = 0, fill: float = 0.0, dtype=None
):
    """Rows of an open cluster: every other atom in a slot, then padded slots and rows that hold `fill`."""
    n_atoms = len(species)
    n, slots = n_atoms + extra_rows, n_atoms - 1 + extra_slots
    others = np.array([[j for j in range(n_atoms) if j != i] for i in range(n_atoms)]).reshape(n_atoms, -1)
    neighbor = np.full((n, slots), n_atoms)
    neighbor[:n_atoms, : n_atoms - 1] = others
    mask = neighbor < n_atoms
    safe = np.where(mask, neighbor, 0)
    center = np.where(np.arange(n) < n_atoms, np.arange(n), 0)
    position = jnp.asarray(position, dtype)
    displacement = jnp.where(mask[..., None], position[safe] - position[center][:, None], fill)
    species = np.asarray(species, np.int32)
    return Neighborhood(
        displacement,
        jnp.asarray(mask),
        jnp.asarray(species[center]),
        jnp.asarray(species[safe]),
        jnp.asarray(neighbor),
    )


def without_functions(expert: Expert) -> Expert:
    """What two experts of one builder with equal arguments share."""
    return expert._replace(**dict.fromkeys(FUNCTIONS))


def randomized(expert: Expert, seed: int = 0):
    """Parameters whose scale and shift differ per species."""
    params = jax.tree.map(np.asarray, expert.init(jax.random.key(seed)))
    params = jax.tree.map(lambda x: x.astype(np.float64), params)
    if "scale" in params:
        n = len(expert.species)
        params = {**params, "scale": 1.0 + 0.3 * np.arange(n), "shift": 0.2 - 0.7 * np.arange(n)}
    return params


@lru_cache
def small_allegro(l_max: int = 2, num_layers: int = 2, parity: bool = True, **kwargs) -> Expert:
    """An Allegro small enough to test."""
    settings = dict(
        num_scalar_features=6,
        num_tensor_features=3,
        num_bessels=4,
        scalar_embed_mlp=(5,),
        allegro_mlp=(5,),
        readout_mlp=(4,),
        avg_num_neighbors=5.0,
    )
    settings.update(kwargs)
    return allegro(SPECIES, CUTOFF, l_max=l_max, num_layers=num_layers, parity=parity, **settings)


@lru_cache
def small_power_spectrum(domain: tuple[str, ...] = SPECIES, cutoff: float = CUTOFF, l_max: int = 3) -> Expert:
    """A power spectrum small enough to test."""
    return power_spectrum(
        SPECIES,
        cutoff,
        l_max=l_max,
        num_bessels=4,
        num_channels=3,
        hidden=(6, 5),
        avg_num_neighbors=5.0,
        allowed_species=domain,
    )


@lru_cache
def small_embedded_atom(domain: tuple[str, ...] = SPECIES, cutoff: float = CUTOFF) -> Expert:
    """An embedded atom small enough to test."""
    return embedded_atom(
        SPECIES, cutoff, num_bessels=4, hidden=(6, 5), avg_num_neighbors=5.0, allowed_species=domain
    )


@lru_cache
def small_density_moments(domain: tuple[str, ...] = SPECIES, cutoff: float = CUTOFF, **kwargs) -> Expert:
    """Density moments small enough to test."""
    settings = dict(num_radial=(4, 2, 2), hidden=(6, 5))
    settings.update(kwargs)
    return density_moments(SPECIES, cutoff, allowed_species=domain, **settings)


@lru_cache
def small_nequip(
    num_layers: int = 2, cutoff: float = CUTOFF, l_max: int = 1, hidden: str = "4x0e + 2x1o"
) -> Expert:
    """A NequIP small enough to test."""
    return nequip(
        SPECIES,
        cutoff,
        l_max=l_max,
        num_layers=num_layers,
        hidden_irreps=hidden,
        num_bessels=4,
        radial_width=5,
        radial_depth=1,
        avg_num_neighbors=5.0,
    )


@lru_cache
def small_lennard_jones(cutoff: float = CUTOFF) -> Expert:
    """Two eV-sized Lennard-Jones atoms at the distances of `POSITION`."""
    return lennard_jones(SPECIES, cutoff, epsilon=0.4, sigma=1.6)


def expert_potential(expert: Expert, params) -> Potential:
    """An expert on all pairs of a cluster, padded to one shape so that it compiles once."""
    most = 2 * len(ATOMS)

    @jax.jit
    def compute(position, species, n_atoms):
        index = jnp.arange(most)
        neighbor = jnp.where(index[None, :] == index[:, None], n_atoms, index[None, :])
        mask = (neighbor < n_atoms) & (index[:, None] < n_atoms)
        safe = jnp.where(mask, neighbor, 0)

        def total(position):
            displacement = jnp.where(mask[..., None], position[safe] - position[:, None], 0.0)
            rows = Neighborhood(displacement, mask, species, species[safe], neighbor)
            energies = expert.atom_energies(params, rows)
            return jnp.sum(jnp.where(index < n_atoms, energies, 0.0)), energies

        grad, energies = jax.grad(total, has_aux=True)(position)
        return energies, -grad

    def evaluate(position, species, owner):
        del owner
        n_atoms = len(species)
        position = np.pad(np.asarray(position), [(0, most - n_atoms), (0, 0)])
        species = np.pad(np.asarray(species), (0, most - n_atoms))
        energies, forces = compute(position, species, n_atoms)
        return energies[:n_atoms], forces[:n_atoms]

    return Potential(evaluate, expert.cutoff)


def mixture_potential(experts, params, region_of=fixed, **kwargs) -> Potential:
    """A mixture over jax-md's list, in a box with vacuum around the cluster.

    `region_of(owner)` makes the region.
    """
    displacement_fn, _ = space.periodic(BOX)

    @lru_cache
    def built(species, owner):
        neighbor_fn, energy_fn = mixture_neighbor_list(
            displacement_fn,
            BOX,
            mm.experts.potentials(experts, params),
            np.array(species),
            region_of(np.array(owner)),
            per_particle=True,
            **kwargs,
        )

        @jax.jit
        def compute(position, nbrs):
            nbrs = neighbor_fn.update(position, nbrs)

            def total(position):
                energies = energy_fn(position, nbrs)
                return jnp.sum(energies), energies

            grad, energies = jax.grad(total, has_aux=True)(position)
            return energies, -grad, nbrs.did_buffer_overflow

        return neighbor_fn, compute, []

    def evaluate(position, species, owner):
        neighbor_fn, compute, lists = built(tuple(map(int, species)), tuple(map(int, owner)))
        position = jnp.asarray(position)
        if not lists:
            lists.append(neighbor_fn.allocate(position, extra_capacity=len(species)))
        energies, forces, overflow = compute(position, lists[0])
        assert not overflow
        return energies, forces

    return Potential(evaluate, max(e.cutoff for e in experts))


def random_rotation(seed: int) -> np.ndarray:
    """A proper rotation."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return q * np.sign(np.linalg.det(q))


def close(a, b, tolerance=1e-10):
    """Equal to rounding in float64, relative to the largest entry."""
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max(initial=0.0))))


def check_interacts(potential: Potential):
    """Atoms feel one another: without this the other checks could pass on nothing."""
    energies, forces = potential.evaluate(POSITION, ATOMS, OWNERS)
    assert np.isfinite(energies).all() and np.isfinite(forces).all()
    assert (np.abs(np.asarray(forces)).max(axis=1) > 1e-4).all()


def check_translation(potential: Potential):
    energies, forces = potential.evaluate(POSITION, ATOMS, OWNERS)
    for shift in ([0.3, -0.2, 0.9], [-4.0, 5.1, 7.7]):
        moved = potential.evaluate(POSITION + np.array(shift), ATOMS, OWNERS)
        close(moved[0], energies)
        close(moved[1], forces)


def check_rotation(potential: Potential):
    energies, forces = potential.evaluate(POSITION, ATOMS, OWNERS)
    for seed in range(3):
        Q = random_rotation(seed)
        turned = potential.evaluate(POSITION @ Q.T, ATOMS, OWNERS)
        close(turned[0], energies)
        close(turned[1], np.asarray(forces) @ Q.T)


def check_reflection(potential: Potential):
    energies, forces = potential.evaluate(POSITION, ATOMS, OWNERS)
    for M in (-np.eye(3), np.diag([1.0, -1.0, 1.0]) @ random_rotation(7)):
        mirrored = potential.evaluate(POSITION @ M.T, ATOMS, OWNERS)
        close(mirrored[0], energies)
        close(mirrored[1], np.asarray(forces) @ M.T)


def check_permutation(potential: Potential):
    energies, forces = potential.evaluate(POSITION, ATOMS, OWNERS)
    order = np.array([4, 2, 5, 0, 1, 3])
    permuted = potential.evaluate(POSITION[order], ATOMS[order], OWNERS[order])
    close(permuted[0], np.asarray(energies)[order])
    close(permuted[1], np.asarray(forces)[order])


def check_central_differences(potential: Potential):
    """Forces against a fourth-order stencil of the energy, every coordinate."""
    forces = potential.evaluate(POSITION, ATOMS, OWNERS)[1]
    h = 1e-3

    def energy(step):
        return float(jnp.sum(potential.evaluate(POSITION + step, ATOMS, OWNERS)[0]))

    expected = np.zeros_like(POSITION)
    for place in np.ndindex(POSITION.shape):
        e = np.zeros_like(POSITION)
        e[place] = h
        expected[place] = -(8 * (energy(e) - energy(-e)) - (energy(2 * e) - energy(-2 * e))) / (12 * h)
    close(forces, expected, 1e-7)


def check_momentum_and_torque(potential: Potential):
    forces = np.asarray(potential.evaluate(POSITION, ATOMS, OWNERS)[1])
    scale = np.abs(forces).max()
    assert np.abs(forces.sum(axis=0)).max() < 1e-12 * scale * len(ATOMS)
    assert np.abs(np.cross(POSITION, forces).sum(axis=0)).max() < 1e-11 * scale * len(ATOMS)


def check_vanishes_at_cutoff(potential: Potential):
    """A probe leaving a pair: its energy goes as the square of what is left to the cutoff, or faster."""
    species, owner = np.array([0, 1, 0]), np.array([1, 0, 0])
    axis = np.array([0.6, 0.64, -0.48])

    def at(gap):
        probe = np.array([np.zeros(3), 1.9 * np.array([0.0, 0.6, 0.8]), (potential.cutoff - gap) * axis])
        energies, forces = potential.evaluate(probe, species, owner)
        return np.asarray(energies), np.asarray(forces)

    outside, _ = at(-1e-3)
    gaps = np.array([1e-1, 1e-2, 1e-3])
    energy, force = [], []
    for gap in gaps:
        energies, forces = at(gap)
        energy.append(np.abs(energies - outside).max())
        force.append(np.abs(forces[2]).max())
    assert energy[0] > 1e-9 and force[0] > 1e-8  # it did interact
    assert energy[1] < 0.02 * energy[0] and energy[2] < 0.02 * energy[1] + 1e-13
    assert force[1] < 0.2 * force[0] and force[2] < 0.2 * force[1] + 1e-12
    # Beyond the cutoff nothing changes at all.
    further, forces = at(-0.05)
    np.testing.assert_array_equal(further, outside)
    np.testing.assert_array_equal(forces[2], 0.0)


def check_two_far_copies(potential: Potential):
    energies, forces = potential.evaluate(POSITION, ATOMS, OWNERS)
    both = np.concatenate([POSITION, POSITION @ random_rotation(3).T + np.array([9.5, 0.0, 0.0])])
    doubled = potential.evaluate(both, np.tile(ATOMS, 2), np.tile(OWNERS, 2))
    close(doubled[0], np.tile(energies, 2))
    close(doubled[1][: len(ATOMS)], forces)
    close(jnp.sum(doubled[0]), 2 * jnp.sum(energies))


CHECKS = (
    check_interacts,
    check_translation,
    check_rotation,
    check_reflection,
    check_permutation,
    check_central_differences,
    check_momentum_and_torque,
    check_vanishes_at_cutoff,
    check_two_far_copies,
)
