"""Phonon frequencies of a perfect crystal under one expert.

With the force constants Phi_0j = d2E_total / du_0 du_j of a supercell, for each atom 0 of a primitive
cell, phonopy computes the frequencies of a wave. The force constants are exact second derivatives, by
automatic differentiation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.dft.kpoints import BandPath
from ase.geometry import minkowski_reduce
from jaxtyping import Float

from moe_md.analysis.strained_cell import check_crystal
from moe_md.checks import check_value
from moe_md.experts.base import Expert, Params
from moe_md.neighbors.rows import Neighborhood, rows_from_images


class Phonons(NamedTuple):
    """Frequencies along a path of wave vectors."""

    distance: Float[np.ndarray, " n_q"]  # 1/Å, path length from its start, 2 pi included; no gaps
    labels: tuple[str, ...]  # names of the corners of the path, "U|X" where it goes on at another point
    ticks: tuple[int, ...]  # index of each corner in n_q
    q_points: Float[np.ndarray, "n_q 3"]  # fractions of the reciprocal vectors of the cell
    frequencies_THz: Float[np.ndarray, "n_q branches"]  # 3 n_atoms, ascending; negative where imaginary


def phonons(
    expert: Expert,
    params: Params,
    atoms: Atoms,
    *,
    path: BandPath | None = None,
    n_points: int = 101,
    repeat: tuple[int, int, int] | None = None,
) -> Phonons:
    """Phonon frequencies of a crystal along a path of wave vectors.

    The force constants Phi_0j of a supercell are exact, by automatic
    differentiation; phonopy computes the frequencies from them. Two atoms interact
    up to twice the cutoff, as neighbours of a third atom. In a supercell wide
    enough for that, the frequencies are those of the infinite crystal at every wave
    vector. In a smaller one they are exact only at commensurate wave vectors and
    interpolated in between.

    Args:
        expert: the potential.
        params: its parameters.
        atoms: a primitive cell of the crystal at equilibrium, periodic in all directions.
        path: wave vectors, in fractions of the reciprocal vectors; default ASE's path for the lattice of
            the cell, `atoms.cell.bandpath(npoints=n_points)`. To compare two experts, give both one path.
        n_points: wave vectors of the default path.
        repeat: cells along each axis of the supercell; default so many that its shortest translation is
            four cutoffs long, times `num_hops` where the expert passes messages.

    Returns:
        Frequencies, computed in float64 with ASE's masses, or those of `atoms`.

    Raises:
        ValueError: atoms are not periodic or of a species unknown to the expert, or an argument is out
            of range.
        ImportError: phonopy is not installed.

    Source:
        A. Togo, J. Phys. Soc. Jpn. 92, 012001 (2023), doi:10.7566/JPSJ.92.012001.
    """
    check_crystal(expert, atoms)
    check_value("n_points", n_points, int)
    if n_points < 2:
        raise ValueError(f"n_points must be at least 2, got {n_points}.")
    if repeat is None:
        repeat = _wide_enough(atoms.cell.array, 4 * expert.num_hops * expert.cutoff)
    for count in repeat:
        check_value("repeat", count, int)
    if len(repeat) != 3 or min(repeat) < 1:
        raise ValueError(f"repeat must be three numbers of at least 1, got {repeat}.")
    Phonopy, PhonopyAtoms = import_phonopy()
    unit = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        scaled_positions=atoms.get_scaled_positions(),
        cell=atoms.cell.array,
        masses=atoms.get_masses(),
    )
    crystal = Phonopy(unit, np.diag(repeat), primitive_matrix=np.eye(3), is_symmetry=False)
    # [n_atoms, supercell, 3, 3]
    crystal.force_constants = _force_constants(expert, params, crystal.supercell, crystal.primitive.p2s_map)
    if path is None:
        path = atoms.cell.bandpath(npoints=n_points)
    crystal.run_qpoints(path.kpts)
    frequencies = np.asarray(crystal.get_qpoints_dict()["frequencies"])
    return Phonons(*_axis(path, atoms), np.asarray(path.kpts), frequencies)


def _wide_enough(cell: np.ndarray, length: float) -> tuple[int, int, int]:
    """Smallest repeats of a cell whose supercell has no translation shorter than a length, Å."""
    repeat = np.ones(3, int)
    edges = np.linalg.norm(cell, axis=1)
    while np.linalg.norm(minkowski_reduce(repeat[:, None] * cell)[0], axis=1).min() < length - 1e-9:
        repeat[np.argmin(repeat * edges)] += 1
    a, b, c = repeat.tolist()
    return a, b, c


def _force_constants(expert: Expert, params: Params, supercell, first) -> np.ndarray:
    """Second derivatives of the energy in the positions of some atoms and of all, eV/Å^2.

    Args:
        expert, params: the potential.
        supercell: phonopy's.
        first: m of its atoms.

    Returns:
        `[m, n_atoms, 3, 3]`.
    """
    species = np.array([expert.species.index(symbol) for symbol in supercell.symbols])
    rows = rows_from_images(supercell.positions, species, supercell.cell, (True,) * 3, expert.cutoff)
    n_atoms, centers = len(species), []
    for atom in first:  # only rows that contain an atom depend on its position
        is_near = (np.arange(n_atoms) == atom) | (rows.neighbor == atom).any(axis=1)
        centers.append(np.flatnonzero(is_near if expert.num_hops == 1 else np.ones(n_atoms)))
    size = max(map(len, centers))
    constants = np.empty((len(centers), n_atoms, 3, 3))
    with jax.enable_x64(True):
        for k, (atom, found) in enumerate(zip(first, centers)):
            # All with as many rows, for one compiled program; those added do not count.
            padded = np.concatenate([found, np.full(size - len(found), found[0])])
            near, counts = Neighborhood(*(leaf[padded] for leaf in rows)), np.arange(size) < len(found)
            for axis in range(3):
                direction = np.zeros((n_atoms, 3))
                direction[atom, axis] = 1.0
                derivative = _force_derivative(
                    expert.atom_energies, params, near, padded, counts, jnp.asarray(direction)
                )
                constants[k, :, axis] = derivative
    return constants


@partial(jax.jit, static_argnums=0)
def _force_derivative(atom_energies: Callable, params, rows, centers, counts, direction):
    """Derivative of the energy's gradient along a displacement of atoms, `[n_atoms, 3]` eV/Å^2."""

    def energy(u):
        shift = u[jnp.where(rows.mask, rows.neighbor, 0)] - u[centers][:, None]
        moved = jnp.where(rows.mask[..., None], rows.displacement + shift, 1.0)
        energies = atom_energies(params, rows._replace(displacement=moved))
        return jnp.sum(jnp.where(counts, energies, 0.0))

    return jax.jvp(jax.grad(energy), (jnp.zeros_like(direction),), (direction,))[1]


def _axis(path: BandPath, atoms: Atoms) -> tuple[np.ndarray, tuple[str, ...], tuple[int, ...]]:
    """Path lengths in the reciprocal cell of `atoms`, 1/Å; labels and indices of the corners."""
    own = BandPath(atoms.cell, path.kpts, path.special_points, path.path)
    distance, ticks, names = own.get_linear_kpoint_axis()
    labels: dict[int, str] = {}
    for where, name in zip(ticks, names):
        index = int(np.argmin(np.abs(distance - where)))
        name = "Γ" if name == "G" else name
        labels[index] = f"{labels[index]}|{name}" if index in labels else name
    return np.asarray(distance), tuple(labels.values()), tuple(labels)


def import_phonopy() -> tuple[Any, Any]:
    """Phonopy and PhonopyAtoms; raises `ImportError` with the extra to install where phonopy is missing."""
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError as error:
        raise ImportError("phonons need phonopy: pip install 'moe_md[validate]'.") from error
    return Phonopy, PhonopyAtoms
