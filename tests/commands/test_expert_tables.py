"""Defaults that follow from the labelled frames: size of the expensive expert, length of the training."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from moe_md.commands import expert_tables
from moe_md.data import Reference, frame_from_atoms
from moe_md.data.dataset import dataset_from_frames


def frames(count: int, atoms: int, labelled: bool = True):
    """Frames of atoms on a grid of 3 Å, with forces or without."""
    positions = 3.0 * np.stack(np.meshgrid(*3 * [np.arange(8)]), axis=-1).reshape(-1, 3)[:atoms]
    found = []
    for _ in range(count):
        frame = frame_from_atoms(Atoms(f"Cu{atoms}", positions))
        found.append(frame._replace(forces=np.zeros((atoms, 3)) if labelled else None))
    return dataset_from_frames(found, ("Cu",))


@pytest.mark.parametrize(
    "dataset, features",
    [(frames(10, 64), 32), (frames(53, 64), 64), (frames(53, 64, labelled=False), 32)],
    ids=["few", "many", "unlabelled"],
)
def test_the_number_of_force_labels_sets_the_size(dataset, features):
    expensive, _ = expert_tables.build_experts({}, dataset, (), None)
    assert expensive.config["num_scalar_features"] == features
    assert expensive.config["num_tensor_features"] == features // 2
    given, _ = expert_tables.build_experts({"expensive": {"l_max": 1}}, dataset, (), None)
    assert given.config["l_max"] == 1 and given.config["num_scalar_features"] == 64  # default of the builder


@pytest.mark.parametrize(
    "count, atoms, steps",
    [
        (10, 64, 4_000),  # the least
        (214, 64, 9_000),  # a batch for each frame, which is larger than a batch
        (1000, 8, 10_000),  # four frames in a batch
        (5000, 32, 40_000),  # the most
    ],
)
def test_steps_follow_from_the_number_of_batches(count, atoms, steps):
    training = expert_tables.default_training(frames(count, atoms))
    assert training.steps == steps and training.agreement_gradient_scale == expert_tables.GRADIENT_SCALE


@pytest.mark.parametrize(
    "symbols, mixtures",
    [(("Cu",), None), (("Cu", "Ag"), 2), (("Cu", "Ag", "Au"), 2)],
    ids=["one", "two", "three"],
)
def test_a_cheap_expert_of_several_species_has_options_of_alloys(symbols, mixtures):
    references = [Reference(bulk(symbol), "Fm-3m (225)", "a test") for symbol in symbols]
    _, cheap = expert_tables.build_experts({}, frames(1, 64), references, None)
    assert set(cheap.allowed_species) == set(symbols)
    assert cheap.config["num_species_mixtures"] == mixtures and cheap.config["zbl"] == (mixtures is not None)
