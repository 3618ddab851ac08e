"""`moe-md train` and `evaluate`: labels of any name, resumed and continued trainings, refused input."""

import json

import ase.io
import jax
import numpy as np
import pytest
from ase.build import bulk
from command_line import as_options, failure, moe_md

from moe_md import checkpoint


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
    # A finished training resumes at its last step and does no other.
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
    # `evaluate` and the validation during training agree.
    for who in ("expensive", "cheap", "mixed"):
        for key, value in record["history"][-1][who].items():
            assert kinds["all"][who][key] == (None if value is None else pytest.approx(value, rel=1e-3)), (
                who,
                key,
            )

    # Another training starts from it, with the same experts, as its file describes none.
    (tmp_path / "more.toml").write_text(
        "[environments]\nenvironment_rows = 4\n[training]\nsteps = 2\nlearning_rate = 1e-12\nmax_atoms = 16\n"
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
    continued = checkpoint.load(tmp_path / "more" / "checkpoint.msgpack")
    assert [e.config for e in continued.experts] == [e.config for e in model.experts]
    assert continued.record["start"]["train"] == model.record["train"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), continued.params, model.params)
    # A table for the cheap expert alone gives the expensive one another partner, and may leave it as it is.
    with (tmp_path / "more.toml").open("a") as settings:
        settings.write(
            "freeze_expensive = true\n[cheap]\nbuilder = 'density_moments'\nallowed_species = ['Pt']\n"
            "num_radial = [3, 2]\nhidden = [4]\n"
        )
    code, _, err = moe_md(capsys, *more[:-2], tmp_path / "cheap", "--quiet")
    assert code == 0, err
    other = checkpoint.load(tmp_path / "cheap" / "checkpoint.msgpack")
    assert other.experts[0].config == model.experts[0].config
    assert other.experts[1].config["builder"] == "density_moments"
    assert other.experts[1].cutoff == model.experts[1].cutoff
    kept, before = ({k: v for k, v in each.params[0].items() if k != "shift"} for each in (other, model))
    jax.tree.map(np.testing.assert_array_equal, kept, before)
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


def test_missing_labels(folder, capsys, tmp_path):
    frames = ase.io.read(folder / "slab.extxyz", index=":")
    ase.io.write(tmp_path / "bare.extxyz", frames * 2)
    options = ("--data", tmp_path / "bare.extxyz", "--validation-fraction", 0, "--quiet")
    assert "energy" in failure(capsys, "train", *options, "--out", tmp_path / "a")
    err = failure(capsys, "train", *options, "--forces-key", "pushes", "--out", tmp_path / "b")
    assert "forces_key" in err and "pushes" in err


NAMES = {
    "energy_key": "REF_energy",
    "forces_key": "dft_forces",
    "virial_key": "REF_virial",
    "group_key": "walk",
    "kind_key": "config_type",
}
TRAINING = "[environments]\nenvironment_rows = 4\nperfect_rows = 1\n[training]\nsteps = 2\nmax_atoms = 16\n"


@pytest.fixture
def labelled(folder, tmp_path):
    """Paths of frames with labels of these names, and of a settings file with the names and a start."""
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
    frames, settings = tmp_path / "theirs.extxyz", tmp_path / "all.toml"
    ase.io.write(frames, images, format="extxyz")
    data = "".join(f'{key} = "{name}"\n' for key, name in {"file": frames, **NAMES}.items())
    settings.write_text(f'start = "{folder / "model.msgpack"}"\n[data]\n{data}{TRAINING}')
    return frames, settings


def test_names_of_labels_and_the_start_come_from_the_settings_file(labelled, folder, capsys, tmp_path):
    """Names of labels, given by a settings file or by options, lead to the same training."""
    frames, settings = labelled
    code, said, err = moe_md(capsys, "train", "--settings", settings, "--out", tmp_path / "a", "--quiet")
    assert code == 0, err
    assert "train: 4 frames of 2 groups" in said and "validation: 2 frames of 1 groups" in said
    (tmp_path / "bare.toml").write_text(TRAINING)
    options = as_options(
        **NAMES,
        data=frames,
        start=folder / "model.msgpack",
        settings=tmp_path / "bare.toml",
        out=tmp_path / "b",
    )
    code, _, err = moe_md(capsys, "train", *options, "--quiet")
    assert code == 0, err
    first, second = (checkpoint.load(tmp_path / name / "checkpoint.msgpack") for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    counts = first.record["train"]
    assert counts["frames"] == counts["energy"] == counts["forces"] == counts["stress"] > 0
    assert first.record["start"] is not None
    # Errors of those frames by kind.
    options = as_options(settings=settings, out=tmp_path / "c")
    code, said, err = moe_md(capsys, "evaluate", tmp_path / "a" / "checkpoint.msgpack", *options)
    assert code == 0, err
    report = json.loads((tmp_path / "c" / "evaluation.json").read_text())
    assert set(report["kinds"]) == {"hot", "all"} and report["data"].endswith("theirs.extxyz")


def test_unknown_names_in_the_settings_file_are_refused(labelled, capsys, tmp_path):
    """An option overrides the file; the error for an unknown label lists the existing ones."""
    options = as_options(settings=labelled[1], stress_key="virials", out=tmp_path / "d")
    err = failure(capsys, "train", *options)
    assert "stress_key" in err and "'virials'" in err and "REF_virial" in err
    wrong = as_options(settings=tmp_path / "wrong.toml", out=tmp_path / "d")
    for text, message in (
        ("start = 3\n", "start of"),
        ('[data]\nenergy = "REF_energy"\n', "unknown key 'energy'"),
        ('[training]\nmetal = "Cu"\n', "it is now 'references' of [environments]"),
        ("[environments]\nrows = 4\n", "allowed are references, environment_rows"),
    ):
        (tmp_path / "wrong.toml").write_text(text)
        assert message in failure(capsys, "train", *wrong)
