"""What an integrator is, and what several of them share.

A step needs the force once, at positions that do not depend on it:

    moved = integrator.before_force(state, box)
    position, box = integrator.positions_and_box(moved, box)
    evaluation = integrator.evaluate(energy_fn, k, position, neighbor=..., box=box)
    state = integrator.after_force(moved, evaluation)

`simulate.md_step` does this. An integrator is a dataclass registered as a
pytree: time step, temperature and friction are leaves, so changing them
compiles nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md import lazy_jax_md as jax_md
from moe_md import units


class Evaluation(NamedTuple):
    """Energy and its derivatives at the positions of one step."""

    energy: Array  # eV
    force: Array  # [n_atoms, 3] eV/Å, -dE/dR
    # [n_atoms, 3] eV/Å, the force that changes momenta: `force`, except under multiple time steps
    applied_force: Array
    strain_gradient: Array | None  # [3, 3] eV, dE/d strain; None where the integrator does not need it


class Integrator(Protocol):
    """How positions and momenta advance by one step.

    The state is a pytree with `position`, `momentum`, `mass` and `force`.
    """

    @property
    def timestep_fs(self) -> Any:
        """Time per step; zero in a minimisation."""
        ...

    @property
    def conserves_momentum(self) -> bool: ...

    @property
    def needs_key(self) -> bool: ...

    @property
    def changes_box(self) -> bool: ...

    @property
    def outer_every(self) -> int:
        """Steps between evaluations of all forces; run lengths are multiples of it."""
        ...

    def init(self, position: Array, momentum: Array, mass: Array, key, box) -> Any:
        """A state whose forces are still zero.

        Args:
            position: `[n_atoms, 3]`, in the coordinates of the energy.
            momentum: `[n_atoms, 3]` amu Å / (Å sqrt(amu / eV)).
            mass: `[n_atoms]` amu.
            key: random key, None where the integrator needs none.
            box: `[3, 3]` Å, columns, or None.
        """
        ...

    def positions_and_box(self, state, box) -> tuple[Array, Any]:
        """Positions and box of a state, as the energy takes them."""
        ...

    def before_force(self, state, box) -> Any:
        """The part of the step up to the new positions."""
        ...

    def evaluate(self, energy_fn: Callable, step: Array, position: Array, **given) -> Evaluation:
        """Energy and forces at step number `step`; `given` are `neighbor`, `params`, `region`, `box`."""
        ...

    def set_forces(self, state, evaluation: Evaluation) -> Any:
        """The same state with the forces of its positions."""
        ...

    def after_force(self, state, evaluation: Evaluation) -> Any:
        """The rest of the step."""
        ...

    def extended_energy(self, state) -> Array:
        """eV, conserved energy less potential and kinetic energy; NaN where no energy is conserved."""
        ...

    def at_chunk_start(self, position: Array, neighbors, **given) -> "Integrator":
        """The integrator for the next chunk of steps; `given` are `region` and `box`."""
        ...


class FixedBox:
    """Methods of integrators whose box does not change."""

    changes_box = False
    outer_every = 1

    def positions_and_box(self, state, box):
        """The state's positions and the given box."""
        return state.position, box

    def evaluate(self, energy_fn, step, position, **given) -> Evaluation:
        """Energy and force."""
        del step
        energy, gradient = jax.value_and_grad(lambda R: energy_fn(R, **given))(position)
        return Evaluation(energy, -gradient, -gradient, None)

    def set_forces(self, state, evaluation: Evaluation):
        """The same state with the forces of its positions."""
        return state.set(force=evaluation.applied_force)

    def at_chunk_start(self, position, neighbors, **given):
        """The same integrator."""
        del position, neighbors, given
        return self


def evaluate_with_strain(energy_fn, step, position, **given) -> Evaluation:
    """Energy, force and the derivative with respect to a strain of the displacements."""
    del step
    unstrained = jnp.eye(3, dtype=position.dtype)

    def strained(R, strain):
        return energy_fn(R, perturbation=unstrained + strain, **given)

    energy, (gradient, slope) = jax.value_and_grad(strained, argnums=(0, 1))(
        position, jnp.zeros_like(unstrained)
    )
    return Evaluation(energy, -gradient, -gradient, 0.5 * (slope + slope.T))


def kick(state, dt):
    """Momenta after a time `dt` under the state's force."""
    return jax_md.simulate.momentum_step(state, dt)


def drift(state, shift_fn: Callable, dt, box):
    """Positions after a time `dt` at the state's velocity."""
    return jax_md.simulate.position_step(state, shift_fn, dt, **({} if box is None else {"box": box}))


def verlet_timestep(timestep_fs):
    """The time step in Å sqrt(amu / eV), rounded to single precision as jax-md's velocity Verlet does."""
    return jnp.asarray(timestep_fs * units.fs).astype(jnp.float32)


def n_free(position: Array | np.ndarray) -> int:
    """Degrees of freedom where the total momentum is conserved."""
    n_atoms = position.shape[0]
    return 3 * n_atoms - 3 if n_atoms > 1 else 3


def kinetic_energy(momentum: Array, mass: Array) -> Array:
    """eV."""
    return 0.5 * jnp.sum(momentum**2 / mass)


def without_wrapping(R: Array, dR: Array, **_) -> Array:
    """A shift function of open space."""
    return R + dR
