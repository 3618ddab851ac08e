"""What the data of a training must have, checked before the first step."""

import warnings
from collections.abc import Sequence

import numpy as np
from ase import Atoms

from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import Prepared
from moe_md.data.dataset import LABELS, Dataset, require_labels
from moe_md.data.labels import count_labels, refuse_zeros, warn_of_labels
from moe_md.data.reading import Frame, common_level
from moe_md.data.references import (
    Reference,
    describe_reference,
    find_references,
    read_references,
    reference_from_atoms,
)
from moe_md.experts.base import Expert
from moe_md.experts.domain import in_domain
from moe_md.settings import FROM_DATA, EnvironmentSettings, TrainSettings

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


def chosen_references(
    experts: Sequence[Expert],
    dataset: Dataset,
    settings: EnvironmentSettings,
    given: Sequence[Atoms | Reference] | None = None,
    start: Checkpoint | None = None,
) -> list[Reference]:
    """The references of a training: those given, those of the settings, or the crystals of the data.

    Crystals of the data that have species outside the cheap expert's domain are left out. Where none is
    left, the references are those of `start`.

    Args:
        experts: the expensive and the cheap one.
        dataset: frames to train on.
        settings: for `references`, and whether environments are asked for.
        given: structures that take the place of `settings.references`; None for these.
        start: the checkpoint to start from; None without one.

    Raises:
        ValueError: environments are asked for and there are no references; a structure cannot be read, or has
            species outside the domain of the cheap expert.
    """
    if given is not None:
        found = [x if isinstance(x, Reference) else reference_from_atoms(x) for x in given]
    elif settings.references != FROM_DATA:
        found = read_references(settings.references)
    else:
        found = [r for r in find_references(dataset) if _in_domain(experts[1], r)]
        found = found or list(() if start is None else start.references)
    allowed = ", ".join(experts[1].allowed_species)
    if not found and not settings.is_empty:
        raise ValueError(
            f"references must be at least one structure of {allowed}, on which experts agree, got none: no"
            f" periodic one of the {len(dataset.frames)} frames with an energy is a crystal. Give files, such"
            ' as references = "bulk.cif", or turn agreement outside the frames off with environment_rows = 0'
            " and perfect_rows = 0, all in [environments]."
        )
    for reference in found:
        if not _in_domain(experts[1], reference):
            raise ValueError(
                f"references must have species of the cheap expert's domain, {allowed}, got"
                f" {describe_reference(reference)}: remove it, or set allowed_species of [cheap]."
            )
    return found


def _in_domain(expert: Expert, reference: Reference) -> bool:
    return set(reference.atoms.symbols) <= set(expert.allowed_species)


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
                " trained on nothing. Set allowed_species to species of the data."
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
