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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Real, UInt32

from moe_md import lazy_jax_md as jax_md
from moe_md import units

Moving = TypeVar("Moving")  # an integrator's state


class Evaluation(NamedTuple):
    """Energy and its derivatives at the positions of one step."""

    energy: Float[Array, ""]  # eV
    force: Float[Array, "atoms 3"]  # eV/Å, -dE/dR
    # eV/Å, the force that changes momenta: `force`, except under multiple time steps
    applied_force: Float[Array, "atoms 3"]
    strain_gradient: Float[Array, "3 3"] | None  # eV, dE/d strain; None where the integrator does not need it


class DynamicsState(Protocol):
    """A pytree with positions, momenta, masses and forces; jax-md's states, and ours."""

    @property
    def position(self) -> Any: ...

    @property
    def momentum(self) -> Any: ...

    @property
    def mass(self) -> Any: ...

    @property
    def force(self) -> Any: ...


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
    def fixed_mask(self) -> Array | None:
        """`[n_atoms, 3]` bool, components that hold still; None where all move."""
        ...

    @property
    def target_temperature_K(self) -> Any:
        """Of the thermostat; zero without one."""
        ...

    @property
    def outer_every(self) -> int:
        """Steps between evaluations of all forces; run lengths are multiples of it."""
        ...

    def init(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        momentum: Float[Array | np.ndarray, "atoms 3"],
        mass: Real[Array | np.ndarray, " atoms"],
        key: PRNGKeyArray | UInt32[np.ndarray, " words"] | None,
        box: Real[ArrayLike, "..."] | Sequence | None,
    ) -> Any:
        """A state whose forces are still zero.

        Args:
            position: in the coordinates of the energy.
            momentum: amu Å / (Å sqrt(amu / eV)).
            mass: amu.
            key: random key, None where the integrator needs none.
            box: Å, columns, or None.
        """
        ...

    def with_degrees_of_freedom(self, state, n_free: int) -> Any:
        """The state of `init` where so many coordinates move; thermostats count them."""
        ...

    def positions_and_box(
        self, state, box: Real[ArrayLike, "..."] | Sequence | None
    ) -> tuple[Float[Array | np.ndarray, "atoms 3"], Any]:
        """Positions and box of a state, as the energy takes them."""
        ...

    def before_force(self, state, box: Real[ArrayLike, "..."] | Sequence | None) -> Any:
        """The part of the step up to the new positions."""
        ...

    def evaluate(
        self,
        energy_fn: Callable,
        step: Int[Array, ""] | int,
        position: Float[Array | np.ndarray, "atoms 3"],
        **given,
    ) -> Evaluation:
        """Energy and forces at step number `step`; `given` are `neighbor`, `params`, `region`, `box`."""
        ...

    def set_forces(self, state, evaluation: Evaluation) -> Any:
        """The same state with the forces of its positions."""
        ...

    def after_force(self, state, evaluation: Evaluation) -> Any:
        """The rest of the step."""
        ...

    def extended_energy(self, state) -> Float[Array, ""]:
        """eV, conserved energy less potential and kinetic energy; NaN where no energy is conserved."""
        ...

    def at_chunk_start(
        self, position: Float[Array | np.ndarray, "atoms 3"], neighbors, **given
    ) -> "Integrator":
        """The integrator for the next chunk of steps; `given` are `region` and `box`."""
        ...


class FixedBox:
    """Methods of integrators whose box does not change."""

    changes_box = False
    outer_every = 1
    fixed_mask = None

    @property
    def target_temperature_K(self) -> Any:
        """Zero: no thermostat."""
        return 0.0

    def with_degrees_of_freedom(self, state, n_free: int):
        """The same state."""
        del n_free
        return state

    def positions_and_box(
        self, state, box: Real[ArrayLike, "..."] | Sequence | None
    ) -> tuple[Float[Array | np.ndarray, "atoms 3"], Any]:
        """The state's positions and the given box."""
        return state.position, box

    def evaluate(
        self,
        energy_fn: Callable,
        step: Int[Array, ""] | int,
        position: Float[Array | np.ndarray, "atoms 3"],
        **given,
    ) -> Evaluation:
        """Energy and force."""
        del step
        energy, gradient = jax.value_and_grad(lambda R: energy_fn(R, **given))(position)
        return Evaluation(energy, -gradient, -gradient, None)

    def set_forces(self, state, evaluation: Evaluation) -> Any:
        """The same state with the forces of its positions."""
        return state.set(force=evaluation.applied_force)

    def at_chunk_start(self, position: Float[Array | np.ndarray, "atoms 3"], neighbors, **given) -> Self:
        """The same integrator."""
        del position, neighbors, given
        return self


def evaluate_with_strain(
    energy_fn: Callable, step: Int[Array, ""] | int, position: Float[Array | np.ndarray, "atoms 3"], **given
) -> Evaluation:
    """Energy, force and the derivative with respect to a strain of the displacements."""
    del step
    unstrained = jnp.eye(3, dtype=position.dtype)

    def strained(R, strain):
        return energy_fn(R, perturbation=unstrained + strain, **given)

    energy, (gradient, slope) = jax.value_and_grad(strained, argnums=(0, 1))(
        position, jnp.zeros_like(unstrained)
    )
    return Evaluation(energy, -gradient, -gradient, 0.5 * (slope + slope.T))


def kick(state: Moving, dt: Real[ArrayLike, ""]) -> Moving:
    """Momenta after a time `dt` under the state's force."""
    return jax_md.simulate.momentum_step(state, dt)


def drift(
    state: Moving, shift_fn: Callable, dt: Real[ArrayLike, ""], box: Real[ArrayLike, "..."] | Sequence | None
) -> Moving:
    """Positions after a time `dt` at the state's velocity."""
    return jax_md.simulate.position_step(state, shift_fn, dt, **({} if box is None else {"box": box}))


def verlet_timestep(timestep_fs: Real[ArrayLike, ""]) -> Float[Array, ""]:
    """The time step in Å sqrt(amu / eV), rounded to single precision as jax-md's velocity Verlet does."""
    return jnp.asarray(timestep_fs * units.fs).astype(jnp.float32)


def n_free(position: Float[Array | np.ndarray, "atoms 3"]) -> int:
    """Degrees of freedom where the total momentum is conserved."""
    n_atoms = position.shape[0]
    return 3 * n_atoms - 3 if n_atoms > 1 else 3


def degrees_of_freedom(
    n_atoms: int, conserves_momentum: bool, fixed_mask: Bool[ArrayLike, "atoms 3"] | None = None
) -> int:
    """Of the temperature: free coordinates, less one for each axis along which momentum is conserved.

    Args:
        n_atoms: number of atoms; the momentum of a single one counts.
        conserves_momentum: whether the integrator conserves momentum.
        fixed_mask: components that hold still, or None.
    """
    fixed = np.zeros((n_atoms, 3), bool) if fixed_mask is None else np.asarray(fixed_mask)
    conserved = ~fixed.any(axis=0) if conserves_momentum and n_atoms > 1 else np.zeros(3, bool)
    return int(3 * n_atoms - fixed.sum() - conserved.sum())


def kinetic_energy(
    momentum: Float[Array | np.ndarray, "atoms 3"], mass: Real[Array | np.ndarray, "atoms 1"]
) -> Float[Array, ""]:
    """eV."""
    return 0.5 * jnp.sum(momentum**2 / mass)


def without_wrapping(
    R: Float[Array | np.ndarray, "atoms 3"], dR: Float[Array | np.ndarray, "atoms 3"], **_
) -> Float[Array | np.ndarray, "atoms 3"]:
    """A shift function of open space."""
    return R + dR
