"""The 3D view: the page contains the given structure, values and colours."""

import json
import re
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111

from moe_md.plots.plots import CHEAP, ELEMENTS, EXPENSIVE
from moe_md.plots.view import view

pytest.importorskip("py3Dmol", reason="py3Dmol is not installed")

SLAB = fcc111("Pt", (2, 1, 2), vacuum=5.0) + Atoms("CO", [[0, 0, 9.0], [0, 0, 10.15]])


def calls(page, name):
    """The arguments of each call of a function of the viewer."""
    found = re.findall(rf"\.{name}\((.*)\);$", page.write_html(), re.MULTILINE)
    return [json.loads(f"[{arguments}]") for arguments in found]


def frames_of(page):
    """Symbols, positions and values of each frame in the page."""
    ((text, form, options),) = calls(page, "addModelsAsFrames")
    assert form == "xyz" and options == {"assignBonds": False}
    lines, found = text.split("\n"), []
    while lines and lines[0]:
        n = int(lines[0])
        rows = [line.split() for line in lines[2 : 2 + n]]
        found.append(
            (
                [r[0] for r in rows],
                np.array([r[1:4] for r in rows], float),
                np.array([r[4] for r in rows], float),
            )
        )
        lines = lines[2 + n :]
    return found


def styles_of(page):
    return {selection["elem"]: style["sphere"] for selection, style in calls(page, "setStyle")}


def test_metal_is_coloured_by_expert_and_molecules_by_element():
    owner = np.array([1, 1, 0, 0, 0, 0])
    page = view(SLAB, owner)
    ((symbols, positions, numbers),) = frames_of(page)
    assert symbols == SLAB.get_chemical_symbols()
    np.testing.assert_allclose(positions, SLAB.positions, atol=1e-4)
    np.testing.assert_array_equal(numbers, owner)
    styles = styles_of(page)
    assert styles["Pt"]["colorscheme"] == {"prop": "dx", "map": {"0": EXPENSIVE, "1": CHEAP}}
    assert styles["C"]["color"] == ELEMENTS["C"] and styles["O"]["color"] == ELEMENTS["O"]
    assert styles["C"]["radius"] < styles["Pt"]["radius"]
    legend = [text for text, _ in calls(page, "addLabel")]
    assert legend == ["expensive expert", "cheap expert", "C", "O"]
    assert "colorscheme" in styles_of(view(SLAB, owner, keep=()))["C"]
    assert calls(page, "animate") == []


def test_colour_scale_runs_from_low_to_high():
    errors = np.array([0.0, 10.0, 20.0, 40.0, 80.0, 5.0])
    page = view(SLAB, errors, low=10.0, high=40.0, label="meV/Å", keep=())
    ((_, _, scaled),) = frames_of(page)
    np.testing.assert_allclose(scaled, [0, 0, 1 / 3, 1, 1, 0], atol=1e-4)
    scheme = styles_of(page)["Pt"]["colorscheme"]
    # 3Dmol's first colour is at `min`, the second half way between `min` and `max`.
    assert scheme["colors"] == [CHEAP, EXPENSIVE] and (scheme["min"] + scheme["max"]) / 2 == 1
    assert [text for text, _ in calls(page, "addLabel")] == ["40 meV/Å", "10"]
    # `high` is 1 by default, or the largest value if that is above 1.
    np.testing.assert_allclose(frames_of(view(SLAB, np.full(6, 0.25)))[0][2], 0.25)
    np.testing.assert_allclose(frames_of(view(SLAB, errors))[0][2], errors / 80, atol=1e-4)


def test_a_trajectory_is_shown_frame_by_frame():
    moved = SLAB.copy()
    moved.positions[-1, 2] += 1.0
    page = view([SLAB, moved], np.array([[0.0] * 6, [1.0] * 6]), interval_ms=50)
    (_, first, before), (_, second, after) = frames_of(page)
    np.testing.assert_allclose(second - first, moved.positions - SLAB.positions, atol=2e-4)
    assert (before == 0).all() and (after == 1).all()
    assert calls(page, "animate") == [[{"loop": "forward", "interval": 50}]]
    # One vector of values is used for all frames.
    assert [list(numbers) for *_, numbers in frames_of(view([SLAB, moved], np.arange(6) % 2))] == [
        [0, 1, 0, 1, 0, 1]
    ] * 2


def test_edges_of_the_cell():
    def edges(atoms):
        return [
            (np.array(list(spec["start"].values())), np.array(list(spec["end"].values())))
            for (spec,) in calls(view(atoms), "addLine")
        ]

    crystal = bulk("Pt", a=4.0)  # oblique
    found = edges(crystal)
    assert len(found) == 12
    for vector in crystal.cell.array:
        assert sum(np.allclose(end - start, vector, atol=1e-3) for start, end in found) == 4
    corners = {tuple(np.round(point, 3) + 0.0) for pair in found for point in pair}
    assert len(corners) == 8 and tuple(np.round(crystal.cell.array.sum(0), 3)) in corners
    layer = crystal.copy()
    layer.cell[2] = 0
    assert len(edges(layer)) == 4
    assert edges(Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])) == []


def test_elements_without_values():
    styles = styles_of(view(SLAB))
    assert all("color" in style for style in styles.values()) and styles["Pt"]["color"] == "#d0d0e0"  # jmol's
    assert calls(view(SLAB, tilt=-30.0), "rotate") == [[-30.0, "x"]]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"atoms": []}, r"atoms must be ASE Atoms of one atom or more, or a list of them, got \[\]"),
        ({"atoms": Atoms()}, "atoms must be ASE Atoms of one atom or more"),
        ({"atoms": 3}, "atoms must be ASE Atoms of one atom or more, or a list of them, got 3"),
        (
            {"atoms": [SLAB, SLAB[:-1]]},
            "atoms must be frames of the same symbols, got Pt4CO and, frame 1, Pt4C",
        ),
        ({"atoms": Atoms("Pt", [[0, 0, np.nan]])}, "atoms must have finite positions"),
        ({"values": [0, 1]}, r"values must be numbers of shape \[6\] or \[1, 6\], got shape \(2,\)"),
        ({"values": [True] * 6}, "values must be numbers .* dtype bool"),
        ({"values": [0.5] * 5 + [np.inf]}, "values must be finite"),
        ({"values": [0, 0, 0, 0, 0, -1]}, "values of experts must lie between 0 and 3, got -1 to 0"),
        ({"values": [0, 0, 0, 0, 0, 2]}, "names must have one entry per expert, at least 3"),
        ({"values": np.zeros(6), "low": 2.0}, "high must be above low, got 1.0 and 2.0"),
        ({"values": np.zeros(6), "high": np.nan}, "high must be finite"),
        ({"width": 0}, "width must be a whole number, at least 1, got 0"),
        ({"interval_ms": 0.5}, "interval_ms must be a whole number, at least 1, got 0.5"),
        ({"tilt": "up"}, "tilt must be of type float, got 'up'"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        view(**{"atoms": SLAB, **change})


def test_without_py3dmol_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3Dmol", None)
    with pytest.raises(ImportError, match=r"pip install 'moe_md\[notebooks\]'"):
        view(SLAB)
