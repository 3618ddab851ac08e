"""Lattice constant and bulk modulus of an fcc crystal as differentiable functions of parameters.

The values of `bulk.relax_fcc`, computed under jit by `gradients.isotropic_equilibrium`.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from ase.build import bulk
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Real

from moe_md import gradients
from moe_md.analysis.bulk import Crystal, check_symbol
from moe_md.checks import check_positive
from moe_md.experts.base import Expert, Params
from moe_md.neighbors.rows import rows_from_images


def fcc_crystal(expert: Expert, symbol: str = "Pt", *, guess: float, window: float = 0.15) -> Callable:
    """The fcc crystal of minimum energy, as a function of the expert's parameters.

    Args:
        expert: the potential.
        symbol: an element of `expert.species`.
        guess: Å, an approximate lattice constant.
        window: neighbours are listed for lattice constants of at least `guess * (1 - window)`.

    Returns:
        `(params, pressure_GPa=0.0) -> Crystal` of scalar arrays: lattice constant,
        energy per atom, bulk modulus. Works with and without jit. Differentiable to
        any order, in forward and reverse mode. NaN where the window holds no
        minimum. Computed in the default float dtype.

    Raises:
        ValueError: the element is not in `expert.species`, or an argument is out of
            range; outside of jit, no minimum was found.

    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> crystal = fcc_crystal(expert, "Ar", guess=5.3)
    >>> slope = jax.grad(lambda params: crystal(params).bulk_modulus_GPa)(expert.init(None))
    >>> sorted(slope)
    ['epsilon', 'sigma']
    """
    crystal = mixed_fcc_crystal([expert], [1.0], symbol, guess=guess, window=window)
    return lambda params, pressure_GPa=0.0: crystal([params], pressure_GPa)


def mixed_fcc_crystal(
    experts: Sequence[Expert],
    shares: Real[ArrayLike, " experts"] | Sequence,
    symbol: str = "Pt",
    *,
    guess: float,
    window: float = 0.15,
) -> Callable:
    """The same for a crystal whose atoms are assigned to several experts, each atom at its lattice point.

    All rows of an isotropically strained crystal are equal, whichever expert owns
    them. The energy per atom is therefore the mean of the experts' energies,
    weighted by the shares. Only the relaxation of atoms near an expert boundary is
    left out; `gradients.equilibrium` of the full crystal includes it.

    Args:
        experts: any number.
        shares: share of the atoms that each expert owns, not negative; their sum is one.
        symbol, guess, window: as in `fcc_crystal`.

    Returns:
        `(params, pressure_GPa=0.0) -> Crystal`; `params` holds one tree for each expert.

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
        check_symbol(expert, symbol)
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
        def expert_energy(expert, tree, rows):
            return expert.atom_energies(tree, rows._replace(displacement=rows.displacement @ F.T))[0]

        return sum(
            share * expert_energy(*each)
            for share, *each in zip(shares, experts, params, all_rows, strict=True)
            if share > 0
        )

    def crystal(params: Sequence[Params], pressure_GPa: Real[ArrayLike, ""] = 0.0) -> Crystal[Array]:
        found = gradients.isotropic_equilibrium(
            energy_fn, list(params), volume=guess**3 / 4, pressure_GPa=pressure_GPa
        )
        # NaN below the window, where the rows lack neighbours.
        nan_outside = jax.numpy.where(found.scale >= 1 - window, 0.0, jax.numpy.nan)
        return Crystal(
            guess * found.scale + nan_outside,
            found.energy + nan_outside,
            found.bulk_modulus_GPa + nan_outside,
        )

    return crystal
