"""Constant temperature: a Nosé-Hoover chain."""

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
from moe_md import units
from moe_md.checks import check_positive
from moe_md.simulate.integrators.base import (
    DynamicsState,
    Evaluation,
    FixedBox,
    drift,
    kick,
    kinetic_energy,
    n_free,
    verlet_timestep,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoseHoover(FixedBox):
    """A chain of five thermostats, jax-md's default (Martyna et al., J. Chem. Phys. 97, 2635 (1992))."""

    timestep_fs: float
    temperature_K: float
    tau_fs: float
    shift_fn: Callable = field(metadata={"static": True})

    conserves_momentum = True
    needs_key = False

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
    ) -> DynamicsState:
        """jax-md's state with zero forces; the chain acts on 3 n_atoms - 3 degrees of freedom."""
        del key, box
        chain = self._chain().initialize(
            n_free(position), kinetic_energy(momentum, mass[:, None]), self.temperature_K * units.kB
        )
        state = cast(Any, jax_md.simulate.NVTNoseHooverState)
        return state(position, momentum, jnp.zeros_like(position), mass[:, None], chain)

    def with_degrees_of_freedom(self, state, n_free: int) -> DynamicsState:
        """The state with a chain that acts on so many coordinates."""
        kinetic, kT = kinetic_energy(state.momentum, state.mass), self.temperature_K * units.kB
        return state.set(chain=self._chain().initialize(n_free, kinetic, kT))

    def before_force(self, state, box: Real[ArrayLike, "..."] | Sequence | None) -> DynamicsState:
        """Half a step of the chain, half a kick, the drift."""
        kT, dt = self.temperature_K * units.kB, verlet_timestep(self.timestep_fs)
        chain = self._chain().update_mass(state.chain, kT)
        momentum, chain = self._chain().half_step(state.momentum, chain, kT)
        state = state.set(momentum=momentum, chain=chain)
        return drift(kick(state, dt / 2), self.shift_fn, dt, box)

    def after_force(self, state, evaluation: Evaluation) -> Any:
        """Half a kick, half a step of the chain."""
        state = kick(self.set_forces(state, evaluation), verlet_timestep(self.timestep_fs) / 2)
        chain = state.chain.set(kinetic_energy=jax_md.simulate.kinetic_energy(state))
        momentum, chain = self._chain().half_step(state.momentum, chain, self.temperature_K * units.kB)
        return state.set(momentum=momentum, chain=chain)

    def extended_energy(self, state) -> Float[Array, ""]:
        """Energy of the chain, eV."""
        return chain_energy(state.chain, self.temperature_K * units.kB)

    def _chain(self):
        return nose_hoover_chain(self.timestep_fs, 5, self.tau_fs)


def nose_hoover(
    shift_fn: Callable, timestep_fs: float, temperature_K: float, tau_fs: float = 100.0
) -> NoseHoover:
    """Constant temperature: a Nosé-Hoover chain.

    Deterministic; an extended energy and the momentum are conserved.

    Args:
        shift_fn: from `jax_md.space`.
        timestep_fs: positive.
        temperature_K: positive.
        tau_fs: period of the chain, positive; 100 time steps are usual.

    Raises:
        ValueError: an argument is out of range.
    """
    check_positive("timestep_fs", timestep_fs)
    check_positive("temperature_K", temperature_K)
    check_positive("tau_fs", tau_fs)
    return NoseHoover(float(timestep_fs), float(temperature_K), float(tau_fs), shift_fn)


def nose_hoover_chain(timestep_fs: Real[ArrayLike, ""], length: int, tau_fs: Real[ArrayLike, ""]) -> Any:
    """jax-md's functions of a chain of `length` thermostats: 2 substeps, Suzuki-Yoshida order 3."""
    timestep, tau = cast(float, timestep_fs * units.fs), cast(float, tau_fs * units.fs)
    return jax_md.simulate.nose_hoover_chain(timestep, length, 2, 3, tau)


def chain_energy(chain, kT: Real[ArrayLike, ""]) -> Float[Array, ""]:
    """Kinetic and potential energy of a chain, eV."""
    kinetic = jnp.sum(chain.momentum**2 / (2 * chain.mass))
    return kinetic + kT * (chain.degrees_of_freedom * chain.position[0] + jnp.sum(chain.position[1:]))
