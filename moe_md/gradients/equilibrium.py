"""Equilibrium structures as differentiable functions of everything they depend on.

At equilibrium the gradient of the energy, or of the enthalpy H = E + p V where the cell may
strain, is zero whatever the parameters t are,

    f(z, t) = dH/dz = 0,    dz/dt = -(d2H/dz2)^-1 d2H/dz dt,    z: positions and strain,

so the derivative follows from the structure alone: how it was found does not matter, and
nothing is stored on the way. Second derivatives of H are never formed;
they act on vectors, forward over reverse, inside an iterative solver. H itself
does not change with z to first order: its gradient needs no solver (Hellmann
and Feynman; the envelope theorem), its second derivatives do. At a saddle point
all of this holds as well, but d2H/dz2 is indefinite: `gmres` or `dense`, not `cg`.

`simulate.relax` minimises on the host; `equilibrium` continues with a few Newton steps,
under jit and down to rounding if asked for, and attaches the derivative
(`jax.lax.custom_root`). For a crystal with one free length use `isotropic_equilibrium`.

Source: Blondel et al., Efficient and modular implicit differentiation, NeurIPS
2022, arXiv:2105.15183.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Real

from moe_md import units
from moe_md.checks import check_count, check_positive
from moe_md.gradients.isotropic import known
from moe_md.gradients.newton import Given, condition, enthalpy, newton, structure_of
from moe_md.gradients.solvers import cg, checked_solve
from moe_md.neighbors.neighbor_list import box_matrix

ISOTROPIC_STRAIN = np.eye(3)[None]  # [1, 3, 3], for `strains`
ANY_STRAIN = np.array(  # [6, 3, 3]
    [np.diag(row) for row in np.eye(3)]
    + [np.roll(np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), k, (0, 1)) for k in range(3)]
)


class Equilibrium(NamedTuple):
    """A stationary point of the enthalpy; NaN where it was not reached."""

    position: Float[Array, "atoms 3"]  # in the coordinates of the energy, before the strain
    # Symmetric: displacements are (1 + strain) times those in the given cell.
    strain: Float[Array, "3 3"]
    enthalpy: Float[Array, ""]  # eV, E + p V
    max_force: Float[Array, ""]  # eV/Å, the largest norm over free atoms
    # eV, the largest of dH/d strain / n_atoms along `strains`; NaN where the cell is fixed
    cell_force: Float[Array, ""]
    overflow: Bool[Array, ""]  # the neighbours' buffers ran out
    converged: Bool[Array, ""]


def equilibrium(
    energy_fn: Callable,
    position: Float[ArrayLike, "atoms 3"] | Sequence,
    neighbors=None,
    *,
    params=None,
    region=None,
    box: Real[ArrayLike, "..."] | Sequence | None = None,
    fixed_mask: Bool[ArrayLike, " atoms"] | Sequence | None = None,
    strains: Real[ArrayLike, "n 3 3"] | Sequence | None = None,
    volume: Real[ArrayLike, ""] | None = None,
    pressure_GPa: Real[ArrayLike, ""] = 0.0,
    translations: bool = True,
    rotations: bool = False,
    newton_steps: int = 10,
    force_tolerance: float = 1e-6,
    solver: Callable = cg,
    solver_tolerance: float | None = None,
) -> Equilibrium:
    """The equilibrium structure near `position`, differentiable in all that it depends on.

    Differentiable, forward and in reverse and again, in `params`, `region`,
    `box`, `volume`, `pressure_GPa` and the positions of fixed atoms; not in
    those of free ones, on which the result does not depend. A gradient costs one
    linear solve: some tens of Hessian-vector products.

    Args:
        energy_fn: `energy_fn(R, neighbor=, params=, region=, box=,
            perturbation=)` in eV, from `mixture_neighbor_list`; a function of R
            alone is enough where the others are not given.
        position: near equilibrium; from `simulate.relax`.
        neighbors: of `position`, with `update`; updated here.
        params, region: default the builder's.
        box: Å, where the energy takes fractions of it. Derivatives of such positions
            are per Å, as jax-md's are; the change of a box at fixed fractions is not included.
        fixed_mask: atoms that do not move; default none.
        strains: independent and symmetric strains of the cell that may
            relax: `ISOTROPIC_STRAIN`, `ANY_STRAIN`; default a fixed cell.
        volume: Å^3 of the cell, where `strains` are given and `box` is not.
        pressure_GPa: external pressure.
        translations, rotations: whether the energy is invariant to them. They
            are then excluded and stay as in the given structure; with fixed atoms
            nothing is excluded.
        newton_steps: largest number of steps, one linear solve each. With zero
            the given structure must itself be at equilibrium.
        force_tolerance: eV/Å, and eV for `cell_force`, positive: the largest
            force at equilibrium. Relative errors of derivatives are of its size.
        solver: `(matvec, b, tolerance) -> x`, `cg`, `gmres` or `dense`.
        solver_tolerance: relative residual; default 1e-10, 1e-5 in float32. Where
            it is exceeded ten times, the derivative is NaN.

    Returns:
        The structure. Under jit positions, strain and enthalpy are NaN where
        it did not converge.

    Raises:
        ValueError: outside of jit, it did not converge; or an argument is out
            of range.

    An atom in a harmonic well at t with a constant force has its minimum 1/2 from t:

    >>> energy_fn = lambda R, params: jnp.sum((R - params) ** 2) + jnp.sum(R)
    >>> def place(t):
    ...     found = equilibrium(
    ...         energy_fn, [[1.4, 1.6, 1.4]], params=t, translations=False, force_tolerance=1e-4
    ...     )
    ...     return found.position[0, 1]
    >>> float(place(2.0)), float(jax.grad(place)(2.0))
    (1.5, 1.0)
    """
    position = jnp.asarray(position)
    if not jnp.issubdtype(position.dtype, jnp.floating) or position.ndim != 2 or position.shape[1] != 3:
        raise ValueError(
            f"position must be floating point of shape [n_atoms, 3], got {position.dtype} {position.shape}."
        )
    dtype, n_atoms = position.dtype, position.shape[0]
    check_count("newton_steps", newton_steps, 0)
    check_positive("force_tolerance", force_tolerance)
    if solver_tolerance is None:
        solver_tolerance = 1e-10 if dtype == jnp.float64 else 1e-5
    check_positive("solver_tolerance", solver_tolerance)
    fixed_mask = jnp.zeros(n_atoms, bool) if fixed_mask is None else jnp.asarray(fixed_mask)
    if fixed_mask.shape != (n_atoms,) or fixed_mask.dtype != bool:
        raise ValueError(
            f"fixed_mask must be [{n_atoms}] booleans, got {fixed_mask.dtype} {fixed_mask.shape}."
        )
    if strains is not None:
        strains = _checked_strains(strains)
        if volume is None and box is None:
            raise ValueError("volume must be given where strains are and box is not (Å^3).")
    if box is not None:
        box = box_matrix(jnp.asarray(box, dtype))
        volume = jnp.abs(jnp.linalg.det(box))
    given = Given(
        position,
        fixed_mask,
        neighbors,
        params,
        region,
        box,
        None if strains is None else jnp.asarray(strains, dtype),
        None if strains is None else jnp.asarray(volume, dtype),
        jnp.asarray(pressure_GPa, dtype) * units.GPa,
    )
    found = _equilibrium(
        energy_fn,
        (bool(translations), bool(rotations)),
        int(newton_steps),
        solver,
        given,
        float(force_tolerance),
        float(solver_tolerance),
    )
    if known(found.converged) and not bool(found.converged):
        _refuse(found, force_tolerance, newton_steps)
    return found


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _equilibrium(
    energy_fn, invariant, newton_steps, solver, given: Given, force_tolerance, solver_tolerance
) -> Equilibrium:
    dtype = given.position.dtype
    # The result does not depend on where free atoms start.
    start = jnp.where(given.fixed_mask[:, None], given.position, jax.lax.stop_gradient(given.position))
    given = given._replace(position=start)
    z, neighbors, (max_force, cell_force) = newton(
        energy_fn,
        invariant,
        newton_steps,
        solver,
        jax.lax.stop_gradient(given),
        force_tolerance,
        solver_tolerance,
    )
    given = given._replace(neighbors=neighbors)
    solve = partial(checked_solve, solver, solver_tolerance)
    z = jax.lax.custom_root(partial(condition, energy_fn, invariant, given), z, lambda _, z: z, solve)
    overflow = jnp.zeros((), bool) if neighbors is None else jnp.asarray(neighbors.did_buffer_overflow, bool)
    converged = (max_force <= force_tolerance) & ~overflow
    if z.stretch is not None:
        converged &= cell_force <= force_tolerance
    blank = jnp.where(converged, 0.0, jnp.nan).astype(dtype)
    position, strain = structure_of(z, given)
    return Equilibrium(
        position + blank,
        strain + blank,
        enthalpy(energy_fn, z, given) + blank,
        max_force,
        cell_force,
        overflow,
        converged,
    )


def _refuse(found: Equilibrium, force_tolerance: float, newton_steps: int) -> None:
    if bool(found.overflow):
        raise ValueError(
            "neighbors must have room for the structure, "
            "but their buffers overflowed: allocate them again at `position`."
        )
    cell = "" if np.isnan(found.cell_force) else f" and {float(found.cell_force):.3g} eV on the cell"
    raise ValueError(
        f"position must be near equilibrium: after at most newton_steps = {newton_steps} "
        f"the largest force must not exceed force_tolerance = {force_tolerance} eV/Å, "
        f"got {float(found.max_force):.3g} eV/Å{cell}. "
        "Relax it further (simulate.relax with a smaller force_tolerance); "
        "at a saddle point, solver=gmres or dense."
    )


def _checked_strains(strains) -> np.ndarray:
    values = np.asarray(strains, float)
    if (
        values.ndim != 3
        or values.shape[1:] != (3, 3)
        or len(values) == 0
        or not np.allclose(values, values.swapaxes(1, 2))
    ):
        raise ValueError(f"strains must be symmetric, of shape [n, 3, 3], got shape {values.shape}.")
    if np.linalg.matrix_rank(values.reshape(len(values), 9)) < len(values):
        raise ValueError(
            "strains must be independent, "
            f"got rank {np.linalg.matrix_rank(values.reshape(len(values), 9))} of {len(values)}."
        )
    return values
