"""Every expert: the contract, and what padding, chunking and dtype must not change."""

from functools import lru_cache, partial

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ATOMS, CUTOFF, POSITION, SPECIES, close, cluster_rows, randomized
from depths import short

from moe_md import experts
from moe_md.checkpoint import Checkpoint, load, save
from moe_md.experts import build, chunked_atom_energies, energies_and_partial_forces
from moe_md.neighbors.rows import Neighborhood

EXPERTS = {
    **{
        f"allegro-l{l_max}-layers{layers}-{'parity' if parity else 'so3'}": (
            contract.small_allegro,
            (l_max, layers, parity),
        )
        for l_max in (1, 2)
        for layers in (1, 2)
        for parity in (True, False)
    },
    "power_spectrum": (contract.small_power_spectrum, ()),
    "power_spectrum-Pt": (contract.small_power_spectrum, (("Pt",),)),
    "embedded_atom": (contract.small_embedded_atom, ()),
    "embedded_atom-Pt": (contract.small_embedded_atom, (("Pt",),)),
    "nequip": (contract.small_nequip, ()),
    "nequip-l2-parity": (contract.small_nequip, (2, CUTOFF, 2, "4x0e + 2x0o + 2x1o + 2x1e + 2x2e")),
    "lennard_jones": (contract.small_lennard_jones, ()),
}
# One of each kind, where the network's size cannot matter.
KINDS = (
    "allegro-l2-layers2-parity",
    "power_spectrum",
    "power_spectrum-Pt",
    "embedded_atom",
    "embedded_atom-Pt",
    "nequip",
    "lennard_jones",
)


@lru_cache
def made(name):
    make, arguments = EXPERTS[name]
    expert = make(*arguments)
    return expert, randomized(expert)


@lru_cache
def potential(name):
    inner = contract.expert_potential(*made(name))
    if not name.endswith("-Pt"):
        return inner
    # Its own species only: others it does not see.
    return contract.Potential(lambda R, s, owner: inner.evaluate(R, np.zeros_like(s), owner), inner.cutoff)


@lru_cache
def jitted(name):
    """Energies and partial forces of the expert, and gradients of a force loss."""
    expert, _ = made(name)

    def force_loss(params, rows):
        energies, g = energies_and_partial_forces(expert, params, rows)
        return jnp.sum(jnp.where(rows.mask[..., None], g, 0.0) ** 2) + jnp.sum(energies**2)

    def loss_of_displacement(displacement, params, rows):
        return force_loss(params, rows._replace(displacement=displacement))

    first = jax.jit(lambda params, rows: energies_and_partial_forces(expert, params, rows))
    second = jax.jit(
        lambda params, rows: (
            jax.value_and_grad(force_loss)(params, rows),
            jax.grad(loss_of_displacement)(rows.displacement, params, rows),
        )
    )
    return first, second


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda f: f.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", short(EXPERTS, only=[*KINDS, "allegro-l1-layers1-so3"]))
def test_contract(name, check):
    check(potential(name))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("fill", short([0.0, 1e-3, 50.0], only=[0.0]))
def test_padding_changes_nothing(name, fill):
    _, params = made(name)
    first, _ = jitted(name)
    n, slots = len(ATOMS), len(ATOMS) - 1
    energies, g = first(params, cluster_rows(POSITION, ATOMS))
    padded_energies, padded_g = first(
        params, cluster_rows(POSITION, ATOMS, extra_slots=3, extra_rows=2, fill=fill)
    )
    close(padded_energies[:n], energies, 1e-12)
    close(padded_g[:n, :slots], g, 1e-12)
    np.testing.assert_array_equal(padded_g[:n, slots:], 0.0)
    np.testing.assert_array_equal(padded_g[n:], 0.0)


@pytest.mark.parametrize("name", KINDS)
def test_dropping_skin_slots_changes_nothing(name):
    _, params = made(name)
    first, _ = jitted(name)
    rows = cluster_rows(POSITION, ATOMS)
    distance = np.linalg.norm(rows.displacement, axis=-1)
    near = np.asarray(rows.mask) & (distance < CUTOFF)
    assert near.sum() < np.asarray(rows.mask).sum()
    energies, g = first(params, rows)
    order = np.argsort(~near, axis=1, kind="stable")[:, : near.sum(axis=1).max()]

    def compact(x):
        return jnp.asarray(
            np.take_along_axis(np.asarray(x), order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
        )

    compacted = Neighborhood(
        displacement=compact(rows.displacement),
        mask=compact(near),
        center_species=rows.center_species,
        neighbor_species=compact(rows.neighbor_species),
        neighbor=compact(rows.neighbor),
    )
    compacted_energies, compacted_g = first(params, compacted)
    close(compacted_energies, energies, 1e-12)
    close(compacted_g, np.where(compact(near)[..., None], compact(g), 0.0), 1e-12)
    np.testing.assert_array_equal(np.asarray(g)[~near], 0.0)


@pytest.mark.parametrize("name", KINDS)
def test_order_of_slots_does_not_matter(name):
    _, params = made(name)
    first, _ = jitted(name)
    rows = cluster_rows(POSITION, ATOMS)
    order = np.array([3, 0, 4, 2, 1])
    shuffled = Neighborhood(
        rows.displacement[:, order],
        rows.mask[:, order],
        rows.center_species,
        rows.neighbor_species[:, order],
        rows.neighbor[:, order],
    )
    energies, g = first(params, rows)
    shuffled_energies, shuffled_g = first(params, shuffled)
    close(shuffled_energies, energies, 1e-12)
    close(shuffled_g, g[:, order], 1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_jit_changes_nothing(name):
    expert, params = made(name)
    rows = cluster_rows(POSITION, ATOMS)
    close(expert.atom_energies(params, rows), jitted(name)[0](params, rows)[0], 1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_species_matter(name):
    expert, params = made(name)
    if name == "lennard_jones":
        pytest.skip("one pair potential for all species")
    energies = np.asarray(jitted(name)[0](params, cluster_rows(POSITION, ATOMS))[0])
    swapped = np.asarray(jitted(name)[0](params, cluster_rows(POSITION, 1 - ATOMS))[0])
    assert np.abs(energies - swapped).min() > 1e-6


@pytest.mark.parametrize("name", ["power_spectrum-Pt", "embedded_atom-Pt"])
def test_species_outside_the_domain_are_not_seen(name):
    _, params = made(name)
    first, _ = jitted(name)
    energies, g = first(params, cluster_rows(POSITION, ATOMS))
    only = np.flatnonzero(ATOMS == 0)
    alone, _ = first(params, cluster_rows(POSITION[only], ATOMS[only]))
    close(np.asarray(energies)[only], alone, 1e-12)
    carbon = np.asarray(cluster_rows(POSITION, ATOMS).neighbor_species) == 1
    np.testing.assert_array_equal(np.asarray(g)[carbon], 0.0)


@pytest.mark.parametrize("name", EXPERTS)
def test_isolated_atom_has_its_shift(name):
    _, params = made(name)
    energies, forces = potential(name).evaluate(
        np.diag([0.0, 10.0]) @ np.eye(2, 3), np.array([0, 1]), np.zeros(2, int)
    )
    species = [0, 0] if name.endswith("-Pt") else [0, 1]
    np.testing.assert_array_equal(energies, params.get("shift", np.zeros(2))[species])
    np.testing.assert_array_equal(forces, 0.0)


@pytest.mark.parametrize("name", KINDS)
def test_derivatives_on_padded_slots_are_finite(name):
    """Zero-length padded slots, and rows of nothing else, under two derivatives."""
    _, params = made(name)
    first, second = jitted(name)
    real = cluster_rows(POSITION, ATOMS)
    padded = cluster_rows(POSITION, ATOMS, extra_slots=3, extra_rows=2, fill=0.0)
    (loss, of_params), of_displacement = second(params, padded)
    assert np.isfinite(loss)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(of_params))
    assert np.isfinite(of_displacement).all()
    # The padded rows add their shift's square to the loss, and nothing to what displacements feel.
    expected = second(params, real)[1]
    close(of_displacement[: len(ATOMS), : len(ATOMS) - 1], expected, 1e-11)
    np.testing.assert_array_equal(np.asarray(of_displacement)[~np.asarray(padded.mask)], 0.0)
    nothing = padded._replace(
        mask=jnp.zeros_like(padded.mask), displacement=jnp.zeros_like(padded.displacement)
    )
    _, g = first(params, nothing)
    (_, of_params), of_displacement = second(params, nothing)
    np.testing.assert_array_equal(g, 0.0)
    np.testing.assert_array_equal(of_displacement, 0.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(of_params))


@pytest.mark.parametrize("name", KINDS)
def test_parameter_gradient_of_a_force_loss(name):
    """Double backward against finite differences, along a random direction of each parameter."""
    _, params = made(name)
    _, second = jitted(name)
    rows = cluster_rows(POSITION, ATOMS, extra_slots=3, extra_rows=2, fill=0.0)
    (_, gradient), _ = second(params, rows)
    rng = np.random.default_rng(1)
    h = 1e-4
    leaves, tree = jax.tree.flatten(params)
    for place, leaf in enumerate(leaves):
        direction = rng.standard_normal(np.shape(leaf))

        def loss(step, place=place, leaf=leaf, direction=direction):
            moved = [*leaves[:place], leaf + step * direction, *leaves[place + 1 :]]
            return float(second(jax.tree.unflatten(tree, moved), rows)[0][0])

        expected = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
        found = float(np.sum(np.asarray(jax.tree.leaves(gradient)[place]) * direction))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * max(1.0, loss(0.0)))


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
    [(name, 4) for name in ("allegro", "power_spectrum")] + [("lennard_jones", size) for size in (1, 7, 9)],
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


@pytest.mark.parametrize("name", EXPERTS)
def test_a_config_builds_the_same_expert(name):
    expert, params = made(name)
    again = build(expert.config)
    assert again[2:] == expert[2:]
    rows = cluster_rows(POSITION, ATOMS)
    np.testing.assert_array_equal(again.atom_energies(params, rows), expert.atom_energies(params, rows))


@pytest.mark.parametrize("name", ["embedded_atom-Pt", "nequip-l2-parity"])
def test_a_checkpoint_holds_it(name, tmp_path):
    """Names of parameters that an `Expert` borrows from another library survive too."""
    expert, params = made(name)
    save(tmp_path / "one.msgpack", Checkpoint((expert,), (params,), {}, {}))
    again = load(tmp_path / "one.msgpack")
    assert again.experts[0][2:] == expert[2:]
    rows = cluster_rows(POSITION, ATOMS)
    found = jax.jit(again.experts[0].atom_energies)(again.params[0], rows)
    close(found, jitted(name)[0](params, rows)[0], 1e-13)


@pytest.mark.parametrize(
    "build_it, message",
    [
        (lambda: experts.allegro(SPECIES, 3.0, num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: experts.allegro(SPECIES, 3.0, l_max=-1), "l_max must be at least 0, got -1"),
        (
            lambda: experts.allegro(SPECIES, 3.0, num_scalar_features=5),
            "num_scalar_features must be even .* got 5",
        ),
        (
            lambda: experts.allegro(SPECIES, 3.0, num_tensor_features=0),
            "num_tensor_features must be at least 1, got 0",
        ),
        (
            lambda: experts.allegro(SPECIES, 3.0, avg_num_neighbors=0.0),
            "avg_num_neighbors must be positive.* got 0.0",
        ),
        (
            lambda: experts.allegro("Pt", 3.0),
            "species must be a tuple of distinct chemical symbols, got 'Pt'",
        ),
        (
            lambda: experts.power_spectrum(("Pt", "Pt"), 3.0),
            "species must be a tuple of distinct chemical symbols",
        ),
        (lambda: experts.power_spectrum((), 3.0), "species must be a tuple of distinct chemical symbols"),
        (lambda: experts.power_spectrum(SPECIES, 0.0), r"cutoff must be positive \(Å\), got 0.0"),
        (
            lambda: experts.power_spectrum(SPECIES, 3.0, allowed_species=("Au",)),
            "allowed_species must be a non-empty subset .*'Au'",
        ),
        (
            lambda: experts.power_spectrum(SPECIES, 3.0, allowed_species=()),
            "allowed_species must be a non-empty subset",
        ),
        (
            lambda: experts.power_spectrum(SPECIES, 3.0, num_channels=0),
            "num_channels must be at least 1, got 0",
        ),
        (
            lambda: experts.embedded_atom(SPECIES, 3.0, num_densities=0),
            "num_densities must be at least 1, got 0",
        ),
        (lambda: experts.embedded_atom(SPECIES, 3.0, num_bessels=0), "num_bessels must be at least 1, got 0"),
        (
            lambda: experts.embedded_atom(SPECIES, 3.0, allowed_species=("Au",)),
            "allowed_species must be a non-empty subset .*'Au'",
        ),
        (
            lambda: experts.embedded_atom(SPECIES, 3.0, avg_num_neighbors=-1.0),
            "avg_num_neighbors must be positive",
        ),
        (lambda: experts.nequip(SPECIES, 3.0, num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: experts.nequip(SPECIES, 3.0, radial_depth=0), "radial_depth must be at least 1, got 0"),
        (lambda: experts.nequip(SPECIES, 3.0, l_max=-1), "l_max must be at least 0, got -1"),
        (lambda: experts.nequip(SPECIES, 0.5), "cutoff must be above 0.5 Å.* got 0.5"),
        (
            lambda: experts.nequip(SPECIES, 3.0, hidden_irreps="1x0e + 2x1o"),
            "hidden_irreps must be .* got '1x0e",
        ),
        (lambda: experts.nequip(SPECIES, 3.0, hidden_irreps="many"), "hidden_irreps must be .* got 'many'"),
        (
            lambda: experts.lennard_jones(SPECIES, 3.0, onset=3.0),
            "onset must lie between 0 and cutoff = 3.0 Å",
        ),
        (lambda: build({"builder": "magic"}), "builder must be one of .*'magic'"),
        (
            lambda: build({"builder": "lennard_jones", "species": ["Pt"], "cutof": 3.0}),
            "arguments of lennard_jones",
        ),
    ],
)
def test_bad_arguments_are_refused(build_it, message):
    with pytest.raises(ValueError, match=message):
        build_it()
