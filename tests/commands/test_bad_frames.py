"""Malformed files of labelled frames; see `bad_input`."""

import gzip

import numpy as np
import pytest
from ase.data import chemical_symbols
from bad_input import damaged, examples, odd, valid_or_clear
from hypothesis import example, given
from hypothesis import strategies as st

from moe_md.data import dataset as datasets
from moe_md.data.batching import prepare
from moe_md.data.reading import read_frames

WORDS = (
    "nan",
    "inf",
    "-1",
    "0",
    "1e400",
    "1e300",
    "abc",
    "",
    "T",
    "[1, 2]",
    "{}",
    '"',
    "1 2 3",
    "٣",
    "1j",
    "\x00",
)
PROPERTIES = (
    "species:S:1:pos:R:3",
    "species:S:1:pos:R:3:forces:R:2",
    "species:S:1:pos:R:3:forces:S:3",
    "species:S:1:pos:R:3:forces:L:3",
    "species:S:1:pos:R:3:forces:I:3",
    "species:S:1:pos:R:3:pos:R:3",
    "species:S:1:pos:R:3:forces:R:0",
    "species:S:1:pos:R:2:forces:R:4",
    "pos:R:3:forces:R:3:species:S:1",
    "species:S:1:forces:R:3",
    "forces:R:3:pos:R:3",
    "species:R:1:pos:R:3:forces:R:3",
    "species:S:1:pos:R:-3:forces:R:3",
    "species:S:1:pos:R:x:forces:R:3",
    "species:S:1:pos:R:3:numbers:R:3",
    "species:S:1:pos",
    ":",
    "",
)
LATTICES = (
    *("4 0 0 0 4 0 0 0", "4 4 4", "0 0 0 0 0 0 0 0 0", "nan 0 0 0 4 0 0 0 4", "inf 0 0 0 4 0 0 0 4"),
    *(
        "4 0 0 4 0 0 0 0 4",
        "1e-3 0 0 0 1e-3 0 0 0 1e-3",
        "0.3 0 0 0 4 0 0 0 4",
        "1e200 0 0 0 1e200 0 0 0 1e200",
        "a b c",
        "",
    ),
    *("-4 0 0 0 4 0 0 0 4", "1e-320 0 0 0 4 0 0 0 4", "4 0 0 0 4 0 0 0 4 5", "4 0 0 0 4 0 0 0 1e9"),
)
PBC = ("T T T", "F F F", "T T", "1 0 1", "yes no yes", "nan", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


@st.composite
def xyz_texts(draw):
    """Extended XYZ of two frames of three atoms, with one to three errors."""
    frames = []
    for k in range(2):
        header = {
            "Lattice": '"4.1 0 0 0 4.2 0 0 0 4.3"',
            "Properties": "species:S:1:pos:R:3:forces:R:3",
            "energy": f"{-3.5 - k}",
            "stress": '"0.1 0 0 0 0.2 0 0 0 0.3"',
            "pbc": '"T T T"',
            "origin": f"run-{k}",
        }
        rows = [["Pt", *(f"{0.9 * i + 0.1 * j + k:.3f}" for j in range(6))] for i in range(3)]
        frames.append([["3"], header, *rows])
    for _ in range(draw(st.integers(1, 3))):
        frame = draw(st.sampled_from(frames))
        what = draw(st.sampled_from(("count", "row", "key", "cell", "columns", "pbc", "line")))
        if what == "count":
            frame[0][0] = draw(
                st.sampled_from(("2", "4", "-3", "0", "3.0", "three", "", "99999999999", "3 3"))
            )
        elif what == "row" and len(frame) > 2:
            row = draw(st.sampled_from(frame[2:]))
            column = draw(st.integers(0, len(row)))
            row[column:] = [draw(st.sampled_from(("Xx", "pt", "Pt1", "8", *WORDS))), *row[column + 1 :]]
        elif what == "key":
            names = (
                "energy",
                "stress",
                "free_energy",
                "origin",
                "kind",
                "forces",
                "positions",
                "numbers",
                "pbc",
                "cell",
            )
            word = draw(st.sampled_from(WORDS))
            frame[1][draw(st.sampled_from(names))] = word if draw(st.booleans()) else f'"{word}"'
        elif what == "cell":
            frame[1]["Lattice"] = '"' + draw(st.sampled_from(LATTICES)) + '"'
        elif what == "columns":
            frame[1]["Properties"] = draw(st.sampled_from(PROPERTIES))
        elif what == "pbc":
            frame[1]["pbc"] = '"' + draw(st.sampled_from(PBC)) + '"'
        elif len(frame) > 2:
            at = draw(st.integers(2, len(frame) - 1))
            frame[at : at + 1] = draw(
                st.sampled_from(([], [frame[at]] * 2, [[""], frame[at]], [["#", "note"]]))
            )
    lines = []
    for count, header, *rows in frames:
        lines += [count[0], " ".join(f"{k}={v}" for k, v in header.items()), *(" ".join(r) for r in rows)]
    text = "\n".join(lines) + "\n"
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) and draw(st.booleans()) else text


def check_frames(frames) -> None:
    for frame in frames:
        n = len(frame.symbols)
        assert n > 0 and set(frame.symbols) <= set(chemical_symbols)
        assert frame.positions.shape == (n, 3) and frame.cell.shape == (3, 3) and frame.pbc.shape == (3,)
        assert frame.forces is None or frame.forces.shape == (n, 3)
        assert frame.stress is None or frame.stress.shape == (3, 3)
        for value in (frame.positions, frame.cell, frame.energy, frame.forces, frame.stress):
            assert value is None or (np.isfinite(value).all() and np.asarray(value).dtype == float)


def check_file(path) -> None:
    frames = valid_or_clear(lambda: read_frames(path), path.name)
    if frames is None:
        return
    assert frames
    check_frames(frames)
    dataset = valid_or_clear(lambda: datasets.load_dataset(path, ("Pt", "O")), "species")
    prepared = dataset and valid_or_clear(
        lambda: prepare(dataset, 3.0), "frame 0 of dataset", "frame 1 of dataset"
    )
    for rows in prepared.rows if prepared else ():
        assert np.isfinite(rows.displacement).all() and (rows.mask.sum() == 0 or rows.mask.shape[1] > 0)


@examples(150)
@given(xyz_texts())
def test_malformed_xyz(folder, text):
    path = folder / "frames.xyz"
    path.write_text(text, encoding="utf-8")
    check_file(path)


def test_a_valid_file_is_read(folder):
    """The file that `xyz_texts` starts from is valid, so the errors above come from its changes."""
    header = (
        'Properties=species:S:1:pos:R:3:forces:R:3 energy=-3.5 pbc="T T T" Lattice="4.1 0 0 0 4.2 0 0 0 4.3"'
    )
    (folder / "good.xyz").write_text(f"1\n{header}\nPt 0 0 0 1 2 3\n")
    (frame,) = read_frames(folder / "good.xyz")
    assert frame.energy == -3.5 and frame.forces.tolist() == [[1.0, 2.0, 3.0]]


PACKAGED = datasets.ptco_pbe().read_bytes()
FEW_FRAMES = b"\n".join(gzip.decompress(PACKAGED).split(b"\n")[:18]) + b"\n"


@examples(60)
@given(damaged(FEW_FRAMES))
@example(b"")
@example(b"\x00\xff" * 50)
@example("3\n\nPt 0 0 0\n".encode("utf-16"))
def test_damaged_xyz(folder, data):
    path = folder / "damaged.xyz"
    path.write_bytes(data)
    check_file(path)


@examples(10)
@given(damaged(PACKAGED[:4000]))
def test_damaged_gzip(folder, data):
    path = folder / "damaged.xyz.gz"
    path.write_bytes(data)
    assert valid_or_clear(lambda: read_frames(path), path.name) is None


@examples(40)
@given(
    st.sampled_from(("path", "species", "energy_key", "forces_key", "stress_key", "group_key", "kind_key")),
    odd,
)
def test_arguments_of_load_dataset(folder, name, value):
    path = folder / "valid.xyz"
    path.write_bytes(FEW_FRAMES)
    dataset = valid_or_clear(lambda: datasets.load_dataset(**{"path": path, name: value}), name)
    if dataset is not None:
        check_frames(dataset.frames)
        assert all(isinstance(s, str) for s in dataset.species)
