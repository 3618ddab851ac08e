"""Padded batches of few fixed shapes, so that a training step compiles few times.

`prepare` lists the neighbours of every frame once. Each epoch, `batches` packs
whole frames in a new order into padded batches. Frames form at most four
groups, and all batches of one group have the same shape in every epoch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from moe_md.data.dataset import Dataset
from moe_md.data.reading import Frame
from moe_md.neighbors.rows import Neighborhood, rows_from_images


class Batch(NamedTuple):
    """Frames as padded rows, one row per atom; a pytree of numpy arrays.

    Frames are whole, or without labels and not complete: only some of their rows are there.
    """

    rows: Neighborhood  # `neighbor` indexes the rows of this batch, n_rows where padded
    frame: Int[np.ndarray, " n"]  # frame of each row, n_frames where padded
    row_mask: Bool[np.ndarray, " n"]  # False where padded
    n_atoms: Float[np.ndarray, " frames"]  # atoms of each frame, 0 where padded or not complete
    volume: Float[np.ndarray, " frames"]  # Å^3, 1 where not fully periodic or padded
    energy: Float[np.ndarray, " frames"]  # eV, 0 where masked
    energy_mask: Bool[np.ndarray, " frames"]
    forces: Float[np.ndarray, "n 3"]  # eV/Å, 0 where masked
    forces_mask: Bool[np.ndarray, " n"]
    stress: Float[np.ndarray, "frames 3 3"]  # eV/Å^3, 0 where masked
    stress_mask: Bool[np.ndarray, " frames"]  # True in fully periodic frames only
    weight: Float[np.ndarray, " frames"]  # factor of the frame's squared errors in every mean


class Prepared(NamedTuple):
    """Frames with their rows, from `prepare`."""

    frames: tuple[Frame, ...]
    rows: tuple[Neighborhood, ...]  # one per frame; `neighbor` indexes its atoms
    species: tuple[str, ...]
    cutoff: float  # Å


class Shape(NamedTuple):
    """Shape of a batch."""

    n_rows: int
    max_neighbors: int  # K
    n_frames: int


def frame_rows(frame: Frame, species: Sequence[str], cutoff: float, *, dtype=np.float32) -> Neighborhood:
    """Rows of one frame, periodic images included.

    Args:
        frame: the structure.
        species: as `Expert.species`.
        cutoff: Å.
        dtype: dtype of the displacements.

    Returns:
        One row per atom.

    Raises:
        ValueError: the frame has another species, or an invalid structure.
    """
    index = {symbol: k for k, symbol in enumerate(species)}
    for symbol in sorted(set(frame.symbols) - set(index)):
        raise ValueError(f"species must include {symbol}, which a frame contains, got {tuple(species)}.")
    numbers = np.array([index[symbol] for symbol in frame.symbols], np.int32)
    return rows_from_images(frame.positions, numbers, frame.cell, frame.pbc, cutoff, dtype=dtype)


def collate(
    frames: Sequence[Frame],
    species: Sequence[str],
    cutoff: float,
    *,
    n_rows: int | None = None,
    max_neighbors: int | None = None,
    n_frames: int | None = None,
    dtype=np.float32,
    cached_rows: Sequence[Neighborhood] | None = None,
    weights: Sequence[float] | None = None,
    further_rows: Sequence[Neighborhood] = (),
    further_weights: Sequence[float] = (),
) -> Batch:
    """One batch of whole frames, and of rows of others.

    Args:
        frames: the frames.
        species: as `Expert.species`.
        cutoff: Å.
        n_rows, max_neighbors, n_frames: shape to pad to; by default the smallest that
            holds the frames, at least 1. All entries of a padded row are masked.
        dtype: dtype of all floating point arrays.
        cached_rows: the rows of each frame; by default `frame_rows` computes them.
        weights: factor of each frame's squared errors in the loss; default 1.
        further_rows: some rows of each of further frames, which are not complete and have no labels.
        further_weights: the weight of each of them.

    Returns:
        The batch.

    Raises:
        ValueError: the frames do not fit the shape, or as `frame_rows`.

    Example:
        >>> from moe_md.data.structures import fcc_supercell
        >>> batch = collate([fcc_supercell("Pt", 3.98, 1)], ("Pt",), 3.0, n_rows=6)
        >>> batch.rows.mask.sum(axis=1).tolist(), batch.energy_mask.tolist()
        ([12, 12, 12, 12, 0, 0], [False])
    """
    if cached_rows is None:
        cached_rows = [frame_rows(frame, species, cutoff, dtype=dtype) for frame in frames]
    sizes = [len(frame.symbols) for frame in frames]
    all_rows = (*cached_rows, *further_rows)
    needed = Shape(
        n_rows=max(sum(rows.mask.shape[0] for rows in all_rows), 1),
        max_neighbors=max((rows.mask.shape[1] for rows in all_rows), default=1),
        n_frames=max(len(all_rows), 1),
    )
    requested = (n_rows, max_neighbors, n_frames)
    shape = Shape(*(need if given is None else given for need, given in zip(needed, requested)))
    for name, need, given in zip(Shape._fields, needed, shape):
        if given < need:
            raise ValueError(f"{name} must be at least {need} for these frames, got {given}.")
    batch = _empty_batch(shape, dtype)
    if weights is not None:
        batch.weight[: len(frames)] = weights
    first_row = 0
    for k, (frame, rows) in enumerate(zip(frames, cached_rows)):
        _write_rows(batch, k, first_row, rows)
        _write_labels(batch, k, first_row, frame)
        first_row += sizes[k]
    for k, (rows, weight) in enumerate(zip(further_rows, further_weights, strict=True), len(frames)):
        _write_rows(batch, k, first_row, rows)
        batch.weight[k] = weight
        first_row += rows.mask.shape[0]
    return batch


def _empty_batch(shape: Shape, dtype) -> Batch:
    """A batch of padding only."""
    n_rows, max_neighbors, n_frames = shape
    return Batch(
        rows=Neighborhood(
            displacement=np.ones((n_rows, max_neighbors, 3), dtype),
            mask=np.zeros((n_rows, max_neighbors), bool),
            center_species=np.zeros(n_rows, np.int32),
            neighbor_species=np.zeros((n_rows, max_neighbors), np.int32),
            neighbor=np.full((n_rows, max_neighbors), n_rows, np.int32),
        ),
        frame=np.full(n_rows, n_frames, np.int32),
        row_mask=np.zeros(n_rows, bool),
        n_atoms=np.zeros(n_frames, dtype),
        volume=np.ones(n_frames, dtype),
        energy=np.zeros(n_frames, dtype),
        energy_mask=np.zeros(n_frames, bool),
        forces=np.zeros((n_rows, 3), dtype),
        forces_mask=np.zeros(n_rows, bool),
        stress=np.zeros((n_frames, 3, 3), dtype),
        stress_mask=np.zeros(n_frames, bool),
        weight=np.ones(n_frames, dtype),
    )


def _write_rows(batch: Batch, k: int, first_row: int, rows: Neighborhood) -> None:
    """Write rows of frame `k` into those of a batch from `first_row` on."""
    n_rows, n_columns = rows.mask.shape
    at, columns = slice(first_row, first_row + n_rows), slice(n_columns)
    batch.rows.displacement[at, columns] = rows.displacement
    batch.rows.mask[at, columns] = rows.mask
    batch.rows.center_species[at] = rows.center_species
    batch.rows.neighbor_species[at, columns] = rows.neighbor_species
    has_row = rows.mask & (rows.neighbor < n_rows)
    batch.rows.neighbor[at, columns] = np.where(has_row, rows.neighbor + first_row, len(batch.row_mask))
    batch.frame[at] = k
    batch.row_mask[at] = True


def _write_labels(batch: Batch, k: int, first_row: int, frame: Frame) -> None:
    """Write size and labels of frame `k`, whose rows are those of a batch from `first_row` on."""
    at = slice(first_row, first_row + len(frame.symbols))
    batch.n_atoms[k] = len(frame.symbols)
    periodic = bool(np.all(frame.pbc))
    if periodic:
        batch.volume[k] = abs(np.linalg.det(frame.cell))
    if frame.energy is not None:
        batch.energy[k], batch.energy_mask[k] = frame.energy, True
    if frame.forces is not None:
        batch.forces[at], batch.forces_mask[at] = frame.forces, True
    if frame.stress is not None and periodic:
        batch.stress[k], batch.stress_mask[k] = frame.stress, True


def prepare(dataset: Dataset, cutoff: float, *, dtype=np.float32) -> Prepared:
    """List the neighbours of every frame, once for all epochs.

    Args:
        dataset: the frames.
        cutoff: Å, the largest of the experts' cutoffs.
        dtype: dtype of all floating point arrays of the batches.

    Returns:
        The frames with their rows, for `batches`.

    Raises:
        ValueError: there are no frames, or a frame is invalid; its index is
            named.
    """
    if not dataset.frames:
        raise ValueError("dataset must have at least one frame, got none.")
    rows = []
    for index, frame in enumerate(dataset.frames):
        try:
            rows.append(frame_rows(frame, dataset.species, cutoff, dtype=dtype))
        except ValueError as error:
            name = f"frame {index} of dataset" + (f" ({frame.source})" if frame.source else "")
            raise ValueError(f"{name}: {error}") from error
    return Prepared(dataset.frames, tuple(rows), dataset.species, float(cutoff))


def packing_plan(prepared: Prepared, max_atoms: int) -> list[tuple[Shape, Int[np.ndarray, " _"]]]:
    """Sort frames into at most four groups, each with one batch shape.

    Frames of at most `max_atoms` atoms share batches, in at most two groups by
    number of neighbours: sparse frames are not padded to the width of dense
    ones. Each larger frame is a batch of its own, in at most two groups by
    number of atoms.

    Args:
        prepared: frames and rows.
        max_atoms: atoms per batch, at least 1.

    Returns:
        Pairs of a shape and the indices of the frames.

    Raises:
        ValueError: `max_atoms` is below 1.
    """
    if max_atoms < 1:
        raise ValueError(f"max_atoms must be at least 1, got {max_atoms}.")
    size = np.array([len(frame.symbols) for frame in prepared.frames])
    width = np.array([rows.mask.shape[1] for rows in prepared.rows])  # neighbour slots of each frame
    plan = []
    for index in _split_by_padding(np.flatnonzero(size <= max_atoms), width, size):
        total, largest = int(size[index].sum()), int(size[index].max())
        # With equal shares plus the largest frame, filling in any order needs no more
        # batches than total / max_atoms rounded up, unless max_atoms is the bound.
        share = -(-total // -(-total // max_atoms))
        n_rows = min(max_atoms, total, share + largest - 1)
        n_frames = min(len(index), n_rows // int(size[index].min()))
        plan.append((Shape(n_rows, int(width[index].max()), n_frames), index))
    for index in _split_by_padding(np.flatnonzero(size > max_atoms), size, np.ones_like(size)):
        plan.append((Shape(int(size[index].max()), int(width[index].max()), 1), index))
    return plan


def _split_by_padding(index: np.ndarray, value: np.ndarray, count: np.ndarray) -> list[np.ndarray]:
    """Cut frames into at most two groups, each padded to the largest value in it.

    Args:
        index: `[n]` int, the frames to group.
        value: `[n_frames]` int, the size along the padded axis.
        count: `[n_frames]` int, how many times a frame has that size.

    Returns:
        Sorted indices of each group: two where the best cut saves a quarter of
        the padded total, else one; none without frames.
    """
    if len(index) < 2:
        return [index] if len(index) else []
    index = index[np.argsort(value[index], kind="stable")]
    cumulative, largest = np.cumsum(count[index]), value[index[-1]]
    padded = cumulative * value[index] + (cumulative[-1] - cumulative) * largest
    cut = int(np.argmin(padded)) + 1
    parts = [index[:cut], index[cut:]] if padded[cut - 1] < 0.75 * padded[-1] else [index]
    return [np.sort(part) for part in parts]


def packs(
    prepared: Prepared,
    *,
    max_atoms: int,
    rng: np.random.Generator | None = None,
    separate_by: Sequence[str] | None = None,
) -> list[tuple[Shape, list[int]]]:
    """Assign the frames of one epoch to batches.

    Args:
        prepared, max_atoms, rng: as in `batches`.
        separate_by: a label for each frame; frames of two labels share no batch.

    Returns:
        The shape of each batch and the indices of its frames, in the order of
        their rows.

    Raises:
        ValueError: `max_atoms` is below 1.
    """
    found: list[tuple[Shape, list[int]]] = []
    for shape, index in packing_plan(prepared, max_atoms):
        pack, free_rows = [], shape.n_rows
        order = index if rng is None else rng.permutation(index)
        if separate_by is not None:
            order = sorted(order, key=lambda k: separate_by[k])
        for k in order:
            size = len(prepared.frames[k].symbols)
            full = size > free_rows or len(pack) == shape.n_frames
            if pack and (full or (separate_by is not None and separate_by[k] != separate_by[pack[0]])):
                found.append((shape, pack))
                pack, free_rows = [], shape.n_rows
            pack.append(int(k))
            free_rows -= size
        found.append((shape, pack))
    return found


def pack_batch(
    prepared: Prepared, shape: Shape, pack: Sequence[int], weights: Sequence[float] | None = None
) -> Batch:
    """The batch of the frames with indices `pack`, in a shape of `packs`; `weights` as in `batches`."""
    return collate(
        [prepared.frames[i] for i in pack],
        prepared.species,
        prepared.cutoff,
        **shape._asdict(),
        dtype=prepared.rows[0].displacement.dtype,
        cached_rows=[prepared.rows[i] for i in pack],
        weights=None if weights is None else [weights[i] for i in pack],
    )


def batches(
    prepared: Prepared,
    *,
    max_atoms: int,
    rng: np.random.Generator | None = None,
    weights: Sequence[float] | None = None,
) -> Iterator[Batch]:
    """One epoch: every frame once, in batches of few shapes.

    Args:
        prepared: from `prepare`.
        max_atoms: atoms per batch; a larger frame is a batch of its own.
        rng: shuffles frames and batches; None keeps the order.
        weights: factor of each frame's squared errors in the loss; default 1.

    Yields:
        Batches, whose shapes are the same in each epoch (`packing_plan`).

    Raises:
        ValueError: `max_atoms` is below 1.
    """
    found = packs(prepared, max_atoms=max_atoms, rng=rng)
    for k in range(len(found)) if rng is None else rng.permutation(len(found)):
        shape, pack = found[k]
        yield pack_batch(prepared, shape, pack, weights)
