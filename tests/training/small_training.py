"""A co-training of a few seconds, as a program to be killed: `python small_training.py FOLDER STEPS`.

It prints the number of each step as the step begins.
"""

import sys
from pathlib import Path

import numpy as np
from ase.build import bulk

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from random_crystals import random_cell

from moe_md.data.dataset import dataset_from_frames
from moe_md.experts import power_spectrum
from moe_md.settings import EnvironmentSettings, TrainSettings
from moe_md.training import cotrain, inputs

SPECIES = ("Pt", "C")
EXPERTS = (
    power_spectrum(SPECIES, 3.5, l_max=1, num_bessels=3, num_channels=2, hidden=(4,)),
    power_spectrum(
        SPECIES, 3.5, l_max=0, num_bessels=3, num_channels=2, hidden=(4,), allowed_species=("Pt",)
    ),
)

REFERENCES = (bulk("Pt", a=3.98),)
ENVIRONMENTS = EnvironmentSettings(environment_rows=4, perfect_rows=1)


def frames(n: int, seed: int):
    """Small crystals with random labels; one in three has a carbon atom."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < n:
        frame = random_cell(rng)
        symbols = frame.symbols if len(found) % 3 else ("Pt", "Pt", "Pt", "C")
        labels = {
            "energy": rng.normal(),
            "forces": rng.normal(size=(4, 3)),
            "stress": np.eye(3) * rng.normal(),
        }
        found.append(frame._replace(symbols=symbols, **labels, group=str(len(found))))
    return dataset_from_frames(found, SPECIES)


def settings(steps: int) -> TrainSettings:
    """Lengths of epochs and intervals of saves and validations that have no common divisor."""
    return TrainSettings(
        steps=steps,
        max_atoms=8,
        warmup_steps=5,
        validate_every=14,
        save_every=5,
    )


def train(folder, steps: int):
    """The training, or the rest of it where the folder holds its beginning."""
    return cotrain.cotrain(
        EXPERTS,
        frames(7, 0),
        settings(steps),
        environments=ENVIRONMENTS,
        references=REFERENCES,
        validation=frames(3, 1),
        folder=folder,
        progress=False,
    )


if __name__ == "__main__":
    batch_of_step = inputs.environment_batch

    def printing(environments, seed, step):
        print(step, flush=True)
        return batch_of_step(environments, seed, step)

    inputs.environment_batch = printing
    train(sys.argv[1], int(sys.argv[2]))
