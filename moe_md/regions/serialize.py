"""Regions from the plain values of JSON files; `Region.to_dict` writes these."""

from typing import cast

import numpy as np
from jax import Array

from moe_md import regions
from moe_md.regions.protocol import Region
from moe_md.regions.static import FixedGates


def region_from_dict(values: dict) -> Region:
    """The region that `Region.to_dict` described.

    Raises:
        ValueError: the kind is unknown, or a value is missing or does not fit.

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
    match kind:
        case "fixed":
            return regions.fixed(values["assignment"], values["n_experts"])
        case "weighted":
            # A numpy array: jax casts it on use, and float64 is kept where jax's default is float32.
            return FixedGates(cast(Array, np.asarray(values["weights"], float)))
        case "around":
            return regions.around(values["seeds"], values["r_core"], values["r_blend"])
        case "complement":
            return regions.complement(_region(values["region"]))
        case "union" | "nested":
            return getattr(regions, kind)(*map(_region, values["regions"]))
    raise ValueError(f"kind must be fixed, weighted, around, complement, union or nested, got {kind!r}.")
