"""Figures of a mixture: assignment of atoms, energy conservation, agreement of the experts.

Every function returns a matplotlib `Figure` that is independent of matplotlib's global
state and needs no display. Save it with `figure.savefig(path, dpi=150)`.
"""

from collections.abc import Sequence

import numpy as np
from ase.data import atomic_numbers, covalent_radii
from jax.typing import ArrayLike
from jaxtyping import Bool, Integer, Real
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

EXPENSIVE, CHEAP = "#e3ab2c", "#93a9bf"
ELEMENTS = {"C": "#3a3a3a", "O": "#cf3a2d"}  # colours of elements; other elements are coloured by expert
INK, FAINT = "#2b2b2b", "#8a8a8a"


def slab_view(
    position: Real[ArrayLike, "atoms 3"] | Sequence,
    symbols: Sequence[str],
    assignment: Integer[ArrayLike, " atoms"] | Sequence,
    *,
    axis: int = 1,
    zoom: float | None = 16.0,
    names: Sequence[str] = ("expensive expert", "cheap expert"),
) -> Figure:
    """A structure from the side; atoms are coloured by expert, C and O by element.

    Args:
        position: Å.
        symbols: chemical symbol of each atom.
        assignment: the expert of each atom, 0 for the most expensive one.
        axis: 0 or 1, the viewing direction; z points up.
        zoom: Å, height of a second panel with the top of the structure; None for
            a single panel.
        names: names of the experts, for the legend.

    Returns:
        The figure.

    Raises:
        ValueError: shapes do not match, or the axis is not 0 or 1.
    """
    position, assignment = np.asarray(position, float), np.asarray(assignment)
    n_atoms = len(symbols)
    if position.shape != (n_atoms, 3) or assignment.shape != (n_atoms,):
        raise ValueError(
            f"position and assignment must have shapes [{n_atoms}, 3] and [{n_atoms}], one per symbol, "
            f"got {position.shape} and {assignment.shape}."
        )
    if axis not in (0, 1):
        raise ValueError(f"axis must be 0 or 1, got {axis}.")
    across = 1 - axis
    low, high = position.min(0) - 2.0, position.max(0) + 2.0
    width, height = high[across] - low[across], high[2] - low[2]
    windows = [(low[2], high[2])]
    if zoom is not None and zoom < 0.7 * height:
        windows.append((high[2] - zoom, high[2]))
    # Panels have equal heights, and each has the same scale on both axes.
    inches = 5.6
    widths = [inches * width / (top - bottom) for bottom, top in windows]
    figure = Figure(figsize=(sum(widths) + 0.9 * len(widths) + 0.2, inches + 1.1), layout="constrained")
    panels = figure.subplots(1, len(windows), squeeze=False, width_ratios=widths)[0]
    for panel, (bottom, top) in zip(panels, windows):
        _draw_atoms(panel, position, symbols, assignment, axis, across)
        panel.set(xlim=(low[across], high[across]), ylim=(bottom, top), aspect="equal")
        panel.set_xlabel(f"{'xy'[across]} / Å")
        panel.tick_params(color=FAINT, labelcolor=INK)
        panel.spines[:].set_color(FAINT)
    panels[0].set_ylabel("z / Å")
    if len(panels) == 2:
        bottom, top = windows[1]
        panels[0].axhline(bottom, color=FAINT, lw=0.8, ls=(0, (4, 3)))
    figure.legend(
        handles=_legend(symbols, assignment, names), loc="outside upper center", ncols=2, frameon=False
    )
    return figure


def energy_over_time(
    time_ps: Real[ArrayLike, " n"] | Sequence,
    total: Real[ArrayLike, " n"] | Sequence,
    kinetic: Real[ArrayLike, " n"] | Sequence,
    potential: Real[ArrayLike, " n"] | Sequence,
    *,
    drift: float | None = None,
    drift_stderr: float | None = None,
) -> Figure:
    """Energy over time: the total (above), and kinetic and potential energy (below).

    Args:
        time_ps: ps.
        total, kinetic, potential: eV per atom.
        drift: eV per atom per ps; drawn as a line if given.
        drift_stderr: standard error of `drift`.

    Returns:
        The figure.

    Raises:
        ValueError: lengths differ, or there are no points.
    """
    time, total, kinetic, potential = (np.asarray(x, float) for x in (time_ps, total, kinetic, potential))
    if not (time.ndim == 1 and len(time) and time.shape == total.shape == kinetic.shape == potential.shape):
        raise ValueError(
            "time_ps, total, kinetic and potential must be vectors of one length, at least 1, "
            f"got shapes {time.shape}, {total.shape}, {kinetic.shape} and {potential.shape}."
        )
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    deviation = 1000 * (total - total.mean())
    above.axhline(0, color=FAINT, lw=0.6)
    above.plot(time, deviation, color="#28527a", lw=1.0, label="total energy")
    if drift is not None:
        line = 1000 * drift * (time - time.mean())
        error = "" if drift_stderr is None else f" ± {1000 * drift_stderr:.4f}"
        label = f"drift {1000 * drift:+.4f}{error} meV/atom/ps"
        above.plot(time, line, color="#c0392b", lw=1.4, ls=(0, (5, 2)), label=label)
    limit = 1.6 * max(np.abs(deviation).max(), 1e-6)
    above.set(ylim=(-limit, limit), ylabel="total − mean\nmeV per atom")
    above.legend(loc="upper left", frameon=False, ncols=2)
    changes = [1000 * (x - x[0]) for x in (kinetic, potential)]
    for change, colour, label in zip(changes, ("#c77f1a", "#4f7f6b"), ("kinetic", "potential")):
        below.plot(time, change, color=colour, lw=1.0, label=label)
    below.set(xlabel="time / ps", ylabel="change since start\nmeV per atom")
    span = np.concatenate(changes)
    margin = max(np.ptp(span), 1e-6)
    below.set_ylim(span.min() - 0.1 * margin, span.max() + 0.3 * margin)
    below.legend(loc="upper left", frameon=False, ncols=2)
    for panel in (above, below):
        plain(panel)
    if len(time) > 1:
        below.set_xlim(time[0], time[-1])
    return figure


def mismatch_over_height(
    height: Real[ArrayLike, " n"] | Sequence,
    energy: Real[ArrayLike, " n"] | Sequence,
    partial_force: Real[ArrayLike, " n"] | Sequence,
    in_domain: Bool[ArrayLike, " n"] | Sequence,
    *,
    region: tuple[float, float],
) -> Figure:
    """Differences between the experts for each atom over its height.

    Args:
        height: Å.
        energy: eV, difference of the experts' energies.
        partial_force: eV/Å, norm of the difference of partial forces.
        in_domain: atoms within the domains of both experts; the others
            are drawn hollow.
        region: Å, heights of the lowest and highest atom of the expensive expert;
            shaded.

    Returns:
        The figure.

    Raises:
        ValueError: lengths differ.
    """
    height, energy, force = (np.asarray(x, float) for x in (height, energy, partial_force))
    inside = np.asarray(in_domain, bool)
    if not (height.ndim == 1 and height.shape == energy.shape == force.shape == inside.shape):
        raise ValueError(
            "height, energy, partial_force and in_domain must be vectors of one length, "
            f"got shapes {height.shape}, {energy.shape}, {force.shape} and {inside.shape}."
        )
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    labels = ("|Δ energy|\nmeV per atom", "|Δ partial forces|\nmeV/Å per atom")
    for panel, values, label in zip(panels, (1000 * np.abs(energy), 1000 * force), labels):
        # Values below a floor are raised to it: the logarithm of zero is not finite.
        floor = max(0.5 * np.quantile(values, 0.01), 1e-6) if len(values) else 1e-6
        values = np.maximum(values, floor)
        panel.axvspan(region[0] - 1.0, region[1] + 1.0, color=EXPENSIVE, alpha=0.18, lw=0, zorder=0)
        style = dict(ls="none", marker="o", ms=3.2, mew=0.6, rasterized=True)
        panel.plot(height[inside], values[inside], mfc="#28527a", mec="none", alpha=0.35, **style)
        panel.plot(height[~inside], values[~inside], mfc="none", mec=FAINT, **style)
        panel.set(yscale="log", ylabel=label)
        panel.yaxis.set_major_formatter(_short)
        decades = np.log10(np.divide(*panel.get_ylim()[::-1]))
        panel.yaxis.set_minor_formatter(_short if decades < 1.2 else NullFormatter())
        plain(panel)
    panels[1].set_xlabel("height z / Å")
    handles = [
        Line2D([], [], ls="none", marker="o", ms=5, mfc="#28527a", mec="none", label="in-domain"),
        Line2D(
            [],
            [],
            ls="none",
            marker="s",
            ms=9,
            mfc=EXPENSIVE,
            alpha=0.35,
            mec="none",
            label="expensive expert's atoms",
        ),
    ]
    if not inside.all():
        out_of_domain = Line2D(
            [],
            [],
            ls="none",
            marker="o",
            ms=5,
            mfc="none",
            mec=FAINT,
            label="out-of-domain (not compared)",
        )
        handles.insert(1, out_of_domain)
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, handletextpad=0.3)
    return figure


def _draw_atoms(panel, position, symbols, assignment, axis, across) -> None:
    """Draw atoms as circles, the farthest first; `across` is the horizontal axis."""
    order = np.argsort(position[:, axis])[::-1] if axis == 1 else np.argsort(position[:, axis])
    depth = position[order, axis]
    depth = (depth - depth[0]) / (depth[-1] - depth[0] or 1.0)  # 0 far, 1 near
    size = np.array([2 * 0.92 * covalent_radii[atomic_numbers[symbols[k]]] for k in order])
    colour = np.array([to_rgb(_colour(symbols[k], assignment[k])) for k in order])
    fade = 0.45 * (1 - depth)[:, None]
    face = colour * (1 - fade) + fade  # farther atoms are paler
    atoms = EllipseCollection(
        size,
        size,
        np.zeros(len(order)),
        offsets=position[order][:, [across, 2]],
        offset_transform=panel.transData,
        units="xy",
        facecolors=face,
        edgecolors=face * 0.62,
        linewidths=0.5,
    )
    panel.add_collection(atoms)


def _colour(symbol: str, expert: int) -> str:
    return ELEMENTS.get(symbol, EXPENSIVE if expert == 0 else CHEAP)


def _legend(symbols, assignment, names) -> list[Line2D]:
    """One handle for each combination of element and expert."""
    entries: dict[str, str] = {}
    for symbol, expert in sorted(
        set(zip(symbols, np.asarray(assignment).tolist())), key=lambda x: (x[0] in ELEMENTS, x[1], x[0])
    ):
        expert_name = names[min(expert, len(names) - 1)]
        text = f"{symbol}, {expert_name}" if symbol not in ELEMENTS or expert else f"{symbol} ({expert_name})"
        entries.setdefault(text, _colour(symbol, expert))
    return [
        Line2D(
            [],
            [],
            ls="none",
            marker="o",
            ms=9,
            mfc=colour,
            mec=np.array(to_rgb(colour)) * 0.62,
            mew=0.6,
            label=text,
        )
        for text, colour in entries.items()
    ]


def _short(value: float, _position=None) -> str:
    """A tick label without exponent, as 0.01, 5 or 200; empty for leading digits other than 1, 2 and 5."""
    leading = round(value / 10 ** np.floor(np.log10(value) + 1e-9))
    return f"{value:g}" if leading in (1, 2, 5) else ""


def plain(panel) -> None:
    """Apply the style of all figures here: grey axes on the left and at the bottom, no frame."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(FAINT)
    panel.tick_params(color=FAINT, labelcolor=INK)
