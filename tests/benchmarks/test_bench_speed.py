"""Benchmarks of speed run in a small form, and append one record that the tables can read."""

import json

import jax
import numpy as np
import pytest
from small_benchmarks import HAS_TORCH, smoke


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


@pytest.mark.thorough
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
def test_roofline(tmp_path, tables):
    record = smoke("roofline", tmp_path)
    assert [(row["expert"], row["pass"]) for row in record["rows"]] == [
        (expert, name)
        for expert in ("allegro", "density_moments")
        for name in ("energy", "energy and forces")
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
    (step,) = record["steps"]
    assert step["expert"] == "density_moments" and all(s > 0 for s in step["seconds"].values())
    assert "| density_moments, 256 atoms |" in tables.step(tmp_path)


@pytest.mark.thorough
def test_skin(tmp_path, tables):
    record = smoke("skin", tmp_path)
    assert [row["share"] for row in record["rows"]] == [0.0] * 3 + [0.1] * 3
    narrow, wide = record["rows"][:2]
    assert narrow["slots"] <= wide["slots"] and not any(row["overflow"] for row in record["rows"])
    path = tmp_path / "skin.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "| 0.6; 1.25 |" in tables.skin(tmp_path)


def test_products_are_counted(harness):
    import bench_roofline

    def f(x, w):
        return jax.lax.map(lambda row: row @ w, x) + x @ w

    found = bench_roofline.products(jax.make_jaxpr(f)(np.zeros((5, 8, 3)), np.zeros((3, 2))).jaxpr)
    flops = {shape[0]: bench_roofline.flops_of(*shape) for shape in found}
    assert flops == {(8, 3): 2 * 8 * 3 * 2, (5, 8, 3): 2 * 5 * 8 * 3 * 2}  # a loop's body counts once


def test_regions(tmp_path, tables):
    record = smoke("regions", tmp_path)
    assert [row["seeds"] for row in record["rows"]] == [5, 10] and all(
        100 < row["near_a_seed"] < 200 for row in record["rows"]
    )
    path = tmp_path / "regions.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "| 1,960 | 10 |" in tables.regions(tmp_path)


@pytest.mark.thorough
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
