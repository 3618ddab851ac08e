"""Figures of a validation, drawn from the content of `validation.json`.

Each function takes a section and returns a figure; `pictures` returns all figures of a
section.
"""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moe_md.analysis.environments import ENVIRONMENTS
from moe_md.plots.plots import CHEAP, EXPENSIVE, FAINT, INK, plain

MIXED = "#28527a"
COLOURS = {"expensive": EXPENSIVE, "cheap": CHEAP, "mixed": MIXED, "expensive_where_mixed": EXPENSIVE}
NAMES = {"expensive": "expensive expert", "cheap": "cheap expert", "mixed": "mixture"}
BOUNDARY_COLOURS = ("#4f7f6b", "#28527a", "#c77f1a", "#8a4f7d", "#7a6a28")


def pictures(section: str, found: dict) -> dict[str, Figure]:
    """All figures for a section of `validation.json`, by name.

    Figures for which the section has no data are left out. The sections `crystal`,
    `surfaces` and `expert_boundary` have a figure for each crystal, named by `picture_name`.
    """
    of_crystals: dict[str, dict[str, Callable]] = {
        "crystal": {"equation_of_state": equation_of_state, "phonons": phonons},
        "surfaces": {"adsorption": adsorption_sites},
        "expert_boundary": {"expert_boundary": boundary_over_strain},
    }
    functions: dict[str, dict[str, Callable]] = {
        "errors": {"errors": errors_by_environment, "boundary_distance": errors_over_distance},
        "dynamics": {"dynamics": runs_side_by_side},
    }
    if section in of_crystals:
        drawn = {
            picture_name(name, crystal, len(found)): draw(entry)
            for crystal, entry in found.items()
            for name, draw in of_crystals[section].items()
        }
    else:
        drawn = {name: draw(found) for name, draw in functions[section].items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def picture_name(name: str, crystal: str, n_crystals: int) -> str:
    """Name of a figure of one of several crystals, such as phonons-Si; without the crystal if it is alone.

    >>> picture_name("phonons", "Si", 2), picture_name("phonons", "Si", 1)
    ('phonons-Si', 'phonons')
    """
    return name if n_crystals == 1 else f"{name}-{crystal}"


def errors_by_environment(errors: dict) -> Figure | None:
    """Force errors of bulk, subsurface, surface and adsorbate.

    The second panel compares the mixture with the expensive expert on frames with an expert boundary.
    """
    panels = (
        ("each expert, atoms in its domain", ("expensive", "cheap")),
        ("frames with an expert boundary", ("expensive_where_mixed", "mixed")),
    )
    found = errors["environments"]
    panels = tuple(p for p in panels if any(found[e][who] for e in ENVIRONMENTS for who in p[1]))
    if not panels:
        return None
    figure = Figure(figsize=(4.4 * len(panels) + 0.6, 3.7), layout="constrained")
    for panel, (title, who) in zip(np.ravel(figure.subplots(1, len(panels), sharey=True)), panels):
        for k, name in enumerate(who):
            centers = np.arange(len(ENVIRONMENTS)) + 0.38 * (k - 0.5)
            for x, environment in zip(centers, ENVIRONMENTS):
                score = found[environment][name]
                if score is None:
                    panel.text(x, 2, "none", ha="center", va="bottom", rotation=90, fontsize=8, color=FAINT)
                    continue
                panel.bar(x, score["rmse"], 0.36, color=COLOURS[name])
                panel.plot([x - 0.17, x + 0.17], [score["mae"]] * 2, color=INK, lw=1.2)
                panel.text(
                    x,
                    score["rmse"],
                    f"{score['count'] // 3}",
                    ha="center",
                    va="bottom",
                    fontsize=8,
                    color=FAINT,
                )
        handles = [_box(COLOURS[name], NAMES[name.removesuffix("_where_mixed")]) for name in who]
        handles.append(Line2D([], [], color=INK, lw=1.2, label="mean absolute error"))
        panel.legend(handles=handles, frameon=False, fontsize=9)
        panel.set_xticks(np.arange(len(ENVIRONMENTS)), ENVIRONMENTS)
        panel.set_xlim(-0.55, len(ENVIRONMENTS) - 0.45)
        panel.set_title(title, fontsize=10, color=INK)
        plain(panel)
    figure.axes[0].set_ylabel("root mean square force error\nmeV/Å (above bars: number of atoms)")
    high = figure.axes[0].get_ylim()[1]
    figure.axes[0].set_ylim(0, 1.35 * high)
    return figure


def errors_over_distance(errors: dict) -> Figure | None:
    """Force errors over the distance to the expert boundary, and the change due to the mixture."""
    bins = errors["expert_boundary"]["bins"]
    if not bins:
        return None
    middle = np.array([0.5 * (b["from"] + b["to"]) for b in bins])
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for who in ("expensive", "mixed"):
        error = np.array([np.nan if b[who] is None else b[who] for b in bins])
        style = {"expensive": dict(marker="s", ms=8, mfc="none"), "mixed": dict(marker="o", ms=4)}[who]
        for side, label in ((middle > 0, NAMES[who]), (middle < 0, None)):
            above.plot(middle[side], error[side], color=COLOURS[who], lw=1.2, label=label, **style)
    for x, b in zip(middle, bins):
        above.text(
            x,
            0.02,
            f"{b['atoms']}",
            ha="center",
            color=FAINT,
            fontsize=8,
            transform=above.get_xaxis_transform(),
        )
    below.bar(
        middle,
        [np.nan if b["change"] is None else b["change"] for b in bins],
        0.8 * (bins[0]["to"] - bins[0]["from"]),
        color=MIXED,
    )
    above.set(ylabel="force error\nmeV/Å (bottom: number of atoms)", ylim=(0, 1.25 * above.get_ylim()[1]))
    below.set(
        xlabel="distance to the nearest atom of the other expert / Å (positive: expensive expert's atoms)"
    )
    below.set_ylabel("mixture − expensive\nroot mean square, meV/Å")
    edge = max(abs(bins[0]["from"]), bins[-1]["to"]) + 0.5
    for panel in (above, below):
        panel.set_xlim(min(-edge / 2, bins[0]["from"] - 0.5), max(edge / 2, bins[-1]["to"] + 0.5))
        panel.axvspan(0, edge + 1, color=EXPENSIVE, alpha=0.14, lw=0, zorder=0)
        panel.axvline(0, color=FAINT, lw=0.8)
        plain(panel)
    above.legend(frameon=False, loc="upper right", ncols=2)
    return figure


def equation_of_state(crystal: dict) -> Figure:
    """Energy and pressure of the perfect crystal over volume, for both experts, and the differences."""
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, height_ratios=(3, 1.4))
    curves = [e["equation_of_state"] for e in crystal["experts"][:2]]
    lowest = min(curves[0]["energy_eV_per_atom"])
    quantities = (
        ("energy_eV_per_atom", 1e3, lowest, "energy − minimum\nmeV/atom", "meV/atom"),
        ("pressure_GPa", 1.0, 0.0, "pressure / GPa", "GPa"),
    )
    for (key, unit, zero, label, short), (above, below) in zip(quantities, panels.T):
        for who, curve in zip(("expensive", "cheap"), curves):
            style = dict(lw=2.6) if who == "expensive" else dict(lw=1.2, marker="o", ms=4)
            values = unit * (np.array(curve[key]) - zero)
            above.plot(curve["volume_A3_per_atom"], values, color=_line(who), label=NAMES[who], **style)
        # The experts have different volumes; interpolate the cheap expert to those of the expensive one.
        x = np.array(curves[0]["volume_A3_per_atom"])
        margin = 0.02 * np.ptp(x)
        within = (x >= min(curves[1]["volume_A3_per_atom"]) - margin) & (
            x <= max(curves[1]["volume_A3_per_atom"]) + margin
        )
        other = _smooth(curves[1]["volume_A3_per_atom"], curves[1][key], x)
        below.axhline(0, color=FAINT, lw=0.6)
        below.plot(x[within], unit * (other - curves[0][key])[within], color=INK, lw=1.0, marker="o", ms=3)
        above.set_ylabel(label)
        below.set_ylabel(f"cheap − expensive\n{short}")
        below.set_xlabel("volume / Å³ per atom")
    panels[0, 0].legend(frameon=False)
    panels[0, 1].axhline(0, color=FAINT, lw=0.6)
    for panel in panels.flat:
        plain(panel)
    return figure


def phonons(crystal: dict) -> Figure:
    """Phonon dispersion of both experts, over the path of the first one: lengths depend on the cell."""
    path = crystal["experts"][0]["phonons"]
    x = np.array(path["distance"])
    first = x[path["ticks"]]
    # Where the path goes on at another point two wave vectors have one distance.
    pieces = np.split(np.arange(len(x)), np.flatnonzero(np.diff(x) == 0) + 1)
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    panel = figure.subplots()
    for who, expert in zip(("expensive", "cheap"), crystal["experts"]):
        bands = expert["phonons"]
        style: dict[str, Any] = dict(lw=2.6) if who == "expensive" else dict(lw=1.2, ls=(0, (4, 2)))
        for piece in pieces:
            frequencies = np.array(bands["frequencies_THz"])[piece]
            lines = panel.plot(x[piece], frequencies, color=_line(who), **style)
        lines[0].set_label(NAMES[who])
    for corner in first:
        panel.axvline(corner, color=FAINT, lw=0.6)
    panel.set_xticks(first, path["labels"])
    panel.set(xlim=(first[0], first[-1]), ylabel="frequency / THz")
    panel.axhline(0, color=FAINT, lw=0.6)
    panel.legend(frameon=False, loc="upper right", bbox_to_anchor=(1.0, 1.13), ncols=2)
    plain(panel)
    return figure


def adsorption_sites(surfaces: dict) -> Figure | None:
    """Adsorption energy of each site by the expensive expert and by the mixture, and the difference."""
    found = surfaces.get("adsorption")
    if found is None:
        return None
    sites = found["expensive"]["order"]
    energies = {
        who: np.array([found[who]["sites"][site]["energy_eV"] for site in sites])
        for who in ("expensive", "mixed")
    }
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.plot(
        energies["expensive"],
        color=EXPENSIVE,
        ls="none",
        marker="s",
        ms=11,
        mew=1.6,
        mfc="none",
        label="expensive expert",
    )
    left.plot(energies["mixed"], color=MIXED, ls="none", marker="o", ms=5, label="mixture")
    left.set_ylabel("adsorption energy / eV")
    right.bar(np.arange(len(sites)), 1e3 * (energies["mixed"] - energies["expensive"]), 0.6, color=MIXED)
    right.axhline(0, color=FAINT, lw=0.6)
    right.set_ylabel("mixture − expensive / meV")
    for panel in (left, right):
        panel.set_xticks(np.arange(len(sites)), sites)
        panel.set_xlim(-0.6, len(sites) - 0.4)
        panel.margins(y=0.15)
        plain(panel)
    left.legend(frameon=False, loc="upper left")
    return figure


def boundary_over_strain(found: dict) -> Figure:
    """Ghost force and stress jump over the strain of the crystal."""
    figure = Figure(figsize=(9.0, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    strain = 100 * np.array(found["strain"])
    boundaries = {name: ghost for name, ghost in found["ghost_force"].items() if isinstance(ghost, dict)}
    for (name, ghost), colour in zip(boundaries.items(), cycle(BOUNDARY_COLOURS)):
        label = name if name == "sphere" else f"plane ({name})"
        left.plot(strain, ghost["max"], color=colour, lw=1.2, marker="o", ms=4, label=label)
        left.plot(strain, ghost["rms"], color=colour, lw=0.9, ls=(0, (4, 2)))
    left.set(ylabel="ghost force, meV/Å\nlargest (solid), root mean square (dashed)")
    left.set_ylim(0, 1.15 * left.get_ylim()[1])  # room for the legend
    left.legend(frameon=False, loc="upper left", ncols=len(boundaries), fontsize=9)
    jump = found["stress_jump"]
    right.axhline(0, color=FAINT, lw=0.6)
    pressure = 1e3 * np.array(jump["isotropic"]["pressure"])
    right.plot(strain, pressure, color=MIXED, lw=1.2, marker="o", ms=4, label="isotropic strain: pressure")
    for _, strain_3, stress in zip(
        jump["strained"]["name"], jump["strained"]["strain"], jump["strained"]["stress"]
    ):
        worst = 1e3 * np.array(stress).flat[np.abs(stress).argmax()]
        right.plot(
            100 * np.trace(strain_3) / 3, worst, marker="D", ms=5, mfc="none", mec="#c0392b", ls="none"
        )
    handles, _ = right.get_legend_handles_labels()
    handles.append(
        Line2D(
            [],
            [],
            marker="D",
            ms=5,
            mfc="none",
            mec="#c0392b",
            ls="none",
            label="strained crystals: largest component",
        )
    )
    limit = 1.4 * max(np.abs(right.get_ylim()).max(), 1.0)
    right.set(ylim=(-limit, limit), ylabel="stress jump, expensive − cheap, MPa")
    right.legend(handles=handles, frameon=False, loc="upper left", fontsize=9)
    for panel in (left, right):
        panel.set_xlabel("isotropic strain / %")
        plain(panel)
    return figure


def runs_side_by_side(found: dict) -> Figure:
    """Structure, diffusion and vibrations of both runs, with bands of one standard error.

    The difference is below each quantity.
    """
    curves = found["curves"]
    figure = Figure(figsize=(11.0, 8.6), layout="constrained")
    panels = figure.subplots(4, 3, height_ratios=(3, 1.3, 3, 1.3)).T.reshape(-1, 2)
    for (panel, below), curve in zip(panels, curves.values(), strict=True):
        x = np.array(curve["x"])
        a, a_error, b, b_error = (
            np.array(curve[key]) for key in ("expensive", "expensive_error", "mixed", "mixed_error")
        )
        panel.fill_between(x, a - a_error, a + a_error, color=EXPENSIVE, alpha=0.35, lw=0)
        panel.fill_between(x, b - b_error, b + b_error, color=MIXED, alpha=0.3, lw=0)
        panel.plot(x, a, color=EXPENSIVE, lw=2.8, label="expensive expert")
        panel.plot(x, b, color=MIXED, lw=1.0, label="mixture")
        error = np.hypot(a_error, b_error)
        below.fill_between(
            x, -error, error, color=FAINT, alpha=0.3, lw=0, label="one combined standard error"
        )
        below.plot(x, b - a, color=MIXED, lw=1.0, label="mixture − expensive expert")
        below.axhline(0, color=FAINT, lw=0.6)
        d = curve["deviation"]
        largest = "∞" if d["largest"] is None else f"{d['largest']:.1f}"
        text = f"{curve['label']}\nlargest deviation {largest} σ\n({d['by_chance']:.1f} σ expected)"
        panel.text(0.97, 0.97, text, transform=panel.transAxes, ha="right", va="top", fontsize=8.5, color=INK)
        occupied = x[np.flatnonzero(a > 0)[0]]
        start = max(x[0], occupied - 0.1 * (x[-1] - occupied))  # leaves out short distances without pairs
        panel.set(ylabel=curve["y_label"], ylim=(0, 1.35 * panel.get_ylim()[1]))
        below.set(xlabel=curve["x_label"], ylabel="difference")
        for p in (panel, below):
            p.set_xlim(start, x[-1])
            plain(p)
    above, below = panels[0]
    handles = [h for p in (above, below) for h in p.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _line(who: str) -> str:
    """Colours that can be distinguished as lines."""
    return {"expensive": EXPENSIVE, "cheap": MIXED}[who]


def _smooth(x, y, at: np.ndarray) -> np.ndarray:
    """A polynomial through the points of an equation of state, evaluated at other points."""
    x = np.asarray(x, float)
    middle, half = x.mean(), 0.5 * np.ptp(x)
    fit = np.polynomial.Polynomial.fit((x - middle) / half, y, min(len(x) - 1, 8), domain=[-1, 1])
    return fit((at - middle) / half)


def _box(colour: str, label: str) -> Line2D:
    return Line2D([], [], ls="none", marker="s", ms=9, mfc=colour, mec="none", label=label)
