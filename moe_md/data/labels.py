"""Labels of a dataset: how many there are, and what looks wrong about them.

Nothing is changed or left out here. What cannot be right is refused by `require_labels`
(`dataset`) and `refuse_zeros`; what is only suspicious becomes a remark, in one line with numbers.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from moe_md import units
from moe_md.data.dataset import LABELS, Dataset, usable_labels
from moe_md.data.reading import Frame
from moe_md.data.stored_labels import LOOKS_LIKE
from moe_md.neighbors.rows import image_pairs

FAR_ENERGY = 1.0  # eV/atom, smallest distance from the fit by composition that is remarked
LARGE_FORCES = 20.0  # eV/Å, smallest root mean square of a frame that is remarked
LARGE_STRESS = 1.25  # eV/Å^3, about 200 GPa
TIMES_MEDIAN = {"energy": 40.0, "forces": 20.0}  # remarked above so many times the median
TIMES_MOST = 3.0  # energies also above so many times the distance that 95 % of the frames do not pass
SYMMETRY_CUTOFF = 4.0  # Å
N_NAMED = 3  # frames that a remark names


def count_labels(dataset: Dataset) -> dict[str, int]:
    """Numbers of frames with an energy, with forces and with a stress that training can use.

    A stress counts in fully periodic frames only, as it is defined there only.
    """
    return {label: len(usable_labels(dataset, label)) for label in LABELS}


def refuse_zeros(
    dataset: Dataset, *, energy: bool = False, forces: bool = False, stress: bool = False
) -> None:
    """Check that the labels of a kind are not all zero: a label that is missing must be left out.

    Args:
        dataset: the frames.
        energy, forces, stress: True for each label to check.

    Raises:
        ValueError: two frames or more have the label, and all its numbers are zero.
    """
    for label, checked in (("energy", energy), ("forces", forces), ("stress", stress)):
        frames = usable_labels(dataset, label) if checked else []
        if len(frames) > 1 and not any(np.any(getattr(frame, label)) for frame in frames):
            raise ValueError(
                f"{label} must not be zero in every frame, got {len(frames)} frames of zeros: leave labels"
                f" that are missing out of the file, or set the weight of {label} in the loss to 0."
            )


def warn_of_labels(dataset: Dataset) -> None:
    """One warning for each of `label_remarks`."""
    for remark in label_remarks(dataset):
        warnings.warn(remark, stacklevel=3)


def label_remarks(dataset: Dataset) -> list[str]:
    """What looks wrong about the labels, a line each.

    Labels under other names, energies of two kinds, energies far off a fit by
    composition, frames of very large forces, stresses that may have other units, zeros
    that may mean "none", stresses that cannot be used, and levels of theory that only
    some frames name.

    Args:
        dataset: the frames.

    Returns:
        Lines of text; none for a dataset without anything suspicious.
    """
    return [
        *(line for label in LABELS for line in _other_names(dataset, label)),
        *_kinds_of_energy(dataset),
        *_far_energies(dataset),
        *_large_forces(dataset),
        *_large_stresses(dataset),
        *(line for label in ("forces", "stress") for line in _zeros(dataset, label)),
        *_unused_stresses(dataset),
        *_unknown_levels(dataset),
    ]


def _other_names(dataset: Dataset, label: str) -> Iterable[str]:
    """Names in the file that look like a label."""
    names = Counter(
        name for frame in dataset.frames for name in frame.unread if LOOKS_LIKE[label].search(name)
    )
    if names:
        found = ", ".join(f"{name} in {n}" for name, n in names.most_common(5))
        option = f"{label}_key" + (" or virial_key" if label == "stress" else "")
        yield (
            f"{count_labels(dataset)[label]} of {len(dataset.frames)} frames have {label}; not read, though"
            f" its name looks like it: {found}. Set {option} for another name."
        )


def _kinds_of_energy(dataset: Dataset) -> Iterable[str]:
    names = Counter(frame.energy_name.lower() for frame in dataset.frames if frame.energy_name)
    if len(names) > 1:
        found = " and ".join(f"{n} of {name}" for name, n in names.most_common())
        yield f"energies are of two kinds, {found}: set energy_key to the one that all frames have."


def without_outliers(dataset: Dataset, limit: float) -> tuple[Dataset, list[Frame]]:
    """The dataset without frames whose energy is farther than `limit` eV/atom from the fit by composition.

    Returns:
        The other frames, and those left out.

    Raises:
        ValueError: all frames with an energy would be left out.
    """
    frames = usable_labels(dataset, "energy")
    if not frames:
        return dataset, []
    distance = np.abs(energy_residuals(frames, dataset.species))
    outliers = [frame for frame, off in zip(frames, distance) if off > limit]
    if len(outliers) == len(frames):
        raise ValueError(
            f"drop_outliers must leave frames with an energy, got {limit} eV/atom: all {len(frames)} are"
            f" farther from the fit by composition, their median {np.median(distance):.3g}."
        )
    dropped = set(map(id, outliers))
    return dataset._replace(frames=tuple(f for f in dataset.frames if id(f) not in dropped)), outliers


def _far_energies(dataset: Dataset) -> Iterable[str]:
    """Energies far off the sum of one energy per atom of each species."""
    frames = usable_labels(dataset, "energy")
    if len(frames) < 3:
        return
    distance = np.abs(energy_residuals(frames, dataset.species))
    spread = min(TIMES_MEDIAN["energy"] * np.median(distance), TIMES_MOST * np.quantile(distance, 0.95))
    limit = max(FAR_ENERGY, float(spread))
    if (distance > limit).any():
        yield (
            f"energies far from the fit by composition: {_named(frames, distance, limit, 'eV/atom')}; the"
            f" median is {np.median(distance):.3g}. Another reference or unit, or a calculation that failed?"
            f" drop_outliers = {limit:.2g} leaves them out."
        )


def energy_residuals(frames: Sequence[Frame], species: Sequence[str]) -> np.ndarray:
    """`[n_frames]` eV/atom, energies of frames less those of the atoms that fit best.

    The sum of absolute residuals is minimised by reweighted least squares, so that a few wrong energies
    do not move the fit.
    """
    sizes = np.array([len(frame.symbols) for frame in frames])
    composition = np.array([[frame.symbols.count(s) for s in species] for frame in frames]) / sizes[:, None]
    energy = np.array([frame.energy for frame in frames], float) / sizes
    residual = np.ones(len(frames))
    for _ in range(30):
        root = np.sqrt(1.0 / np.maximum(np.abs(residual), 1e-3))
        solution = np.linalg.lstsq(composition * root[:, None], energy * root, rcond=None)[0]
        residual = energy - composition @ solution
    return residual


def _large_forces(dataset: Dataset) -> Iterable[str]:
    """Frames whose forces are far larger than those of the others."""
    frames = usable_labels(dataset, "forces")
    if len(frames) < 3:
        return
    size = np.array([np.sqrt(np.mean(np.asarray(frame.forces) ** 2)) for frame in frames])
    limit = max(LARGE_FORCES, TIMES_MEDIAN["forces"] * float(np.median(size)))
    if (size > limit).any():
        yield (
            f"large forces: {_named(frames, size, limit, 'eV/Å')} (root mean square); the median is"
            f" {np.median(size):.3g}. Wrong units, or a calculation that failed?"
        )


def _large_stresses(dataset: Dataset) -> Iterable[str]:
    frames = usable_labels(dataset, "stress")
    size = np.array([np.abs(np.asarray(frame.stress)).max() for frame in frames])
    if (size > LARGE_STRESS).any():
        named = _named(frames, size / units.GPa, LARGE_STRESS / units.GPa, "GPa")
        yield f"large stresses: {named}. They must be in eV/Å^3, not in GPa or kbar."


def _zeros(dataset: Dataset, label: str) -> Iterable[str]:
    frames = usable_labels(dataset, label)
    zero = [not np.any(getattr(frame, label)) for frame in frames]
    if label == "forces":  # which are zero by symmetry in ideal crystals
        zero = [is_zero and not _all_atoms_are_centers(frame) for is_zero, frame in zip(zero, frames)]
    if any(zero):
        named = _named(frames, np.array(zero, float), 0.5)
        yield f"{label} of exactly zero: {named}. Remove labels that are missing, as zeros are fitted."


def _all_atoms_are_centers(frame: Frame) -> bool:
    """Whether the neighbours of each atom balance, so that its force is zero by symmetry."""
    i, _, displacement = image_pairs(frame.positions, frame.cell, frame.pbc, SYMMETRY_CUTOFF)
    weight = (1.0 - np.linalg.norm(displacement, axis=1, keepdims=True) / SYMMETRY_CUTOFF) ** 2
    total = np.zeros_like(frame.positions)
    np.add.at(total, i, weight * displacement)
    return bool(np.abs(total).max() < 1e-4)


def _unused_stresses(dataset: Dataset) -> Iterable[str]:
    n = sum(frame.stress is not None for frame in dataset.frames) - count_labels(dataset)["stress"]
    if n:
        yield f"{n} stresses are not used: their frames are not periodic in all three directions."


def _unknown_levels(dataset: Dataset) -> Iterable[str]:
    named = [frame.level_of_theory for frame in dataset.frames if frame.level_of_theory]
    if named and len(named) < len(dataset.frames):
        yield (
            f"{len(dataset.frames) - len(named)} of {len(dataset.frames)} frames do not name a level of"
            f" theory, the others {named[0]!r}. If it is theirs too, set level_of_theory to it."
        )


def _named(frames: Sequence[Frame], value: np.ndarray, limit: float, unit: str = "") -> str:
    """Frames above a limit, largest first: "2 frames (frame 5 of a.xyz, frame 7 of a.xyz), 3 to 9 eV/Å"."""
    order = [int(k) for k in np.argsort(-value, kind="stable") if value[k] > limit]
    names = ", ".join(frames[k].source or f"frame {k}" for k in order[:N_NAMED])
    names += ", ..." if len(order) > N_NAMED else ""
    count = "1 frame" if len(order) == 1 else f"{len(order)} frames"
    low, high = f"{value[order[-1]]:.3g}", f"{value[order[0]]:.3g}"
    return f"{count} ({names})" + (f", {high if low == high else f'{low} to {high}'} {unit}" if unit else "")
