"""Lattice constant and bulk modulus of an fcc crystal under one expert.

A uniform strain s scales every displacement by exp(s). Of the energy per atom
E(s) the lattice constant is where dE/ds = 0, and there the bulk modulus is
B = (1 / 9V) d2E/ds2, V the volume per atom. Both derivatives are exact.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers, reference_states
from scipy.optimize import brentq

from moe_md import units
from moe_md.data.crystals import fcc_supercell
from moe_md.experts import Expert, Params
from moe_md.neighborhood import Neighborhood, rows_from_images


class Crystal(NamedTuple):
    """An fcc crystal at rest."""

    lattice_constant: float  # Å
    energy: float  # eV per atom
    bulk_modulus_GPa: float


def relax_fcc(
    expert: Expert,
    params: Params,
    symbol: str = "Pt",
    *,
    guess: float | None = None,
    window: float = 0.15,
) -> Crystal:
    """The fcc crystal of least energy.

    Args:
        expert: the potential.
        params: its parameters.
        symbol: an element of `expert.species`.
        guess: Å, a lattice constant near the answer; default ASE's for the element.
        window: the search covers `guess * (1 - window)` to `guess * (1 + window)`.

    Returns:
        The crystal at zero pressure. In the dtype jax runs in.

    Raises:
        ValueError: the expert does not know the element, no guess is known, or
            the energy has no minimum inside the window.

    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> crystal = relax_fcc(expert, expert.init(None), "Ar")
    >>> round(crystal.lattice_constant, 1)
    5.3
    """
    if symbol not in expert.species:
        raise ValueError(f"symbol must be one of the expert's species {expert.species}, got {symbol!r}.")
    if guess is None:
        guess = (reference_states[atomic_numbers[symbol]] or {}).get("a")
        if guess is None:
            raise ValueError(f"guess must be given (Å): no lattice constant of {symbol} is known.")
    if not (guess > 0 and 0 < window < 1):
        raise ValueError(f"guess must be positive (Å) and window in (0, 1), got {guess} and {window}.")
    rows = _one_row(expert, symbol, guess, window)
    energy_of = jax.jit(partial(_strained, expert, params, rows))
    low, high = np.log1p(-window), np.log1p(window)
    strains = np.linspace(low, high, 31)
    energies = np.array([float(energy_of(s)[0]) for s in strains])
    at = int(np.argmin(energies))
    if at in (0, len(strains) - 1):
        raise ValueError(
            f"guess must lie near a minimum of the energy of {symbol}, but between {guess * np.exp(low):.3f} and "
            f"{guess * np.exp(high):.3f} Å it falls towards {guess * np.exp(strains[at]):.3f} Å, got {guess}."
        )
    strain = brentq(lambda s: float(energy_of(s)[1]), strains[at - 1], strains[at + 1], xtol=1e-10)
    energy, _, curvature = (float(x) for x in energy_of(strain))
    lattice_constant = float(guess * np.exp(strain))
    return Crystal(lattice_constant, energy, curvature / (9 * lattice_constant**3 / 4) / units.GPa)


def _one_row(expert: Expert, symbol: str, guess: float, window: float) -> Neighborhood:
    """One atom of the crystal, with every neighbour that any strain brings in."""
    frame = fcc_supercell(symbol, guess, 1)
    species = np.full(len(frame.symbols), expert.species.index(symbol))
    reach = expert.cutoff / (1 - window)
    return rows_from_images(frame.positions, species, frame.cell, frame.pbc, reach, centers=np.array([0]))


def _strained(expert: Expert, params: Params, rows: Neighborhood, strain):
    """Energy of the atom and its first two derivatives."""

    def energy(s):
        return expert.atom_energies(params, rows._replace(displacement=rows.displacement * jnp.exp(s)))[0]

    def slope(s):
        return jax.jvp(energy, (s,), (jnp.ones_like(s),))

    strain = jnp.asarray(strain, float)
    (value, first), (_, second) = jax.jvp(slope, (strain,), (jnp.ones_like(strain),))
    return value, first, second
