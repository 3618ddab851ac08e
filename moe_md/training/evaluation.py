"""Errors and mismatch of two experts over whole data sets."""

from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import numpy as np

from moe_md import units
from moe_md.data.batching import Prepared, batches, pack_batch, packs, prepare
from moe_md.data.dataset import Dataset, dataset_from_frames
from moe_md.experts.base import Expert, Params
from moe_md.settings import LossWeights
from moe_md.training.losses import Errors, Mismatch, Terms, joint_loss, joint_terms

_OF_DATA = {"energy_meV_per_atom": 1e3, "forces_meV_per_A": 1e3, "stress_GPa": 1.0 / units.GPa}
_OF_MISMATCH = {
    "energy_meV": 1e3,
    "partial_forces_meV_per_A": 1e3,
    "stress_GPa": 1.0 / units.GPa,
    "forces_meV_per_A": 1e3,
}
QUANTITIES = {
    "expensive": _OF_DATA,
    "cheap": _OF_DATA,
    "mixed": _OF_DATA,
    "mismatch": _OF_MISMATCH,
}  # and their units per eV and Å


def evaluate(
    experts: Sequence[Expert], params: Sequence[Params], prepared: Prepared, max_atoms: int = 64
) -> dict:
    """Root mean square errors and mismatch over all frames.

    Args:
        experts, params: the two experts.
        prepared: from `data.batching.prepare`.
        max_atoms: rows per batch.

    Returns:
        For `expensive`, `cheap` (frames in its domain) and `mixed` (the other
        frames) a dict of `energy_meV_per_atom`, `forces_meV_per_A`,
        `stress_GPa`; for `mismatch` a dict of `energy_meV`,
        `partial_forces_meV_per_A`, `stress_GPa` and `forces_meV_per_A` (total
        forces). None where nothing is labelled.
    """
    return scores_of(totals_of(jax.jit(partial(joint_terms, tuple(experts))), params, prepared, max_atoms))


def evaluate_by_kind(
    experts: Sequence[Expert], params: Sequence[Params], dataset: Dataset, max_atoms: int = 64
) -> dict:
    """`evaluate` for each kind of frame and for `"all"`, each with its number of `frames`.

    Args:
        experts, params: the two experts.
        dataset: frames; labels may be missing.
        max_atoms: rows per batch.

    Raises:
        ValueError: there is no frame, or a species is unknown to the experts.
    """
    terms_fn = jax.jit(partial(joint_terms, tuple(experts)))
    dataset = dataset_from_frames(dataset.frames, experts[0].species)
    prepared = prepare(dataset, max(e.cutoff for e in experts))
    kinds = [f.kind for f in dataset.frames]
    totals: dict[str, dict[str, np.ndarray]] = {}
    for shape, pack in packs(
        prepared, max_atoms=max_atoms, separate_by=kinds
    ):  # few shapes, for all kinds the same
        found = _sums(jax.device_get(terms_fn(tuple(params), pack_batch(prepared, shape, pack))))
        totals[kinds[pack[0]]] = _added(totals.get(kinds[pack[0]]), found)
    report = {
        kind or "unnamed": {"frames": kinds.count(kind), **scores_of(totals[kind])} for kind in sorted(totals)
    }
    overall = reduce(_added, totals.values())
    return {**report, "all": {"frames": len(dataset.frames), **scores_of(overall)}}


def totals_of(
    terms_fn: Callable, params: Sequence[Params], prepared: Prepared, max_atoms: int
) -> dict[str, np.ndarray]:
    """Sums of squares and counts, `[2, len(QUANTITIES[part])]` for each part of a report."""
    found = (
        _sums(jax.device_get(terms_fn(tuple(params), batch)))
        for batch in batches(prepared, max_atoms=max_atoms)
    )
    return reduce(_added, found)


def _sums(terms: Terms) -> dict[str, np.ndarray]:
    m = terms.mismatch
    rows, stresses, forces = m.count
    of_labels = {name: getattr(terms, name) for name in ("expensive", "cheap", "mixed")}
    return {
        **{name: _weighted([e.energy, e.forces, e.stress], e.count) for name, e in of_labels.items()},
        "mismatch": _weighted(
            [m.energy, m.partial_forces, m.stress, m.forces], [rows, rows, stresses, forces]
        ),
    }


def _added(first: dict[str, np.ndarray] | None, second: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return second if first is None else {part: first[part] + second[part] for part in first}


def _weighted(means, counts) -> np.ndarray:
    counts = np.asarray(counts, float)
    return np.stack([np.asarray(means, float) * counts, counts])


def loss_of(totals: dict[str, np.ndarray], weights: LossWeights) -> float:
    """The joint loss of all frames, agreement at its full weight, without mixtures by lot."""

    def means(part: str) -> list[float]:
        squares, counts = totals[part]
        return (squares / np.maximum(counts, 1.0)).tolist()

    data = {part: Errors._make([*means(part), 0]) for part in ("expensive", "cheap", "mixed")}
    mismatch = Mismatch._make([*means("mismatch"), 0.0, 0])
    return float(joint_loss(weights, Terms(**data, mismatch=mismatch)))


def scores_of(totals: dict[str, np.ndarray]) -> dict:
    """Roots of means, in the units that people read."""
    return {
        part: {
            name: float(unit * np.sqrt(square / count)) if count else None
            for (name, unit), square, count in zip(QUANTITIES[part].items(), squares, counts)
        }
        for part, (squares, counts) in totals.items()
    }


def describe(scores: dict) -> str:
    """One line of errors, for people."""

    def number(value, form):
        return "-" if value is None else format(value, form)

    parts = []
    for name in ("expensive", "cheap", "mixed"):
        e = scores[name]
        energy, forces = number(e["energy_meV_per_atom"], ".1f"), number(e["forces_meV_per_A"], ".0f")
        parts.append(f"{name} {energy} meV/atom {forces} meV/Å")
    m = scores["mismatch"]
    parts.append(
        f"mismatch {number(m['energy_meV'], '.1f')} meV {number(m['partial_forces_meV_per_A'], '.1f')} meV/Å"
    )
    return ", ".join(parts)
