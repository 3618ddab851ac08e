"""Constant temperature: Langevin dynamics, split as BAOAB."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, Real, UInt32

from moe_md import lazy_jax_md as jax_md
from moe_md import units
from moe_md.checks import check_not_negative, check_positive
from moe_md.simulate.integrators.base import DynamicsState, Evaluation, FixedBox, drift, kick


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Langevin(FixedBox):
    """BAOAB Langevin dynamics (Davidchack et al., J. Chem. Phys. 142, 144114 (2015)), as in jax-md."""

    timestep_fs: float
    temperature_K: float
    friction_per_fs: float | Array | None  # a number, or [n_atoms]; None before `friction_fn` was called
    shift_fn: Callable = field(metadata={"static": True})
    # (position, neighbors, **given) -> [n_atoms] per fs, called at the start of each chunk
    friction_fn: Callable | None = field(default=None, metadata={"static": True})

    conserves_momentum = False
    needs_key = True

    @property
    def target_temperature_K(self):
        """Of the bath."""
        return self.temperature_K

    def init(
        self,
        position: Float[Array | np.ndarray, "atoms 3"],
        momentum: Float[Array | np.ndarray, "atoms 3"],
        mass: Real[Array | np.ndarray, " atoms"],
        key: PRNGKeyArray | UInt32[np.ndarray, " words"] | None,
        box: Real[ArrayLike, "..."] | Sequence | None,
    ) -> DynamicsState:
        """jax-md's state with zero forces."""
        del box
        if self.friction_per_fs is not None and jnp.shape(self.friction_per_fs) not in ((), (len(position),)):
            raise ValueError(
                f"friction_per_fs must be a number or one for each of {len(position)} atoms, "
                f"got {jnp.shape(self.friction_per_fs)[0]}."
            )
        state = cast(Any, jax_md.simulate.NVTLangevinState)
        return state(position, momentum, jnp.zeros_like(position), mass[:, None], key)

    def at_chunk_start(self, position: Float[Array | np.ndarray, "atoms 3"], neighbors, **given) -> Self:
        """The integrator with the friction that `friction_fn` gives here."""
        if self.friction_fn is None:
            return self
        return replace(self, friction_per_fs=self.friction_fn(position, neighbors, **given))

    def before_force(self, state, box: Real[ArrayLike, "..."] | Sequence | None) -> DynamicsState:
        """Half a kick, half a drift, friction and noise, half a drift."""
        if self.friction_per_fs is None:
            raise ValueError(
                "integrator must have its friction: use integrator.at_chunk_start(position, neighbors)."
            )
        friction = self.friction_per_fs
        if jnp.ndim(friction):
            friction = cast(Array, friction)[:, None]
        dt = self.timestep_fs * units.fs
        state = drift(kick(state, dt / 2), self.shift_fn, dt / 2, box)
        kT, rate = self.temperature_K * units.kB, cast(float, friction / units.fs)
        state = jax_md.simulate.stochastic_step(state, dt, kT, rate)
        return drift(state, self.shift_fn, dt / 2, box)

    def after_force(self, state, evaluation: Evaluation) -> Any:
        """The other half of the kick."""
        return kick(self.set_forces(state, evaluation), self.timestep_fs * units.fs / 2)

    def extended_energy(self, state) -> Float[Array, ""]:
        """NaN: no energy is conserved."""
        return jnp.full((), jnp.nan, state.position.dtype)


def langevin(
    shift_fn: Callable,
    timestep_fs: float,
    temperature_K: float,
    friction_per_fs: Real[ArrayLike, ""] | Real[ArrayLike, " atoms"] | Sequence | None = None,
    *,
    friction_fn: Callable | None = None,
) -> Langevin:
    """Constant temperature: Langevin dynamics. Total momentum is not conserved.

    Args:
        shift_fn: from `jax_md.space`.
        timestep_fs: positive.
        temperature_K: not negative.
        friction_per_fs: rate at which velocities are damped, positive; 0.01
            equilibrates in a fraction of a picosecond. Or `[n_atoms]` rates,
            zero for atoms without thermostat.
        friction_fn: instead of rates, a function of positions and neighbours that
            gives `[n_atoms]` rates, called at the start of each chunk of
            `simulate.run`: `expert_friction` makes one.

    Raises:
        ValueError: an argument is out of range, or not exactly one of
            `friction_per_fs` and `friction_fn` is given.
    """
    check_positive("timestep_fs", timestep_fs)
    check_not_negative("temperature_K", temperature_K)
    if (friction_per_fs is None) == (friction_fn is None):
        raise ValueError(
            f"give either friction_per_fs or friction_fn, got {'neither' if friction_fn is None else 'both'}."
        )
    if friction_fn is not None and not callable(friction_fn):
        raise ValueError(f"friction_fn must be a function, got {friction_fn!r:.80}.")
    if friction_per_fs is None:
        friction = None
    elif np.ndim(friction_per_fs) == 0:
        check_positive("friction_per_fs", friction_per_fs)
        friction = float(cast(float, friction_per_fs))
    else:
        friction = _checked_rates("friction_per_fs", friction_per_fs)
    return Langevin(float(timestep_fs), float(temperature_K), friction, shift_fn, friction_fn)


def expert_friction(neighbor_fn, rates_per_fs: Real[ArrayLike, " experts"] | Sequence) -> Callable:
    """A `friction_fn` for `langevin`: each expert has a rate, an atom the mean of its experts' rates.

    `(0.0, 0.01)` leaves the atoms of the first expert without thermostat. The
    thermostat follows a dynamic region.

    Args:
        neighbor_fn: from `mixture_neighbor_list`.
        rates_per_fs: not negative, not all zero.

    Raises:
        ValueError: `neighbor_fn` is not of a mixture, or a rate is out of range.
    """
    if not callable(getattr(neighbor_fn, "gate", None)):
        raise ValueError(f"neighbor_fn must be of mixture_neighbor_list, got {neighbor_fn!r:.80}.")
    rates = _checked_rates("rates_per_fs", rates_per_fs)

    def friction_fn(
        position: Float[Array | np.ndarray, "atoms 3"], neighbors, **given
    ) -> Float[Array, " atoms"]:
        gate = neighbor_fn.gate(position, neighbors, **given)
        if len(rates) != gate.shape[1]:
            raise ValueError(
                f"rates_per_fs must have a rate for each of {gate.shape[1]} experts, got {len(rates)}."
            )
        return jnp.maximum(gate @ rates.astype(gate.dtype), 0.0)

    return friction_fn


def _checked_rates(name: str, values) -> Array:
    rates = np.asarray(values)
    if (
        rates.ndim != 1
        or rates.dtype.kind not in "iuf"
        or not (rates >= 0).all()
        or not 0 < rates.max(initial=0) < np.inf
    ):
        raise ValueError(
            f"{name} must be rates that are finite, not negative and not all zero, got {values!r:.80}."
        )
    return jnp.asarray(rates, float)
