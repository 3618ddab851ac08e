"""A set of frames over one tuple of species: splits, counts, reference energies."""

import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moe_md.data.extxyz import Frame, read_frames

LABELS = ("energy", "forces", "stress")


class Dataset(NamedTuple):
    """Frames and the species they may contain."""

    frames: tuple[Frame, ...]
    species: tuple[str, ...]


def dataset_from_frames(frames: Iterable[Frame], species: Sequence[str] | None = None) -> Dataset:
    """A dataset, checked.

    Args:
        frames: the frames.
        species: the species allowed, in the order of `Expert.species`; by
            default those present, sorted.

    Returns:
        The dataset.

    Raises:
        ValueError: a species is repeated, or a frame contains another one.
    """
    frames = tuple(frames)
    if species is None:
        species = sorted({symbol for frame in frames for symbol in frame.symbols})
    if not isinstance(species, (tuple, list)) or not all(isinstance(s, str) for s in species):
        raise ValueError(f"species must be a tuple of chemical symbols, got {species!r:.80}.")
    species = tuple(species)
    if len(set(species)) != len(species):
        raise ValueError(f"species must not repeat, got {species}.")
    for index, frame in enumerate(frames):
        for symbol in sorted(set(frame.symbols) - set(species)):
            raise ValueError(f"species must include every symbol: frame {index} has {symbol}, got {species}.")
    return Dataset(frames, species)


def load_dataset(path: str | Path, species: Sequence[str] | None = None, **read_kwargs) -> Dataset:
    """A dataset from an extended XYZ file.

    Args:
        path: the file; `ptco_pbe()` is shipped.
        species: as in `dataset_from_frames`.
        **read_kwargs: handed to `read_frames`.

    Returns:
        The dataset.

    Raises:
        ValueError: as `read_frames` and `dataset_from_frames`.

    Example:
        >>> dataset = load_dataset(ptco_pbe())
        >>> dataset.species
        ('C', 'O', 'Pt')
    """
    return dataset_from_frames(read_frames(path, **read_kwargs), species)


def ptco_pbe() -> Path:
    """Path of the packaged PBE frames of Pt and CO/Pt(111); its README is beside it."""
    return _packaged("ptco_pbe", "frames.xyz.gz")


def ptco_pbe_test() -> Path:
    """Path of the test sets of `ptco_pbe`.

    They are a larger cell, hotter runs, steps and a coverage that are not there, and strained crystals.
    """
    return _packaged("ptco_pbe", "test.xyz.gz")


def ptco_fm() -> Path:
    """Path of the packaged frames of Pt and CO that a foundation model labelled: many, biased.

    Its README is beside it.
    """
    return _packaged("ptco_fm", "frames.xyz.gz")


def ptco_fm_test() -> Path:
    """Path of the test sets of `ptco_fm`: larger cells, hotter runs, other steps and coverages than there."""
    return _packaged("ptco_fm", "test.xyz.gz")


PACKAGED = {
    "ptco_pbe": ptco_pbe,
    "ptco_pbe_test": ptco_pbe_test,
    "ptco_fm": ptco_fm,
    "ptco_fm_test": ptco_fm_test,
}


def _packaged(*names: str) -> Path:
    return Path(str(resources.files("moe_md").joinpath("data", *names)))


def split_by_group(dataset: Dataset, *, validation_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Train and validation sets that share no group.

    Frames of one trajectory are nearly copies: a split between them would
    measure memory. A group's lot is drawn from its name and the seed alone, so
    frames added later leave the lot of the others as it was. Each kind gives at
    least one group and never its last; a kind with a single group stays in
    train. (Where no kind has two groups, kinds are ignored.)

    Args:
        dataset: the frames.
        validation_fraction: in (0, 1), of the groups, on average.
        seed: of the draw; the same seed gives the same split.

    Returns:
        `(train, validation)`, frames in their original order.

    Raises:
        ValueError: the fraction is outside (0, 1), or there are fewer than two
            groups.
    """
    if not isinstance(validation_fraction, Real) or not 0.0 < validation_fraction < 1.0:
        raise ValueError(f"validation_fraction must be in (0, 1), got {validation_fraction}.")
    held_out: set[str] = set()
    for groups in _groups_by_kind(dataset):
        lots = {group: _lot(group, seed) for group in groups}
        groups = sorted(groups, key=lots.__getitem__)
        below = sum(lot < validation_fraction for lot in lots.values())
        held_out.update(groups[: min(max(below, 1), len(groups) - 1)])
    return _divide(dataset, held_out)


def folds_by_group(dataset: Dataset, *, n_folds: int, seed: int) -> list[tuple[Dataset, Dataset]]:
    """Splits for cross-validation: every group of a kind that has two or more is held out once.

    Args:
        dataset: the frames.
        n_folds: at least 2. A kind of fewer groups is held out in some folds only.
        seed: of the order in which groups are dealt.

    Returns:
        `(train, validation)` for each fold, frames in their original order.

    Raises:
        ValueError: `n_folds` is below 2, there are fewer than two groups, or a
            fold stays empty.
    """
    if n_folds < 2:
        raise ValueError(f"n_folds must be at least 2, got {n_folds}.")
    held_out: list[set[str]] = [set() for _ in range(n_folds)]
    turn = 0
    for groups in _groups_by_kind(dataset):
        if len(groups) > 1:
            for group in sorted(groups, key=lambda group: _lot(group, seed)):
                held_out[turn % n_folds].add(group)
                turn += 1
    if turn < n_folds:
        raise ValueError(f"n_folds must be at most {turn}, the groups that can be held out, got {n_folds}.")
    return [_divide(dataset, groups) for groups in held_out]


def _groups_by_kind(dataset: Dataset) -> list[list[str]]:
    """Groups of each kind; of all kinds together where none has two."""
    kind_of: dict[str, str] = {}
    for frame in dataset.frames:
        kind_of.setdefault(frame.group, frame.kind)
    if len(kind_of) < 2:
        raise ValueError(f"dataset must have at least 2 groups to split, got {sorted(kind_of)}.")
    kinds: dict[str, list[str]] = {}
    for group in sorted(kind_of):
        kinds.setdefault(kind_of[group], []).append(group)
    if all(len(groups) == 1 for groups in kinds.values()):
        return [sorted(kind_of)]
    return [kinds[kind] for kind in sorted(kinds)]


def _lot(group: str, seed: int) -> float:
    """A number in [0, 1) that follows from name and seed, on every machine."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _divide(dataset: Dataset, held_out: set[str]) -> tuple[Dataset, Dataset]:
    train = tuple(frame for frame in dataset.frames if frame.group not in held_out)
    validation = tuple(frame for frame in dataset.frames if frame.group in held_out)
    return Dataset(train, dataset.species), Dataset(validation, dataset.species)


def summary(dataset: Dataset) -> dict:
    """What a dataset holds, in numbers fit for JSON.

    Args:
        dataset: the frames.

    Returns:
        `frames`, `atoms`, `groups` and how many frames carry `energy`,
        `forces` and `stress`, for the whole and, under `kinds`, for each kind.
    """

    def count(frames: Sequence[Frame]) -> dict:
        labels = {label: sum(getattr(f, label) is not None for f in frames) for label in LABELS}
        atoms = sum(len(f.symbols) for f in frames)
        return {"frames": len(frames), "atoms": atoms, "groups": len({f.group for f in frames}), **labels}

    kinds = sorted({frame.kind for frame in dataset.frames})
    by_kind = {kind: count([f for f in dataset.frames if f.kind == kind]) for kind in kinds}
    return {**count(dataset.frames), "kinds": by_kind}


def digest(dataset: Dataset) -> str:
    """A name for exactly these frames, in this order: equal data have equal digests, other data another.

    Args:
        dataset: the frames.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256(repr(dataset.species).encode())
    for frame in dataset.frames:
        for value in frame:
            array = isinstance(value, np.ndarray)
            total.update(repr((value.shape, str(value.dtype)) if array else value).encode())
            total.update(np.ascontiguousarray(value).tobytes() if array else b"")
    return total.hexdigest()


def reference_energies(dataset: Dataset) -> dict[str, float]:
    """Energy per atom of each species, by least squares on composition.

    The solution of least norm: species that only occur together (the C and O
    of CO) share their sum, and one that does not occur gets zero.

    Args:
        dataset: the frames; those without an energy are left out.

    Returns:
        eV for each of `dataset.species`.

    Raises:
        ValueError: no frame has an energy.
    """
    require_labels(dataset, energy=True)
    frames = [frame for frame in dataset.frames if frame.energy is not None]
    composition = np.array([[f.symbols.count(s) for s in dataset.species] for f in frames], float)
    energies = np.array([frame.energy for frame in frames])
    solution = np.linalg.lstsq(composition, energies, rcond=None)[0]
    return dict(zip(dataset.species, solution.tolist()))


def force_rms(dataset: Dataset) -> float:
    """Root mean square of all labelled force components, eV/Å.

    Args:
        dataset: the frames; those without forces are left out.

    Returns:
        The root mean square.

    Raises:
        ValueError: no frame has forces.
    """
    require_labels(dataset, forces=True)
    forces = np.concatenate([frame.forces for frame in dataset.frames if frame.forces is not None])
    return float(np.sqrt(np.mean(forces**2)))


def require_labels(
    dataset: Dataset, *, energy: bool = False, forces: bool = False, stress: bool = False
) -> None:
    """Check that the labels a loss asks for exist.

    Args:
        dataset: the frames.
        energy, forces, stress: True for each label that some frame must have;
            a stress counts in fully periodic frames only.

    Raises:
        ValueError: no frame has a label that is asked for; it is named.
    """
    for label, wanted in (("energy", energy), ("forces", forces), ("stress", stress)):
        eligible = [f for f in dataset.frames if label != "stress" or np.all(f.pbc)]
        if wanted and all(getattr(frame, label) is None for frame in eligible):
            where = "fully periodic frame" if label == "stress" else "frame"
            got = f"none of {len(eligible)} has it"
            raise ValueError(
                f"dataset must have {label} on at least one {where}, "
                f"{got}: does the file call it otherwise ({label}_key)?"
            )
