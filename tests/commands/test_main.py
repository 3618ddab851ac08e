"""The command line: commands end to end in a small form, and one clear line for every mistake."""

import json
import subprocess
import sys

import ase.io
import h5py
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from test_demo import soft_model

from moe_md import checkpoint, experts
from moe_md.commands import demo, settings_file
from moe_md.commands import main as cli
from moe_md.commands import system as mixed_system
from moe_md.data import load_dataset, ptco_pbe
from moe_md.settings import DataSettings, DemoSettings, RunSettings, TrainSettings

SPECIES, CUTOFF = ("Pt", "C", "O"), 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Lennard-Jones checkpoint, a clean slab, and settings for two tiny experts."""
    folder = tmp_path_factory.mktemp("cli")
    built = [
        experts.lennard_jones(SPECIES, CUTOFF, epsilon=epsilon, sigma=2.5446, allowed_species=domain)
        for epsilon, domain in ((0.6, SPECIES), (0.59, ("Pt",)))
    ]
    params = tuple(e.init(None) for e in built)
    checkpoint.save(folder / "model.msgpack", checkpoint.Checkpoint(tuple(built), params, {}, {}))
    atoms = fcc111("Pt", (4, 4, 4), a=3.92, vacuum=6.0, orthogonal=True)
    atoms.write(folder / "slab.extxyz")
    (folder / "train.toml").write_text(
        f"""
        [expensive]
        builder = "lennard_jones"
        cutoff = {CUTOFF}
        epsilon = 0.5
        sigma = 1.2
        [cheap]
        builder = "lennard_jones"
        cutoff = {CUTOFF}
        domain = ["Pt"]
        sigma = 1.2
        [training]
        steps = 4
        validate_every = 4
        [training.weights]
        energy = 1.0
        """
    )
    return folder


def moe_md(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def failure(capsys, *arguments, code=2) -> str:
    found, _, err = moe_md(capsys, *arguments)
    assert found == code
    assert err.startswith("moe-md: error: ") and err.count("\n") == 1, err
    return err


def test_run_with_an_inner_potential(folder, capsys, tmp_path):
    """The cheap expert stands in for the other at three of four steps; the energy is the pair's."""
    pair = checkpoint.load(folder / "model.msgpack")
    checkpoint.save(
        tmp_path / "inner_potential.msgpack", pair._replace(experts=pair.experts[1:], params=pair.params[1:])
    )
    options = (
        "--checkpoint",
        folder / "model.msgpack",
        "--structure",
        folder / "slab.extxyz",
        "--region-lower",
        9.0,
        "--steps",
        40,
    )
    slow = (
        "--inner-potential",
        tmp_path / "inner_potential.msgpack",
        "--outer-every",
        4,
        "--log-every",
        4,
        "--trajectory-every",
        20,
        "--restart-every",
        20,
    )
    code, _, err = moe_md(capsys, "run", *options, *slow, "--out", tmp_path / "a")
    assert code == 0, err
    code, _, err = moe_md(
        capsys,
        "run",
        *options,
        "--log-every",
        4,
        "--trajectory-every",
        20,
        "--restart-every",
        20,
        "--out",
        tmp_path / "b",
    )
    assert code == 0, err
    a, b = (np.genfromtxt(tmp_path / x / "log.csv", delimiter=",", names=True) for x in "ab")
    assert a["potential"][0] == pytest.approx(b["potential"][0], abs=1e-9)
    assert 0 < np.abs(a["potential"] - b["potential"]).max() < 0.1
    for wrong, message in (
        (("--outer-every", 3, "--log-every", 4), "log_every a multiple of it, got 3 and 4"),
        (("--outer-every", 2, "--log-every", 4), "must come with inner_potential"),
    ):
        code, _, err = moe_md(
            capsys,
            "run",
            *options,
            *wrong,
            "--trajectory-every",
            20,
            "--restart-every",
            20,
            "--out",
            tmp_path / "c",
        )
        assert code != 0 and message in err


def test_run(folder, capsys, tmp_path):
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

    # The last frame starts the next run: its velocities and its experts.
    again = ("--checkpoint", folder / "model.msgpack", "--structure", tmp_path / "a" / "final.extxyz")
    code, _, err = moe_md(capsys, "run", *again, *steps, "--out", tmp_path / "b")
    assert code == 0, err
    log = [np.genfromtxt(tmp_path / x / "log.csv", delimiter=",", names=True) for x in "ab"]
    assert log[1]["total"][0] == pytest.approx(log[0]["total"][-1], abs=1e-5)
    assert log[1]["kinetic"][0] == pytest.approx(log[0]["kinetic"][-1], abs=1e-5)


def test_a_region_that_moves_is_reported(folder, capsys, tmp_path):
    """What the blend did stands in the record; a run that had nothing to do says nothing."""
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
    assert "of the atoms on the expensive expert; the gate's force is" in out


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


def test_a_run_is_taken_up_where_it_stopped(folder, capsys, tmp_path):
    """Twenty steps and twenty more are forty, byte for byte; another run's folder is refused."""
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
    for out, steps in (("whole", 40), ("parts", 20), ("parts", 40)):
        code, said, err = moe_md(capsys, *options, "--steps", steps, "--out", tmp_path / out)
        assert code == 0, err
    assert "taking up the run" in said and "20 steps in" in said
    for name in ("log.csv", "trajectory.extxyz", "final.extxyz", "restart.msgpack"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    before = (tmp_path / "parts" / "log.csv").read_bytes()
    err = failure(capsys, *options, "--steps", 60, "--out", tmp_path / "parts", "--timestep-fs", 2.0)
    assert "restart of the same run" in err and "timestep_fs was 1.0 and is 2.0" in err
    assert (tmp_path / "parts" / "log.csv").read_bytes() == before


def test_npt_around_an_adsorbate(folder, capsys, tmp_path):
    """A region that follows C through a box that breathes, as an H5MD file."""
    atoms = bulk("Pt", a=3.95, cubic=True).repeat(3)
    atoms.symbols[40] = "C"
    atoms.write(tmp_path / "crystal.extxyz")
    options = ("run", "--checkpoint", folder / "model.msgpack", "--structure", tmp_path / "crystal.extxyz")
    options += ("--region-around", "C,O", "--region-core", 4.0, "--region-blend", 1.0, "--ensemble", "npt")
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
    # A core narrower than the cheap expert's cutoff leaves it C to look at.
    narrow = (*options[:7], "--region-core", 2.0, *options[9:])
    code, _, err = moe_md(capsys, *narrow, "--steps", 10, "--out", tmp_path / "narrow")
    assert code == 0 and "outside its domain" in err


def test_open_directions_get_room():
    atoms = fcc111("Pt", (4, 4, 2), a=3.92, vacuum=0.5)
    boxed = mixed_system._in_a_box(atoms, 5.0)
    assert boxed.pbc.all() and boxed.cell[2, 2] >= 2 * 5.0 + 1
    np.testing.assert_array_equal(
        boxed.positions, atoms.positions
    )  # they fit: planes in Å keep their meaning
    molecule = Atoms("CO", [[-4.0, 0, 0], [-4.0, 0, 1.15]])
    boxed = mixed_system._in_a_box(molecule, 5.0)
    scaled = boxed.get_scaled_positions(wrap=False)
    assert (scaled >= 0).all() and (scaled < 1).all()
    assert boxed.get_distance(0, 1) == pytest.approx(1.15) and (boxed.cell.lengths() >= 11).all()


def test_train_then_evaluate(folder, capsys, tmp_path):
    out = tmp_path / "out"
    training = ("train", "--settings", folder / "train.toml", "--out", out, "--quiet")
    code, said, err = moe_md(capsys, *training)
    assert code == 0, err
    model = checkpoint.load(out / "checkpoint.msgpack")
    assert model.experts[0].species == ("Pt", "C", "O") and model.experts[1].allowed_species == ("Pt",)
    assert model.settings["steps"] == 4 and model.settings["weights"]["energy"] == 1.0
    record = json.loads((out / "record.json").read_text())
    assert record["step"] == 4 and record["settings"]["validation_fraction"] == 0.15
    assert record["history"][-1]["expensive"]["forces_meV_per_A"] > 0
    # Finished: it resumes at the end and does nothing more.
    code, _, err = moe_md(capsys, *training)
    assert code == 0, err

    scores = tmp_path / "scores"
    code, said, err = moe_md(
        capsys, "evaluate", out / "checkpoint.msgpack", "--split", "validation", "--out", scores
    )
    assert code == 0, err
    kinds = json.loads((scores / "evaluation.json").read_text())["kinds"]
    assert kinds["all"]["frames"] == record["validation"]["frames"]
    assert all(kind in said for kind in kinds)
    # Two ways to the same numbers.
    for who in ("expensive", "cheap", "mixed"):
        for key, value in record["history"][-1][who].items():
            assert kinds["all"][who][key] == (None if value is None else pytest.approx(value, rel=1e-3)), (
                who,
                key,
            )

    # Another training begins there, with the same experts; its file names no others.
    (tmp_path / "more.toml").write_text(
        "[training]\nsteps = 2\nlearning_rate = 1e-12\nenvironment_rows = 4\nmax_rows = 16\n"
    )
    more = (
        "train",
        "--start",
        out / "checkpoint.msgpack",
        "--settings",
        tmp_path / "more.toml",
        "--out",
        tmp_path / "more",
        "--quiet",
    )
    code, _, err = moe_md(capsys, *more)
    assert code == 0, err
    went_on = checkpoint.load(tmp_path / "more" / "checkpoint.msgpack")
    assert [e.config for e in went_on.experts] == [e.config for e in model.experts]
    assert went_on.record["start"]["train"] == model.record["train"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), went_on.params, model.params)
    assert "name_or_path" in failure(capsys, "train", "--start", "nowhere", "--out", tmp_path / "nothing")
    for wanted in ("0", "two", "1000"):
        assert f"devices must be 'all' or a number from 1 to the {len(jax.devices())}" in failure(
            capsys, *training, "--devices", wanted
        )
    assert moe_md(capsys, *more[:-2], tmp_path / "all", "--quiet", "--devices", "all")[0] == 0
    assert checkpoint.load(tmp_path / "all" / "checkpoint.msgpack").record["devices"] == len(jax.devices())


def test_evaluate_needs_the_fraction(folder, capsys, tmp_path):
    err = failure(capsys, "evaluate", folder / "model.msgpack", "--split", "train", "--out", tmp_path)
    assert "validation_fraction" in err


def test_bench(capsys, tmp_path):
    checkpoint.save(tmp_path / "soft.msgpack", soft_model())
    options = ("--columns", 4, "--rows", 4, "--layers", 8, "--rounds", 2)
    code, out, err = moe_md(
        capsys, "bench", "--checkpoint", tmp_path / "soft.msgpack", *options, "--out", tmp_path
    )
    assert code == 0, err
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["n_atoms"] == 4 * 4 * 8 + 8 and 0 < record["f"] < 1
    assert record["fraction_of_bound"] == pytest.approx(record["speedup"] / record["s_max"])
    assert "all atoms on the expensive expert" in out


def test_demo_hands_on_its_settings(capsys, tmp_path, monkeypatch):
    """What the demonstration does is tested in test_demo."""
    seen = {}

    def run(settings, folder, say):
        seen.update(settings=settings, folder=folder)
        return dict.fromkeys(demo.SUMMARY_KEYS, 1.0)

    monkeypatch.setattr(demo, "run", run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text("[demo]\nseed = 5\ntemperature_K = 300\n")
    code, _, err = moe_md(
        capsys, "demo", "--settings", tmp_path / "settings.toml", "--seed", 7, "--small", "--out", "there"
    )
    assert code == 0, err
    assert (
        seen["settings"] == demo.small(DemoSettings(seed=7, temperature_K=300.0))
        and seen["folder"] == "there"
    )


# Mistakes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [
        ("demo", "[demo]\nlayer = 3\n", ["'layer'", "[demo]", "settings.toml", "layers"]),
        ("demo", "[demos]\n", ["'demos'", "settings.toml", "training"]),
        ("demo", "demo = 3\n", ["must be a table", "got 3"]),
        ("demo", "[demo]\nlayers = 'many'\n", ["layers", "of type int", "got 'many'"]),
        ("demo", "[demo]\nlayers = 3.5\n", ["layers", "of type int", "got 3.5"]),
        ("demo", "[demo\n", ["TOML", "settings.toml"]),
        ("run", "[run]\nstep = 3\n", ["'step'", "[run]", "steps"]),
        ("bench", "[bench]\nlayer = 3\n", ["'layer'", "[bench]", "layers"]),
        ("train", "[training]\nlearning = 3\n", ["'learning'", "[training]", "learning_rate"]),
        ("train", "[training.weights]\nforce = 3\n", ["'force'", "[weights]", "forces"]),
        ("train", "[training]\nweights = 3\n", ["weights", "must be a table"]),
        ("train", "[training]\nsteps = -3\n", ["steps must be positive", "got -3"]),
        ("train", "[cheap]\nlmax = 3\n", ["'lmax'", "[cheap]", "l_max"]),
        ("train", "[cheap]\nbuilder = 'magic'\n", ["builder of [cheap]", "'magic'", "allegro"]),
        ("train", "[cheap]\nallowed_species = ['Au']\n", ["allowed_species", "Au"]),
    ],
)
def test_settings_errors(command, text, expected, capsys, tmp_path):
    (tmp_path / "settings.toml").write_text(text)
    err = failure(capsys, command, "--settings", tmp_path / "settings.toml", "--out", tmp_path / "out")
    for part in expected:
        assert part in err


def test_missing_files(folder, capsys, tmp_path):
    out = ("--out", tmp_path)
    assert "settings must be an existing TOML file" in failure(
        capsys, "demo", "--settings", tmp_path / "no.toml", *out
    )
    assert "no.xyz" in failure(capsys, "train", "--data", tmp_path / "no.xyz", *out)
    assert "no.xyz" in failure(
        capsys, "evaluate", folder / "model.msgpack", "--data", tmp_path / "no.xyz", *out
    )
    assert "existing file, got" in failure(capsys, "evaluate", tmp_path / "no.msgpack", *out)
    err = failure(capsys, "run", "--structure", tmp_path / "no.cif", *out)
    assert "structure must be an existing file" in err
    assert "structure must be given" in failure(capsys, "run", *out)


def test_truncated_xyz(folder, capsys, tmp_path):
    whole = (folder / "slab.extxyz").read_text()
    cut = tmp_path / "cut.extxyz"
    cut.write_text(whole[: len(whole) // 2])
    model = ("--checkpoint", folder / "model.msgpack")
    err = failure(capsys, "run", *model, "--structure", cut, "--region-lower", 9, "--out", tmp_path)
    assert "whole" in err and "cut.extxyz" in err
    assert "cut.extxyz" in failure(capsys, "train", "--data", cut, "--out", tmp_path)
    broken = tmp_path / "broken.cif"
    broken.write_text("data_\nnothing\n")
    err = failure(capsys, "run", *model, "--structure", broken, "--region-lower", 9, "--out", tmp_path)
    assert "structure must be a file that ASE reads" in err


def test_unknown_species(folder, capsys, tmp_path):
    atoms = ase.io.read(folder / "slab.extxyz")
    atoms.symbols[0] = "Au"
    atoms.write(tmp_path / "gold.extxyz")
    model = folder / "model.msgpack"
    err = failure(
        capsys,
        "run",
        "--checkpoint",
        model,
        "--structure",
        tmp_path / "gold.extxyz",
        "--region-lower",
        9,
        "--out",
        tmp_path,
    )
    assert "got Au" in err and "'Pt', 'C', 'O'" in err
    assert "Au" in failure(capsys, "evaluate", model, "--data", tmp_path / "gold.extxyz", "--out", tmp_path)


def test_regions(folder, capsys, tmp_path):
    options = (
        "run",
        "--checkpoint",
        folder / "model.msgpack",
        "--structure",
        folder / "slab.extxyz",
        "--out",
        tmp_path,
    )
    assert "region_lower or region_upper" in failure(capsys, *options)
    assert "slab must select at least one atom" in failure(capsys, *options, "--region-lower", 900)
    assert "ensemble must be one of" in failure(capsys, *options, "--region-lower", 9, "--ensemble", "nvt")
    assert (
        "a region must be chosen in one way, got region_lower or region_upper and region_around"
        in failure(capsys, *options, "--region-lower", 9, "--region-around", "C")
    )
    assert "region_around must name species of the structure, got 'O'" in failure(
        capsys, *options, "--region-around", "O"
    )
    assert "restart_every a multiple of it, got 10 and 15" in failure(capsys, *options, "--restart-every", 15)
    assert "timestep_fs must be positive" in failure(
        capsys, *options, "--region-lower", 9, "--timestep-fs", 0
    )


def test_box_too_small(folder, capsys, tmp_path):
    fcc111("Pt", (2, 2, 4), a=3.92, vacuum=6.0, orthogonal=True).write(tmp_path / "small.extxyz")
    model = ("--checkpoint", folder / "model.msgpack")
    err = failure(
        capsys,
        "run",
        *model,
        "--structure",
        tmp_path / "small.extxyz",
        "--region-lower",
        9,
        "--out",
        tmp_path,
    )
    assert "twice the cutoff" in err


def test_missing_labels(folder, capsys, tmp_path):
    frames = ase.io.read(folder / "slab.extxyz", index=":")
    ase.io.write(tmp_path / "bare.extxyz", frames * 2)
    options = ("--data", tmp_path / "bare.extxyz", "--validation-fraction", 0, "--quiet")
    assert "energy" in failure(capsys, "train", *options, "--out", tmp_path / "a")
    err = failure(capsys, "train", *options, "--forces-key", "pushes", "--out", tmp_path / "b")
    assert "forces_key" in err and "pushes" in err


def test_names_of_labels_and_the_start_come_from_the_settings_file(folder, capsys, tmp_path):
    """Other people's names: the same training as with ours, told by a file or by options."""
    rng, images = np.random.default_rng(0), []
    for n in range(6):
        atoms = bulk("Pt", a=3.98, cubic=True)
        atoms.rattle(0.05, seed=n)
        atoms.info.update(
            REF_energy=-20.0 + rng.normal(),
            REF_virial=rng.normal(size=6),
            walk=f"run-{n // 2}",
            config_type="hot",
        )
        atoms.arrays["dft_forces"] = rng.normal(size=(4, 3))
        images.append(atoms)
    ase.io.write(tmp_path / "theirs.extxyz", images, format="extxyz")
    names = {
        "energy_key": "REF_energy",
        "forces_key": "dft_forces",
        "stress_key": "REF_virial",
        "group_key": "walk",
        "kind_key": "config_type",
    }
    head = f'start = "{folder / "model.msgpack"}"\n'
    training = "[training]\nsteps = 2\nmax_rows = 16\nenvironment_rows = 4\nperfect_crystals = 1\n"
    lines = "".join(f'{key} = "{name}"\n' for key, name in names.items())
    (tmp_path / "all.toml").write_text(
        head + f'[data]\nfile = "{tmp_path / "theirs.extxyz"}"\n' + lines + training
    )
    (tmp_path / "bare.toml").write_text(training)
    code, said, err = moe_md(
        capsys, "train", "--settings", tmp_path / "all.toml", "--out", tmp_path / "a", "--quiet"
    )
    assert code == 0, err
    assert "train: 4 frames of 2 groups" in said and "validation: 2 frames of 1 groups" in said
    options = [part for key, name in names.items() for part in (f"--{key.replace('_', '-')}", name)]
    options += [
        "--data",
        tmp_path / "theirs.extxyz",
        "--start",
        folder / "model.msgpack",
        "--settings",
        tmp_path / "bare.toml",
    ]
    code, _, err = moe_md(capsys, "train", *options, "--out", tmp_path / "b", "--quiet")
    assert code == 0, err
    first, second = (checkpoint.load(tmp_path / name / "checkpoint.msgpack") for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    counts = first.record["train"]
    assert counts["frames"] == counts["energy"] == counts["forces"] == counts["stress"] > 0
    assert first.record["start"] is not None
    # Errors of those frames, by their kinds.
    code, said, err = moe_md(
        capsys,
        "evaluate",
        tmp_path / "a" / "checkpoint.msgpack",
        "--settings",
        tmp_path / "all.toml",
        "--out",
        tmp_path / "c",
    )
    assert code == 0, err
    report = json.loads((tmp_path / "c" / "evaluation.json").read_text())
    assert set(report["kinds"]) == {"hot", "all"} and report["data"].endswith("theirs.extxyz")
    # An option overrides the file; a wrong name is told with those there are.
    err = failure(
        capsys,
        "train",
        "--settings",
        tmp_path / "all.toml",
        "--stress-key",
        "virials",
        "--out",
        tmp_path / "d",
    )
    assert "stress_key" in err and "'virials'" in err and "REF_virial" in err
    (tmp_path / "wrong.toml").write_text("start = 3\n")
    assert "start of" in failure(
        capsys, "train", "--settings", tmp_path / "wrong.toml", "--out", tmp_path / "d"
    )
    (tmp_path / "wrong.toml").write_text('[data]\nenergy = "REF_energy"\n')
    assert "unknown key 'energy'" in failure(
        capsys, "train", "--settings", tmp_path / "wrong.toml", "--out", tmp_path / "d"
    )


def test_a_blown_up_run_says_so_and_saves(folder, capsys, tmp_path):
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


def test_traceback_on_request(capsys):
    with pytest.raises(ValueError, match="structure must be given"):
        cli.main(["--traceback", "run"])


def test_entry_point(capsys):
    done = subprocess.run(
        [sys.executable, "-m", "moe_md.commands.main", "dance"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "dance" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "--production-steps" in out and "name or path; default ptco" in out


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "validate", "run", "bench"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0 and "--out DIR" in capsys.readouterr().out


def test_packaged_frames_have_a_name():
    parsed = cli._parser().parse_args(["evaluate", "ptco"])
    assert len(cli._dataset(parsed).frames) == len(load_dataset(ptco_pbe()).frames)


def test_init_writes_settings_that_are_the_defaults(capsys, tmp_path):
    """Every key of every table, as the program has it, and what it means; and the program reads it."""
    path = tmp_path / "new" / "my.toml"
    code, out, _ = moe_md(capsys, "init", path)
    assert code == 0 and str(path) in out
    tables = settings_file.tables(path)
    assert tables.keys() == {"data", "expensive", "cheap", "training", "run"}
    assert settings_file.filled(DataSettings, tables["data"], "") == DataSettings()
    assert settings_file.filled(TrainSettings, tables["training"], "") == TrainSettings()
    region = {"structure": "slab.extxyz", "region_around": "C,O"}
    assert settings_file.filled(RunSettings, tables["run"], "") == RunSettings(**region)
    for name, builder in (("expensive", "allegro"), ("cheap", "power_spectrum")):
        table = tables[name]
        assert table["builder"] == builder and table["species"] == ["Pt", "C", "O"]
        least = {k: table[k] for k in ("builder", "species", "cutoff", "allowed_species") if k in table}
        least |= {"l_max": 4} if name == "cheap" else {}
        assert experts.build(table).config == experts.build(least).config
    text = path.read_text()
    for line in (
        "# energy_key =  # name of the energy; else free_energy, else energy",
        'forces_key = "forces" # name of the forces',
        "readout_mlp = [32] # hidden widths",
    ):
        assert line in text
    before = path.read_bytes()
    assert "file must be a new one" in failure(capsys, "init", path)
    assert path.read_bytes() == before


def test_a_folder_says_how_to_make_it_again(folder, capsys, tmp_path):
    """Its settings give the same run, bit for bit; the result as JSON is alone on stdout."""
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


@pytest.mark.parametrize(
    "options, f, message",
    [
        (("--region-tags", "1, 2"), 0.5, None),
        (("--region-layers", 1), 0.25, None),
        (("--region-tags", "7"), None, "tags must each be that of an atom"),
        (("--region-tags", "top"), None, "region_tags must be whole numbers with commas between, got 'top'"),
        (("--region-layers", 9), None, "n_layers must be at most the 4 layers"),
        (
            ("--region-layers", 1, "--region-around", "Pt"),
            None,
            "a region must be chosen in one way, got region_around and region_layers",
        ),
    ],
)
def test_regions_by_tag_and_by_layer(folder, capsys, tmp_path, options, f, message):
    done = moe_md(
        capsys,
        "run",
        "--checkpoint",
        folder / "model.msgpack",
        "--structure",
        folder / "slab.extxyz",
        "--steps",
        0,
        *options,
        "--json",
        "--out",
        tmp_path,
    )
    if message:
        assert done[0] == 2 and message in done[2]
    else:
        assert done[0] == 0 and json.loads(done[1])["f"] == f


def test_copies_of_a_small_structure(folder, capsys, tmp_path):
    """Twice the cell gives twice the energy; velocities, which would be alike, are drawn anew."""
    atoms = ase.io.read(folder / "slab.extxyz")
    atoms.set_momenta(np.ones((len(atoms), 3)))
    atoms.write(tmp_path / "moving.extxyz")
    potential, kinetic = {}, {}
    for repeat in ("1,1,1", "1,2,1"):
        options = (
            "--structure",
            tmp_path / "moving.extxyz",
            "--region-layers",
            2,
            "--steps",
            0,
            "--repeat",
            repeat,
        )
        code, out, err = moe_md(
            capsys,
            "run",
            "--checkpoint",
            folder / "model.msgpack",
            *options,
            "--json",
            "--out",
            tmp_path / repeat,
        )
        assert code == 0, err
        log = np.genfromtxt(tmp_path / repeat / "log.csv", delimiter=",", names=True)
        potential[repeat], kinetic[repeat] = float(log["potential"]), float(log["kinetic"])
        assert json.loads(out)["n_atoms"] == len(atoms) * (2 if repeat == "1,2,1" else 1)
    assert potential["1,2,1"] == pytest.approx(2 * potential["1,1,1"], rel=1e-10)
    assert kinetic["1,2,1"] != pytest.approx(2 * kinetic["1,1,1"], rel=1e-3)
    for wrong in ("2,2", "0,1,1", "a,1,1"):
        assert "repeat must be" in failure(capsys, "run", *options[:-1], wrong, "--out", tmp_path / "none")


def test_completion_by_tab():
    """A script that bash takes and that knows commands and options."""
    made = subprocess.run(
        [sys.executable, "-m", "moe_md.commands.main", "--print-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--region-around" in made and "validate" in made
    subprocess.run(["bash", "-n"], input=made, text=True, check=True)
