"""Plots of measured results, from the records in benchmarks/results/."""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from moe_md.plots.plots import CHEAP, EXPENSIVE, INK, plain

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import bench_mixture
import harness
import tables_models
from tables_format import newest

RED = "#9b2d5e"


def speed() -> Figure:
    """Speed-up of `ptco` against the share of atoms on the expensive expert, and its bound."""
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    panel = figure.subplots()
    records = bench_mixture.with_checkpoint(harness.RESULTS)
    records = newest([record for record in records if record["checkpoint"] == "ptco"], "atoms")
    for record, marker, colour in zip(records, ("o", "s"), (EXPENSIVE, CHEAP)):
        rows = [row for row in record["rows"] if row["name"].startswith("mixture")]
        expensive = next(row["median_s"] for row in record["rows"] if row["name"] == "all expensive")
        speedups = [row["speedup"] for row in rows]
        low, high = (
            [abs(expensive / row["quartiles_s"][end] - row["speedup"]) for row in rows] for end in (1, 0)
        )
        panel.errorbar(
            [row["f"] for row in rows],
            speedups,
            (low, high),
            fmt=marker,
            color=colour,
            markeredgecolor=INK,
            markeredgewidth=0.5,
            ecolor=INK,
            elinewidth=0.8,
            ms=6,
            label=f"measured, {record['atoms']:,} atoms",
            zorder=3,
        )
    f, r = np.geomspace(0.009, 1.0, 200), records[0]["r"]
    panel.loglog(f, 1 / (f + (1 - f) / r), color=INK, lw=1.2, label=rf"$S_\mathrm{{max}}$, r = {r:.0f}")
    panel.set(xlabel="share of atoms on the expensive expert", ylabel="speed-up over the expensive expert")
    panel.set_xticks([0.01, 0.05, 0.1, 0.2, 0.5, 1.0], ["1 %", "5 %", "10 %", "20 %", "50 %", "100 %"])
    panel.set_yticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    panel.minorticks_off()
    panel.legend(frameon=False, fontsize=8.5)
    plain(panel)
    return figure


def peers() -> Figure:
    """Time per atom of each program, at the largest size it was run at."""
    (record,) = newest(harness.read(harness.RESULTS, "peers"))[-1:]
    largest = {row["name"]: row for row in sorted(record["rows"], key=lambda row: row["atoms"])}
    rows = sorted(largest.values(), key=lambda row: row["us_per_atom"])
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    panel = figure.subplots()
    colours = [EXPENSIVE if row["name"].endswith("moe_md") else CHEAP for row in rows]
    panel.barh([row["name"] for row in rows], [row["us_per_atom"] for row in rows], color=colours, height=0.7)
    for n, row in enumerate(rows):
        value = row["us_per_atom"]
        panel.text(
            value * 1.1, n, f"{value:,.0f}" if value >= 10 else f"{value:.1f}", va="center", fontsize=8
        )
    panel.set(xscale="log", xlabel="µs per atom, energy and forces", xlim=(0.2, 2e4))
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.tick_params(labelsize=8.5)
    plain(panel)
    return figure


def respa() -> Figure:
    """Drift against the interval between expensive forces, for each inner potential."""
    newest_of = {
        (row["inner_potential"], row["outer_every"]): row
        for record in harness.read(harness.RESULTS, "respa")
        if "conservation" in record and not record["smoke"]
        for row in [record["conservation"]]
        if not row["failed"]
    }
    figure = Figure(figsize=(5.8, 3.4), layout="constrained")
    panel = figure.subplots()
    for cheap, label, colour in (
        (False, "trained inner potential", EXPENSIVE),
        (True, "cheap expert as inner potential", CHEAP),
    ):
        points = sorted(
            (every, row) for (inner, every), row in newest_of.items() if (inner == "cheap expert") == cheap
        )
        drift = [abs(row["drift_meV_per_atom_per_ps"]) for _, row in points]
        panel.semilogy([every for every, _ in points], drift, "o-", color=colour, label=label)
    panel.set(xlabel="interval between expensive forces / fs", ylabel="|drift| / meV per atom per ps")
    panel.legend(frameon=False, fontsize=8.5)
    plain(panel)
    return figure


def cotraining() -> Figure:
    """Largest ghost force of each way of training, means over seeds."""
    found: dict[str, dict[int, float]] = {}
    for record in harness.read(harness.RESULTS, "cotraining"):
        if not record["smoke"]:
            by_seed = found.setdefault(record["way"], {})
            by_seed[record["seed"]] = record["ghost_force_meV_per_A"]["worst"]
    names = [tables_models.WAYS.get(way, way) for way in found]
    means = [float(np.mean(list(by_seed.values()))) for by_seed in found.values()]
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    panel = figure.subplots()
    panel.barh(names[::-1], means[::-1], color=[RED if mean > 20 else EXPENSIVE for mean in means[::-1]])
    for n, mean in enumerate(means[::-1]):
        panel.text(mean * 1.08, n, f"{mean:.1f}" if mean < 20 else f"{mean:.0f}", va="center", fontsize=8)
    panel.set(xscale="log", xlabel="largest ghost force / meV/Å", xlim=(0.5, 400))
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.tick_params(labelsize=8.5)
    plain(panel)
    return figure
