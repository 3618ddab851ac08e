"""A set of frames over one tuple of species: splits, counts, reference energies."""

from importlib import resources
from pathlib import Path
from typing import Iterable, NamedTuple, Sequence

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
    return Path(str(resources.files("moe_md").joinpath("data", "ptco_pbe", "frames.xyz.gz")))


def split_by_group(dataset: Dataset, *, validation_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Train and validation sets that share no group.

    Frames of one trajectory are nearly copies: a split between them would
    measure memory. Each kind gives about `validation_fraction` of its frames,
    at least one group and never its last; a kind with a single group stays in
    train. (Where no kind has two groups, kinds are ignored.)

    Args:
        dataset: the frames.
        validation_fraction: in (0, 1).
        seed: of the draw; the same seed gives the same split.

    Returns:
        `(train, validation)`, frames in their original order.

    Raises:
        ValueError: the fraction is outside (0, 1), or there are fewer than two
            groups.
    """
    if not 0.0 < validation_fraction < 1.0:
        raise ValueError(f"validation_fraction must be in (0, 1), got {validation_fraction}.")
    kind_of: dict[str, str] = {}
    size: dict[str, int] = {}
    for frame in dataset.frames:
        kind_of.setdefault(frame.group, frame.kind)
        size[frame.group] = size.get(frame.group, 0) + 1
    if len(size) < 2:
        raise ValueError(f"dataset must have at least 2 groups to split, got {sorted(size)}.")
    strata: dict[str, list[str]] = {}
    for group in sorted(size):
        strata.setdefault(kind_of[group], []).append(group)
    if all(len(groups) == 1 for groups in strata.values()):
        strata = {"": sorted(size)}

    rng = np.random.default_rng(seed)
    held_out: set[str] = set()
    for kind in sorted(strata):
        groups = list(rng.permutation(strata[kind]))
        taken = np.cumsum([size[group] for group in groups])
        closest = int(np.argmin(np.abs(taken - validation_fraction * taken[-1]))) + 1
        held_out.update(groups[: min(closest, len(groups) - 1)])
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
            raise ValueError(f"dataset must have {label} on at least one {where}, {got}.")
