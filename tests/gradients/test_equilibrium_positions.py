"""Derivatives of positions and energies at rest: closed forms, and structures relaxed anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from argon_crystals import EPSILON, SIGMA, A, agree, argon, central
from ase.build import add_adsorbate, fcc100
from jax_md import space

import moe_md as mm
from moe_md.gradients import cg, dense, equilibrium, gmres


def pair_energy(R, params, **_):
    """A cluster in open space, no cutoff."""
    i, j = np.triu_indices(len(R), 1)
    s6 = params["sigma"] ** 6 / jnp.sum((R[i] - R[j]) ** 2, axis=1) ** 3
    return 4 * params["epsilon"] * jnp.sum(s6**2 - s6)


def test_a_cluster_grows_with_its_diameter():
    """R ~ sigma and E ~ epsilon exactly; free to move and to turn, and so is the answer."""
    start = 3.75 * np.array([[0.0, 0, 0], [1, 0, 0], [0.5, 0.9, 0], [0.5, 0.3, 0.8], [0.5, 0.3, -0.8]])
    options = dict(rotations=True, force_tolerance=1e-12)

    def place(params):
        return equilibrium(pair_energy, start, params=params, **options).position

    def energy(params):
        return equilibrium(pair_energy, start, params=params, **options).enthalpy

    params = {"epsilon": EPSILON, "sigma": SIGMA}
    R = place(params)
    for slope in (jax.jacfwd(place)(params), jax.jacrev(place)(params)):
        np.testing.assert_allclose(slope["sigma"], (R - R.mean(axis=0, keepdims=True)) / SIGMA, atol=1e-10)
        np.testing.assert_allclose(slope["epsilon"], 0.0, atol=1e-8)
    slope = jax.grad(energy)(params)
    np.testing.assert_allclose(slope["epsilon"], energy(params) / EPSILON, rtol=1e-12)
    assert abs(slope["sigma"]) < 1e-10
    # Twice: E does not depend on sigma at all, R not beyond the first order.
    curvature = jax.hessian(energy)(params)
    assert abs(curvature["sigma"]["sigma"]) < 1e-9 and abs(curvature["epsilon"]["sigma"]) < 1e-8
    np.testing.assert_allclose(jax.jacfwd(jax.jacrev(place))(params)["sigma"]["sigma"], 0.0, atol=1e-9)


def test_a_straight_molecule_may_turn():
    place = jax.jacrev(
        lambda s: (
            equilibrium(
                pair_energy,
                [[0.0, 0, 0], [2.1, 2.1, 2.1]],
                params={"epsilon": 1.0, "sigma": s},
                rotations=True,
                force_tolerance=1e-11,
            ).position
        )
    )
    np.testing.assert_allclose(place(SIGMA)[1] - place(SIGMA)[0], 2 ** (1 / 6) / np.sqrt(3), rtol=1e-8)


@pytest.mark.thorough
def test_positions_in_a_mixture(vacancy):
    """With respect to parameters of both experts, and to radius and width of the region."""
    energy_fn, position, neighbors, region, _ = vacancy
    probe = jnp.asarray(np.random.default_rng(0).normal(size=position.shape))
    _, params = argon()

    def observable(params, radii):
        moving = mm.regions.Around(region.seeds, *radii)
        R = equilibrium(
            energy_fn, position, neighbors, params=params, region=moving, force_tolerance=1e-11
        ).position
        return jnp.sum(probe * R)

    where = (params, (region.r_core, region.r_blend))
    found = jax.grad(observable, argnums=(0, 1))(*where)
    wanted = central(lambda x: observable(*x), where, 1e-3)
    agree(found, wanted, 1e-6)
    # Forward, along all of them together.
    along = jax.jvp(observable, where, jax.tree.map(jnp.ones_like, where))[1]
    np.testing.assert_allclose(along, sum(np.sum(x) for x in jax.tree.leaves(found)), rtol=1e-8)


@pytest.mark.thorough
def test_second_derivatives_of_an_energy_in_a_mixture(vacancy):
    """Those need the implicit part; the first does not."""
    energy_fn, position, neighbors, region, _ = vacancy

    def energy(x, solver=cg):
        params = jax.tree.map(lambda p: p, argon()[1])
        params[1]["sigma"], moving = x[0], mm.regions.Around(region.seeds, x[1], region.r_blend)
        return equilibrium(
            energy_fn, position, neighbors, params=params, region=moving, force_tolerance=1e-11, solver=solver
        ).enthalpy

    x = jnp.asarray([0.98 * SIGMA, 2.5])
    np.testing.assert_allclose(jax.grad(energy)(x), central(energy, x, 1e-3), rtol=1e-7)
    found = jax.jacfwd(jax.grad(energy))(x)
    wanted = np.stack(central(jax.grad(energy), x, 1e-3))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(found, found.T, rtol=1e-7)

    def frozen(x):  # what the envelope alone would say
        params = jax.tree.map(lambda p: p, argon()[1])
        params[1]["sigma"] = x[0]
        return energy_fn(
            position,
            neighbor=neighbors,
            params=params,
            region=mm.regions.Around(region.seeds, x[1], region.r_blend),
        )

    assert abs(jax.hessian(frozen)(x)[0, 0] - wanted[0, 0]) > 0.01 * abs(wanted[0, 0])


@pytest.fixture(scope="module")
def adatom():
    """An adatom on argon (100), the lowest layer held: in a hollow, on a bridge, far away. Experts that agree
    better: else what the ball about it changes in the slab outweighs the bond."""
    slab = fcc100("Ar", (4, 4, 3), a=A, vacuum=8.0)
    slab.pbc = True
    places = {}
    for name, site, height in (("hollow", "hollow", 2.4), ("bridge", "bridge", 3.0), ("gone", "hollow", 8.0)):
        atoms = slab.copy()
        add_adsorbate(atoms, "Ar", height, site)
        places[name] = jnp.asarray(atoms.positions)
    box, n = slab.cell.lengths(), len(slab) + 1
    held = np.append(slab.get_tags() == 3, False)
    region = mm.regions.around([n - 1], r_core=3.0, r_blend=3.0)
    displacement_fn, shift_fn = space.periodic(box)
    fns = mm.mixture_neighbor_list(
        displacement_fn, box, mm.experts.potentials(*argon(6.9, 5.9, 1.01, 0.999)), np.zeros(n, int), region
    )
    return fns, places, held, region


@pytest.mark.thorough
def test_adsorption_energy_and_barrier(adatom):
    """Differences of energies at rest, with respect to parameters and region;
    the saddle's second derivatives are indefinite.
    """
    (neighbor_fn, energy_fn), places, held, region = adatom
    _, params = argon(6.9, 5.9, 1.01, 0.999)
    near = {name: neighbor_fn.allocate(R) for name, R in places.items()}
    gone = held.copy()
    gone[-1] = True  # nothing keeps it in place

    def energies(x):
        params, radii = x
        moving = mm.regions.Around(region.seeds, *radii)

        def energy(name, held, solver):
            options = dict(params=params, region=moving, newton_steps=40, force_tolerance=1e-10)
            return equilibrium(energy_fn, places[name], near[name], fixed_mask=held, solver=solver, **options)

        hollow, bridge = energy("hollow", held, cg), energy("bridge", held, dense)
        away = energy("gone", gone, cg)
        return (
            hollow.enthalpy - away.enthalpy,
            bridge.enthalpy - hollow.enthalpy,
            bridge.position[-1, 2] - hollow.position[-1, 2],
        )

    where = (params, (region.r_core, region.r_blend))
    values, pull = jax.vjp(lambda x: jnp.stack(energies(x)), where)
    adsorption, barrier, rise = values
    assert adsorption < -0.02 and 0 < barrier < -adsorption and rise > 0.1
    wanted = central(lambda x: jnp.stack(energies(x)), where, 1e-3)
    for of_one, slopes in zip(jnp.eye(3), wanted):
        agree(pull(of_one)[0], slopes, 1e-6)


@pytest.mark.thorough
def test_it_is_a_saddle_and_solvers_agree(adatom):
    (neighbor_fn, energy_fn), places, held, region = adatom
    neighbors = neighbor_fn.allocate(places["bridge"])
    start = equilibrium(
        energy_fn,
        places["bridge"],
        neighbors,
        fixed_mask=held,
        solver=dense,
        newton_steps=40,
        force_tolerance=1e-10,
    ).position
    free = np.flatnonzero(np.repeat(~held, 3))
    hessian = jax.hessian(lambda R: energy_fn(R.reshape(-1, 3), neighbors.update(start)))(start.ravel())[
        np.ix_(free, free)
    ]
    assert np.sum(np.linalg.eigvalsh(hessian) < 0) == 1

    def height(r_core, solver):
        moving = mm.regions.Around(region.seeds, r_core, region.r_blend)
        return equilibrium(
            energy_fn, start, neighbors, region=moving, fixed_mask=held, solver=solver
        ).position[-1, 2]

    slopes = [jax.grad(height)(region.r_core, solver) for solver in (dense, gmres)]
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-7)


def test_held_atoms_take_others_along(adatom):
    """All held atoms moved by as much: so does the rest."""
    (neighbor_fn, energy_fn), places, held, _ = adatom
    neighbors = neighbor_fn.allocate(places["hollow"])

    def top(shift):
        start = places["hollow"] + jnp.where(held[:, None], shift, 0.0)
        return equilibrium(
            energy_fn, start, neighbors, fixed_mask=held, newton_steps=40, force_tolerance=1e-9
        ).position[-1]

    np.testing.assert_allclose(jax.jacrev(top)(jnp.zeros(3)), np.eye(3), atol=1e-7)
