"""Benchmarks of models run in a small form, and append one record that the tables can read."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from small_benchmarks import BENCHMARKS, HAS_TORCH, smoke

import moe_md as mm
from moe_md import units
from moe_md.data import Frame, collate, load_dataset
from moe_md.settings import LossWeights
from moe_md.training.losses import errors, predict


@pytest.mark.thorough
def test_cotraining(tmp_path, tables):
    record = smoke("cotraining", tmp_path)
    assert record["way"] == "random assignment" and record["weights"]["agree_random_assignment"] > 0
    assert len(record["ghost_force_meV_per_A"]["100"]["max"]) == 3
    assert record["scores"]["expensive"]["forces_meV_per_A"] > 0 and record["stress_jump_GPa"] > 0
    assert abs(record["drift"]["meV_per_atom_per_ps"]) < 1.0
    # As measurements of two ways and two seeds lines fill the table.
    record |= {
        "smoke": False,
        "crystal_difference": {"lattice_constant": -0.5, "C11": 1.0, "C12": -4.0, "C44": 2.0},
    }
    lines = [
        json.dumps({**record, "way": way, "seed": seed})
        for seed in (0, 1)
        for way in ("independent", "random assignment")
    ]
    (tmp_path / "cotraining.jsonl").write_text("\n".join(lines))
    table = tables.cotraining(tmp_path)
    assert "| independently | " in table and "| 0.50 (0.50, 0.50) | 4.0 (4.0, 4.0) |" in table


@pytest.mark.thorough
def test_accuracy(tmp_path, tables):
    record = smoke("accuracy", tmp_path, "ptco")
    bulk = record["parts"][0]
    assert (
        bulk["name"] == "bulk" and bulk["frames"] > 0 and bulk["inside"] == {"expensive": None, "mixed": None}
    )
    assert 0 < bulk["expensive"]["forces_meV_per_A"] < 500 and 0 < record["agreement"]["ghost_force"] < 50
    crystal = {
        "lattice_constant_A": 3.98,
        "bulk_modulus_GPa": 250.0,
        "C11_GPa": 300.0,
        "C12_GPa": 220.0,
        "C44_GPa": 60.0,
    }
    measured = {
        "lattice_constant": 0.01,
        "bulk_modulus": 0.5,
        "C_ij": 1.2,
        "phonons": 1.5,
        "crystal": [crystal, crystal],
    }
    of_labels = {**crystal, "C44_GPa": 70.0}
    record = {
        **record,
        "smoke": False,
        "agreement": {**record["agreement"], **measured},
        "crystal_of_labels": of_labels,
    }
    (tmp_path / "accuracy.jsonl").write_text(json.dumps(record))
    table = tables.accuracy(tmp_path)
    assert f"| bulk | {bulk['frames']} | {bulk['expensive']['forces_meV_per_A']:.0f} / 50 | " in table
    assert "C_ij at most 1.20 / 3 %" in table and "a0 3.9800 | 3.9800 | 3.9800 Å" in table
    assert "| the labels themselves: " in table and "C44 60 | 60 | 70 GPa" in table


def test_elastic_constants_of_labels(harness):
    """Hooke's law, put in, comes out; a pressure that is left moves the lattice constant."""
    import bench_accuracy

    C11, C12, C44, left = 300.0, 220.0, 65.0, -0.6  # GPa
    frames = []
    for part, at in (("xx", (0, 0)), ("yz", (1, 2))):
        for size in (-0.01, 0.01):
            strain = np.zeros((3, 3))
            strain[at] += size / 2
            strain[at[::-1]] += size / 2
            stress = (C11 - C12) * np.diag(np.diag(strain)) + (C12 * np.trace(strain) + left) * np.eye(3)
            stress += 2 * C44 * (strain - np.diag(np.diag(strain)))
            cell = 3.98 * (np.eye(3) + strain)
            labels = {
                "stress": stress * units.GPa,
                "group": f"elastic-{part}{size:+}",
                "kind": "test-elastic",
            }
            frames.append(Frame(np.zeros((1, 3)), ("Pt",), cell, np.ones(3, bool), **labels))
    found = bench_accuracy.crystal_of_labels(frames)
    wanted = {"C11_GPa": C11, "C12_GPa": C12, "C44_GPa": C44, "bulk_modulus_GPa": (C11 + 2 * C12) / 3}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert found["lattice_constant_A"] == pytest.approx(3.98 * (1 - left / 740.0))
    assert bench_accuracy.crystal_of_labels(frames[:0]) is None


def test_reach_of_a_pair_potential_is_its_cutoff(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "ptco"))
    from reach import reach

    crystal = bulk("Ar", "fcc", a=5.0, cubic=True).repeat(3)  # neighbours at 3.5, 5.0, 6.1 Å
    pair = LennardJones(sigma=3.2, epsilon=0.01, rc=5.6, smooth=True, ro=4.5)
    force, (across_a_shell, beyond_the_cutoff) = reach(
        pair, crystal, [4.2, 5.7], rattle=0.02, samples=2, seed=0
    )
    assert 1e-3 * force < across_a_shell < force and beyond_the_cutoff == 0.0
    _, (many_body,) = reach(EMT(), bulk("Pt", cubic=True).repeat(3), [4.5], rattle=0.1, samples=1, seed=0)
    assert many_body > 1e-4


@pytest.mark.thorough
def test_cheap_expert(tmp_path):
    names = ["density_moments", "density_moments, zbl"]
    record = smoke("cheap_expert", tmp_path, "--data", "ptco_pbe", "--experts", *names)
    assert [row["expert"] for row in record["rows"]] == names
    for row in record["rows"]:
        assert row["steps"] > 0
        assert all(0 < row[part]["forces_meV_per_A"] < 1e5 for part in ("train", "validation"))


@pytest.mark.thorough
def test_cheap_widths(tmp_path, tables):
    record = smoke("cheap_widths", tmp_path, "--experts", "density_moments (8); 32, 32")
    (row,) = record["rows"]
    assert row["scores"]["step"] == 2 and row["us_per_atom"] > 0 and row["parameters"] > 1000
    path = tmp_path / "cheap_widths.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "| density_moments (8); 32, 32 |" in tables.cheap_widths(tmp_path)


@pytest.mark.thorough
def test_boundary(tmp_path, tables):
    record = smoke("boundary", tmp_path)
    assert record["far_expensive_side_meV_per_A"] == 0.0 < record["far_cheap_side_meV_per_A"]
    assert record["near_expensive_side_meV_per_A"] > 0.0
    path = tmp_path / "boundary.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "| `ptco` |" in tables.boundary(tmp_path)


@pytest.mark.thorough
def test_learning_curve(tmp_path, tables):
    record = smoke("learning_curve", tmp_path)
    few, more = record["points"]
    assert 0 < few["frames"] < more["frames"] and few["groups"] < more["groups"]
    path = tmp_path / "learning_curve.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert f"| {few['frames']} | " in tables.learning_curve(
        tmp_path
    ) and "random parameters" in tables.learning_curve(tmp_path)


def public_frames(path: Path) -> None:
    """Frames of CO on Pt as the public ones are: a collection of surface cells, a trajectory per origin."""
    rng = np.random.default_rng(0)
    frames = []
    for origin, sizes in (("a/b/all.traj", (2, 3, 2, 3)), *((f"c/d/111/{k}.traj", (2, 2)) for k in range(3))):
        for size in sizes:
            atoms = fcc111("Pt", (size, 2, 3), a=3.98, vacuum=6.0)
            add_adsorbate(atoms, Atoms("CO", [[0, 0, 0], [0, 0, 1.15]]), 1.85, "ontop")
            atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
            atoms.calc = EMT()
            labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
            if len(frames) == 3:
                labels["forces"][0] = 50.0
            atoms.calc = SinglePointCalculator(atoms, **labels)
            atoms.info = {"origin": origin}
            frames.append(atoms)
    write(path, frames)


@pytest.mark.thorough
def test_public_dft(tmp_path, tables):
    public_frames(tmp_path / "frames.xyz")
    record = smoke("public_dft", tmp_path, "--data", str(tmp_path / "frames.xyz"))
    assert record["dropped"] == 1
    assert record["train"]["frames"] + record["held_out"]["frames"] == 9
    # Nobody's trajectory is on both sides, and every family is held out in part.
    assert record["train"]["groups"] + record["held_out"]["groups"] == 5
    assert set(record["held_out"]["kinds"]) == set(record["train"]["kinds"]) == {"a/b/all.traj", "c/d/111"}
    assert set(record["scores"]) == {"nothing", "expensive", "mixture"} | ({"peer"} if HAS_TORCH else set())
    for scores in record["scores"].values():
        species = [scores["by_species"][s] for s in ("Pt", "C", "O")]
        assert min(species) <= scores["forces_meV_per_A"] <= max(species)
    if HAS_TORCH:
        ours, peer = record["budgets"]["ours"], record["budgets"]["peer"]
        assert ours["cpu_s"] <= peer["cpu_s"] < 1.1 * ours["cpu_s"] + 5.0
    path = tmp_path / "public_dft.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "mixture" in tables.public_dft(tmp_path)


@pytest.mark.skipif(not HAS_TORCH, reason="torch, nequip and nequip-allegro are not installed")
def test_the_peer_gets_the_same_batches(tmp_path, harness):
    """Its energies and forces of a batch are those of the expert that it is."""
    import torch_peer as bench
    from bench_public_dft import SPECIES

    from moe_md.interfaces.torch_allegro import from_module

    public_frames(tmp_path / "frames.xyz")
    frames = load_dataset(tmp_path / "frames.xyz", SPECIES).frames[:3]
    expert = mm.experts.allegro(SPECIES, 4.0, l_max=1, num_scalar_features=8, num_tensor_features=4)
    model = bench.torch_allegro(expert, 0.5, {"Pt": -6.0, "C": -7.0, "O": -7.5}, seed=1)
    batch = collate(frames, SPECIES, 4.0, n_rows=64, n_frames=5)
    energy, forces = bench.torch_predict(model.eval(), batch)
    reference = predict(*from_module(model), batch)
    np.testing.assert_allclose(energy.detach(), reference.energy, rtol=1e-5)
    n = int(batch.row_mask.sum())
    np.testing.assert_allclose(forces.detach(), reference.forces[:n], atol=1e-4)
    assert np.abs(reference.forces[:n]).max() > 0.1
    weights, e = LossWeights(), errors(reference, batch, batch.n_atoms > 0)
    expected = weights.energy * e.energy + weights.forces * e.forces
    np.testing.assert_allclose(bench.torch_loss(model, batch, weights).item(), expected, rtol=1e-4)
