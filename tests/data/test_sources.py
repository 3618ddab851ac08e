"""Files, folders and patterns; formats of ASE; names under which labels are recognised."""

import shutil

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from moe_md.data import (
    average_neighbors,
    dataset_from_frames,
    frame_from_atoms,
    isolated_atom_energies,
    load_dataset,
    ptco_pbe,
    read_frames,
)
from moe_md.data.labels import without_outliers
from moe_md.data.overview import duplicates, overview, overview_table, shortest_distance
from moe_md.data.sources import labelled_files


def relaxed(n=3):
    """Rattled copper cells with EMT's labels."""
    images = []
    for k in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=k)
        atoms.calc = EMT()
        labels = {name: atoms.calc.get_property(name, atoms) for name in ("energy", "forces", "stress")}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        images.append(atoms)
    return images


@pytest.mark.parametrize("name", ["a.xyz", "a.traj", "a.db", "a.json", "a.xyz.gz"])
def test_formats_of_ase_give_the_same_labels(tmp_path, name):
    images = relaxed()
    ase.io.write(tmp_path / name, images)
    frames = read_frames(tmp_path / name)
    assert len(frames) == 3
    for frame, atoms in zip(frames, images):
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-7)
        np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-7)
    # frames of one trajectory share a group, so that none of them is validated on
    assert len({frame.group for frame in frames}) == (1 if name.endswith("traj") else 3)


STRUCTURE = """
   <crystal><varray name="basis"><v>3 0 0</v><v>0 4 0</v><v>0 0 5</v></varray></crystal>
   <varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.5</v></varray>
  </structure>"""
VASP = f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <incar><i type="string" name="PREC">accurate</i></incar>
 <kpoints><varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1</v></varray></kpoints>
 <parameters></parameters>
 <atominfo><atoms>2</atoms><types>1</types>
  <array name="atoms"><set><rc><c>Cu</c><c>1</c></rc><rc><c>Cu</c><c>1</c></rc></set></array></atominfo>
 <structure name="initialpos">{STRUCTURE}
 <calculation>
  <scstep><energy><i name="e_fr_energy">-7.5</i><i name="e_0_energy">-7.45</i></energy></scstep>
  <structure>{STRUCTURE}
  <varray name="forces"><v>0.1 0 0</v><v>-0.1 0 0</v></varray>
  <varray name="stress"><v>10 0 0</v><v>0 20 0</v><v>0 0 30</v></varray>
  <energy><i name="e_fr_energy">-7.5</i><i name="e_0_energy">-7.45</i></energy>
 </calculation>
</modeling>
"""


def test_output_of_vasp(tmp_path):
    """Energies are free energies, stresses have ASE's sign, and frames of one run share a group."""
    (tmp_path / "vasprun.xml").write_text(VASP)
    (frame,) = read_frames(tmp_path)
    assert frame.energy == -7.5 and frame.energy_name == "free_energy"
    np.testing.assert_allclose(frame.forces, [[0.1, 0, 0], [-0.1, 0, 0]])
    np.testing.assert_allclose(np.diag(frame.stress), -np.array([10, 20, 30]) / 1602.1766, rtol=1e-4)  # kbar
    assert frame.group == "vasprun.xml" and frame.source == "frame 0 of vasprun.xml"


def test_folders_patterns_and_several_files(tmp_path):
    for name in ("one/a.xyz", "two/b.xyz", "two/notes.txt", "c.xyz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text("nothing")
        else:
            ase.io.write(tmp_path / name, relaxed(1), format="extxyz")
    assert [f.name for f in labelled_files(tmp_path)] == ["c.xyz", "a.xyz", "b.xyz"]
    frames = read_frames(tmp_path)
    assert [frame.group for frame in frames] == ["c.xyz:0", "one/a.xyz:0", "two/b.xyz:0"]
    assert len(read_frames(f"{tmp_path}/*/*.xyz")) == 2
    assert len(read_frames(f"{tmp_path}/c.xyz, {tmp_path}/two")) == 2
    assert len(read_frames(f"{tmp_path}/c.xyz,{tmp_path}/c.xyz")) == 1  # each file once


def test_relative_and_absolute_paths_together(tmp_path, monkeypatch):
    ase.io.write(tmp_path / "a.xyz", relaxed(1), format="extxyz")
    monkeypatch.chdir(tmp_path)
    assert len(read_frames(f"{ptco_pbe()},a.xyz")) == len(read_frames(ptco_pbe())) + 1


def test_a_comma_in_a_name(tmp_path):
    shutil.copy(ptco_pbe(), tmp_path / "a,b.xyz.gz")
    assert len(read_frames(tmp_path / "a,b.xyz.gz")) == len(read_frames(ptco_pbe()))


@pytest.mark.parametrize(
    "path, message",
    [
        ("nothing*.xyz", "must match a file, got .*nothing\\*.xyz, which matches none"),
        ("empty", "folder with labelled frames, got .*empty, which has no file of the names \\*.xyz"),
        ("gone.xyz", "existing file, got .*gone.xyz"),
        ("bad.traj", "a file that ASE reads, got .*bad.traj"),
    ],
)
def test_what_cannot_be_read(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.traj").write_bytes(b"not a trajectory")
    with pytest.raises(ValueError, match=message):
        read_frames(tmp_path / path)


LINE = 'Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T" Properties=species:S:1:pos:R:3:{forces}:R:3 {labels}'


def frame_with(tmp_path, forces, labels, **keys):
    path = tmp_path / "a.xyz"
    path.write_text(f"1\n{LINE.format(forces=forces, labels=labels)}\nCu 0 0 0 0.1 0.2 0.3\n")
    return read_frames(path, **keys)[0]


@pytest.mark.parametrize(
    "forces, labels",
    [
        ("forces", 'energy=-3.5 stress="1 0 0 0 2 0 0 0 3"'),
        ("force", 'REF_energy=-3.5 REF_stress="1 2 3 0 0 0"'),
        ("REF_forces", 'dft_energy=-3.5 virial="-64 0 0 0 -128 0 0 0 -192"'),
        ("DFT_forces", 'total_energy=-3.5 REF_virial="-64 -128 -192 0 0 0"'),
    ],
)
def test_recognised_names(tmp_path, forces, labels):
    frame = frame_with(tmp_path, forces, labels)
    assert frame.energy == -3.5 and not frame.unread
    np.testing.assert_allclose(frame.forces, [[0.1, 0.2, 0.3]])
    np.testing.assert_allclose(frame.stress, np.diag([1.0, 2.0, 3.0]), atol=1e-12)


def test_two_names_of_one_label(tmp_path):
    """Equal values are one label; different ones are refused, unless the caller says which."""
    assert frame_with(tmp_path, "forces", "energy=-3.5 REF_energy=-3.5").energy == -3.5
    with pytest.raises(ValueError, match="energy of frame 0 .*got energy and REF_energy.*with energy_key"):
        frame_with(tmp_path, "forces", "energy=-1.0 REF_energy=-3.5")
    assert frame_with(tmp_path, "forces", "energy=-1 REF_energy=-3.5", energy_key="REF_energy").energy == -3.5
    both = 'stress="1 0 0 0 2 0 0 0 3" virial="1 0 0 0 2 0 0 0 3"'
    with pytest.raises(ValueError, match="stress and virial of frame 0 .* must agree"):
        frame_with(tmp_path, "forces", both)
    assert frame_with(tmp_path, "forces", both, stress_key="stress").stress[0, 0] == 1.0


def test_isolated_atoms_set_references():
    crystal = relaxed(1)[0]
    atoms = [Atoms(symbol, cell=[9.0] * 3, pbc=True) for symbol in ("Cu", "Au")]
    for alone, energy in zip(atoms, (-0.2, -0.5)):
        alone.calc = SinglePointCalculator(alone, energy=energy)
    dataset = dataset_of(crystal, *atoms)
    assert isolated_atom_energies(dataset, 5.0) == {"Au": -0.5, "Cu": -0.2}
    with pytest.raises(ValueError, match="one atom of each species, got none of Au, Cu"):
        isolated_atom_energies(dataset, 9.5)  # their images are neighbours
    with pytest.raises(ValueError, match="got none of Cu"):
        isolated_atom_energies(dataset_of(crystal, atoms[1]), 5.0)
    other = atoms[0].copy()
    other.calc = SinglePointCalculator(other, energy=0.4)
    with pytest.raises(ValueError, match="one energy, got -0.2 and 0.4"):
        isolated_atom_energies(dataset_of(*atoms, other), 5.0)


# Overview --------------------------------------------------------------------


def test_overview_of_the_packaged_frames():
    dataset = load_dataset(ptco_pbe())
    rows = {row["kind"]: row for row in overview(dataset)}
    assert sum(row["frames"] for row in rows.values()) == len(dataset.frames)
    gas = rows["gas-co"]
    assert gas["elements"] == "C O" and gas["atoms"] == [2, 2] and gas["stress"] == 0
    frames = [frame for frame in dataset.frames if frame.kind == "gas-co"]
    lengths = [np.linalg.norm(np.diff(frame.positions, axis=0)) for frame in frames]
    assert gas["shortest_distance"] == pytest.approx(min(lengths))
    assert gas["largest_force"] == pytest.approx(max(np.linalg.norm(f.forces, axis=1).max() for f in frames))
    table = overview_table(list(rows.values())).splitlines()
    assert len(table) == len(rows) + 2 and len({len(line) for line in table[:-1]}) == 1


def test_shortest_distance_of_images_and_of_one_atom():
    crystal = bulk("Cu", "fcc", a=3.6)
    assert shortest_distance(dataset_of(crystal).frames[0]) == pytest.approx(3.6 / np.sqrt(2))
    alone = bulk("Cu", "sc", a=9.0)
    assert shortest_distance(dataset_of(alone).frames[0]) is None


def dataset_of(*images):
    return dataset_from_frames([frame_from_atoms(atoms) for atoms in images])


def test_average_neighbors():
    crystal = dataset_of(bulk("Cu", "fcc", a=3.6))
    assert average_neighbors(crystal, 2.7) == 12.0 and average_neighbors(crystal, 3.7) == 18.0
    pair = dataset_of(Atoms("Cu2", [[0, 0, 0], [0, 0, 2.0]]), Atoms("Cu"))
    assert average_neighbors(pair, 3.0) == 0.7
    with pytest.raises(ValueError, match="at least one frame"):
        average_neighbors(crystal._replace(frames=()), 3.0)


def test_outliers_are_those_far_from_the_fit():
    frames = list(load_dataset(ptco_pbe()).frames)
    wrong = frames[7]._replace(energy=frames[7].energy + 3.0 * len(frames[7].symbols))
    dataset = dataset_from_frames([*frames[:7], wrong, *frames[8:]])
    kept, outliers = without_outliers(dataset, 2.0)
    assert [frame.source for frame in outliers] == [wrong.source] and len(kept.frames) == len(frames) - 1
    with pytest.raises(ValueError, match="drop_outliers must leave frames"):
        without_outliers(dataset, 1e-9)


def test_duplicates():
    dataset = load_dataset(ptco_pbe())
    first, second = (dataset._replace(frames=dataset.frames[part]) for part in (slice(9), slice(7, 12)))
    assert [b.source for _, b in duplicates(first, second)] == [dataset.frames[k].source for k in (7, 8)]
    moved = second.frames[0]._replace(positions=second.frames[0].positions + 0.01)
    assert not duplicates(first, second._replace(frames=(moved,)))
