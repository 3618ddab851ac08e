"""Figures of a run with a dynamic region: cost, energy conservation, and the gate on the surface.

As in `plots`, figures are independent of matplotlib's global state and need no display.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers, covalent_radii
from jax.typing import ArrayLike
from jaxtyping import Real
from matplotlib.animation import FuncAnimation
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from moe_md.plots.plots import CHEAP, ELEMENTS, EXPENSIVE, FAINT, INK, plain

GATE_COLOURS = LinearSegmentedColormap.from_list("gate", [CHEAP, EXPENSIVE])
TRACKS = ("#1f4e79", "#9b2d5e", "#2f6b4f", "#6a4c93", "#8a4b14")
DEPTH = 4.0  # Å below the top layer, shown in a view from above


class Path(NamedTuple):
    """An atom whose path is drawn."""

    atom: int
    name: str  # for the legend


def top_view(
    position: Real[ArrayLike, "atoms 3"] | Sequence,
    symbols: Sequence[str],
    gate: Real[ArrayLike, " atoms"] | Sequence,
    box: Real[ArrayLike, "3"] | Sequence,
    *,
    paths: Sequence[Path] = (),
    frames: Real[ArrayLike, "frames atoms 3"] | Sequence | None = None,
) -> Figure:
    """A surface from above; metal atoms are coloured by the gate of the expensive expert.

    Args:
        position: Å; z points to the viewer.
        symbols: chemical symbol of each atom; C and O have colours of their own.
        gate: in [0, 1], of the expensive expert.
        box: Å, edges; x and y are periodic.
        paths: atoms whose path over `frames` is drawn.
        frames: Å, earlier positions; required with `paths`.

    Returns:
        The figure.

    Raises:
        ValueError: shapes do not match.
    """
    position, gate, box = _checked(position, symbols, gate, box, frames, paths)
    figure = Figure(figsize=(7.2, 7.2 * box[1] / box[0] + 0.9), layout="constrained")
    panel = figure.subplots()
    _draw_view(panel, position, symbols, gate, box)
    _draw_paths(panel, frames, paths, box)
    _colour_bar(figure, panel)
    return figure


def moving_run(
    time_ps: Real[ArrayLike, " n"] | Sequence,
    share: Real[ArrayLike, " n"] | Sequence,
    energy: Real[ArrayLike, " n"] | Sequence,
    kinetic: Real[ArrayLike, " n"] | Sequence,
    position: Real[ArrayLike, "atoms 3"] | Sequence,
    symbols: Sequence[str],
    gate: Real[ArrayLike, " atoms"] | Sequence,
    box: Real[ArrayLike, "3"] | Sequence,
    *,
    kicks_ps: Real[np.ndarray, " kicks"] | Sequence = (),
    paths: Sequence[Path] = (),
    frames: Real[ArrayLike, "frames atoms 3"] | Sequence | None = None,
) -> Figure:
    """A run with a dynamic region: cost and energy over time (left), the surface from above (right).

    Args:
        time_ps: ps.
        share: fraction of atoms for which the expensive expert's gate is above zero.
        energy: eV, the conserved quantity: total energy minus external work.
        kinetic: eV.
        position, symbols, gate, box, paths, frames: as of `top_view`.
        kicks_ps: ps, times of external work; marked by dotted lines.

    Returns:
        The figure.

    Raises:
        ValueError: shapes do not match, or there are no points.
    """
    time, share, energy, kinetic = (np.asarray(x, float) for x in (time_ps, share, energy, kinetic))
    if not (time.ndim == 1 and len(time) and time.shape == share.shape == energy.shape == kinetic.shape):
        raise ValueError(
            "time_ps, share, energy and kinetic must be vectors of one length, at least 1, "
            f"got shapes {time.shape}, {share.shape}, {energy.shape} and {kinetic.shape}."
        )
    position, gate, box = _checked(position, symbols, gate, box, frames, paths)
    height, left = 6.4, 5.6
    right = min(max((height - 1.2) * box[0] / box[1], 4.0), 9.0)
    figure = Figure(figsize=(left + right + 0.4, height), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(left, right))
    cost = figure.add_subplot(grid[0, 0])
    change, deviation = (figure.add_subplot(grid[row, 0], sharex=cost) for row in (1, 2))
    view = figure.add_subplot(grid[:, 1])
    _draw_cost(cost, time, share)
    _draw_energies(change, deviation, time, energy, kinetic)
    if len(time) > 1:
        deviation.set_xlim(time[0], time[-1])
    for panel in (cost, change, deviation):
        for kick in kicks_ps:
            panel.axvline(kick, color=FAINT, lw=0.7, ls=(0, (2, 3)), zorder=0)
        plain(panel)
    cost.tick_params(labelbottom=False)
    change.tick_params(labelbottom=False)
    figure.align_ylabels([cost, change, deviation])

    _draw_view(view, position, symbols, gate, box)
    _draw_paths(view, frames, paths, box)
    _colour_bar(figure, view)
    return figure


def _draw_cost(panel, time, share) -> None:
    panel.plot(time, 100 * share, color=_darker(EXPENSIVE), lw=1.2)
    top = max(1.25 * 100 * share.max(), 1.0)
    panel.set(ylim=(0, top), ylabel="atoms on the\nexpensive expert / %")


def _draw_energies(change, deviation, time, energy, kinetic) -> None:
    """Draw changes since the start, and the deviation of the conserved energy from its mean."""
    kinetic_change, energy_change = kinetic - kinetic[0], energy - energy[0]
    change.plot(time, kinetic_change, color="#c77f1a", lw=1.0, label="kinetic")
    change.plot(time, energy_change, color="#28527a", lw=1.6, label="total − work")
    low, high = (f(np.append(kinetic_change, energy_change)) for f in (np.min, np.max))
    margin = max(high - low, 1e-6)
    change.set(ylim=(low - 0.1 * margin, high + 0.35 * margin), ylabel="change since start\neV")
    change.legend(loc="upper left", frameon=False, ncols=2)
    deviation_meV = 1000 * (energy - energy.mean())
    deviation.axhline(0, color=FAINT, lw=0.6)
    deviation.plot(time, deviation_meV, color="#28527a", lw=0.8)
    limit = 1.3 * max(np.abs(deviation_meV).max(), 1e-6)
    deviation.set(
        ylim=(-limit, limit), ylabel="total − work,\ndeviation from\nmean / meV", xlabel="time / ps"
    )


def animation(
    frames: Real[ArrayLike, "frames atoms 3"] | Sequence,
    symbols: Sequence[str],
    gates: Real[ArrayLike, "frames atoms"] | Sequence,
    box: Real[ArrayLike, "3"] | Sequence,
    time_ps: Real[ArrayLike, " frames"] | Sequence,
    *,
    paths: Sequence[Path] = (),
    share: Real[ArrayLike, " frames"] | Sequence | None = None,
    interval_ms: int = 80,
) -> FuncAnimation:
    """A surface from above as an animation.

    `.to_jshtml()` shows it in a notebook, `.save(path, writer="pillow")` writes a GIF.

    Args:
        frames: Å.
        symbols: chemical symbol of each atom.
        gates: in [0, 1], of the expensive expert.
        box: Å, edges; x and y are periodic.
        time_ps: ps.
        paths: atoms whose path up to each frame is drawn.
        share: fraction of atoms on the expensive expert, for the title; by
            default that of atoms with a gate above zero.
        interval_ms: time between frames.

    Returns:
        The animation.

    Raises:
        ValueError: shapes do not match.
    """
    frames, gates, time = np.asarray(frames, float), np.asarray(gates, float), np.asarray(time_ps, float)
    if (
        frames.ndim != 3
        or not len(frames)
        or gates.shape != frames.shape[:2]
        or time.shape != frames.shape[:1]
    ):
        raise ValueError(
            "frames, gates and time_ps must have shapes "
            "[n_frames, n_atoms, 3], [n_frames, n_atoms] and [n_frames], "
            f"got {frames.shape}, {gates.shape} and {time.shape}."
        )
    share = np.mean(gates > 0, axis=1) if share is None else np.asarray(share, float)
    if share.shape != time.shape:
        raise ValueError(f"share must have shape {time.shape}, one per frame, got {share.shape}.")
    _, _, box = _checked(frames[0], symbols, gates[0], box, frames, paths)
    figure = Figure(figsize=(6.4, 6.4 * box[1] / box[0] + 1.1), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    _colour_bar(figure, panel)

    def draw(n: int) -> tuple[()]:
        panel.clear()
        _draw_view(panel, frames[n], symbols, gates[n], box)
        _draw_paths(panel, frames[: n + 1], paths, box, legend=False)
        panel.set_title(
            f"{time[n]:.2f} ps, {share[n]:.0%} of the atoms on the expensive expert", fontsize=10, color=INK
        )
        return ()

    return FuncAnimation(
        figure, draw, frames=len(frames), init_func=lambda: (), interval=interval_ms, cache_frame_data=False
    )


def _checked(position, symbols, gate, box, frames, paths):
    """Positions, gate and box as arrays; `ValueError` where shapes do not match."""
    position, gate, box = (np.asarray(x, float) for x in (position, gate, box))
    n_atoms = len(symbols)
    if position.shape != (n_atoms, 3) or gate.shape != (n_atoms,) or box.shape != (3,):
        raise ValueError(
            f"position, gate and box must have shapes [{n_atoms}, 3] and [{n_atoms}], one per symbol, "
            f"and [3], got {position.shape}, {gate.shape} and {box.shape}."
        )
    if paths and (frames is None or np.shape(frames)[1:] != position.shape):
        raise ValueError(
            f"frames must have shape [n_frames, {n_atoms}, 3] where paths are given, got {np.shape(frames)}."
        )
    return position, gate, box


def _draw_view(panel, position, symbols, gate, box) -> None:
    """Draw the top layers and all molecules, with periodic images at the edges."""
    symbols = np.asarray(symbols)
    metal = ~np.isin(symbols, list(ELEMENTS))
    level = (
        np.median(np.sort(position[metal, 2])[-max(metal.sum() // 20, 1) :])
        if metal.any()
        else position[:, 2].max()
    )
    (shown,) = np.nonzero((position[:, 2] > level - DEPTH) | ~metal)
    shown = shown[np.argsort(position[shown, 2])]  # lowest first
    size = np.array([2 * 0.92 * covalent_radii[atomic_numbers[s]] for s in symbols[shown]])
    paint = GATE_COLOURS(np.clip(gate[shown], 0, 1))[:, :3]
    for n, symbol in enumerate(symbols[shown]):
        if symbol in ELEMENTS:
            paint[n] = to_rgb(ELEMENTS[symbol])
    fade = (0.6 * np.clip((level - position[shown, 2]) / DEPTH, 0, 1))[:, None]
    face = paint * (1 - fade) + fade  # lower atoms are paler
    wrapped = np.mod(position[shown, :2], box[:2])
    # Periodic images of atoms that extend over an edge, in the order of heights.
    shifts = np.array([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)]) * box[:2]
    images = (wrapped[:, None] + shifts).reshape(-1, 2)
    atom = np.repeat(np.arange(len(shown)), len(shifts))
    radius = 0.5 * size[atom]
    visible = np.all((images > -radius[:, None]) & (images < box[:2] + radius[:, None]), axis=1)
    images, atom = images[visible], atom[visible]
    panel.add_collection(
        EllipseCollection(
            size[atom],
            size[atom],
            np.zeros(len(atom)),
            offsets=images,
            offset_transform=panel.transData,
            units="xy",
            facecolors=face[atom],
            edgecolors=face[atom] * 0.62,
            linewidths=0.5,
        )
    )
    panel.set(xlim=(0, box[0]), ylim=(0, box[1]), aspect="equal", xlabel="x / Å", ylabel="y / Å")
    panel.tick_params(color=FAINT, labelcolor=INK)
    panel.spines[:].set_color(FAINT)


def _draw_paths(panel, frames, paths, box, legend: bool = True) -> None:
    """Draw the path of each atom, with a circle at its start."""
    if not paths:
        return
    edges = [withStroke(linewidth=3.4, foreground="white", alpha=0.8)]
    for n, (atom, name) in enumerate(paths):
        colour = TRACKS[n % len(TRACKS)]
        x, y = _split_at_edges(np.asarray(frames)[:, atom, :2], box[:2])
        panel.plot(x, y, color=colour, lw=1.6, path_effects=edges, label=name, solid_capstyle="round")
        panel.plot(x[:1], y[:1], "o", ms=6, mfc="white", mec=colour, mew=1.6)
    if legend:
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(paths), frameon=False)


def _split_at_edges(path, edges):
    """x and y wrapped into the box, with NaN where the path crosses an edge."""
    inside = np.mod(path, edges)
    jumps = np.flatnonzero(np.any(np.abs(np.diff(inside, axis=0)) > 0.5 * edges, axis=1)) + 1
    return np.insert(inside, jumps, np.nan, axis=0).T


def _colour_bar(figure, panel) -> None:
    bar = figure.colorbar(
        ScalarMappable(cmap=GATE_COLOURS), ax=panel, location="bottom", shrink=0.5, aspect=30, pad=0.03
    )
    bar.set_label("gate of the expensive expert", color=INK)
    bar.outline.set_edgecolor(FAINT)
    bar.ax.tick_params(color=FAINT, labelcolor=INK)


def _darker(colour: str):
    return tuple(0.8 * np.array(to_rgb(colour)))
