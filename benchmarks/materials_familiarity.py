"""Do errors rise with the distance from the environments that the cheap expert was trained for?"""

from itertools import pairwise

import numpy as np
from scipy.stats import spearmanr

import moe_md as mm
from moe_md.analysis.errors import compare
from moe_md.data import Dataset
from moe_md.data.batching import frame_rows

EDGES = (0.0, 0.5, 1.0, 1.5, np.inf)  # of the distance, for errors in bins


def familiarity(model: mm.Checkpoint, frames: Dataset) -> dict | None:
    """Rank correlation of distance and length of the force error over atoms, and errors in bins.

    Args:
        model: two experts; None is returned where the cheap one's domain is by species alone.
        frames: with forces.
    """
    domain, species = model.cheap.expert.familiarity, model.experts[0].species
    if domain is None:
        return None
    labelled = Dataset(tuple(f for f in frames.frames if f.forces is not None), frames.species)
    compared = compare(model, labelled, lambda frame: np.ones(len(frame.symbols), int))
    distance = np.concatenate(
        [domain.distance(frame_rows(c.frame, species, domain.cutoff)) for c in compared]
    )
    of_experts = {
        name: 1e3
        * np.concatenate([np.linalg.norm(getattr(c, name).forces - c.frame.forces, axis=1) for c in compared])
        for name in ("expensive", "cheap")
    }
    bins = []
    for low, high in pairwise(EDGES):
        chosen = (distance > low) & (distance <= high)
        errors = {
            name: float(np.sqrt(np.mean(length[chosen] ** 2) / 3)) if chosen.any() else None
            for name, length in of_experts.items()
        }
        bins.append({"above": low, "atoms": int(chosen.sum()), **errors})
    return {
        "rank_correlation": {
            name: float(spearmanr(distance, length).statistic) for name, length in of_experts.items()
        },
        "share_in_domain": float(np.mean(distance <= 1.0)),
        "bins": bins,
    }
