"""The checkpoints of the package: `moe-md models`."""

import tomllib
from argparse import Namespace
from collections.abc import Callable
from importlib import resources

from moe_md import checkpoint as checkpoints
from moe_md.checkpoint import Checkpoint

COLUMNS = ("pair", "elements", "labels", "cutoff, Å", "forces, meV/Å", "licence of the frames")
NOTE = (
    "forces: root mean square errors on frames held out, expensive expert | cheap expert in its domain;"
    ' load one with mm.load("NAME") or --checkpoint NAME'
)


def command(settings: None, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md models`.

    Args:
        settings, parsed: not used.
        log: takes lines of text.

    Returns:
        Under `models`, for each name, `builders`, `species`, `cutoffs` (Å), `labels`, `licence` (of the
        frames) and `forces_meV_per_A`, the errors of both experts on frames held out, or None.
    """
    models = {name: _entry(name) for name in checkpoints.models()}
    rows = [COLUMNS, *(_cells(name, entry) for name, entry in models.items())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        log("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    log(NOTE)
    return {"models": models}


def _entry(name: str) -> dict:
    model = checkpoints.load(name)
    text = (resources.files("moe_md") / "checkpoints" / "about.toml").read_text(encoding="utf-8")
    about = tomllib.loads(text).get(name, {})
    return {
        "builders": [e.config["builder"] for e in model.experts],
        "species": list(model.experts[0].species),
        "cutoffs": [e.cutoff for e in model.experts],
        "labels": about.get("labels", ""),
        "licence": about.get("licence", ""),
        "forces_meV_per_A": _errors(model),
    }


def _errors(model: Checkpoint) -> list[float] | None:
    """Force errors of both experts on frames held out, or on the validation frames; None without any."""
    history = model.record.get("history") or [None]
    found = model.record.get("held_out") or history[-1]
    if found is None or len(model.experts) < 2:
        return None
    errors = [found[name]["forces_meV_per_A"] for name in ("expensive", "cheap")]
    return None if None in errors else errors


def _cells(name: str, entry: dict) -> tuple[str, ...]:
    errors = entry["forces_meV_per_A"]
    return (
        name,
        ", ".join(entry["species"]),
        entry["labels"],
        ", ".join(f"{cutoff:g}" for cutoff in entry["cutoffs"]),
        "–" if errors is None else " | ".join(f"{error:.0f}" for error in errors),
        entry["licence"],
    )
