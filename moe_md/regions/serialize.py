"""Regions from the plain values of JSON files; `Region.to_dict` writes these."""

from typing import cast

import numpy as np
from jax import Array

from moe_md import regions
from moe_md.regions.protocol import Region, finite_array
from moe_md.regions.static import FixedGates

KEYS = {
    "fixed": ("assignment", "n_experts"),
    "weighted": ("weights",),
    "around": ("seeds", "r_core", "r_blend"),
    "coordination": ("low", "high", "r_full", "r_none", "slack"),
    "grown": ("region", "r_core", "r_blend"),
    "complement": ("region",),
    "union": ("regions",),
    "nested": ("regions",),
}


def region_from_dict(values: dict) -> Region:
    """The region that `Region.to_dict` described.

    Raises:
        ValueError: the kind or a key is unknown, or a value is missing or does not fit.

    >>> region_from_dict(regions.fixed([0, 1, 1]).to_dict()).assignment.tolist()
    [0, 1, 1]
    """
    try:
        return _region(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "region must be as Region.to_dict writes it, "
            f"but {type(error).__name__}: {error}; got {values!r:.80}."
        ) from None


def _region(values: dict) -> Region:
    kind = values.get("kind")
    keys = KEYS.get(str(kind), tuple(values))
    unknown = sorted(map(str, set(values) - {"kind", *keys}))
    if unknown:
        raise ValueError(
            f"a region of kind {kind} must have the keys {', '.join(keys)}, also got {unknown}. "
            "Remove what Region.to_dict does not write."
        )
    match kind:
        case "fixed":
            return regions.fixed(values["assignment"], values["n_experts"])
        case "weighted":
            # A numpy array: jax casts it on use, and float64 is kept where jax's default is float32.
            return FixedGates(cast(Array, _gates(values["weights"])))
        case "around":
            return regions.around(values["seeds"], values["r_core"], values["r_blend"], missing="cheap")
        case "coordination":
            return regions.coordination(**{key: values[key] for key in keys})
        case "grown":
            return regions.grown(_region(values["region"]), values["r_core"], values["r_blend"])
        case "complement":
            return regions.complement(_region(values["region"]))
        case "union" | "nested":
            return getattr(regions, kind)(*map(_region, values["regions"]))
    raise ValueError(f"kind must be one of {', '.join(KEYS)}, got {kind!r}.")


def _gates(weights) -> np.ndarray:
    """`[n_atoms, n_experts]` gates; `ValueError` unless they are shares that add up to one for each atom."""
    gates = finite_array("weights", weights).astype(float)
    if gates.ndim != 2 or (gates < 0).any() or not np.allclose(gates.sum(axis=1), 1.0, atol=1e-6):
        raise ValueError(
            "weights must be one row for each atom, of numbers from 0 that add up to 1, "
            f"got shape {gates.shape} and {weights!r:.80}."
        )
    return gates
