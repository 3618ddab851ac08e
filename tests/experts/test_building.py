"""A config or a checkpoint gives the same expert again, and bad arguments are refused."""

import contract
import jax
import numpy as np
import pytest
from contract import ATOMS, POSITION, SPECIES, close, cluster_rows
from small_experts import EXPERTS, jitted, made

from moe_md import experts
from moe_md.checkpoint import Checkpoint, load, save
from moe_md.experts import build


@pytest.mark.parametrize("name", EXPERTS)
def test_a_config_builds_the_same_expert(name):
    expert, params = made(name)
    again = build(expert.config)
    assert contract.without_functions(again) == contract.without_functions(expert)
    rows = cluster_rows(POSITION, ATOMS)
    np.testing.assert_array_equal(again.atom_energies(params, rows), expert.atom_energies(params, rows))


@pytest.mark.parametrize("name", ["embedded_atom-Pt", "nequip-l2-parity"])
def test_a_checkpoint_holds_it(name, tmp_path):
    """Names of parameters that an `Expert` borrows from another library survive too."""
    expert, params = made(name)
    save(tmp_path / "one.msgpack", Checkpoint((expert,), (params,), {}, {}))
    again = load(tmp_path / "one.msgpack")
    assert contract.without_functions(again.experts[0]) == contract.without_functions(expert)
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
        (
            lambda: experts.density_moments(SPECIES, 3.0, num_radial=8),
            "num_radial must be a tuple of one to 9 numbers, one for each l, got 8",
        ),
        (lambda: experts.density_moments(SPECIES, 3.0, num_radial=()), "num_radial must be a tuple"),
        (
            lambda: experts.density_moments(SPECIES, 3.0, num_radial=(8, 0)),
            "num_radial must be at least 1, got 0",
        ),
        (
            lambda: experts.density_moments(SPECIES, 3.0, cutoff_power=3),
            "cutoff_power must be at least 4, got 3",
        ),
        (
            lambda: experts.density_moments(SPECIES, 3.0, num_species_mixtures=0),
            "num_species_mixtures must be at least 1, got 0",
        ),
        (
            lambda: experts.density_moments(SPECIES, 3.0, pair_cutoffs=((3.0, 4.0), (4.0, 3.0))),
            "pair_cutoffs must be 2 rows of 2 numbers",
        ),
        (
            lambda: experts.density_moments(("A", "Pt"), 3.0, zbl=True),
            "species must be chemical symbols where zbl = True",
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
