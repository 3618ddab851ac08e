"""Regions in which atoms switch expert at once, without a blend."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from moe_md.regions.protocol import Region, RegionNeighbors, check_region


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reassigned(Region):
    """Each atom belongs to the expert that had the largest gate at the last assignment."""

    region: Region
    gates: Array | None  # [n_atoms, n_experts] gates, one 1 in each row; None before the first assignment

    is_dynamic: ClassVar[bool] = True
    smooth: ClassVar[bool] = False  # the energy jumps as atoms switch expert

    @property
    def is_translation_invariant(self) -> bool:
        """Whether the region inside is."""
        return getattr(self.region, "is_translation_invariant", False)

    def gate(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> Float[Array, "atoms experts"]:
        """One 1 in each row; constant between two assignments.

        Raises:
            ValueError: atoms have not been assigned yet.
        """
        del displacement_fn, neighbors
        return self._assigned_gates().astype(position.dtype)

    def support(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        margin: float,
        neighbors: RegionNeighbors | None = None,
    ) -> Bool[Array, "atoms experts"]:
        """The atoms that each expert was given."""
        return self._assigned_gates() > 0

    def required_neighbors(self, margin: float) -> Any:
        """Those of the region inside, which the next assignment evaluates."""
        return self.region.required_neighbors(margin)

    def neighbor_cutoff(self) -> float:
        """Å, of the region inside."""
        return self.region.neighbor_cutoff()

    def assigned(
        self,
        position: Float[Array | np.ndarray, "_ 3"],
        displacement_fn: Callable,
        neighbors: RegionNeighbors | None = None,
    ) -> "Reassigned":
        """The same region; every atom belongs to the expert with the largest gate at these positions."""
        gate = self.region.gate(position, displacement_fn, neighbors)
        largest = jax.nn.one_hot(jnp.argmax(gate, axis=1), gate.shape[1], dtype=gate.dtype)
        # NaN gates stay NaN.
        return replace(self, gates=jnp.where(jnp.isnan(gate), jnp.nan, largest))

    def _assigned_gates(self) -> Array:
        if self.gates is None:
            raise ValueError(
                "region must have assigned its atoms: build the mixture with the region inside `reassigned`, "
                "and pass `reassigned(region)` to simulate.run with reassign_steps, or neighbor_fn.assign."
            )
        return self.gates


def reassigned(region: Region) -> Reassigned:
    """A region that gives each atom fully to the expert with the largest gate, at intervals.

    It serves runs without a blend. With a mixture built for `region`,
    `simulate.run(..., region=reassigned(region), reassign_steps=20)` reassigns the
    atoms every 20 steps. It accumulates the energy that this adds, the switching
    work; energy less work is conserved. Between two assignments the energy is that
    of a static region. The dynamics does not follow one energy function: where the
    experts disagree, the switching work heats or cools the system, unseen by any
    thermostat. A blend has no such work.

    Args:
        region: any. Where gates are equal, the expert of lower number gets the atom.

    Returns:
        A region; the assigned gates are a leaf.

    Raises:
        ValueError: `region` lacks the methods of a region.
    """
    check_region(region)
    return Reassigned(region, None)
