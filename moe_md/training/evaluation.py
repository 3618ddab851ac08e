"""Errors and mismatch of two experts over data sets."""

from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import numpy as np
from jaxtyping import Float

from moe_md import memory, units
from moe_md.data.batching import Prepared, batches, pack_batch, packs, prepare
from moe_md.data.dataset import Dataset, dataset_from_frames
from moe_md.experts.base import Expert, Params
from moe_md.settings import LossWeights
from moe_md.training.losses import Errors, Mismatch, Terms, joint_loss, joint_terms

_ERROR_UNITS = {"energy_meV_per_atom": 1e3, "forces_meV_per_A": 1e3, "stress_GPa": 1.0 / units.GPa}
_MISMATCH_UNITS = {
    "energy_meV": 1e3,
    "partial_forces_meV_per_A": 1e3,
    "stress_GPa": 1.0 / units.GPa,
    "forces_meV_per_A": 1e3,
}
# Quantities of each part of a report, and the factor from eV and Å to the unit in the name.
QUANTITIES = {
    "expensive": _ERROR_UNITS,
    "cheap": _ERROR_UNITS,
    "mixed": _ERROR_UNITS,
    "mismatch": _MISMATCH_UNITS,
}

REMEDY = "lower max_atoms, now {}, or use frames of fewer atoms"  # where memory runs out
# Sums of squares, then their counts, of each part of a report.
Totals = dict[str, Float[np.ndarray, "2 _"]]


def evaluate(
    experts: Sequence[Expert], params: Sequence[Params], prepared: Prepared, max_atoms: int = 64
) -> dict:
    """Root mean square errors and mismatch over all frames.

    Args:
        experts, params: the two experts and their parameters.
        prepared: from `data.batching.prepare`.
        max_atoms: atoms per batch.

    Returns:
        For `expensive`, `cheap` (frames in its domain) and `mixed` (the other
        frames), a dict of `energy_meV_per_atom`, `forces_meV_per_A`,
        `stress_GPa`; for `mismatch`, a dict of `energy_meV`,
        `partial_forces_meV_per_A`, `stress_GPa` and `forces_meV_per_A` (total
        forces). A value without labels is None.
    """
    with memory.naming(REMEDY.format(max_atoms)):
        return scores_of(
            totals_of(jax.jit(partial(joint_terms, tuple(experts))), params, prepared, max_atoms)
        )


def evaluate_by_kind(
    experts: Sequence[Expert], params: Sequence[Params], dataset: Dataset, max_atoms: int = 64
) -> dict:
    """`evaluate` for each kind of frame and for `"all"`, each with its number of `frames`.

    Args:
        experts, params: the two experts and their parameters.
        dataset: frames; labels may be missing.
        max_atoms: atoms per batch.

    Returns:
        A dict as that of `evaluate` for each kind, `"unnamed"` where it is
        empty, and for `"all"`.

    Raises:
        ValueError: there is no frame, or a species is unknown to the experts.
    """
    terms_fn = jax.jit(partial(joint_terms, tuple(experts)))
    dataset = dataset_from_frames(dataset.frames, experts[0].species)
    prepared = prepare(dataset, max(e.cutoff for e in experts))
    kinds = [f.kind for f in dataset.frames]
    totals: dict[str, Totals] = {}
    for shape, pack in packs(prepared, max_atoms=max_atoms, separate_by=kinds):  # all kinds share shapes
        with memory.naming(REMEDY.format(max_atoms)):
            sums = _sums(jax.device_get(terms_fn(tuple(params), pack_batch(prepared, shape, pack))))
        kind = kinds[pack[0]]
        totals[kind] = _added(totals[kind], sums) if kind in totals else sums
    report = {
        kind or "unnamed": {"frames": kinds.count(kind), **scores_of(totals[kind])} for kind in sorted(totals)
    }
    overall = reduce(_added, totals.values())
    return {**report, "all": {"frames": len(dataset.frames), **scores_of(overall)}}


def totals_of(terms_fn: Callable, params: Sequence[Params], prepared: Prepared, max_atoms: int) -> Totals:
    """Sums of squares and counts over all batches.

    Args:
        terms_fn: `(params, batch) -> Terms`.
        params: parameters of the two experts.
        prepared: from `data.batching.prepare`.
        max_atoms: atoms per batch.

    Returns:
        For each part of a report, sums and counts of the quantities in `QUANTITIES[part]`.
    """
    sums = (
        _sums(jax.device_get(terms_fn(tuple(params), batch)))
        for batch in batches(prepared, max_atoms=max_atoms)
    )
    return reduce(_added, sums)


def _sums(terms: Terms) -> Totals:
    """Sums of squares and counts of one batch, from its means."""
    m = terms.mismatch
    rows, stresses, forces = m.count
    errors = {name: getattr(terms, name) for name in ("expensive", "cheap", "mixed")}
    return {
        **{name: _sums_and_counts([e.energy, e.forces, e.stress], e.count) for name, e in errors.items()},
        "mismatch": _sums_and_counts(
            [m.energy, m.partial_forces, m.stress, m.forces], [rows, rows, stresses, forces]
        ),
    }


def _sums_and_counts(means, counts) -> np.ndarray:
    """`[2, n]`: the sum behind each mean, and its count."""
    counts = np.asarray(counts, float)
    return np.stack([np.asarray(means, float) * counts, counts])


def _added(first: Totals, second: Totals) -> Totals:
    """Totals of two sets of batches together."""
    return {part: first[part] + second[part] for part in first}


def loss_of(totals: Totals, weights: LossWeights) -> float:
    """The joint loss over all frames, with full weights of agreement and without random assignments."""
    means = {part: (sums / np.maximum(counts, 1.0)).tolist() for part, (sums, counts) in totals.items()}
    errors = {part: Errors._make([*means[part], 0]) for part in ("expensive", "cheap", "mixed")}
    mismatch = Mismatch._make([*means["mismatch"], 0.0, 0])
    return float(joint_loss(weights, Terms(**errors, mismatch=mismatch)))


def scores_of(totals: Totals) -> dict:
    """Root mean squares, in the units of `QUANTITIES`."""
    return {
        part: {
            name: float(unit * np.sqrt(square / count)) if count else None
            for (name, unit), square, count in zip(QUANTITIES[part].items(), squares, counts)
        }
        for part, (squares, counts) in totals.items()
    }


def describe(scores: dict) -> str:
    """Energy and force errors in one line of text; "-" where there are none."""
    parts = []
    for name in ("expensive", "cheap", "mixed"):
        e = scores[name]
        energy, forces = _number(e["energy_meV_per_atom"], ".1f"), _number(e["forces_meV_per_A"], ".0f")
        parts.append(f"{name} {energy} meV/atom {forces} meV/Å")
    m = scores["mismatch"]
    energy, partial_forces = (_number(m[name], ".1f") for name in ("energy_meV", "partial_forces_meV_per_A"))
    return ", ".join([*parts, f"mismatch {energy} meV {partial_forces} meV/Å"])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
