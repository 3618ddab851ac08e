"""The structure and the region of `moe-md run`: boxes, copies, selections, and refused input."""

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
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
