"""Volume and bulk modulus of a crystal with one free length, as differentiable functions of parameters.

All lengths of the given cell are scaled by one number, and atoms keep their fractional coordinates. For
cubic crystals whose atoms are fixed by symmetry these are the values of `bulk.relax_crystal`, computed
under jit by `gradients.isotropic_equilibrium`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from moe_md import gradients
from moe_md.analysis.strained_cell import check_crystal
from moe_md.experts.base import Expert, Params
from moe_md.neighbors.rows import rows_from_images
from moe_md.renamed import missing_attribute


class IsotropicCrystal(NamedTuple):
    """A crystal at its equilibrium volume under a pressure, without change of shape."""

    scale: Float[Array, ""]  # lengths over those of the given cell
    volume: Float[Array, ""]  # Å^3 per atom
    energy: Float[Array, ""]  # eV per atom, without p V
    bulk_modulus_GPa: Float[Array, ""]  # -V dp/dV of an isotropic strain, fractional coordinates kept


def isotropic_crystal(expert: Expert, atoms: Atoms, *, window: float = 0.15) -> Callable:
    """The isotropically scaled crystal of minimum enthalpy, as a function of the expert's parameters.

    Args:
        expert: the potential.
        atoms: a cell of the crystal, periodic in all directions, near equilibrium.
        window: neighbours are listed for lengths of at least `1 - window` times those given.

    Returns:
        `(params, pressure_GPa=0.0) -> IsotropicCrystal` of scalar arrays. Works with and without jit.
        Differentiable to any order, in forward and reverse mode. NaN where the window holds no
        minimum. Computed in the default float dtype.

    Raises:
        ValueError: atoms are not periodic or of a species unknown to the expert, or the window is out of
            range; outside of jit, no minimum was found.

    >>> import jax
    >>> from ase.build import bulk
    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> crystal = isotropic_crystal(expert, bulk("Ar", "fcc", a=5.3))
    >>> slope = jax.grad(lambda params: crystal(params).bulk_modulus_GPa)(expert.init(None))
    >>> sorted(slope)
    ['epsilon', 'sigma']
    """
    crystal = mixed_isotropic_crystal([expert], [1.0], atoms, window=window)
    return lambda params, pressure_GPa=0.0: crystal([params], pressure_GPa)


def mixed_isotropic_crystal(
    experts: Sequence[Expert],
    shares: Real[ArrayLike, " experts"] | Sequence,
    atoms: Atoms,
    *,
    window: float = 0.15,
) -> Callable:
    """The same for a crystal whose atoms are assigned to several experts, each atom at its lattice point.

    In an isotropically strained crystal the rows of equivalent atoms are equal, whichever expert owns
    them. The energy per atom is therefore the mean of the experts' energies, weighted by the shares. Only
    the relaxation of atoms near an expert boundary is left out; `gradients.equilibrium` of the full
    crystal includes it.

    Args:
        experts: any number.
        shares: share of the atoms that each expert owns, not negative, the same for each atom of the
            cell; their sum is one.
        atoms, window: as in `isotropic_crystal`.

    Returns:
        `(params, pressure_GPa=0.0) -> IsotropicCrystal`; `params` holds one tree for each expert.

    Raises:
        ValueError: as `isotropic_crystal`.
    """
    if not 0 < window < 1:
        raise ValueError(f"window must be in (0, 1), got {window}.")
    shares = np.asarray(shares, float)
    if shares.shape != (len(experts),) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"shares must be one for each expert, of sum 1, got {shares}.")
    for expert in experts:
        check_crystal(expert, atoms)
    symbols, volume = atoms.get_chemical_symbols(), float(abs(atoms.cell.volume)) / len(atoms)
    all_rows = [
        rows_from_images(
            atoms.positions,
            np.array([expert.species.index(symbol) for symbol in symbols]),
            atoms.cell.array,
            atoms.pbc,
            expert.cutoff / (1 - window),
        )
        for expert in experts
    ]

    def energy_fn(F, params):
        def expert_energy(expert, tree, rows):
            return jnp.mean(expert.atom_energies(tree, rows._replace(displacement=rows.displacement @ F.T)))

        return sum(
            share * expert_energy(*each)
            for share, *each in zip(shares, experts, params, all_rows, strict=True)
            if share > 0
        )

    def crystal(params: Sequence[Params], pressure_GPa: Real[ArrayLike, ""] = 0.0) -> IsotropicCrystal:
        found = gradients.isotropic_equilibrium(
            energy_fn, list(params), volume=volume, pressure_GPa=pressure_GPa
        )
        # NaN below the window, where the rows lack neighbours.
        nan_outside = jnp.where(found.scale >= 1 - window, 0.0, jnp.nan)
        return IsotropicCrystal(
            found.scale + nan_outside,
            volume * found.scale**3 + nan_outside,
            found.energy + nan_outside,
            found.bulk_modulus_GPa + nan_outside,
        )

    return crystal


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
