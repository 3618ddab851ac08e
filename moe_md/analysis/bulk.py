"""Equilibrium, equation of state and elastic constants of a perfect crystal under one expert.

Let a deformation F map every displacement d of a cell to F d, let u be displacements of its atoms,
E(F, u) its energy and V its volume. Then

    P = -dE/dV,    stress = (1/V) dE/dF F^T,    C = d stress / d strain.

Atoms move within the cell when it is strained. With forces zero, and H = d2E/du du,

    C_relaxed = C_clamped - (1/V) d2E/de du  H^-1  d2E/du de

for strains e, translations left out (Wallace, Thermodynamics of Crystals (1972), ch. 2; Wu, Vanderbilt and
Hamann, Phys. Rev. B 72, 035105 (2005)). All derivatives are exact, by automatic differentiation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from jaxtyping import Float, Real

from moe_md import units
from moe_md.analysis.strained_cell import (
    FORCE_TOLERANCE,
    NO_STRAINS,
    STRAINS,
    VOIGT,
    StrainedCell,
    check_crystal,
    derivatives,
    inside,
    minimise,
    solve,
    strained_cell,
)
from moe_md.experts.base import Expert, Params
from moe_md.renamed import missing_attribute

WINDOW = 0.15  # default range of relative lengths about the given cell, in which a minimum is searched
LARGE_WINDOW = (0.01, 100.0)  # of relative lengths, no limit


class Crystal(NamedTuple):
    """A crystal at zero pressure."""

    atoms: Atoms  # the relaxed cell
    energy: float  # eV per atom
    volume: float  # Å^3 per atom
    bulk_modulus_GPa: float  # of an isotropic strain, internal coordinates relaxed


class Elastic(NamedTuple):
    """Elastic constants, GPa, in the axes of the cell. Voigt order: xx yy zz yz xz xy."""

    relaxed: Float[np.ndarray, "6 6"]  # internal coordinates relaxed, as measured
    clamped: Float[np.ndarray, "6 6"]  # internal coordinates strained with the cell
    bulk_modulus: float  # of an isotropic strain, internal coordinates relaxed


def relax_crystal(expert: Expert, params: Params, atoms: Atoms, *, window: float = WINDOW) -> Crystal:
    """Relax shape and volume of a crystal's cell, and its atoms, at zero pressure.

    Args:
        expert: the potential.
        params: its parameters.
        atoms: a cell of the crystal, periodic in all directions; one near equilibrium is enough.
        window: all lengths stay within `1 - window` and `1 + window` times what they were.

    Returns:
        The crystal, computed in float64. Its cell is symmetrically strained, not rotated; the order of
        atoms is kept, and so is the symmetry of the given structure, to rounding.

    Raises:
        ValueError: atoms are not periodic or of a species unknown to the expert, or the energy has no
            minimum inside the window.

    >>> from ase.build import bulk
    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> crystal = relax_crystal(expert, expert.init(None), bulk("Ar", "fcc", a=5.2))
    >>> round((4 * crystal.volume) ** (1 / 3), 1)
    5.3
    """
    check_crystal(expert, atoms)
    if not 0 < window < 1:
        raise ValueError(f"window must be in (0, 1), got {window}.")
    limits = (1 - window, 1 + window)
    given, atoms = atoms.cell.array, atoms.copy()
    atoms.set_constraint()
    cell = strained_cell(expert, params, atoms, limits[0])
    F, u = _best_scale(cell, atoms, window) * np.eye(3), np.zeros((len(atoms), 3))
    for _ in range(6):
        F, u, worst = minimise(cell, F, u, STRAINS, limits)
        atoms.set_cell(atoms.cell.array @ F.T)
        atoms.positions = (atoms.positions + u) @ F.T
        total = np.linalg.solve(given, atoms.cell.array).T
        if worst > FORCE_TOLERANCE or not inside(total, limits):
            break
        # Atoms that moved far may have neighbours that were not listed.
        cell, F, u = strained_cell(expert, params, atoms, limits[0]), np.eye(3), np.zeros_like(u)
        here = derivatives(cell, F, u)
        if max(np.abs(here.by_F).max() / cell.volume ** (1 / 3), np.abs(here.by_u).max()) < FORCE_TOLERANCE:
            modulus = _bulk_modulus(cell, F, u)
            return Crystal(atoms, here.energy / len(atoms), cell.volume / len(atoms), modulus)
    raise ValueError(
        f"atoms must lie near a minimum of the energy, got {atoms.symbols}: with lengths {limits[0]:.3g} to"
        f" {limits[1]:.3g} times those given none was found. Give a cell nearer to equilibrium, or a larger"
        f" window than {window:g}."
    )


def equation_of_state(
    expert: Expert, params: Params, atoms: Atoms, *, strains: Sequence | Real[np.ndarray, " n"]
) -> dict[str, list[float]]:
    """Energy and pressure of a crystal as functions of its volume.

    Args:
        expert: the potential.
        params: its parameters.
        atoms: a cell of the crystal, periodic in all directions.
        strains: relative changes of all lengths, one or more, above -1; results are in their order.

    Returns:
        Lists as long as `strains`: `volume_A3_per_atom`, `energy_eV_per_atom` and `pressure_GPa`, the
        negative mean of the three normal stresses. Internal coordinates are relaxed at each volume.
        Computed in float64.

    Raises:
        ValueError: atoms are not periodic or of a species unknown to the expert, a strain is not above -1,
            there is none, or internal coordinates have no minimum.

    >>> from ase.build import bulk
    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> curve = equation_of_state(expert, expert.init(None), bulk("Ar", a=5.3), strains=[-0.05, 0.05])
    >>> [p > 0 for p in curve["pressure_GPa"]]
    [True, False]
    """
    check_crystal(expert, atoms)
    scales = 1 + np.asarray(strains, float)
    if len(scales) == 0 or not (np.isfinite(scales).all() and scales.min() > 0):
        raise ValueError(f"strains must be one or more numbers above -1, got {list(strains)}.")
    cell = strained_cell(expert, params, atoms, min(1 - WINDOW, scales.min()))
    curve = []
    for scale in scales:
        F, u = _relax_atoms(cell, scale * np.eye(3), atoms)
        found = derivatives(cell, F, u)
        volume = cell.volume * scale**3
        pressure = -np.trace(found.by_F) * scale / (3 * volume)
        curve.append([volume / len(atoms), found.energy / len(atoms), pressure / units.GPa])
    names = ("volume_A3_per_atom", "energy_eV_per_atom", "pressure_GPa")
    return dict(zip(names, np.array(curve, float).T.tolist(), strict=True))


def elastic_constants(expert: Expert, params: Params, atoms: Atoms) -> Elastic:
    """Elastic constants of a crystal in a given cell.

    The derivative of the true (Cauchy) stress with respect to a small strain e,
    C_ijkl = d stress_ij / d e_kl. At zero pressure this is
    (1/V) d2E / de_ij de_kl for every measure of strain. Under pressure the measures
    differ: these are Birch's constants, which determine stability and the speed of
    sound. They differ from (1/V) d2E / d eta^2, eta the Lagrangian strain, by -P in
    C11 and C44 and by +P in C12. At any pressure the bulk modulus is -V dP/dV of an
    isotropic strain, of a cubic crystal (C11 + 2 C12) / 3.

    Args:
        expert: the potential.
        params: its parameters.
        atoms: a cell of the crystal, periodic in all directions; that of `relax_crystal` for zero pressure.
            Internal coordinates are relaxed first, the cell is kept.

    Returns:
        Constants along the Cartesian axes of `atoms`, Voigt order xx yy zz yz xz xy, computed in float64.
        `[i, j]` is the stress component i per strain component j; shear strains are engineering strains.

    Raises:
        ValueError: atoms are not periodic or of a species unknown to the expert, or internal coordinates
            have no minimum.

    Source:
        Wallace, Thermodynamics of Crystals (1972); Barron and Klein, Proc. Phys. Soc. 85, 523 (1965);
        internal coordinates: Wu, Vanderbilt and Hamann, Phys. Rev. B 72, 035105 (2005).

    A pair potential at zero pressure, whose atoms are centres of inversion, has C12 = C44 (Cauchy):

    >>> from ase.build import bulk
    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> crystal = relax_crystal(expert, expert.init(None), bulk("Ar", "fcc", a=5.2))
    >>> C = elastic_constants(expert, expert.init(None), crystal.atoms).relaxed
    >>> bool(abs(C[0, 1] - C[3, 3]) < 1e-3 * C[3, 3])
    True
    """
    check_crystal(expert, atoms)
    cell = strained_cell(expert, params, atoms, 1 - WINDOW)
    F, u = _relax_atoms(cell, np.eye(3), atoms)
    strained = [derivatives(cell, F, u, dF=strain) for strain in STRAINS]
    residual = strained[0].by_F / cell.volume
    clamped = np.array(
        [
            (d.along_F / cell.volume + residual @ strain - np.trace(strain) * residual)
            for d, strain in zip(strained, STRAINS)
        ]
    )
    relaxed = clamped.copy()
    if len(atoms) > 1:
        moved = [derivatives(cell, F, u, du=x.reshape(u.shape)) for x in np.eye(u.size)]
        hessian = np.array([d.along_u.ravel() for d in moved])  # [3n, 3n] eV/Å^2
        # Translations cost no energy: a stiffness of 1 eV/Å^2 for them makes the Hessian invertible.
        hessian += np.tile(np.eye(3), (len(u), len(u))) / len(u)
        coupling = np.array([d.along_u.ravel() for d in strained])  # [6, 3n] eV/Å
        response = -np.linalg.solve(hessian, coupling.T)  # [3n, 6] Å, du per strain
        stresses = np.array([d.along_F for d in moved]) / cell.volume  # [3n, 3, 3]
        relaxed += np.tensordot(response.T, stresses, 1)
    clamped, relaxed = (_voigt(c) / units.GPa for c in (clamped, relaxed))
    return Elastic(relaxed, clamped, float(relaxed[:3, :3].sum() / 9))


def _voigt(stresses: np.ndarray) -> np.ndarray:
    """Matrix of elastic constants from stresses `[6, 3, 3]`, one for each strain."""
    return np.array([0.5 * (stresses[:, i, j] + stresses[:, j, i]) for i, j in VOIGT])


def _best_scale(cell: StrainedCell, atoms: Atoms, window: float) -> float:
    """Scale of lowest energy among isotropic ones of a window; raises `ValueError` at its ends."""
    scales = np.linspace(1 - window, 1 + window, 17)
    rest = np.zeros((len(atoms), 3))
    energies = [derivatives(cell, scale * np.eye(3), rest).energy for scale in scales]
    lowest = int(np.argmin(energies))
    if lowest in (0, len(scales) - 1):
        raise ValueError(
            f"atoms must lie near a minimum of the energy, got {atoms.symbols} with"
            f" {atoms.cell.volume / len(atoms):.2f} Å^3 per atom: scaling lengths by {scales[0]:.3g} to"
            f" {scales[-1]:.3g}, the energy decreases towards {scales[lowest]:.3g}. Give a cell nearer to"
            " equilibrium."
        )
    return float(scales[lowest])


def _relax_atoms(cell: StrainedCell, F: np.ndarray, atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """F, and displacements that minimise the energy at this deformation."""
    u = np.zeros((len(atoms), 3))
    if len(atoms) == 1:
        return F, u
    F, u, worst = minimise(cell, F, u, NO_STRAINS, LARGE_WINDOW)
    if worst > FORCE_TOLERANCE:
        raise ValueError(
            f"atoms must lie near a minimum of the energy within their cell, got {atoms.symbols}, whose"
            f" forces stay at {worst:.2g} eV/Å: relax them with relax_crystal first."
        )
    return F, u


def _bulk_modulus(cell: StrainedCell, F: np.ndarray, u: np.ndarray) -> float:
    """GPa, at zero stress: V P'(V) of an isotropic strain, internal coordinates relaxed."""
    strained = derivatives(cell, F, u, dF=F)
    second = float(np.sum(F * strained.along_F))  # d2E/ds2 of all lengths times exp(s)
    if np.abs(strained.along_u).max() > FORCE_TOLERANCE:

        def hessian_product(x):
            du = x.reshape(u.shape)
            along = derivatives(cell, F, u, du=du).along_u
            return (along + du.mean(axis=0, keepdims=True)).ravel()

        coupling = strained.along_u.ravel()
        second -= float(coupling @ solve(hessian_product, coupling))
    return second / (9 * cell.volume) / units.GPa


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
