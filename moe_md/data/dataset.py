"""Datasets, frames over one tuple of species: splits, summaries, reference energies."""

import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moe_md.data.reading import Frame, read_frames
from moe_md.data.stored_labels import LOOKS_LIKE
from moe_md.neighbors.rows import image_pairs

LABELS = ("energy", "forces", "stress")


class Dataset(NamedTuple):
    """Frames and the species they may contain."""

    frames: tuple[Frame, ...]
    species: tuple[str, ...]  # in the order of `Expert.species`


def dataset_from_frames(frames: Iterable[Frame], species: Sequence[str] | None = None) -> Dataset:
    """A dataset of these frames, its species checked.

    Args:
        frames: the frames.
        species: the species allowed, in the order of `Expert.species`; by
            default those of the frames, sorted.

    Returns:
        The dataset.

    Raises:
        ValueError: a species is repeated, or a frame contains one that is not allowed.
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
    """A dataset from files of labelled frames.

    Args:
        path: the files, as in `read_frames`; `ptco_pbe()` is shipped.
        species: as in `dataset_from_frames`.
        **read_kwargs: passed to `read_frames`.

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

    Their frames differ in kind from those of `ptco_pbe`: a larger cell, higher temperatures, other steps,
    another coverage, strained crystals.
    """
    return _packaged("ptco_pbe", "test.xyz.gz")


def ptco_fm() -> Path:
    """Path of the packaged frames of Pt and CO labelled by a foundation model; its README is beside it.

    There are many, with the model's systematic errors.
    """
    return _packaged("ptco_fm", "frames.xyz.gz")


def ptco_fm_test() -> Path:
    """Path of the test sets of `ptco_fm`: larger cells, higher temperatures, other steps and coverages."""
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

    Frames of one trajectory are nearly equal: a split within a group would
    measure memorisation. A pseudo-random number decides the side of each group.
    It follows from the group's name and the seed alone, so that frames added
    later move no other group. Each kind gives at least one group to validation,
    and keeps at least one in train; a kind with a single group stays in train.
    Where no kind has two groups, kinds are ignored.

    Args:
        dataset: the frames.
        validation_fraction: expected fraction of groups in validation, in (0, 1).
        seed: seed of the numbers; the same seed gives the same split.

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
        drawn = {group: _pseudo_random_number(group, seed) for group in groups}
        groups = sorted(groups, key=drawn.__getitem__)
        below = sum(number < validation_fraction for number in drawn.values())
        held_out.update(groups[: min(max(below, 1), len(groups) - 1)])
    return _divide(dataset, held_out)


def folds_by_group(dataset: Dataset, *, n_folds: int, seed: int) -> list[tuple[Dataset, Dataset]]:
    """Splits for cross-validation: every group of a kind with two groups or more is held out once.

    Args:
        dataset: the frames.
        n_folds: number of folds, at least 2. A kind with fewer groups is held out
            in some folds only.
        seed: seed of the order in which groups are assigned to folds.

    Returns:
        `(train, validation)` for each fold, frames in their original order.

    Raises:
        ValueError: `n_folds` is below 2, there are fewer than two groups, or a
            fold stays empty.
    """
    if n_folds < 2:
        raise ValueError(f"n_folds must be at least 2, got {n_folds}.")
    held_out: list[set[str]] = [set() for _ in range(n_folds)]
    assigned = 0
    for groups in _groups_by_kind(dataset):
        if len(groups) > 1:
            for group in sorted(groups, key=lambda group: _pseudo_random_number(group, seed)):
                held_out[assigned % n_folds].add(group)
                assigned += 1
    if assigned < n_folds:
        raise ValueError(
            f"n_folds must be at most {assigned}, the number of groups to hold out, got {n_folds}."
        )
    return [_divide(dataset, groups) for groups in held_out]


def _groups_by_kind(dataset: Dataset) -> list[list[str]]:
    """Sorted groups of each kind, or one list of all groups where no kind has two."""
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


def _pseudo_random_number(group: str, seed: int) -> float:
    """A number in [0, 1) from a hash of name and seed, the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _divide(dataset: Dataset, held_out: set[str]) -> tuple[Dataset, Dataset]:
    train = tuple(frame for frame in dataset.frames if frame.group not in held_out)
    validation = tuple(frame for frame in dataset.frames if frame.group in held_out)
    return Dataset(train, dataset.species), Dataset(validation, dataset.species)


def summary(dataset: Dataset) -> dict:
    """Counts of frames, atoms, groups and labels, serialisable as JSON.

    Args:
        dataset: the frames.

    Returns:
        `frames`, `atoms`, `groups`, and the number of frames with a label
        `energy`, `forces` and `stress`: of all frames and, under `kinds`, of
        the frames of each kind.
    """
    kinds = sorted({frame.kind for frame in dataset.frames})
    by_kind = {kind: _counts([f for f in dataset.frames if f.kind == kind]) for kind in kinds}
    return {**_counts(dataset.frames), "kinds": by_kind}


def _counts(frames: Sequence[Frame]) -> dict:
    """Numbers of frames, atoms, groups and labels."""
    labels = {label: sum(getattr(f, label) is not None for f in frames) for label in LABELS}
    atoms = sum(len(f.symbols) for f in frames)
    return {"frames": len(frames), "atoms": atoms, "groups": len({f.group for f in frames}), **labels}


def digest(dataset: Dataset) -> str:
    """SHA-256 of the frames in their order, with all labels, groups and kinds, but not their names in files.

    Args:
        dataset: the frames.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256(repr(dataset.species).encode())
    for frame in dataset.frames:
        for value in frame[: Frame._fields.index("source")]:
            array = isinstance(value, np.ndarray)
            total.update(repr((value.shape, str(value.dtype)) if array else value).encode())
            total.update(np.ascontiguousarray(value).tobytes() if array else b"")
    return total.hexdigest()


def reference_energies(dataset: Dataset) -> dict[str, float]:
    """Energy per atom of each species, by least squares on composition.

    The solution has the least norm: species that only occur together in a fixed
    ratio (the C and O of CO) share their energy, and a species that does not
    occur has zero.

    Args:
        dataset: the frames; those without an energy are ignored.

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


def isolated_atom_energies(dataset: Dataset, cutoff: float) -> dict[str, float]:
    """Energy of each species from frames of one atom alone.

    Args:
        dataset: the frames.
        cutoff: Å, images of the atom must be farther away.

    Returns:
        eV for each of `dataset.species` that occurs in other frames, and 0 for others.

    Raises:
        ValueError: a species has no such frame, or two with different energies.
    """
    found: dict[str, float] = {}
    for frame in dataset.frames:
        if len(frame.symbols) > 1 or frame.energy is None:
            continue
        if len(image_pairs(frame.positions, frame.cell, frame.pbc, cutoff)[0]) == 0:
            (symbol,) = frame.symbols
            if abs(found.setdefault(symbol, frame.energy) - frame.energy) > 1e-3:
                raise ValueError(
                    f"isolated atoms of {symbol} must have one energy, got {found[symbol]} and {frame.energy}"
                    f" eV ({frame.source}): keep the one of the ground state."
                )
    needed = {symbol for frame in dataset.frames for symbol in frame.symbols}
    if missing := sorted(needed - set(found)):
        raise ValueError(
            f"isolated_atoms = true needs a training frame of one atom of each species, got none of"
            f" {', '.join(missing)}: add it, under a kind of its own so that it stays in training."
        )
    return {symbol: found.get(symbol, 0.0) for symbol in dataset.species}


def force_rms(dataset: Dataset, weights: Sequence[float] | None = None) -> float:
    """Root mean square of all labelled force components, eV/Å.

    Args:
        dataset: the frames; those without forces are ignored.
        weights: of the squares of each frame's components; default 1.

    Returns:
        The root mean square, eV/Å.

    Raises:
        ValueError: no frame has forces.
    """
    require_labels(dataset, forces=True)
    given = zip(dataset.frames, [1.0] * len(dataset.frames) if weights is None else weights)
    labelled = [(frame.forces, weight) for frame, weight in given if frame.forces is not None]
    total = sum(weight * float(np.sum(forces**2)) for forces, weight in labelled)
    return float(np.sqrt(total / sum(weight * forces.size for forces, weight in labelled)))


def usable_labels(dataset: Dataset, label: str) -> list[Frame]:
    """Frames with a label (`energy`, `forces` or `stress`); a stress counts in fully periodic frames only."""
    eligible = (frame for frame in dataset.frames if label != "stress" or np.all(frame.pbc))
    return [frame for frame in eligible if getattr(frame, label) is not None]


def require_labels(
    dataset: Dataset, *, energy: bool = False, forces: bool = False, stress: bool = False
) -> None:
    """Check that the labels a loss needs exist.

    Args:
        dataset: the frames.
        energy, forces, stress: True for each label that some frame must have;
            a stress counts in fully periodic frames only.

    Raises:
        ValueError: no frame has a required label; the message names it.
    """
    for label, required in (("energy", energy), ("forces", forces), ("stress", stress)):
        if required and not usable_labels(dataset, label):
            where = "fully periodic frame" if label == "stress" else "frame"
            n = sum(label != "stress" or bool(np.all(f.pbc)) for f in dataset.frames)
            names = {name for f in dataset.frames for name in f.unread if LOOKS_LIKE[label].search(name)}
            like = f" (one that looks like it: {', '.join(sorted(names)[:5])})" if names else ""
            raise ValueError(
                f"dataset must have {label} on at least one {where}, got none of {n} has it: "
                f"where the file uses another name{like}, set {label}_key."
            )
