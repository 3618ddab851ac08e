"""Batches of rows in few fixed shapes, so that a training step compiles few times.

Neighbours are found once per frame (`prepare`); each epoch then packs whole
frames, in a new order, into padded batches (`batches`). All batches of a group
of frames have one shape, which does not depend on the order.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from moe_md.data.dataset import Dataset
from moe_md.data.extxyz import Frame
from moe_md.neighbors.rows import Neighborhood, rows_from_images


class Batch(NamedTuple):
    """Whole frames as rows, padded; a pytree of numpy arrays."""

    rows: Neighborhood  # n_rows x K; `neighbor` is a row of this batch, n_rows where none
    frame: np.ndarray  # [n_rows] int, frame of each row, n_frames where padded
    row_mask: np.ndarray  # [n_rows] bool, False where padded
    n_atoms: np.ndarray  # [n_frames] float, 0 where padded
    volume: np.ndarray  # [n_frames] Å^3, 1 where not fully periodic or padded
    energy: np.ndarray  # [n_frames] eV, 0 where masked
    energy_mask: np.ndarray  # [n_frames] bool
    forces: np.ndarray  # [n_rows, 3] eV/Å, 0 where masked
    forces_mask: np.ndarray  # [n_rows] bool
    stress: np.ndarray  # [n_frames, 3, 3] eV/Å^3, 0 where masked
    stress_mask: np.ndarray  # [n_frames] bool, fully periodic frames only
    weight: np.ndarray  # [n_frames] float, of the frame's squared errors in every mean


class Prepared(NamedTuple):
    """Frames with their rows, found once."""

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
    """Rows of one frame, with periodic images.

    Args:
        frame: the structure.
        species: as `Expert.species`.
        cutoff: Å.
        dtype: of the displacements.

    Returns:
        One row per atom.

    Raises:
        ValueError: the frame has another species, or a broken structure.
    """
    index = {symbol: k for k, symbol in enumerate(species)}
    for symbol in sorted(set(frame.symbols) - set(index)):
        raise ValueError(f"species must include every symbol of a frame, {symbol} too, got {tuple(species)}.")
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
) -> Batch:
    """One batch of whole frames.

    Args:
        frames: the frames.
        species: as `Expert.species`.
        cutoff: Å.
        n_rows, max_neighbors, n_frames: shape to pad to; by default no padding (at
            least one of each). A padded row is all masked.
        dtype: of all floating point arrays.
        cached_rows: the rows of each frame, where they are known already.
        weights: of each frame's squared errors in the loss; by default one.

    Returns:
        The batch.

    Raises:
        ValueError: the frames do not fit the shape, or as `frame_rows`.

    Example:
        >>> from moe_md.data.crystals import fcc_supercell
        >>> batch = collate([fcc_supercell("Pt", 3.98, 1)], ("Pt",), 3.0, n_rows=6)
        >>> batch.rows.mask.sum(axis=1).tolist(), batch.energy_mask.tolist()
        ([12, 12, 12, 12, 0, 0], [False])
    """
    if cached_rows is None:
        cached_rows = [frame_rows(frame, species, cutoff, dtype=dtype) for frame in frames]
    sizes = [len(frame.symbols) for frame in frames]
    needed = Shape(
        n_rows=max(sum(sizes), 1),
        max_neighbors=max((rows.mask.shape[1] for rows in cached_rows), default=1),
        n_frames=max(len(frames), 1),
    )
    asked = (n_rows, max_neighbors, n_frames)
    shape = Shape(*(need if ask is None else ask for need, ask in zip(needed, asked)))
    for name, need, have in zip(Shape._fields, needed, shape):
        if have < need:
            raise ValueError(f"{name} must be at least {need} for these frames, got {have}.")
    n_rows, max_neighbors, n_frames = shape

    batch = Batch(
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
    if weights is not None:
        batch.weight[: len(frames)] = weights
    start = 0
    for k, (frame, rows, size) in enumerate(zip(frames, cached_rows, sizes)):
        here, slots = slice(start, start + size), slice(rows.mask.shape[1])
        batch.rows.displacement[here, slots] = rows.displacement
        batch.rows.mask[here, slots] = rows.mask
        batch.rows.center_species[here] = rows.center_species
        batch.rows.neighbor_species[here, slots] = rows.neighbor_species
        batch.rows.neighbor[here, slots] = np.where(rows.mask, rows.neighbor + start, n_rows)
        batch.frame[here] = k
        batch.row_mask[here] = True
        batch.n_atoms[k] = size
        periodic = bool(np.all(frame.pbc))
        if periodic:
            batch.volume[k] = abs(np.linalg.det(frame.cell))
        if frame.energy is not None:
            batch.energy[k], batch.energy_mask[k] = frame.energy, True
        if frame.forces is not None:
            batch.forces[here], batch.forces_mask[here] = frame.forces, True
        if frame.stress is not None and periodic:
            batch.stress[k], batch.stress_mask[k] = frame.stress, True
        start += size
    return batch


def prepare(dataset: Dataset, cutoff: float, *, dtype=np.float32) -> Prepared:
    """Find the rows of every frame, once.

    Args:
        dataset: the frames.
        cutoff: Å, the largest of the experts'.
        dtype: of all floating point arrays of the batches to come.

    Returns:
        What `batches` takes.

    Raises:
        ValueError: there are no frames, or a frame is broken; its index is
            named.
    """
    if not dataset.frames:
        raise ValueError("dataset must have at least one frame, got none.")
    rows = []
    for index, frame in enumerate(dataset.frames):
        try:
            rows.append(frame_rows(frame, dataset.species, cutoff, dtype=dtype))
        except ValueError as error:
            raise ValueError(f"frame {index} of dataset: {error}") from error
    return Prepared(dataset.frames, tuple(rows), dataset.species, float(cutoff))


def packing_plan(prepared: Prepared, max_atoms: int) -> list[tuple[Shape, np.ndarray]]:
    """Sort frames into at most four groups, each with one batch shape.

    Frames of at most `max_atoms` atoms are packed together, in at most two
    groups by neighbour count, so that sparse frames do not pay for the slots
    of dense ones. Larger frames get a batch each, in at most two groups by
    size.

    Args:
        prepared: frames and rows.
        max_atoms: atoms per batch, at least 1.

    Returns:
        Pairs of a shape and the indices of the frames, `[n]` int.

    Raises:
        ValueError: `max_atoms` is below 1.
    """
    if max_atoms < 1:
        raise ValueError(f"max_atoms must be at least 1, got {max_atoms}.")
    size = np.array([len(frame.symbols) for frame in prepared.frames])
    slots = np.array([rows.mask.shape[1] for rows in prepared.rows])

    def groups(index: np.ndarray, value: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
        # All frames of a group are padded to its largest value: cut in two
        # where that wastes least, if it saves a quarter of the whole.
        if len(index) < 2:
            return [index] if len(index) else []
        index = index[np.argsort(value[index], kind="stable")]
        below, largest = np.cumsum(weight[index]), value[index[-1]]
        cost = below * value[index] + (below[-1] - below) * largest
        cut = int(np.argmin(cost)) + 1
        parts = [index[:cut], index[cut:]] if cost[cut - 1] < 0.75 * cost[-1] else [index]
        return [np.sort(part) for part in parts]

    plan = []
    for index in groups(np.flatnonzero(size <= max_atoms), slots, size):
        total, largest = int(size[index].sum()), int(size[index].max())
        # Equal shares: with this room, filling in any order takes no more
        # batches than total / max_atoms rounded up, unless max_atoms is the bound.
        share = -(-total // -(-total // max_atoms))
        n_rows = min(max_atoms, total, share + largest - 1)
        n_frames = min(len(index), n_rows // int(size[index].min()))
        plan.append((Shape(n_rows, int(slots[index].max()), n_frames), index))
    for index in groups(np.flatnonzero(size > max_atoms), size, np.ones_like(size)):
        plan.append((Shape(int(size[index].max()), int(slots[index].max()), 1), index))
    return plan


def packs(
    prepared: Prepared,
    *,
    max_atoms: int,
    rng: np.random.Generator | None = None,
    apart: Sequence[str] | None = None,
) -> list[tuple[Shape, list[int]]]:
    """Which frames share a batch.

    Args:
        prepared, max_atoms, rng: as in `batches`.
        apart: a label for each frame; frames of two labels share no batch.

    Returns:
        The shape of each batch and the indices of its frames, in the order of
        their rows.

    Raises:
        ValueError: `max_atoms` is below 1.
    """
    found: list[tuple[Shape, list[int]]] = []
    for shape, index in packing_plan(prepared, max_atoms):
        pack, room = [], shape.n_rows
        order = index if rng is None else rng.permutation(index)
        for k in order if apart is None else sorted(order, key=lambda k: apart[k]):
            size = len(prepared.frames[k].symbols)
            full = size > room or len(pack) == shape.n_frames
            if pack and (full or (apart is not None and apart[k] != apart[pack[0]])):
                found.append((shape, pack))
                pack, room = [], shape.n_rows
            pack.append(int(k))
            room -= size
        found.append((shape, pack))
    return found


def pack_batch(
    prepared: Prepared, shape: Shape, pack: Sequence[int], weights: Sequence[float] | None = None
) -> Batch:
    """The batch of some frames, by index, in a shape of `packs`; `weights` as in `batches`."""
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
        max_atoms: atoms per batch; a larger frame gets a batch of its own.
        rng: shuffles frames and batches; None keeps the order.
        weights: of each frame's squared errors in the loss; by default one.

    Yields:
        Batches; their shapes are the same in each epoch (`packing_plan`).

    Raises:
        ValueError: `max_atoms` is below 1.
    """
    found = packs(prepared, max_atoms=max_atoms, rng=rng)
    for k in range(len(found)) if rng is None else rng.permutation(len(found)):
        shape, pack = found[k]
        yield pack_batch(prepared, shape, pack, weights)
