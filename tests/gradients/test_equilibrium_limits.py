"""What is not at rest or has no derivative is NaN or refused; float32 works, nothing compiles twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from argon_crystals import SIGMA, A, argon
from ase.build import bulk
from jax_md import space

import moe_md as mm
from moe_md.gradients import ISOTROPIC_STRAIN, cg, equilibrium
from moe_md.gradients.equilibrium import _equilibrium


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


def test_nothing_is_compiled_twice(vacancy):
    energy_fn, position, neighbors, region, _ = vacancy
    before = _equilibrium._cache_size()
    for r in (2.5, 2.45):
        equilibrium(
            energy_fn, position, neighbors, region=mm.regions.around([1], r, 3.5), force_tolerance=1e-7 * r
        )
    assert _equilibrium._cache_size() <= before + 1
