"""Atoms that change hands at once, and not by degrees."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from moe_md.regions.protocol import Region, RegionNeighbors, check_region


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reassigned:
    """Every atom with the expert that had most of it when it was last asked."""

    region: Region
    weights: Array | None  # [n_atoms, n_experts], a one in every row; None before anyone asked

    is_dynamic: ClassVar[bool] = True
    smooth: ClassVar[bool] = False  # no derivative knows of its jumps

    def gate(self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None) -> Array:
        """`[n_atoms, n_experts]`, a one in every row; constant between two assignments.

        Raises:
            ValueError: no atom was ever dealt out.
        """
        del displacement_fn, near
        return self._dealt().astype(position.dtype)

    def support(
        self, position: Array, displacement_fn: Callable, margin: float, near: RegionNeighbors | None = None
    ) -> Array:
        """`[n_atoms, n_experts]` bool."""
        return self._dealt() > 0

    def required_neighbors(self, margin: float) -> Any:
        """Those of the region, which will be asked again."""
        return self.region.required_neighbors(margin)

    def assigned(
        self, position: Array, displacement_fn: Callable, near: RegionNeighbors | None = None
    ) -> "Reassigned":
        """The same region, every atom given to whoever has most of it here."""
        weights = self.region.gate(position, displacement_fn, near)
        winner = jax.nn.one_hot(jnp.argmax(weights, axis=1), weights.shape[1], dtype=weights.dtype)
        # Where the region does not know, neither does this one.
        return replace(self, weights=jnp.where(jnp.isnan(weights), jnp.nan, winner))

    def _dealt(self) -> Array:
        if self.weights is None:
            raise ValueError(
                "region must have assigned its atoms: build the mixture with the region inside `reassigned`, "
                "and pass `reassigned(region)` to simulate.run with reassign_steps, or neighbor_fn.assign."
            )
        return self.weights


def reassigned(region: Region) -> Reassigned:
    """All of an atom to the expert that has most of it, dealt out anew from time to time.

    For those who want no blend: with a mixture built for `region`,
    `simulate.run(..., region=reassigned(region), reassign_steps=20)` deals the atoms
    out every so many steps and books the energy that this puts in, so that
    energy less work is conserved. Between two assignments the energy is that of
    a fixed region. Dynamics do not follow one energy: where the experts
    disagree, the work is heating, or cooling, that no thermostat is told of. A
    blend has none.

    Args:
        region: any. At equal weights the expert of lower number wins.

    Returns:
        A region; its `assigned` weights are a leaf.

    Raises:
        ValueError: that is no region.
    """
    check_region(region)
    return Reassigned(region, None)
