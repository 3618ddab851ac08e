"""Regions in the lists of a mixture: atoms near seeds, coordination, and what a committee disagrees on."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space

import moe_md as mm
from moe_md.experts import lennard_jones
from moe_md.mixture import mixture_neighbor_list
from moe_md.neighbors.rows import rows_from_neighbor_list
from moe_md.regions import (
    RegionNeighbors,
    around,
    committee,
    complement,
    coordination,
    custom,
    descriptor,
    fixed,
    switch,
    union,
)

LATTICE = 2.2  # Å, of a simple cubic crystal with 8 x 7 x 6 atoms
CUBIC = np.stack(np.meshgrid(*(np.arange(n) for n in (8, 7, 6)), indexing="ij"), -1).reshape(-1, 3) * LATTICE
EDGES = LATTICE * np.array([8.0, 7.0, 6.0])
LJ = lennard_jones(("Pt",), 3.2, epsilon=0.4, sigma=1.8)
FLUIDS = [{"epsilon": jnp.asarray(e), "sigma": jnp.asarray(1.8)} for e in (0.4, 0.3)]


def crystal(region, **kwargs):
    """A mixture of two Lennard-Jones fluids on that crystal."""
    D, _ = space.periodic(EDGES)
    return D, *mixture_neighbor_list(
        D, EDGES, mm.experts.potentials((LJ, LJ), FLUIDS), np.zeros(len(CUBIC), int), region, **kwargs
    )


def shaken(seed, size=0.1):
    return jnp.asarray(CUBIC + size * np.random.default_rng(seed).normal(size=CUBIC.shape))


@pytest.mark.parametrize(
    "region",
    [
        around([5, 6, 200, 300], 1.5, 1.2),
        union(
            fixed([0] * 9 + [1] * 327),
            around([17], 1.3, 1.0),
            complement(complement(around([18, 90], 1.0, 1.6))),
        ),
    ],
    ids=["around", "combined"],
)
def test_lists_of_a_mixture_say_what_every_pair_says(region):
    _, neighbor_fn, energy_fn = crystal(region)
    _, *plain = crystal(custom(lambda _, R, d: region.gate(R, d)))
    nbrs, every = neighbor_fn.allocate(shaken(0)), plain[0].allocate(shaken(0))
    update = jax.jit(lambda R, nbrs: nbrs.update(R))
    value, theirs = (jax.jit(jax.value_and_grad(f)) for f in (energy_fn, plain[1]))
    rebuilt = 0
    for n in range(6):  # far enough that lists are rebuilt
        R = shaken(n, 0.02 + 0.05 * n)
        before = jax.tree.leaves(nbrs.requested)[0]
        nbrs, every = update(R, nbrs), update(R, every)
        rebuilt += bool(np.any(np.asarray(before) != np.asarray(jax.tree.leaves(nbrs.requested)[0])))
        assert not nbrs.did_buffer_overflow and not every.did_buffer_overflow
        (found, slope), (expected, its) = value(R, nbrs), theirs(R, every)
        np.testing.assert_allclose(found, expected, rtol=1e-13)
        np.testing.assert_allclose(slope, its, atol=1e-11)
        assert sum(c.shape[0] for c in nbrs.centers) < 1.6 * len(CUBIC)
    assert rebuilt >= 1


def test_rounding_at_the_rim_is_no_reason_for_nan():
    """In float32 a switch may end below zero by a few parts in ten millions;
    that is not a region that does not know.
    """
    R = jnp.asarray(CUBIC)

    def weighing(w):
        weight = jnp.zeros(len(R)).at[1].set(w)
        return crystal(custom(lambda *_: jnp.stack([weight, 1 - weight], -1)))[1:]

    neighbor_fn, energy_fn = weighing(-1e-7)
    nbrs = neighbor_fn.allocate(R)
    assert np.isfinite(energy_fn(R, nbrs)) and np.isnan(weighing(jnp.nan)[1](R, nbrs))


def test_a_sphere_wider_than_half_the_box_warns():
    """The narrowest edge is 13.2 Å."""
    R = jnp.asarray(CUBIC)
    with pytest.warns(UserWarning, match="spheres of 6.70 Å, wider than half the box, 6.60 Å"):
        crystal(around([0], 4.7, 2.0))[1].allocate(R)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crystal(around([0], 4.5, 2.0))[1].allocate(R)


def test_no_array_holds_every_pair_of_seeds_and_atoms():
    """The cost of seeds is that of the atoms near them."""
    seeds = np.arange(0, 330, 3)
    _, neighbor_fn, energy_fn = crystal(around(seeds, 0.5, 0.5), capacity_multiplier=1.0)
    nbrs = neighbor_fn.allocate(shaken(0))

    def both(R, nbrs):
        nbrs = nbrs.update(R)
        return jax.grad(energy_fn)(R, nbrs)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.shape for v in equation.outvars)
            for value in jax.tree.leaves(
                equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
            ):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)

    found = list(sizes(jax.make_jaxpr(both)(shaken(1), nbrs).jaxpr))
    assert any(len(seeds) in shape for shape in found) and any(len(CUBIC) in shape for shape in found)
    assert not any({len(seeds), len(CUBIC)} <= set(shape) for shape in found)
    assert nbrs.requested.idx[0].shape[1] < 20


def test_lists_for_other_seeds_or_wider_spheres_give_no_energy():
    """What lists do not know is never guessed: update with the region that is used."""
    region = around([5, 200], 1.5, 1.0)
    _, neighbor_fn, energy_fn = crystal(region, capacity_multiplier=2.0)
    R = shaken(0)
    nbrs = neighbor_fn.allocate(R)
    energy, update = jax.jit(energy_fn), jax.jit(lambda nbrs, region: nbrs.update(R, region=region))
    slope = jax.jit(jax.grad(energy_fn))
    assert np.isfinite(energy(R, nbrs))
    for other in (around([5, 100], 1.5, 1.0), around([5, 200], 2.0, 1.2)):
        assert np.isnan(energy(R, nbrs, region=other)) and np.isnan(slope(R, nbrs, region=other)).all()
        after = update(nbrs, other)
        expected = energy(R, neighbor_fn.allocate(R, region=other), region=other)
        assert after.did_buffer_overflow or float(energy(R, after, region=other)) == pytest.approx(
            float(expected), rel=1e-13
        )
    assert not update(nbrs, around([5, 100], 1.5, 1.0)).did_buffer_overflow
    with pytest.raises(
        ValueError,
        match=r"neighbors must be allocated for the region .* around \[2\] seeds for a region of \[3\] seeds",
    ):
        energy_fn(R, nbrs, region=around([5, 200, 7], 1.5, 1.0))
    with pytest.raises(ValueError, match="neighbors must be allocated for the region"):
        nbrs.update(R, region=fixed([0] * len(CUBIC)))


def test_coordination_counts_neighbors():
    """Simple cubic with a vacancy: five beside it, six elsewhere."""
    region = coordination(4.5, 5.6, r_full=2.4, r_none=2.8)
    hole = np.delete(CUBIC, 100, axis=0)
    D, _ = space.periodic(EDGES)
    neighbor_fn, energy_fn = mixture_neighbor_list(
        D, EDGES, mm.experts.potentials((LJ, LJ), FLUIDS), np.zeros(len(hole), int), region
    )
    nbrs = neighbor_fn.allocate(jnp.asarray(hole))
    near = RegionNeighbors(jnp.zeros(len(hole), int), nbrs.idx, 3.2, None)
    numbers = np.asarray(region.values(jnp.asarray(hole), D, near))
    away = hole - CUBIC[100]
    beside = np.linalg.norm(away - EDGES * np.round(away / EDGES), axis=1) < 1.1 * LATTICE
    np.testing.assert_allclose(numbers, np.where(beside, 5.0, 6.0), rtol=1e-12)
    gate = np.asarray(region.gate(jnp.asarray(hole), D, near))
    np.testing.assert_allclose(gate[~beside, 0], 0.0, atol=1e-12)
    np.testing.assert_allclose(gate[beside, 0], switch(0.5 / 1.1), rtol=1e-12)
    assert nbrs.centers[0].shape[0] < 10 and np.isfinite(energy_fn(jnp.asarray(hole), nbrs))
    with pytest.raises(
        ValueError, match="neighbors must be listed within 2.8 Å, the region's cutoff, got None"
    ):
        region.gate(jnp.asarray(hole), D)
    with pytest.raises(
        ValueError, match="neighbors must be listed within 3.5 Å, the region's cutoff, got 3.2"
    ):
        mixture_neighbor_list(
            D,
            EDGES,
            mm.experts.potentials((LJ, LJ), FLUIDS),
            np.zeros(len(hole), int),
            coordination(4.0, 5.0, r_full=2.4, r_none=3.5),
        )[0].allocate(jnp.asarray(hole))


def test_a_committee_takes_what_it_disagrees_on():
    """Two that know the crystal equally well, and not what is out of place in it."""
    narrow = lennard_jones(("Pt",), 3.2, epsilon=0.4, sigma=1.8)
    members = [{"epsilon": jnp.asarray(0.4), "sigma": jnp.asarray(s)} for s in (1.78, 1.82)]
    region = committee(narrow, members, 0.06, 0.12)
    R = jnp.asarray(CUBIC).at[150, 0].add(0.5)
    D, neighbor_fn, energy_fn = crystal(region)
    nbrs = neighbor_fn.allocate(R)
    near = RegionNeighbors(jnp.zeros(len(R), int), nbrs.idx, 3.2, None)
    inside = np.asarray(region.gate(R, D, near))[:, 0]
    rows = rows_from_neighbor_list(R, near.species, nbrs.idx, D, jnp.arange(len(R)))
    energies = np.stack([narrow.atom_energies(p, rows) for p in members])
    number = np.sqrt(energies.var(axis=0) + 0.03**2)
    np.testing.assert_allclose(inside, 1.0 - switch((number - 0.06) / 0.06), atol=1e-12)
    assert inside[150] > 0.5 and np.median(inside) == 0.0
    again = committee(narrow, members, 0.1, 0.2).region.scalar_fn
    assert region.region.scalar_fn == again and hash(region.region.scalar_fn) == hash(again)  # compiled once


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: descriptor(3, 0.0, 1.0, 3.0), "scalar_fn must be a function, got 3"),
        (lambda: descriptor(len, 1.0, 1.0, 3.0), "high must exceed low"),
        (
            lambda: descriptor(len, 0.0, 1.0, 0.0),
            "high must exceed low and cutoff be positive .*, got 1.0, 0.0 and 0.0",
        ),
        (lambda: descriptor(len, 0.0, 1.0, 3.0, slack=-1.0), "slack must not be negative, got -1.0"),
        (
            lambda: coordination(4.0, 5.0, r_full=3.0, r_none=2.0),
            r"r_full must be positive and below r_none \(Å\), got 3.0 and 2.0",
        ),
        (lambda: committee(LJ, [{}], 0.1, 0.2), "params must be two or more trees of one structure"),
        (lambda: committee(LJ, [{}, {}], 0.0, 0.2), r"low must be positive \(eV\), got 0.0"),
    ],
)
def test_bad_descriptors_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
