"""Energy of a periodic cell as a function of a deformation F and of displacements u of its atoms.

Rows of the cell are listed once; every displacement D_ik becomes F (D_ik + u_k - u_i). Derivatives are
exact, by automatic differentiation, in float64. One compiled program gives the energy, its gradient and
the derivative of the gradient along a direction, which is all that a minimisation and elastic constants
need.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, minres

from moe_md.experts.base import Expert, Params
from moe_md.neighbors.rows import Neighborhood, image_pairs, rows_from_images

SLOTS = 32  # neighbour slots are a multiple of it: cells of almost equal size share a compiled program
FORCE_TOLERANCE = 1e-6  # eV/Å, largest gradient component of a minimum
ROUGH_TOLERANCE = 1e-4  # eV/Å, where Newton's method takes over from the trust-region method
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # xx yy zz yz xz xy
_UNIT = np.eye(3)
# Symmetric strains [6, 3, 3], one for each Voigt component; engineering strains of 1 for shear.
STRAINS = np.array([(np.outer(_UNIT[i], _UNIT[j]) + np.outer(_UNIT[j], _UNIT[i])) / 2 for i, j in VOIGT])
NO_STRAINS = STRAINS[:0]


class StrainedCell(NamedTuple):
    """A cell whose lattice vectors and atoms may be displaced."""

    atom_energies: Callable  # of the expert
    params: Params
    rows: Neighborhood  # of all atoms of the cell
    volume: float  # Å^3, undeformed


class CellDerivatives(NamedTuple):
    """Derivatives of the energy of a cell at F, u, and of its gradient along a direction."""

    energy: float  # eV
    by_F: Float[np.ndarray, "3 3"]  # dE/dF, eV
    by_u: Float[np.ndarray, "atoms 3"]  # dE/du, eV/Å
    along_F: Float[np.ndarray, "3 3"]  # change of dE/dF along the direction
    along_u: Float[np.ndarray, "atoms 3"]  # change of dE/du along the direction


def check_crystal(expert: Expert, atoms: Atoms) -> None:
    """Raise `ValueError` unless atoms are periodic in all directions and of the expert's species."""
    if len(atoms) == 0 or not np.all(atoms.pbc) or abs(atoms.cell.volume) < 1e-6:
        raise ValueError(
            "atoms must be a crystal, periodic in all directions, "
            f"got {atoms.symbols} with pbc {atoms.pbc.tolist()}: set pbc=True and three cell vectors."
        )
    unknown = sorted(set(atoms.get_chemical_symbols()) - set(expert.species))
    if unknown:
        raise ValueError(
            f"atoms must be of the expert's species {expert.species}, got {', '.join(unknown)}:"
            " choose another crystal, or train an expert with these species."
        )


def strained_cell(expert: Expert, params: Params, atoms: Atoms, smallest_scale: float) -> StrainedCell:
    """The cell of a crystal.

    Args:
        expert: the potential.
        params: its parameters.
        atoms: periodic in all directions, of the expert's species.
        smallest_scale: neighbours are listed for deformations that keep all lengths above this share.
    """
    symbols, cell = atoms.get_chemical_symbols(), atoms.cell.array
    species = np.array([expert.species.index(symbol) for symbol in symbols])
    cutoff = expert.cutoff / smallest_scale
    pairs = image_pairs(atoms.positions, cell, atoms.pbc, cutoff)
    most = np.bincount(pairs[0], minlength=1).max(initial=1)
    slots = SLOTS * int(np.ceil(most / SLOTS))
    rows = rows_from_images(
        atoms.positions, species, cell, atoms.pbc, cutoff, max_neighbors=slots, pairs=pairs
    )
    with jax.enable_x64(True):
        rows, params = jax.tree.map(jnp.asarray, (rows, params))
    return StrainedCell(expert.atom_energies, params, rows, float(abs(atoms.cell.volume)))


def derivatives(cell: StrainedCell, F, u, dF=None, du=None) -> CellDerivatives:
    """Energy of a deformed cell, its gradient, and the change of the gradient along (dF, du).

    Args:
        cell: of n atoms.
        F: `[3, 3]`, deformation.
        u: `[n, 3]` Å, displacements before the deformation.
        dF, du: direction; default zero.
    """
    direction = (np.zeros((3, 3)) if dF is None else dF, np.zeros_like(u) if du is None else du)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x, float) for x in (F, u, *direction)]
        energy, first, second = jax.device_get(
            _derivatives(cell.atom_energies, cell.params, cell.rows, *arrays)
        )
    return CellDerivatives(float(energy), *first, *second)


@partial(jax.jit, static_argnums=0)
def _derivatives(atom_energies, params, rows, F, u, dF, du):
    def energy(F, u):
        shift = u[jnp.where(rows.mask, rows.neighbor, 0)] - u[:, None]
        moved = jnp.where(rows.mask[..., None], (rows.displacement + shift) @ F.T, 1.0)
        return jnp.sum(atom_energies(params, rows._replace(displacement=moved)))

    value_and_grad = jax.value_and_grad(energy, argnums=(0, 1))
    (value, first), (_, second) = jax.jvp(value_and_grad, (F, u), (dF, du))
    return value, first, second


def minimise(
    cell: StrainedCell, F: np.ndarray, u: np.ndarray, strains: np.ndarray, window: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Deformation and displacements of lowest energy, by Newton's method within a trust region.

    The gradient of a symmetric structure is symmetric, and so are the steps: symmetry is kept to rounding.

    Args:
        cell: of n atoms.
        F, u: where to start.
        strains: `[m, 3, 3]`, strains that are applied after F; `NO_STRAINS` for a fixed cell.
        window: deformations keep all relative lengths within these two.

    Returns:
        F, u, and the largest component of the gradient there, eV/Å; strains count as displacements of
        neighbours. It is above `FORCE_TOLERANCE` where no minimum was found.
    """
    length = np.sqrt(len(u)) * (cell.volume / len(u)) ** (1 / 3)  # Å, makes strains displacements
    problem = _Problem(cell, F, u, strains / length, window)
    x = np.zeros(len(strains) + u.size)
    gradient = problem.energy_and_gradient(x)[1]
    if np.abs(gradient).max() > ROUGH_TOLERANCE:
        x = minimize(
            problem.energy_and_gradient,
            x,
            jac=True,
            hessp=problem.hessian_product,
            method="trust-ncg",
            options=dict(initial_trust_radius=0.1, max_trust_radius=0.5, gtol=ROUGH_TOLERANCE, maxiter=100),
        ).x
        gradient = problem.energy_and_gradient(x)[1]
    for _ in range(4):  # quadratic: from 1e-4 to rounding in two or three
        worst = np.abs(gradient).max()
        if worst < 1e-4 * FORCE_TOLERANCE or worst > 100 * ROUGH_TOLERANCE:
            break
        moved = x - solve(lambda p, x=x: problem.hessian_product(x, p), gradient)
        new = problem.energy_and_gradient(moved)[1]
        if np.abs(new).max() >= worst:
            break
        x, gradient = moved, new
    return *problem.unpack(x), float(np.abs(gradient).max())


def solve(hessian_product: Callable, gradient: np.ndarray) -> np.ndarray:
    """Hessian^-1 gradient, where the Hessian may be indefinite."""
    return minres(_Hessian(hessian_product, gradient.size), gradient, rtol=1e-11)[0]


class _Hessian(LinearOperator):
    """A Hessian of which only products with vectors are known."""

    def __init__(self, product: Callable, size: int):
        super().__init__(np.dtype(float), (size, size))
        self.product = product

    def _matvec(self, x):
        return self.product(x)


class _Problem:
    """A minimisation in one vector x: strains, in units of length, and displacements."""

    def __init__(self, cell: StrainedCell, F, u, strains, window: Sequence[float]):
        self.cell, self.F, self.u, self.window = cell, F, u, window
        self.directions = strains @ F  # [m, 3, 3], of F

    def unpack(self, x) -> tuple[np.ndarray, np.ndarray]:
        dF, du = self._split(x)
        return self.F + dF, self.u + du

    def energy_and_gradient(self, x) -> tuple[float, np.ndarray]:
        F, u = self.unpack(x)
        if not inside(F, self.window):
            return np.inf, np.zeros_like(x)
        found = derivatives(self.cell, F, u)
        return found.energy, self._gradient(found.by_F, found.by_u)

    def hessian_product(self, x, p) -> np.ndarray:
        dF, du = self._split(np.asarray(p).ravel())
        found = derivatives(self.cell, *self.unpack(x), dF, du)
        # Translations cost no energy: a stiffness of 1 eV/Å^2 for them makes the Hessian invertible.
        return self._gradient(found.along_F, found.along_u + du.mean(axis=0, keepdims=True))

    def _split(self, x) -> tuple[np.ndarray, np.ndarray]:
        m = len(self.directions)
        return np.tensordot(x[:m], self.directions, 1), x[m:].reshape(-1, 3)

    def _gradient(self, by_F, by_u) -> np.ndarray:
        return np.concatenate([np.tensordot(self.directions, by_F, 2), by_u.ravel()])


def inside(F: np.ndarray, window: Sequence[float]) -> bool:
    """Whether a deformation keeps all relative lengths within a window."""
    stretches = np.linalg.svd(F, compute_uv=False)
    return bool(window[0] <= stretches.min() and stretches.max() <= window[1])
