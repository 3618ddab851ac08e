"""Mixtures under every kind of region obey the contract."""

from functools import lru_cache

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ATOMS, POSITION, randomized
from depths import short
from small_mixtures import LJ, PAIR, PAIR_PARAMS, SHORT, SPECTRUM, build, displacement_fn

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
    "allegro + density_moments, fixed": (
        (contract.small_allegro(1, 1, True), contract.small_density_moments()),
        fixed,
    ),
    "density_moments + embedded_atom, around": ((contract.small_density_moments(), EMBEDDED), about),
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
            "allegro + density_moments, fixed",
            "density_moments + embedded_atom, around",
            "nequip + embedded_atom, fixed",
        ],
    ),
)
def test_contract(name, check):
    check(potential(name))


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


def test_three_experts_in_nested_regions_obey_the_contract():
    three = (SPECTRUM, LJ, SHORT)
    region = nested(around([0], 0.9, 1.2), around([0, 4], 1.5, 1.3))
    gate = np.asarray(region.gate(jnp.asarray(POSITION), displacement_fn))
    assert np.sum((gate > 0.02) & (gate < 0.98), axis=0).min() >= 1  # every expert shares some atom
    blend = contract.mixture_potential(three, [randomized(e) for e in three], lambda owner: region)
    contract.check_central_differences(blend)
    contract.check_momentum_and_torque(blend)
