"""Figure of `moe-md region`: error and speed over the size of a region."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moe_md.plots.plots import EXPENSIVE, FAINT, INK, plain

ERRORS = (
    ("error_largest_meV_per_A", "largest, of any atom", "#c77f1a", "^"),
    ("error_all_meV_per_A", "all atoms", "#4f7f6b", "s"),
    ("error_selected_meV_per_A", "selected atoms", "#28527a", "o"),
)
FLOOR = 0.01  # of the tolerance: smaller errors are drawn here, as the logarithm of zero is not finite


def error_and_speed(content: dict) -> Figure:
    """Force differences to the expensive expert, and the bound of the speed-up, over the size of the region.

    Args:
        content: of `region.json`.

    Returns:
        The figure. A vertical line marks the recommended size.
    """
    rows, tolerance = content["regions"], content["tolerance_meV_per_A"]
    sizes = [row["size"] for row in rows]
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for key, label, colour, marker in ERRORS:
        values = [max(row[key], FLOOR * tolerance) for row in rows]
        above.plot(sizes, values, color=colour, marker=marker, ms=5, lw=1.2, label=label)
    above.axhline(tolerance, color=INK, lw=0.9, ls=(0, (4, 3)), label=f"tolerance, {tolerance:.3g} meV/Å")
    above.set(yscale="log", ylabel="force difference to the\nexpensive expert / meV/Å")
    below.plot(sizes, [row["speedup"] for row in rows], color=INK, marker="o", ms=5, lw=1.2)
    for row in rows:
        below.annotate(
            f"{row['expensive_share']:.0%}",
            (row["size"], row["speedup"]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=FAINT,
        )
    below.axhline(1.0, color=FAINT, lw=0.8)
    counts = content["scanned"] == "region_layers"
    below.xaxis.set_major_locator(MaxNLocator(integer=counts))
    name = "layers" if counts else "core radius / Å"
    below.set(xlabel=name, ylabel="speed-up, at most")
    below.set_ylim(0, 1.18 * max(1.0, *(row["speedup"] for row in rows)))
    below.set_title("beside each point: share of the atoms on the expensive expert", fontsize=9, color=FAINT)
    chosen = content["recommended"]
    for panel in (above, below):
        if chosen is not None:
            panel.axvline(chosen["size"], color=EXPENSIVE, lw=6, alpha=0.35, zorder=0, label="recommended")
        plain(panel)
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure
