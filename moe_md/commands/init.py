"""A settings file in which every key is explained: `moe-md init`."""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from moe_md.commands import expert_tables, frames, settings_file
from moe_md.data import Dataset, find_references
from moe_md.data.structure_file import check_distinct
from moe_md.files import write_atomic
from moe_md.settings import DataSettings, RunSettings, TrainSettings

FCC = "Fm-3m (225)"
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
    dataset = frames.load(data)
    for frame in dataset.frames:
        check_distinct(frame.positions, frame.cell, frame.pbc, frame.source)
    training = for_species(training, dataset)
    expensive, cheap = expert_tables.build_experts({}, dataset, training.metal, path)
    adsorbates = ",".join(s for s in expensive.species if s not in cheap.allowed_species)
    content = {
        "data": data,
        "expensive": dict(expensive.config),
        "cheap": dict(cheap.config),
        "training": training,
        "run": RunSettings(structure="slab.extxyz", region_around=adsorbates),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, settings_file.written(content, HEADER).encode())
    owned = ", ".join(cheap.allowed_species)
    log(f"the cheap expert may own {owned}: the species of the crystals in the data")
    log(f"wrote {path}: edit [data], then moe-md train --settings {path}")
    if not training.ideal_crystals:
        log(f"the unlabelled crystals are off: the data have no fcc crystal of {training.metal}")
    return {"file": str(path)}


def for_species(training: TrainSettings, dataset: Dataset) -> TrainSettings:
    """Settings whose metal is in the data: the default, else the most frequent element.

    Its lattice constant is that of its crystal in the data. The unlabelled crystals are fcc, and are turned
    off where the data have no such crystal of it.

    Args:
        training: the default settings.
        dataset: frames.
    """
    counts = Counter(symbol for frame in dataset.frames for symbol in frame.symbols)
    if training.metal in counts:
        return training
    metal = counts.most_common(1)[0][0]
    for reference in find_references(dataset):
        if (reference.formula, reference.space_group, len(reference.atoms)) == (metal, FCC, 1):
            constant = (4.0 * reference.atoms.get_volume()) ** (1 / 3)
            return replace(training, metal=metal, lattice_constant=round(float(constant), 4))
    return replace(training, metal=metal, unlabelled_atoms=0, ideal_crystals=0)
