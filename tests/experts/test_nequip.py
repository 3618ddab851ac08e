"""NequIP on rows: against jax-md's own energy, and rows of a part against rows of all."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ATOMS, CUTOFF, POSITION, close, cluster_rows, randomized, small_nequip
from depths import short
from jax_md import energy, space
from jax_md.nn import nequip as jax_md_nequip

from moe_md.neighbors.rows import Neighborhood, rows_from_images

BOX = np.array([20.0, 12.0, 12.0])


def test_energy_and_forces_are_those_of_jax_md():
    """jax-md's energy function, neighbour list, featuriser and all, in float64: equal to rounding."""
    num_layers, hidden = 2, "4x0e + 2x0o + 2x1o + 2x1e + 2x2e"
    expert = small_nequip(num_layers, CUTOFF, 2, hidden)
    params = {**randomized(expert), "scale": np.ones(2), "shift": np.zeros(2)}
    cfg = jax_md_nequip.default_config()
    cfg.update(graph_net_steps=num_layers, n_elements=2, num_basis=4, r_max=CUTOFF, n_neighbors=5.0)
    cfg.update(radial_net_n_hidden=5, radial_net_n_layers=1, scale=1.0, shift=0.0)
    cfg.update(hidden_irreps=hidden, sh_irreps="1x0e + 1x1o + 1x2e")
    displacement_fn, _ = space.periodic(BOX)
    neighbor_fn, _, energy_fn = energy.nequip_neighbor_list(displacement_fn, BOX, cfg)

    far = jnp.asarray(np.arange(len(ATOMS))[:, None] * np.array([3.3, 0.0, 0.0]))
    position = jnp.asarray(POSITION)
    list_ = neighbor_fn.allocate(position)

    @jax.jit
    @jax.value_and_grad
    def theirs(R):
        their_params = {"params": params["network"]["nequip"]}
        return energy_fn(their_params, R, list_.update(R), atoms=jnp.eye(2)[ATOMS])

    @jax.jit
    def ours(position):
        def total(R):
            return jnp.sum(expert.atom_energies(params, cluster_rows(R, ATOMS)))

        return jax.value_and_grad(total)(position)

    apart, _ = theirs(far)  # jax-md gives lone atoms an energy; ours counts from it
    their_energy, their_gradient = theirs(position)
    our_energy, our_gradient = ours(position)
    assert abs(our_energy) > 1e-3
    close(our_energy, their_energy - apart, 1e-12)
    close(our_gradient, their_gradient, 1e-12)


@lru_cache
def crystal():
    """48 atoms of two species, periodic along a chain that is many cutoffs long."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(np.arange(12), np.arange(2), np.arange(2), indexing="ij")
    position = 1.9 * np.stack([x, y, z], axis=-1).reshape(-1, 3) + rng.normal(0, 0.08, (48, 3))
    species = rng.integers(0, 2, 48)
    cell = np.diag([12 * 1.9, 30.0, 30.0])
    return rows_from_images(position, species, cell, (True, False, False), CUTOFF)


def reached(rows, atoms, hops):
    """Atoms within `hops` neighbours of some, those first."""
    held = list(atoms)
    for _ in range(hops):
        seen = rows.neighbor[held][rows.mask[held]]
        held += sorted(set(seen.tolist()) - set(held))
    return np.array(held)


def part_of(rows, held):
    """Rows of `held` atoms, their neighbours numbered among them; `n` and more where not held."""
    row_of = np.full(len(rows.mask) + 1, len(held) + 7)
    row_of[held] = np.arange(len(held))
    return Neighborhood(*(x[held] for x in rows))._replace(neighbor=row_of[rows.neighbor[held]])


@pytest.mark.parametrize("num_layers", short([1, 2, 3], only=[2]))
def test_rows_within_the_hops_are_enough(num_layers):
    expert = small_nequip(num_layers)
    params = randomized(expert)
    assert expert.num_hops == num_layers
    rows, owned = crystal(), [0, 5, 23]
    atom_energies = jax.jit(expert.atom_energies)
    expected = np.asarray(atom_energies(params, rows))[owned]
    halo = reached(rows, owned, num_layers - 1)
    assert len(halo) < 48
    close(atom_energies(params, part_of(rows, halo))[: len(owned)], expected, 1e-12)
    if num_layers > 1:
        short = reached(rows, owned, num_layers - 2)
        found = np.asarray(atom_energies(params, part_of(rows, short)))[: len(owned)]
        assert np.abs(found - expected).min() > 1e-6


def test_partial_forces_of_owned_energies_are_exact_with_their_halo():
    """The gradient of owned energies with respect to every displacement that they depend on."""
    expert = small_nequip(2)
    params = randomized(expert)
    rows, owned = crystal(), [0, 5, 23]
    halo = reached(rows, owned, 1)

    def gradient(rows, owned):
        def total(D):
            return jnp.sum(expert.atom_energies(params, rows._replace(displacement=D))[jnp.asarray(owned)])

        return np.asarray(jax.jit(jax.grad(total))(jnp.asarray(rows.displacement)))

    expected = gradient(rows, owned)
    assert np.abs(expected[halo[len(owned) :]]).max() > 1e-5  # messages carry forces
    close(gradient(part_of(rows, halo), np.arange(len(owned))), expected[halo], 1e-12)
    outside = np.setdiff1d(np.arange(48), halo)
    np.testing.assert_array_equal(expected[outside], 0.0)


def test_one_layer_does_not_look_at_row_numbers():
    expert = small_nequip(1)
    params = randomized(expert)
    rows = cluster_rows(POSITION, ATOMS)
    expected = expert.atom_energies(params, rows)
    wrong = rows._replace(neighbor=(rows.neighbor + 3) % len(ATOMS))
    np.testing.assert_array_equal(expert.atom_energies(params, wrong), expected)


@pytest.mark.parametrize("junk", [-5, 0, 10**6])
def test_a_masked_slot_may_hold_any_number(junk):
    expert = small_nequip()
    params = randomized(expert)
    first = jax.jit(expert.atom_energies)
    rows = cluster_rows(POSITION, ATOMS, extra_slots=2)
    junked = rows._replace(neighbor=jnp.where(rows.mask, rows.neighbor, junk))
    np.testing.assert_array_equal(first(params, junked), first(params, rows))


@lru_cache
def pair_derivatives(cutoff):
    """Energy of a pair at a distance, and two derivatives, in float64."""
    expert = small_nequip(1, cutoff)
    params = randomized(expert)

    def energy_of(r):
        return jnp.sum(
            expert.atom_energies(params, cluster_rows(jnp.array([[0.0] * 3, [1, 0, 0]]) * r, ATOMS[:2]))
        )

    first = jax.grad(energy_of)
    return jax.jit(lambda r: (energy_of(r), first(r), jax.grad(first)(r)))


def test_two_derivatives_vanish_at_the_cutoff():
    at = pair_derivatives(CUTOFF)
    far, near = at(CUTOFF - 1e-2), at(CUTOFF - 1e-3)
    outside = at(CUTOFF + 1e-3)
    for order, (a, b, zero) in enumerate(zip(far, near, outside)):
        if order == 0:
            a, b, zero = a - zero, b - zero, 0.0
        assert abs(a) > 0 and zero == 0.0
        assert 0.8 * 10.0 ** (order - 3) < b / a < 1.25 * 10.0 ** (order - 3)


@pytest.mark.parametrize("cutoff, step", [(3.0, 1e-14), (3.3125, 1e-14), (3.3, 1e-7)])
def test_where_the_switch_sets_in_the_force_is_continuous(cutoff, step):
    """The documented weakness: the second derivative jumps there, and float32 constants leave a step."""
    at = pair_derivatives(cutoff)
    e, onset = 1e-9, float(np.float32(cutoff) - np.float32(0.5))
    inside, outside = at(onset - e), at(onset + e)
    assert abs(outside[0] - inside[0] - e * (inside[1] + outside[1])) < step
    assert abs(outside[1] - inside[1]) < 1e-6
    assert abs(outside[2] - inside[2]) > 1e-2
