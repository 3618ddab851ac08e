"""Files of frames and structures, and labels: understood whole, or refused in one line that says why."""

import bz2
import gzip
import lzma
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_frames import cells, pair_of, write

from moe_md import experts
from moe_md.data import dataset_from_frames, label_remarks, prepare, read_frames
from moe_md.settings import EnvironmentSettings, LossWeights, TrainSettings
from moe_md.training import cotrain
from moe_md.training.parameters import initial_params

NONE = EnvironmentSettings(environment_rows=0, perfect_rows=0)
CELL = "5.1 0 0 0.2 5.2 0 0 0 5.3"
ROWS = np.array([[5.1, 0, 0], [0.2, 5.2, 0], [0, 0, 5.3]])


def one(folder, header: str, line: str = "Cu 0.1 0.2 0.3", **keys):
    """The frame of a file of one atom."""
    (frame,) = read_frames(write(folder, f"1\n{header}\n{line}\n"), **keys)
    return frame


# The structure in a header --------------------------------------------------------


@pytest.mark.parametrize(
    "header, pbc",
    [
        (f'LATTICE="{CELL}"', (True, True, True)),
        (f'lattice="{CELL}" PBC="t F T"', (True, False, True)),
        (f'Lattice="{CELL}" Pbc=011', (False, True, True)),
        (f"pbc=[false, TRUE, False] laTTice={{{CELL}}}", (False, True, False)),
        (f'comment="pbc=F F F" lattice = "{CELL}" pbc="no yes 1"', (False, True, True)),
    ],
)
def test_headers_in_other_spelling(tmp_path, header, pbc):
    frame = one(tmp_path, header)
    np.testing.assert_array_equal(frame.cell, ROWS)
    assert tuple(frame.pbc) == pbc


@pytest.mark.parametrize(
    "header, named",
    [
        (f'Lattice="{CELL}" pbc="T T maybe"', "pbc of frame 0 of .*got 'T T maybe'"),
        (f'Lattice="{CELL}" pbc="1 1 2"', "pbc of frame 0 .*got '1 1 2'"),
        (f'Lattice="{CELL}" periodicity="T T F"', "periodicity of frame 0 .* pbc="),
        (f'unit_cell="{CELL}"', "cell of frame 0 .* Lattice="),
        ('lattice="5 5 5"', "Lattice of frame 0 .* 9 numbers.*got '5 5 5'"),
        (f'Lattice="{CELL}" LATTICE="{CELL}"', "Lattice of frame 0 .* once"),
        (f'note=John\'s Lattice="{CELL}"', "header of frame 0 .* quotes in pairs"),
        (f'Lattice="{CELL}" Properties=species:S:1:xyz:R:3', "Properties of frame 0 .* pos:R:3"),
    ],
)
def test_headers_that_are_not_understood(tmp_path, header, named):
    with pytest.raises(ValueError, match=named):
        one(tmp_path, header)


@hypothesis_settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.permutations(["Lattice", "Properties", "pbc", "note"]), st.permutations("SPF"), st.data())
def test_any_order_and_case(tmp_path, keys, columns, random):
    def cased(text):
        return "".join(random.draw(st.sampled_from((c.lower(), c.upper()))) for c in text)

    names = {"S": f"{cased('species')}:S:1", "P": f"{cased('pos')}:R:3", "F": "forces:R:3"}
    numbers = {"S": "Ag", "P": "0.5 0.25 2.0", "F": "1.5 -2.0 3.0"}
    values = {
        "Lattice": f'"{CELL}"',
        "Properties": ":".join(names[c] for c in columns),
        "pbc": f'"{" ".join(cased(c) for c in "TFT")}"',
        "note": '"Lattice of silver, pbc=none"',
    }
    header = " ".join(f"{key if key == 'note' else cased(key)}={values[key]}" for key in keys)
    frame = one(tmp_path, header, " ".join(numbers[c] for c in columns))
    np.testing.assert_array_equal(frame.cell, ROWS)
    assert frame.pbc.tolist() == [True, False, True] and frame.symbols == ("Ag",)
    assert frame.positions.tolist() == [[0.5, 0.25, 2.0]] and frame.forces.tolist() == [[1.5, -2.0, 3.0]]


# Lines and bytes ------------------------------------------------------------------


@pytest.mark.parametrize(
    "last, whole",
    [
        ("O 1.00 2.00 3.00", True),  # shorter than the line before, with all its decimals
        ("O 1.00 12.0 2.5", True),  # typed by hand
        ("O 1.00 2.00 3.0", True),
        ("O 1.000000 2.000000 3.0", False),
        ("O 1.00000000e-01 2.00000000e-01 3.00000000", False),
    ],
)
def test_last_line_without_newline(tmp_path, last, whole):
    number = last.split()[1]
    path = write(tmp_path, f"2\n\nCu {number.replace('1', '-11', 1)} {number} {number}\n{last}")
    if whole:
        assert read_frames(path)[0].positions[1].tolist() == [float(x) for x in last.split()[1:]]
    else:
        with pytest.raises(ValueError, match=r"frames.xyz: it ends inside the line 'O"):
            read_frames(path)
    assert len(read_frames(write(tmp_path, path.read_bytes() + b"\n"))) == 1


TEXT = f'1\nLattice="{CELL}" origin=Längsschnitt energy=-3.25\nCu 0 0 0\n'


@pytest.mark.parametrize(
    "content, name",
    [
        (TEXT.encode("utf-8-sig"), "a.xyz"),
        (TEXT.encode("utf-16"), "a.xyz"),
        (TEXT.encode("latin-1"), "a.xyz"),
        (TEXT.replace("\n", "\r\n").encode(), "a.xyz"),
        (TEXT.replace("\n", "\r").encode(), "a.xyz"),
    ],
)
def test_encodings(tmp_path, content, name):
    (frame,) = read_frames(write(tmp_path, content, name))
    assert (frame.group, frame.energy, frame.pbc.all()) == ("Längsschnitt", -3.25, True)


@pytest.mark.parametrize("pack, end", [(gzip.compress, "gz"), (bz2.compress, "bz2"), (lzma.compress, "xz")])
def test_compressed_files(tmp_path, pack, end):
    content = pack(TEXT.encode())
    assert read_frames(write(tmp_path, content, f"a.xyz.{end}"))[0].energy == -3.25
    with pytest.raises(ValueError, match=f"a.xyz.{end}"):
        read_frames(write(tmp_path, content[:-10], f"a.xyz.{end}"))


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\x1e", "\x85", "\u2028"])
def test_other_line_ends_stay_in_comments(tmp_path, end):
    path = write(tmp_path, f"1\na{end}2 energy=-1.5\nCu 0 0 0\n1\nenergy=-2.5 b={end}\nCu 0 0 0\n")
    assert [frame.energy for frame in read_frames(path)] == [-1.5, -2.5]


@pytest.mark.parametrize(
    "line, named",
    [
        ("Cu 0 0 0 1 2", "7 columns of Properties, got 6"),
        ("Cu 0 0 0 1 2 3 4", "7 columns of Properties, got 8"),
        ("Cu1 0 0 0 1 2 3", "species of frame 0 .* chemical symbols, got 'Cu1'"),
        ("X 0 0 0 1 2 3", "species of frame 0 .* chemical elements"),
    ],
)
def test_lines_of_atoms(tmp_path, line, named):
    with pytest.raises(ValueError, match=named):
        one(tmp_path, "Properties=species:S:1:pos:R:3:forces:R:3", line)


# Labels ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header, keys, stress",
    [
        (
            'stress="0.1 0.2 0.3 0.04 0.05 0.06"',
            {},
            [[0.1, 0.06, 0.05], [0.06, 0.2, 0.04], [0.05, 0.04, 0.3]],
        ),
        ('Stress="0.1 0 0 0 0.2 0 0 0 0.3"', {}, np.diag([0.1, 0.2, 0.3])),
        ('Virial="3 0 0 0 6 0 0 0 9"', {"virial_key": "virial"}, np.diag([-3, -6, -9]) / np.linalg.det(ROWS)),
        ('virial="3 0 0 0 6 0 0 0 9"', {}, np.diag([-3, -6, -9]) / np.linalg.det(ROWS)),
        ('my_virial="3 0 0 0 6 0 0 0 9"', {}, None),
    ],
)
def test_stresses_and_virials(tmp_path, header, keys, stress):
    frame = one(tmp_path, f'Lattice="{CELL}" {header}', **keys)
    assert (frame.stress is None) == (stress is None)
    if stress is not None:
        np.testing.assert_allclose(frame.stress, stress, rtol=1e-12)
    else:
        assert (
            "not read, though its name looks like it: my_virial in 1"
            in label_remarks(dataset_from_frames([frame]))[0]
        )


@pytest.mark.parametrize(
    "header, keys, named",
    [
        ('virial="8 0 0 0 8 0 0 0 8"', {"stress_key": "virial"}, "stress_key must name a stress.*virial_key"),
        ('stress="8 0 0 0 8 0 0 0 8"', {}, "stress of frame 0 .*1,000 GPa.*got 8: .*virial_key"),
        ('stress="0.1 0.5 0 0 0.1 0 0 0 0.1"', {}, "stress of frame 0 .* symmetric"),
        ('stress="0.1 0 0 0 0.1 0 0 0 0.1" virial="14 0 0 0 14 0 0 0 14"', {"virial_key": "virial"}, "agree"),
        ("energy=-1.0 energy=-2.0", {}, "energy of frame 0 .* got '-1.0 and -2.0'"),
    ],
)
def test_labels_that_cannot_be(tmp_path, header, keys, named):
    with pytest.raises(ValueError, match=named):
        one(tmp_path, f'Lattice="{CELL}" {header}', **keys)


@pytest.mark.parametrize(
    "header",
    ["stress=none energy=unconverged", 'stress="1 2" dipole="a b c"', "magmom=up energies=?"],
)
def test_labels_that_nobody_asked_for(tmp_path, header):
    columns = "Properties=species:S:1:pos:R:3:forces:R:3:dft:R:3:charges:R:1"
    line = "Cu 0 0 0 * * * 1 2 3 n/a"
    keys = {"energy_key": "e_dft", "forces_key": "dft", "stress_key": "s_dft"}
    frame = one(tmp_path, f's_dft="0 0 0 0 0 1" e_dft=-4 {header} {columns}', line, **keys)
    assert (frame.energy, frame.forces.tolist(), frame.stress[0, 1]) == (-4.0, [[1.0, 2.0, 3.0]], 1.0)
    with pytest.raises(ValueError, match="forces of frame 0 .* must be numbers"):
        one(tmp_path, columns, line)


@pytest.mark.parametrize(
    "label, values, remark",
    [
        (
            "energy",
            {3: 30.0},
            "energies far from the fit by composition: 1 frame .frame 3 of a.xyz., 12.* eV/atom",
        ),
        ("forces", {7: 3e3 * np.ones((4, 3))}, "large forces: 1 frame .frame 7 of a.xyz., 3e.03 eV/Å"),
        ("forces", {1: np.zeros((4, 3)), 2: np.zeros((4, 3))}, "forces of exactly zero: 2 frames"),
        ("stress", {4: 3.0 * np.eye(3)}, "large stresses: 1 frame .frame 4 of a.xyz., 481 GPa"),
        (
            "energy_name",
            {k: ("energy", "free_energy")[k % 2] for k in range(12)},
            "two kinds, 6 of energy and 6",
        ),
    ],
)
def test_remarks(label, values, remark):
    frames = cells(12)
    assert label_remarks(dataset_from_frames(frames)) == []
    changed = [f._replace(**({label: values[k]} if k in values else {})) for k, f in enumerate(frames)]
    (found,) = label_remarks(dataset_from_frames(changed))
    assert re.search(remark, found), found


def test_one_bad_frame_does_not_set_the_scale():
    pair = [experts.power_spectrum(("Pt",), 3.5, l_max=0, num_bessels=2, num_channels=2, hidden=(3,))]
    frames = cells(12)
    bad = [frames[0]._replace(forces=1e4 * frames[0].forces), *frames[1:]]
    (good,), (robust,) = (
        initial_params(pair, data, TrainSettings(), prepare(data, 3.5))
        for data in map(dataset_from_frames, (frames, bad))
    )
    assert float(good["scale"][0]) == pytest.approx(0.3, rel=0.1)
    # The frame counts as one of force_downweight_above = 3 eV/Å: sqrt((11 x 0.3^2 + 3^2) / 11) eV/Å.
    assert float(robust["scale"][0]) == pytest.approx(0.95, rel=0.1)


@pytest.mark.parametrize(
    "change, weights, message",
    [
        ({"forces": np.zeros((4, 3))}, {}, "forces must not be zero in every frame, got 4 frames"),
        ({"energy": 0.0}, {}, "energy must not be zero in every frame"),
        ({"forces": None}, {}, "dataset must have forces"),
        ({"energy": None}, {}, "dataset must have energy"),
        ({}, {"energy": 0.0, "forces": 0.0, "stress": 0.0}, "weights must be positive for"),
    ],
)
def test_labels_are_needed_where_they_have_a_weight(change, weights, message):
    frames = dataset_from_frames([f._replace(**change) for f in cells(4)], ("Pt",))
    pair = pair_of(("Pt",), ("Pt",))
    off = {"steps": 1, "max_atoms": 8}
    with pytest.raises(ValueError, match=message):
        cotrain.cotrain(
            pair,
            frames,
            TrainSettings(**off, weights=LossWeights(**weights)),
            environments=NONE,
            progress=False,
        )
    if change:  # with no weight on this label, it need not exist
        (label,) = change
        without = TrainSettings(**off, weights=LossWeights(**{label: 0.0, "stress": 0.0}))
        trained = cotrain.cotrain(pair, frames, without, environments=NONE, progress=False)
        assert trained.record["train"]["frames"] == 4
