"""Labels of two methods are never mixed, and a checkpoint says whose labels it has learnt."""

import json
import warnings

import ase.io
import jax
import numpy as np
import pytest
from command_line import as_options, failure, moe_md
from small_frames import cells, pair_of

from moe_md import checkpoint, data
from moe_md.commands import evaluate
from moe_md.commands import run as run_module
from moe_md.data import common_level, dataset_from_frames, frame_from_atoms, frame_to_atoms, label_remarks
from moe_md.settings import EnvironmentSettings, TrainSettings
from moe_md.training import cotrain, progress

NONE = EnvironmentSettings(environment_rows=0, perfect_rows=0)
PBE, RPBE = "PBE, 400 eV", "RPBE, 400 eV"


def written(path, levels):
    """A file of frames with these levels of theory; None for none."""
    images = [frame_to_atoms(frame) for frame in cells(len(levels))]
    for atoms, level in zip(images, levels):
        atoms.info |= {} if level is None else {"level_of_theory": level}
    ase.io.write(path, images, format="extxyz")
    return path


def test_levels_are_read_from_frames_and_survive_a_round_trip(tmp_path):
    frames = data.read_frames(written(tmp_path / "a.xyz", [PBE, PBE, None]))
    assert [frame.level_of_theory for frame in frames] == [PBE, PBE, ""]
    assert common_level(frames) == PBE and common_level(frames[2:]) == ""
    assert frame_from_atoms(frame_to_atoms(frames[0])).level_of_theory == PBE
    atoms = frame_to_atoms(frames[2])
    atoms.info["Level_of_Theory"] = "PBE,  400\neV"
    assert frame_from_atoms(atoms).level_of_theory == PBE
    (remark,) = label_remarks(dataset_from_frames(frames))
    assert "1 of 3 frames do not name a level of theory" in remark and PBE in remark


def test_a_text_in_the_settings_is_that_of_frames_without_one(tmp_path):
    path = written(tmp_path / "a.xyz", [PBE, None, None])
    dataset = data.load_dataset(path, level_of_theory=f" {PBE} ")
    assert {frame.level_of_theory for frame in dataset.frames} == {PBE}
    assert label_remarks(dataset) == []
    # A name is no label: what was saved from the same numbers goes on.
    assert data.digest(dataset) == data.digest(data.load_dataset(path))


def test_two_levels_are_refused_with_their_frames(tmp_path):
    path = written(tmp_path / "a.xyz", [PBE, None, RPBE, RPBE])
    message = (
        f"level_of_theory must be one .* got '{PBE}' in frame 0 of a.xyz and '{RPBE}' in frame 2 .* 1 more"
    )
    with pytest.raises(ValueError, match=message):
        data.read_frames(path)
    path = written(tmp_path / "b.xyz", [RPBE] * 2)
    with pytest.raises(ValueError, match=f"got '{PBE}' in the settings and '{RPBE}' in frame 0 of b.xyz"):
        data.read_frames(path, level_of_theory=PBE)
    with pytest.raises(ValueError, match="level_of_theory must be a text, got 3"):
        data.read_frames(path, level_of_theory=3)


def trained(levels, validation=None, **more):
    """A training of one step on frames with these levels."""
    frames = [f._replace(level_of_theory=level) for f, level in zip(cells(len(levels)), levels)]
    if validation is not None:
        more["validation"] = dataset_from_frames(
            [frames[0]._replace(level_of_theory=validation)], ("Pt", "Au")
        )
    settings = TrainSettings(steps=1, max_atoms=8)
    dataset = dataset_from_frames(frames[1:] if validation is not None else frames, ("Pt", "Au"))
    return cotrain.cotrain(
        pair_of(("Pt", "Au"), ("Pt",)), dataset, settings, environments=NONE, progress=False, **more
    )


def test_a_training_records_one_level_and_refuses_two(tmp_path, monkeypatch):
    monkeypatch.setattr(cotrain, "_run", lambda training, *_, **__: training.record)
    assert trained([PBE] * 3)["level_of_theory"] == PBE
    assert "level_of_theory" not in trained([""] * 3)
    with pytest.raises(ValueError, match=f"got '{PBE}' in frame .* and '{RPBE}' in frame"):
        trained([PBE, PBE, RPBE])
    with pytest.raises(ValueError, match=f"got '{PBE}' in frame .* and '{RPBE}' in frame"):
        trained([PBE] * 3, validation=RPBE)


@pytest.mark.parametrize(
    "before, now, message",
    [
        (PBE, RPBE, f"start was trained on labels of '{PBE}', and these are of '{RPBE}'"),
        (PBE, "", f"labels of '{PBE}', and these do not name theirs"),
        (PBE, PBE, None),
        ("", PBE, None),
    ],
)
def test_another_level_than_that_of_start_is_said_once(before, now, message, monkeypatch):
    monkeypatch.setattr(cotrain, "_run", lambda training, *_, **__: training.record)
    experts = pair_of(("Pt", "Au"), ("Pt",))
    record = {"level_of_theory": before} if before else {}
    start = checkpoint.Checkpoint(tuple(experts), tuple(e.init(None) for e in experts), {}, record)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = trained([now] * 3, start=start)
    said = [str(w.message) for w in caught if "start was trained" in str(w.message)]
    assert len(said) == (message is not None) and all(message in line for line in said)
    assert found["start"].get("level_of_theory", "") == before and found.get("level_of_theory", "") == now


def without_steps(training, current, *_, **__):
    """In place of `cotrain._run`: save the progress before the first step."""
    progress.write(training.folder, current, training.fingerprint)
    params = jax.tree.map(np.asarray, current.state.average)
    return checkpoint.Checkpoint(training.experts, params, {}, {**training.record, "history": []})


def test_train_says_it_and_does_not_resume_with_another(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cotrain, "_run", without_steps)
    frames = written(tmp_path / "a.xyz", [None] * 4)
    options = as_options(
        settings=folder / "train.toml", data=frames, validation_fraction=0, out=tmp_path / "out"
    )
    options = ("train", *options, "--quiet")
    code, said, err = moe_md(capsys, *options, "--level-of-theory", PBE)
    assert code == 0 and f"level of theory: {PBE}\n" in said, err
    assert checkpoint.load(tmp_path / "out" / "checkpoint.msgpack").level_of_theory == PBE
    assert f'level_of_theory = "{PBE}"' in (tmp_path / "out" / "settings.toml").read_text()
    assert "must hold no training of other level of theory" in failure(capsys, *options)
    assert "level_of_theory must not be empty" in failure(capsys, *options, "--level-of-theory", " ")


@pytest.fixture
def named(folder, tmp_path):
    """A checkpoint that was trained on PBE."""
    model = checkpoint.load(folder / "model.msgpack")
    checkpoint.save(tmp_path / "pbe.msgpack", model._replace(record={"level_of_theory": PBE}))
    return tmp_path / "pbe.msgpack"


@pytest.mark.parametrize("data_level", [RPBE, PBE, None])
def test_evaluate_says_it(data_level, named, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.evaluation, "evaluate_by_kind", lambda *_: {})
    frames = written(tmp_path / "a.xyz", [data_level] * 2)
    options = ("evaluate", named, *as_options(data=frames, out=tmp_path / "evaluation"))
    code, said, err = moe_md(capsys, *options)
    assert code == 0, err
    levels = {"checkpoint": PBE} | ({} if data_level is None else {"data": data_level})
    assert f"level of theory: {'; '.join(map(' '.join, levels.items()))}\n" in said
    differ = f"was trained on labels of '{PBE}', and the labels here are of '{RPBE}'"
    assert (differ in err) == (data_level == RPBE)
    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert report["level_of_theory"] == levels


def test_run_says_it(folder, named, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "mixture_neighbor_list", None)  # it has said it before
    options = ("run", *as_options(structure=folder / "slab.extxyz", region_lower=9.0, out=tmp_path / "out"))
    for model, line in ((named, f"level of theory: {PBE}\n"), (folder / "model.msgpack", "")):
        with pytest.raises(TypeError):
            moe_md(capsys, *options, "--checkpoint", model)
        assert capsys.readouterr().out == line


@pytest.mark.parametrize("name", checkpoint.models())
def test_shipped_checkpoints_name_none(name):
    assert checkpoint.load(name).level_of_theory == ""
