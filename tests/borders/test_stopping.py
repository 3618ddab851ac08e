"""SIGTERM and limits of time: all is saved, and what goes on ends as if it had never stopped."""

import json
import signal
import threading
import time
from functools import partial
from typing import NamedTuple

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import as_options, failure, moe_md
from jax_md import space
from small_frames import cells

from moe_md import checkpoint, data, simulate
from moe_md.commands import bench
from moe_md.commands import run as run_module
from moe_md.files import LOCK
from moe_md.simulate import interrupts
from moe_md.training import cotrain


def run_options(folder, **more):
    chosen = {
        "checkpoint": folder / "model.msgpack",
        "structure": folder / "slab.extxyz",
        "region_lower": 9.0,
    }
    every = {"log_every": 5, "trajectory_every": 10, "restart_every": 20}
    return as_options(**chosen, ensemble="langevin", steps=30, **every, **more)


@pytest.fixture(scope="module")
def whole(request, folder):
    """Options and results of a run that was never stopped."""
    options = run_options(folder, trajectory_format=request.param)
    out = folder / f"whole_{request.param}"
    assert moe_md_quietly("run", *options, "--out", out) == 0
    return options, out


def moe_md_quietly(*arguments):
    from moe_md.commands import main as cli

    return cli.main([str(a) for a in arguments])


def files_of(folder):
    """What a run has written, step by step."""
    frames = {}
    if (folder / "trajectory.h5").exists():
        import h5py

        with h5py.File(folder / "trajectory.h5") as file:
            names = ("position/value", "velocity/value", "position/step")
            frames = {name: file[f"particles/all/{name}"][:].tobytes() for name in names}
    texts = [p for p in ("log.csv", "trajectory.extxyz", "final.extxyz") if (folder / p).exists()]
    return frames | {name: (folder / name).read_text() for name in texts}


@pytest.mark.parametrize("whole, step", [("extxyz", 0), ("h5md", 15)], indirect=["whole"])
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(whole, step, capsys, tmp_path, monkeypatch):
    """At steps without a restart file of their own."""
    options, finished = whole
    write_log = run_module.LogWriter.__call__

    def interrupted(writer, frame):
        write_log(writer, frame)
        if frame.step == step:
            signal.raise_signal(signal.SIGTERM)

    out = tmp_path / "a folder"
    with monkeypatch.context() as patch:
        patch.setattr(run_module.LogWriter, "__call__", interrupted)
        code, said, err = moe_md(capsys, "run", *options, "--out", out)
    assert code == 0, err
    last = said.splitlines()[-1]
    assert last.startswith(f"stopped by SIGTERM after step {step} of 30, which is saved. To go on, repeat:")
    assert last.endswith(f"--out '{out}'") and "moe-md run --checkpoint" in last
    assert not (out / "run.json").exists() and not (out / LOCK).exists()
    assert ase.io.read(out / "final.extxyz").info["step"] == step
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    code, said, err = moe_md(capsys, "run", *options, "--out", out)
    assert code == 0 and f"resuming the run in {out} at step {step}" in said, err
    assert files_of(out) == files_of(finished)


def test_a_run_ends_after_max_hours_and_says_so(folder, capsys, tmp_path):
    options = ("run", *run_options(folder), "--out", tmp_path / "out", "--json")
    code, said, err = moe_md(capsys, *options, "--max-hours", 1e-9)
    assert code == 0 and json.loads(said) == {"stopped": "max_hours = 1e-09", "step": 0, "steps": 30}, err
    assert "stopped by max_hours = 1e-09 after step 0 of 30" in err
    code, said, err = moe_md(capsys, *options, "--max-hours", 1)
    assert code == 0 and json.loads(said)["time_ps"] == pytest.approx(0.03), err
    assert "stopped" not in err
    for wrong in (0, -1, "nan"):
        assert "max_hours must be" in failure(capsys, *options, "--max-hours", wrong)


def test_a_relaxation_that_is_stopped_is_repeated(folder, capsys, tmp_path):
    """It has no restart file: neither may a run start from half of it."""
    atoms = ase.io.read(folder / "slab.extxyz")
    atoms.rattle(0.1, seed=0)
    atoms.write(tmp_path / "rattled.xyz", format="extxyz")
    options = ("run", *run_options(folder, relax_steps=200), "--structure", tmp_path / "rattled.xyz")
    options += ("--out", tmp_path / "out", "--max-hours", 1e-9)
    code, said, err = moe_md(capsys, *options)
    assert code == 0, err
    assert "stopped by max_hours = 1e-09 before the first step. To go on, repeat: moe-md run" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settings.toml"]


def test_a_training_that_is_stopped_ends_with_the_same_bits(folder, capsys, tmp_path, monkeypatch):
    ase.io.write(tmp_path / "a.xyz", [data.frame_to_atoms(f) for f in cells(8)], format="extxyz")
    options = ("train", *as_options(settings=folder / "train.toml", data=tmp_path / "a.xyz"), "--quiet")
    assert moe_md(capsys, *options, "--out", tmp_path / "whole")[0] == 0
    numbers = cotrain.hyperparameters

    def interrupted(settings, rates, step):
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return numbers(settings, rates, step)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(cotrain, "hyperparameters", interrupted)
        code, said, err = moe_md(capsys, *options, "--out", out)
    assert code == 0, err
    last = said.splitlines()[-1]
    assert last.startswith(
        "stopped by SIGTERM after step 2 of 4, which is saved. To go on, repeat: moe-md train"
    )
    assert checkpoint.load(out / "checkpoint.msgpack").record["stopped"] == "SIGTERM"
    code, said, err = moe_md(capsys, *options, "--out", out, "--max-hours", 1)
    assert code == 0 and "stopped by" not in said, err
    expected, found = (
        checkpoint.load(tmp_path / name / "checkpoint.msgpack") for name in ("whole", "stopped")
    )
    assert "stopped" not in found.record and found.record["step"] == 4
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_sigterm_elsewhere_closes_and_unlocks(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "run", lambda *_: signal.raise_signal(signal.SIGTERM))
    code, _, err = moe_md(capsys, "bench", "--out", tmp_path / "out")
    assert (code, err) == (143, "moe-md: terminated\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settings.toml"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_user_is_left_alone():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        with interrupts.stop_requests() as stop_fn:
            signal.raise_signal(signal.SIGTERM)
            assert received and stop_fn() == ""
    finally:
        signal.signal(signal.SIGTERM, before)


def test_time_counts_in_other_threads_too():
    found = []

    def ask():
        with simulate.stop_requests(max_hours=0.05 / 3600) as stop_fn:
            found.append(stop_fn())
            time.sleep(0.1)
            found.append(stop_fn())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == ["", f"max_hours = {0.05 / 3600:g}"]


# From Python ------------------------------------------------------------------


class NoList(NamedTuple):
    """Neighbours of an energy that needs none; a `neighbor_fn` too."""

    did_buffer_overflow: jax.Array

    def update(self, position, **kwargs):
        return self

    def allocate(self, position, **kwargs):
        return self


NONE = NoList(jnp.zeros((), bool))
CENTERS = np.arange(12.0).reshape(4, 3)


def wells(R, *, neighbor, params=None, region=None, perturbation=None):
    """Four anharmonic wells, eV."""
    square = jnp.sum((R - CENTERS) ** 2, axis=1)
    return jnp.sum(square + square**2)


def test_a_stopped_result_goes_on():
    nve = simulate.nve(space.free()[1], 1.0)
    start = simulate.start(nve, CENTERS + 0.1, masses=np.ones(4), temperature_K=100.0, key=jax.random.key(0))
    answers = iter(["", "", "enough"])
    run = partial(simulate.run, NONE, wells, nve, chunk_steps=5)
    first = run(start, n_steps=40, stop_fn=lambda: next(answers))
    assert (first.state.step, first.log.step.tolist()) == (10, [0, 5, 10])
    second = run(first.state, neighbors=first.neighbors, n_steps=30)
    expected = run(start, n_steps=40)
    np.testing.assert_array_equal(second.state.position, expected.state.position)
    assert second.log.step.tolist() == [15, 20, 25, 30, 35, 40]


def test_a_stopped_relaxation_has_not_converged():
    relax = partial(simulate.relax, NONE, wells, space.free()[1], CENTERS + 0.1, chunk_steps=1)
    relaxed = relax(stop_fn=lambda: "enough")
    assert (relaxed.converged, relaxed.n_steps) == (False, 1)
    assert relax().converged
