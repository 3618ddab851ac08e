"""Derivatives of structures at rest: closed forms, and central differences of structures relaxed anew."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import add_adsorbate, bulk, fcc100
from jax_md import space

import moe_md as mm
from moe_md import gradients, simulate
from moe_md.gradients import (
    ANY_STRAIN,
    ISOTROPIC_STRAIN,
    cg,
    dense,
    equilibrium,
    gmres,
    isotropic_equilibrium,
)
from moe_md.gradients.equilibrium import _equilibrium

EPSILON, SIGMA, A = 0.0104, 3.4, 5.3  # argon; eV, Å, Å
# Between the first two shells of neighbours, so that no pair meets the onset, where the switch has a kink.
CUTOFF, ONSET = 5.0, 4.4


def pair_energy(R, params, **_):
    """A cluster in open space, no cutoff."""
    i, j = np.triu_indices(len(R), 1)
    s6 = params["sigma"] ** 6 / jnp.sum((R[i] - R[j]) ** 2, axis=1) ** 3
    return 4 * params["epsilon"] * jnp.sum(s6**2 - s6)


def argon(cutoff=CUTOFF, onset=ONSET, deeper=1.2, wider=0.98):
    """Of the two experts."""
    build = partial(mm.experts.lennard_jones, ("Ar",), cutoff, onset=onset)
    experts = (build(epsilon=EPSILON, sigma=SIGMA), build(epsilon=deeper * EPSILON, sigma=wider * SIGMA))
    return experts, tuple(e.init(None) for e in experts)


def crystal_with_a_vacancy():
    """107 atoms at rest, a ball of them about the neighbour of the vacancy on expert 0."""
    atoms = bulk("Ar", a=A, cubic=True).repeat(3)
    del atoms[0]
    region = mm.regions.around([1], r_core=2.5, r_blend=3.5)  # no shell of neighbours at its edges
    box = atoms.cell.lengths()
    displacement_fn, shift_fn = space.periodic(box)
    fns = mm.mixture_neighbor_list(
        displacement_fn, box, mm.experts.potentials(*argon()), np.zeros(len(atoms), int), region
    )
    found = simulate.relax(*fns, shift_fn, atoms.positions, force_tolerance=1e-3, n_steps=400)
    assert found.converged
    return fns[1], found.position, found.neighbors, region, float(np.prod(box))


@pytest.fixture(scope="module")
def vacancy():
    return crystal_with_a_vacancy()


def central(f, x, h):
    """Of fourth order, along every number of a pytree, one after the other;
    a list of them where the function returns several.
    """
    flat, unravel = jax.flatten_util.ravel_pytree(x)
    steps = h * np.maximum(np.abs(flat), 1e-3)

    def along(n):
        def at(k):
            return np.asarray(f(unravel(flat.at[n].add(k * steps[n]))))

        return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * steps[n])

    slopes = np.asarray([along(n) for n in range(flat.size)])  # [numbers, ...]
    return (
        unravel(jnp.asarray(slopes))
        if slopes.ndim == 1
        else [unravel(jnp.asarray(each)) for each in slopes.T]
    )


def agree(found, wanted, rtol):
    """Leaf by leaf, relative to the largest of each."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


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


@pytest.mark.thorough
def test_a_cell_under_pressure(vacancy):
    """Strain and atoms together: with respect to pressure and parameters;
    shear stays zero by symmetry of the cubic part.
    """
    energy_fn, position, neighbors, _, volume = vacancy
    _, params = argon()

    def observable(params, pressure, strains):
        found = equilibrium(
            energy_fn,
            position,
            neighbors,
            params=params,
            strains=strains,
            volume=volume,
            pressure_GPa=pressure,
            force_tolerance=1e-11,
            newton_steps=20,
        )
        return found.strain[0, 0] + 0.3 * found.strain[0, 1] + 1e-2 * found.position[40, 2]

    for strains in (ISOTROPIC_STRAIN, ANY_STRAIN):
        where = (params, jnp.asarray(0.05))
        found = jax.grad(observable, argnums=(0, 1))(*where, strains)
        agree(found, central(lambda x, strains=strains: observable(*x, strains), where, 1e-4), 1e-6)


def test_the_enthalpy_answers_pressure_with_the_volume(vacancy):
    energy_fn, position, neighbors, _, volume = vacancy

    def found(pressure):
        return equilibrium(
            energy_fn,
            position,
            neighbors,
            strains=ANY_STRAIN,
            volume=volume,
            pressure_GPa=pressure,
            newton_steps=20,
        )

    slope = jax.grad(lambda p: found(p).enthalpy)(0.05) / mm.units.GPa
    np.testing.assert_allclose(slope, volume * jnp.linalg.det(jnp.eye(3) + found(0.05).strain), rtol=1e-10)


@pytest.mark.thorough
def test_a_perfect_crystal_three_ways():
    """Lattice constant and bulk modulus: `isotropic_equilibrium`, `equilibrium` and the host's search."""
    from moe_md.analysis.bulk import relax_fcc
    from moe_md.analysis.bulk_gradients import fcc_crystal

    (expert, _), (params, _) = argon()
    host = relax_fcc(expert, params, "Ar")
    crystal = fcc_crystal(expert, "Ar", guess=A)
    np.testing.assert_allclose(crystal(params), host, rtol=1e-8)

    atoms = bulk("Ar", a=A, cubic=True).repeat(2)
    box = atoms.cell.lengths()
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        space.periodic(box)[0],
        box,
        (mm.Potential(expert, params),),
        np.zeros(len(atoms), int),
        mm.regions.fixed(np.zeros(len(atoms), int), 1),
    )
    neighbors, volume = neighbor_fn.allocate(jnp.asarray(atoms.positions)), float(np.prod(box))

    def size(params, pressure):
        found = equilibrium(
            energy_fn,
            atoms.positions,
            neighbors,
            params=[params],
            strains=ISOTROPIC_STRAIN,
            volume=volume,
            pressure_GPa=pressure,
            force_tolerance=1e-12,
        )
        return A * (1 + found.strain[0, 0])

    def modulus(params):
        a, slope = jax.value_and_grad(size, argnums=1)(params, 0.0)
        return -a / (3 * slope)

    np.testing.assert_allclose(size(params, 0.0), host.lattice_constant, rtol=1e-8)
    np.testing.assert_allclose(modulus(params), host.bulk_modulus_GPa, rtol=1e-6)
    slope = jax.grad(size)(params, 0.0)
    np.testing.assert_allclose(
        slope["sigma"], jax.grad(lambda p: crystal(p).lattice_constant)(params)["sigma"], rtol=1e-8
    )
    assert abs(slope["epsilon"] * EPSILON) < 1e-8  # a depth for all pairs moves nothing
    # The derivative of a modulus is the third of an energy: through a root, twice.
    agree(jax.grad(modulus)(params), jax.grad(lambda p: crystal(p).bulk_modulus_GPa)(params), 1e-6)


def test_uniform_by_its_closed_form():
    """Pairs of fixed neighbours without a cutoff: a ~ sigma, E ~ epsilon, B ~ epsilon / sigma^3."""
    shell = (
        np.array(
            [
                [x, y, z]
                for x in range(-3, 4)
                for y in range(-3, 4)
                for z in range(-3, 4)
                if (x + y + z) % 2 == 0 and (x, y, z) != (0, 0, 0)
            ]
        )
        * A
        / 2
    )

    def energy_fn(F, params):
        s6 = params["sigma"] ** 6 / jnp.sum((shell @ F.T) ** 2, axis=1) ** 3
        return 2 * params["epsilon"] * jnp.sum(s6**2 - s6)

    params = {"epsilon": EPSILON, "sigma": SIGMA}
    crystal = partial(isotropic_equilibrium, energy_fn, volume=A**3 / 4)
    at = crystal(params)
    slope = gradients.IsotropicEquilibrium(*jax.jacrev(lambda p: crystal(p)[:3])(params), True)
    for value, slopes, power in (
        (at.scale, slope.scale, (0, 1)),
        (at.energy, slope.energy, (1, 0)),
        (at.bulk_modulus_GPa, slope.bulk_modulus_GPa, (1, -3)),
    ):
        np.testing.assert_allclose(
            [EPSILON * slopes["epsilon"], SIGMA * slopes["sigma"]],
            np.array(power) * value,
            atol=1e-9 * abs(value),
        )
    second = jax.jacfwd(jax.jacrev(lambda s: crystal({**params, "sigma": s}).bulk_modulus_GPa))(SIGMA)
    np.testing.assert_allclose(second, 12 * at.bulk_modulus_GPa / SIGMA**2, rtol=1e-9)
    # -V dp/dV, with p what was asked for.
    slope = jax.jacfwd(lambda p: crystal(params, pressure_GPa=p).scale)(0.3)
    pressed = crystal(params, pressure_GPa=0.3)
    np.testing.assert_allclose(-pressed.scale / (3 * slope), pressed.bulk_modulus_GPa, rtol=1e-9)


@pytest.mark.thorough
def test_a_crystal_of_a_network_against_central_differences():
    from contract import randomized, small_power_spectrum

    from moe_md.analysis.bulk_gradients import fcc_crystal

    expert = small_power_spectrum(cutoff=5.0)
    params = randomized(expert, 3)
    rows = np.linspace(3.4, 4.6, 13)
    from moe_md.analysis.bulk import equation_of_state

    energies = equation_of_state(expert, params, "Pt", lattice_constants=rows)["energy_eV_per_atom"]
    least = int(np.argmin(energies))
    assert 0 < least < 12, "these random parameters have no crystal: choose another seed"
    crystal = fcc_crystal(expert, "Pt", guess=float(rows[least]))
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=flat.size)) * jnp.abs(flat)

    def along(t):
        found = crystal(unravel(flat + t * direction))
        return jnp.stack([found.lattice_constant, found.energy, found.bulk_modulus_GPa])

    slope = jax.jacrev(along)(0.0)
    h = 1e-4
    wanted = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope, wanted, rtol=1e-6)


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


def test_fractions_of_a_box():
    """The same crystal in fractions: it grows with its box, and the enthalpy feels the pressure."""
    (expert, _), (params, _) = argon()
    atoms = bulk("Ar", a=A, cubic=True).repeat(2)
    del atoms[5]
    box = np.diag(atoms.cell.lengths())
    displacement_fn, shift_fn = space.periodic_general(box, fractional_coordinates=True)
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn,
        box,
        (mm.Potential(expert, params),),
        np.zeros(len(atoms), int),
        mm.regions.fixed(np.zeros(len(atoms), int), 1),
        fractional_coordinates=True,
    )
    neighbors = neighbor_fn.allocate(jnp.asarray(atoms.get_scaled_positions()))

    def place(scale):
        found = equilibrium(
            energy_fn,
            atoms.get_scaled_positions(),
            neighbors,
            box=scale * box,
            newton_steps=40,
            force_tolerance=1e-11,
        )
        return found.enthalpy, found.position

    assert np.abs(place(1.0)[1] - atoms.get_scaled_positions()).max() > 1e-4
    slope, h = jax.jacfwd(place)(1.0), 1e-4
    for k in range(2):
        wanted = (8 * (place(1 + h)[k] - place(1 - h)[k]) - (place(1 + 2 * h)[k] - place(1 - 2 * h)[k])) / (
            12 * h
        )
        wanted = wanted if k == 0 else wanted @ box.T  # fractions' derivatives are Å
        np.testing.assert_allclose(slope[k], wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.thorough
def test_single_precision(vacancy):
    energy_fn, position, neighbors, region, _ = vacancy
    small = jnp.asarray(position, jnp.float32)

    def far(position, r_core, tolerance):
        moving = mm.regions.Around(region.seeds, r_core, region.r_blend)
        return equilibrium(energy_fn, position, neighbors, region=moving, force_tolerance=tolerance)

    neighbors = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, neighbors)
    found = far(small, region.r_core, 1e-5)
    assert found.position.dtype == found.enthalpy.dtype == jnp.float32
    slope = jax.grad(lambda r: jnp.sum(far(small, r, 1e-5).position[:7, 0]))(region.r_core)
    neighbors = vacancy[2]
    np.testing.assert_allclose(
        slope, jax.grad(lambda r: jnp.sum(far(position, r, 1e-9).position[:7, 0]))(region.r_core), rtol=1e-2
    )


def test_what_is_not_at_rest_is_refused(vacancy):
    energy_fn, position, neighbors, _, _ = vacancy
    moved = position.at[3, 0].add(0.05)
    with pytest.raises(
        ValueError, match=r"position must be near equilibrium.*force_tolerance = 1e-06 eV/Å, got 0\.0\d+ eV/Å"
    ):
        equilibrium(energy_fn, moved, neighbors, newton_steps=0)
    with pytest.raises(
        ValueError, match="position must be near equilibrium"
    ):  # also where it is differentiated
        jax.grad(lambda R: jnp.sum(equilibrium(energy_fn, R, neighbors, newton_steps=0).position))(moved)
    found = jax.jit(lambda R: equilibrium(energy_fn, R, neighbors, newton_steps=0))(moved)
    assert not found.converged and found.max_force > 0.01
    assert np.isnan(found.position).all() and np.isnan(found.enthalpy) and np.isnan(found.strain).all()
    assert equilibrium(energy_fn, moved, neighbors).converged


def test_an_overflow_is_no_structure(vacancy):
    energy_fn, position, _, region, _ = vacancy
    atoms = bulk("Ar", a=A, cubic=True).repeat(3)
    del atoms[0]
    box = atoms.cell.lengths()
    tight, energy_fn = mm.mixture_neighbor_list(
        space.periodic(box)[0],
        box,
        mm.experts.potentials(*argon()),
        np.zeros(len(atoms), int),
        region,
        capacity_multiplier=1.0,
        dr_threshold=0.0,
    )
    neighbors = tight.allocate(position, region=mm.regions.around([1], r_core=2.5, r_blend=1.3))
    with pytest.raises(ValueError, match="neighbors must have room"):
        equilibrium(
            energy_fn,
            position,
            neighbors,
            region=mm.regions.around([1], r_core=2.5, r_blend=1.31),
            newton_steps=0,
            force_tolerance=1.0,
        )


def test_a_soft_mode_has_no_derivative():
    """Nothing holds the second coordinate back: the residual says so."""

    def energy_fn(R, params):
        return (R[0, 0] - params) ** 2 + (R[0, 1] - params) ** 4 + R[0, 2] ** 2

    def place(t):
        return equilibrium(energy_fn, [[0.0, 0.0, 0.0]], params=t, translations=False).position[0]

    assert np.isfinite(place(0.0)).all()
    assert np.isfinite(jax.jacfwd(place)(0.0)[0]).all()  # along it nothing pulls either


@pytest.mark.thorough
def test_a_residual_that_is_too_large_is_nan(vacancy):
    energy_fn, position, neighbors, _, _ = vacancy
    position = equilibrium(energy_fn, position, neighbors).position

    def idle(matvec, b, tolerance):
        return jax.tree.map(lambda x: 0.9 * x, cg(matvec, b, tolerance))

    def place(sigma, solver):
        params = argon()[1]
        params[0]["sigma"] = sigma
        return equilibrium(energy_fn, position, neighbors, params=params, solver=solver).position[5, 0]

    assert np.isfinite(jax.grad(place)(SIGMA, cg)) and np.isnan(jax.grad(place)(SIGMA, idle))


@pytest.mark.parametrize(
    "message, change",
    [
        (
            r"position must be floating point of shape \[n_atoms, 3\], got float64 \(2,\)",
            dict(position=[0.0, 1.0]),
        ),
        (r"fixed_mask must be \[1\] booleans, got float64 \(1,\)", dict(fixed_mask=[0.5])),
        ("volume must be given where strains are", dict(strains=ISOTROPIC_STRAIN)),
        (
            r"strains must be symmetric, of shape \[n, 3, 3\], got shape \(3, 3\)",
            dict(strains=np.eye(3), volume=1.0),
        ),
        ("strains must be independent, got rank 1 of 2", dict(strains=np.stack([np.eye(3)] * 2), volume=1.0)),
        ("force_tolerance must be positive, got 0", dict(force_tolerance=0.0)),
        ("solver_tolerance must be positive, got -1", dict(solver_tolerance=-1.0)),
        ("newton_steps must be a whole number, at least 0, got -1", dict(newton_steps=-1)),
    ],
)
def test_bad_arguments(message, change):
    with pytest.raises(ValueError, match=message):
        equilibrium(lambda R: jnp.sum(R**2), **{"position": [[0.0, 0.0, 0.0]], **change})


def test_no_crystal():
    with pytest.raises(ValueError, match="scale must lead to a minimum"):
        isotropic_equilibrium(lambda F: -F[0, 0], volume=1.0)
    assert np.isnan(jax.jit(lambda v: isotropic_equilibrium(lambda F: -F[0, 0], volume=v).scale)(1.0))
    with pytest.raises(ValueError, match="volume must be positive, got -1"):
        isotropic_equilibrium(lambda F: F[0, 0] ** 2, volume=-1.0)


def test_nothing_is_compiled_twice(vacancy):
    energy_fn, position, neighbors, region, _ = vacancy
    before = _equilibrium._cache_size()
    for r in (2.5, 2.45):
        equilibrium(
            energy_fn, position, neighbors, region=mm.regions.around([1], r, 3.5), force_tolerance=1e-7 * r
        )
    assert _equilibrium._cache_size() <= before + 1
