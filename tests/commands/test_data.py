"""`moe-md data`, and the frames that other commands leave out or name."""

import json
import warnings

import ase.io
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from command_line import failure, moe_md

from moe_md.commands import frames, settings_file
from moe_md.data import average_neighbors, load_dataset, ptco_pbe
from moe_md.settings import DataSettings


@pytest.fixture
def copper(tmp_path):
    """A file of labelled copper cells, one of which has an energy 9 eV/atom too high."""
    images = []
    for k in range(12):
        atoms = bulk("Cu", cubic=True, a=3.56 + 0.01 * k)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info |= {"REF_energy": energy + (36.0 if k == 5 else 0.0), "config_type": "bulk"}
        atoms.arrays["REF_forces"] = forces
        images.append(atoms)
    path = tmp_path / "cu.xyz"
    ase.io.write(path, images, format="extxyz")
    return path


def test_packaged_frames(capsys):
    code, said, err = moe_md(capsys, "data", "ptco_pbe", "--json")
    assert code == 0, err
    report = json.loads(said)
    assert report["frames"] == sum(row["frames"] for row in report["rows"]) and not report["remarks"]
    assert report["crystals"][0].startswith("Pt, Fm-3m (225), 1 atom in")
    assert "slab-co-approach" in err and "crystal: Pt" in err


def test_what_looks_wrong_is_named_and_left_out_where_asked(copper, capsys):
    code, said, err = moe_md(capsys, "data", copper)
    assert code == 0, err
    assert "remark: energies far from the fit by composition: 1 frame (frame 5 of cu.xyz)" in said + err
    code, said, err = moe_md(capsys, "data", copper, "--drop-outliers", 2, "--json")
    assert code == 0, err
    assert "1 frames are left out (drop_outliers = 2 eV/atom): frame 5 of cu.xyz" in err
    assert json.loads(said)["frames"] == 11


def test_patterns_and_packaged_names_together(copper, tmp_path):
    dataset = frames.load(DataSettings(file=f"ptco_pbe,{tmp_path}/*.xyz"))
    assert len(dataset.frames) == len(load_dataset(ptco_pbe()).frames) + 12
    assert dataset.frames[-1].source.endswith("cu.xyz")


def test_init_follows_the_data(capsys, tmp_path):
    """The cheap expert may own the species of crystals, with options of alloys, and no other species."""
    images = []
    for symbol in ("Cu", "Ag", "Au"):
        crystal = bulk(symbol, cubic=True)
        crystal.info["energy"] = -4.0
        images.append(crystal)
    molecule = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[9.0] * 3, pbc=True)
    molecule.info["energy"] = -12.0
    ase.io.write(tmp_path / "alloy.xyz", [*images, molecule], format="extxyz")
    code, said, err = moe_md(capsys, "init", tmp_path / "a.toml", "--data", tmp_path / "alloy.xyz")
    assert code == 0, err
    tables = settings_file.tables(tmp_path / "a.toml")
    cheap = tables["cheap"]
    assert set(cheap["allowed_species"]) == {"Cu", "Ag", "Au"} and set(cheap["species"]) > {"C", "O"}
    assert cheap["num_species_mixtures"] == 2 and cheap["zbl"] is True
    assert set(tables["run"]["region_around"].split(",")) == {"C", "O"}
    average = average_neighbors(load_dataset(tmp_path / "alloy.xyz"), 5.0)
    assert tables["expensive"]["avg_num_neighbors"] == average
    assert "may own" in said + err


def test_no_files(capsys, tmp_path):
    assert "path must match a file" in failure(capsys, "data", tmp_path / "*.xyz")


def test_equal_structures_in_both_parts_are_named():
    dataset = load_dataset(ptco_pbe())
    first, second = (dataset._replace(frames=dataset.frames[part]) for part in (slice(9), slice(8, 12)))
    with pytest.warns(UserWarning, match=r"1 validation frames are training frames too \(frame 8 of .* = "):
        frames.warn_of_duplicates(first, second)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames.warn_of_duplicates(first, dataset._replace(frames=dataset.frames[9:]))
