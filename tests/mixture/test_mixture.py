"""The mixture: the contract, and what defines it."""

import warnings
from dataclasses import replace
from functools import lru_cache, partial

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ATOMS, BOX, OWNERS, POSITION, close, cluster_rows, randomized
from depths import short
from jax_md import minimize, simulate, space

import moe_md as mm
from moe_md import experts as mm_experts
from moe_md.derivatives import forces, virial
from moe_md.experts import energies_and_partial_forces
from moe_md.mixture import mixture_neighbor_list
from moe_md.neighbors.neighbor_list import perpendicular_widths
from moe_md.neighbors.rows import rows_from_images
from moe_md.regions import (
    RegionNeighbors,
    around,
    committee,
    complement,
    coordination,
    custom,
    fixed,
    nested,
    slab,
    sphere,
    switch,
    union,
)

LJ, SPECTRUM = contract.small_lennard_jones(), contract.small_power_spectrum(l_max=1)
SHORT = contract.small_lennard_jones(2.2)


def ball(r_core=1.2):
    """A ball around atom 0 that blends some of its neighbours."""
    return around([0], r_core, 1.3)


def slab_like(owner):
    """The slab that holds the owners' zeros: atoms at height 1 - owner, a plane between."""
    height = np.outer(1 - owner, [0.0, 0.0, 1.0])
    return slab(height, lower=0.5)


def shell(owner):
    """Frozen weights: the owners' ones are shared half and half."""
    return sphere(np.outer(owner, [1.0, 0.0, 0.0]), [0.0, 0.0, 0.0], 0.5, blend=1.0)


def about(owner, r_core=0.9, r_blend=1.1):
    """Balls around all zeros."""
    return around(np.flatnonzero(owner == 0), r_core, r_blend)


def crowded(owner):
    """Where atoms have many neighbours within 2.2 Å."""

    def gate(parameters, position, displacement_fn):
        D = jax.vmap(jax.vmap(displacement_fn, (0, None)), (None, 0))(position, position)
        square = jnp.sum(D**2, axis=-1) / 2.2**2
        apart = ~jnp.eye(len(position), dtype=bool)
        coordination = jnp.sum(jnp.where(apart & (square < 1), (1 - square) ** 3, 0.0), axis=1)
        inside = 1.0 - switch((coordination - parameters[0]) / parameters[1])
        return jnp.stack([inside, 1.0 - inside], axis=1)

    return custom(gate, parameters=jnp.array([0.0, 0.15]))


EMBEDDED = contract.small_embedded_atom(cutoff=2.7)
MIXTURES = {
    "allegro + power_spectrum, fixed": ((contract.small_allegro(1, 1, True), SPECTRUM), fixed),
    # Cutoffs differ: a short expert lives on rows of its own.
    "power_spectrum + lennard_jones, fixed": ((SPECTRUM, SHORT), fixed),
    "lennard_jones twice, slab": ((LJ, LJ), slab_like),
    "embedded_atom + lennard_jones, sphere": ((EMBEDDED, LJ), shell),
    "power_spectrum + embedded_atom, around": ((SPECTRUM, EMBEDDED), about),
    "embedded_atom + lennard_jones, custom": ((EMBEDDED, SHORT), crowded),
    "embedded_atom + lennard_jones, union": (
        (EMBEDDED, SHORT),
        lambda owner: union(slab_like(owner), about(owner)),
    ),
    "lennard_jones + embedded_atom, complement": ((LJ, EMBEDDED), lambda owner: complement(about(owner))),
    "allegro + smaller allegro + power_spectrum, nested": (
        (
            contract.small_allegro(2, 1, True),
            contract.small_allegro(1, 1, False),
            contract.small_power_spectrum(cutoff=2.7, l_max=1),
        ),
        lambda owner: nested(about(owner), crowded(owner)),
    ),
    "nequip + embedded_atom, fixed": ((contract.small_nequip(), EMBEDDED), fixed),
    "embedded_atom + nequip, around": ((EMBEDDED, contract.small_nequip()), about),
}


@lru_cache
def potential(name):
    many, region_of = MIXTURES[name]
    other = {"epsilon": np.array(0.7), "sigma": np.array(1.5)}
    params = [randomized(e) for e in many]
    if many == (LJ, LJ):
        params[1] = other
    return contract.mixture_potential(many, params, region_of, chunk_size=2)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda f: f.__name__.removeprefix("check_"))
@pytest.mark.parametrize(
    "name",
    short(
        MIXTURES,
        only=[
            "allegro + power_spectrum, fixed",
            "power_spectrum + embedded_atom, around",
            "nequip + embedded_atom, fixed",
        ],
    ),
)
def test_contract(name, check):
    check(potential(name))


displacement_fn, shift_fn = space.periodic(BOX)


def build(experts, params, region, *, species=ATOMS, position=POSITION, extra=0, **kwargs):
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn, BOX, mm.experts.potentials(experts, params), species, region, **kwargs
    )
    # Compiled whole: eagerly, each operation is a program of its own.
    return neighbor_fn, jax.jit(energy_fn), neighbor_fn.allocate(jnp.asarray(position), extra)


def gradient_of(energy_fn):
    """Energy and its gradient, compiled."""
    return jax.jit(jax.value_and_grad(energy_fn))


PAIR = (SHORT, LJ)  # that differ, in cutoff too, and compile fast
PAIR_PARAMS = [{"epsilon": np.array(0.7), "sigma": np.array(1.5)}, randomized(LJ)]


@lru_cache
def all_pairs(e):
    """Energies and partial forces of one expert on every atom, without any list."""
    return jax.jit(lambda p, rows: energies_and_partial_forces(PAIR[e], p, rows))(
        PAIR_PARAMS[e], cluster_rows(POSITION, ATOMS)
    )


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


@pytest.mark.parametrize(
    "region",
    [
        around([0], 1.2, 1.3),
        pytest.param(around([0, 3, 4], 0.8, 1.6), marks=pytest.mark.thorough),
        pytest.param(complement(around([2], 1.2, 1.3)), marks=pytest.mark.thorough),
        union(around([0], 1.0, 1.3), around([5], 0.9, 1.1)),
        coordination(1.0, 2.0, r_full=1.5, r_none=2.6),
        committee(SPECTRUM, [randomized(SPECTRUM), randomized(SPECTRUM, 7)], 0.05, 0.1),
    ],
    ids=["one seed", "three seeds", "complement", "union", "coordination", "committee"],
)
def test_a_blend_obeys_the_contract(region):
    """Forces hold the gate's gradient; momentum and torque stay zero."""
    blend = contract.mixture_potential(PAIR, PAIR_PARAMS, lambda owner: region)
    nbrs = build(PAIR, PAIR_PARAMS, region)[2]
    near = RegionNeighbors(jnp.asarray(ATOMS), nbrs.idx, 3.0, nbrs.requested)
    inside = region.gate(jnp.asarray(POSITION), displacement_fn, near)[:, 0]
    assert np.sum((inside > 0.01) & (inside < 0.99)) >= 2
    contract.check_central_differences(blend)
    contract.check_momentum_and_torque(blend)
    contract.check_translation(blend)
    contract.check_rotation(blend)


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


def test_a_shorter_cutoff_has_fewer_slots():
    R, edges, species, owner = crystal()
    pair = (SPECTRUM, SHORT)
    neighbor_fn, _ = mixture_neighbor_list(
        space.periodic(edges)[0],
        edges,
        mm.experts.potentials(pair, [randomized(e) for e in pair]),
        species,
        fixed(owner),
        dr_threshold=0.2,
    )
    nbrs = neighbor_fn.allocate(jnp.asarray(R % edges))
    long, short = (idx.shape[1] for idx in nbrs.list.idx)
    assert 2 * short < long == nbrs.idx.shape[1]


@pytest.fixture(scope="module")
def chain():
    """Forty atoms along x, a message-passing expert of two or three layers on ten of them."""
    rng = np.random.default_rng(2)
    box = np.array([60.0, 9.2, 9.2])
    R = jnp.asarray(
        np.array([1.5, 4.6, 4.6]) * np.outer(np.arange(40), [1, 0, 0]) + rng.uniform(0.0, 1.2, (40, 3))
    )
    D, _ = space.periodic(box)
    return R, box, D, np.arange(40) % 2, np.where((np.arange(40) >= 12) & (np.arange(40) < 22), 0, 1)


@pytest.mark.parametrize("num_layers", short([1, 2, 3], only=[2]))
def test_a_halo_gives_the_energies_of_the_full_evaluation(chain, num_layers):
    """Owned atoms' energies and all forces, from owned rows and their halo, against rows for all atoms."""
    R, box, D, species, owner = chain
    expert = contract.small_nequip(num_layers)
    pair, params = (expert, SHORT), [randomized(expert), randomized(SHORT)]
    make = partial(
        mixture_neighbor_list, D, box, mm.experts.potentials(pair, params), species, per_particle=True
    )

    def evaluate(region, weights):
        neighbor_fn, energies_fn = make(region=region)
        nbrs = neighbor_fn.allocate(R)
        compute = jax.jit(jax.value_and_grad(lambda R, nbrs: jnp.sum(weights * energies_fn(R, nbrs))))
        return compute(R, nbrs), nbrs

    weights = jnp.asarray(owner == 0, float)
    (energy, gradient), nbrs = evaluate(fixed(owner), weights)
    (full_energy, full_gradient), full = evaluate(fixed(np.zeros(40, int)), weights)
    close(energy, full_energy, 1e-12)
    close(gradient, full_gradient, 1e-11)
    n_halo = int(jnp.sum(nbrs.halo[0] < 40))
    assert int(jnp.sum(full.halo[0] < 40)) == 0 and (n_halo > 0) == (num_layers > 1)
    assert n_halo + 10 < 40
    # Atoms beyond the halo feel nothing of the owned ones.
    assert np.abs(gradient).max(axis=1).min() == 0.0


def test_a_halo_that_outgrows_its_rows_is_flagged(chain):
    R, box, D, species, owner = chain
    expert = contract.small_nequip(2)
    neighbor_fn, _ = mixture_neighbor_list(
        D,
        box,
        (mm.Potential(expert, randomized(expert)), mm.Potential(SHORT, randomized(SHORT))),
        species,
        fixed(owner),
        capacity_multiplier=1.0,
    )
    nbrs = neighbor_fn.allocate(R, 30)
    assert not nbrs.did_buffer_overflow
    denser = R * jnp.array([[0.5, 1.0, 1.0]]) + jnp.array([[8.0, 0.0, 0.0]])
    dense = jnp.where(jnp.asarray(owner == 0)[:, None], R, denser)
    moved = neighbor_fn.update(dense, nbrs)
    assert moved.error & 256


def test_three_experts_in_nested_regions_obey_the_contract():
    three = (SPECTRUM, LJ, SHORT)
    region = nested(around([0], 0.9, 1.2), around([0, 4], 1.5, 1.3))
    gate = np.asarray(region.gate(jnp.asarray(POSITION), displacement_fn))
    assert np.sum((gate > 0.02) & (gate < 0.98), axis=0).min() >= 1  # every expert shares some atom
    blend = contract.mixture_potential(three, [randomized(e) for e in three], lambda owner: region)
    contract.check_central_differences(blend)
    contract.check_momentum_and_torque(blend)


def test_a_seed_that_is_no_atom_is_refused():
    refused("seeds must be atoms, 0 to 5, got 6", region=around([6], 1.0, 1.0))


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


def crystal(n=3, a=2.1):
    """A rattled simple cubic block whose box exceeds twice the cutoff."""
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    R = a * grid + 0.1 * np.random.default_rng(5).standard_normal((n**3, 3))
    return R, np.full(3, n * a), np.arange(n**3) % 2, (grid[:, 2] > 0).astype(int)


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


# What the list must hold.


def test_a_region_that_the_list_does_not_hold_is_never_silent():
    _, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, fixed([0, 0, 1, 1, 1, 1]))
    R = jnp.asarray(POSITION)
    assert np.isfinite(energy_fn(R, nbrs))
    for other in ([1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1]):
        assert np.isnan(energy_fn(R, nbrs, region=fixed(other)))
    # The forces too: zero would be the worst answer.
    assert np.isnan(gradient_of(energy_fn)(R, nbrs, region=fixed([1, 1, 0, 0, 1, 1]))[1]).all()


def test_an_expert_without_rows_is_missed():
    _, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, fixed([1] * 6))
    assert np.isnan(energy_fn(jnp.asarray(POSITION), nbrs, region=fixed([0] + [1] * 5)))


def test_an_expert_given_too_many_atoms_is_flagged_and_reallocation_heals():
    neighbor_fn, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, fixed([0, 0, 1, 1, 1, 1]))
    R, grown = jnp.asarray(POSITION), fixed([0, 0, 0, 1, 1, 1])
    assert not nbrs.did_buffer_overflow and nbrs.error == 0
    updated = neighbor_fn.update(R, nbrs, region=grown)
    assert updated.did_buffer_overflow and updated.error == 256
    assert np.isnan(energy_fn(R, updated, region=grown))
    # The flag stays, so that a host loop that looks later still sees it.
    assert neighbor_fn.update(R, updated).did_buffer_overflow
    healed = neighbor_fn.allocate(R, region=grown)
    assert not healed.did_buffer_overflow
    assert [c.tolist() for c in healed.centers] == [[0, 1, 2], [3, 4, 5]]
    assert np.isfinite(energy_fn(R, healed, region=grown))


def test_a_region_that_moves_within_capacity_needs_only_an_update():
    _, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, fixed([0, 0, 1, 1, 1, 1]), per_particle=True)
    R, other = jnp.asarray(POSITION), np.array([1, 1, 0, 1, 0, 1])
    updated = nbrs.update(R, region=fixed(other))
    assert not updated.did_buffer_overflow
    expected = np.where(other == 0, all_pairs(0)[0], all_pairs(1)[0])
    close(energy_fn(R, updated, region=fixed(other)), expected, 1e-13)


def test_overflow_of_the_list_is_flagged():
    spread = POSITION * 2.5
    params = [randomized(LJ)] * 2
    neighbor_fn, _, nbrs = build((LJ, LJ), params, fixed(OWNERS), position=spread, capacity_multiplier=1.0)
    assert not nbrs.did_buffer_overflow
    crowded = neighbor_fn.update(jnp.asarray(POSITION * 0.6), nbrs)
    assert crowded.did_buffer_overflow and crowded.error != 0 and not crowded.error & 256


def test_neighbors_are_a_pytree():
    _, energy_fn, nbrs = build((LJ, SHORT), [randomized(LJ)] * 2, fixed(OWNERS))
    leaves, tree = jax.tree.flatten(nbrs)
    again = jax.tree.unflatten(tree, [jnp.asarray(x) for x in leaves])
    R = jnp.asarray(POSITION)
    assert energy_fn(R, again) == energy_fn(R, nbrs)


# Domains.


@pytest.fixture
def metal():
    return mm_experts.lennard_jones(contract.SPECIES, 3.0, epsilon=0.4, sigma=1.6, allowed_species=("Pt",))


def test_a_region_that_leaves_foreign_species_to_a_cheap_expert_warns(metal):
    with pytest.warns(
        UserWarning, match=r"region gives expert 1 3 atoms .* outside its domain \('Pt',\).* 3.0 Å"
    ):
        build((LJ, metal), [randomized(LJ), randomized(metal)], fixed([1, 0, 0, 1, 0, 1]))
    with pytest.warns(
        UserWarning, match="region gives expert 1 1 atoms"
    ):  # an atom that is itself out of domain
        far = np.concatenate([POSITION[:1], POSITION[:1] + 4.3])
        build(
            (LJ, metal),
            [randomized(LJ), randomized(metal)],
            fixed([0, 1]),
            species=np.array([0, 1]),
            position=far,
        )


def test_a_region_inside_every_domain_does_not_warn(metal):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # Beyond the expert's cutoff, in the skin, foreigners do not count.
        skin = np.array([[0.0, 0, 0], [2.0, 0, 0], [-3.2, 0, 0]])
        params = [randomized(LJ), randomized(metal)]
        _, _, nbrs = build((LJ, metal), params, fixed([1, 1, 0]), species=np.array([0, 0, 1]), position=skin)
        assert 2 in np.asarray(nbrs.idx[0])
        build((metal, LJ), [randomized(metal), randomized(LJ)], fixed([1] * 6))


# Input.


def refused(
    message, *, experts=(LJ, LJ), params=None, species=ATOMS, region=None, position=POSITION, **kwargs
):
    params = [randomized(e) for e in experts] if params is None else params
    with pytest.raises(ValueError, match=message):
        region = fixed(OWNERS) if region is None else region
        neighbor_fn, _ = mixture_neighbor_list(
            displacement_fn, BOX, mm.experts.potentials(experts, params), species, region, **kwargs
        )
        neighbor_fn.allocate(jnp.asarray(position))


def test_bad_experts_are_refused():
    other = mm_experts.lennard_jones(("C", "Pt"), 3.0)
    refused(r"potentials must share one species tuple, got .*'C', 'Pt'", experts=(LJ, other))
    refused("experts and params must be sequences of equal length.* got 2 and 1", params=[randomized(LJ)])
    refused(r"potentials must be pairs \(expert, params\), at least one, got \(\)", experts=())


def test_bad_species_are_refused():
    refused(r"species must index \('Pt', 'C'\), 0 to 1, got 0 to 2", species=np.array([0, 1, 2, 0, 0, 0]))
    refused("species must index .* got -1 to 1", species=np.array([0, 1, -1, 0, 0, 0]))
    refused("species must be a vector of integers.* dtype float64", species=ATOMS.astype(float))
    refused(r"species must be a vector of integers.*\(6, 1\)", species=ATOMS[:, None])


def test_bad_positions_are_refused():
    refused(r"position must have shape \[6, 3\], got \(5, 3\)", position=POSITION[:5])
    refused(r"position must have shape \[6, 3\], got \(6, 2\)", position=POSITION[:, :2])
    refused("position must be finite", position=np.where(POSITION > 2.4, np.nan, POSITION))


def test_bad_regions_are_refused():
    refused(
        r"region must have gates of shape \[n_atoms, n_experts\] = \[6, 2\], got \[5, 2\]",
        region=fixed([0, 0, 1, 1, 1]),
    )
    refused(r"region must have gates of shape .* = \[6, 2\], got \[6, 3\]", region=fixed(OWNERS, n_experts=3))


@pytest.mark.parametrize(
    "box", [6.0, np.array([20.0, 5.9, 20.0]), np.array([[20.0, 30, 0], [0, 8, 0], [0, 0, 20]])]
)
def test_a_box_too_small_for_the_cutoff_is_refused(box):
    with pytest.raises(
        ValueError, match=r"box must be wider than twice the cutoff, 2 x 3.0 Å, .* got widths"
    ):
        mixture_neighbor_list(
            displacement_fn, box, mm.experts.potentials((LJ, LJ), [randomized(LJ)] * 2), ATOMS, fixed(OWNERS)
        )


def test_a_box_just_wide_enough_is_taken():
    mixture_neighbor_list(
        space.periodic(6.01)[0],
        6.01,
        mm.experts.potentials((LJ, LJ), [randomized(LJ)] * 2),
        ATOMS,
        fixed(OWNERS),
    )
    # Columns are the vectors: perpendicular widths, not lengths.
    box = np.array([[4.0, 3.0, 0], [0, 4.0, 0], [0, 0, 5.0]])
    np.testing.assert_allclose(perpendicular_widths(box), [3.2, 4.0, 5.0])
    np.testing.assert_allclose(perpendicular_widths(7.0), [7.0] * 3)


def test_a_negative_skin_is_refused():
    refused(r"dr_threshold must not be negative \(Å\), got -0.1", dr_threshold=-0.1)


# With jax-md.


class Compilations:
    """Counts programs lowered while `on`; jax keeps listeners for good, so there is one."""

    def __init__(self):
        self.count, self.on = 0, False
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, duration, **kwargs):
        self.count += self.on and event == "/jax/core/compile/jaxpr_to_mlir_module_duration"


COMPILATIONS = Compilations()


def test_nothing_compiles_after_warm_up():
    neighbor_fn, energy_fn, nbrs = build((LJ, SHORT), [randomized(LJ)] * 2, fixed(OWNERS))

    @jax.jit
    def step(R, nbrs, region):
        nbrs = neighbor_fn.update(R, nbrs, region=region)
        return nbrs, *jax.value_and_grad(energy_fn)(R, nbrs, region=region)

    rng = np.random.default_rng(0)
    positions = [jnp.asarray(POSITION + 0.02 * rng.standard_normal(POSITION.shape)) for _ in range(6)]
    regions = [fixed(rng.permutation(OWNERS)) for _ in range(6)]
    COMPILATIONS.count, COMPILATIONS.on = 0, True
    try:
        nbrs, energy, _ = step(positions[0], nbrs, regions[0])
        _ = nbrs.did_buffer_overflow
        assert COMPILATIONS.count > 0
        COMPILATIONS.count = 0
        for R, region in zip(positions, regions):
            nbrs, energy, gradient = step(R, nbrs, region)
            jax.block_until_ready((nbrs, energy, gradient))
        assert COMPILATIONS.count == 0
    finally:
        COMPILATIONS.on = False
    assert not nbrs.did_buffer_overflow


def test_drops_into_jax_md():
    """FIRE, NVE and Langevin take the energy as it is, with `neighbor=`."""
    _, energy_fn, nbrs = build((LJ, SHORT), [randomized(LJ)] * 2, fixed(OWNERS), extra=4)
    R = jnp.asarray(POSITION)

    def run(init, apply, state, steps):
        @jax.jit
        def step(i, carry):
            state, nbrs = carry
            nbrs = nbrs.update(state.position)
            return apply(state, neighbor=nbrs), nbrs

        return jax.lax.fori_loop(0, steps, step, (state, nbrs))

    init, apply = minimize.fire_descent(energy_fn, shift_fn, dt_start=0.02, dt_max=0.05)
    state, held = run(init, apply, init(R, neighbor=nbrs), 300)
    assert not held.did_buffer_overflow
    assert energy_fn(state.position, held) < energy_fn(R, nbrs) - 0.1
    relaxed = state.position
    init, apply = simulate.nve(energy_fn, shift_fn, dt=0.02)
    state = init(jax.random.key(0), relaxed, kT=0.02, mass=10.0, neighbor=nbrs.update(relaxed))

    def total(state, nbrs):
        return energy_fn(state.position, nbrs) + jnp.sum(state.momentum**2) / 20.0

    before, momentum = total(state, nbrs.update(relaxed)), jnp.sum(state.momentum, axis=0)
    state, held = run(init, apply, state, 400)
    assert not held.did_buffer_overflow
    assert np.abs(state.position - relaxed).max() > 0.05
    np.testing.assert_allclose(total(state, held.update(state.position)), before, atol=1e-4)
    np.testing.assert_allclose(jnp.sum(state.momentum, axis=0), momentum, atol=1e-12)
    init, apply = simulate.nvt_langevin(energy_fn, shift_fn, dt=0.02, kT=0.02)
    state, held = run(
        init, apply, init(jax.random.key(1), relaxed, mass=10.0, neighbor=nbrs.update(relaxed)), 50
    )
    assert np.isfinite(state.position).all() and np.abs(state.position - relaxed).max() > 1e-3
