"""Figures of runs with a dynamic region."""

import sys

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgb

from moe_md.plots import moving as moving_plots
from moe_md.plots import plots
from moe_md.plots.moving import Path

BOX = np.array([12.0, 9.0, 20.0])
SYMBOLS = ("Pt", "Pt", "Pt", "Pt", "C", "O")
POSITION = np.array([[3.0, 3, 7], [6, 3, 7], [0.2, 6, 7], [5, 5, 1], [6, 3, 8.8], [6, 3, 10]])
GATE = np.array([0.0, 1.0, 0.5, 0.0, 1.0, 1.0])
TIME = np.linspace(0, 1, 11)
FRAMES = POSITION + np.array([1, 0, 0]) * 10 * TIME[:, None, None]  # all atoms move along x, over the edge


def atoms_of(panel):
    return next(c for c in panel.collections if isinstance(c, EllipseCollection))


def drawn(panel):
    """Position and colour of each circle, lowest atoms first."""
    circles = atoms_of(panel)
    return np.asarray(circles.get_offsets()), circles.get_facecolors()[:, :3]


def test_metal_is_coloured_by_gate_and_molecules_by_element():
    positions, colours = drawn(moving_plots.top_view(POSITION, SYMBOLS, GATE, BOX).axes[0])

    def colours_at(xy):
        return colours[np.all(np.isclose(positions, xy), axis=1)]

    np.testing.assert_allclose(colours_at([3, 3])[0], to_rgb(plots.CHEAP), atol=0.01)
    np.testing.assert_allclose(
        colours_at([6, 3]),
        [to_rgb(x) for x in (plots.EXPENSIVE, plots.ELEMENTS["C"], plots.ELEMENTS["O"])],
        atol=0.01,
    )
    np.testing.assert_allclose(
        colours_at([0.2, 6])[0], np.mean([to_rgb(plots.CHEAP), to_rgb(plots.EXPENSIVE)], axis=0), atol=0.01
    )


def test_deep_atoms_are_left_out_and_atoms_at_an_edge_drawn_twice():
    positions, _ = drawn(moving_plots.top_view(POSITION, SYMBOLS, GATE, BOX).axes[0])
    assert not np.any(np.all(np.isclose(positions, [5, 5]), axis=1))
    at_edge = positions[np.isclose(positions[:, 1], 6)]
    assert sorted(at_edge[:, 0]) == pytest.approx([0.2, 12.2])


def test_an_adatom_does_not_hide_the_top_layer():
    terrace = np.stack(np.meshgrid(np.arange(0.5, 30, 2.8), np.arange(0.5, 30, 2.8), [7.0]), -1).reshape(
        -1, 3
    )
    position = np.vstack([terrace, [15.0, 15.0, 16.0]])
    panel = moving_plots.top_view(
        position, ["Pt"] * len(position), np.zeros(len(position)), [31.0, 31.0, 40.0]
    ).axes[0]
    assert len(drawn(panel)[0]) >= len(position)


def test_paths_break_where_they_leave_the_box():
    figure = moving_plots.top_view(FRAMES[-1], SYMBOLS, GATE, BOX, paths=[Path(4, "CO 1")], frames=FRAMES)
    line, start = figure.axes[0].lines
    x = line.get_xdata()
    assert np.isnan(x).sum() == 1 and np.nanmin(x) >= 0 and np.nanmax(x) <= BOX[0]
    assert x[~np.isnan(x)].tolist() == pytest.approx(np.mod(FRAMES[:, 4, 0], BOX[0]))
    assert (start.get_xdata()[0], start.get_ydata()[0]) == pytest.approx((6, 3))
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["CO 1"]


def test_run_figure_shows_cost_and_energies(tmp_path):
    energy, kinetic = -6 + 1e-3 * np.sin(9 * TIME), 3 + TIME
    figure = moving_plots.moving_run(
        TIME,
        0.2 + 0.1 * TIME,
        energy,
        kinetic,
        FRAMES[-1],
        SYMBOLS,
        GATE,
        BOX,
        kicks_ps=[0.5],
        paths=[Path(4, "CO 1")],
        frames=FRAMES,
    )
    cost, change, deviation, view = figure.axes[:4]
    np.testing.assert_allclose(cost.lines[0].get_ydata(), 20 + 10 * TIME)
    np.testing.assert_allclose(change.lines[0].get_ydata(), TIME, atol=1e-9)
    np.testing.assert_allclose(change.lines[1].get_ydata(), energy - energy[0])
    deviation_meV = deviation.lines[1].get_ydata()
    np.testing.assert_allclose(deviation_meV, 1000 * (energy - energy.mean()), atol=1e-9)  # meV
    for panel in (cost, change, deviation):
        assert panel.lines[-1].get_xdata() == [0.5, 0.5]
    assert all(
        unit in panel.get_ylabel()
        for panel, unit in ((cost, "%"), (change, "eV"), (deviation, "meV"), (view, "Å"))
    )
    figure.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_animation_is_saved(tmp_path):
    gates = np.tile(GATE, (3, 1))
    film = moving_plots.animation(FRAMES[:3], SYMBOLS, gates, BOX, TIME[:3], paths=[Path(4, "CO 1")])
    film.save(tmp_path / "film.gif", writer="pillow", dpi=30)
    from PIL import Image

    assert Image.open(tmp_path / "film.gif").n_frames == 3
    assert "<img" in film.to_jshtml()


def test_animation_shows_each_frame():
    film = moving_plots.animation(
        FRAMES[:3], SYMBOLS, np.tile(GATE, (3, 1)), BOX, TIME[:3], share=[0.1, 0.2, 0.3]
    )
    film._draw_frame(2)
    panel = film._fig.axes[0]
    assert panel.get_title() == "0.20 ps, 30% of the atoms on the expensive expert"
    assert len(panel.collections) == 1  # the earlier frame is removed
    assert np.any(np.all(np.isclose(drawn(panel)[0], FRAMES[2, 0, :2]), axis=1))
    film._draw_was_started = True  # prevents a warning


def test_no_global_figure_is_made():
    before = "matplotlib.pyplot" in sys.modules
    moving_plots.top_view(POSITION, SYMBOLS, GATE, BOX)
    assert ("matplotlib.pyplot" in sys.modules) == before
    if before:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_bad_input():
    with pytest.raises(ValueError, match=r"shapes \[6, 3\] and \[6\].*got \(6, 3\), \(5,\) and \(3,\)"):
        moving_plots.top_view(POSITION, SYMBOLS, GATE[:5], BOX)
    with pytest.raises(ValueError, match="frames must have shape .* where paths are given, got"):
        moving_plots.top_view(POSITION, SYMBOLS, GATE, BOX, paths=[Path(4, "CO 1")])
    with pytest.raises(ValueError, match="one length"):
        moving_plots.moving_run([0, 1], [0], [0, 1], [0, 1], POSITION, SYMBOLS, GATE, BOX)
    with pytest.raises(ValueError, match="frames, gates and time_ps must have shapes"):
        moving_plots.animation(FRAMES, SYMBOLS, GATE, BOX, TIME)
    with pytest.raises(ValueError, match="share must have shape"):
        moving_plots.animation(FRAMES[:2], SYMBOLS, np.tile(GATE, (2, 1)), BOX, TIME[:2], share=[0.1])
