"""Labelled frames that `train`, `evaluate` and `validate` read."""

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict

from moe_md.checkpoint import Checkpoint
from moe_md.commands import settings_file
from moe_md.data import (
    PACKAGED,
    Dataset,
    Reference,
    common_level,
    count_labels,
    describe_reference,
    load_dataset,
    split_by_group,
    summary,
)
from moe_md.data.labels import N_NAMED, without_outliers
from moe_md.data.overview import duplicates
from moe_md.data.sources import names_of
from moe_md.settings import DataSettings

MAX_REFERENCES = 8  # that are printed


def data_settings(parsed: argparse.Namespace) -> DataSettings:
    """Settings of the frames: the `[data]` table of the settings file, then options."""
    return settings_file.settings(DataSettings, "data", parsed)


def load(settings: DataSettings, species: Sequence[str] | None = None) -> Dataset:
    """Read frames from a file or from the package.

    Args:
        settings: the files, the names of their labels, and which frames are left out.
        species: chemical symbols in the order of the experts; default those of the frames.

    Raises:
        ValueError: the file cannot be read, or a label or a species is unknown.
    """
    keys = asdict(settings)
    file, limit = keys.pop("file"), keys.pop("drop_outliers")
    names = [str(PACKAGED[name]()) if name in PACKAGED else name for name in names_of(file)]
    dataset = load_dataset(",".join(names), species, **keys)
    if limit is not None:
        dataset, outliers = without_outliers(dataset, limit)
        if outliers:
            named = ", ".join(frame.source for frame in outliers[:N_NAMED])
            warnings.warn(
                f"{len(outliers)} frames are left out (drop_outliers = {limit:g} eV/atom): {named}"
                + (", ..." if len(outliers) > N_NAMED else ""),
                stacklevel=2,
            )
    return dataset


def log_references(name: str, references: Sequence[Reference], log: Callable) -> None:
    """Log the first references, a line each, and how many more there are."""
    for reference in references[:MAX_REFERENCES]:
        log(f"{name}: {describe_reference(reference)}")
    if len(references) > MAX_REFERENCES:
        log(f"and {len(references) - MAX_REFERENCES} of other compositions (moe-md data --json prints all)")


def warn_of_duplicates(train: Dataset, validation: Dataset) -> None:
    """Warn of structures that are in both."""
    found = duplicates(train, validation)
    if found:
        named = ", ".join(f"{first.source} = {second.source}" for first, second in found[:N_NAMED])
        warnings.warn(
            f"{len(found)} validation frames are training frames too ({named}"
            + (", ..." if len(found) > N_NAMED else "")
            + "): their errors show what was memorised. Remove one of each, or give both one group.",
            stacklevel=2,
        )


def split(dataset: Dataset, model: Checkpoint, name: str, fraction: float | None) -> Dataset:
    """Part of the frames, split as in the training of a checkpoint.

    Args:
        dataset: all frames.
        model: a checkpoint, whose settings record the fraction and the seed of its split.
        name: `train`, `validation` or `all`.
        fraction: of the groups used for validation; None for that of the checkpoint.

    Raises:
        ValueError: neither the argument nor the checkpoint gives a fraction.
    """
    if name == "all":
        return dataset
    fraction = model.settings.get("validation_fraction") if fraction is None else fraction
    if not fraction:
        raise ValueError(
            "validation_fraction must be given for a split, got none: the checkpoint does not record one."
            " Set --validation-fraction."
        )
    seed = model.settings.get("split_seed", model.settings.get("seed", 0))
    train, validation = split_by_group(dataset, validation_fraction=fraction, seed=seed)
    return {"train": train, "validation": validation}[name]


def describe(name: str, dataset: Dataset) -> str:
    """The size of a dataset, and the numbers of frames with a label that training can use."""
    counts, labels = summary(dataset), count_labels(dataset)
    return (
        f"{name}: {counts['frames']} frames of {counts['groups']} groups, {counts['atoms']} atoms, with"
        f" {labels['energy']} energies, {labels['forces']} forces, {labels['stress']} stresses"
    )


def log_levels(model: Checkpoint, dataset: Dataset, log: Callable) -> dict[str, str]:
    """Log the levels of theory of a checkpoint and of labelled frames, and warn if they differ.

    Args:
        model: the checkpoint.
        dataset: labelled frames.
        log: takes lines of text.

    Returns:
        Those that are known, under `checkpoint` and `data`.

    Raises:
        ValueError: the frames have two levels.
    """
    levels = {"checkpoint": model.level_of_theory, "data": common_level(dataset.frames)}
    levels = {name: level for name, level in levels.items() if level}
    if levels:
        log("level of theory: " + "; ".join(f"{name} {level}" for name, level in levels.items()))
    if len(set(levels.values())) > 1:
        warnings.warn(
            f"the checkpoint was trained on labels of {levels['checkpoint']!r}, and the labels here are of"
            f" {levels['data']!r}: errors contain the difference of the two.",
            stacklevel=2,
        )
    return levels
