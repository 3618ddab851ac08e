"""The dtype follows the positions, for parameters of any dtype and with or without float64 enabled."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ATOMS, BOX, OWNERS, POSITION, cluster_rows, randomized
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax_md import space

import moe_md as mm
from moe_md.experts import chunked_atom_energies, energies_and_partial_forces
from moe_md.mixture import mixture_neighbor_list
from moe_md.regions import fixed

EXPERTS = {
    "allegro": contract.small_allegro,
    "power_spectrum": contract.small_power_spectrum,
    "power_spectrum-Pt": lambda: contract.small_power_spectrum(("Pt",)),
    "density_moments": contract.small_density_moments,
    "lennard_jones": contract.small_lennard_jones,
}


def cast(params, dtype):
    return jax.tree.map(lambda p: np.asarray(p, dtype), params)


def dtypes(jaxpr):
    """Every floating dtype in a program."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {v.aval.dtype for v in equation.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating)}
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, (ClosedJaxpr, Jaxpr)):
                    found |= dtypes(getattr(inner, "jaxpr", inner))
    return found


@pytest.mark.parametrize("params_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXPERTS)
def test_dtype_in_is_dtype_out(name, dtype, params_dtype):
    expert = EXPERTS[name]()
    params = cast(randomized(expert), params_dtype)
    rows = cluster_rows(POSITION, ATOMS, extra_slots=1, dtype=dtype)
    assert rows.displacement.dtype == dtype
    energies, g = jax.eval_shape(lambda p, r: energies_and_partial_forces(expert, p, r), params, rows)
    assert energies.dtype == dtype and g.dtype == dtype
    assert jax.eval_shape(chunked_atom_energies(expert, 2), params, rows).dtype == dtype
    for x in jax.tree.leaves(jax.eval_shape(jax.grad(lambda p: expert.atom_energies(p, rows).sum()), params)):
        assert x.dtype == params_dtype


@pytest.mark.parametrize("name", EXPERTS)
def test_float32_rows_compute_nothing_in_float64(name):
    expert = EXPERTS[name]()
    params = cast(randomized(expert), np.float32)
    rows = cluster_rows(POSITION, ATOMS, extra_slots=1, dtype=np.float32)
    program = jax.make_jaxpr(lambda p, r: energies_and_partial_forces(expert, p, r))(params, rows)
    assert dtypes(program.jaxpr) == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", EXPERTS)
def test_float64_rows_compute_nothing_in_float32(name):
    """A cast to float32 within the program would silently lose precision."""
    expert = EXPERTS[name]()
    params = randomized(expert)
    rows = cluster_rows(POSITION, ATOMS, extra_slots=1)
    program = jax.make_jaxpr(lambda p, r: energies_and_partial_forces(expert, p, r))(params, rows)
    assert dtypes(program.jaxpr) == {np.dtype(np.float64)}


@pytest.mark.parametrize("name", EXPERTS)
def test_float32_agrees_with_float64(name):
    expert = EXPERTS[name]()
    params = randomized(expert)
    both = []
    for dtype in (np.float32, np.float64):
        rows = cluster_rows(POSITION, ATOMS, dtype=dtype)
        both.append(jax.jit(lambda p, r: energies_and_partial_forces(expert, p, r))(params, rows))
    for low, high in zip(*both):
        # Errors in float32: energies of atoms about 1e-6, forces about 1e-5 of the largest.
        np.testing.assert_allclose(low, high, rtol=0, atol=2e-5 * np.abs(high).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mixture_follows_positions(dtype):
    """The dtype is that of the positions, not of the box."""
    energy, force = mixture(dtype)
    assert energy.dtype == dtype and force.dtype == dtype


def test_mixture_without_x64():
    """Without float64 enabled, the same numbers follow in float32."""
    expected = mixture(np.float64)
    with jax.enable_x64(False):
        energy, force = mixture(np.float32, BOX.astype(np.float32))
    assert energy.dtype == np.float32
    np.testing.assert_allclose(energy, expected[0], rtol=1e-5)
    np.testing.assert_allclose(force, expected[1], rtol=0, atol=2e-5 * np.abs(expected[1]).max())


def mixture(dtype, box=BOX):
    displacement_fn, _ = space.periodic(box)
    pair = [contract.small_power_spectrum(), contract.small_lennard_jones()]
    params = [cast(randomized(e), dtype) for e in pair]
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn, box, mm.experts.potentials(pair, params), ATOMS, fixed(OWNERS)
    )
    position = jnp.asarray(POSITION, dtype)
    nbrs = neighbor_fn.allocate(position)
    return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(energy_fn))(position, nbrs))
