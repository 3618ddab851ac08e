"""Rows in chunks have the energies and derivatives of all rows at once."""

from functools import lru_cache, partial

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ATOMS, POSITION, close, cluster_rows, randomized
from small_experts import made

from moe_md.experts import chunked_atom_energies

NINE = cluster_rows(
    np.concatenate([POSITION, POSITION[:3] + 6.0]), np.concatenate([ATOMS, ATOMS[:3]]), extra_slots=1
)
WEIGHT = jnp.asarray(np.random.default_rng(2).standard_normal(9))


def weighted(atom_energies, params, D):
    return jnp.sum(WEIGHT * atom_energies(params, NINE._replace(displacement=D)))


@lru_cache
def small(name):
    expert = {
        "allegro": lambda: contract.small_allegro(1, 1, True),
        "power_spectrum": lambda: contract.small_power_spectrum(l_max=1),
        "embedded_atom": contract.small_embedded_atom,
        "density_moments": contract.small_density_moments,
        "lennard_jones": contract.small_lennard_jones,
    }[name]()
    return expert, randomized(expert)


@lru_cache
def forces_in_chunks(name, chunk_size):
    """Energies, and their gradient with respect to displacements and parameters."""
    expert, params = small(name)
    atom_energies = expert.atom_energies if chunk_size is None else chunked_atom_energies(expert, chunk_size)

    @jax.jit
    def compute(params, D):
        energies = atom_energies(params, NINE._replace(displacement=D))
        return energies, jax.grad(partial(weighted, atom_energies), (0, 1))(params, D)

    return compute(params, NINE.displacement)


@pytest.mark.parametrize(
    "name, chunk_size",
    [
        ("allegro", 4),
        ("embedded_atom", 4),
        ("density_moments", 4),
        *((name, size) for name in ("power_spectrum", "lennard_jones") for size in (1, 7, 9)),
    ],
)
def test_chunking_changes_nothing(name, chunk_size):
    found, expected = forces_in_chunks(name, chunk_size), forces_in_chunks(name, None)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 1e-6 and np.isfinite(b).all()
        close(a, b, 1e-12)


@lru_cache
def derivatives_in_chunks(name, chunk_size):
    """Forward mode, second derivatives of every mixture, and batches."""
    expert, params = small(name)
    atom_energies = expert.atom_energies if chunk_size is None else chunked_atom_energies(expert, chunk_size)
    energy = partial(weighted, atom_energies)
    rng = np.random.default_rng(3)
    D_dot = jnp.asarray(rng.standard_normal(NINE.displacement.shape))
    params_dot = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(np.shape(p))), params)

    def force_loss(params, D):
        return jnp.sum(jax.grad(energy, 1)(params, D) ** 2)

    def parameter_loss(params, D):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(jax.grad(energy)(params, D)))

    @jax.jit
    def compute(params, D):
        found = {"force loss": jax.grad(force_loss, (0, 1))(params, D)}
        if name != "allegro":
            found |= {
                "forward": jax.jvp(lambda D: energy(params, D), (D,), (D_dot,)),
                "forward both": jax.jvp(energy, (params, D), (params_dot, D_dot)),
                "parameter loss": jax.grad(parameter_loss, (0, 1))(params, D),
                "forward over reverse": jax.jvp(jax.grad(energy, 1), (params, D), (params_dot, D_dot)),
                "batched": jax.vmap(jax.grad(energy, 1), (None, 0))(params, jnp.stack([D, 1.01 * D])),
            }
        return found

    return compute(params, NINE.displacement)


@pytest.mark.parametrize(
    "name, chunk_size",
    [
        ("allegro", 4),
        *(
            pytest.param(name, 4, marks=pytest.mark.thorough)
            for name in ("power_spectrum", "density_moments")
        ),
    ]
    + [("lennard_jones", size) for size in (1, 7, 9)],
)
def test_chunking_changes_no_derivative(name, chunk_size):
    found, expected = derivatives_in_chunks(name, chunk_size), derivatives_in_chunks(name, None)
    for key in expected:
        assert max(np.abs(b).max() for b in jax.tree.leaves(expected[key])) > 1e-3, key
        for a, b in zip(jax.tree.leaves(found[key]), jax.tree.leaves(expected[key]), strict=True):
            close(a, b, 1e-11)


def test_one_parameter_tangent_is_enough():
    """Freezing part of the parameters leaves symbolic zeros beside real tangents."""
    expert, params = made("lennard_jones")
    chunked = chunked_atom_energies(expert, 4)
    rows = cluster_rows(POSITION, ATOMS)

    def energy(atom_energies, sigma):
        return jnp.sum(atom_energies({"epsilon": params["epsilon"], "sigma": sigma}, rows))

    sigma = jnp.asarray(params["sigma"])
    found = jax.grad(lambda s: energy(chunked, s))(sigma)
    close(found, jax.grad(lambda s: energy(expert.atom_energies, s))(sigma), 1e-12)
    assert abs(found) > 1e-3


def test_rows_that_do_not_matter_are_left_out():
    """Chunks of none that do are never computed; derivatives of the others are those of all rows."""
    expert, params = made("power_spectrum")
    rows = jax.tree.map(lambda x: jnp.concatenate([x, x, x]), cluster_rows(POSITION, ATOMS))
    n, wanted = len(rows.mask), 5
    called = []

    def counted(params, chunk):
        jax.debug.callback(lambda: called.append(chunk.mask.shape[0]))
        return expert.atom_energies(params, chunk)

    some = chunked_atom_energies(expert._replace(atom_energies=counted), 4)

    def energy(displacement, wanted):
        energies = some(params, rows._replace(displacement=displacement), wanted)
        return jnp.sum(energies[:5]), energies

    (_, energies), slope = jax.jit(jax.value_and_grad(energy, has_aux=True))(rows.displacement, wanted)
    jax.effects_barrier()
    size = -(-n // -(-n // 4))
    computed = -(-wanted // size)
    assert len(called) == computed < -(-n // size) and not np.asarray(energies)[computed * size :].any()
    expected = jax.grad(lambda d: jnp.sum(expert.atom_energies(params, rows._replace(displacement=d))[:5]))(
        rows.displacement
    )
    close(slope, expected, 1e-11)
    close(energies[:5], expert.atom_energies(params, rows)[:5], 1e-12)


def test_no_rows_at_all():
    expert, params = made("power_spectrum")
    rows = jax.tree.map(lambda x: x[:0], cluster_rows(POSITION, ATOMS))
    assert chunked_atom_energies(expert, 4)(params, rows).shape == (0,)


def test_rows_that_pass_messages_are_not_chunked():
    expert, _ = made("nequip")
    assert expert.num_hops == 2
    assert chunked_atom_energies(expert, 1) is expert.atom_energies


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_chunk_size_must_be_positive(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size must be at least 1, got {chunk_size}"):
        chunked_atom_energies(made("lennard_jones")[0], chunk_size)
