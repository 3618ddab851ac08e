"""Each command on each malformed file: exit code 2 and one line that names the file."""

import malformed_files as bad
import pytest
from command_line import failure
from small_frames import write


def refused(capsys, path, folder, *commands):
    """Assert that each command refuses a file, and writes no result."""
    out = folder / "out"
    for arguments in commands:
        assert path.name in failure(capsys, *arguments, "--out", out), arguments[0]
        assert {p.name for p in out.glob("*")} <= {"settings.toml"}, arguments[0]  # which repeats the command


def readers_of_structures(path, model):
    """Commands that read a structure."""
    system = ("--structure", path, "--checkpoint", model, "--region-around", "Pt")
    return ("run", *system, "--steps", 0), ("region", *system), ("export", "lammps", *system)


def readers_of_frames(path, model):
    """Commands that read labelled frames."""
    data = ("--data", path)
    return (
        ("train", *data, "--quiet"),
        ("evaluate", model, *data),
        ("validate", model, "--small", "--sections", "errors", *data),
    )


@pytest.mark.parametrize("name", bad.FRAMES)
def test_frames(folder, capsys, tmp_path, name):
    file, content = bad.FRAMES[name]
    path, model = write(tmp_path, content, file), folder / "model.msgpack"
    refused(capsys, path, tmp_path, *readers_of_structures(path, model), *readers_of_frames(path, model))
    assert path.name in failure(capsys, "init", tmp_path / "new.toml", "--data", path)
    assert not (tmp_path / "new.toml").exists()


@pytest.mark.parametrize("name", bad.LABELS)
def test_labels(folder, capsys, tmp_path, name):
    path = write(tmp_path, bad.LABELS[name], "a.xyz")
    refused(capsys, path, tmp_path, *readers_of_frames(path, folder / "model.msgpack"))


@pytest.mark.parametrize("name", bad.STRUCTURES)
def test_structures(folder, capsys, tmp_path, name):
    file, content = bad.STRUCTURES[name]
    path = write(tmp_path, content, file)
    refused(capsys, path, tmp_path, *readers_of_structures(path, folder / "model.msgpack"))


@pytest.mark.parametrize("name", bad.SETTINGS)
def test_settings(folder, capsys, tmp_path, name):
    path, model = write(tmp_path, bad.SETTINGS[name], "a.toml"), folder / "model.msgpack"
    commands = (
        ("run",),
        ("region",),
        ("train",),
        ("evaluate", model),
        ("validate", model),
        ("export", "lammps"),
    )
    file = ("--settings", path)
    refused(capsys, path, tmp_path, *((*c, *file) for c in (*commands, ("bench",), ("demo",))))


@pytest.mark.parametrize("name", bad.CHECKPOINTS)
def test_checkpoints(folder, capsys, tmp_path, name):
    path = write(tmp_path, bad.CHECKPOINTS[name], "a.msgpack")
    structure = readers_of_structures(folder / "slab.extxyz", path)
    data = ("evaluate", path), ("validate", path, "--small"), ("train", "--start", path, "--quiet")
    model = ("--checkpoint", path)
    refused(capsys, path, tmp_path, *structure, *data, ("bench", *model), ("demo", *model))
