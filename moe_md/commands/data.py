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
    references = find_references(dataset)
    frames.log_references("crystal", references, log)
    for remark in remarks:
        log(f"remark: {remark}")
    counts = {"data": settings.file, **summary(dataset)}
    return {**counts, "rows": rows, "crystals": [*map(describe_reference, references)], "remarks": remarks}
