"""Every benchmark runs in a small form and leaves one line that the tables can read."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import programs
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

import moe_md as mm
from moe_md import units
from moe_md.data import Frame, collate, load_dataset
from moe_md.settings import LossWeights
from moe_md.training.losses import errors, predict

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "nequip", "allegro"))
# The others run here, where jax is imported and much is compiled.
AS_PROCESS = {
    "distributed",  # sets the number of devices, before jax starts
    "soak",  # counts what its process compiles, and its memory
}


@pytest.fixture(autouse=True)
def _benchmarks_are_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def harness():
    import harness

    return harness


@pytest.fixture
def tables(harness):
    import tables

    return tables


def smoke(name: str, results: Path, *arguments: str) -> dict:
    """Run a benchmark with `--smoke`; its record."""
    (record,) = smoke_all(name, results, *arguments)
    return record


def smoke_all(name: str, results: Path, *arguments: str) -> list[dict]:
    """The same where it leaves several."""
    arguments = ["--smoke", "--results", str(results), *arguments]
    if name in AS_PROCESS:
        program = [sys.executable, BENCHMARKS / f"bench_{name}.py", *arguments]
        done = subprocess.run(program, cwd=results, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        run_here(f"bench_{name}", results, *arguments)
    text = (results / f"{name}.jsonl").read_text()
    assert str(ROOT) not in text
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        assert record["smoke"] is True and record["benchmark"] == name
        for key in ("commit", "dirty", "date", "device", "cpu", "jax", "dtype"):
            assert key in record
    return records


def run_here(name: str, folder: Path, *arguments: str) -> None:
    """Run `main` of a benchmark as its program would run, float64 off."""
    main = importlib.import_module(name).main
    with programs.fresh_process(folder):
        main(list(arguments))
        assert not jax.config.jax_enable_x64  # a setting that it changes is its own


def test_mixture(tmp_path, tables):
    record = smoke("mixture", tmp_path, "--random", "--plots", str(tmp_path / "plots"))
    assert (tmp_path / "plots/mixture.png").stat().st_size > 10_000
    rows = {row["name"]: row for row in record["rows"]}
    assert record["atoms"] == 256
    assert rows["all expensive"]["capacity"] == [256] and rows["all cheap"]["capacity"] == [256]
    for row in record["rows"]:
        assert row["median_s"] > 0 and row["compile_s"] > 0 and row["slots"] > 0
        assert row["quartiles_s"][0] <= row["median_s"] <= row["quartiles_s"][1]
        assert 256 * 42 <= row["edges"] <= 256 * row["slots"]  # 42 neighbours lie within 4.9 Å
        if row["name"].startswith("mixture"):
            assert sum(row["capacity"]) == 256
            assert row["capacity"][0] == round(256 * float(row["name"].split()[1]))
            assert row["s_max"] == pytest.approx(1 / (row["f"] + (1 - row["f"]) / record["r"]))
    ball = rows["moving, 1 ball"]
    assert ball["f"] + ball["f_cheap"] > 1  # some are shared
    assert ball["s_max"] == pytest.approx(1 / (ball["f"] + ball["f_cheap"] / record["r"]))
    assert rows["all cheap"]["s_max"] == pytest.approx(record["r"])
    # A smoke run is no measurement.
    assert tables.mixture(tmp_path).startswith("Not measured yet")


@pytest.mark.thorough
def test_peers(tmp_path, tables):
    record = smoke("peers", tmp_path, "--plots", str(tmp_path / "plots"))
    rows = {row["name"]: row for row in record["rows"]}
    ours = {
        "Allegro, moe_md",
        "power spectrum, moe_md",
        "mixture, f = 0.05, moe_md",
        "NequIP, jax-md in moe_md",
        "EMT, ASE",
    }
    assert ours <= set(rows)
    # Everybody is either timed or named as left out.
    import peers

    assert set(rows) | set(record["left_out"]) == set(peers.CASES) and not set(rows) & set(record["left_out"])
    assert rows["Allegro, moe_md"]["over_our_allegro"] == 1.0
    for row in record["rows"]:
        assert (
            row["atoms"] == 108
            and row["rounds"] == 2
            and row["quartiles_s"][0] <= row["median_s"] <= row["quartiles_s"][1]
        )
        assert row["us_per_atom"] == pytest.approx(1e6 * row["median_s"] / 108) and row["versions"]
    if HAS_TORCH:
        assert rows["Allegro, PyTorch eager"]["force_difference"] < 1e-4
    assert (tmp_path / "plots" / "peers.png").stat().st_size > 10_000
    path = tmp_path / "peers.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "| Allegro, moe_md | " in tables.peers(tmp_path)


@pytest.mark.thorough
def test_scale(tmp_path, tables):
    record = smoke("scale", tmp_path)
    rows = record["rows"]
    assert [row["name"] for row in rows] == ["crystal", "crystal", "bar", "crystal, atoms shuffled"]
    assert [row["atoms"] for row in rows] == [256, 500, 252, 500]
    for row in rows:
        assert row["quartiles_s"][0] <= row["step_s"] <= row["quartiles_s"][1]
        assert row["us_per_atom"] == pytest.approx(1e6 * row["step_s"] / row["atoms"])
        assert row["steps"] == 6 and row["rebuilds"] <= 6
        # Position, momentum, mass, force and the neighbours of an atom: what the program is given at least.
        assert row["bytes_per_atom"] > 4 * (3 + 3 + 1 + 3 + 18)
    path = tmp_path / "scale.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "shuffled" in tables.scale(tmp_path)


def test_training(tmp_path, tables):
    record = smoke("training", tmp_path)
    times = {row["name"]: row for row in record["rows"]}
    assert {"Allegro, moe_md", "co-training, moe_md"} <= set(times)
    assert ("Allegro, PyTorch eager" in times) == HAS_TORCH
    for row in times.values():
        assert 0 < row["quartiles_s"][0] <= row["s_per_frame"] <= row["quartiles_s"][1]
    assert record["frames"] >= record["batches"] == 2
    path = tmp_path / "training.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "co-training" in tables.training(tmp_path)


def test_peers_with_other_forces_are_refused(harness):
    import bench_peers

    forces = {bench_peers.OURS: np.ones((2, 3)), "other": np.ones((2, 3))}
    energies = {bench_peers.OURS: -1.0, "other": -1.0}
    assert bench_peers.compare("other", energies, forces) == {
        "force_difference": 0.0,
        "energy_difference": 0.0,
    }
    forces["other"] = forces["other"] + 1e-3
    with pytest.raises(RuntimeError, match="forces differ"):
        bench_peers.compare("other", energies, forces)


def test_peers_that_are_too_large_are_left_out(harness, monkeypatch):
    import bench_peers

    monkeypatch.setattr(bench_peers, "free_memory", lambda: 10_000.0)
    before = [{"name": "a", "atoms": 100, "median_s": 1.0, "evaluation_memory_MB": 1_000.0}]
    assert (
        bench_peers.too_large("a", 800, before, 60.0) is None
        and bench_peers.too_large("b", 800, before, 60.0) is None
    )
    assert bench_peers.too_large("a", 1000, before, 60.0) == "would need about 10 GB of memory"
    assert bench_peers.too_large("a", 800, before, 5.0) == "would need about 8 s an evaluation"


@pytest.mark.thorough
def test_cotraining(tmp_path, tables):
    record = smoke("cotraining", tmp_path)
    assert record["way"] == "lots" and record["weights"]["agree_random_assignment"] > 0
    assert len(record["ghost_force_meV_per_A"]["100"]["max"]) == 3
    assert record["scores"]["expensive"]["forces_meV_per_A"] > 0 and record["stress_jump_GPa"] > 0
    assert abs(record["drift"]["meV_per_atom_per_ps"]) < 1.0
    # As measurements of two ways and two seeds lines fill the table.
    record |= {
        "smoke": False,
        "crystal_difference": {"lattice_constant": -0.5, "C11": 1.0, "C12": -4.0, "C44": 2.0},
    }
    lines = [
        json.dumps({**record, "way": way, "seed": seed}) for seed in (0, 1) for way in ("independent", "lots")
    ]
    (tmp_path / "cotraining.jsonl").write_text("\n".join(lines))
    table = tables.cotraining(tmp_path)
    assert "| independent | " in table and "| 0.50 (0.50, 0.50) | 4.0 (4.0, 4.0) |" in table


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
    import bench_public_dft as bench

    from moe_md.interfaces.torch_allegro import from_module

    public_frames(tmp_path / "frames.xyz")
    frames = load_dataset(tmp_path / "frames.xyz", bench.SPECIES).frames[:3]
    expert = mm.experts.allegro(bench.SPECIES, 4.0, l_max=1, num_scalar_features=8, num_tensor_features=4)
    model = bench.torch_allegro(expert, 0.5, {"Pt": -6.0, "C": -7.0, "O": -7.5}, seed=1)
    batch = collate(frames, bench.SPECIES, 4.0, n_rows=64, n_frames=5)
    energy, forces = bench.torch_predict(model.eval(), batch)
    reference = predict(*from_module(model), batch)
    np.testing.assert_allclose(energy.detach(), reference.energy, rtol=1e-5)
    n = int(batch.row_mask.sum())
    np.testing.assert_allclose(forces.detach(), reference.forces[:n], atol=1e-4)
    assert np.abs(reference.forces[:n]).max() > 0.1
    weights, e = LossWeights(), errors(reference, batch, batch.n_atoms > 0)
    expected = weights.energy * e.energy + weights.forces * e.forces
    np.testing.assert_allclose(bench.torch_loss(model, batch, weights).item(), expected, rtol=1e-4)


@pytest.mark.thorough
def test_soak(tmp_path, tables):
    record = smoke("soak", tmp_path, "--out", str(tmp_path / "run"))
    assert record["steps"] == record["this_process_steps"] == 2000
    assert abs(record["drift_meV_per_atom_per_ps"]) < 5 * record["drift_stderr"] + 0.01
    assert record["momentum"] < 1e-10
    # After the first tenth nothing compiles, and memory stands still.
    assert record["compiled"][0] == record["compiled"][1]
    assert record["memory_MB"][1] < 1.1 * record["memory_MB"][0]
    # As a measurement it fills the table.
    path = tmp_path / "soak.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "drift" in tables.soak(tmp_path)


@pytest.mark.thorough
def test_ase(tmp_path, tables):
    record = smoke("ase", tmp_path)
    assert [case["region"] for case in record["overhead"]] == ["fixed", "around an atom"]
    for case in record["overhead"]:
        assert case["atoms"] == 256 and case["seconds"]["calculator"]["median"] > 0
        assert case["force_difference_meV_per_A"] < 0.5  # the two are compared at the same positions
    mixed, alone, cheap = (record["modes"][who]["THz"] for who in ("mixture", "expensive", "cheap"))
    assert len(mixed) == 9 and min(mixed) > 2 and mixed != alone != cheap
    np.testing.assert_allclose(mixed, alone, rtol=0.03)
    path = tmp_path / "ase.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "barrier" in tables.ase(tmp_path) and "THz" in tables.ase(tmp_path)


@pytest.mark.thorough
def test_halo(tmp_path, tables):
    record = smoke("halo", tmp_path)
    assert (
        record["atoms"] == 64 and record["f"] == 0.25 and record["halo"] == 0.25
    )  # one layer of four, and the next
    path = tmp_path / "halo.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "halo" in tables.halo(tmp_path)


@pytest.mark.thorough
def test_regressions_are_told(tmp_path, capsys):
    """What was recorded a moment ago is reached again; what could not be is not."""
    import check_regression

    def check(*arguments):
        run_here("check_regression", tmp_path, "--smoke", "--results", str(tmp_path), *arguments)

    with pytest.raises(SystemExit, match="run with --record first"):
        check()
    check("--record")
    capsys.readouterr()
    check("--least", "0.05")
    printed = capsys.readouterr().out
    assert printed.count("of its roofline") >= 2 and printed.count("of its bound") >= 2
    (line,) = (tmp_path / "regression.jsonl").read_text().splitlines()
    assert check_regression.fallen(json.loads(line)["ratios"], json.loads(line)["ratios"], 1.0) == []


def test_ratios_that_fell_are_named(harness):
    import check_regression

    assert check_regression.fallen({"a": 0.5, "c": 1.0}, {"a": 0.6, "b": 0.1, "c": 2.0}, 0.8) == ["b", "c"]


@pytest.mark.thorough
def test_roofline(tmp_path, tables):
    record = smoke("roofline", tmp_path)
    assert [(row["expert"], row["pass"]) for row in record["rows"]] == [
        (expert, name) for expert in ("allegro", "power_spectrum") for name in ("energy", "energy and forces")
    ]
    for row in record["rows"]:
        assert (
            0 < row["product_flops"] < row["flops"]
            and row["measured_s"] > 0
            and row["product_s"] > 0
            and row["memory_s"] > 0
        )
        assert 12 <= row["neighbours"] <= row["slots"]
    path = tmp_path / "roofline.jsonl"
    path.write_text(json.dumps({**record, "smoke": False}) + "\n")
    assert "| allegro, energy and forces |" in tables.roofline(tmp_path)


def test_products_are_counted(harness):
    import bench_roofline

    def f(x, w):
        return jax.lax.map(lambda row: row @ w, x) + x @ w

    found = bench_roofline.products(jax.make_jaxpr(f)(np.zeros((5, 8, 3)), np.zeros((3, 2))).jaxpr)
    flops = {shape[0]: bench_roofline.flops_of(*shape) for shape in found}
    assert flops == {(8, 3): 2 * 8 * 3 * 2, (5, 8, 3): 2 * 5 * 8 * 3 * 2}  # a loop's body counts once


@pytest.mark.thorough
def test_respa(tmp_path, tables):
    first, last = smoke_all("respa", tmp_path, "--inner-potential", str(tmp_path / "inner_potential.msgpack"))
    run, timed = first["conservation"], last["speed"]
    assert (
        run["outer_every"] == 4
        and not run["failed"]
        and 0 < run["fluctuation_meV"] < 50
        and run["momentum"] < 1e-10
    )
    assert mm.load(tmp_path / "inner_potential.msgpack").experts[0].allowed_species == ("Pt", "C", "O")
    once, twice = timed["rows"]
    assert once["gain"] == 1.0 and twice["gain"] == pytest.approx(once["median_s"] / twice["median_s"])
    r = timed["r"]
    assert twice["bound"] == pytest.approx((0.25 + 0.75 / r) / (1 / r + 0.25 / 2))
    path = tmp_path / "respa.jsonl"
    path.write_text("".join(json.dumps({**record, "smoke": False}) + "\n" for record in (first, last)))
    assert "| inner_potential | 4 |" in tables.respa(tmp_path) and "256 atoms under `ptco`" in tables.respa(
        tmp_path
    )


@pytest.mark.thorough
def test_moving(tmp_path, tables):
    record = smoke("moving", tmp_path, "--runs", "moving")
    assert record["momentum"] < 1e-10 and record["kicks_work_eV"] > 1 and record["farthest"] > 1
    assert record["fluctuation_meV"] < 5 and record["blend"]["n_frames"] == 21
    path = tmp_path / "moving.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "| balls that follow each CO, float64, 1 fs, 0.2 ps |" in tables.moving(tmp_path)


def test_regions(tmp_path, tables):
    record = smoke("regions", tmp_path)
    assert [row["seeds"] for row in record["rows"]] == [5, 10] and all(
        100 < row["near_a_seed"] < 200 for row in record["rows"]
    )
    path = tmp_path / "regions.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "| 1,960 | 10 |" in tables.regions(tmp_path)


def test_distributed(tmp_path):
    record = smoke("distributed", tmp_path)
    one, eight = record["rows"]
    assert (one["devices"], eight["devices"], record["atoms"]) == (1, 8, 324) and 0 < record["f"] < 1
    for row in (one, eight):
        # A position there and a force back, 12 bytes each, through both faces; capacities are larger than
        # what is sent.
        assert (
            row["bytes_of_atoms_per_step"]
            == 24 * row["halo_atoms"]
            <= row["bytes_per_step"]
            == 48 * row["devices"] * row["sizes"]["halo"]
        )
        assert row["median_s"] > 0 and row["compile_s"] > 0
    assert eight["halo_atoms"] > 6 * one["halo_atoms"] > 0


@pytest.mark.thorough
def test_gradient(tmp_path, tables):
    records = smoke_all("gradient", tmp_path)
    assert [(r["rows"][0]["system"], r["rows"][0]["steps"]) for r in records] == [
        ("lj", 20),
        ("lj", 40),
        ("ptco-small", 10),
    ]
    for record in records:
        rows = {row["way"]: row for row in record["rows"]}
        assert list(rows) == ["forward", "plain", "rematerialised", "reversible"]
        assert all(
            row["median_s"] > 0 and row["over_forward"] == row["median_s"] / rows["forward"]["median_s"]
            for row in rows.values()
        )
        assert (
            rows["reversible"]["bytes"] < rows["plain"]["bytes"]
            and rows["rematerialised"]["bytes"] < rows["plain"]["bytes"]
        )
    path = tmp_path / "gradient.jsonl"
    path.write_text("".join(json.dumps({**record, "smoke": False}) + "\n" for record in records))
    assert "| lj, 108 atoms | 40 |" in tables.gradient(tmp_path)


def test_interleave_times_each_case_in_turn(harness):
    calls = []

    class Recorded:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def advance(self):
            calls.append(self.name)
            return self.seconds

    timings = harness.interleave({"a": Recorded("a", 1.0), "b": Recorded("b", 2.0)}, repeats=3, warmup=1)
    assert [sorted(calls[k : k + 2]) for k in range(0, 8, 2)] == [["a", "b"]] * 4
    assert timings["a"].median == 1.0 and timings["b"].median == 2.0 and timings["a"].repeats == 3
    with pytest.raises(ValueError, match="repeats"):
        harness.interleave({}, repeats=0)


def test_timing_is_median_and_quartiles(harness):
    timing = harness.timing([5.0, 1.0, 2.0, 3.0, 4.0])
    assert timing == (3.0, 2.0, 4.0, 5)


def test_a_case_carries_its_state(harness):
    case = harness.Case(lambda x: x + 1, np.float32(0))
    assert case.advance() >= 0 and case.advance() >= 0
    assert float(case.state) == 2 and case.compile_seconds > 0


def test_results_are_appended(harness, tmp_path):
    harness.append(tmp_path, "x", {"a": 1})
    harness.append(tmp_path, "x", {"a": 2})
    assert harness.read(tmp_path, "x") == [{"a": 1}, {"a": 2}]
    assert harness.read(tmp_path, "y") == []
    with pytest.raises(ValueError):
        harness.append(tmp_path, "x", {"a": float("nan")})


def test_unknown_table_is_an_error(tables):
    with pytest.raises(ValueError, match="nothing"):
        tables.fill("<!-- table: nothing -->\n<!-- /table -->")


@pytest.mark.thorough
def test_lyapunov(tmp_path):
    record = smoke("lyapunov", tmp_path)
    assert [row["name"] for row in record["rows"]] == ["argon", "Pt + CO"]
    for row in record["rows"]:
        assert row["steps"] == 60 and len(row["log_growth"]) == len(row["time_ps"]) == 6
        assert row["lyapunov_time_fs"] * row["exponent_per_ps"] == pytest.approx(1000)
        assert row["atoms"] in (32, 34) and row["last_temperature_K"] > 0
