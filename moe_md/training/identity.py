"""What a training is: the values that a resumed one must share, and those that its checkpoint records."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import jax

from moe_md.checkpoint import Checkpoint
from moe_md.data.dataset import Dataset, digest, summary
from moe_md.data.references import Reference, reference_to_dict
from moe_md.experts.base import Expert
from moe_md.settings import EnvironmentSettings, TrainSettings
from moe_md.training.parameters import digest_params


def static_record(
    dataset: Dataset,
    validation: Dataset | None,
    start: Checkpoint | None,
    devices: Sequence[jax.Device] | None,
    level: str,
    references: Sequence[Reference],
) -> dict:
    """The part of a checkpoint's record that no step changes.

    Args:
        dataset, validation, start, devices: as in `cotrain`.
        level: the level of theory of the labels; empty where they name none.
        references: what unlabelled environments are cut from.
    """
    return {
        "references": [reference_to_dict(reference) for reference in references],
        **({"level_of_theory": level} if level else {}),
        "jax": jax.__version__,
        "device": (jax.devices() if devices is None else devices)[0].device_kind,
        "devices": 1 if devices is None else len(devices),
        "train": summary(dataset),
        "validation": None if validation is None else summary(validation),
        "start": None
        if start is None
        else {
            "digest": digest_params(start.params),
            "train": start.record.get("train"),
            **({"level_of_theory": start.level_of_theory} if start.level_of_theory else {}),
        },
    }


def fingerprint(
    experts: tuple[Expert, ...],
    settings: TrainSettings,
    environments: EnvironmentSettings,
    references: Sequence[Reference],
    dataset: Dataset,
    validation: Dataset | None,
    start: Checkpoint | None,
    extra_loss: Callable | None,
    level: str,
) -> dict:
    """What must be equal where a training is resumed.

    Args:
        experts, settings, environments, dataset, validation, start, extra_loss: as in `cotrain`.
        references: what unlabelled environments are cut from.
        level: the level of theory of the labels; empty where they name none.
    """
    found = {
        "settings": asdict(settings),
        "environments": asdict(environments),
        "references": [reference_to_dict(reference) for reference in references],
        "experts": [e.config for e in experts],
        "data": digest(dataset),
        "validation data": None if validation is None else digest(validation),
        "start": None if start is None else digest_params(start.params),
    }
    if level:
        found["level of theory"] = level
    if extra_loss is not None:
        found["extra loss"] = getattr(extra_loss, "__name__", type(extra_loss).__name__)
    return found
