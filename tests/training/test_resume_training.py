"""A training that was killed, interrupted or out of disk ends with the bits of an uninterrupted one."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import pytest
import small_training

import moe_md as mm
from moe_md.data.dataset import digest
from moe_md.files import write_atomic
from moe_md.training import inputs

PROGRAM = Path(small_training.__file__)
STEPS = 200


def start(folder) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), str(folder), str(STEPS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def saved(folder) -> dict:
    """The content of the saved training; empty without one."""
    path = folder / "training.msgpack"
    return flax.serialization.msgpack_restore(path.read_bytes()) if path.exists() else {}


def saved_step(folder) -> int:
    content = saved(folder)
    return int(content["state"]["step"]) if content else 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(folder)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return folder


def kill(folder, rng) -> int:
    """Start, kill at a random moment some steps later, and return the step begun last."""
    process = start(folder)
    began = [int(process.stdout.readline()) for _ in range(rng.randint(2, 14))]
    time.sleep(rng.uniform(0.0, 0.03))
    process.kill()
    out, _ = process.communicate(timeout=120)
    began += [int(line) for line in out.split()]
    assert process.returncode == -signal.SIGKILL and began[-1] < STEPS, "killed after the end"
    assert saved_step(folder) % 5 == 0  # only complete states are saved
    return began[-1]


def check_same(expected: dict, found: dict) -> None:
    for key in expected:
        if key not in ("seconds", "sha256"):
            pair = [
                flax.serialization.msgpack_serialize({"it": content[key]}) for content in (expected, found)
            ]
            assert pair[0] == pair[1], key


def check_killed_training(uninterrupted, folder, n_kills: int, seed: int) -> list[int]:
    """Kill a training repeatedly, complete it and compare all bits; returns the steps of the kills."""
    rng = random.Random(seed)
    killed_in = [kill(folder, rng) for _ in range(n_kills)]
    process = start(folder)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    check_same(saved(uninterrupted), saved(folder))
    assert saved_step(folder) == STEPS and len(saved(folder)["history"]) == -(-STEPS // 14)
    a, b = (mm.load(f / "checkpoint.msgpack") for f in (uninterrupted, folder))
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert a.record["history"] == b.record["history"] and b.record["step"] == STEPS
    assert sorted(os.listdir(folder)) == [
        "checkpoint.msgpack",
        "training.msgpack",
    ]  # no partial file remains
    return killed_in


@pytest.mark.thorough
def test_three_kills_change_no_bit(uninterrupted, tmp_path):
    check_killed_training(uninterrupted, tmp_path, 3, seed=1)


@pytest.mark.slow
def test_twenty_kills_change_no_bit(uninterrupted, tmp_path):
    print("killed in steps", check_killed_training(uninterrupted, tmp_path, 20, seed=2))


# In this process -------------------------------------------------------------

FEW = 24


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Result and folder of a short uninterrupted training."""
    folder = tmp_path_factory.mktemp("short")
    return small_training.train(folder, FEW), folder


def check_result(short, folder) -> None:
    """Resume the training of a folder and compare it with the uninterrupted one."""
    result, uninterrupted = small_training.train(folder, FEW), short[0]
    jax.tree.map(np.testing.assert_array_equal, result.params, uninterrupted.params)
    assert result.record["history"] == uninterrupted.record["history"] and result.record["step"] == FEW
    check_same(saved(short[1]), saved(folder))


def at_step(monkeypatch, step: int, act) -> list[int]:
    """Call `act` as that step begins; returns the list of steps begun, which grows."""
    began, batch_of_step = [], inputs.environment_batch

    def batch(environments, seed, now):
        began.append(now)
        if now == step:
            act()
        return batch_of_step(environments, seed, now)

    monkeypatch.setattr(inputs, "environment_batch", batch)
    return began


@pytest.mark.parametrize("step, delay", [(0, 0.0), (7, 0.0), (13, 0.004), (16, 0.015)])
def test_an_interrupt_saves_the_last_complete_step(short, tmp_path, monkeypatch, step, delay):
    """Ctrl-C at a moment of the step after compilation, also during validation (14) and saving (15)."""

    def interrupt():
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()

    with monkeypatch.context() as patch:
        began = at_step(patch, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            small_training.train(tmp_path, FEW)
            time.sleep(1.0)  # for a training faster than the timer
    assert saved_step(tmp_path) - began[-1] in (
        -1,
        0,
        1,
    )  # a batch is made while the device computes the step before
    check_result(short, tmp_path)


@pytest.mark.parametrize("limit", [0, 6000])
def test_a_full_disk_loses_nothing(short, tmp_path, monkeypatch, limit):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        at_step(patch, 12, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard)))
        try:
            with pytest.raises(OSError, match="cannot be written.*File too large.*training.msgpack"):
                small_training.train(tmp_path, FEW)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved_step(tmp_path) == 10 and mm.load(tmp_path / "checkpoint.msgpack").record["step"] == 10
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.msgpack", "training.msgpack"]
    check_result(short, tmp_path)


def test_partial_files_of_a_killed_training_are_replaced(short, tmp_path):
    for name in ("training", "checkpoint"):
        (tmp_path / f".{name}.msgpack.partial").write_bytes(b"half")
    check_result(short, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.msgpack", "training.msgpack"]


def test_a_training_killed_before_its_last_checkpoint_writes_it(short, tmp_path):
    shutil.copy(short[1] / "training.msgpack", tmp_path)
    check_result(short, tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal, mm.load(tmp_path / "checkpoint.msgpack").params, short[0].params
    )


def edited(short, folder, edit) -> bytes:
    """Write an edited copy of the saved training; returns its bytes."""
    content = saved(short[1])
    del content["sha256"]
    edit(content)
    write_atomic(folder / "training.msgpack", flax.serialization.msgpack_serialize(content))
    return (folder / "training.msgpack").read_bytes()


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda c: c.update(format=1), "must have training format 4, got 1"),
        (lambda c: c.pop("format"), "must be a saved training.*format"),
        (lambda c: c.pop("running"), "must be a saved training, but it holds no running"),
        (lambda c: c["fingerprint"].update(data="0"), "no training of other data,"),
        (lambda c: c["fingerprint"]["settings"].update(seed=4), "no training of other settings,"),
        (lambda c: c.update(fingerprint=[]), "other settings and other environments"),
        (lambda c: c["state"].pop("step"), "state of shapes"),
        (lambda c: c["state"].update(step=np.float32(3.0)), "state of shapes"),
        (lambda c: c["state"].update(params={}), "state of shapes"),
        (lambda c: c["state"].update(step=c["state"]["step"] * 0 + 99), "whole and finite training"),
        (lambda c: c.update(running={"cheap": float("nan")}), "whole and finite training"),
        (lambda c: c.update(history="long"), "whole and finite training"),
    ],
)
def test_other_trainings_are_refused_and_kept(short, tmp_path, edit, message):
    before = edited(short, tmp_path, edit)
    with pytest.raises(ValueError, match=message):
        small_training.train(tmp_path, FEW)
    assert os.listdir(tmp_path) == ["training.msgpack"]
    assert (tmp_path / "training.msgpack").read_bytes() == before


def test_digests_differ_for_any_change_of_the_data():
    frames = small_training.frames(3, 0)
    first = frames.frames[0]
    moved = first._replace(positions=first.positions + np.array([0.0, 0.0, 1e-12]))
    relabelled = first._replace(energy=first.energy + 1e-12)
    names = [digest(frames._replace(frames=(f, *frames.frames[1:]))) for f in (first, moved, relabelled)]
    names.append(digest(frames._replace(frames=frames.frames[::-1])))
    assert len(set(names)) == 4 and digest(small_training.frames(3, 0)) == names[0]
