"""Regions that grow from another region: gates, support, lists and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crystal_with_hole import (
    BLEND,
    CORE,
    EDGE,
    FAR_BLEND,
    FAR_CORE,
    FEW,
    HOLE,
    LJ,
    displacement_fn,
    mixture,
    shaken,
)
from depths import short
from jax_md import space

from moe_md.regions import (
    FixedGates,
    RegionNeighbors,
    around,
    committee,
    complement,
    custom,
    fixed,
    grown,
    nested,
    reassigned,
    slab,
    sphere,
    switch,
    union,
)
from moe_md.regions.serialize import region_from_dict


def all_pairs(region, position):
    """Gates of `grown`, straight from its formula, with products; `region` is the region inside."""
    neighbor_fn, _ = mixture(region, len(position))
    inner = np.asarray(neighbor_fn.gate(position, neighbor_fn.allocate(position)))[:, 0]
    difference = np.asarray(position)[:, None] - np.asarray(position)[None]
    distance = np.linalg.norm(difference - EDGE * np.round(difference / EDGE), axis=-1)
    return inner, distance


def brute(region, position, r_core, r_blend):
    inner, distance = all_pairs(region, position)
    return 1.0 - np.prod(1.0 - inner[None] * np.asarray(switch((distance - r_core) / r_blend)), axis=1)


INNER = {
    "few neighbours": FEW,
    "disagreement": committee(
        LJ, [{"epsilon": jnp.asarray(0.01), "sigma": jnp.asarray(s)} for s in (3.38, 3.42)], 0.0015, 0.003
    ),
    "seeds": around([5, 130], 1.0, 3.5),
    "fixed": fixed(np.where(np.arange(len(HOLE)) % 100 == 3, 0, 1)),
    "constant gates": sphere(HOLE, HOLE[9], 1.0, blend=4.0),
    "union": union(FEW, around([200], 1.0, 3.5)),
    "complement": complement(complement(FEW)),
    "grown": grown(FEW, 1.0, 3.5),
}


@pytest.mark.parametrize("name", short(INNER, only=("few neighbours", "grown")))
def test_lists_say_what_all_pairs_say(name):
    """Also beyond the cutoff of the experts, while centres change and lists are rebuilt."""
    inner = INNER[name]
    region = grown(inner, FAR_CORE, FAR_BLEND)
    neighbor_fn, _ = mixture(region, capacity_multiplier=3.0)
    update, gate_fn = jax.jit(lambda R, nbrs: nbrs.update(R)), neighbor_fn.gate
    nbrs, seen = neighbor_fn.allocate(shaken(9, 0.15)), set()
    for n in range(4):
        R = shaken(n, 0.06 + 0.03 * n)
        nbrs = update(R, nbrs)
        assert not nbrs.did_buffer_overflow
        found = np.asarray(gate_fn(R, nbrs))
        np.testing.assert_allclose(found[:, 0], brute(inner, R, FAR_CORE, FAR_BLEND), atol=1e-12)
        np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-14)
        seen.add(np.asarray(nbrs.requested.list.centers).tobytes())
    dynamic = name not in ("fixed", "constant gates", "seeds")
    assert len(seen) > 1 if dynamic else len(seen) == 1
    assert found[:, 0].max() > 0.5 and found[:, 0].min() < 0.95


def test_support_holds_the_gates_after_any_move():
    region, margin = grown(INNER["seeds"], 3.0, 2.0), 0.4
    blended = 0
    for seed in range(20):
        R, rng = shaken(seed), np.random.default_rng(seed)
        held = np.asarray(region.support(R, displacement_fn, margin))
        step = rng.normal(size=R.shape)
        step *= 0.5 * margin / np.linalg.norm(step, axis=1, keepdims=True)
        gate = np.asarray(region.gate(R + step, displacement_fn))
        assert not np.any((gate > 0) & ~held)
        blended += np.sum((gate > 0.01) & (gate < 0.99))
        assert held[:, 0].mean() < 0.6 and held[:, 1].mean() < 1.0
    assert blended > 20


@pytest.mark.parametrize("name", ["few neighbours", "seeds", "grown"])
def test_support_from_lists_is_that_of_all_pairs_and_holds_the_gates(name):
    region = grown(INNER[name], CORE, BLEND)
    neighbor_fn, _ = mixture(region)
    R = shaken()
    nbrs = neighbor_fn.allocate(R)
    lists = RegionNeighbors(jnp.zeros(len(R), int), nbrs.idx, LJ.cutoff, nbrs.requested)
    held = np.asarray(region.support(R, displacement_fn, 0.4, lists))
    gate = np.asarray(neighbor_fn.gate(R, nbrs))
    assert not np.any((gate > 0) & ~held) and held[:, 0].sum() < len(R)
    if name == "seeds":
        assert not held[:, 1].all()
        np.testing.assert_array_equal(held, region.support(R, displacement_fn, 0.4))


def central_differences(energy, R, atoms, h=3e-5):
    """Gradient of `energy` by some coordinates: `[len(atoms), 3]`."""
    found = np.zeros((len(atoms), 3))
    for row, atom in enumerate(atoms):
        for axis in range(3):
            found[row, axis] = (
                float(energy(R.at[atom, axis].add(h))) - float(energy(R.at[atom, axis].add(-h)))
            ) / (2 * h)
    return found


@pytest.mark.parametrize(
    "name", short(["few neighbours", "disagreement", "union", "grown"], only=("union", "grown"))
)
def test_forces_are_the_gradient(name):
    """Where gates inside are between 0 and 1, and where factors are zero; momentum is conserved."""
    inner = INNER[name]
    neighbor_fn, energy_fn = mixture(grown(inner, CORE, BLEND), capacity_multiplier=1.5)
    R = shaken(3, 0.1)
    nbrs = neighbor_fn.allocate(R)
    gates, (inside, distance) = np.asarray(neighbor_fn.gate(R, nbrs))[:, 0], all_pairs(inner, R)
    factor = 1.0 - inside[None] * np.asarray(switch((distance - CORE) / BLEND))
    partial_inside = np.flatnonzero((inside > 0.05) & (inside < 0.95))
    in_blend = np.flatnonzero((gates > 0.05) & (gates < 0.95))
    assert len(partial_inside) and len(in_blend)
    zeros = np.flatnonzero((factor == 0).sum(axis=1) >= 1)
    atoms = [partial_inside[0], partial_inside[-1], in_blend[0], in_blend[-1], *zeros[:2]]
    gradient = np.asarray(jax.jit(jax.grad(energy_fn))(R, nbrs))
    compiled = jax.jit(energy_fn)
    expected = central_differences(lambda R: compiled(R, nbrs), R, atoms)
    np.testing.assert_allclose(gradient[atoms], expected, atol=5e-9)
    np.testing.assert_allclose(gradient.sum(axis=0), 0.0, atol=1e-12)
    # The negative control: without the gradient of the gates the forces are others.
    frozen = custom(lambda gate, R, d: gate, parameters=neighbor_fn.gate(R, nbrs))
    still_fn, still_energy = mixture(frozen)
    static = np.asarray(jax.jit(jax.grad(still_energy))(R, still_fn.allocate(R)))
    assert np.abs(static[atoms] - expected).max() > 1e-4


@pytest.mark.parametrize("gates", [(1.0, 0.3, 0.0), (1.0, 1.0, 0.5), (1.0, 1.0, 1.0), (0.2, 0.7, 0.4)])
def test_two_derivatives_are_right_where_factors_are_zero(gates):
    """In the gates inside, of which some are exactly one, in float64 and finite in float32."""
    position = jnp.asarray([[0.0, 0.0, 0.0], [0.9, 0.0, 0.0], [0.0, 1.4, 0.0]])

    def value(g, R):
        region = grown(FixedGates(jnp.stack([g, 1.0 - g], axis=1)), 1.0, 1.0)
        return region.gate(R, space.free()[0])[:, 0]

    def product(g, R):
        difference = R[:, None] - R[None]
        distance = jnp.sqrt(jnp.sum(difference**2, axis=-1) + 1e-300 * jnp.eye(3))
        factor = 1.0 - g[None] * switch(distance - 1.0)
        return 1.0 - factor[:, 0] * factor[:, 1] * factor[:, 2]

    g = jnp.asarray(gates)
    for order in (jax.jacrev, lambda f: jax.jacrev(jax.jacfwd(f))):
        found, expected = (jax.jit(order(f))(g, position) for f in (value, product))
        np.testing.assert_allclose(found, expected, atol=1e-12)
    second = jax.jit(jax.hessian(lambda g, R: jnp.sum(value(g, R)), argnums=(0, 1)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(second(g, position)))
    small = second(g.astype(jnp.float32), position.astype(jnp.float32))[0][0]
    assert small.dtype == jnp.float32 and np.isfinite(small).all()


def test_lists_that_miss_an_atom_or_are_too_short_give_no_energy():
    region = grown(FEW, CORE, BLEND)
    neighbor_fn, energy_fn = mixture(region)
    R = jnp.asarray(HOLE)
    nbrs = neighbor_fn.allocate(R)
    energy, slope = jax.jit(energy_fn), jax.jit(jax.grad(energy_fn))
    assert np.isfinite(energy(R, nbrs))
    longer = grown(FEW, CORE, BLEND + 2.0)
    assert np.isnan(energy(R, nbrs, region=longer)) and np.isnan(slope(R, nbrs, region=longer)).all()
    # An atom leaves its site: its neighbours come in, which are no centres of these lists.
    torn = R.at[200].add(jnp.array([1.4, 1.4, 1.0]))
    assert np.isnan(energy(torn, nbrs)) and np.isnan(slope(torn, nbrs)).all()
    after = jax.jit(lambda R, nbrs: nbrs.update(R))(torn, nbrs)
    assert after.did_buffer_overflow and int(after.error) & 1
    healed = energy(torn, neighbor_fn.allocate(torn))
    expected = mixture(custom(lambda g, R, d: g, parameters=_gates(region, torn)))
    np.testing.assert_allclose(healed, expected[1](torn, expected[0].allocate(torn)), rtol=1e-12)
    with pytest.raises(ValueError, match=r"got lists around \[changing\] seeds for a region of \[2\] seeds"):
        energy_fn(R, nbrs, region=around([1, 2], 1.0, 1.0))
    other = grown(around([1], 1.0, 1.0), 1.0, 1.0)
    with pytest.raises(ValueError, match=r"around \[changing\] seeds for a region of \[1, changing\] seeds"):
        nbrs.update(R, region=other)


def _gates(region, R):
    inside = jnp.asarray(brute(region.region, R, float(region.r_core), float(region.r_blend)))
    return jnp.stack([inside, 1.0 - inside], axis=1)


def test_lists_are_kept_while_they_hold_every_center():
    region = grown(FEW, CORE, BLEND)
    neighbor_fn, _ = mixture(region)
    nbrs = neighbor_fn.allocate(jnp.asarray(HOLE))
    update = jax.jit(lambda R, nbrs, renew: nbrs.update(R, renew=renew), static_argnums=2)
    closer = update(shaken(0, 0.001), nbrs, False)
    np.testing.assert_array_equal(closer.requested.list.reference_position, HOLE)
    assert not nbrs.stale(shaken(0, 0.001)) and nbrs.stale(shaken(0, 0.3))
    renewed = update(shaken(0, 0.001), nbrs, True)
    np.testing.assert_array_equal(renewed.requested.list.reference_position, shaken(0, 0.001))


def test_regions_are_written_and_read():
    for region in (
        grown(FEW, CORE, BLEND),
        grown(union(around([3], 1.0, 2.0), complement(FEW)), 1.0, 2.0),
        nested(grown(fixed([0, 1]), 1.0, 2.0), around([], 1.0, 2.0, missing="cheap")),
    ):
        again = region_from_dict(region.to_dict())
        assert jax.tree.structure(again) == jax.tree.structure(region)
        jax.tree.map(np.testing.assert_array_equal, again, region)
    with pytest.raises(ValueError, match="to be written to a file, got Complement|got Descriptor"):
        grown(INNER["disagreement"], 1.0, 2.0).to_dict()


def test_grown_regions_have_the_methods_of_a_region():
    region = grown(INNER["union"], 2.0, 3.0)
    assert region.interaction_range() == pytest.approx(5.0 + 5.1) and region.neighbor_cutoff() == 5.1
    assert region.is_dynamic and region.is_translation_invariant
    assert grown(fixed([0, 1]), 1.0, 1.0).is_dynamic
    region.check_size(255, 2)
    with pytest.raises(ValueError, match="must be of the 3 experts of the mixture, got one of 2"):
        region.check_size(255, 3)
    with pytest.raises(ValueError, match="seeds below the number of atoms, 100, got a seed of 200"):
        region.check_size(100, 2)
    with pytest.raises(ValueError, match="region must be static, or around seeds, on several devices"):
        region.with_centers(jnp.arange(2))
    seeds = grown(around([1, 3], 0.5, 0.7), 0.8, 0.9)
    index, R = np.array([3, 1, 2, 0, -1]), jnp.asarray(HOLE[:5]) / 3
    held = R[jnp.asarray(index)].at[-1].add(1e3)
    whole = seeds.gate(R, space.free()[0])
    np.testing.assert_allclose(seeds.restrict(index).gate(held, space.free()[0])[:-1], whole[index[:-1]])


@pytest.mark.thorough
def test_grown_regions_combine():
    """In nests and unions, reassigned, and from the outside."""
    region, R = grown(FEW, CORE, BLEND), shaken()
    neighbor_fn, _ = mixture(region)
    inside = np.asarray(neighbor_fn.gate(R, neighbor_fn.allocate(R)))[:, 0]
    seeds = around([40], 2.0, 3.0)
    of_seeds = np.asarray(seeds.gate(R, displacement_fn))[:, 0]
    for made, experts, expected in (
        (union(seeds, region), 2, 1 - (1 - inside) * (1 - of_seeds)),
        (complement(region), 2, 1 - inside),
        (nested(seeds, region), 3, of_seeds),
        (nested(region, seeds), 3, inside),
    ):
        fns = mixture(made, experts=experts)
        nbrs = jax.jit(lambda R, nbrs: nbrs.update(R))(R, fns[0].allocate(shaken(1)))
        assert not nbrs.did_buffer_overflow
        np.testing.assert_allclose(fns[0].gate(R, nbrs)[:, 0], expected, atol=1e-14)
    fns = mixture(region)
    nbrs = fns[0].allocate(R)
    assigned = fns[0].assign(R, nbrs, reassigned(region))
    np.testing.assert_array_equal(assigned.gates[:, 0], inside >= 0.5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: grown(3, 1.0, 1.0), "region must have the methods gate"),
        (lambda: grown(FEW, -1.0, 1.0), "r_core must not be negative and r_blend positive .* -1.0 and 1.0"),
        (lambda: grown(FEW, 1.0, 0.0), "r_core must not be negative and r_blend positive .* 1.0 and 0.0"),
        (lambda: grown(FEW, "a", 1.0), "r_core"),
        (lambda: around([], 1.0, 1.0), 'With missing="cheap" there may be none'),
        (lambda: around([0], 1.0, 1.0, missing="no"), "missing must be 'error' or 'cheap', got 'no'"),
        (lambda: around([[]], 1.0, 1.0, missing="cheap"), "seeds must be a vector"),
        (lambda: slab(HOLE, lower=99.0), 'With missing="cheap" there may be none'),
        (lambda: slab(HOLE, lower=1.0, missing=None), "missing must be 'error' or 'cheap'"),
        (lambda: sphere(HOLE, [99.0, 0, 0], 1.0), 'With missing="cheap" there may be none'),
        (lambda: sphere(HOLE, HOLE[0], 1.0, missing=1), "missing must be 'error' or 'cheap'"),
        (
            lambda: grown(fixed([0, 1, 2], 3), 1.0, 1.0).gate(jnp.zeros((3, 3)), space.free()[0]),
            "must be of two experts, got 3",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
