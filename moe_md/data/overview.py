"""What a dataset holds, kind by kind, before anything is trained on it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from moe_md.data.dataset import LABELS, Dataset, usable_labels
from moe_md.data.labels import energy_residuals
from moe_md.data.reading import Frame
from moe_md.neighbors.rows import image_pairs

NEAR = 3.5  # Å, atoms with no neighbour within this have no shortest distance
SAMPLE = 200  # frames that an average is taken over
SAME = 1e-3  # Å, positions and cells of equal frames differ by less

COLUMNS = {  # key of a row: head and format of the printed column
    "kind": ("kind", "<24.24"),
    "elements": ("elements", "<12.12"),
    "frames": ("frames", ">6"),
    "atoms": ("atoms", ">9"),
    **{label: (label, ">6") for label in LABELS},
    "energy_off_fit": ("off fit", ">8"),
    "largest_force": ("force", ">8"),
    "shortest_distance": ("nearest", ">8"),
}
UNITS = (
    "energy, forces, stress: frames with that label; off fit: largest distance of the energy from the fit by"
    " composition, eV/atom; force: largest, eV/Å; nearest: shortest distance of two atoms, Å."
)


def overview(dataset: Dataset) -> list[dict[str, Any]]:
    """One row for the frames of each kind and set of elements.

    Args:
        dataset: the frames.

    Returns:
        Rows, serialisable as JSON, with `kind`, `elements`, `frames`, `atoms` (fewest and most of a
        frame), numbers of frames with an `energy`, `forces` and a `stress`,
        `energy_off_fit` (eV/atom, largest distance from the fit by composition),
        `largest_force` (eV/Å) and `shortest_distance` (Å), None where there is none.

    >>> from moe_md.data import load_dataset, ptco_pbe
    >>> overview(load_dataset(ptco_pbe()))[0]["kind"]
    'bulk-eos'
    """
    labelled = usable_labels(dataset, "energy")
    residuals = energy_residuals(labelled, dataset.species) if labelled else []
    off_fit = {id(frame): abs(float(off)) for frame, off in zip(labelled, residuals)}
    groups: dict[tuple[str, str], list[Frame]] = {}
    for frame in dataset.frames:
        groups.setdefault((frame.kind, " ".join(sorted(set(frame.symbols)))), []).append(frame)
    return [_row(*key, groups[key], off_fit) for key in sorted(groups)]


def _row(kind: str, elements: str, frames: Sequence[Frame], off_fit: dict[int, float]) -> dict[str, Any]:
    sizes = [len(frame.symbols) for frame in frames]
    part = Dataset(tuple(frames), ())
    forces = [np.asarray(frame.forces) for frame in usable_labels(part, "forces")]
    distances = [d for frame in frames if (d := shortest_distance(frame)) is not None]
    return {
        "kind": kind,
        "elements": elements,
        "frames": len(frames),
        "atoms": [min(sizes), max(sizes)],
        **{label: len(usable_labels(part, label)) for label in LABELS},
        "energy_off_fit": max((off_fit[id(f)] for f in frames if id(f) in off_fit), default=None),
        "largest_force": max((float(np.linalg.norm(f, axis=1).max()) for f in forces), default=None),
        "shortest_distance": min(distances, default=None),
    }


def shortest_distance(frame: Frame) -> float | None:
    """Å, of two atoms or of an atom and its own image; None above `NEAR`.

    Raises:
        ValueError: two atoms are at one place; the message names the frame.
    """
    displacement = _displacements(frame, NEAR)
    return float(np.linalg.norm(displacement, axis=1).min()) if len(displacement) else None


def _displacements(frame: Frame, cutoff: float) -> Float[np.ndarray, "pairs 3"]:
    """Å, of all pairs closer than `cutoff`."""
    try:
        return image_pairs(frame.positions, frame.cell, frame.pbc, cutoff)[2]
    except ValueError as error:
        raise ValueError(f"{frame.source or 'a frame'}: {error}") from None


def average_neighbors(dataset: Dataset, cutoff: float) -> float:
    """Mean number of neighbours within `cutoff` (Å) of an atom, to a tenth; of `SAMPLE` frames at most.

    Raises:
        ValueError: there are no frames, or as `shortest_distance`.
    """
    if not dataset.frames:
        raise ValueError("dataset must have at least one frame, got none.")
    frames = dataset.frames[:: -(-len(dataset.frames) // SAMPLE)]
    pairs = sum(len(_displacements(frame, cutoff)) for frame in frames)
    return round(pairs / sum(len(frame.symbols) for frame in frames), 1)


def overview_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `overview` as lines of text, with a line of heads and one of units."""
    heads = " ".join(f"{head:{form.split('.')[0]}}" for head, form in COLUMNS.values())
    lines = [" ".join(f"{_cell(key, row[key]):{form}}" for key, (_, form) in COLUMNS.items()) for row in rows]
    return "\n".join([heads, *lines, UNITS])


def _cell(key: str, value) -> str:
    if key == "atoms":
        least, most = value
        return str(least) if least == most else f"{least}-{most}"
    if value is None or value == "":
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def duplicates(first: Dataset, second: Dataset) -> list[tuple[Frame, Frame]]:
    """Pairs of equal structures, one of each dataset.

    Atoms must stand in one order, and positions and cells differ by less than `SAME` Å.
    Labels are not compared.
    """
    known: dict[tuple, list[Frame]] = {}
    for frame in first.frames:
        known.setdefault(_coarse(frame), []).append(frame)
    return [
        (other, frame)
        for frame in second.frames
        for other in known.get(_coarse(frame), ())
        if _distance(other, frame) < SAME
    ]


def _coarse(frame: Frame) -> tuple:
    """What equal frames share without rounding."""
    return frame.symbols, tuple(frame.pbc.tolist())


def _distance(first: Frame, second: Frame) -> float:
    """Å, largest difference of a component of positions or cells."""
    return max(
        float(np.abs(first.positions - second.positions).max()),
        float(np.abs(first.cell - second.cell).max()),
    )
