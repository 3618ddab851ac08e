"""A settings file in which every key is explained: `moe-md init`."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from moe_md.commands import expert_tables, frames, settings_file
from moe_md.files import write_atomic
from moe_md.settings import DataSettings, RunSettings, TrainSettings

HEADER = (
    "Settings of moe-md. Options on the command line override these keys; keys left out have defaults.",
    "moe-md train --settings FILE; moe-md run --settings FILE --checkpoint training/checkpoint.msgpack",
)


def command(settings: None, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md init`.

    Args:
        settings: none.
        parsed: options of the command.
        log: takes lines of text.

    Returns:
        The path of the file.

    Raises:
        ValueError: the file exists, or the frames cannot be read.
    """
    path, training = Path(parsed.path), TrainSettings()
    if path.exists():
        raise ValueError(f"path must be a new file, got {path}, which exists.")
    data = DataSettings() if parsed.file is None else DataSettings(file=parsed.file)
    expensive, cheap = expert_tables.build_experts({}, frames.load(data), training.metal, path)
    adsorbates = ",".join(s for s in expensive.species if s != training.metal)
    content = {
        "data": data,
        "expensive": dict(expensive.config),
        "cheap": dict(cheap.config),
        "training": training,
        "run": RunSettings(structure="slab.extxyz", region_around=adsorbates),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, settings_file.written(content, HEADER).encode())
    log(f"wrote {path}: edit [data], then moe-md train --settings {path}")
    return {"file": str(path)}
