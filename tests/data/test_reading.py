import gzip

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from moe_md.data.dataset import ptco_pbe
from moe_md.data.reading import Frame, frame_from_atoms, frame_to_atoms, read_frames

HEADER = 'Properties=species:S:1:pos:R:3:forces:R:3 pbc="F F F"'


@pytest.fixture
def text():
    return gzip.open(ptco_pbe(), "rt").read()


def write(path, text):
    path.write_text(text)
    return path


def test_packaged_frames(text):
    frames = read_frames(ptco_pbe())
    assert len(frames) == text.count("free_energy=")
    assert all(np.isfinite(f.forces).all() and f.forces.shape == f.positions.shape for f in frames)
    first = frames[0]  # numbers copied from the file
    assert first.energy == pytest.approx(-22.943197348163057, abs=1e-12)  # free_energy, not energy
    assert first.kind == "bulk-eos" and first.group == "bulk-0" and first.symbols == ("Pt",) * 4
    np.testing.assert_allclose(np.diag(first.stress), -0.31748, atol=1e-5)
    np.testing.assert_allclose(first.cell, 3.8 * np.eye(3))
    slabs = [f for f in frames if f.kind == "slab-co"]
    assert slabs and all(f.stress is None and f.pbc.tolist() == [True, True, False] for f in slabs)


def test_energy_key_overrides():
    frame = read_frames(ptco_pbe(), energy_key="energy")[0]
    assert frame.energy == pytest.approx(-22.8337123429968, abs=1e-12)
    with pytest.raises(
        ValueError, match="energy_key must name a label.*'enthalpy'; there is .*energy, forces, free_energy"
    ):
        read_frames(ptco_pbe(), energy_key="enthalpy")


def test_other_names_of_groups_and_kinds(tmp_path, text):
    path = write(tmp_path / "a.xyz", text.replace("origin=", "trajectory=").replace("kind=", "config_type="))
    named = read_frames(path, group_key="trajectory", kind_key="config_type")
    ours = read_frames(ptco_pbe())
    assert [(f.group, f.kind) for f in named] == [(f.group, f.kind) for f in ours]
    plain = read_frames(path)
    assert {f.kind for f in plain} == {""} and plain[3].group == "a.xyz:3"
    with pytest.raises(
        ValueError, match="kind_key must name an entry of a frame of .*, got 'sort'; there is .*config_type"
    ):
        read_frames(path, kind_key="sort")
    with pytest.raises(
        ValueError, match="group_key must name an entry of a frame of .*, got 'run'; there is .*trajectory"
    ):
        read_frames(path, group_key="run")


def test_other_names_of_labels(tmp_path, text):
    for ours, theirs in (("forces:", "our_forces:"), ("stress=", "our_stress="), ("free_energy=", "F=")):
        text = text.replace(ours, theirs)
    path = write(tmp_path / "a.xyz", text)
    plain = read_frames(path)
    assert all(f.forces is None and f.stress is None and f.energy is not None for f in plain)
    named = read_frames(path, energy_key="F", forces_key="our_forces", stress_key="our_stress")
    for a, b in zip(named, read_frames(ptco_pbe())):
        assert a.energy == b.energy
        np.testing.assert_array_equal(a.forces, b.forces)
        assert (a.stress is None) == (b.stress is None)
        if a.stress is not None:
            np.testing.assert_allclose(a.stress, b.stress, atol=1e-15)


def test_stress_has_the_sign_and_order_of_ase(tmp_path):
    atoms = bulk("Pt", cubic=True)
    strain = [[0.01, 0.02, 0.0], [0.02, -0.01, 0.005], [0.0, 0.005, 0.0]]
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.calc = EMT()
    stress, forces = atoms.get_stress(voigt=False), atoms.get_forces()
    ase.io.write(tmp_path / "a.xyz", atoms, format="extxyz")
    frame = read_frames(tmp_path / "a.xyz")[0]
    np.testing.assert_allclose(frame.stress, stress, atol=1e-8)
    np.testing.assert_allclose(frame.forces, forces, atol=1e-7)
    assert frame.energy == pytest.approx(atoms.get_potential_energy())


def test_missing_labels_stay_missing(tmp_path):
    path = write(tmp_path / "plain.xyz", "2\n\nC 0 0 0\nO 0 0 1.1\n" * 2)
    for index, frame in enumerate(read_frames(path)):
        assert frame.energy is None and frame.forces is None and frame.stress is None
        assert frame.group == f"plain.xyz:{index}" and frame.kind == ""
        assert not frame.pbc.any()


def test_atoms_and_back(tmp_path):
    bare = Frame(np.zeros((1, 3)), ("Pt",), np.zeros((3, 3)), np.zeros(3, bool))
    frames = (*read_frames(ptco_pbe())[-2:], bare)
    ase.io.write(tmp_path / "a.xyz.gz", [frame_to_atoms(f) for f in frames], format="extxyz")
    for a, b in zip(frames, read_frames(tmp_path / "a.xyz.gz")):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-7)
        assert (a.energy, a.kind, a.symbols) == (b.energy, b.kind, b.symbols)
        assert (a.forces is None) == (b.forces is None)
    assert b.energy is None and b.group == "a.xyz.gz:2"


@pytest.mark.parametrize("lost", [2, 3, 13])
@pytest.mark.parametrize("newline", ["\n", ""])
def test_truncated_lines_are_refused(tmp_path, text, lost, newline):
    path = write(tmp_path / "cut.xyz", "\n".join(text.splitlines()[:-lost]) + newline)
    with pytest.raises(ValueError, match="cut.xyz"):
        read_frames(path)


def test_cut_inside_the_last_number_is_refused(tmp_path, text):
    for lost in (2, 3, 4, 7, 11, 16, 25, 40, 59):
        with pytest.raises(ValueError, match="cut.xyz"):
            read_frames(write(tmp_path / "cut.xyz", text[:-lost]))
    assert read_frames(write(tmp_path / "whole.xyz", text[:-1]))  # only the last newline is missing


def test_truncated_gzip_is_refused(tmp_path):
    data = ptco_pbe().read_bytes()
    for size in (5, len(data) // 2, len(data) - 4):
        path = tmp_path / "cut.xyz.gz"
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="cut.xyz.gz"):
            read_frames(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "got the empty file"),
        ("\n\n", "got the empty file"),
        ("2\n", "whole extended XYZ"),
        ("hello\n", "whole extended XYZ"),
        (f"1\n{HEADER}\nC 0 0 nan 0 0 0\n", "positions of frame 0 .* must be finite"),
        (f"1\n{HEADER}\nC 0 0 0 0 inf 0\n", "forces of frame 0 .* must be finite"),
        (f"1\n{HEADER} energy=nan\nC 0 0 0 0 0 0\n", "energy of frame 0 .* must be finite"),
        (f"1\n{HEADER} energy=low\nC 0 0 0 0 0 0\n", "energy of frame 0 .* must be numbers"),
        (
            f"1\n{HEADER.replace('forces:R:3', 'forces:R:2')}\nC 0 0 0 0 0\n",
            r"forces of frame 0 .* shape \(1, 3\), got \(1, 2\)",
        ),
        (f'1\n{HEADER} stress="1 2 3"\nC 0 0 0 0 0 0\n', "stress"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_frames(write(tmp_path / "bad.xyz", text))


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="path must be an existing file, got .*nowhere.xyz"):
        read_frames(tmp_path / "nowhere.xyz")


def test_voigt_order_from_info():
    atoms = bulk("Pt")
    atoms.info["s"] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]  # xx yy zz yz xz xy
    frame = frame_from_atoms(atoms, stress_key="s")
    np.testing.assert_array_equal(frame.stress, [[1, 6, 5], [6, 2, 4], [5, 4, 3]])
