"""The command line: help, settings files, and a one-line error for each wrong input."""

import json
import subprocess
import sys

import ase.io
import pytest
from command_line import failure, moe_md
from test_demo import soft_model

import moe_md as mm
from moe_md import checkpoint, experts
from moe_md.commands import demo, frames, settings_file
from moe_md.commands import main as cli
from moe_md.data import load_dataset, ptco_pbe
from moe_md.settings import DataSettings, DemoSettings, EnvironmentSettings, RunSettings, TrainSettings


@pytest.mark.thorough
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


def test_demo_runs_with_settings_of_file_and_options(capsys, tmp_path, monkeypatch):
    """The demonstration itself is tested in test_demo."""
    seen = {}

    def run(settings, folder, log):
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
        seen["settings"] == demo.smoke_settings(DemoSettings(seed=7, temperature_K=300.0))
        and seen["folder"] == "there"
    )


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
        ("region", "[region]\nvalue = '3'\n", ["'value'", "[region]", "values"]),
        ("bench", "[bench]\nlayer = 3\n", ["'layer'", "[bench]", "layers"]),
        ("train", "[training]\nlearning = 3\n", ["'learning'", "[training]", "learning_rate"]),
        ("train", "[training.weights]\nforce = 3\n", ["'force'", "[weights]", "forces"]),
        ("train", "[training]\nweights = 3\n", ["weights", "must be a table"]),
        ("train", "[training]\nsteps = -3\n", ["steps must be positive", "got -3"]),
        ("train", "[cheap]\nradial = 3\n", ["'radial'", "[cheap]", "num_radial"]),
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
    text = (folder / "slab.extxyz").read_text()
    cut = tmp_path / "cut.extxyz"
    cut.write_text(text[: len(text) // 2])
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


@pytest.mark.parametrize(
    "command", ["demo", "train", "evaluate", "validate", "region", "run", "export", "bench"]
)
def test_help_of_every_command_shows_the_folder_of_results(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0 and "--out DIR" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("run", "--guide", "--inner-potential"),
        ("run", "--slow-every", "--outer-every"),
        ("train", "--max-rows", "--max-atoms"),
        ("train", "--ideal-crystal-weight", "--perfect-weight"),
        ("train", "--metal", "--references"),
        ("validate", "--layers", "--thickness"),
    ],
)
def test_a_renamed_option_is_answered_with_the_new_one(command, old, new, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, old, "3"])
    assert stop.value.code == 2
    assert f"unknown option {old}: it is now {new}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert old not in capsys.readouterr().out


def test_models_lists_the_shipped_checkpoints(capsys):
    code, out, _ = moe_md(capsys, "models")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:-1]] == mm.models()
    assert {"ptco", "ptco-small", "ptco-small-inner"} <= set(mm.models())
    code, out, _ = moe_md(capsys, "models", "--json")
    listed = json.loads(out)["models"]
    assert listed["ptco"]["builders"] == ["allegro", "density_moments"]
    assert all(entry["labels"] and entry["licence"] for entry in listed.values())
    expensive, cheap = listed["ptco"]["forces_meV_per_A"]
    last = mm.load("ptco").record["history"][-1]
    assert [expensive, cheap] == [last[name]["forces_meV_per_A"] for name in ("expensive", "cheap")]
    with pytest.raises(AttributeError, match="it is now moe_md.models"):
        checkpoint.names  # noqa: B018


def test_packaged_frames_have_a_name():
    parsed = cli.make_parser().parse_args(["evaluate", "ptco"])
    dataset = frames.load(frames.data_settings(parsed))
    assert len(dataset.frames) == len(load_dataset(ptco_pbe()).frames)


def test_init_writes_settings_that_are_the_defaults(capsys, tmp_path):
    """The file holds every key with its default and its help text; size and steps follow from the frames."""
    path = tmp_path / "new" / "my.toml"
    code, out, _ = moe_md(capsys, "init", path)
    assert code == 0 and str(path) in out
    tables = settings_file.tables(path)
    assert tables.keys() == {"data", "expensive", "cheap", "environments", "training", "run"}
    assert settings_file.filled(EnvironmentSettings, tables["environments"], "") == EnvironmentSettings()
    assert settings_file.filled(DataSettings, tables["data"], "") == DataSettings()
    training = TrainSettings(steps=6_000, agreement_gradient_scale=0.1)
    assert settings_file.filled(TrainSettings, tables["training"], "") == training
    assert "l_max 3, 64 scalar and 32 tensor features, 6,000 steps" in out
    region = {"structure": "slab.extxyz", "region_around": "C,O"}
    assert settings_file.filled(RunSettings, tables["run"], "") == RunSettings(**region)
    kept = ("builder", "species", "cutoff", "allowed_species", "avg_num_neighbors", "l_max")
    for name, builder in (("expensive", "allegro"), ("cheap", "density_moments")):
        table = tables[name]
        assert table["builder"] == builder and table["species"] == ["Pt", "C", "O"]
        least = {k: table[k] for k in kept if k in table}
        assert experts.build(table).config == experts.build(least).config
    text = path.read_text()
    for line in (
        "# energy_key =  # name of the energy; default free_energy, energy or REF_energy",
        "# forces_key =  # name of the forces; default forces, force or REF_forces",
        "readout_mlp = [32] # hidden widths",
    ):
        assert line in text
    before = path.read_bytes()
    assert "path must be a new file" in failure(capsys, "init", path)
    assert path.read_bytes() == before


def test_completion_by_tab():
    """The script is valid bash and contains commands and options."""
    made = subprocess.run(
        [sys.executable, "-m", "moe_md.commands.main", "--print-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--region-around" in made and "validate" in made
    subprocess.run(["bash", "-n"], input=made, text=True, check=True)
