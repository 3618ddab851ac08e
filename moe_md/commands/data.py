"""What a set of labelled frames holds, and what looks wrong about it: `moe-md data`."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace

from moe_md.commands import frames
from moe_md.data import (
    describe_reference,
    find_references,
    label_remarks,
    overview,
    overview_table,
    summary,
)
from moe_md.settings import DataSettings

MAX_CRYSTALS = 8  # that are printed


def command(settings: DataSettings, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md data`.

    Args:
        settings: the `[data]` table.
        parsed: further options of the command; `frames` names the files.
        log: takes lines of text.

    Returns:
        Counts, the rows of the table, the perfect crystals and the remarks.

    Raises:
        ValueError: the frames cannot be read.
    """
    if parsed.frames is not None:
        settings = replace(settings, file=parsed.frames)
    dataset = frames.load(settings)
    rows, remarks = overview(dataset), label_remarks(dataset)
    log(frames.describe(settings.file, dataset))
    log(overview_table(rows))
    references = [describe_reference(reference) for reference in find_references(dataset)]
    for reference in references[:MAX_CRYSTALS]:
        log(f"crystal: {reference}")
    if len(references) > MAX_CRYSTALS:
        log(f"and {len(references) - MAX_CRYSTALS} crystals of other compositions (--json prints all)")
    for remark in remarks:
        log(f"remark: {remark}")
    counts = {"data": settings.file, **summary(dataset)}
    return {**counts, "rows": rows, "crystals": references, "remarks": remarks}
