"""A settings file in which every key is explained: `moe-md init`."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_md.commands import expert_tables, frames, settings_file
from moe_md.data import find_references
from moe_md.data.structure_file import check_distinct
from moe_md.experts.base import Expert
from moe_md.files import write_atomic
from moe_md.settings import DataSettings, EnvironmentSettings, RunSettings

SURFACE_LAYERS = 3
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
    path = Path(parsed.path)
    if path.exists():
        raise ValueError(f"path must be a new file, got {path}, which exists.")
    data = DataSettings() if parsed.file is None else DataSettings(file=parsed.file)
    dataset = frames.load(data)
    for frame in dataset.frames:
        check_distinct(frame.positions, frame.cell, frame.pbc, frame.source)
    references = find_references(dataset)
    expensive, cheap = expert_tables.build_experts({}, dataset, references, path)
    content = {
        "data": data,
        "expensive": dict(expensive.config),
        "cheap": dict(cheap.config),
        "environments": EnvironmentSettings()
        if references
        else EnvironmentSettings(environment_rows=0, perfect_rows=0),
        "training": expert_tables.default_training(dataset),
        "run": RunSettings(structure="slab.extxyz", **region_for(expensive, cheap)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, settings_file.written(content, HEADER).encode())
    frames.log_references("reference", references, log)
    if not references:
        log(
            "the frames hold no perfect crystal with an energy: name files of the crystals, references of"
            " [environments]; the environments are off until then"
        )
    owned = ", ".join(cheap.allowed_species)
    log(f"the cheap expert may own {owned}: the species of the references")
    average = expensive.config["avg_num_neighbors"]
    log(f"cutoff {expensive.cutoff:g} Å, {average:g} neighbours of an atom on average")
    size = expensive.config
    log(
        f"{len(dataset.frames):,} frames with {expert_tables.force_components(dataset):,} force components:"
        f" allegro with l_max {size['l_max']}, {size['num_scalar_features']} scalar and"
        f" {size['num_tensor_features']} tensor features, {content['training'].steps:,} steps"
    )
    log(f"wrote {path}: look at it, then moe-md train --settings {path}")
    return {"file": str(path)}


def region_for(expensive: Expert, cheap: Expert) -> dict[str, Any]:
    """Settings of a region: around the species that the cheap expert may not own, else the topmost layers."""
    foreign = [s for s in expensive.species if s not in cheap.allowed_species]
    return {"region_around": ",".join(foreign)} if foreign else {"region_layers": SURFACE_LAYERS}
