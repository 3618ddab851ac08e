"""Equilibrium of a crystal with one free length: a root in one unknown."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Real

from moe_md import units
from moe_md.checks import check_count, check_positive

LONGEST_STRAIN = 0.02  # in one of Newton's steps


class IsotropicEquilibrium(NamedTuple):
    """Equilibrium of a crystal with one free length under a pressure; NaN where there is none."""

    scale: Float[Array, ""]  # lattice constant over that of the given cell
    energy: Float[Array, ""]  # eV, without p V
    bulk_modulus_GPa: Float[Array, ""]  # -V dp/dV
    converged: Bool[Array, ""]


def isotropic_equilibrium(
    energy_fn: Callable,
    *args,
    volume: Real[ArrayLike, ""],
    pressure_GPa: Real[ArrayLike, ""] = 0.0,
    scale: float = 1.0,
    n_steps: int = 50,
    tolerance: float = 1e-12,
) -> IsotropicEquilibrium:
    """The crystal of lowest enthalpy among isotropically scaled copies of one.

    With E(s) the energy at displacements exp(s) times those given and V(s) = V exp(3 s),
    dE/ds + 3 p V = 0 and -V dp/dV = (E'' - 3 E') / 9 V there. One root in one unknown:
    for cubic crystals whose atoms are fixed by symmetry.

    Args:
        energy_fn: `energy_fn(F, *args)` in eV, the energy of a cell whose
            displacements are F, `[3, 3]`, times what they were.
        *args: parameters and the like. Differentiable in all of them, forward
            and in reverse and again; and in volume and pressure.
        volume: Å^3 of the cell at F = 1.
        pressure_GPa: of the surroundings.
        scale: a guess of the answer.
        n_steps: of Newton's, at most.
        tolerance: of the slope dH/ds, in units of the slope's own slope: about the error of the scale.

    Returns:
        The crystal; under jit NaN where none was found.

    Raises:
        ValueError: outside of jit, no crystal was found: from the guess the
            energy does not go down to a minimum.

    A spring of stiffness 2 eV and rest length t:

    >>> def energy_fn(F, t):
    ...     return (F[0, 0] - t) ** 2
    >>> def scale(t):
    ...     return isotropic_equilibrium(energy_fn, t, volume=1.0, tolerance=1e-6).scale
    >>> slope = jax.jacfwd(scale)(1.1)
    >>> round(float(slope), 4)
    1.0
    """
    check_positive("scale", scale)
    check_count("n_steps", n_steps, 1)
    check_positive("tolerance", tolerance)
    if known(volume):
        check_positive("volume", float(cast(float, volume)))
    found = _isotropic_equilibrium(
        energy_fn,
        args,
        jnp.asarray(volume, float),
        jnp.asarray(pressure_GPa, float) * units.GPa,
        scale,
        n_steps,
        tolerance,
    )
    if known(found.converged) and not bool(found.converged):
        raise ValueError(
            "scale must lead to a minimum of the enthalpy, "
            f"but from {scale} none was met to {tolerance} in n_steps = {n_steps} of Newton's steps."
        )
    return found


@partial(jax.jit, static_argnums=(0, 5))
def _isotropic_equilibrium(
    energy_fn, args, volume, pressure, scale, n_steps, tolerance
) -> IsotropicEquilibrium:
    def energy(s, args):
        return energy_fn(jnp.exp(s) * jnp.eye(3), *args)

    def slope(s, args, volume, pressure):
        return jax.grad(energy)(s, args) + 3 * pressure * volume * jnp.exp(3 * s)

    def with_slope(s, *rest):
        return jax.jvp(lambda s: slope(s, *rest), (s,), (jnp.ones_like(s),))

    frozen = jax.lax.stop_gradient((args, volume, pressure))

    def miss(s):
        at, curvature = with_slope(s, *frozen)
        # Where the curvature is not positive, take a step along the gradient.
        return jnp.where(curvature > 0, at / curvature, jnp.sign(at) * LONGEST_STRAIN), curvature

    def step(carry):
        s, k, (wanted, _) = carry
        s = s - jnp.clip(wanted, -LONGEST_STRAIN, LONGEST_STRAIN)
        return s, k + 1, miss(s)

    start = jnp.log(jnp.asarray(scale, float))
    s, _, (wanted, curvature) = jax.lax.while_loop(
        lambda carry: (carry[1] < n_steps) & (jnp.abs(carry[2][0]) > tolerance), step, (start, 0, miss(start))
    )
    converged = (jnp.abs(wanted) <= tolerance) & (curvature > 0)
    s = jax.lax.custom_root(
        lambda s: slope(s, args, volume, pressure), s, lambda _, s: s, lambda g, y: y / g(jnp.ones_like(y))
    )
    first, second = jax.jvp(lambda s: jax.grad(energy)(s, args), (s,), (jnp.ones_like(s),))
    blank = jnp.where(converged, 0.0, jnp.nan)
    modulus = (second - 3 * first) / (9 * volume * jnp.exp(3 * s)) / units.GPa
    return IsotropicEquilibrium(jnp.exp(s) + blank, energy(s, args) + blank, modulus + blank, converged)


def known(value) -> bool:
    """Whether a value is concrete, not a tracer of jit or vmap."""
    try:
        np.asarray(value)
    except jax.errors.JAXTypeError:
        return False
    return True
