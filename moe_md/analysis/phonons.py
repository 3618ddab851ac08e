"""Phonon frequencies of a perfect fcc crystal under one expert.

With the force constants Phi_0j = d2E_total / du_0 du_j of a supercell phonopy
computes the frequencies of a wave. The force constants are exact second
derivatives, by automatic differentiation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk
from ase.data import atomic_masses, atomic_numbers
from jaxtyping import Float

from moe_md.analysis.bulk import check_symbol
from moe_md.checks import check_positive, check_value
from moe_md.experts.base import Expert, Params
from moe_md.neighbors.rows import Neighborhood, rows_from_images

# The path Γ-X, X-K-Γ (straight along (1, 1, 0)), Γ-L, in fractions of the primitive reciprocal
# vectors. X is reached at (1, 0, 0) and left from the equivalent point (1, 1, 0).
_GAMMA, _K, _L = (0.0, 0.0, 0.0), (0.375, 0.375, 0.75), (0.5, 0.5, 0.5)
_PATH = (
    (_GAMMA, (0.0, 0.5, 0.5)),
    ((0.5, 0.5, 1.0), _K),
    (_K, _GAMMA),
    (_GAMMA, _L),
)
PATH_LABELS = ("Γ", "X", "K", "Γ", "L")


class Phonons(NamedTuple):
    """Frequencies along Γ-X-K-Γ-L."""

    distance: Float[np.ndarray, " n_q"]  # 1/Å, path length from Γ, 2 pi included
    labels: tuple[str, ...]  # names of the corners of the path
    ticks: tuple[int, ...]  # index of each corner in n_q
    q_points: Float[np.ndarray, "n_q 3"]  # fractions of the primitive reciprocal vectors
    frequencies_THz: Float[np.ndarray, "n_q 3"]  # ascending; an imaginary frequency is given as negative


def phonons(
    expert: Expert,
    params: Params,
    symbol: str = "Pt",
    *,
    lattice_constant: float,
    repeat: int | None = None,
    n_points: int = 21,
) -> Phonons:
    """Phonon frequencies of an fcc crystal, along Γ-X-K-Γ-L.

    The force constants Phi_0j of a supercell are exact, by automatic
    differentiation; phonopy computes the frequencies from them. Two atoms interact
    up to twice the cutoff, as neighbours of a third atom. In a supercell wide
    enough for that, the frequencies are those of the infinite crystal at every wave
    vector. In a smaller one they are exact only at commensurate wave vectors (X and
    L for an even `repeat`, K for a multiple of 8) and interpolated in between.

    Args:
        expert: the potential.
        params: its parameters.
        symbol: an element of `expert.species`.
        lattice_constant: Å.
        repeat: primitive cells along each axis of the supercell; default the
            smallest that is wide enough, 4 sqrt(2) cutoff / lattice_constant, times
            `num_hops` where the expert passes messages.
        n_points: points on each of the four segments, both ends included.

    Returns:
        Frequencies at `n_q = 4 (n_points - 1) + 1` wave vectors, computed in the default float dtype.

    Raises:
        ValueError: the element is not in `expert.species`, or an argument is out
            of range.
        ImportError: phonopy is not installed.

    Source:
        A. Togo, J. Phys. Soc. Jpn. 92, 012001 (2023), doi:10.7566/JPSJ.92.012001.
    """
    check_symbol(expert, symbol)
    check_positive("lattice_constant", lattice_constant)
    if repeat is None:
        repeat = int(np.ceil(4 * np.sqrt(2) * expert.num_hops * expert.cutoff / lattice_constant))
    check_value("repeat", repeat, int)
    check_value("n_points", n_points, int)
    if repeat < 1 or n_points < 2:
        raise ValueError(f"repeat must be at least 1 and n_points at least 2, got {repeat} and {n_points}.")
    Phonopy, PhonopyAtoms = import_phonopy()
    cell = bulk(symbol, "fcc", a=lattice_constant).cell.array
    mass = atomic_masses[atomic_numbers[symbol]]
    unit = PhonopyAtoms(symbols=[symbol], scaled_positions=[[0, 0, 0]], cell=cell, masses=[mass])
    crystal = Phonopy(unit, np.diag([repeat] * 3), primitive_matrix=np.eye(3), is_symmetry=False)
    supercell = crystal.supercell
    constants = _force_constants(expert, params, symbol, supercell.positions, supercell.cell)
    crystal.force_constants = np.ascontiguousarray(constants[None])  # [1, n_atoms, 3, 3]
    q, ticks = _path(n_points)
    crystal.run_qpoints(q)
    frequencies = np.asarray(crystal.get_qpoints_dict()["frequencies"])
    step = np.linalg.norm(np.diff(q, axis=0) @ (2 * np.pi * np.linalg.inv(cell).T), axis=1)
    step[ticks[1]] = np.linalg.norm((q[ticks[1] + 1] - _PATH[1][0]) @ (2 * np.pi * np.linalg.inv(cell).T))
    return Phonons(np.concatenate([[0.0], np.cumsum(step)]), PATH_LABELS, ticks, q, frequencies)


def _force_constants(expert: Expert, params: Params, symbol: str, position, cell) -> np.ndarray:
    """Phi_0j of a supercell, `[n_atoms, 3, 3]` eV/Å^2: second derivatives of the energy in u_0 and u_j."""
    n_atoms = len(position)
    species = np.full(n_atoms, expert.species.index(symbol))
    rows = rows_from_images(position, species, cell, (True, True, True), expert.cutoff)
    centers = np.arange(n_atoms)
    if expert.num_hops == 1:  # only rows that contain atom 0 depend on its position
        centers = np.flatnonzero((centers == 0) | (rows.neighbor == 0).any(axis=1))
        rows = Neighborhood(*(leaf[centers] for leaf in rows))

    @jax.jit
    def force_derivative(params, rows, centers, direction):
        def energy(u):
            shift = u[jnp.where(rows.mask, rows.neighbor, 0)] - u[centers][:, None]
            moved = jnp.where(rows.mask[..., None], rows.displacement + shift, 1.0)
            return jnp.sum(expert.atom_energies(params, rows._replace(displacement=moved)))

        no_shift = jnp.zeros((n_atoms, 3))
        return jax.jvp(jax.grad(energy), (no_shift,), (no_shift.at[0].set(direction),))[1]

    # Derivatives of the gradient along the three components of u_0.
    constants = [np.asarray(force_derivative(params, rows, centers, e), float) for e in np.eye(3)]
    return np.stack(constants, axis=1)


def _path(n_points: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Wave vectors `[n_q, 3]` of the path and the indices of its corners; X is listed once."""
    segments = [np.linspace(start, end, n_points) for start, end in _PATH]
    q = np.concatenate([segments[0], *(segment[1:] for segment in segments[1:])])
    return q, tuple(k * (n_points - 1) for k in range(len(_PATH) + 1))


def import_phonopy() -> tuple[Any, Any]:
    """Phonopy and PhonopyAtoms; raises `ImportError` with the extra to install where phonopy is missing."""
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError as error:
        raise ImportError("phonons need phonopy: pip install 'moe_md[validate]'.") from error
    return Phonopy, PhonopyAtoms
