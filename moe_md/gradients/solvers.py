"""Linear solvers for implicit derivatives: `(matvec, b, tolerance) -> x` of pytrees."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse import linalg
from jax.typing import ArrayLike
from jaxtyping import Float

Tree = TypeVar("Tree")  # a pytree of arrays


def cg(matvec: Callable, b: Tree, tolerance: Float[ArrayLike, ""]) -> Tree:
    """Conjugate gradients: for minima."""
    return linalg.cg(matvec, b, tol=tolerance)[0]


def gmres(matvec: Callable, b: Tree, tolerance: Float[ArrayLike, ""]) -> Tree:
    """Generalised minimal residuals, restarted after 60 directions: for saddle points."""
    n = ravel_pytree(b)[0].size
    return linalg.gmres(matvec, b, tol=tolerance, restart=min(n, 60), solve_method="batched")[0]


def dense(matvec: Callable, b: Tree, tolerance: Float[ArrayLike, ""]) -> Tree:
    """The full matrix, factorised: for a few hundred unknowns, minima and saddle points."""
    del tolerance
    flat, unravel = ravel_pytree(b)
    matrix = jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
    return unravel(jnp.linalg.solve(0.5 * (matrix + matrix.T), flat))


def checked_solve(solver: Callable, tolerance: Float[ArrayLike, ""], matvec: Callable, b: Tree) -> Tree:
    """Solve `matvec(x) = b`, symmetric; NaN where the residual exceeds ten times the tolerance."""

    # One vector: parts of `b` that do not depend on a change are zero in it.
    flat, unravel = ravel_pytree(b)

    def product(v):
        return ravel_pytree(matvec(unravel(v)))[0]

    def solve(product, flat):
        x = ravel_pytree(solver(lambda z: unravel(product(ravel_pytree(z)[0])), unravel(flat), tolerance))[0]
        small = jnp.linalg.norm(flat - product(x)) <= 10 * tolerance * jnp.linalg.norm(flat)
        return x + jnp.where(small, 0.0, jnp.nan).astype(x.dtype)

    return unravel(jax.lax.custom_linear_solve(product, flat, solve, solve, symmetric=True))
