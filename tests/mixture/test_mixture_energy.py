"""A mixture's energy is its owners'; its forces, parameter gradients and virial follow."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ATOMS, BOX, OWNERS, POSITION, close, cluster_rows, randomized
from jax_md import space
from small_mixtures import (
    LJ,
    PAIR,
    PAIR_PARAMS,
    SHORT,
    SPECTRUM,
    all_pairs,
    build,
    crystal,
    displacement_fn,
    gradient_of,
)

import moe_md as mm
from moe_md.derivatives import forces, virial
from moe_md.experts import energies_and_partial_forces
from moe_md.mixture import mixture_neighbor_list
from moe_md.neighbors.rows import rows_from_images
from moe_md.regions import around, fixed


def ball(r_core=1.2):
    """A ball around atom 0 that blends some of its neighbours."""
    return around([0], r_core, 1.3)


@pytest.mark.parametrize("e", [0, 1])
def test_one_gate_at_one_is_that_expert(e):
    _, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, fixed([e] * 6), per_particle=True)
    assert nbrs.centers[1 - e].shape == (0,)  # an expert may own no atoms
    close(energy_fn(jnp.asarray(POSITION), nbrs), all_pairs(e)[0], 1e-13)
    g = all_pairs(e)[1]
    expected = forces(g, cluster_rows(POSITION, ATOMS), jnp.arange(6), 6)
    found = -jax.jit(jax.grad(lambda R: jnp.sum(energy_fn(R, nbrs))))(jnp.asarray(POSITION))
    close(found, expected, 1e-12)


def test_each_atom_has_its_owners_energy():
    _, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, fixed(OWNERS), per_particle=True)
    expected = np.where(OWNERS == 0, all_pairs(0)[0], all_pairs(1)[0])
    close(energy_fn(jnp.asarray(POSITION), nbrs), expected, 1e-13)
    _, total_fn, _ = build(PAIR, PAIR_PARAMS, fixed(OWNERS))
    close(total_fn(jnp.asarray(POSITION), nbrs), np.sum(expected), 1e-13)


def test_forces_are_those_of_each_owners_rows():
    _, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, fixed(OWNERS))
    found = -gradient_of(energy_fn)(jnp.asarray(POSITION), nbrs)[1]
    rows = cluster_rows(POSITION, ATOMS)
    g = jnp.where((OWNERS == 0)[:, None, None], all_pairs(0)[1], all_pairs(1)[1])
    close(found, forces(g, rows, jnp.arange(6), 6), 1e-12)


def test_experts_compute_only_their_own_rows():
    """The point of it all: no `where` over both."""
    seen = []

    def counting(e, expert):
        def atom_energies(params, rows):
            seen.append((e, rows.mask.shape[0]))
            return expert.atom_energies(params, rows)

        return expert._replace(atom_energies=atom_energies)

    pair = [counting(e, x) for e, x in enumerate((LJ, LJ))]
    _, energy_fn, nbrs = build(pair, [randomized(LJ)] * 2, fixed([1, 1, 0, 1, 1, 1]))
    energy_fn(jnp.asarray(POSITION), nbrs)
    assert set(seen) == {(0, 1), (1, 5)}


@pytest.fixture(scope="module")
def identical():
    """Three copies of one expert; assignments change without compiling."""
    region = fixed(np.zeros(6, int), n_experts=3)
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn, BOX, mm.experts.potentials([LJ] * 3, [randomized(LJ)] * 3), ATOMS, region
    )
    nbrs = neighbor_fn.allocate(jnp.asarray(POSITION), 6)
    # Room for all atoms in every expert.
    nbrs = replace(nbrs, centers=(jnp.arange(6, dtype=jnp.int32),) * 3)

    @jax.jit
    def evaluate(R, nbrs, region):
        nbrs = nbrs.update(R, region=region)
        return jax.value_and_grad(lambda R: energy_fn(R, nbrs, region=region))(R), nbrs.did_buffer_overflow

    return evaluate, nbrs


def test_identical_experts_give_one_energy_for_any_assignment(identical):
    evaluate, nbrs = identical
    R = jnp.asarray(POSITION)
    (expected, slope), _ = evaluate(R, nbrs, fixed(np.zeros(6, int), n_experts=3))
    rows = cluster_rows(POSITION, ATOMS)
    close(expected, jnp.sum(LJ.atom_energies(randomized(LJ), rows)), 1e-13)
    rng = np.random.default_rng(0)
    for _ in range(12):
        (energy, gradient), overflow = evaluate(R, nbrs, fixed(rng.integers(0, 3, 6), n_experts=3))
        assert not overflow
        close(energy, expected, 1e-13)
        close(gradient, slope, 1e-12)


def test_identical_experts_give_one_energy_for_any_blend():
    _, energy_fn, nbrs = build((LJ, LJ), [randomized(LJ)] * 2, ball())
    R = jnp.asarray(POSITION)
    gate = ball().gate(R, displacement_fn)
    assert np.sum((gate[:, 0] > 0.01) & (gate[:, 0] < 0.99)) >= 2
    close(energy_fn(R, nbrs), jnp.sum(all_pairs(1)[0]), 1e-13)
    expected = -forces(all_pairs(1)[1], cluster_rows(POSITION, ATOMS), jnp.arange(6), 6)
    close(gradient_of(energy_fn)(R, nbrs)[1], expected, 1e-12)


def test_a_blend_is_differentiable_in_its_region():
    _, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, ball())
    R = jnp.asarray(POSITION)

    @jax.jit
    def energy(r_core):
        return energy_fn(R, nbrs, region=replace(ball(), r_core=r_core))

    h = 1e-3
    expected = (8 * (energy(1.2 + h) - energy(1.2 - h)) - (energy(1.2 + 2 * h) - energy(1.2 - 2 * h))) / (
        12 * h
    )
    found = jax.grad(energy)(1.2)
    assert abs(found) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_three_experts():
    three, owner = (SPECTRUM, LJ, SHORT), np.array([2, 1, 0, 0, 2, 1])
    params = [randomized(e) for e in three]
    _, energy_fn, nbrs = build(three, params, fixed(owner, n_experts=3), per_particle=True)
    rows = cluster_rows(POSITION, ATOMS)
    expected = np.choose(
        owner, [np.asarray(jax.jit(e.atom_energies)(p, rows)) for e, p in zip(three, params)]
    )
    close(energy_fn(jnp.asarray(POSITION), nbrs), expected, 1e-12)


def test_one_expert_is_a_mixture_too():
    _, energy_fn, nbrs = build((LJ,), [randomized(LJ)], fixed([0] * 6, n_experts=1))
    close(energy_fn(jnp.asarray(POSITION), nbrs), jnp.sum(all_pairs(1)[0]), 1e-13)


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_chunking_changes_nothing(chunk_size):
    R = jnp.asarray(POSITION)
    built = [build(PAIR, PAIR_PARAMS, fixed(OWNERS), chunk_size=n) for n in (64, chunk_size)]
    expected, found = (gradient_of(energy_fn)(R, nbrs) for _, energy_fn, nbrs in built)
    close(found[0], expected[0], 1e-13)
    close(found[1], expected[1], 1e-13)


def test_padding_and_jit_change_nothing():
    R = jnp.asarray(POSITION)
    _, energy_fn, tight = build(PAIR, PAIR_PARAMS, fixed(OWNERS))
    _, eager_fn = mixture_neighbor_list(
        displacement_fn, BOX, mm.experts.potentials(PAIR, PAIR_PARAMS), ATOMS, fixed(OWNERS)
    )
    more = jnp.full(2, len(ATOMS), jnp.int32)
    wide = replace(tight, centers=tuple(jnp.concatenate([c, more]) for c in tight.centers)).update(R)
    assert not wide.did_buffer_overflow
    assert [c.tolist() for c in wide.centers] == [[1, 2, 5, 6, 6], [0, 3, 4, 6, 6]]
    padded = tuple(jnp.pad(idx, [(0, 0), (0, 3)], constant_values=len(ATOMS)) for idx in wide.list.idx)
    wide = replace(wide, list=replace(wide.list, idx=padded))
    expected = gradient_of(energy_fn)(R, tight)
    for energy, gradient in (gradient_of(energy_fn)(R, wide), jax.value_and_grad(eager_fn)(R, tight)):
        close(energy, expected[0], 1e-13)
        close(gradient, expected[1], 1e-12)


def test_skin_changes_nothing():
    R = jnp.asarray(POSITION)
    built = [build(PAIR, PAIR_PARAMS, fixed(OWNERS), dr_threshold=d) for d in (0.0, 1.0)]
    values = [gradient_of(energy_fn)(R, nbrs) for _, energy_fn, nbrs in built]
    close(values[0][0], values[1][0], 1e-13)
    close(values[0][1], values[1][1], 1e-13)


def test_gradient_with_respect_to_parameters():
    """Of a loss on forces, as training takes it, against finite differences."""
    _, energy_fn, nbrs = build((LJ, SHORT), [randomized(LJ)] * 2, fixed(OWNERS))
    R = jnp.asarray(POSITION)

    @jax.jit
    def loss(params):
        return jnp.sum(jax.grad(energy_fn)(R, nbrs, params=params) ** 2) + energy_fn(R, nbrs, params=params)

    params = [{"epsilon": jnp.array(e), "sigma": jnp.array(s)} for e, s in ((0.4, 1.6), (0.5, 1.55))]
    gradient, tree = jax.tree.flatten(jax.grad(loss)(params))
    leaves, h = jax.tree.leaves(params), 1e-4
    for k, found in enumerate(gradient):

        def at(step, k=k):
            return loss(jax.tree.unflatten(tree, [x + step * (i == k) for i, x in enumerate(leaves)]))

        expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        assert abs(found) > 1e-3
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_builders_parameters_are_only_defaults():
    _, energy_fn, nbrs = build((LJ, LJ), [randomized(LJ)] * 2, fixed(OWNERS))
    R = jnp.asarray(POSITION)
    doubled = [{**randomized(LJ), "epsilon": 0.8}] * 2
    close(energy_fn(R, nbrs, params=doubled), 2 * energy_fn(R, nbrs), 1e-13)


# Strain, virial, box.


@pytest.fixture(scope="module")
def strained():
    R, edges, species, owner = crystal()
    rows = rows_from_images(R, species, np.diag(edges), (True,) * 3, 3.0)
    pair = zip(PAIR, PAIR_PARAMS)
    g = jnp.stack([energies_and_partial_forces(e, p, jax.tree.map(jnp.asarray, rows))[1] for e, p in pair])
    g = jnp.where((owner == 0)[:, None, None], g[0], g[1])
    assert np.sum(rows.mask) > 8 * len(R)
    return R, edges, species, owner, rows, g


def test_mixture_is_the_sum_over_image_rows(strained):
    R, edges, species, owner, rows, g = strained
    D, _ = space.periodic(edges)
    neighbor_fn, energy_fn = mixture_neighbor_list(
        D, edges, mm.experts.potentials(PAIR, PAIR_PARAMS), species, fixed(owner), per_particle=True
    )
    nbrs = neighbor_fn.allocate(jnp.asarray(R % edges))
    rows = jax.tree.map(jnp.asarray, rows)
    both = [jax.jit(e.atom_energies)(p, rows) for e, p in zip(PAIR, PAIR_PARAMS)]
    compute = jax.jit(jax.value_and_grad(lambda R, nbrs: jnp.sum(energy_fn(R, nbrs))))
    energy, gradient = compute(jnp.asarray(R % edges), nbrs)
    close(energy, jnp.sum(jnp.where(owner == 0, *both)), 1e-12)
    close(-gradient, forces(g, rows, jnp.arange(len(R)), len(R)), 1e-12)
    assert np.abs(gradient.sum(axis=0)).max() < 1e-12


def test_strain_derivative_is_the_virial(strained):
    R, edges, species, owner, rows, g = strained
    D, _ = space.periodic(edges)
    neighbor_fn, energy_fn = mixture_neighbor_list(
        D, edges, mm.experts.potentials(PAIR, PAIR_PARAMS), species, fixed(owner)
    )
    R = jnp.asarray(R % edges)
    nbrs = neighbor_fn.allocate(R)
    W = jnp.sum(virial(g, rows), axis=0)
    gradient = jax.jit(jax.grad(lambda strain: energy_fn(R, nbrs, perturbation=jnp.eye(3) + strain)))
    by_matrix = gradient(jnp.zeros((3, 3)))
    close(by_matrix, W, 1e-11)
    # A scalar perturbation, as jax-md's pressure takes: its slope is the trace.
    by_scalar = jax.jit(jax.grad(lambda x: energy_fn(R, nbrs, perturbation=1.0 + x)))(0.0)
    close(by_scalar, jnp.trace(W), 1e-11)


@pytest.mark.parametrize("region", ["fixed", "ball"])
def test_box_reaches_rows_and_gates(strained, region):
    """Fractional coordinates in a box that changes: NPT's way, against a mixture made in the new box."""
    R, edges, species, owner, *_ = strained
    region = fixed(owner) if region == "fixed" else around([13], 1.5, 1.5)
    D, _ = space.periodic_general(edges, fractional_coordinates=True)
    make = partial(
        mixture_neighbor_list,
        potentials=mm.experts.potentials((LJ, SHORT), [randomized(LJ)] * 2),
        species=species,
        region=region,
    )
    neighbor_fn, energy_fn = make(D, edges, fractional_coordinates=True, dr_threshold=0.3)
    u = jnp.asarray((R / edges) % 1.0)
    nbrs = neighbor_fn.allocate(u, 3)
    # Larger along two edges: a gate that kept the old box would hold other atoms.
    larger = edges * np.array([1.04, 1.0, 1.02])
    moved = nbrs.update(u, box=jnp.asarray(larger))
    assert not moved.did_buffer_overflow
    compiled = jax.jit(energy_fn)
    found = compiled(u, moved, box=jnp.asarray(larger))
    D, _ = space.periodic(larger)
    neighbor_fn, energy_fn_there = make(D, larger)
    there = neighbor_fn.allocate(u * larger[None])
    expected = jax.jit(energy_fn_there)(u * larger[None], there)
    close(found, expected, 1e-11)
    assert abs(found - compiled(u, nbrs, box=jnp.asarray(edges))) > 1e-2
