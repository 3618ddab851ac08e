"""Agreement with PyTorch Allegro: with stored references, and with its models where torch is installed."""

import importlib.util
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_references import FILE, build, cases, evaluate, structures

import moe_md as mm
from moe_md import derivatives
from moe_md.data.batching import frame_rows
from moe_md.data.reading import frame_from_atoms
from moe_md.experts import energies_and_partial_forces
from moe_md.interfaces.torch_allegro import from_module

CASES = cases()
RELATIVE = 1e-9  # tolerance, relative to the largest number of each array


def predicted(expert, params, atoms) -> dict[str, np.ndarray]:
    rows = frame_rows(frame_from_atoms(atoms), expert.species, expert.cutoff, dtype=np.float64)
    n = len(atoms)

    @jax.jit  # without it, each operation compiles a program
    def predict(params, rows):
        energies, g = energies_and_partial_forces(expert, params, rows)
        found = {"energies": energies, "forces": derivatives.forces(g, rows, np.arange(n), n)}
        if atoms.pbc.all():
            found["stress"] = jnp.sum(derivatives.virial(g, rows), axis=0) / atoms.get_volume()
        return found

    return jax.tree.map(np.asarray, predict(params, jax.tree.map(jnp.asarray, rows)))


def assert_equal(found: dict, reference: dict) -> None:
    assert set(found) == set(reference) and {"energies", "forces"} <= set(found)
    for name, value in reference.items():
        scale = np.max(np.abs(value))
        if name == "forces" and scale < 1e-10:  # zero by symmetry in the perfect crystal
            assert np.max(np.abs(found[name])) < 1e-10
            continue
        np.testing.assert_allclose(found[name], value, rtol=0, atol=RELATIVE * scale, err_msg=name)


@pytest.fixture(scope="module")
def stored():
    with np.load(FILE) as file:
        return dict(file)


@pytest.mark.parametrize("name", CASES)
def test_energies_and_forces_equal_the_stored_references(name, stored):
    case = {
        key.removeprefix(f"{name}/"): value for key, value in stored.items() if key.startswith(f"{name}/")
    }
    expert = mm.experts.build(json.loads(str(case["config"])))
    params: dict = {}
    for key, value in case.items():
        if key.startswith("params/"):
            *folders, last = key.split("/")[1:]
            branch = params
            for folder in folders:
                branch = branch.setdefault(folder, {})
            branch[last] = value
    reference = {key: case[key] for key in ("energies", "forces", "stress") if key in case}
    assert_equal(predicted(expert, params, structures()[CASES[name][1]]), reference)


def test_the_comparison_detects_a_small_difference(stored):
    name = "l2-layers2-full"
    reference = {key: stored[f"{name}/{key}"] for key in ("energies", "forces")}
    wrong = {**reference, "forces": reference["forces"] * (1 + 1e-8)}
    with pytest.raises(AssertionError):
        assert_equal(wrong, reference)


needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("allegro") is None or importlib.util.find_spec("torch") is None,
    reason="torch, nequip and nequip-allegro are not installed",
)


@needs_torch
@pytest.mark.parametrize("name", CASES)
def test_energies_and_forces_equal_those_of_torch(name):
    options, structure = CASES[name]
    model = build(options, seed=123)
    expert, params = from_module(model)
    atoms = structures()[structure]
    assert_equal(predicted(expert, params, atoms), evaluate(model, atoms, options["type_names"]))


@needs_torch
@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"radial_chemical_embed": {"_target_": "allegro.nn.TwoBodySplineScalarEmbed"}},
            "TwoBodyBesselScalarEmbed",
        ),
        ({"weight_individual_irreps": False}, "weight_individual_irreps must be True"),
        ({"allegro_mlp_nonlinearity": None}, "latent_0 must have a nonlinearity"),
        ({"readout_mlp_nonlinearity": "mish"}, "nonlinearities must be one of"),
        (
            {
                "pair_potential": {
                    "_target_": "nequip.nn.pair_potential.LennardJones",
                    "lj_sigma": 1.0,
                    "lj_epsilon": 1.0,
                }
            },
            "pair_potential must be ZBL or none, got LennardJones",
        ),
    ],
)
def test_options_without_a_counterpart_are_refused(change, message):
    model = build({"l_max": 1, "num_layers": 1, "type_names": ["Pt"], **change})
    with pytest.raises(ValueError, match=message):
        from_module(model)


@needs_torch
def test_species_default_to_type_names_and_can_be_given():
    model = build({"l_max": 1, "num_layers": 1, "type_names": ["metal", "gas"]})
    assert from_module(model)[0].species == ("metal", "gas")
    assert from_module(model, ("Pt", "C"))[0].species == ("Pt", "C")
    with pytest.raises(ValueError, match="species must name the 2 types"):
        from_module(model, ("Pt",))


def test_a_module_without_allegro_is_refused():
    with pytest.raises(ValueError, match="module must contain an Allegro model, got SimpleNamespace"):
        from_module(SimpleNamespace(modules=list))


def test_bad_options_of_the_expert_are_refused():
    for change, message in (
        (
            {"pair_cutoffs": [[4.0]]},
            "pair_cutoffs must be 2 rows of 2 numbers above 0 and up to cutoff = 4.0",
        ),
        ({"pair_cutoffs": [[4.0, 4.0], [4.1, 4.0]]}, "pair_cutoffs must be 2 rows"),
        ({"avg_num_neighbors": [3.0]}, "avg_num_neighbors must be positive, one number or one per species"),
        ({"nonlinearity": "relu"}, "nonlinearity must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            mm.experts.allegro(("Pt", "C"), 4.0, **change)
    with pytest.raises(ValueError, match="species must be chemical symbols where zbl = True"):
        mm.experts.allegro(("metal",), 4.0, zbl=True)
