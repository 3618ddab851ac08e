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

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse import linalg

from moe_md import units
from moe_md.checks import check_count, check_positive
from moe_md.gradients.isotropic import known
from moe_md.gradients.trajectory import moved_fractions
from moe_md.neighbors.neighbor_list import box_matrix

ISOTROPIC_STRAIN = np.eye(3)[None]  # [1, 3, 3], for `strains`
ANY_STRAIN = np.array(  # [6, 3, 3]
    [np.diag(row) for row in np.eye(3)]
    + [np.roll(np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), k, (0, 1)) for k in range(3)]
)
LENGTH = 2.5  # Å, of a bond: what makes a strain of a cell weigh as much as moves of its atoms
LONGEST_MOVE = 0.1  # Å, of an atom in one of Newton's steps


class Equilibrium(NamedTuple):
    """A stationary point of the enthalpy. NaN where it was not reached."""

    position: Array  # [n_atoms, 3], in the coordinates of the energy; not yet strained
    strain: Array  # [3, 3], symmetric: displacements are (1 + strain) times those of the cell given
    enthalpy: Array  # eV, E + p V; the energy at no pressure
    max_force: Array  # eV/Å, the largest norm over atoms not held
    cell_force: Array  # eV, the largest of dH/d strain / n_atoms along `strains`; NaN where the cell is held
    overflow: Array  # bool, the neighbours' buffers ran out
    converged: Array  # bool


def cg(matvec: Callable, b, tolerance: float):
    """Conjugate gradients: for minima. A `solver`, as those below."""
    return linalg.cg(matvec, b, tol=tolerance)[0]


def gmres(matvec: Callable, b, tolerance: float):
    """Generalised minimal residuals, restarted after 60 directions: for saddle points."""
    n = ravel_pytree(b)[0].size
    return linalg.gmres(matvec, b, tol=tolerance, restart=min(n, 60), solve_method="batched")[0]


def dense(matvec: Callable, b, tolerance: float):
    """The whole matrix and its factors: for a few hundred unknowns, minima and saddle points alike."""
    del tolerance
    flat, unravel = ravel_pytree(b)
    matrix = jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
    return unravel(jnp.linalg.solve(0.5 * (matrix + matrix.T), flat))


def equilibrium(
    energy_fn: Callable,
    position,
    neighbors=None,
    *,
    params=None,
    region=None,
    box=None,
    held=None,
    strains=None,
    volume=None,
    pressure_GPa=0.0,
    translations: bool = True,
    rotations: bool = False,
    newton_steps: int = 10,
    force_tolerance: float = 1e-6,
    solver: Callable = cg,
    solver_tolerance: float | None = None,
) -> Equilibrium:
    """The structure at rest near `position`, differentiable in all that it depends on.

    Differentiable, forward and in reverse and again, in `params`, `region`,
    `box`, `volume`, `pressure_GPa` and the positions of held atoms; not in
    those of free ones, which the result does not depend on. A gradient costs
    one linear solve, some tens of forces of Hessian-vector products.

    Args:
        energy_fn: `energy_fn(R, neighbor=, params=, region=, box=,
            perturbation=)` in eV, from `mixture_neighbor_list`; a function of R
            alone will do where the others are not given.
        position: `[n_atoms, 3]`, nearly at rest; from `simulate.relax`.
        neighbors: of `position`, with `update`; updated here.
        params, region: default the builder's.
        box: Å, where the energy takes fractions of it. Derivatives of such positions
            are in Å, as jax-md's are: what the box makes of the same fractions is not in them.
        held: `[n_atoms]` bool, atoms that stay; default none.
        strains: `[n, 3, 3]`, independent and symmetric: ways in which the cell
            may strain, `ISOTROPIC_STRAIN`, `ANY_STRAIN`; default it is held.
        volume: Å^3 of the cell, where `strains` are given and `box` is not.
        pressure_GPa: of the surroundings.
        translations, rotations: whether the energy is indifferent to them. They
            are then left out: the structure given decides on them. Held atoms
            decide for themselves.
        newton_steps: at most so many, each one linear solve. With none the
            structure given must itself be at rest.
        force_tolerance: eV/Å, and eV for `cell_force`, positive: at rest is
            what feels no more. Errors of derivatives are of its relative size.
        solver: `(matvec, b, tolerance) -> x`, `cg`, `gmres` or `dense`.
        solver_tolerance: relative residual; default 1e-10, 1e-5 in float32. Where
            one is ten times as large, the derivative is NaN.

    Returns:
        The structure. Under jit positions, strain and enthalpy are NaN where
        it did not converge.

    Raises:
        ValueError: outside of jit, it did not converge; or an argument is out
            of range.

    An atom in a bowl about t, on a slope: it rests 1/2 from t, whatever t is.

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
    held = jnp.zeros(n_atoms, bool) if held is None else jnp.asarray(held)
    if held.shape != (n_atoms,) or held.dtype != bool:
        raise ValueError(f"held must be [{n_atoms}] booleans, got {held.dtype} {held.shape}.")
    if strains is not None:
        strains = _checked_strains(strains)
        if volume is None and box is None:
            raise ValueError("volume must be given where strains are and box is not (Å^3).")
    if box is not None:
        box = box_matrix(jnp.asarray(box, dtype))
        volume = jnp.abs(jnp.linalg.det(box))
    given = _Given(
        position,
        held,
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


class _Given(NamedTuple):
    """What a structure at rest depends on."""

    position: Array  # [n_atoms, 3]
    held: Array  # [n_atoms] bool
    neighbors: Any
    params: Any
    region: Any
    box: Array | None  # [3, 3] Å
    strains: Array | None  # [n, 3, 3]
    volume: Array | None  # Å^3
    pressure: Array  # eV/Å^3


class _Unknowns(NamedTuple):
    """From the structure given; Å, so that forces on all are alike."""

    move: Array  # [n_atoms, 3]
    stretch: Array | None  # [n], strains times LENGTH sqrt(n_atoms)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _equilibrium(
    energy_fn, invariant, newton_steps, solver, given: _Given, force_tolerance, solver_tolerance
) -> Equilibrium:
    dtype = given.position.dtype
    # Free atoms: where they start is where the search starts, and nothing more.
    start = jnp.where(given.held[:, None], given.position, jax.lax.stop_gradient(given.position))
    given = given._replace(position=start)
    z, neighbors, (max_force, cell_force) = _newton(
        energy_fn,
        invariant,
        newton_steps,
        solver,
        jax.lax.stop_gradient(given),
        force_tolerance,
        solver_tolerance,
    )
    given = given._replace(neighbors=neighbors)
    solve = partial(_checked_solve, solver, solver_tolerance)
    z = jax.lax.custom_root(partial(_condition, energy_fn, invariant, given), z, lambda _, z: z, solve)
    overflow = jnp.zeros((), bool) if neighbors is None else jnp.asarray(neighbors.did_buffer_overflow, bool)
    converged = (max_force <= force_tolerance) & ~overflow
    if z.stretch is not None:
        converged &= cell_force <= force_tolerance
    blank = jnp.where(converged, 0.0, jnp.nan).astype(dtype)
    position, strain = _structure(z, given)
    return Equilibrium(
        position + blank,
        strain + blank,
        _enthalpy(energy_fn, z, given) + blank,
        max_force,
        cell_force,
        overflow,
        converged,
    )


def _shift(fraction: Array, move: Array, box: Array) -> Array:
    return fraction + jnp.linalg.solve(box, move.T).T


def _structure(z: _Unknowns, given: _Given) -> tuple[Array, Array]:
    move = jnp.where(given.held[:, None], 0.0, z.move)
    position = (
        given.position + move
        if given.box is None
        else moved_fractions(_shift, given.position, move, given.box)
    )
    strain = jnp.zeros((3, 3), given.position.dtype)
    if z.stretch is not None and given.strains is not None:
        strain = jnp.tensordot(z.stretch, given.strains, 1) / (LENGTH * jnp.sqrt(1.0 * given.held.size))
    return position, strain


def _plain_enthalpy(energy_fn, z: _Unknowns, given: _Given) -> Array:
    position, strain = _structure(z, given)
    given_kwargs = {
        name: getattr(given, name) for name in ("params", "region", "box") if getattr(given, name) is not None
    }
    if given.neighbors is not None:
        given_kwargs["neighbor"] = given.neighbors
    if z.stretch is None or given.volume is None:
        return jnp.sum(energy_fn(position, **given_kwargs))
    F = jnp.eye(3, dtype=position.dtype) + strain
    return jnp.sum(
        energy_fn(position, perturbation=F, **given_kwargs)
    ) + given.pressure * given.volume * jnp.linalg.det(F)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _enthalpy(energy_fn, z: _Unknowns, given: _Given) -> Array:
    """At rest: to first order no function of z."""
    return _plain_enthalpy(energy_fn, z, given)


@_enthalpy.defjvp
def _enthalpy_jvp(energy_fn, primals, tangents):
    z, given = primals
    return jax.jvp(lambda given: _plain_enthalpy(energy_fn, z, given), (given,), (tangents[1],))


def _slope(energy_fn, z: _Unknowns, given: _Given) -> _Unknowns:
    """dH/dz, eV/Å."""
    return jax.grad(_plain_enthalpy, argnums=1)(energy_fn, z, given)


def _condition(energy_fn, invariant, given: _Given, z: _Unknowns) -> _Unknowns:
    """Zero at rest, and there alone: atoms that are held do not move, nor do all of them together."""
    return _balanced(invariant, given, z, _slope(energy_fn, z, given))


def _balanced(invariant, given: _Given, z: _Unknowns, slope: _Unknowns) -> _Unknowns:
    free = ~given.held[:, None]
    together = _together(z.move, jax.lax.stop_gradient(given), *invariant)
    return slope._replace(move=jnp.where(free, slope.move, z.move) + together)


def _together(move: Array, given: _Given, translations: bool, rotations: bool) -> Array:
    """The part of a move that is one of all atoms, in which the structure does not change."""
    anyone_held = jnp.any(given.held)
    part = jnp.zeros_like(move)
    if translations:
        part += jnp.mean(move, axis=0, keepdims=True)
    if rotations:
        place = given.position if given.box is None else given.position @ given.box.T
        place = place - jnp.mean(place, axis=0, keepdims=True)
        turns = jnp.stack(
            [jnp.cross(axis, place) for axis in jnp.eye(3, dtype=move.dtype)]
        )  # [3, n_atoms, 3]
        gram = jnp.einsum("aij,bij->ab", turns, turns)
        # A straight molecule has two turns, not three.
        along = jnp.linalg.pinv(gram, rtol=1e-6, hermitian=True) @ jnp.einsum("aij,ij->a", turns, move)
        part += jnp.tensordot(along, turns, 1)
    return jnp.where(anyone_held, 0.0, part)


def _newton(
    energy_fn, invariant, n_steps, solver, given: _Given, force_tolerance, solver_tolerance
) -> tuple[_Unknowns, Any, tuple]:
    """Steps of Newton's towards the stationary point that is near.

    Returns where they end, with neighbours and largest forces there.
    """
    n = None if given.strains is None else given.strains.shape[0]
    z = _Unknowns(jnp.zeros_like(given.position), None if n is None else jnp.zeros(n, given.position.dtype))

    def updated(z: _Unknowns, neighbors):
        if neighbors is None:
            return None
        position, strain = _structure(z, given)
        kwargs = {
            name: getattr(given, name) for name in ("region", "box") if getattr(given, name) is not None
        }
        if z.stretch is not None:
            kwargs["perturbation"] = jnp.eye(3, dtype=position.dtype) + strain
        return neighbors.update(position, **kwargs)

    def more(carry):
        *_, moving = carry
        return moving

    def step(carry):
        z, neighbors, k, _, _ = carry
        neighbors = updated(z, neighbors)
        here = given._replace(neighbors=neighbors)

        def condition(z):
            slope = _slope(energy_fn, z, here)
            return _balanced(invariant, here, z, slope), slope

        at, matvec, slope = jax.linearize(condition, z, has_aux=True)
        forces = _largest(slope, here)
        moving = (k < n_steps) & ((forces[0] > force_tolerance) | (forces[1] > force_tolerance))
        wanted = solver(matvec, jax.tree.map(lambda x: jnp.where(moving, x, 0.0), at), solver_tolerance)
        longest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(wanted)]))
        part = jnp.where(moving, LONGEST_MOVE / jnp.maximum(longest, LONGEST_MOVE), 0.0)
        return (
            jax.tree.map(lambda a, b: jnp.where(moving, a - part * b, a), z, wanted),
            neighbors,
            k + 1,
            forces,
            moving,
        )

    nothing = jnp.full((), jnp.nan, given.position.dtype)
    start = (z, given.neighbors, jnp.zeros((), jnp.int32), (nothing, nothing), jnp.ones((), bool))
    z, neighbors, _, forces, _ = jax.lax.while_loop(more, step, start)
    return z, neighbors, forces


def _largest(slope: _Unknowns, given: _Given) -> tuple[Array, Array]:
    """eV/Å on an atom that is free, and eV on the cell; NaN where it is held."""
    free = jnp.sqrt(jnp.max(jnp.where(given.held, 0.0, jnp.sum(slope.move**2, axis=1))))
    if slope.stretch is None:
        return free, jnp.full((), jnp.nan, free.dtype)
    return free, LENGTH * jnp.max(jnp.abs(slope.stretch)) / jnp.sqrt(1.0 * given.held.size).astype(free.dtype)


def _checked_solve(solver, tolerance, matvec: Callable, b):
    """matvec(x) = b, symmetric; NaN where the residual is too large to go on with."""

    flat, unravel = ravel_pytree(
        b
    )  # in one piece: what does not feel the change is zero, and still part of it

    def product(v):
        return ravel_pytree(matvec(unravel(v)))[0]

    def solve(product, flat):
        x = ravel_pytree(solver(lambda z: unravel(product(ravel_pytree(z)[0])), unravel(flat), tolerance))[0]
        small = jnp.linalg.norm(flat - product(x)) <= 10 * tolerance * jnp.linalg.norm(flat)
        return x + jnp.where(small, 0.0, jnp.nan).astype(x.dtype)

    return unravel(jax.lax.custom_linear_solve(product, flat, solve, solve, symmetric=True))


def _refuse(found: Equilibrium, force_tolerance: float, newton_steps: int) -> None:
    if bool(found.overflow):
        raise ValueError(
            "neighbors must have room for the structure, "
            "but their buffers overflowed: allocate them again at `position`."
        )
    cell = "" if np.isnan(found.cell_force) else f" and {float(found.cell_force):.3g} eV on the cell"
    raise ValueError(
        f"position must be at rest: after at most newton_steps = {newton_steps} the largest force must "
        f"not exceed force_tolerance = {force_tolerance} eV/Å, got {float(found.max_force):.3g} eV/Å{cell}. "
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
