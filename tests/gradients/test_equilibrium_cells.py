"""Derivatives of cells at rest: under pressure and strain, of perfect crystals, in fractions of a box."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from argon_crystals import EPSILON, SIGMA, A, agree, argon, central
from ase.build import bulk
from jax_md import space

import moe_md as mm
from moe_md import gradients
from moe_md.gradients import ANY_STRAIN, ISOTROPIC_STRAIN, equilibrium, isotropic_equilibrium


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
    from moe_md.analysis.bulk import relax_crystal
    from moe_md.analysis.bulk_gradients import isotropic_crystal

    (expert, _), (params, _) = argon()
    host = relax_crystal(expert, params, bulk("Ar"))
    crystal = isotropic_crystal(expert, bulk("Ar", a=A))
    found = crystal(params)
    np.testing.assert_allclose([found.energy, found.volume, found.bulk_modulus_GPa], host[1:], rtol=1e-8)

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

    np.testing.assert_allclose(size(params, 0.0), (4 * host.volume) ** (1 / 3), rtol=1e-8)
    np.testing.assert_allclose(modulus(params), host.bulk_modulus_GPa, rtol=1e-6)
    slope = jax.grad(size)(params, 0.0)
    np.testing.assert_allclose(
        slope["sigma"], jax.grad(lambda p: A * crystal(p).scale)(params)["sigma"], rtol=1e-8
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

    from moe_md.analysis.bulk_gradients import isotropic_crystal

    expert = small_power_spectrum(cutoff=5.0)
    params = randomized(expert, 3)
    constants = np.linspace(3.4, 4.6, 13)
    from moe_md.analysis.bulk import equation_of_state

    curve = equation_of_state(expert, params, bulk("Pt", "fcc", a=4.0), strains=constants / 4.0 - 1)
    energies = curve["energy_eV_per_atom"]
    least = int(np.argmin(energies))
    assert 0 < least < 12, "these random parameters have no crystal: choose another seed"
    crystal = isotropic_crystal(expert, bulk("Pt", "fcc", a=float(constants[least])))
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=flat.size)) * jnp.abs(flat)

    def along(t):
        found = crystal(unravel(flat + t * direction))
        return jnp.stack([found.scale, found.energy, found.bulk_modulus_GPa])

    slope = jax.jacrev(along)(0.0)
    h = 1e-4
    wanted = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope, wanted, rtol=1e-6)


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


def test_no_crystal():
    with pytest.raises(ValueError, match="scale must lead to a minimum"):
        isotropic_equilibrium(lambda F: -F[0, 0], volume=1.0)
    assert np.isnan(jax.jit(lambda v: isotropic_equilibrium(lambda F: -F[0, 0], volume=v).scale)(1.0))
    with pytest.raises(ValueError, match="volume must be positive, got -1"):
        isotropic_equilibrium(lambda F: F[0, 0] ** 2, volume=-1.0)
