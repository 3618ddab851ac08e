"""`moe-md run`: ensembles, restarts, and the files that it writes."""

import json

import ase.io
import h5py
import numpy as np
import pytest
from ase.build import bulk, fcc111
from command_line import as_options, failure, moe_md

from moe_md import checkpoint


def test_run_with_an_inner_potential(folder, capsys, tmp_path):
    """The cheap expert replaces the other at three of four steps; the energy is that of the mixture."""
    pair = checkpoint.load(folder / "model.msgpack")
    inner = tmp_path / "inner_potential.msgpack"
    checkpoint.save(inner, pair._replace(experts=pair.experts[1:], params=pair.params[1:]))
    system = as_options(
        checkpoint=folder / "model.msgpack", structure=folder / "slab.extxyz", region_lower=9.0, steps=40
    )
    every = as_options(log_every=4, trajectory_every=20, restart_every=20)
    split = as_options(inner_potential=inner, outer_every=4)
    for name, further in (("a", split), ("b", ())):
        code, _, err = moe_md(capsys, "run", *system, *every, *further, "--out", tmp_path / name)
        assert code == 0, err
    a, b = (np.genfromtxt(tmp_path / x / "log.csv", delimiter=",", names=True) for x in "ab")
    assert a["potential"][0] == pytest.approx(b["potential"][0], abs=1e-9)
    assert 0 < np.abs(a["potential"] - b["potential"]).max() < 0.1
    for outer_every, message in (
        (3, "log_every a multiple of it, got 3 and 4"),
        (2, "must come with inner_potential"),
    ):
        wrong = as_options(outer_every=outer_every, out=tmp_path / "c")
        code, _, err = moe_md(capsys, "run", *system, *every, *wrong)
        assert code != 0 and message in err


def test_run_writes_its_files_and_its_last_frame_starts_another_run(folder, capsys, tmp_path):
    options = (
        "--checkpoint",
        folder / "model.msgpack",
        "--structure",
        folder / "slab.extxyz",
        "--region-lower",
        9.0,
    )
    steps = ("--steps", 40, "--log-every", 2, "--trajectory-every", 20)
    code, out, err = moe_md(capsys, "run", *options, *steps, "--out", tmp_path / "a")
    assert code == 0, err
    assert "drift" in out
    lines = (tmp_path / "a" / "log.csv").read_text().splitlines()
    assert len(lines) == 1 + 21 and lines[0].startswith("step,time_ps,potential")
    frames = ase.io.read(tmp_path / "a" / "trajectory.extxyz", index=":")
    final = ase.io.read(tmp_path / "a" / "final.extxyz")
    assert len(frames) == 3 and final.info["step"] == 40
    np.testing.assert_array_equal(frames[-1].positions, final.positions)
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["settings"]["steps"] == 40 and record["f"] == pytest.approx(0.5)
    assert final.arrays["expert"].tolist() == (frames[0].arrays["expert"]).tolist()
    original = ase.io.read(folder / "slab.extxyz")
    assert (final.arrays["expert"] == 0).tolist() == (original.positions[:, 2] >= 9.0).tolist()

    # The last frame holds the velocities and the experts of the next run.
    again = ("--checkpoint", folder / "model.msgpack", "--structure", tmp_path / "a" / "final.extxyz")
    code, _, err = moe_md(capsys, "run", *again, *steps, "--out", tmp_path / "b")
    assert code == 0, err
    log = [np.genfromtxt(tmp_path / x / "log.csv", delimiter=",", names=True) for x in "ab"]
    assert log[1]["total"][0] == pytest.approx(log[0]["total"][-1], abs=1e-5)
    assert log[1]["kinetic"][0] == pytest.approx(log[0]["kinetic"][-1], abs=1e-5)


def test_a_dynamic_region_is_reported(folder, capsys, tmp_path):
    """`run.json` holds a summary of the blend, unless the run took no step."""
    atoms = ase.io.read(folder / "slab.extxyz")
    atoms.symbols[int(np.argmax(atoms.positions[:, 2]))] = "C"
    atoms.write(tmp_path / "carbon.extxyz")
    options = (
        "--checkpoint",
        folder / "model.msgpack",
        "--structure",
        tmp_path / "carbon.extxyz",
        "--region-around",
        "C",
    )
    radii = (
        "--region-core",
        3.0,
        "--region-blend",
        1.5,
        "--steps",
        20,
        "--log-every",
        5,
        "--trajectory-every",
        20,
        "--restart-every",
        20,
    )
    for _ in range(2):
        code, out, err = moe_md(capsys, "run", *options, *radii, "--out", tmp_path / "a")
        assert code == 0, err
    assert "blend" not in json.loads((tmp_path / "a" / "run.json").read_text())
    code, out, err = moe_md(capsys, "run", *options, *radii, "--out", tmp_path / "b")
    blend = json.loads((tmp_path / "b" / "run.json").read_text())["blend"]
    assert (
        blend["n_frames"] == 5
        and 0 < blend["share"][0][0] < 1
        and blend["gate_over_thermal"] > 0
        and blend["power_rms"] > 0
    )
    assert "of the atoms on the expensive expert; the gate-gradient force is" in out


def test_run_langevin_float32_in_a_skewed_cell(folder, capsys, tmp_path):
    atoms = fcc111("Pt", (4, 4, 4), a=3.92, vacuum=6.0)
    atoms.pbc = True
    atoms.write(tmp_path / "skewed.extxyz")
    (tmp_path / "settings.toml").write_text(
        f"""
        [run]
        checkpoint = "{folder / "model.msgpack"}"
        structure = "{tmp_path / "skewed.extxyz"}"
        region_lower = 9
        ensemble = "langevin"
        steps = 10
        relax_steps = 3
        trajectory_every = 10
        dtype = "float32"
        """
    )
    code, out, err = moe_md(
        capsys, "run", "--settings", tmp_path / "settings.toml", "--steps", 20, "--out", tmp_path / "out"
    )
    assert code == 0, err
    assert "step      20" in out and "relaxed" in out  # the option wins over the file
    final = ase.io.read(tmp_path / "out" / "final.extxyz")
    np.testing.assert_allclose(final.cell.array, atoms.cell.array, rtol=1e-6)
    shift = ase.geometry.find_mic(final.positions - atoms.positions, atoms.cell, True)[1]
    assert 0 < shift.max() < 0.5


def test_a_run_is_resumed_at_its_last_step(folder, capsys, tmp_path):
    """Twenty steps and twenty more equal forty, byte for byte; a folder of another run is refused."""
    options = (
        "run",
        "--checkpoint",
        folder / "model.msgpack",
        "--structure",
        folder / "slab.extxyz",
        "--region-lower",
        9.0,
    )
    options += (
        "--ensemble",
        "nose_hoover",
        "--log-every",
        5,
        "--trajectory-every",
        10,
        "--restart-every",
        10,
    )
    for out, steps in (("one", 40), ("parts", 20), ("parts", 40)):
        code, said, err = moe_md(capsys, *options, "--steps", steps, "--out", tmp_path / out)
        assert code == 0, err
    assert "resuming the run" in said and "20 steps in" in said
    for name in ("log.csv", "trajectory.extxyz", "final.extxyz", "restart.msgpack"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    before = (tmp_path / "parts" / "log.csv").read_bytes()
    err = failure(capsys, *options, "--steps", 60, "--out", tmp_path / "parts", "--timestep-fs", 2.0)
    assert "restart of the same run" in err and "timestep_fs was 1.0 and is 2.0" in err
    assert (tmp_path / "parts" / "log.csv").read_bytes() == before


@pytest.mark.thorough
def test_npt_around_an_adsorbate(folder, capsys, tmp_path):
    """A region around C at constant pressure, with an H5MD trajectory."""
    atoms = bulk("Pt", a=3.95, cubic=True).repeat(3)
    atoms.symbols[40] = "C"
    atoms.write(tmp_path / "crystal.extxyz")
    options = ("run", "--checkpoint", folder / "model.msgpack", "--structure", tmp_path / "crystal.extxyz")
    options += ("--region-around", "C", "--region-core", 4.0, "--region-blend", 1.0, "--ensemble", "npt")
    options += (
        "--pressure-GPa",
        5.0,
        "--barostat-tau-fs",
        200.0,
        "--trajectory-format",
        "h5md",
        "--trajectory-every",
        10,
    )
    code, said, err = moe_md(capsys, *options, "--steps", 40, "--out", tmp_path / "out")
    assert code == 0 and "outside its domain" not in err, err
    log = np.genfromtxt(tmp_path / "out" / "log.csv", delimiter=",", names=True)
    assert 0.005 < abs(log["volume"][-1] / atoms.get_volume() - 1) < 0.1
    assert np.ptp(log["conserved"]) < 0.05 * np.ptp(log["total"])
    with h5py.File(tmp_path / "out" / "trajectory.h5") as file:
        position = file["particles/all/position/value"][:]
        edges = file["particles/all/box/edges/value"][:]
    assert position.shape == (5, 108, 3)
    np.testing.assert_allclose(np.linalg.det(edges), log["volume"], rtol=1e-12)
    final = ase.io.read(tmp_path / "out" / "final.extxyz")
    np.testing.assert_allclose(position[-1], final.positions, atol=1e-6)
    # With a core narrower than its cutoff, the cheap expert has C among its neighbours.
    narrow = (*options[:7], "--region-core", 2.0, *options[9:])
    code, _, err = moe_md(capsys, *narrow, "--steps", 10, "--out", tmp_path / "narrow")
    assert code == 0 and "outside its domain" in err


@pytest.mark.thorough
def test_settings_in_a_folder_of_results_repeat_the_run(folder, capsys, tmp_path):
    """They give the same run, bit for bit; with --json stdout holds the result only."""
    options = (
        "--checkpoint",
        folder / "model.msgpack",
        "--structure",
        folder / "slab.extxyz",
        "--region-layers",
        2,
        "--dtype",
        "float32",
    )
    first = moe_md(capsys, "run", *options, "--steps", 20, "--seed", 3, "--json", "--out", tmp_path / "a")
    assert first[0] == 0 and "step" in first[2]
    result = json.loads(first[1])
    assert result["n_atoms"] == 64 and result["f"] == 0.5 and result["settings"]["seed"] == 3
    echoed = tmp_path / "a" / "settings.toml"
    assert (
        echoed.read_text().startswith("# moe-md run --checkpoint ")
        and "--region-layers 2" in echoed.read_text()
    )
    assert moe_md(capsys, "run", "--settings", echoed, "--out", tmp_path / "b")[0] == 0
    assert (tmp_path / "a" / "log.csv").read_bytes() == (tmp_path / "b" / "log.csv").read_bytes()
    code, out, err = moe_md(
        capsys, "run", "--settings", echoed, "--seed", -1, "--json", "--out", tmp_path / "c"
    )
    assert code == 2 and json.loads(out)["error"] in err and "seed must not be negative" in out
    assert not (tmp_path / "c").exists()


def test_a_run_that_fails_saves_its_last_valid_state(folder, capsys, tmp_path):
    model = (
        "--checkpoint",
        folder / "model.msgpack",
        "--structure",
        folder / "slab.extxyz",
        "--region-lower",
        9,
    )
    err = failure(capsys, "run", *model, "--timestep-fs", 1e200, "--steps", 100, "--out", tmp_path, code=1)
    assert "timestep_fs" in err
    saved = np.load(tmp_path / "last_good.npz")
    assert np.isfinite(saved["position"]).all()
