"""Regions as plain values, for JSON files."""

from typing import cast

import numpy as np
from jax import Array

from moe_md import regions
from moe_md.regions.combined import Complement, Nested, Union
from moe_md.regions.following import Around
from moe_md.regions.protocol import Region
from moe_md.regions.static import Fixed, Weighted


def region_as_dict(region: Region) -> dict:
    """Plain values for a region of `fixed`, `slab`, `sphere`, `around`, or unions or nests of these.

    Raises:
        ValueError: another region.

    >>> region_from_dict(region_as_dict(regions.fixed([0, 1, 1]))).assignment.tolist()
    [0, 1, 1]
    """
    match region:
        case Fixed():
            return {
                "kind": "fixed",
                "assignment": np.asarray(region.assignment).tolist(),
                "n_experts": region.n_experts,
            }
        case Weighted():
            return {"kind": "weighted", "weights": np.asarray(region.weights, float).tolist()}
        case Around():
            return {
                "kind": "around",
                "seeds": np.asarray(region.seeds).tolist(),
                "r_core": float(region.r_core),
                "r_blend": float(region.r_blend),
            }
        case Complement():
            return {"kind": "complement", "region": region_as_dict(region.region)}
        case Union() | Nested():
            return {
                "kind": type(region).__name__.lower(),
                "regions": [region_as_dict(part) for part in region.regions],
            }
    raise ValueError(
        "region must be one of fixed, slab, sphere and around, or a union, complement or nest of these, got"
        f" {type(region).__name__}."
    )


def region_from_dict(values: dict) -> Region:
    """The region that `region_as_dict` described.

    Raises:
        ValueError: the kind is unknown, or a value is missing or does not fit.
    """
    try:
        return _region(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "region must be as region_as_dict wrote it, "
            f"but {type(error).__name__}: {error}; got {values!r:.80}."
        ) from None


def _region(values: dict) -> Region:
    kind = values.get("kind")
    match kind:
        case "fixed":
            return regions.fixed(values["assignment"], values["n_experts"])
        case "weighted":
            return Weighted(cast(Array, np.asarray(values["weights"], float)))  # numpy serves as well
        case "around":
            return regions.around(values["seeds"], values["r_core"], values["r_blend"])
        case "complement":
            return regions.complement(_region(values["region"]))
        case "union" | "nested":
            return getattr(regions, kind)(*map(_region, values["regions"]))
    raise ValueError(f"kind must be fixed, weighted, around, complement, union or nested, got {kind!r}.")
