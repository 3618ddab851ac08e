"""Figures show the given values and do not touch matplotlib's global state."""

import sys

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

from moe_md.plots import plots

POSITION = np.array([[0.0, 0, 0], [2.8, 0, 0], [0, 5.0, 2.3], [0, 0, 4.2], [0, 0, 5.3]])
SYMBOLS, ASSIGNMENT = ("Pt", "Pt", "Pt", "C", "O"), np.array([1, 1, 0, 0, 0])


def atoms_of(panel):
    return next(c for c in panel.collections if isinstance(c, EllipseCollection))


def test_slab_view_draws_every_atom_once_from_far_to_near(tmp_path):
    figure = plots.slab_view(POSITION, SYMBOLS, ASSIGNMENT, zoom=None)
    (panel,) = figure.axes
    drawn = atoms_of(panel)
    offsets = np.asarray(drawn.get_offsets())
    assert sorted(map(tuple, offsets)) == sorted(map(tuple, POSITION[:, [0, 2]]))
    assert offsets[0].tolist() == POSITION[2, [0, 2]].tolist()  # y = 5, farthest from a viewer at negative y
    reds = drawn.get_facecolors()[:, 0] - drawn.get_facecolors()[:, 2]
    by_position = {tuple(o): r for o, r in zip(offsets, reds)}
    assert by_position[tuple(POSITION[2, [0, 2]])] > 0 > by_position[tuple(POSITION[0, [0, 2]])]  # gold, blue
    assert panel.get_aspect() == 1.0 and "Å" in panel.get_xlabel()
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert len(texts) == 4 and any("cheap" in t for t in texts)
    figure.savefig(tmp_path / "slab.png")
    assert (tmp_path / "slab.png").stat().st_size > 1000


def test_slab_view_along_x_and_zoomed():
    figure = plots.slab_view(POSITION * [1, 1, 6], SYMBOLS, ASSIGNMENT, axis=0, zoom=8.0)
    first, second = figure.axes
    offsets = np.asarray(atoms_of(first).get_offsets())
    assert offsets[-1].tolist() == [0.0, 0.0]  # x = 2.8, nearest to a viewer at positive x
    low, high = second.get_ylim()
    assert high - low == pytest.approx(8.0) and high == first.get_ylim()[1]


def test_energy_over_time_shows_deviations_and_drift():
    time = np.linspace(0, 1, 50)
    kinetic = 0.06 + 0.001 * np.sin(20 * time)
    figure = plots.energy_over_time(
        time, -6 + 1e-5 * time, kinetic, -6 - kinetic, drift=1e-5, drift_stderr=1e-6
    )
    above, below = figure.axes
    total, line = (next(x for x in above.lines if x.get_label().startswith(s)) for s in ("total", "drift"))
    np.testing.assert_allclose(total.get_ydata(), 0.01 * (time - 0.5), atol=1e-9)  # meV
    np.testing.assert_allclose(line.get_ydata(), 0.01 * (time - 0.5), atol=1e-9)
    assert "+0.0100 ± 0.0010" in line.get_label()
    assert {x.get_label() for x in below.lines} == {"kinetic", "potential"}
    assert len(plots.energy_over_time([0.0], [1.0], [1.0], [0.0]).axes) == 2


def test_mismatch_over_height_separates_out_of_domain_atoms(tmp_path):
    height, values = np.arange(4.0), np.array([1e-3, -2e-3, 0.0, 4e-3])
    figure = plots.mismatch_over_height(
        height, values, np.abs(values), [True, True, True, False], region=(2.0, 3.0)
    )
    above, _ = figure.axes
    inside, outside = above.lines
    np.testing.assert_allclose(inside.get_ydata()[:2], [1.0, 2.0])  # meV, absolute values
    assert inside.get_ydata()[2] > 0  # zero is raised to the floor
    assert outside.get_xdata().tolist() == [3.0]
    figure.savefig(tmp_path / "mismatch.png")


def test_no_global_figure_is_made():
    before = "matplotlib.pyplot" in sys.modules
    plots.slab_view(POSITION, SYMBOLS, ASSIGNMENT)
    assert ("matplotlib.pyplot" in sys.modules) == before
    if before:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_bad_input():
    with pytest.raises(ValueError, match=r"shapes \[5, 3\] and \[5\].*got \(5, 3\) and \(4,\)"):
        plots.slab_view(POSITION, SYMBOLS, ASSIGNMENT[:4])
    with pytest.raises(ValueError, match="axis must be 0 or 1, got 2"):
        plots.slab_view(POSITION, SYMBOLS, ASSIGNMENT, axis=2)
    with pytest.raises(ValueError, match="one length"):
        plots.energy_over_time([0, 1], [0], [0, 1], [0, 1])
    with pytest.raises(ValueError, match="one length"):
        plots.mismatch_over_height([0, 1], [0], [0, 1], [True, True], region=(0, 1))
