"""Materials of `bench_materials.py`: settings of their trainings, their frames, and published numbers.

A material is a file `NAME.toml`, which `moe-md train --settings` reads, and a table `[NAME]` of
`published.toml`, which names the frames, corrects them and holds published numbers.
"""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np

from moe_md.commands import expert_tables, settings_file
from moe_md.commands import frames as labelled_frames
from moe_md.data import Dataset, find_references, read_references, split_by_group
from moe_md.data.dataset import dataset_from_frames
from moe_md.data.reading import Frame
from moe_md.experts.base import Expert
from moe_md.settings import FROM_DATA, DataSettings, EnvironmentSettings, TrainSettings

FOLDER = harness.ROOT / "benchmarks" / "materials"
PUBLISHED = "published.toml"
HELD_OUT = 0.15  # share of the groups of frames that have no test file, or without `--test`
SHEARS = {"yz": (1, 2), "xz": (0, 2), "xy": (0, 1)}  # components of a stress, in ASE's order
KEYS = (
    "train",
    "test",
    "frames",
    "drop_frames",
    "drop_series",
    "drop_stress",
    "shear",
    "melting_K",
    "note",
    "errors",
    "DFT",
)


class Material(NamedTuple):
    """Settings and published numbers of one material."""

    name: str
    file: Path  # settings of the training
    tables: dict[str, Any]  # of that file
    published: dict[str, Any]  # its table in `published.toml`


class Training(NamedTuple):
    """What `moe-md train` makes of the settings of a material and its training frames."""

    experts: tuple[Expert, Expert]
    settings: TrainSettings
    environments: EnvironmentSettings


def published(folder: Path = FOLDER) -> dict[str, dict]:
    """Tables of `published.toml` by material, their keys checked.

    Raises:
        ValueError: a key is unknown.
    """
    found = tomllib.loads((folder / PUBLISHED).read_text(encoding="utf-8"))
    for name, table in found.items():
        settings_file.check_keys(table, KEYS, f"[{name}] of {PUBLISHED}")
    return found


def material(name: str, folder: Path = FOLDER) -> Material:
    """A material by name.

    Raises:
        ValueError: it has no table, or its settings file cannot be read.
    """
    known = published(folder)
    if name not in known:
        raise ValueError(f"materials must be of {', '.join(known)}, got {name!r}.")
    file = folder / f"{name}.toml"
    return Material(name, file, settings_file.tables(file), known[name])


def frames(what: Material, data: Path, *, test: bool) -> tuple[Dataset, Dataset]:
    """Training and held-out frames, corrected.

    Args:
        what: the material.
        data: folder of the frames.
        test: hold out the test file, where there is one, and train on all training frames;
            else hold out a part of the training frames.
    """
    table = what.published
    train = _corrected(what, data / table.get("train", table.get("frames")))
    if test and "test" in table:
        return train, _corrected(what, data / table["test"])
    return split_by_group(train, validation_fraction=HELD_OUT, seed=0)


def training(what: Material, train: Dataset, *, seed: int, steps: int | None = None) -> Training:
    """Experts and settings; keys that the file does not have are those that `moe-md init` writes.

    Args:
        what: the material.
        train: its training frames.
        seed: of the training.
        steps: in place of those of the settings.
    """
    where = str(what.file)
    default = expert_tables.default_training(train)
    table = {
        "steps": default.steps,
        "agreement_gradient_scale": default.agreement_gradient_scale,
        **what.tables.get("training", {}),
    }
    options = {"seed": seed} if steps is None else {"seed": seed, "steps": steps}
    environments = settings_file.filled(EnvironmentSettings, what.tables.get("environments", {}), where)
    references = (
        find_references(train)
        if environments.references == FROM_DATA
        else read_references(environments.references)
    )
    return Training(
        expert_tables.build_experts(what.tables, train, references, where),
        settings_file.filled(TrainSettings, table, where, options),
        environments,
    )


def _corrected(what: Material, file: Path) -> Dataset:
    """The frames of a file without those to be dropped, components of stresses in their places."""
    table = what.published
    settings = settings_file.filled(DataSettings, what.tables.get("data", {}), str(what.file))
    dataset = labelled_frames.load(replace(settings, file=str(file)))
    dropped, series = set(table.get("drop_frames", ())), tuple(table.get("drop_series", ()))
    kept = (
        frame
        for number, frame in enumerate(dataset.frames)
        if number not in dropped and not (series and frame.group.startswith(series))
    )
    shear = table.get("shear", {})
    right = [_reordered(frame, shear.get(frame.kind, shear.get("all"))) for frame in kept]
    without_stress = table.get("drop_stress", ())
    right = [f._replace(stress=None) if f.kind in without_stress else f for f in right]
    return dataset_from_frames(right, dataset.species)


def _reordered(frame: Frame, shear: list[str] | None) -> Frame:
    """A frame whose stress has the components `shear` in place of yz, xz, xy; None for the right order."""
    if shear is None or frame.stress is None:
        return frame
    if sorted(shear) != sorted(SHEARS):
        raise ValueError(f"shear must name each of {', '.join(SHEARS)} once, got {shear}.")
    stress = np.array(frame.stress)
    for place, component in zip(SHEARS.values(), shear, strict=True):
        i, j = SHEARS[component]
        stress[i, j] = stress[j, i] = frame.stress[place]
    return frame._replace(stress=stress)
