import csv
import os

import ase.io
import jax
import numpy as np
import pytest
from ase.build import fcc111

from moe_md.reporters.trajectory import LastState, LogWriter, XYZWriter, drift
from moe_md.simulate import Frame, Log, State
from moe_md.simulate.integrators.nve import NVE


@pytest.fixture
def atoms():
    return fcc111("Pt", (2, 2, 2), a=3.97, vacuum=6.0)


def frame(atoms, step, box=None):
    rng = np.random.default_rng(step)
    position, velocity, force = rng.normal(size=(3, len(atoms), 3))
    return Frame(
        step=step,
        time_ps=1e-3 * step,
        potential=-3.5,
        kinetic=0.5,
        total=-3.0,
        conserved=-3.25,
        temperature_K=300.0,
        pressure_GPa=np.nan,
        volume=np.nan,
        momentum=1e-15,
        work=0.0,
        n_reallocations=0,
        position=position,
        velocity=velocity,
        force=force,
        box=box,
    )


def test_xyz_reads_back_in_ase(atoms, tmp_path):
    path = tmp_path / "trajectory.extxyz"
    expert = np.arange(8) % 2
    frames = [frame(atoms, step) for step in (0, 50, 100)]
    writer = XYZWriter(path, atoms.get_chemical_symbols(), atoms.cell, atoms.pbc, expert=expert)
    for k, each in enumerate(frames):
        writer(each)
        assert len(ase.io.read(path, ":")) == k + 1  # complete on disk after each call
    writer.close()
    for each, read in zip(frames, ase.io.read(path, ":")):
        np.testing.assert_allclose(read.positions, each.position, atol=1e-7)
        np.testing.assert_allclose(read.get_velocities(), each.velocity, atol=1e-7)
        np.testing.assert_allclose(read.get_forces(), each.force, atol=1e-7)
        np.testing.assert_array_equal(read.arrays["expert"], expert)
        np.testing.assert_allclose(read.cell.array, atoms.cell.array, atol=1e-7)
        assert read.get_potential_energy() == each.potential and (read.pbc == atoms.pbc).all()
        assert read.info["step"] == each.step and read.info["time_ps"] == each.time_ps

    writer = XYZWriter(path, ["Pt"] * 8, atoms.cell, atoms.pbc, forces=False, append=True)
    writer(frames[0])
    writer.close()
    last = ase.io.read(path, ":")[3]
    assert "forces" not in last.calc.results and "expert" not in last.arrays


def test_xyz_refuses_other_atoms(atoms, tmp_path):
    with pytest.raises(ValueError, match=r"expert must have shape \[8\], one per symbol, got \(3,\)"):
        XYZWriter(tmp_path / "x", ["Pt"] * 8, atoms.cell, True, expert=[0, 1, 1])
    writer = XYZWriter(tmp_path / "x", ["Pt"] * 3, atoms.cell, True)
    with pytest.raises(ValueError, match="symbols must name the 8 atoms of the frame, got 3"):
        writer(frame(atoms, 0))
    writer.close()


def test_log_is_csv_with_one_column_per_field(atoms, tmp_path):
    path = tmp_path / "log.csv"
    for start, append in ((0, False), (10, True)):
        writer = LogWriter(path, append=append)
        writer(frame(atoms, start))
        writer(frame(atoms, start + 5))
        writer.close()
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(Log._fields)
    assert [int(r["step"]) for r in rows] == [0, 5, 10, 15]
    assert all(float(r["total"]) == -3.0 for r in rows)


def test_xyz_follows_the_box(atoms, tmp_path):
    writer = XYZWriter(tmp_path / "x", atoms.get_chemical_symbols(), atoms.cell, atoms.pbc)
    columns = np.array([[5.0, 1.0, 0.5], [0.0, 6.0, 0.25], [0.0, 0.0, 7.0]])
    writer(frame(atoms, 0, columns))
    writer(frame(atoms, 1))
    writer.close()
    first, second = ase.io.read(tmp_path / "x", ":")
    np.testing.assert_allclose(first.cell.array, columns.T)
    np.testing.assert_allclose(first.get_scaled_positions(wrap=False), frame(atoms, 0).position, atol=1e-7)
    np.testing.assert_allclose(second.positions, frame(atoms, 1).position, atol=1e-7)
    np.testing.assert_allclose(second.cell.array, atoms.cell.array, atol=1e-7)


def written(kind, path, atoms, steps, **options):
    """A file of these frames."""
    if kind == "log":
        writer = LogWriter(path, **options)
    else:
        writer = XYZWriter(path, atoms.get_chemical_symbols(), atoms.cell, atoms.pbc, **options)
    for step in steps:
        writer(frame(atoms, step))
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["log", "xyz"])
def test_files_are_continued_after_a_kill(atoms, tmp_path, kind):
    """Cut off at any byte, a file is truncated and continued to the content of an uninterrupted run."""
    path = tmp_path / "file"
    until_10 = written(kind, path, atoms, (0, 5, 10))
    complete = written(kind, path, atoms, (0, 5, 10, 15, 20))
    assert complete.startswith(until_10)
    lengths = {
        *range(len(until_10), len(complete), 11),
        *range(len(until_10), len(until_10) + 12),
        *range(len(complete) - 12, len(complete) + 1),
    }
    for length in sorted(lengths):
        path.write_bytes(complete[:length])
        assert written(kind, path, atoms, (15, 20), append=True, until_step=12) == complete, length
    # Killed before the first frame: the file is empty or has half a header.
    for length in (0, 3):
        path.write_bytes(complete[:length])
        assert written(kind, path, atoms, (0, 5, 10), append=True, until_step=0) == until_10
    path.unlink()
    assert written(kind, path, atoms, (0, 5, 10), append=True, until_step=0) == until_10


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")
def test_full_disk(atoms):
    with pytest.raises(
        OSError,
        match="/dev/full cannot be written: No space left on device. The last restart file is complete",
    ):
        LogWriter("/dev/full")
    writer = XYZWriter("/dev/full", ["Pt"] * 8, atoms.cell, True)
    with pytest.raises(OSError, match="/dev/full cannot be written: No space left on device"):
        writer(frame(atoms, 0))
    writer.close()


def test_files_of_other_content_are_refused_and_kept(atoms, tmp_path):
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="until_step must be given with append=True, got until_step=5 alone"):
        LogWriter(path, until_step=5)
    for content in (b"step,energy\r\n0,1.0\r\n5,1.0\r\n", b"hello\nworld\n1\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="file must have the columns step,time_ps"):
            LogWriter(path, append=True, until_step=0)
        with pytest.raises(
            ValueError, match="file must have step=... in the comment line of each frame to be truncated"
        ):
            XYZWriter(path, ["Pt"], np.eye(3), True, append=True, until_step=0)
        assert path.read_bytes() == content


def test_last_state_is_written_on_failure(atoms, tmp_path):
    path = tmp_path / "last.npz"
    last_state = LastState(path)
    last_state(frame(atoms, 0))
    assert not path.exists()
    position = jax.numpy.asarray(atoms.positions)
    dynamics = NVE(1.0, None).init(position, 195.0 * position, np.full(8, 195.0), None, None)
    last_state.on_failure(State(dynamics, 40, 0.04))
    with np.load(path, allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["position"], atoms.positions)
        np.testing.assert_allclose(saved["velocity"], atoms.positions)
        assert saved["step"] == 40 and saved["time_ps"] == 0.04


def test_drift_of_correlated_noise():
    """The standard error is right where successive energies are correlated."""
    rng = np.random.default_rng(0)
    t = np.linspace(0.0, 5.0, 1000)
    z = []
    naive = []
    for _ in range(300):
        noise = np.zeros(len(t))
        kicks = rng.normal(size=len(t))
        for k in range(1, len(t)):
            noise[k] = 0.8 * noise[k - 1] + kicks[k]
        energy = -1e5 + 0.03 * t + 1e-3 * noise
        slope, error = drift(t, energy, n_atoms=100)
        z.append((slope - 0.3) / error)
        fit, covariance = np.polyfit(t, energy, 1, cov=True)
        naive.append((fit[0] - 0.03) / np.sqrt(covariance[0, 0]))
    # Student's t with 8 degrees of freedom has variance 4/3; blocks of 100 frames, correlation of 9.
    assert abs(np.mean(z)) < 4 * np.std(z) / np.sqrt(300)
    assert 1.0 < np.var(z) < 1.9
    assert np.var(naive) > 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.zeros(30), np.zeros(29), 1), "vectors of one length"),
        ((np.arange(30.0), np.full(30, np.nan), 1), "must be finite"),
        ((np.arange(30.0), np.zeros(30), 0), "n_atoms must be at least 1, got 0"),
        ((np.arange(19.0), np.zeros(19), 1), "at least 2 values per block, 20, got 19"),
    ],
)
def test_drift_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        drift(*arguments)
