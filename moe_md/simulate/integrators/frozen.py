"""Atoms and components that hold still, around any integrator.

Fixed components have zero momentum, and neither force nor shift acts on them.
The energy is that of all atoms, so it is conserved as without fixed atoms. Total
momentum is conserved along an axis only where no atom is fixed along it.
"""

from dataclasses import dataclass, field, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md.simulate.integrators.base import Evaluation, Integrator, degrees_of_freedom


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frozen:
    """An integrator that leaves fixed components where they are."""

    integrator: Any
    fixed_mask: Array  # [n_atoms, 3] bool
    n_free: int = field(metadata={"static": True})  # degrees of freedom

    def __getattr__(self, name: str) -> Any:
        """What is not about motion is the wrapped integrator's."""
        if name.startswith("__") or name == "integrator":
            raise AttributeError(name)
        return getattr(self.integrator, name)

    def init(self, position, momentum, mass, key, box):
        """The wrapped integrator's state; momenta of fixed components are zero."""
        momentum = jnp.where(self.fixed_mask, 0.0, momentum)
        state = self.integrator.init(position, momentum, mass, key, box)
        return self.integrator.with_degrees_of_freedom(state, self.n_free)

    def at_chunk_start(self, position, neighbors, **given):
        """The wrapper of the integrator for the next chunk."""
        return replace(self, integrator=self.integrator.at_chunk_start(position, neighbors, **given))

    def before_force(self, state, box):
        """As of the wrapped integrator; neither drift nor noise moves fixed components."""
        free = replace(self.integrator, shift_fn=self._shift)
        moved = free.before_force(state, box)
        # A shift by zero may change the last digits where it wraps positions into the box.
        whole = jnp.all(self.fixed_mask, axis=1, keepdims=True)
        return moved.set(
            position=jnp.where(whole, state.position, moved.position),
            momentum=jnp.where(self.fixed_mask, 0.0, moved.momentum),
        )

    def set_forces(self, state, evaluation: Evaluation):
        """The same state with the forces on free components."""
        return self.integrator.set_forces(state, self._on_free(evaluation))

    def after_force(self, state, evaluation: Evaluation):
        """As of the wrapped integrator, under the forces on free components."""
        after = self.integrator.after_force(state, self._on_free(evaluation))
        return after.set(momentum=jnp.where(self.fixed_mask, 0.0, after.momentum))

    def _shift(self, R: Array, dR: Array, **kwargs) -> Array:
        return self.integrator.shift_fn(R, jnp.where(self.fixed_mask, 0.0, dR), **kwargs)

    def _on_free(self, evaluation: Evaluation) -> Evaluation:
        n_atoms = evaluation.force.shape[0]  # fewer than rows of the mask where the cell relaxes too
        mask = self.fixed_mask[:n_atoms]
        return evaluation._replace(
            force=jnp.where(mask, 0.0, evaluation.force),
            applied_force=jnp.where(mask, 0.0, evaluation.applied_force),
        )


def freeze(integrator: Integrator, fixed_mask) -> Integrator:
    """The integrator with atoms, or some of their coordinates, that hold still.

    Temperature counts free coordinates. Under `npt` fixed atoms keep their
    fractions of the box. With multiple time steps, freeze first:
    `respa(freeze(nve(...), fixed_mask), neighbor_fn, 3)`.

    Args:
        integrator: from `nve`, `langevin`, `nose_hoover` or `npt`.
        fixed_mask: `[n_atoms]` bool, atoms that do not move, or `[n_atoms, 3]`
            bool, their Cartesian components. Without any the integrator itself
            is returned.

    Raises:
        ValueError: the mask has another shape or dtype, or leaves nothing free;
            or the integrator has several time steps.

    >>> from jax_md import space
    >>> from moe_md.simulate import nve
    >>> freeze(nve(space.free()[1], 1.0), [True, False]).n_free
    3
    """
    mask = np.asarray(fixed_mask)
    if mask.dtype != bool or mask.ndim not in (1, 2) or mask.shape[1:] not in ((), (3,)):
        raise ValueError(
            f"fixed_mask must be [n_atoms] or [n_atoms, 3] booleans, got {mask.dtype} {mask.shape}."
        )
    if not mask.any():
        return integrator
    if mask.all():
        raise ValueError(f"fixed_mask must leave an atom free, got {len(mask)} fixed atoms of {len(mask)}.")
    if integrator.outer_every > 1:
        raise ValueError("integrator must be frozen before respa wraps it: respa(freeze(...), ...).")
    mask = np.array(np.broadcast_to(mask if mask.ndim == 2 else mask[:, None], (len(mask), 3)))
    n_free = degrees_of_freedom(len(mask), integrator.conserves_momentum, mask)
    return cast(Integrator, Frozen(integrator, jnp.asarray(mask), n_free))
