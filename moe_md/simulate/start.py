"""Where a run starts: from positions and velocities, or from the state of an earlier run."""

import warnings
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, PRNGKeyArray, Real, UInt32

from moe_md import units
from moe_md.checks import check_not_negative
from moe_md.neighbors.neighbor_list import box_matrix
from moe_md.simulate.integrators.base import Integrator
from moe_md.simulate.state import State

MAX_SPACING = 1.5e-4  # Å, between neighbouring numbers of the positions' dtype, in float32 at 1,260 Å


def start(
    integrator: Integrator,
    position: Float[ArrayLike, "atoms 3"] | Sequence,
    *,
    masses: Real[ArrayLike, " atoms"] | Sequence,
    velocity: Real[ArrayLike, "atoms 3"] | Sequence | None = None,
    temperature_K: float | None = None,
    key: PRNGKeyArray | UInt32[np.ndarray, " words"] | None = None,
    box: Real[ArrayLike, "..."] | Sequence | None = None,
) -> State:
    """The state from which a run starts; its total momentum is zero.

    Fixed components (`freeze`) have no velocity. Where atoms are fixed along an
    axis, the others keep their momentum along it.

    Args:
        integrator: from `nve`, `langevin`, `nose_hoover`, `npt` or `respa`.
        position: in the coordinates of the energy.
        masses: amu.
        velocity: Å / (Å sqrt(amu / eV)), ASE's unit.
        temperature_K: of a Maxwell-Boltzmann draw, instead of `velocity`.
        key: random key, needed to draw velocities and for Langevin dynamics.
        box: Å, a number, edges or columns, where the energy takes one
            (fractional coordinates); default the builder's. `npt` needs it.

    Raises:
        ValueError: an argument is missing, of the wrong shape, or out of range.
    """
    position = checked_position(position)
    n_atoms = position.shape[0]
    if masses is None:
        raise ValueError(f"masses must have shape [{n_atoms}] (amu), got None.")
    mass = _numbers("masses", masses)
    if mass.shape != (n_atoms,):
        raise ValueError(f"masses must have shape [{n_atoms}] (amu), got {mass.shape}.")
    if not (np.isfinite(mass).all() and (mass > 0).all()):
        raise ValueError(f"masses must be positive (amu), got a smallest of {mass.min()}.")
    if (velocity is None) == (temperature_K is None):
        raise ValueError(
            f"give either velocity or temperature_K, got {'both' if velocity is not None else 'neither'}."
        )
    if key is None and (temperature_K is not None or integrator.needs_key):
        raise ValueError("key must be a random key, to draw velocities or for Langevin dynamics, got None.")
    if key is not None and not _is_key(key):
        raise ValueError(f"key must be a random key, got {key!r:.80}.")
    column = jnp.asarray(mass[:, None], position.dtype)
    if velocity is not None:
        momentum = column * jnp.asarray(_checked_velocity(velocity, n_atoms), position.dtype)
    else:
        check_not_negative("temperature_K", temperature_K)
        key, draw = jax.random.split(cast(Array, key))
        momentum = thermal_momentum(draw, column, float(cast(float, temperature_K)), position.dtype)
    box = None if box is None else checked_box(box, position.dtype)
    if integrator.changes_box and box is None:
        raise ValueError(
            "box must be given (Å, a number, edges or columns) where the integrator changes it, got None."
        )
    _check_fixed_mask(integrator.fixed_mask, n_atoms)
    momentum = without_drift(momentum, column, integrator.fixed_mask)
    dynamics = integrator.init(position, momentum, column[:, 0], key, box)
    return State(dynamics, 0, 0.0, box, is_new=True)


def adopt(
    integrator: Integrator,
    state: State,
    *,
    key: PRNGKeyArray | UInt32[np.ndarray, " words"] | None = None,
) -> State:
    """The state of an earlier run, under this integrator.

    Thermostats and random keys of the same kind of integrator go on. A run that
    conserves momentum after one that does not starts with zero total momentum.

    Args:
        integrator: of the next run.
        state: of an earlier result.
        key: random key; Langevin dynamics after another integrator need one.

    Raises:
        ValueError: a key or a box is missing.
    """
    old = state.dynamics
    if key is None and integrator.needs_key and not hasattr(old, "rng"):
        raise ValueError(
            "key must be a random key for Langevin dynamics, got None: "
            "pass simulate.adopt(integrator, state, key=key)."
        )
    if integrator.changes_box and state.box is None:
        raise ValueError(
            "state must have a box where the integrator changes it: start the earlier run with box=."
        )
    _check_fixed_mask(integrator.fixed_mask, old.position.shape[0])
    random_key = getattr(old, "rng", None) if key is None else key
    new = integrator.init(old.position, old.momentum, old.mass[:, 0], random_key, state.box)
    if type(new) is type(old):
        chains = [name for name in ("chain", "thermostat", "barostat") if hasattr(old, name)]
        changed = {name: _chain_of(getattr(old, name), getattr(new, name)) for name in chains}
        if hasattr(old, "rng"):
            changed["rng"] = new.rng
        if integrator.fixed_mask is not None:
            changed["momentum"] = new.momentum
        return state._replace(dynamics=old.set(**changed))
    if integrator.conserves_momentum:
        momentum = without_drift(old.momentum, old.mass, integrator.fixed_mask)
        new = integrator.init(old.position, momentum, old.mass[:, 0], None, state.box)
    return state._replace(dynamics=new)


def thermal_momentum(
    key: PRNGKeyArray, mass: Float[Array | np.ndarray, "atoms 1"], temperature_K: float, dtype
) -> Float[Array, "atoms 3"]:
    """Momenta drawn from the Maxwell-Boltzmann distribution; the total is not zero.

    Args:
        key: random key.
        mass: amu.
        temperature_K: not negative.
        dtype: of the result.

    Returns:
        amu Å / (Å sqrt(amu / eV)).
    """
    spread = jnp.sqrt(mass * (units.kB * temperature_K))
    return spread * jax.random.normal(key, (mass.shape[0], 3), dtype)


def without_drift(
    momentum: Float[Array | np.ndarray, "atoms 3"],
    mass: Float[Array | np.ndarray, "atoms 1"],
    fixed_mask: Bool[Array | np.ndarray, "atoms 3"] | None = None,
) -> Float[Array | np.ndarray, "atoms 3"]:
    """Momenta whose sum is zero; those of a single atom stay.

    Args:
        momentum: of each atom.
        mass: amu.
        fixed_mask: components that become zero; along axes that have any, the sum stays.
    """
    if fixed_mask is not None:
        momentum = jnp.where(fixed_mask, 0.0, momentum)
    if momentum.shape[0] == 1:
        return momentum
    drift = jnp.sum(momentum, axis=0, keepdims=True) / jnp.sum(mass)
    if fixed_mask is not None:
        drift = jnp.where(jnp.any(fixed_mask, axis=0, keepdims=True), 0.0, drift)
    return momentum - mass * drift


def _chain_of(old, new):
    """The thermostat of an earlier run, with the period and the degrees of freedom of the next."""
    chain = old.set(tau=new.tau)
    if old.degrees_of_freedom == new.degrees_of_freedom:
        return chain
    return chain.set(degrees_of_freedom=new.degrees_of_freedom, kinetic_energy=new.kinetic_energy)


def _check_fixed_mask(fixed_mask: Array | None, n_atoms: int) -> None:
    if fixed_mask is not None and fixed_mask.shape[0] != n_atoms:
        raise ValueError(
            f"fixed_mask must have a row for each of {n_atoms} atoms, got {fixed_mask.shape[0]}."
        )


def checked_position(position: Float[ArrayLike, "atoms 3"] | Sequence) -> Float[Array, "atoms 3"]:
    """Finite floating-point numbers, or `ValueError`."""
    shape = _numbers("position", position).shape
    if len(shape) != 2 or shape[1] != 3 or shape[0] == 0:
        raise ValueError(f"position must have shape [n_atoms, 3], got {shape}.")
    position = jnp.asarray(position)
    if not jnp.issubdtype(position.dtype, jnp.floating):
        raise ValueError(f"position must be floating point, got {position.dtype}.")
    if not bool(jnp.all(jnp.isfinite(position))):
        raise ValueError("position must be finite, got NaN or infinity.")
    _warn_of_coarse_positions(position)
    return position


def _warn_of_coarse_positions(position: Float[Array, "atoms 3"]) -> None:
    """Warn of positions so far from the origin that their dtype resolves them coarsely."""
    furthest = float(jnp.max(jnp.abs(position)))
    spacing = furthest * float(jnp.finfo(position.dtype).eps)  # Å, of numbers of this size
    if spacing > MAX_SPACING:
        warnings.warn(
            f"position reaches {furthest:.0f} Å from the origin, where {position.dtype} resolves about "
            f"{spacing:.1g} Å only, and forces are wrong by the change over that length: subtract the mean "
            "of the positions, move atoms into the box, or use float64.",
            stacklevel=4,
        )


def checked_box(box: Real[ArrayLike, "..."] | Sequence, dtype) -> Float[Array, "3 3"]:
    """Columns, or `ValueError`."""
    matrix = np.asarray(box_matrix(np.asarray(box, float)))
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-6:
        raise ValueError(f"box must be a number, three edges or three independent columns (Å), got {box!r}.")
    return jnp.asarray(matrix, dtype)


def _checked_velocity(velocity, n_atoms: int) -> np.ndarray:
    velocity = _numbers("velocity", velocity)
    if np.shape(velocity) != (n_atoms, 3) or not np.isfinite(np.asarray(velocity)).all():
        raise ValueError(
            f"velocity must be finite and have shape [{n_atoms}, 3], got shape {np.shape(velocity)}."
        )
    return velocity


def _numbers(name: str, value) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" and array.dtype != jnp.bfloat16:
        raise ValueError(f"{name} must be numbers, got {value!r:.80}.")
    return array


def _is_key(value) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return False
    shape = np.shape(value)
    is_new_style = jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    return is_new_style or (dtype == np.uint32 and len(shape) == 1)
