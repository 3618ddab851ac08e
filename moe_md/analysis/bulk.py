"""Lattice constant, equation of state and elastic constants of a perfect fcc crystal under one expert.

All atoms of the crystal are equivalent, so one row (one atom with its neighbours)
describes it. Let a deformation F map every displacement d to F d, let E(F) be the
energy per atom and V the volume per atom. Then

    P = -dE/dV,    stress = (1/V) dE/dF F^T,    C = d stress / d strain.

All derivatives are exact, by automatic differentiation.
"""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk
from ase.data import atomic_numbers, reference_states
from jax import Array
from jaxtyping import Real
from scipy.optimize import brentq

from moe_md import units
from moe_md.checks import check_positive
from moe_md.experts.base import Expert, Params
from moe_md.neighbors.rows import Neighborhood, rows_from_images
from moe_md.renamed import missing_attribute

Number = TypeVar("Number", float, Array)


class Crystal(NamedTuple, Generic[Number]):
    """An fcc crystal at its equilibrium volume: Python floats, or scalar arrays under jit."""

    lattice_constant: Number  # Å
    energy: Number  # eV per atom
    bulk_modulus_GPa: Number


class Elastic(NamedTuple):
    """Elastic constants of a cubic crystal, GPa."""

    C11: float
    C12: float
    C44: float
    bulk_modulus: float  # (C11 + 2 C12) / 3


def relax_fcc(
    expert: Expert,
    params: Params,
    symbol: str,
    *,
    guess: float | None = None,
    window: float = 0.15,
) -> Crystal:
    """Find the lattice constant of minimum energy of an fcc crystal.

    Args:
        expert: the potential.
        params: its parameters.
        symbol: an element of `expert.species`.
        guess: Å, an approximate lattice constant; default ASE's value for the element.
        window: the search interval is `guess * (1 - window)` to `guess * (1 + window)`.

    Returns:
        The crystal at zero pressure, computed in the default float dtype.

    Raises:
        ValueError: the element is not in `expert.species`, ASE has no lattice
            constant for it and `guess` is missing, or the energy has no minimum
            inside the window.

    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> crystal = relax_fcc(expert, expert.init(None), "Ar")
    >>> round(crystal.lattice_constant, 1)
    5.3
    """
    check_symbol(expert, symbol)
    if guess is None:
        guess = cast("float | None", (reference_states[atomic_numbers[symbol]] or {}).get("a"))
        if guess is None:
            raise ValueError(f"guess must be given (Å): ASE has no lattice constant for {symbol}.")
    if not (guess > 0 and 0 < window < 1):
        raise ValueError(f"guess must be positive (Å) and window in (0, 1), got {guess} and {window}.")
    energy_fn = _isotropically_strained(
        expert, params, _one_row(expert, symbol, guess, expert.cutoff / (1 - window))
    )
    low, high = np.log1p(-window), np.log1p(window)
    strains = np.linspace(low, high, 31)
    energies = np.array([float(energy_fn(s)[0]) for s in strains])
    lowest = int(np.argmin(energies))
    if lowest in (0, len(strains) - 1):
        raise ValueError(
            f"guess must lie near a minimum of the energy of {symbol}, got {guess} Å: between "
            f"{guess * np.exp(low):.3f} and {guess * np.exp(high):.3f} Å "
            f"the energy decreases towards {guess * np.exp(strains[lowest]):.3f} Å."
        )
    strain = brentq(lambda s: float(energy_fn(s)[1]), strains[lowest - 1], strains[lowest + 1], xtol=1e-10)
    energy, _, curvature = (float(x) for x in energy_fn(strain))
    lattice_constant = float(guess * np.exp(strain))
    return Crystal(lattice_constant, energy, curvature / (9 * lattice_constant**3 / 4) / units.GPa)


def equation_of_state(
    expert: Expert,
    params: Params,
    symbol: str = "Pt",
    *,
    lattice_constants: Sequence | Real[np.ndarray, " n"],
) -> dict[str, list[float]]:
    """Energy and pressure of an fcc crystal as functions of its volume.

    With E(s) the energy per atom when all lengths are scaled by exp(s), P = -E'(s) / 3V.

    Args:
        expert: the potential.
        params: its parameters.
        symbol: an element of `expert.species`.
        lattice_constants: Å, one or more; results are in their order.

    Returns:
        Lists as long as `lattice_constants`: `volume_A3_per_atom`,
        `energy_eV_per_atom` and `pressure_GPa`, positive where the crystal
        would expand. Computed in the default float dtype.

    Raises:
        ValueError: the element is not in `expert.species`, a lattice constant is
            not positive, or there is none.

    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> curve = equation_of_state(expert, expert.init(None), "Ar", lattice_constants=[5.0, 5.5])
    >>> [bool(p > 0) for p in curve["pressure_GPa"]]
    [True, False]
    """
    check_symbol(expert, symbol)
    if len(lattice_constants) == 0:
        raise ValueError("lattice_constants must not be empty.")
    for a in lattice_constants:
        check_positive("each of lattice_constants", a)
    a = np.asarray(lattice_constants, float)
    widest = a.max()
    energy_fn = _isotropically_strained(
        expert, params, _one_row(expert, symbol, widest, expert.cutoff * widest / a.min())
    )
    energy, slope, _ = np.array([energy_fn(s) for s in np.log(a / widest)], float).T
    volume = a**3 / 4
    return {
        "volume_A3_per_atom": volume.tolist(),
        "energy_eV_per_atom": energy.tolist(),
        "pressure_GPa": (-slope / (3 * volume) / units.GPa).tolist(),
    }


def elastic_constants(
    expert: Expert, params: Params, symbol: str = "Pt", *, lattice_constant: float
) -> Elastic:
    """Elastic constants of an fcc crystal.

    The derivative of the true (Cauchy) stress with respect to a small strain e,
    C_ijkl = d stress_ij / d e_kl. At zero pressure this is
    (1/V) d2E / de_ij de_kl for every measure of strain. Under pressure the measures
    differ: these are Birch's constants, which determine stability and the speed of
    sound. They differ from (1/V) d2E / d eta^2, eta the Lagrangian strain, by -P in
    C11 and C44 and by +P in C12. At any pressure (C11 + 2 C12) / 3 is the bulk
    modulus -V dP/dV. Each atom is a centre of inversion, so clamped and relaxed
    constants are equal.

    Args:
        expert: the potential.
        params: its parameters.
        symbol: an element of `expert.species`.
        lattice_constant: Å; that of `relax_fcc` for zero pressure.

    Returns:
        C11, C12, C44 and the bulk modulus, GPa, computed in the default float dtype.

    Raises:
        ValueError: the element is not in `expert.species`, or the lattice
            constant is not positive.

    Source:
        Wallace, Thermodynamics of Crystals (1972), ch. 1; Barron and Klein,
        Proc. Phys. Soc. 85, 523 (1965).

    A pair potential at zero pressure has C12 = C44 (Cauchy):

    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> a = relax_fcc(expert, expert.init(None), "Ar").lattice_constant
    >>> C11, C12, C44, B = elastic_constants(expert, expert.init(None), "Ar", lattice_constant=a)
    >>> abs(C12 - C44) < 1e-3 * C44
    True
    """
    check_symbol(expert, symbol)
    check_positive("lattice_constant", lattice_constant)
    volume = lattice_constant**3 / 4
    rows = _one_row(expert, symbol, lattice_constant, expert.cutoff)

    @jax.jit
    def stress_derivatives(params, rows, strains):
        def stress(F):
            slope = jax.grad(lambda F: _deformed(expert, params, rows, F))(F)
            return slope @ F.T / (volume * jnp.linalg.det(F))

        return jax.vmap(lambda strain: jax.jvp(stress, (jnp.eye(3),), (strain,))[1])(strains)

    stretch = jnp.diag(jnp.array([1.0, 0.0, 0.0]))
    shear = jnp.zeros((3, 3)).at[1, 2].set(0.5).at[2, 1].set(0.5)
    slopes = np.asarray(stress_derivatives(params, rows, jnp.stack([stretch, shear])), float)
    stretched, sheared = slopes / units.GPa
    C11, C12, C44 = float(stretched[0, 0]), float(stretched[1, 1]), float(sheared[1, 2])
    return Elastic(C11, C12, C44, (C11 + 2 * C12) / 3)


def _one_row(expert: Expert, symbol: str, lattice_constant: float, cutoff: float) -> Neighborhood:
    """Row of the atom of a primitive cell. All neighbours within `cutoff` are images of the atom itself.

    Each neighbour index is therefore 0, which experts that pass messages need.
    """
    atoms = bulk(symbol, "fcc", a=lattice_constant)
    species = np.array([expert.species.index(symbol)])
    return rows_from_images(atoms.positions, species, atoms.cell.array, atoms.pbc, cutoff)


def _deformed(expert: Expert, params: Params, rows: Neighborhood, F: Array) -> Array:
    """Energy, eV, of the atom of `_one_row` under the deformation F, `[3, 3]`."""
    return expert.atom_energies(params, rows._replace(displacement=rows.displacement @ F.T))[0]


def _isotropically_strained(expert: Expert, params: Params, rows: Neighborhood) -> Callable:
    """Function of s, all lengths scaled by exp(s): energy of the atom, its first and second derivative."""

    @jax.jit
    def compute(params, rows, strain):
        def energy(s):
            return _deformed(expert, params, rows, jnp.exp(s) * jnp.eye(3))

        def slope(s):
            return jax.jvp(energy, (s,), (jnp.ones_like(s),))

        (value, first), (_, second) = jax.jvp(slope, (strain,), (jnp.ones_like(strain),))
        return value, first, second

    return lambda strain: compute(params, rows, jnp.asarray(strain, float))


def check_symbol(expert: Expert, symbol: str) -> None:
    """Raise `ValueError` where an element is not among the expert's species."""
    if symbol not in expert.species:
        raise ValueError(f"symbol must be one of the expert's species {expert.species}, got {symbol!r}.")


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
