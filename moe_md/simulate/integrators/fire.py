"""Minimisation: FIRE on atoms, and on atoms and cell at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from moe_md import units
from moe_md.simulate.integrators.base import (
    Evaluation,
    FixedBox,
    drift,
    evaluate_with_strain,
    kick,
    without_wrapping,
)

# Of Bitzek et al., as in jax-md and ASE.
MIN_POSITIVE_STEPS = 5
GROWTH, SHRINKAGE = 1.1, 0.5  # factors of the time step
ALPHA, ALPHA_DECAY = 0.1, 0.99  # mixing of velocity and force


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FireState:
    """Positions, momenta and the adaptive numbers of FIRE."""

    position: Array  # [n, 3] Å
    momentum: Array  # [n, 3]
    force: Array  # [n, 3] eV/Å
    mass: Array  # [n, 1], ones
    dt: Array  # Å sqrt(amu / eV)
    alpha: Array
    n_positive: Array  # int, steps since the power was last negative

    @property
    def velocity(self) -> Array:
        """Zero: momenta of a minimisation are no velocities."""
        return jnp.zeros_like(self.position)

    def set(self, **kwargs) -> "FireState":
        """A copy with other fields, as jax-md's states have it."""
        return replace(self, **kwargs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fire(FixedBox):
    """FIRE with unit masses, as ASE's; no step is longer than `max_step`.

    Source:
        Bitzek, Koskinen, Gähler, Moseler, Gumbsch, PRL 97, 170201 (2006).
    """

    shift_fn: Callable = field(metadata={"static": True})
    dt_start: float = field(default=0.05, metadata={"static": True})  # Å sqrt(amu / eV)
    # Steps stay stable up to 2 / omega, 0.13 for C-O.
    dt_max: float = field(default=0.1, metadata={"static": True})
    max_step: float = field(default=0.1, metadata={"static": True})  # Å, of the atom that moves most

    timestep_fs = 0.0
    conserves_momentum = False
    advice = "Start the relaxation from positions with smaller forces."

    def init(self, position: Float[Array, "n 3"]) -> FireState:
        """A state with zero momenta and forces."""
        zero = jnp.zeros_like(position)
        dt, alpha = (jnp.asarray(x, position.dtype) for x in (self.dt_start, ALPHA))
        ones = jnp.ones((position.shape[0], 1), position.dtype)
        return FireState(position, zero, zero, ones, dt, alpha, jnp.zeros((), jnp.int32))

    def before_force(self, state: FireState, box: Real[ArrayLike, "..."] | Sequence | None) -> FireState:
        """Half a kick, then the drift, shortened to `max_step`."""
        return drift(kick(state, state.dt / 2), self._shift, state.dt, box)

    def after_force(self, state: FireState, evaluation: Evaluation) -> FireState:
        """The other half of the kick; momenta turn towards the force, or stop where they climb."""
        state = kick(self.set_forces(state, evaluation), state.dt / 2)
        F, P, dt, alpha = state.force, state.momentum, state.dt, state.alpha
        force_norm, momentum_norm = jnp.sqrt(jnp.sum(F**2) + 1e-6), jnp.sqrt(jnp.sum(P**2))
        power = jnp.sum(F * P)
        P = P + alpha * (F * momentum_norm / force_norm - P)
        n_positive = jnp.where(power >= 0, state.n_positive + 1, 0)
        speed_up = (power > 0) & (n_positive > MIN_POSITIVE_STEPS)
        dt = jnp.where(speed_up, jnp.minimum(dt * GROWTH, self.dt_max), dt)
        dt = jnp.where(power < 0, dt * SHRINKAGE, dt)
        alpha = jnp.where(speed_up, alpha * ALPHA_DECAY, alpha)
        alpha = jnp.where(power < 0, ALPHA, alpha)
        return state.set(momentum=(power >= 0) * P, dt=dt, alpha=alpha, n_positive=n_positive)

    def _shift(self, R: Array, dR: Array, **kwargs) -> Array:
        longest = jnp.sqrt(jnp.max(jnp.sum(dR**2, axis=-1)))
        return self.shift_fn(R, dR * (self.max_step / jnp.maximum(longest, self.max_step)), **kwargs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CellFire:
    """FIRE on atoms and cell at once.

    The state's positions are `[n_atoms + 3, 3]`: the atoms in Å of the first
    box, X, then n_atoms times the deformation gradient F of the cell. Atoms are
    at F X; forces on X are F^T f, those on n_atoms F are
    -(dE/d strain + p V) F^-T / n_atoms, as in ASE's `UnitCellFilter`.
    """

    first_box: Array  # [3, 3] Å, columns
    pressure_GPa: float
    mask: Array  # [3, 3], one where the cell may strain, zero where not
    shift_fn: Callable = field(default=without_wrapping, metadata={"static": True})

    changes_box = True
    outer_every = 1
    timestep_fs = 0.0
    conserves_momentum = False
    advice = Fire.advice
    evaluate = staticmethod(evaluate_with_strain)

    def init(self, fraction: Float[Array, "atoms 3"]) -> FireState:
        """A state with zero momenta and forces."""
        position = jnp.concatenate(
            [fraction @ self.first_box.T, len(fraction) * jnp.eye(3, dtype=fraction.dtype)]
        )
        return Fire(self.shift_fn).init(position)

    def at_chunk_start(self, position: Float[Array | np.ndarray, "atoms 3"], neighbors, **given) -> Self:
        """The same integrator."""
        del position, neighbors, given
        return self

    def positions_and_box(
        self, state: FireState, box: Real[ArrayLike, "..."] | Sequence | None
    ) -> tuple[Float[Array, "atoms 3"], Float[Array, "3 3"]]:
        """Fractions of the box, and the box."""
        del box
        n_atoms = state.position.shape[0] - 3
        deformation = state.position[n_atoms:] / n_atoms
        return state.position[:n_atoms] @ jnp.linalg.inv(self.first_box).T, deformation @ self.first_box

    def before_force(self, state: FireState, box: Real[ArrayLike, "..."] | Sequence | None) -> FireState:
        """As of `Fire`, for atoms and cell."""
        del box
        return Fire(self.shift_fn).before_force(state, None)

    def set_forces(self, state: FireState, evaluation: Evaluation) -> FireState:
        """The same state with the generalised forces of its positions and cell."""
        return state.set(force=self._generalised(state, evaluation))

    def after_force(self, state: FireState, evaluation: Evaluation) -> FireState:
        """As of `Fire`, for atoms and cell."""
        force = self._generalised(state, evaluation)
        return Fire(self.shift_fn).after_force(state, evaluation._replace(applied_force=force))

    def _generalised(self, state, evaluation) -> Array:
        _, box = self.positions_and_box(state, None)
        n_atoms = state.position.shape[0] - 3
        deformation = state.position[n_atoms:] / n_atoms
        volume = jnp.abs(jnp.linalg.det(box))
        gradient = cast(Array, evaluation.strain_gradient)  # `evaluate` gives it
        identity = jnp.eye(3, dtype=box.dtype)
        push = self.mask * (gradient + self.pressure_GPa * units.GPa * volume * identity)
        on_cell = -push @ jnp.linalg.inv(deformation).T / n_atoms
        return jnp.concatenate([evaluation.force @ deformation, on_cell])
