"""The two experts of a settings file, its tables `[expensive]` and `[cheap]`, and defaults from frames."""

import inspect
import math
from collections.abc import Sequence

from moe_md.commands import settings_file
from moe_md.data import Dataset, Reference, average_neighbors
from moe_md.experts.base import BUILDERS, Expert, build
from moe_md.settings import TrainSettings

# Arguments of density moments for two species and more; its own defaults are for one.
OF_ALLOYS = {"num_radial": (8, 4, 4), "num_species_mixtures": 2, "zbl": True}
CUTOFFS = (5.0, 5.5, 6.0, 6.5, 7.0)  # Å
FEW_NEIGHBORS = 25.0
# Arguments of Allegro below and from `MANY_FORCES` on.
SMALL = {"l_max": 3, "num_scalar_features": 32, "num_tensor_features": 16}
LARGE = {"l_max": 3, "num_scalar_features": 64, "num_tensor_features": 32}
MANY_FORCES = 10_000  # labelled force components
EPOCHS, STEPS = 40, (4_000, 40_000)  # of a training, and the least and the most steps
GRADIENT_SCALE = 0.1  # of agreement for the expensive expert, which at 0.3 loses accuracy in melts
SHARED_KEYS = ("builder", "species", "cutoff")  # defaults that a table without these keys is given


def build_experts(
    tables: dict,
    dataset: Dataset,
    references: Sequence[Reference],
    file,
    start: Sequence[Expert] | None = None,
) -> tuple[Expert, Expert]:
    """Build the expensive and the cheap expert.

    Args:
        tables: of the settings file; an expert without a table has the default configuration.
        dataset: frames, whose species and average number of neighbours the experts have by default.
        references: crystals and other structures, whose species are the cheap expert's domain by default.
        file: the settings file, for messages.
        start: experts of the checkpoint to start from, whose configurations are then the default.

    Raises:
        ValueError: a builder, a key or a value is unknown.
    """
    owned = [symbol for reference in references for symbol in reference.atoms.symbols]
    species = list(dict.fromkeys((*owned, *dataset.species)))  # those of references first
    cutoff = default_cutoff(dataset)
    expensive = {"builder": "allegro", "species": species, "cutoff": cutoff}
    if "expensive" not in tables:
        expensive |= LARGE if force_components(dataset) >= MANY_FORCES else SMALL
    cheap = {"builder": "density_moments", "species": species, "cutoff": cutoff}
    if start is not None:
        expensive, cheap = (dict(expert.config) for expert in start)
    elif "cheap" not in tables:
        domain = list(dict.fromkeys(owned)) or species
        cheap |= {"allowed_species": domain, **(OF_ALLOYS if len(domain) > 1 else {})}
    return (
        _build("expensive", tables.get("expensive"), expensive, dataset, file),
        _build("cheap", tables.get("cheap"), cheap, dataset, file),
    )


def default_cutoff(dataset: Dataset) -> float:
    """The shortest of `CUTOFFS`, Å, with `FEW_NEIGHBORS` of an atom on average; else the longest."""
    for cutoff in CUTOFFS:
        if average_neighbors(dataset, cutoff) >= FEW_NEIGHBORS:
            return cutoff
    return CUTOFFS[-1]


def force_components(dataset: Dataset) -> int:
    """Number of force components with a label."""
    return sum(3 * len(frame.positions) for frame in dataset.frames if frame.forces is not None)


def default_training(dataset: Dataset) -> TrainSettings:
    """Settings of a training long enough that agreement may change the expensive expert little.

    Its steps, in thousands, are `EPOCHS` times all batches, within `STEPS`.
    """
    atoms = sum(len(frame.positions) for frame in dataset.frames)
    batches = min(len(dataset.frames), math.ceil(atoms / TrainSettings.max_atoms))
    steps = min(max(1000 * math.ceil(EPOCHS * batches / 1000), STEPS[0]), STEPS[1])
    return TrainSettings(steps=steps, agreement_gradient_scale=GRADIENT_SCALE)


def _build(name: str, table: dict | None, default: dict, dataset: Dataset, file) -> Expert:
    config = default if table is None else {**{k: default[k] for k in SHARED_KEYS}, **table}
    builder = config["builder"]
    if not isinstance(builder, str) or builder not in BUILDERS:
        raise ValueError(f"builder of [{name}] of {file} must be one of {sorted(BUILDERS)}, got {builder!r}.")
    allowed = ("builder", *inspect.signature(BUILDERS[builder]).parameters)
    settings_file.check_keys(config, allowed, f"[{name}] of {file}")
    expert = build(config)
    if "avg_num_neighbors" in set(allowed) - set(config):
        # At least one, for frames of atoms alone.
        average = max(1.0, average_neighbors(dataset, expert.cutoff))
        expert = build({**config, "avg_num_neighbors": average})
    return expert
