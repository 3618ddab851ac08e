"""Errors of a checkpoint on labelled frames: `moe-md evaluate`."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from moe_md import checkpoint as checkpoints
from moe_md import data
from moe_md.commands import frames, settings_file
from moe_md.experts.base import check_two_experts
from moe_md.files import write_json
from moe_md.settings import DataSettings
from moe_md.training import evaluation

HEADER = f"{'kind':20s} {'frames':>6s} {'expert':10s} {'meV/atom':>9s} {'meV/Å':>8s} {'GPa':>7s}"
COLUMNS = {"energy_meV_per_atom": "9.1f", "forces_meV_per_A": "8.0f", "stress_GPa": "7.2f"}


def command(settings: DataSettings, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md evaluate`.

    Args:
        settings: the `[data]` table.
        parsed: further options of the command.
        log: takes lines of text.

    Returns:
        The content of `evaluation.json`.

    Raises:
        ValueError: the checkpoint does not hold two experts, or does not fit the frames, or no frame has
            a label.
    """
    model = checkpoints.load(parsed.checkpoint)
    check_two_experts(model.experts, "experts of the checkpoint")
    dataset = frames.load(settings, model.experts[0].species)
    dataset = frames.split(dataset, model, parsed.split, parsed.validation_fraction)
    if not any(data.count_labels(dataset).values()):
        data.require_labels(dataset, energy=True)
    log(frames.describe(parsed.split, dataset))
    levels = frames.log_levels(model, dataset, log)
    data.warn_of_labels(dataset)
    settings_file.echo(parsed.out, {"data": settings}, parsed.typed)
    scores = evaluation.evaluate_by_kind(model.experts, model.params, dataset)
    report = {
        "checkpoint": str(parsed.checkpoint),
        "data": settings.file,
        "split": parsed.split,
        **({"level_of_theory": levels} if levels else {}),
        "kinds": scores,
    }
    path = Path(parsed.out) / "evaluation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)
    log(error_table(scores))
    log(f"wrote {path}")
    return report


def error_table(scores: dict) -> str:
    """Errors as lines of text, one for each kind of frame and expert.

    Args:
        scores: from `evaluation.evaluate_by_kind`.
    """
    lines = [HEADER]
    for kind, entry in scores.items():
        for potential in ("expensive", "cheap", "mixed"):
            errors = entry[potential]
            if any(value is not None for value in errors.values()):
                numbers = (_number(errors[key], form) for key, form in COLUMNS.items())
                lines.append(f"{kind:20s} {entry['frames']:6d} {potential:10s} {' '.join(numbers)}")
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    """A number in a column; a dash if there is none."""
    return "-".rjust(int(form.split(".")[0])) if value is None else format(value, form)
