"""Benchmarks of dynamics run in a small form, and append records that the tables can read."""

import json

import pytest
from small_benchmarks import smoke, smoke_all

import moe_md as mm


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
    assert "| trained inner potential | 4 |" in tables.respa(
        tmp_path
    ) and "256 atoms under `ptco`" in tables.respa(tmp_path)


@pytest.mark.thorough
def test_moving(tmp_path, tables):
    record = smoke("moving", tmp_path, "--runs", "moving")
    assert record["momentum"] < 1e-10 and record["kicks_work_eV"] > 1 and record["farthest"] > 1
    assert record["fluctuation_meV"] < 5 and record["blend"]["n_frames"] == 21
    path = tmp_path / "moving.jsonl"
    path.write_text(path.read_text().replace('"smoke": true', '"smoke": false'))
    assert "| spheres that follow each CO, float64, 1 fs, 0.2 ps |" in tables.moving(tmp_path)


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


@pytest.mark.thorough
def test_lyapunov(tmp_path):
    record = smoke("lyapunov", tmp_path)
    assert [row["name"] for row in record["rows"]] == ["argon", "Pt + CO"]
    for row in record["rows"]:
        assert row["steps"] == 60 and len(row["log_growth"]) == len(row["time_ps"]) == 6
        assert row["lyapunov_time_fs"] * row["exponent_per_ps"] == pytest.approx(1000)
        assert row["atoms"] in (32, 34) and row["last_temperature_K"] > 0
