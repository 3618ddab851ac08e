"""Constant temperature and pressure: an isotropic barostat.

The barostat is ours: in fractional coordinates jax-md's (0.2.29) moves atoms by
their fractions times the growth of the box, so a trajectory depends on where
the origin is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, Real, UInt32

from moe_md import units
from moe_md.checks import check_positive, check_value
from moe_md.neighbors.neighbor_list import box_matrix
from moe_md.simulate.integrators.base import Evaluation, evaluate_with_strain, kinetic_energy, n_free
from moe_md.simulate.integrators.nose_hoover import chain_energy, nose_hoover_chain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BarostatState:
    """Atoms in fractional coordinates, a box of variable volume, and two chains of thermostats."""

    position: Array | np.ndarray  # [n_atoms, 3], fractions of the box
    momentum: Array | np.ndarray  # [n_atoms, 3] amu Å / (Å sqrt(amu / eV))
    force: Array  # [n_atoms, 3] eV/Å
    mass: Array | np.ndarray  # [n_atoms, 1] amu
    strain_trace: Array  # eV, trace of dE/d strain
    reference_box: Array  # [3, 3] Å, columns
    box_position: Array  # ln(edge / reference edge)
    box_momentum: Array
    thermostat: Any  # chain of the atoms
    barostat: Any  # chain of the box

    @property
    def velocity(self) -> Float[Array | np.ndarray, "... atoms 3"]:
        """ASE's unit."""
        return self.momentum / self.mass

    @property
    def box(self) -> Float[Array, "3 3"]:
        """Å, columns."""
        return self.reference_box * jnp.exp(self.box_position)

    def set(self, **kwargs) -> "BarostatState":
        """A copy with other fields, as jax-md's states have it."""
        return replace(self, **kwargs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NPT:
    """Isotropic Martyna-Tobias-Klein barostat with Nosé-Hoover chains.

    Source:
        Tuckerman, Alejandre, López-Rendón, Jochim, Martyna,
        J. Phys. A 39, 5629 (2006), section 4.
    """

    timestep_fs: float
    temperature_K: float
    pressure_GPa: float
    tau_fs: float
    barostat_tau_fs: float
    shift_fn: Callable = field(metadata={"static": True})

    conserves_momentum = True
    needs_key = False
    changes_box = True
    outer_every = 1
    fixed_mask = None
    evaluate = staticmethod(evaluate_with_strain)

    @property
    def target_temperature_K(self):
        """Of the chain."""
        return self.temperature_K

    def init(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        momentum: Float[Array | np.ndarray, "atoms 3"],
        mass: Real[Array | np.ndarray, " atoms"],
        key: PRNGKeyArray | UInt32[np.ndarray, " words"] | None,
        box: Real[ArrayLike, "..."] | Sequence | None,
    ) -> BarostatState:
        """A state with zero forces."""
        del key
        kT, mass, zero = self.temperature_K * units.kB, mass[:, None], jnp.zeros((), position.dtype)
        thermostat, barostat = self._chains()
        return BarostatState(
            position=position,
            momentum=momentum,
            force=jnp.zeros_like(position),
            mass=mass,
            strain_trace=zero,
            reference_box=jnp.asarray(box_matrix(cast(Any, box)), position.dtype),  # `start` asks for one
            box_position=zero,
            box_momentum=zero,
            thermostat=thermostat.initialize(n_free(position), kinetic_energy(momentum, mass), kT),
            barostat=barostat.initialize(1, zero, kT),
        )

    def with_degrees_of_freedom(self, state: BarostatState, n_free: int) -> BarostatState:
        """The state with a chain that acts on so many coordinates of atoms."""
        kinetic, kT = kinetic_energy(state.momentum, state.mass), self.temperature_K * units.kB
        return state.set(thermostat=self._chains()[0].initialize(n_free, kinetic, kT))

    def at_chunk_start(self, position: Float[Array | np.ndarray, "atoms 3"], neighbors, **given) -> Self:
        """The same integrator."""
        del position, neighbors, given
        return self

    def positions_and_box(
        self, state: BarostatState, box: Real[ArrayLike, "..."] | Sequence | None
    ) -> tuple[Float[Array | np.ndarray, "atoms 3"], Float[Array, "3 3"]]:
        """Fractions, and the box of the state."""
        del box
        return state.position, state.box

    def set_forces(self, state: BarostatState, evaluation: Evaluation) -> BarostatState:
        """The same state with the forces of its positions."""
        gradient = cast(Array, evaluation.strain_gradient)  # `evaluate` gives it
        return state.set(force=evaluation.applied_force, strain_trace=jnp.trace(gradient))

    def before_force(
        self, state: BarostatState, box: Real[ArrayLike, "..."] | Sequence | None
    ) -> BarostatState:
        """Half a step of both chains, half a kick of box and atoms, and the drift of both."""
        del box
        dt, kT = self.timestep_fs * units.fs, self.temperature_K * units.kB
        thermostat, barostat = self._chains()
        box_momentum, box_chain = barostat.half_step(
            state.box_momentum, barostat.update_mass(state.barostat, kT), kT
        )
        momentum, atoms_chain = thermostat.half_step(
            state.momentum, thermostat.update_mass(state.thermostat, kT), kT
        )
        state = state.set(
            momentum=momentum, box_momentum=box_momentum, thermostat=atoms_chain, barostat=box_chain
        )
        state = self._kick_atoms(self._kick_box(state, dt / 2), dt / 2)
        rate = state.box_momentum / self._box_mass(state)
        state = state.set(box_position=state.box_position + rate * dt)
        # Fractions do not change with the box; the velocity adds a move in Å of the new box.
        move = dt * state.velocity * jnp.exp(rate * dt / 2) * _sinhc(rate * dt / 2)
        return state.set(position=self.shift_fn(state.position, move, box=state.box))

    def after_force(self, state: BarostatState, evaluation: Evaluation) -> BarostatState:
        """Half a kick of atoms and box, half a step of both chains."""
        dt, kT = self.timestep_fs * units.fs, self.temperature_K * units.kB
        thermostat, barostat = self._chains()
        state = self.set_forces(state, evaluation)
        state = self._kick_box(self._kick_atoms(state, dt / 2), dt / 2)
        atoms_chain = state.thermostat.set(kinetic_energy=kinetic_energy(state.momentum, state.mass))
        box_chain = state.barostat.set(kinetic_energy=self._box_kinetic(state))
        momentum, atoms_chain = thermostat.half_step(state.momentum, atoms_chain, kT)
        box_momentum, box_chain = barostat.half_step(state.box_momentum, box_chain, kT)
        return state.set(
            momentum=momentum, box_momentum=box_momentum, thermostat=atoms_chain, barostat=box_chain
        )

    def extended_energy(self, state: BarostatState) -> Float[Array, ""]:
        """Energy of both chains and of the box, and pressure times volume, eV."""
        kT, volume = self.temperature_K * units.kB, jnp.abs(jnp.linalg.det(state.box))
        chains = chain_energy(state.thermostat, kT) + chain_energy(state.barostat, kT)
        return chains + self.pressure_GPa * units.GPa * volume + self._box_kinetic(state)

    def _chains(self):
        return tuple(
            nose_hoover_chain(self.timestep_fs, 3, tau) for tau in (self.tau_fs, self.barostat_tau_fs)
        )

    def _box_mass(self, state: BarostatState):
        kT = self.temperature_K * units.kB
        return (state.thermostat.degrees_of_freedom + 3) * kT * (self.barostat_tau_fs * units.fs) ** 2

    def _box_kinetic(self, state: BarostatState):
        return 0.5 * state.box_momentum**2 / self._box_mass(state)

    def _kick_box(self, state: BarostatState, dt):
        volume = jnp.abs(jnp.linalg.det(state.box))
        factor = 1 + 3 / state.thermostat.degrees_of_freedom
        kinetic = factor * 2 * kinetic_energy(state.momentum, state.mass)
        push = kinetic - state.strain_trace - 3 * self.pressure_GPa * units.GPa * volume
        return state.set(box_momentum=state.box_momentum + dt * push)

    def _kick_atoms(self, state: BarostatState, dt):
        x = (1 + 3 / state.thermostat.degrees_of_freedom) * state.box_momentum / self._box_mass(state) * dt
        kicked = state.momentum * jnp.exp(-x) + dt * state.force * _sinhc(x / 2) * jnp.exp(-x / 2)
        return state.set(momentum=kicked)


def npt(
    shift_fn: Callable,
    timestep_fs: float,
    temperature_K: float,
    pressure_GPa: float = 0.0,
    *,
    tau_fs: float = 100.0,
    barostat_tau_fs: float = 1000.0,
) -> NPT:
    """Constant temperature and pressure; the box keeps its shape.

    The mixture is built with `fractional_coordinates=True`, and `start` is given
    the first `box`.

    Args:
        shift_fn: from `jax_md.space.periodic_general`, fractional coordinates.
        timestep_fs: positive.
        temperature_K: positive.
        pressure_GPa: external pressure.
        tau_fs: period of the chain of the atoms, positive.
        barostat_tau_fs: period of the box and of its chain, positive.

    Raises:
        ValueError: an argument is out of range.
    """
    check_positive("timestep_fs", timestep_fs)
    check_positive("temperature_K", temperature_K)
    check_positive("tau_fs", tau_fs)
    check_positive("barostat_tau_fs", barostat_tau_fs)
    check_value("pressure_GPa", pressure_GPa, float)
    numbers = (timestep_fs, temperature_K, pressure_GPa, tau_fs, barostat_tau_fs)
    return NPT(*map(float, numbers), shift_fn)


def _sinhc(x: Array) -> Array:
    """sinh(x) / x, for small x."""
    return 1 + x**2 / 6 * (1 + x**2 / 20 * (1 + x**2 / 42))
