"""What the data of a training must have, checked before the first step."""

import warnings
from collections.abc import Sequence

import numpy as np

from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import Prepared
from moe_md.data.dataset import LABELS, Dataset, require_labels
from moe_md.data.labels import count_labels, refuse_zeros, warn_of_labels
from moe_md.data.reading import Frame, common_level
from moe_md.experts.base import Expert
from moe_md.experts.domain import in_domain
from moe_md.settings import TrainSettings

NAMES = ("expensive", "cheap")


def check_labels(
    dataset: Dataset, validation: Dataset | None, settings: TrainSettings, *, alone: bool
) -> None:
    """Check the labels whose weight in the loss is not zero; others are not required.

    Args:
        dataset: frames to train on.
        validation: frames to validate on; None without any.
        settings: for `weights` and `patience`.
        alone: whether these labels are all that is fitted, without an extra loss.

    Raises:
        ValueError: no frame has a label that has a weight, all labels of a kind are
            zero, nothing has a weight, or `patience` has no labels to judge by.
    """
    weighed = {label: getattr(settings.weights, label) > 0 for label in LABELS}
    if alone and not any(weighed.values()):
        raise ValueError(
            "weights must be positive for energy, forces or stress, got 0 for all: nothing is fitted."
        )
    stress_only = weighed["stress"] and not (weighed["energy"] or weighed["forces"])
    require_labels(dataset, energy=weighed["energy"], forces=weighed["forces"], stress=stress_only)
    refuse_zeros(dataset, **weighed)
    counts = {} if validation is None else count_labels(validation)
    if settings.patience and counts and not any(counts[label] for label in LABELS if weighed[label]):
        needed = " or ".join(label for label in LABELS if weighed[label])
        raise ValueError(
            f"validation must have labels where patience is set, here {settings.patience}: none of its frames"
            f" has {needed}. Label them, or set patience = 0."
        )


def check_metal(dataset: Dataset, settings: TrainSettings) -> None:
    """Check that the data have the metal of the unlabelled crystals.

    Raises:
        ValueError: crystals are asked for, and no frame has their element.
    """
    found = sorted({symbol for frame in dataset.frames for symbol in frame.symbols})
    if (settings.unlabelled_atoms or settings.ideal_crystals) and settings.metal not in found:
        raise ValueError(
            f"metal must be a species of the data, which have {', '.join(found)}, got {settings.metal!r}: set"
            " metal and lattice_constant, and allowed_species of [cheap], or turn the unlabelled crystals off"
            " with unlabelled_atoms = 0 and ideal_crystals = 0."
        )


def check_domains(experts: Sequence[Expert], train: Prepared) -> None:
    """Check that labelled frames have atoms in the domain of every expert.

    Raises:
        ValueError: an expert has no training atom.
    """
    labelled = [
        rows
        for frame, rows in zip(train.frames, train.rows)
        if any(getattr(frame, label) is not None for label in LABELS)
    ]
    for name, expert in zip(NAMES, experts):
        if not any(np.any(in_domain(expert, rows)) for rows in labelled):
            found = ", ".join(sorted({symbol for frame in train.frames for symbol in frame.symbols}))
            allowed = ", ".join(expert.allowed_species)
            raise ValueError(
                f"allowed_species of [{name}] must allow atoms of the data, got {allowed} for frames of"
                f" {found}: no labelled atom has only these in {expert.cutoff:g} Å, and the expert would be"
                " trained on nothing. Set allowed_species and metal to species of the data."
            )


def level_of_theory(dataset: Dataset, validation: Dataset | None, start: Checkpoint | None) -> str:
    """The level of theory of all labels; empty where they name none. Warns where `start` has another one.

    Raises:
        ValueError: labels are of two levels.
    """
    level = common_level(_all_frames(dataset, validation))
    before = "" if start is None else start.level_of_theory
    if before and before != level:
        now = f"these are of {level!r}" if level else "these do not name theirs (level_of_theory)"
        warnings.warn(
            f"start was trained on labels of {before!r}, and {now}: its reference energies are shifted, and"
            " all parameters are fitted to the new labels.",
            stacklevel=3,
        )
    return level


def warn(dataset: Dataset, validation: Dataset | None) -> None:
    """Warn once of each suspicion about the labels of all frames."""
    warn_of_labels(Dataset(_all_frames(dataset, validation), dataset.species))


def _all_frames(dataset: Dataset, validation: Dataset | None) -> tuple[Frame, ...]:
    return dataset.frames if validation is None else (*dataset.frames, *validation.frames)
