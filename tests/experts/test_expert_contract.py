"""Every expert obeys the contract; padding, skin and the order of slots change nothing."""

from functools import lru_cache

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ATOMS, CUTOFF, POSITION, close, cluster_rows
from depths import short
from small_experts import EXPERTS, jitted, made

from moe_md.neighbors.rows import Neighborhood

# One of each kind, where the network's size cannot matter.
KINDS = (
    "allegro-l2-layers2-parity",
    "power_spectrum",
    "power_spectrum-Pt",
    "embedded_atom",
    "embedded_atom-Pt",
    "density_moments",
    "density_moments-Pt",
    "density_moments-zbl",
    "nequip",
    "lennard_jones",
)


@lru_cache
def potential(name):
    inner = contract.expert_potential(*made(name))
    if not name.endswith("-Pt"):
        return inner
    # Its own species only: others it does not see.
    return contract.Potential(lambda R, s, owner: inner.evaluate(R, np.zeros_like(s), owner), inner.cutoff)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda f: f.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", short(EXPERTS, only=[*KINDS, "allegro-l1-layers1-so3"]))
def test_contract(name, check):
    check(potential(name))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("fill", short([0.0, 1e-3, 50.0], only=[0.0]))
def test_padding_changes_nothing(name, fill):
    _, params = made(name)
    first, _ = jitted(name)
    n, slots = len(ATOMS), len(ATOMS) - 1
    energies, g = first(params, cluster_rows(POSITION, ATOMS))
    padded_energies, padded_g = first(
        params, cluster_rows(POSITION, ATOMS, extra_slots=3, extra_rows=2, fill=fill)
    )
    close(padded_energies[:n], energies, 1e-12)
    close(padded_g[:n, :slots], g, 1e-12)
    np.testing.assert_array_equal(padded_g[:n, slots:], 0.0)
    np.testing.assert_array_equal(padded_g[n:], 0.0)


@pytest.mark.parametrize("name", KINDS)
def test_dropping_skin_slots_changes_nothing(name):
    _, params = made(name)
    first, _ = jitted(name)
    rows = cluster_rows(POSITION, ATOMS)
    distance = np.linalg.norm(rows.displacement, axis=-1)
    near = np.asarray(rows.mask) & (distance < CUTOFF)
    assert near.sum() < np.asarray(rows.mask).sum()
    energies, g = first(params, rows)
    order = np.argsort(~near, axis=1, kind="stable")[:, : near.sum(axis=1).max()]

    def compact(x):
        return jnp.asarray(
            np.take_along_axis(np.asarray(x), order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
        )

    compacted = Neighborhood(
        displacement=compact(rows.displacement),
        mask=compact(near),
        center_species=rows.center_species,
        neighbor_species=compact(rows.neighbor_species),
        neighbor=compact(rows.neighbor),
    )
    compacted_energies, compacted_g = first(params, compacted)
    close(compacted_energies, energies, 1e-12)
    close(compacted_g, np.where(compact(near)[..., None], compact(g), 0.0), 1e-12)
    np.testing.assert_array_equal(np.asarray(g)[~near], 0.0)


@pytest.mark.parametrize("name", KINDS)
def test_order_of_slots_does_not_matter(name):
    _, params = made(name)
    first, _ = jitted(name)
    rows = cluster_rows(POSITION, ATOMS)
    order = np.array([3, 0, 4, 2, 1])
    shuffled = Neighborhood(
        rows.displacement[:, order],
        rows.mask[:, order],
        rows.center_species,
        rows.neighbor_species[:, order],
        rows.neighbor[:, order],
    )
    energies, g = first(params, rows)
    shuffled_energies, shuffled_g = first(params, shuffled)
    close(shuffled_energies, energies, 1e-12)
    close(shuffled_g, g[:, order], 1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_jit_changes_nothing(name):
    expert, params = made(name)
    rows = cluster_rows(POSITION, ATOMS)
    close(expert.atom_energies(params, rows), jitted(name)[0](params, rows)[0], 1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_species_matter(name):
    expert, params = made(name)
    if name == "lennard_jones":
        pytest.skip("one pair potential for all species")
    energies = np.asarray(jitted(name)[0](params, cluster_rows(POSITION, ATOMS))[0])
    swapped = np.asarray(jitted(name)[0](params, cluster_rows(POSITION, 1 - ATOMS))[0])
    assert np.abs(energies - swapped).min() > 1e-6


@pytest.mark.parametrize("name", ["power_spectrum-Pt", "embedded_atom-Pt", "density_moments-Pt"])
def test_species_outside_the_domain_are_not_seen(name):
    _, params = made(name)
    first, _ = jitted(name)
    energies, g = first(params, cluster_rows(POSITION, ATOMS))
    only = np.flatnonzero(ATOMS == 0)
    alone, _ = first(params, cluster_rows(POSITION[only], ATOMS[only]))
    close(np.asarray(energies)[only], alone, 1e-12)
    carbon = np.asarray(cluster_rows(POSITION, ATOMS).neighbor_species) == 1
    np.testing.assert_array_equal(np.asarray(g)[carbon], 0.0)


@pytest.mark.parametrize("name", EXPERTS)
def test_isolated_atom_has_its_shift(name):
    _, params = made(name)
    energies, forces = potential(name).evaluate(
        np.diag([0.0, 10.0]) @ np.eye(2, 3), np.array([0, 1]), np.zeros(2, int)
    )
    species = [0, 0] if name.endswith("-Pt") else [0, 1]
    np.testing.assert_array_equal(energies, params.get("shift", np.zeros(2))[species])
    np.testing.assert_array_equal(forces, 0.0)


@pytest.mark.parametrize("name", KINDS)
def test_derivatives_on_padded_slots_are_finite(name):
    """Zero-length padded slots, and rows of nothing else, under two derivatives."""
    _, params = made(name)
    first, second = jitted(name)
    real = cluster_rows(POSITION, ATOMS)
    padded = cluster_rows(POSITION, ATOMS, extra_slots=3, extra_rows=2, fill=0.0)
    (loss, of_params), of_displacement = second(params, padded)
    assert np.isfinite(loss)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(of_params))
    assert np.isfinite(of_displacement).all()
    # The padded rows add their shift's square to the loss, and nothing to what displacements feel.
    expected = second(params, real)[1]
    close(of_displacement[: len(ATOMS), : len(ATOMS) - 1], expected, 1e-11)
    np.testing.assert_array_equal(np.asarray(of_displacement)[~np.asarray(padded.mask)], 0.0)
    nothing = padded._replace(
        mask=jnp.zeros_like(padded.mask), displacement=jnp.zeros_like(padded.displacement)
    )
    _, g = first(params, nothing)
    (_, of_params), of_displacement = second(params, nothing)
    np.testing.assert_array_equal(g, 0.0)
    np.testing.assert_array_equal(of_displacement, 0.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(of_params))


@pytest.mark.parametrize("name", KINDS)
def test_parameter_gradient_of_a_force_loss(name):
    """Double backward against finite differences, along a random direction of each parameter."""
    _, params = made(name)
    _, second = jitted(name)
    rows = cluster_rows(POSITION, ATOMS, extra_slots=3, extra_rows=2, fill=0.0)
    (_, gradient), _ = second(params, rows)
    rng = np.random.default_rng(1)
    h = 1e-4
    leaves, tree = jax.tree.flatten(params)
    for place, leaf in enumerate(leaves):
        direction = rng.standard_normal(np.shape(leaf))

        def loss(step, place=place, leaf=leaf, direction=direction):
            moved = [*leaves[:place], leaf + step * direction, *leaves[place + 1 :]]
            return float(second(jax.tree.unflatten(tree, moved), rows)[0][0])

        expected = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
        found = float(np.sum(np.asarray(jax.tree.leaves(gradient)[place]) * direction))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * max(1.0, loss(0.0)))
