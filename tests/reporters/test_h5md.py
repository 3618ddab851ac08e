import os
import random
import resource
import signal
import time

import ase.io
import ase.units
import h5py
import numpy as np
import pytest
from ase.build import fcc111

from moe_md import units
from moe_md.reporters.h5md import H5MDWriter
from moe_md.reporters.trajectory import XYZWriter
from moe_md.simulate import Frame

COLUMNS = np.array([[9.0, 1.0, 0.5], [0.0, 8.0, 0.25], [0.0, 0.0, 17.0]])


def frame(step, n_atoms=8, box=None, dtype=float):
    position, velocity, force = np.random.default_rng(step).normal(size=(3, n_atoms, 3)).astype(dtype)
    scalars = dict(
        volume=np.nan,
        potential=-3.5,
        kinetic=0.5,
        total=-3.0,
        conserved=-3.25,
        temperature_K=300.0,
        pressure_GPa=np.nan,
    )
    arrays = dict(position=position, velocity=velocity, force=force, box=box)
    return Frame(
        step=step, time_ps=1e-3 * step, momentum=0.0, work=0.0, n_reallocations=0, **scalars, **arrays
    )


@pytest.fixture
def atoms():
    atoms = fcc111("Pt", (2, 2, 2), a=3.97, vacuum=6.0)
    atoms.symbols[3] = "Cu"
    return atoms


def writer(path, atoms, **options):
    return H5MDWriter(path, atoms.get_chemical_symbols(), atoms.cell, atoms.pbc, **options)


def test_layout_follows_the_specification(atoms, tmp_path):
    """Specification 1.1, with plain h5py."""
    out = writer(tmp_path / "t.h5", atoms, expert=np.arange(8) % 2, author="A. Uthor")
    for step in (0, 10):
        out(frame(step))
    out.close()
    with h5py.File(tmp_path / "t.h5") as file:
        np.testing.assert_array_equal(file["h5md"].attrs["version"], [1, 1])
        assert (
            file["h5md/author"].attrs["name"] == "A. Uthor" and file["h5md/creator"].attrs["name"] == "moe_md"
        )
        assert file["h5md/creator"].attrs["version"]
        particles = file["particles/all"]
        assert particles["box"].attrs["dimension"] == 3
        assert list(particles["box"].attrs["boundary"]) == ["periodic", "periodic", "none"]
        assert h5py.check_enum_dtype(particles["species"].dtype) == {"Cu": 29, "Pt": 78}
        np.testing.assert_array_equal(particles["species"], atoms.numbers)
        np.testing.assert_allclose(particles["mass"], atoms.get_masses())
        np.testing.assert_array_equal(particles["expert"], np.arange(8) % 2)
        elements = {
            **{
                f"particles/all/{name}": unit
                for name, unit in (("position", "Angstrom"), ("velocity", "Angstrom ps-1"))
            },
            "particles/all/force": "kJ mol-1 Angstrom-1",
            "particles/all/box/edges": "Angstrom",
            **{f"observables/{name}_energy": "eV" for name in ("potential", "kinetic", "total", "conserved")},
            "observables/temperature": "K",
            "observables/pressure": "GPa",
        }
        for name, unit in elements.items():
            assert file[name]["value"].attrs["unit"] == unit and len(file[name]["value"]) == 2
            assert file[name]["time"].attrs["unit"] == "ps"
            np.testing.assert_array_equal(file[name]["step"], [0, 10])
            np.testing.assert_allclose(file[name]["time"], [0.0, 0.01])
        assert file["observables/conserved_energy/value"][1] == -3.25 and np.isnan(
            file["observables/pressure/value"][0]
        )


def test_values_equal_those_of_extended_xyz(atoms, tmp_path):
    writers = [
        writer(tmp_path / "t.h5", atoms),
        XYZWriter(tmp_path / "t.xyz", atoms.get_chemical_symbols(), atoms.cell, atoms.pbc),
    ]
    for step, box in ((0, None), (5, COLUMNS)):
        for write in writers:
            write(frame(step, box=box))
    for write in writers:
        write.close()
    with h5py.File(tmp_path / "t.h5") as file:

        def read(name, k):
            return file[f"particles/all/{name}/value"][k]

        for k, xyz in enumerate(ase.io.read(tmp_path / "t.xyz", ":")):
            np.testing.assert_allclose(read("position", k), xyz.positions, atol=1e-7)
            expected = frame(5 * k).position @ COLUMNS.T if k else frame(0).position
            np.testing.assert_allclose(read("position", k), expected, rtol=1e-12)
            np.testing.assert_allclose(read("box/edges", k), xyz.cell.array, atol=1e-7)
            per_ps = xyz.get_velocities() * 1000 * ase.units.fs
            np.testing.assert_allclose(read("velocity", k), per_ps, atol=1e-4)
            np.testing.assert_allclose(
                read("force", k) * ase.units.kJ / ase.units.mol, xyz.get_forces(), atol=1e-7
            )
            assert file["observables/potential_energy/value"][k] == xyz.get_potential_energy()
            assert file["particles/all/position/step"][k] == xyz.info["step"]
    assert units.ps == pytest.approx(98.2269, rel=1e-5)


def test_appends_and_drops_later_frames(atoms, tmp_path):
    path = tmp_path / "t.h5"
    for steps, options in (
        ((0, 5, 10), {}),
        ((15, 20), dict(append=True)),
        ((10, 15, 20), dict(append=True, until_step=7)),
    ):
        out = writer(path, atoms, dtype=np.float32, compression="gzip", **options)
        for step in steps:
            out(frame(step, dtype=np.float32))
        out.close()
    assert list(tmp_path.iterdir()) == [path]
    with h5py.File(path) as file:
        assert (
            file["particles/all/position/value"].dtype == np.float32
            and file["particles/all/position/value"].compression
        )
        np.testing.assert_array_equal(file["observables/temperature/step"], [0, 5, 10, 15, 20])
        for k in range(5):
            np.testing.assert_array_equal(
                file["particles/all/position/value"][k], frame(5 * k, dtype=np.float32).position
            )
        assert len(file["observables/temperature/value"]) == 5


def test_other_files_are_refused_and_kept(atoms, tmp_path):
    path = tmp_path / "t.h5"
    writer(path, atoms, forces=False).close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match="t.h5 must contain particles/all/velocity/value, .* to append to"):
        writer(path, atoms, append=True)
    atoms.symbols[0] = "Au"
    with pytest.raises(
        ValueError, match="t.h5 must have the same particles/all/species as the run that is appended"
    ):
        writer(path, atoms, append=True, forces=False)
    assert path.read_bytes() == before
    path.write_bytes(before[:1000])
    with pytest.raises(
        ValueError, match="t.h5 must be an H5MD trajectory to append to, but it cannot be read"
    ):
        writer(path, atoms, append=True)
    with pytest.raises(ValueError, match="until_step must be given with append=True"):
        writer(path, atoms, until_step=3)
    with pytest.raises(ValueError, match=r"expert must have shape \[8\]"):
        writer(path, atoms, expert=[0, 1])
    assert path.read_bytes() == before[:1000] and list(tmp_path.iterdir()) == [path]
    out = writer(path, atoms)
    with pytest.raises(ValueError, match="symbols must name the 3 atoms of the frame, got 8"):
        out(frame(0, 3))
    out.close()
    with pytest.raises(OSError, match="nowhere/t.h5 cannot be written: No such file or directory"):
        writer(tmp_path / "nowhere" / "t.h5", atoms)


def in_child(function):
    """Process id of a fork that runs a function, which must not use JAX."""
    child = os.fork()
    if child:
        return child
    try:
        function()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_kill_leaves_complete_frames(tmp_path):
    """SIGKILL while frames are written without pause; the file is appended to each time."""
    path, written, n_atoms, rng = tmp_path / "t.h5", tmp_path / "written", 2000, random.Random(0)
    frames = [frame(k, n_atoms) for k in range(7)]

    def write_frames():
        last = int(written.read_text()) if written.exists() else None
        options = {} if last is None else dict(append=True, until_step=last)
        out = H5MDWriter(path, ["Pt"] * n_atoms, [9.0, 9.0, 9.0], True, **options)
        for k in range(0 if last is None else last + 1, 100_000):
            out(frames[k % 7]._replace(step=k))
            (tmp_path / "new").write_text(str(k))
            os.replace(tmp_path / "new", written)

    for _ in range(12):
        target = (int(written.read_text()) if written.exists() else 0) + rng.randint(1, 6)
        child = in_child(write_frames)
        while not written.exists() or int(written.read_text()) < target:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.01))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        last = int(written.read_text())
        with h5py.File(path, "r", swmr=True) as file:
            steps = file["particles/all/position/step"][:]
            np.testing.assert_array_equal(steps[: last + 1], np.arange(last + 1))
            for k in (0, last // 2, last):
                np.testing.assert_array_equal(file["particles/all/position/value"][k], frames[k % 7].position)
    with pytest.raises(OSError):  # readers without SWMR refuse a file that is marked as open for writing
        h5py.File(path)
    H5MDWriter(path, ["Pt"] * n_atoms, [9.0, 9.0, 9.0], True, append=True).close()
    with h5py.File(path) as file:
        assert len(file["particles/all/position/step"]) >= last + 1
    assert path.stat().st_size < 1.1 * (last + 2) * n_atoms * 9 * 8 + 2**16  # reserved space is released


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_full_disk(tmp_path):
    """HDF5 crashes when a write fails; the writer raises before that and keeps earlier frames."""
    path, reported = tmp_path / "t.h5", tmp_path / "reported"

    def fill(limit, append):
        """Status of a process that writes until its files may not grow further."""

        def until_full():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            out, n = None, 0
            try:
                out = H5MDWriter(path, ["Pt"] * 8, [9.0, 9.0, 9.0], True, append=append)
                while True:
                    out(frame(n))
                    n += 1
            except OSError as error:
                reported.write_text(f"{n} {error}")
            if out is not None:
                out.close()

        return os.waitpid(in_child(until_full), 0)[1]

    assert fill(2**20 + 150_000, False) == 0
    n, message = reported.read_text().split(maxsplit=1)
    assert (
        f"{path} cannot be written: File too large. The last restart file is complete: free" in message
        and int(n) > 10
    )
    with h5py.File(path) as file:
        assert len(file["particles/all/position/step"]) == int(n)
    before_appending = path.read_bytes()
    for limit in (10_000, 2**20, 2**20 + 20_000, 2**20 + 60_000):  # at its beginning, while copying
        reported.unlink()
        assert fill(limit, True) == 0
        assert "0 [Errno 27]" in reported.read_text() and path.read_bytes() == before_appending
        assert sorted(tmp_path.iterdir()) == [reported, path]
    out = H5MDWriter(path, ["Pt"] * 8, [9.0, 9.0, 9.0], True, append=True)
    out(frame(int(n)))
    out.close()
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["particles/all/position/step"], np.arange(int(n) + 1))
