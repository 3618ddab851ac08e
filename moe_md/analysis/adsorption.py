"""Adsorption of CO on an fcc (111) surface, under one expert or a mixture.

With all structures relaxed at a given lattice constant, the energy of adsorption is

    E(slab + CO) - E(slab) - E(CO)        (negative: bound)

A region is the number of an expert, or a function of the ASE atoms that returns the
expert of each atom. The function is called once for every structure,
before its relaxation, so that the energy has no discontinuities.
"""

from collections.abc import Callable, Sequence

import ase.units
import numpy as np
from ase import Atoms
from ase.build import add_adsorbate
from ase.constraints import FixAtoms, FixCartesian
from ase.geometry import get_distances
from jaxtyping import Int

from moe_md.analysis.environments import near_other_species
from moe_md.analysis.surfaces import OWNER, VACUUM, AtomsRegion, assign_experts, region_calculator, relax
from moe_md.checkpoint import Checkpoint
from moe_md.checks import check_count, check_positive
from moe_md.data.reading import frame_from_atoms
from moe_md.data.structures import facet_slab

MARGIN = 0.5  # Å, added to the cheap expert's cutoff for the distance of its atoms from an adsorbate
DISPLACEMENT = 0.01  # Å, of the finite differences of forces
NOISE_CM1 = 30.0  # imaginary modes below it are not counted as unstable

# ASE's name of the site, number of metal atoms around it, initial height of C in Å.
_SITES = {
    "top": ("ontop", 1, 1.85),
    "bridge": ("bridge", 2, 1.45),
    "fcc": ("fcc", 3, 1.3),
    "hcp": ("hcp", 3, 1.3),
}
_GAS_BOND = 1.14  # Å, initial bond length of the free molecule


def around_adsorbate(cutoff: float) -> Callable[[Atoms], Int[np.ndarray, " atoms"]]:
    """Region that assigns all atoms near C and O to expert 0, and the others to expert 1.

    Args:
        cutoff: Å, of expert 1. Its atoms are at least 0.5 Å farther than this from any C or O,
            so that C and O are never among their neighbours.

    Returns:
        A function of ASE atoms. Distances are to the nearest
        image along periodic directions.

    Raises:
        ValueError: the cutoff is not positive.

    >>> slab = facet_slab("Pt", 3.98, (2, 2, 4), "111", vacuum=8.0)
    >>> add_adsorbate(slab, "C", 1.3, "fcc")
    >>> by_layer = around_adsorbate(5.0)(slab).reshape(-1)[:16].reshape(4, 4)  # bottom layer first
    >>> by_layer.sum(axis=1).tolist()
    [4, 4, 0, 0]
    """
    check_positive("cutoff", cutoff)

    def region(atoms: Atoms) -> Int[np.ndarray, " atoms"]:
        others = tuple(set(atoms.symbols) - {"C", "O"})
        return near_other_species(others, cutoff + MARGIN)(frame_from_atoms(atoms))

    return region


def adsorption(
    checkpoint: Checkpoint,
    region: AtomsRegion | None = None,
    *,
    symbol: str,
    lattice_constant: float,
    size: tuple[int, int, int] = (2, 2, 4),
    sites: Sequence[str] = ("top", "bridge", "fcc", "hcp"),
    max_steps: int = 300,
) -> dict:
    """Adsorption of one CO per cell, carbon down, on the sites of an fcc (111) surface.

    Carbon moves only perpendicular to the surface, so that a site that is not a minimum
    has an energy too. Oxygen and the upper half of the layers are free, the lower half
    is fixed. The free molecule and the clean slab are relaxed under the same region.
    Where the region assigns a clean slab to expert 1, the adsorption energy includes
    the difference of the experts' energies on the atoms that switch expert.

    Args:
        checkpoint: the experts.
        region: the expert of each atom, as above. Default `around_adsorbate` of
            expert 1's cutoff, or expert 0 where it is the only one.
        symbol: chemical symbol of an fcc metal.
        lattice_constant: Å.
        size: atoms along both directions of the surface, and layers; each at least 2.
        sites: some of `"top"`, `"bridge"`, `"fcc"` and `"hcp"`.
        max_steps: largest number of steps of each relaxation.

    Returns:
        A dictionary that JSON can store. `gas`: `bond_A`, `stretch_cm1`, `converged`,
        `steps`; `clean`: `converged`, `steps`; `order`, the sites from the lowest
        energy; and in that order `sites`, each with

        - `energy_eV` of adsorption, negative where bound;
        - `bond_A`, C to O, and `metal_carbon_A`, C to the nearest metal atom;
        - `height_A` of C above the mean plane of the first layer;
        - `stretch_cm1` of C-O, harmonic, with the metal fixed;
        - `unstable_modes`, number of imaginary modes of C and O above 30 cm-1: not zero where the
          site is not a minimum;
        - `lateral_force_eV_per_A` on C, parallel to the surface;
        - `stayed`: C is laterally within 0.3 Å of the centre of the site's metal atoms and within 3 Å
          of the metal, and CO is tilted by less than 30 degrees;
        - `atoms_per_expert`, `converged` (no force above 0.01 eV/Å, except on constrained coordinates)
          and `steps`.

    Raises:
        ValueError: an argument is out of range, the region is not valid, or C, O or the metal
            is outside the domain of the adsorbate's expert.
    """
    check_positive("lattice_constant", lattice_constant)
    if len(size) != 3:
        raise ValueError(f"size must be three numbers, got {size}.")
    for number in size:
        check_count("each of size", number, 2)
    check_count("max_steps", max_steps, 1)
    _check_known("sites", sites, _SITES)
    if region is None:
        region = around_adsorbate(checkpoint.experts[1].cutoff) if len(checkpoint.experts) > 1 else 0
    calculator = region_calculator(checkpoint, region)
    allowed_species = checkpoint.experts[0 if callable(region) else region].allowed_species
    if not {symbol, "C", "O"} <= set(allowed_species):
        raise ValueError(
            f"region must name an expert that may meet {symbol}, C and O, got {region} with "
            f"allowed_species {allowed_species}."
        )
    gas = assign_experts(Atoms("CO", [[0, 0, 0], [0, 0, _GAS_BOND]]), region, calculator)
    gas_report = _relaxed_molecule(gas, max_steps)
    clean = assign_experts(facet_slab(symbol, lattice_constant, size, "111", VACUUM), region, calculator)
    lower_half = clean.get_tags() > (size[2] + 1) // 2  # tags count layers from the top
    clean.set_constraint(FixAtoms(mask=lower_half))
    clean_converged, clean_steps = relax(clean, max_steps)
    reference = clean.get_potential_energy() + gas.get_potential_energy()
    adsorbed = {}
    for site in sites:
        name, n_around, height = _SITES[site]
        atoms = clean.copy()
        add_adsorbate(
            atoms, Atoms("CO", [[0, 0, 0], [0, 0, gas.get_distance(0, 1)]]), height, name, mol_index=0
        )
        adsorbed[site] = _relaxed_site(
            assign_experts(atoms, region, calculator), n_around, reference, max_steps
        )
    order = sorted(adsorbed, key=lambda site: adsorbed[site]["energy_eV"])
    return {
        "gas": gas_report,
        "clean": {"converged": clean_converged, "steps": clean_steps},
        "order": order,
        "sites": {site: adsorbed[site] for site in order},
    }


def _relaxed_molecule(gas: Atoms, max_steps: int) -> dict:
    """Entry `gas` of `adsorption`; relaxes `gas` in place."""
    converged, steps = relax(gas, max_steps)
    return {
        "bond_A": float(gas.get_distance(0, 1)),
        "stretch_cm1": float(_wavenumbers(gas, [0, 1])[-1]),
        "converged": converged,
        "steps": steps,
    }


def _relaxed_site(atoms: Atoms, n_around: int, reference: float, max_steps: int) -> dict:
    """Entry of one site in `adsorption`: relaxes `atoms`, of which C and O are the last two.

    Args:
        atoms: slab and molecule, with their experts.
        n_around: number of metal atoms around the site.
        reference: eV, energy of the clean slab and the free molecule.
        max_steps: as in `adsorption`.
    """
    carbon, oxygen = len(atoms) - 2, len(atoms) - 1
    metal = np.arange(carbon)
    first_layer = np.flatnonzero(atoms.get_tags() == 1)
    atoms.set_constraint([*atoms.constraints, FixCartesian(carbon, mask=(True, True, False))])
    around = np.argsort(np.linalg.norm(_to_nearest(atoms, carbon, metal), axis=1))[:n_around]
    converged, steps = relax(atoms, max_steps)
    energy = atoms.get_potential_energy() - reference
    lateral_force = atoms.get_forces(apply_constraint=False)[carbon, :2]
    to_metal = _to_nearest(atoms, carbon, metal)
    closest = np.linalg.norm(to_metal, axis=1).min()
    axis = atoms.positions[oxygen] - atoms.positions[carbon]
    bond = np.linalg.norm(axis)
    off_site = np.linalg.norm(to_metal[around].mean(axis=0)[:2])
    wavenumbers = _wavenumbers(atoms, [carbon, oxygen])
    return {
        "energy_eV": float(energy),
        "bond_A": float(bond),
        "metal_carbon_A": float(closest),
        "height_A": float(atoms.positions[carbon, 2] - atoms.positions[first_layer, 2].mean()),
        "stretch_cm1": float(wavenumbers[-1]),
        "unstable_modes": int(np.sum(wavenumbers < -NOISE_CM1)),
        "lateral_force_eV_per_A": float(np.linalg.norm(lateral_force)),
        "stayed": bool(off_site < 0.3 and closest < 3.0 and axis[2] > bond * np.cos(np.pi / 6)),
        "atoms_per_expert": np.bincount(atoms.get_array(OWNER)).tolist(),
        "converged": converged,
        "steps": steps,
    }


def _to_nearest(atoms: Atoms, center: int, others: np.ndarray) -> np.ndarray:
    """`[n, 3]` Å, displacements from an atom to the nearest image of each of the others."""
    vectors, _ = get_distances(
        atoms.positions[[center]], atoms.positions[others], cell=atoms.cell, pbc=atoms.pbc
    )
    return vectors[0]


def _wavenumbers(atoms: Atoms, moving: Sequence[int]) -> np.ndarray:
    """1/cm, harmonic modes of some atoms with the others fixed, ascending; imaginary ones negative."""
    hessian = []
    for atom in moving:
        for axis in range(3):
            forces = []
            for step in (DISPLACEMENT, -DISPLACEMENT):
                moved = atoms.copy()
                moved.positions[atom, axis] += step
                moved.calc = atoms.calc
                forces.append(moved.get_forces(apply_constraint=False)[moving].ravel())
            hessian.append((forces[1] - forces[0]) / (2 * DISPLACEMENT))
    root_mass = np.sqrt(np.repeat(atoms.get_masses()[moving], 3))
    dynamical = np.array(hessian) / np.outer(root_mass, root_mass)
    square = np.linalg.eigvalsh((dynamical + dynamical.T) / 2)
    hbar = (
        ase.units._hbar * ase.units.m / np.sqrt(ase.units._e * ase.units._amu)
    )  # eV per sqrt(eV / Å^2 / amu)
    return np.sign(square) * np.sqrt(np.abs(square)) * hbar / ase.units.invcm


def _check_known(name: str, values: Sequence[str], known) -> None:
    """Raise `ValueError` unless `values` is a sequence of some of the known names."""
    if isinstance(values, str) or not values or not set(values) <= set(known):
        raise ValueError(f"{name} must be some of {tuple(known)}, got {values!r}.")
