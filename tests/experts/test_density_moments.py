"""Density moments against their definition, in numpy and with e3nn's harmonics."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ATOMS, CUTOFF, POSITION, close, cluster_rows, randomized, small_density_moments
from numpy.polynomial import chebyshev

from moe_md.experts import density_moments
from moe_md.experts.chunks import components_for
from moe_md.experts.zbl import zbl_energies
from moe_md.neighbors.rows import Neighborhood


def moments(displacement, neighbor_species, num_radial, power=4):
    """A of one centre, `[species][l]` of `[q, m]`, from the formula in the module's docstring."""
    x = np.asarray(displacement) / CUTOFF
    u = np.sum(x**2, axis=1)
    v = np.minimum(u, 1.0)
    radial = (1 - v) ** power * chebyshev.chebval(1 - 2 * v, np.eye(max(num_radial)))  # [q, k]
    found = []
    for species in range(2):
        near = neighbor_species == species
        blocks = []
        for l, n in enumerate(num_radial):
            Y = e3nn.spherical_harmonics(l, e3nn.IrrepsArray("1o", jnp.asarray(x)), True, "norm").array
            S = np.asarray(Y) * (u**0.5)[:, None] ** l
            blocks.append(radial[:n][:, near] @ S[near])
        found.append(blocks)
    return found


def test_inputs_follow_the_formula():
    num_radial = (4, 2, 2)
    expert = small_density_moments()
    inputs = np.asarray(expert.inputs(randomized(expert), cluster_rows(POSITION, ATOMS)))
    for i in range(len(ATOMS)):
        others = np.arange(len(ATOMS)) != i
        A = moments(POSITION[others] - POSITION[i], ATOMS[others], num_radial)
        expected = [A[s][0][q, 0] for s in range(2) for q in range(4)]
        for l in (1, 2):
            both = np.concatenate([A[0][l], A[1][l]])
            expected += [both[a] @ both[b] for a in range(4) for b in range(a, 4)]
        np.testing.assert_allclose(inputs[i], expected, rtol=1e-6, atol=1e-7)  # e3nn's harmonics


def test_a_pair_vanishes_with_three_derivatives():
    expert = density_moments(("Pt", "C"), CUTOFF, num_radial=(8, 2, 2), hidden=(6, 5))
    params = randomized(expert)

    def energy(r):
        one = jnp.zeros((1, 1), int)
        rows = Neighborhood(
            r * jnp.array([[[0.6, 0.0, 0.8]]]), jnp.ones((1, 1), bool), jnp.zeros(1, int), one, one
        )
        return expert.atom_energies(params, rows)[0] - params["shift"][0]

    derivatives, at = [energy], CUTOFF * (1 - 1e-7)
    for _ in range(4):
        derivatives.append(jax.grad(derivatives[-1]))
    *vanishing, fourth = (abs(float(f(at))) for f in derivatives)
    assert max(vanishing) < 1e-3 < fourth
    assert float(energy(1.0001 * CUTOFF)) == 0.0


def test_zbl_is_added():
    plain, repulsive = (density_moments(("Pt", "C"), CUTOFF, hidden=(4,), zbl=zbl) for zbl in (False, True))
    params, rows = randomized(plain), cluster_rows(POSITION, ATOMS)
    expected = plain.atom_energies(params, rows) + zbl_energies(rows, (78, 6), CUTOFF)
    close(repulsive.atom_energies(params, rows), expected, 1e-12)


def test_pair_cutoffs_are_those_of_the_pair():
    """An atom further than the cutoff of its pair of species is not seen; one that is nearer is."""
    short = density_moments(("Pt", "C"), 3.0, hidden=(4,), pair_cutoffs=((3.0, 2.0), (2.0, 3.0)))
    params = randomized(short)
    far, near = (np.array([[0.0, 0.0, 0.0], [r, 0.0, 0.0]]) for r in (2.5, 1.9))
    pair, unlike = np.array([0, 0]), np.array([0, 1])
    alone = np.asarray(params["shift"])[unlike]
    np.testing.assert_array_equal(short.atom_energies(params, cluster_rows(far, unlike)), alone)
    assert np.all(short.atom_energies(params, cluster_rows(near, unlike)) != alone)
    assert np.all(short.atom_energies(params, cluster_rows(far, pair)) != alone[0])


def test_mixtures_of_species_are_blocks():
    """With the identity as mixtures, each is one species."""
    rows = cluster_rows(POSITION, ATOMS)
    blocks, mixed = (
        density_moments(("Pt", "C"), CUTOFF, num_radial=(3, 2), hidden=(4,), num_species_mixtures=n)
        for n in (None, 2)
    )
    params = randomized(blocks)
    with_identity = {**params, "network": {**params["network"], "species_mixing": np.eye(2)}}
    close(mixed.atom_energies(with_identity, rows), blocks.atom_energies(params, rows), 1e-12)
    one = density_moments(("Pt", "C"), CUTOFF, num_radial=(3, 2), hidden=(4,), num_species_mixtures=1)
    inputs = one.inputs(randomized(one), rows)
    assert inputs.shape == (len(ATOMS), 3 + 3)


@pytest.mark.parametrize("fill", [0.0, 1e-3])
def test_slots_without_a_neighbour_are_beyond_the_cutoff(fill):
    expert = small_density_moments(("Pt",))
    rows = components_for(expert, cluster_rows(POSITION, ATOMS, extra_slots=2, fill=fill))
    x, y, z = rows.displacement
    mask = np.asarray(cluster_rows(POSITION, ATOMS, extra_slots=2).mask) & (
        np.asarray(rows.neighbor_species) == 0
    )
    distance = np.sqrt(x * x + y * y + z * z)
    assert np.all(distance[~mask] > CUTOFF) and np.any(distance[mask] < CUTOFF)
