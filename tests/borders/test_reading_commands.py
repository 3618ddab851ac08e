"""Commands on files of frames and structures: counted labels, refused input, nothing wrong accepted."""

import json
import re

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from command_line import as_options, failure, moe_md
from small_frames import cells, pair_of, write

from moe_md.data import dataset_from_frames, read_structure
from moe_md.settings import EnvironmentSettings, TrainSettings
from moe_md.training import cotrain

CELL = "5.1 0 0 0.2 5.2 0 0 0 5.3"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A file of 12 frames whose energies have two names."""
    path = tmp_path_factory.mktemp("labelled") / "frames.xyz"
    images = []
    for k, frame in enumerate(cells(12)):
        atoms = Atoms(frame.symbols, frame.positions, cell=frame.cell, pbc=True)
        atoms.info[("energy_dft", "energy")[k in (3, 8)]] = frame.energy
        atoms.arrays["forces_dft"] = frame.forces
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")
    return path


def test_labels_are_counted_before_the_first_step(folder, labelled, capsys, tmp_path):
    options = as_options(
        data=labelled, forces_key="forces_dft", settings=folder / "train.toml", validation_fraction=0.3
    )
    code, said, err = moe_md(capsys, "train", *options, "--out", tmp_path, "--quiet")
    assert code == 0, err
    record = json.loads((tmp_path / "record.json").read_text())
    for part in ("train", "validation"):
        assert f"{record[part]['energy']} energies, {record[part]['forces']} forces, 0 stresses" in said
    assert record["train"]["energy"] + record["validation"]["energy"] == 2
    assert "2 of 12 frames have energy; not read, though its name looks like it: energy_dft in 10" in err
    assert "energy_key" in err
    options = as_options(
        data=labelled, energy_key="ENERGY_DFT", forces_key="FORCES_dft", settings=folder / "train.toml"
    )
    code, said, err = moe_md(
        capsys, "train", *options, "--validation-fraction", 0, "--out", tmp_path / "b", "--quiet"
    )
    assert code == 0 and "10 energies, 12 forces" in said, err


@pytest.mark.parametrize(
    "allowed, change, message",
    [
        (("Au",), {}, r"\[cheap\] must allow atoms of the data, got Au"),
        (("Pt",), {"patience": 2}, "validation must have labels where patience is set, here 2"),
    ],
)
def test_trainings_that_would_learn_nothing(allowed, change, message):
    frames = cells(5)
    bare = [f._replace(energy=None, forces=None) for f in frames[3:]]
    train, validation = (dataset_from_frames(f, ("Pt", "Au")) for f in (frames[:3], bare))
    settings = TrainSettings(steps=1, max_atoms=8, **change)
    with pytest.raises(ValueError, match=message):
        cotrain.cotrain(
            pair_of(("Pt", "Au"), allowed),
            train,
            settings,
            environments=EnvironmentSettings(environment_rows=0, perfect_rows=0),
            validation=validation,
            progress=False,
        )


def test_settings_and_references_of_another_metal(capsys, tmp_path):
    """Species, domain and reference follow from the frames; slabs alone have no reference."""
    images = [bulk("Cu", a=3.6 + 0.01 * k, cubic=True) for k in range(3)]
    for k, atoms in enumerate(images):
        atoms.info["energy"] = -14.0 + k
        atoms.arrays["forces"] = np.full((4, 3), 0.1 * k)
    ase.io.write(tmp_path / "cu.xyz", images, format="extxyz")
    code, said, err = moe_md(capsys, "init", tmp_path / "cu.toml", "--data", tmp_path / "cu.xyz")
    assert code == 0, err
    text = (tmp_path / "cu.toml").read_text()
    assert (
        'references = "data"' in text and 'allowed_species = ["Cu"]' in text and "region_layers = 3" in text
    )
    assert "cutoff 5 Å, 42 neighbours of an atom on average" in said
    assert "reference: Cu, Fm-3m (225), 1 atom in 11.66 Å^3 (frame 0 of cu.xyz)" in said
    assert "Pt" not in text.partition("[run]")[0]
    slab = fcc111("Cu", (1, 1, 4), vacuum=6.0)
    slab.info["energy"], slab.arrays["forces"] = -14.0, np.full((4, 3), 0.1)
    ase.io.write(tmp_path / "slabs.xyz", slab, format="extxyz")
    options = ("train", "--data", tmp_path / "slabs.xyz", "--out", tmp_path / "out", "--quiet")
    options += ("--validation-fraction", 0)
    err = failure(capsys, *options)
    assert "references must be at least one structure of Cu" in err and 'references = "bulk.cif"' in err
    err = failure(capsys, *options, "--references", tmp_path / "no.cif")
    assert "structure must be an existing file" in err and "no.cif" in err
    code, said, _ = moe_md(capsys, "init", tmp_path / "slabs.toml", "--data", tmp_path / "slabs.xyz")
    assert code == 0 and "the frames hold no perfect crystal" in said
    assert "environment_rows = 0" in (tmp_path / "slabs.toml").read_text()


CIF = """data_x
_cell_length_a 9
_cell_length_b 9
_cell_length_c 9
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Pt1 Pt 0.0 0.0 0.0 1.0
C1 C 0.0 0.0 0.21 {}
C2 C 0.0 0.0 {}
"""
SLAB = '3\nlattice="9 0 0 0 9 0 0 0 9" pbc={}\nPt 0 0 0\nPt 2.7 0 0\nC 0 0 {}\n'


@pytest.mark.parametrize(
    "name, text, named",
    [
        ("a.cif", CIF.format("0.6", "0.24 0.4"), "occupied in part in .*a.cif, such as {'C': 0.6}"),
        ("a.cif", CIF.format("?", "0.5 1.0"), "occupied in part"),
        ("a.extxyz", SLAB.format("TTX", "1.9"), "pbc of frame 0 .*a.extxyz .* got 'TTX'"),
        ("a.extxyz", SLAB.format("TTF", "0.0"), "a.extxyz: .* no two atoms at one place, got atoms 0 and 2"),
        ("a.extxyz", SLAB.format("TTF", "0.000000001\nPt 1"), "line 6 must be a number of atoms"),
    ],
)
def test_structures_that_are_refused(folder, capsys, tmp_path, name, text, named):
    model = ("--checkpoint", folder / "model.msgpack", "--region-around", "C", "--steps", 0)
    path = write(tmp_path, text, name)
    err = failure(capsys, "run", "--structure", path, *model, "--out", tmp_path / "out")
    assert re.search(named, err), err


@pytest.mark.parametrize(
    "name, text, n_atoms",
    [
        ("a.cif", CIF.format("1.0", "0.34 1"), 3),
        ("a.cif", CIF.format(".", "0.34 1.000"), 3),
        ("a.EXTXYZ", SLAB.format("TTF", "1.9"), 3),
        ("b.xyz", SLAB.format("110", "-1.9"), 3),
    ],
)
def test_structures_that_are_read(tmp_path, name, text, n_atoms):
    atoms = read_structure(write(tmp_path, text, name))
    assert len(atoms) == n_atoms and atoms.cell.lengths().tolist() == [9.0, 9.0, 9.0]
    assert atoms.pbc.tolist() == [True, True, name.endswith("cif")]


@pytest.mark.parametrize("around", ["PtC", "c", "C,", "C,Au", "C;Pt"])
def test_species_of_the_region(folder, capsys, tmp_path, around):
    path = write(tmp_path, SLAB.format("TTF", "1.9"), "a.xyz")
    model = ("--checkpoint", folder / "model.msgpack", "--steps", 0)
    options = ("run", "--structure", path, *model, "--out", tmp_path / "out", "--region-around")
    err = failure(capsys, *options, around)
    assert "region_around must name species of the structure" in err and "among C, Pt" in err


@pytest.mark.parametrize(
    "text",
    [
        '3\nLattice="4 0 0 0 4 0 0 0 4"\nPt 0 0 0\nPt 2 2 0\n',
        '1\nLattice="4 0 0 0 4 0 0 0" energy=-1\nPt 0 0 0\n',
        '1\nlattice="4 0 0 0 4 0 0 0 4" pbc="x y z" energy=-1\nPt 0 0 0\n',
        "1\nenergy=-1 Properties=species:S:1:pos:R:3:forces:R:3\nPt 0 0 0 1 2\n",
        "",
    ],
)
def test_no_command_accepts_a_malformed_file(folder, capsys, tmp_path, text):
    path, model = write(tmp_path, text), folder / "model.msgpack"
    out = ("--out", tmp_path / "out")
    for arguments in (
        ("train", "--data", path, "--quiet", *out),
        ("evaluate", model, "--data", path, *out),
        ("validate", model, "--data", path, "--small", *out),
        ("init", tmp_path / "new.toml", "--data", path),
        ("run", "--structure", path, "--checkpoint", model, "--region-around", "Pt", *out),
        ("export", "lammps", "--structure", path, "--checkpoint", model, "--region-around", "Pt", *out),
    ):
        assert str(path) in failure(capsys, *arguments)
    assert not (tmp_path / "new.toml").exists()


def test_an_evaluation_without_labels(folder, capsys, tmp_path):
    path = write(tmp_path, f'1\nLattice="{CELL}" e_dft=-3\nPt 0 0 0\n')
    err = failure(capsys, "evaluate", folder / "model.msgpack", "--data", path, "--out", tmp_path)
    assert "dataset must have energy" in err
