"""Pictures of the code: the rooms, and the walk of a position and of a frame through them."""

from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from moe_md.plots.plots import CHEAP, EXPENSIVE, FAINT, INK

# From the top down: a room imports from the floors below its own.
FLOORS = (
    ("commands",),
    ("plots",),
    ("analysis",),
    ("training",),
    ("gradients", "distributed", "interfaces", "reporters", "timing"),
    ("mixture", "checkpoint", "simulate"),
    ("derivatives", "settings", "data", "regions", "experts"),
    ("neighbors",),
    ("units", "checks", "files", "failures", "renamed"),
)
PURE = {"gradients", "mixture", "simulate", "derivatives", "regions", "experts", "neighbors"}


class Step(NamedTuple):
    """One step of a walk: what happens, and the file that does it."""

    what: str
    file: str


RUN = (
    Step("read structure, checkpoint, settings", "commands/run.py"),
    Step("move the atoms", "simulate/integrators/nve.py"),
    Step("check, or rebuild, the neighbour list", "neighbors/neighbor_list.py"),
    Step("gate of each atom", "regions/following.py"),
    Step("rows of each expert", "mixture/neighbors.py"),
    Step("energy of each row", "experts/allegro.py"),
    Step("force: gradient of the sum", "simulate/step.py"),
    Step("write log and trajectory", "reporters/trajectory.py"),
)
TRAIN = (
    Step("read labelled frames", "data/reading.py"),
    Step("split by trajectory", "data/dataset.py"),
    Step("batch of rows, padded", "data/batching.py"),
    Step("environments without labels", "data/environments.py"),
    Step("energies and partial forces", "experts/base.py"),
    Step("one loss for both experts", "training/losses.py"),
    Step("step of the optimiser", "training/step.py"),
    Step("parameters and record", "checkpoint.py"),
)


def rooms() -> Figure:
    """One row a floor; imports go downward. The pure rooms are coloured."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    panel = _empty(figure)
    panel.set(xlim=(0, 10), ylim=(0, len(FLOORS)))
    for n, floor in enumerate(FLOORS):
        width = 8.8 / len(floor)
        for k, room in enumerate(floor):
            _box(
                panel,
                (0.1 + k * width, len(FLOORS) - 1 - n),
                width - 0.12,
                room,
                EXPENSIVE if room in PURE else CHEAP,
            )
    panel.annotate(
        "", (9.5, 0.3), (9.5, len(FLOORS) - 0.3), arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.4}
    )
    panel.text(9.72, len(FLOORS) / 2, "imports", rotation=270, va="center", ha="center", color=INK)
    return figure


def walk() -> Figure:
    """A position from `moe-md run` to a force and back, and a labelled frame from file to loss."""
    figure = Figure(figsize=(8.6, 5.6), layout="constrained")
    panel = _empty(figure)
    panel.set(xlim=(0, 10), ylim=(0, len(RUN) + 0.9))
    for steps, left, title, colour in (
        (RUN, 0.1, "moe-md run", EXPENSIVE),
        (TRAIN, 5.2, "moe-md train", CHEAP),
    ):
        panel.text(
            left + 2.2, len(RUN) + 0.45, title, ha="center", weight="bold", color=INK, family="monospace"
        )
        for n, step in enumerate(steps):
            bottom = len(RUN) - 1 - n
            _box(panel, (left, bottom + 0.12), 4.4, "", colour, height=0.7)
            panel.text(left + 0.15, bottom + 0.6, step.what, va="center", fontsize=9, color=INK)
            panel.text(
                left + 0.15,
                bottom + 0.29,
                step.file,
                va="center",
                fontsize=7.5,
                color=INK,
                family="monospace",
            )
            if n:
                _arrow(panel, (left + 2.2, bottom + 1.12), (left + 2.2, bottom + 0.86))
    # The loops: next step of the dynamics, next batch of the training.
    for left, first, last, label in ((0.1, 1, 6, "next step"), (5.2, 2, 6, "next batch")):
        start, end = (len(RUN) - 1 - n + 0.47 for n in (last, first))
        panel.annotate(
            "",
            (left + 4.44, end),
            (left + 4.44, start),
            arrowprops={
                "arrowstyle": "-|>",
                "color": FAINT,
                "lw": 1.2,
                "connectionstyle": "bar,fraction=0.06",
            },
        )
        panel.text(
            left + 4.78,
            (start + end) / 2,
            label,
            rotation=270,
            va="center",
            ha="center",
            fontsize=8,
            color=FAINT,
        )
    return figure


def _empty(figure: Figure):
    panel = figure.subplots()
    panel.set_axis_off()
    return panel


def _arrow(panel, start: tuple[float, float], end: tuple[float, float]) -> None:
    panel.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.0})


def _box(
    panel, corner: tuple[float, float], width: float, text: str, colour: str, height: float = 0.78
) -> None:
    """A rounded box with centred text."""
    box = FancyBboxPatch(
        corner,
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.12",
        fc=colour,
        ec=INK,
        lw=0.6,
        alpha=0.75,
    )
    panel.add_patch(box)
    panel.text(
        corner[0] + width / 2, corner[1] + height / 2, text, ha="center", va="center", fontsize=9.5, color=INK
    )
