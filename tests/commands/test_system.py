"""The structure and the region of `moe-md run`: boxes, copies, selections, and refused input."""

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from command_line import failure, moe_md

from moe_md.commands import system


def test_open_directions_get_vacuum():
    atoms = fcc111("Pt", (4, 4, 2), a=3.92, vacuum=0.5)
    boxed = system.periodic_box(atoms, 5.0)
    assert boxed.pbc.all() and boxed.cell[2, 2] >= 2 * 5.0 + 1
    np.testing.assert_array_equal(boxed.positions, atoms.positions)  # they fit into the box
    molecule = Atoms("CO", [[-4.0, 0, 0], [-4.0, 0, 1.15]])
    boxed = system.periodic_box(molecule, 5.0)
    scaled = boxed.get_scaled_positions(wrap=False)
    assert (scaled >= 0).all() and (scaled < 1).all()
    assert boxed.get_distance(0, 1) == pytest.approx(1.15) and (boxed.cell.lengths() >= 11).all()


@pytest.mark.parametrize(
    "options, f, message",
    [
        (("--region-tags", "1, 2"), 0.5, None),
        (("--region-layers", 1), 0.25, None),
        (("--region-tags", "7"), None, "tags must be tags of the atoms"),
        (("--region-tags", "top"), None, "region_tags must be whole numbers with commas between, got 'top'"),
        (("--region-layers", 9), None, "n_layers must be at most the 4 layers"),
        (
            ("--region-layers", 1, "--region-around", "Pt"),
            None,
            "a region must be chosen in one way, got region_around and region_layers",
        ),
    ],
)
def test_regions_by_tag_and_by_layer(folder, capsys, tmp_path, options, f, message):
    done = moe_md(
        capsys,
        "run",
        "--checkpoint",
        folder / "model.msgpack",
        "--structure",
        folder / "slab.extxyz",
        "--steps",
        0,
        *options,
        "--json",
        "--out",
        tmp_path,
    )
    if message:
        assert done[0] == 2 and message in done[2]
    else:
        assert done[0] == 0 and json.loads(done[1])["f"] == f


@pytest.fixture(scope="module")
def hole(tmp_path_factory):
    """A platinum crystal without one atom, which had 12 neighbours at 2.77 Å; and a molecule on it."""
    atoms = bulk("Pt", a=3.92, cubic=True).repeat(3)
    atoms.rattle(0.02, seed=0)
    del atoms[40]
    path = tmp_path_factory.mktemp("hole") / "hole.extxyz"
    atoms.write(path)
    return path


@pytest.mark.parametrize(
    "options, f, message",
    [
        (("--region-indices", "0,4-6", "--region-core", 0.5, "--region-blend", 1.0), 4 / 107, None),
        (("--region-indices", "106", "--region-core", 0.5, "--region-blend", 1.0), 1 / 107, None),
        (("--region-indices", "213", "--region-core", 0.5, "--repeat", "2,1,1"), 1 / 214, None),
        (
            ("--region-indices", "107"),
            None,
            "after repeat, 0 to 106, the lower end of a range first, got 107",
        ),
        (("--region-indices", "6-4"), None, "the lower end of a range first, got 6-4"),
        (("--region-indices", "1,a"), None, "must be atoms or ranges of them with commas between, got '1,a'"),
        (("--region-indices=-1",), None, "region_indices must be atoms or ranges"),
        (("--region-coordination", "10.5,11.8", "--region-core", 0.5, "--region-blend", 1.0), 12 / 107, None),
        (
            ("--region-coordination", "10.5,11.8,3.0,3.7", "--region-core", 0.5, "--region-blend", 1.0),
            12 / 107,
            None,
        ),
        (("--region-coordination", "2,3"), 0.0, None),
        (
            ("--region-coordination", "12"),
            None,
            "region_coordination must be LOW,HIGH or LOW,HIGH,R_FULL,R_NONE",
        ),
        (("--region-coordination", "few"), None, "such as 10,11.5 or 10,11.5,3.2,3.8"),
        (
            ("--region-coordination", "12,11"),
            None,
            "must have LOW below HIGH, and R_FULL below R_NONE up to 4 Å",
        ),
        (("--region-coordination", "9,11,3,5"), None, "R_FULL below R_NONE up to 4 Å"),
        (
            ("--region-indices", "1", "--region-coordination", "9,11"),
            None,
            "chosen in one way, got region_indices and region_coordination: keep one of them",
        ),
        (("--region-unfamiliar", "0.9,0.6"), None, "LOW,HIGH, two numbers from 0 on, LOW below HIGH"),
        (("--region-unfamiliar", "0.9"), None, "write for example 0.6,0.9"),
        (("--region-unfamiliar", "0.6,0.9"), None, "a domain of species alone"),
        (("--region-around", "C"), None, "With region_missing = cheap species may be absent"),
        (("--region-around", "C", "--region-missing", "cheap"), 0.0, None),
        (("--region-around", "Xx", "--region-missing", "cheap"), None, "'Xx' is not among Pt"),
        (("--region-lower", 99, "--region-missing", "cheap"), 0.0, None),
        (("--region-tags", 7, "--region-missing", "cheap"), 0.0, None),
        (("--region-missing", "none"), None, "region_missing must be one of"),
    ],
)
def test_regions_that_follow_atoms(folder, hole, capsys, tmp_path, options, f, message):
    model = ("--checkpoint", folder / "model.msgpack", "--structure", hole)
    steps = 10 if "--region-core" in options and f and "--repeat" not in options else 0
    done = moe_md(capsys, "run", *model, "--steps", steps, *options, "--json", "--out", tmp_path)
    if message:
        assert done[0] == 2 and message in done[2]
    else:
        assert done[0] == 0, done[2]
        assert json.loads(done[1])["f"] == pytest.approx(f)


def test_a_run_with_a_grown_region_resumes(folder, hole, capsys, tmp_path):
    """Lists whose centres change are in the restart file."""
    options = ("--checkpoint", folder / "model.msgpack", "--structure", hole, "--restart-every", 10)
    options += ("--region-coordination", "10.5,11.8", "--region-core", 2.0, "--region-blend", 1.0)
    totals = {}
    for name, parts in (("whole", (20,)), ("parts", (10, 20))):
        for steps in parts:
            code, out, err = moe_md(capsys, "run", *options, "--steps", steps, "--out", tmp_path / name)
            assert code == 0, err
        log = np.genfromtxt(tmp_path / name / "log.csv", delimiter=",", names=True)
        totals[name] = log["total"]
        assert "a neighbour counts fully up to 3" in out and "have 12 neighbours or more" in out
    np.testing.assert_array_equal(totals["whole"], totals["parts"])


@pytest.mark.parametrize(
    "options, kind", [(("--region-indices", "3,7"), "around"), (("--region-coordination", "9,11"), "grown")]
)
def test_regions_that_follow_atoms_are_exported(folder, hole, capsys, tmp_path, options, kind):
    code, _, err = moe_md(
        capsys,
        "export",
        "lammps",
        "--checkpoint",
        folder / "model.msgpack",
        "--structure",
        hole,
        *options,
        "--out",
        tmp_path,
    )
    assert code == 0, err
    written = json.loads((tmp_path / "region.json").read_text())
    assert written["kind"] == kind and written["r_core"] == 6.0


@pytest.mark.parametrize(
    "name, n, between",
    [("Cu", 12, (1.0, 1.414)), ("Mo", 14, (1.155, 1.633)), ("Si", 4, (1.0, 1.633)), ("Mg", 12, (1.0, 1.414))],
)
def test_the_distance_between_shells(name, n, between):
    """In units of the distance to the nearest neighbour; also where atoms vibrate."""
    atoms = bulk(name)
    spacing = atoms.repeat(2).get_distances(0, range(1, 8 * len(atoms)), mic=True).min()
    for crystal in (atoms, atoms.repeat(4)):
        crystal.rattle(0.1 if len(crystal) > 4 else 0.0, seed=1)
        full, none, usual = system.first_shell(crystal, 6.0)
        assert between[0] * spacing < full < none < between[1] * spacing and usual == n
    with pytest.raises(ValueError, match="write LOW,HIGH,R_FULL,R_NONE"):
        system.first_shell(Atoms("Cu"), 6.0)


def test_copies_of_a_small_structure(folder, capsys, tmp_path):
    """Twice the cell gives twice the energy; velocities are not copied but drawn again."""
    atoms = ase.io.read(folder / "slab.extxyz")
    atoms.set_momenta(np.ones((len(atoms), 3)))
    atoms.write(tmp_path / "moving.extxyz")
    potential, kinetic = {}, {}
    for repeat in ("1,1,1", "1,2,1"):
        options = (
            "--structure",
            tmp_path / "moving.extxyz",
            "--region-layers",
            2,
            "--steps",
            0,
            "--repeat",
            repeat,
        )
        code, out, err = moe_md(
            capsys,
            "run",
            "--checkpoint",
            folder / "model.msgpack",
            *options,
            "--json",
            "--out",
            tmp_path / repeat,
        )
        assert code == 0, err
        log = np.genfromtxt(tmp_path / repeat / "log.csv", delimiter=",", names=True)
        potential[repeat], kinetic[repeat] = float(log["potential"]), float(log["kinetic"])
        assert json.loads(out)["n_atoms"] == len(atoms) * (2 if repeat == "1,2,1" else 1)
    assert potential["1,2,1"] == pytest.approx(2 * potential["1,1,1"], rel=1e-10)
    assert kinetic["1,2,1"] != pytest.approx(2 * kinetic["1,1,1"], rel=1e-3)
    for wrong in ("2,2", "0,1,1", "a,1,1"):
        assert "repeat must be" in failure(capsys, "run", *options[:-1], wrong, "--out", tmp_path / "none")


def test_regions(folder, capsys, tmp_path):
    options = (
        "run",
        "--checkpoint",
        folder / "model.msgpack",
        "--structure",
        folder / "slab.extxyz",
        "--out",
        tmp_path,
    )
    assert "region_lower or region_upper" in failure(capsys, *options)
    assert "slab must select at least one atom" in failure(capsys, *options, "--region-lower", 900)
    assert "ensemble must be one of" in failure(capsys, *options, "--region-lower", 9, "--ensemble", "nvt")
    assert (
        "a region must be chosen in one way, got region_lower or region_upper and region_around"
        in failure(capsys, *options, "--region-lower", 9, "--region-around", "C")
    )
    assert "region_around must name species of the structure, got 'O'" in failure(
        capsys, *options, "--region-around", "O"
    )
    assert "restart_every a multiple of it, got 10 and 15" in failure(capsys, *options, "--restart-every", 15)
    assert "timestep_fs must be positive" in failure(
        capsys, *options, "--region-lower", 9, "--timestep-fs", 0
    )


def test_box_too_small(folder, capsys, tmp_path):
    fcc111("Pt", (2, 2, 4), a=3.92, vacuum=6.0, orthogonal=True).write(tmp_path / "small.extxyz")
    model = ("--checkpoint", folder / "model.msgpack")
    err = failure(
        capsys,
        "run",
        *model,
        "--structure",
        tmp_path / "small.extxyz",
        "--region-lower",
        9,
        "--out",
        tmp_path,
    )
    assert "twice the cutoff" in err


def test_a_region_of_unfamiliar_atoms_finds_a_vacancy(capsys, tmp_path):
    """With a packaged pair that has a domain; the crystal selects nothing."""
    crystal = bulk("Si", cubic=True, a=5.469) * 3
    for name, atoms, low, high in (("crystal", crystal, 0, 0), ("vacancy", crystal[1:], 4, 20)):
        ase.io.write(tmp_path / "si.xyz", atoms, format="extxyz")
        options = (
            "--region-unfamiliar",
            "0.6,0.9",
            "--region-core",
            1.0,
            "--region-blend",
            1.0,
            "--steps",
            0,
        )
        code, out, err = moe_md(
            capsys, "run", "--checkpoint", "si", "--structure", tmp_path / "si.xyz", *options, "--json",
            "--out", tmp_path / name,
        )  # fmt: skip
        assert code == 0, err
        assert low <= round(json.loads(out)["f"] * len(atoms)) <= high
