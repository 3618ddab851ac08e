"""Lattice constant and bulk modulus of a crystal as differentiable functions of its parameters.

What `bulk.relax_fcc` finds on the host, under jit, by `gradients.isotropic_equilibrium`.
"""

from collections.abc import Callable

import jax
import numpy as np
from ase.build import bulk
from jax import Array

from moe_md import gradients
from moe_md.analysis.bulk import Crystal
from moe_md.checks import check_positive
from moe_md.experts.base import Expert
from moe_md.neighbors.rows import rows_from_images


def fcc_crystal(expert: Expert, symbol: str = "Pt", *, guess: float, window: float = 0.15) -> Callable:
    """The fcc crystal of least energy, as a function of the expert's parameters.

    Args:
        expert: the potential.
        symbol: an element of `expert.species`.
        guess: Å, a lattice constant near the answer.
        window: neighbours are known down to `guess * (1 - window)`.

    Returns:
        `(params, pressure_GPa=0.0) -> Crystal`, under jit or not, of arrays:
        lattice constant, energy per atom, bulk modulus. Differentiable, forward and in
        reverse and again. NaN where no crystal is found in the window. In
        the dtype jax runs in.

    Raises:
        ValueError: the expert does not know the element, an argument is out of
            range; outside of jit, no crystal was found.

    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> crystal = fcc_crystal(expert, "Ar", guess=5.3)
    >>> slope = jax.grad(lambda params: crystal(params).bulk_modulus_GPa)(expert.init(None))
    >>> sorted(slope)
    ['epsilon', 'sigma']
    """
    crystal = mixed_fcc_crystal([expert], [1.0], symbol, guess=guess, window=window)
    return lambda params, pressure_GPa=0.0: crystal([params], pressure_GPa)


def mixed_fcc_crystal(experts, shares, symbol: str = "Pt", *, guess: float, window: float = 0.15) -> Callable:
    """The same of a crystal whose atoms are shared out among experts, each atom at its lattice point.

    All atoms of a uniformly strained crystal see the same row, whoever owns
    them: its energy per atom is the mean of the experts', weighted by the
    shares. Only the relaxation of atoms near a seam is left out, which
    `gradients.equilibrium` of the whole crystal has.

    Args:
        experts: any number.
        shares: of the atoms that each owns, positive or zero; their sum is one.
        symbol, guess, window: as in `fcc_crystal`.

    Returns:
        `(params, pressure_GPa=0.0) -> Crystal`, params one tree for each expert.

    Raises:
        ValueError: as `fcc_crystal`.
    """
    check_positive("guess", guess)
    check_positive("window", window)
    shares = np.asarray(shares, float)
    if (
        shares.shape != (len(experts),)
        or not (shares >= 0).all()
        or abs(shares.sum() - 1) > 1e-6
        or window >= 1
    ):
        raise ValueError(
            f"shares must be one for each expert, of sum 1, and window below 1, got {shares} and {window}."
        )
    for expert in experts:
        if symbol not in expert.species:
            raise ValueError(f"symbol must be one of the expert's species {expert.species}, got {symbol!r}.")
    atoms = bulk(symbol, "fcc", a=guess)
    all_rows = [
        rows_from_images(
            atoms.positions,
            np.array([e.species.index(symbol)]),
            atoms.cell.array,
            atoms.pbc,
            e.cutoff / (1 - window),
        )
        for e in experts
    ]

    def energy_fn(F, params):
        def of(expert, tree, rows):
            return expert.atom_energies(tree, rows._replace(displacement=rows.displacement @ F.T))[0]

        return sum(
            share * of(*each)
            for share, *each in zip(shares, experts, params, all_rows, strict=True)
            if share > 0
        )

    def crystal(params, pressure_GPa=0.0) -> Crystal[Array]:
        found = gradients.isotropic_equilibrium(
            energy_fn, list(params), volume=guess**3 / 4, pressure_GPa=pressure_GPa
        )
        # Beyond the window neighbours are missing.
        inside = jax.numpy.where(found.scale >= 1 - window, 0.0, jax.numpy.nan)
        return Crystal(guess * found.scale + inside, found.energy + inside, found.bulk_modulus_GPa + inside)

    return crystal
