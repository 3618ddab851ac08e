"""A run that is killed, interrupted or out of disk space continues bit for bit.

As a program, this file is such a run: `test_resume.py FOLDER CASE N_STEPS [FILE_SIZE_LIMIT]`.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from jax_md import space

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import conftest  # noqa: F401  float64, and compiled programs cached between runs

import moe_md as mm
from moe_md import simulate
from moe_md.reporters.h5md import H5MDWriter
from moe_md.reporters.restart import Restart, load_restart
from moe_md.reporters.trajectory import LogWriter, XYZWriter

CHUNK = 4  # steps
FILES = ("log.csv", "trajectory.extxyz", "restart.msgpack")


def build(case):
    """Hot Cu and Pt, 108 atoms, two experts; list capacities are tight, so that some reallocate."""
    from trajectories import run_from  # a program has set the path

    atoms = bulk("Pt", a=3.97, cubic=True).repeat(3)
    atoms.symbols[::3] = "Cu"
    atoms.rattle(0.02, seed=0)
    box, fractional = np.diag(atoms.cell.array), case == "npt"
    make_space = space.periodic_general if fractional else space.periodic
    displacement_fn, shift_fn = make_space(jnp.asarray(box))
    species = ("Cu", "Pt")
    experts = [
        mm.experts.lennard_jones(species, c, epsilon=e, sigma=2.52) for c, e in ((4.6, 0.60), (4.2, 0.55))
    ]
    region = (
        mm.regions.slab(atoms.positions, lower=5.0) if case == "nve" else mm.regions.around([50], 3.0, 1.5)
    )
    integrator = {
        "nve": simulate.nve(shift_fn, 2.0),
        "langevin": simulate.langevin(shift_fn, 2.0, 900.0, 0.02),
        "npt": simulate.npt(shift_fn, 2.0, 900.0, 1.0),
    }[case]
    fns = mm.mixture_neighbor_list(
        displacement_fn,
        box,
        mm.experts.potentials(experts, [e.init(None) for e in experts]),
        np.array([species.index(s) for s in atoms.symbols]),
        region,
        capacity_multiplier=1.1,
        fractional_coordinates=fractional,
    )
    begin = dict(masses=atoms.get_masses(), temperature_K=900.0, key=jax.random.key(0))
    if fractional:
        begin |= dict(position=jnp.asarray(atoms.get_scaled_positions()), box=box)
    else:
        begin |= dict(position=jnp.asarray(atoms.positions))
    return atoms, begin, partial(run_from, *fns, integrator, chunk_steps=CHUNK)


def restored(folder, case):
    """State and neighbours of the restart file."""
    _, begin, run = build(case)
    like = run(n_steps=0, **begin)
    return load_restart(folder / "restart.msgpack", like.state, like.neighbors, {"case": case})


def main(folder, case, n_steps, *more_reporters):
    """Start the run, or continue it from its restart file."""
    atoms, begin, run = build(case)
    cut = {}
    if (folder / "restart.msgpack").exists():
        state, neighbors = restored(folder, case)
        cut = dict(append=True, until_step=state.step)
        begin, n_steps = dict(state=state, neighbors=neighbors), n_steps - state.step
    system = (atoms.get_chemical_symbols(), atoms.cell.array, True)
    reporters = [
        LogWriter(folder / "log.csv", **cut),
        XYZWriter(folder / "trajectory.extxyz", *system, **cut),
        H5MDWriter(folder / "trajectory.h5md", *system, **cut),
        Restart(folder / "restart.msgpack", every=3, fingerprint={"case": case}),
    ]
    try:
        run(n_steps=n_steps, reporters=[*reporters, *more_reporters], **begin)
    finally:
        for reporter in reporters:
            reporter.close()


def start(folder, case, n_steps, *limit):
    program = [sys.executable, __file__, str(folder), case, str(n_steps), *map(str, limit)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, code=0):
    _, error = process.communicate(timeout=300)
    assert process.returncode == code, error
    return error


def rows_in(folder):
    log = folder / "log.csv"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for_rows(folder, n, process):
    while rows_in(folder) < n and process.poll() is None:
        time.sleep(0.001)
    assert process.poll() is None, process.communicate()[1]


def h5_content(path):
    with h5py.File(path, "r") as file:
        found = {}
        file.visititems(lambda name, x: found.update({name: x[()]}) if isinstance(x, h5py.Dataset) else None)
    return found


def assert_same(folder, uninterrupted):
    for name in FILES:
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    found, expected = h5_content(folder / "trajectory.h5md"), h5_content(uninterrupted / "trajectory.h5md")
    assert found.keys() == expected.keys() and "particles/all/force/value" in expected
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert not list(folder.glob(".*"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A function that returns the folder of an uninterrupted run."""
    folders = {}

    def folder_of(case, n_steps):
        if (case, n_steps) not in folders:
            folder = folders[case, n_steps] = tmp_path_factory.mktemp(case)
            finish(start(folder, case, n_steps))
        return folders[case, n_steps]

    return folder_of


def kill_and_resume(folder, case, n_steps, kills, seed):
    """The number of kills after the first step; the others came while the program started."""
    rng = random.Random(seed)
    inside = 0
    n_rows = n_steps // CHUNK + 2
    while kills:
        before = rows_in(folder)
        process = start(folder, case, n_steps)
        if inside and rng.random() < 0.2:
            time.sleep(rng.uniform(0.0, 4.0))
        else:
            # At a random frame that leaves room for the remaining kills, then at a random time in a chunk.
            ahead = (n_rows - before - 10) / (kills + 1)
            wait_for_rows(folder, before + 1 + rng.randint(0, max(0, int(ahead))), process)
            time.sleep(rng.uniform(0.0, 0.02))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
        inside += rows_in(folder) > before
        kills -= 1
    finish(start(folder, case, n_steps))
    return inside


@pytest.mark.parametrize(
    "case, n_steps, kills",
    [
        ("langevin", 400, 1),
        pytest.param("langevin", 400, 3, marks=pytest.mark.thorough),
        pytest.param("langevin", 2400, 20, marks=pytest.mark.slow),
        pytest.param("nve", 2400, 20, marks=pytest.mark.slow),
        pytest.param("npt", 2400, 20, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_continues_bit_for_bit(tmp_path, uninterrupted, case, n_steps, kills):
    reference = uninterrupted(case, n_steps)
    inside = kill_and_resume(tmp_path, case, n_steps, kills, seed=kills)
    assert inside >= 0.6 * kills
    assert_same(tmp_path, reference)
    log = np.genfromtxt(reference / "log.csv", delimiter=",", names=True)
    assert log["step"][-1] == n_steps and (case != "langevin" or log["n_reallocations"][-1] > 0)
    assert len(np.unique(log["potential"])) == len(log)


def test_interrupt_keeps_the_last_chunk(tmp_path, uninterrupted):
    def press_ctrl_c(frame):
        if frame.step == 41 * CHUNK:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)

    with pytest.raises(KeyboardInterrupt):
        main(tmp_path, "langevin", 400, press_ctrl_c)
    state, _ = restored(tmp_path, "langevin")
    # The interrupted chunk was not yet reported to all reporters; 40 is no multiple of `every`.
    assert state.step == 40 * CHUNK and rows_in(tmp_path) == 43
    main(tmp_path, "langevin", 400)
    assert_same(tmp_path, uninterrupted("langevin", 400))


@pytest.mark.thorough
def test_full_disk(tmp_path, uninterrupted):
    """File sizes are limited; the H5MD file reaches the limit first."""
    error = finish(start(tmp_path, "langevin", 400, 1_200_000), 1)
    assert 10 < rows_in(tmp_path) < 90
    assert "trajectory.h5md cannot be written: File too large" in error.splitlines()[-1] and "resume" in error
    finish(start(tmp_path, "langevin", 400))
    assert_same(tmp_path, uninterrupted("langevin", 400))


if __name__ == "__main__":
    if len(sys.argv) > 4:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
