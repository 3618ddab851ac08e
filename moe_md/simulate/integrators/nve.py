"""Constant energy: velocity Verlet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, Real, UInt32

from moe_md import lazy_jax_md as jax_md
from moe_md.checks import check_positive
from moe_md.simulate.integrators.base import DynamicsState, Evaluation, FixedBox, drift, kick, verlet_timestep


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NVE(FixedBox):
    """Velocity Verlet (Swope, Andersen, Berens, Wilson, J. Chem. Phys. 76, 637 (1982))."""

    timestep_fs: float
    shift_fn: Callable = field(metadata={"static": True})

    conserves_momentum = True
    needs_key = False

    def init(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        momentum: Float[Array | np.ndarray, "atoms 3"],
        mass: Real[Array | np.ndarray, " atoms"],
        key: PRNGKeyArray | UInt32[np.ndarray, " words"] | None,
        box: Real[ArrayLike, "..."] | Sequence | None,
    ) -> DynamicsState:
        """jax-md's state with zero forces."""
        del key, box
        state = cast(Any, jax_md.simulate.NVEState)  # a dataclass that type checkers do not know
        return state(position, momentum, jnp.zeros_like(position), mass[:, None])

    def before_force(self, state, box: Real[ArrayLike, "..."] | Sequence | None) -> DynamicsState:
        """Half a kick, then the drift."""
        dt = verlet_timestep(self.timestep_fs)
        return drift(kick(state, dt / 2), self.shift_fn, dt, box)

    def after_force(self, state, evaluation: Evaluation) -> Any:
        """The other half of the kick."""
        return kick(self.set_forces(state, evaluation), verlet_timestep(self.timestep_fs) / 2)

    def extended_energy(self, state) -> Float[Array, ""]:
        """Zero: potential and kinetic energy are conserved."""
        return jnp.zeros((), state.position.dtype)


def nve(shift_fn: Callable, timestep_fs: float) -> NVE:
    """Constant energy: velocity Verlet.

    Args:
        shift_fn: from `jax_md.space`.
        timestep_fs: positive.

    Raises:
        ValueError: the time step is not positive.
    """
    check_positive("timestep_fs", timestep_fs)
    return NVE(float(timestep_fs), shift_fn)
