"""Energies of vacancies, of surfaces, and of CO on surfaces, under one expert or a mixture.

With e the energy per atom of the perfect crystal, and all structures relaxed at a given lattice constant,

    vacancy      E(N - 1) - (N - 1) e
    surface      (E(slab) - N e) / 2A
    adsorption   E(slab + CO) - E(slab) - E(CO)        (negative: bound)

A region is the number of an expert, or a function of the ASE atoms that returns the
expert of each atom. The function is called once for every structure,
before its relaxation, so that the energy has no discontinuities.
"""

from collections.abc import Callable, Sequence

import ase.units
import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk
from ase.constraints import FixAtoms, FixCartesian
from ase.geometry import get_distances
from ase.optimize import BFGS
from jaxtyping import Int

from moe_md.analysis.environments import near_other_species
from moe_md.checkpoint import Checkpoint
from moe_md.checks import check_count, check_positive, check_value
from moe_md.data.reading import frame_from_atoms
from moe_md.data.structures import FLAT_FACETS, facet_slab
from moe_md.interfaces.ase import MixtureCalculator

AtomsRegion = int | Callable[[Atoms], Int[np.ndarray, " atoms"]]

FORCE_LIMIT = 0.01  # eV/Å, the longest force of a relaxed structure
MARGIN = 0.5  # Å, added to the cheap expert's cutoff for the distance of its atoms from an adsorbate
VACUUM = 10.0  # Å, on each side of a slab
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
_OWNER = "moe_md_owner"  # name of the atoms' array with the expert of each atom


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


def vacancy_energy(
    checkpoint: Checkpoint,
    region: AtomsRegion = 0,
    symbol: str = "Pt",
    *,
    lattice_constant: float,
    repeat: int = 3,
    max_steps: int = 300,
) -> dict:
    """Energy to remove one atom from an fcc crystal, at constant volume.

    Args:
        checkpoint: the experts.
        region: the expert of each atom, as above; evaluated before the atom is removed.
        symbol: chemical symbol.
        lattice_constant: Å.
        repeat: cubic 4-atom cells along each axis, at least 2.
        max_steps: largest number of steps of the relaxation.

    Returns:
        A dictionary that JSON can store: `energy_eV` of the relaxed vacancy,
        `unrelaxed_energy_eV`, `n_atoms` without the removed one, `converged` (no
        force above 0.01 eV/Å) and `steps`.

    Raises:
        ValueError: an argument is out of range, or the region is not valid.

    >>> import moe_md as mm
    >>> expert = mm.experts.lennard_jones(("Pt",), 5.6, epsilon=0.6, sigma=2.5446)
    >>> checkpoint = mm.Checkpoint((expert,), (expert.init(None),), {}, {})
    >>> found = vacancy_energy(checkpoint, lattice_constant=3.95, repeat=2)
    >>> 0 < found["energy_eV"] < found["unrelaxed_energy_eV"]
    True
    """
    check_positive("lattice_constant", lattice_constant)
    check_count("repeat", repeat, 2)
    check_count("max_steps", max_steps, 1)
    calculator = _calculator(checkpoint, region)
    atoms = _assign_experts(bulk(symbol, "fcc", a=lattice_constant, cubic=True) * repeat, region, calculator)
    perfect = atoms.get_potential_energy() / len(atoms)
    del atoms[0]
    unrelaxed = atoms.get_potential_energy() - len(atoms) * perfect
    converged, steps = _relax(atoms, max_steps)
    return {
        "energy_eV": atoms.get_potential_energy() - len(atoms) * perfect,
        "unrelaxed_energy_eV": unrelaxed,
        "n_atoms": len(atoms),
        "converged": converged,
        "steps": steps,
    }


def surface_energies(
    checkpoint: Checkpoint,
    region: AtomsRegion = 0,
    symbol: str = "Pt",
    *,
    lattice_constant: float,
    facets: Sequence[str] = ("111", "100", "110"),
    thickness: float = 15.0,
    max_steps: int = 300,
) -> dict:
    """Energy per area of clean, unreconstructed surfaces.

    Slabs are one atom wide, with images as neighbours. Both of their faces relax.

    Args:
        checkpoint: the experts.
        region: the expert of each atom, as above.
        symbol: chemical symbol.
        lattice_constant: Å.
        facets: some of `"111"`, `"100"` and `"110"`.
        thickness: Å, smallest thickness of a slab. Above three cutoffs the middle is
            bulk-like.
        max_steps: largest number of steps of each relaxation.

    Returns:
        A dictionary that JSON can store: for each facet `energy_J_per_m2`,
        `unrelaxed_energy_J_per_m2`, `first_spacing_percent` (change of the distance
        between the first two layers), `layers`, `converged` (no force above
        0.01 eV/Å) and `steps`.

    Raises:
        ValueError: an argument is out of range, or the region is not valid.
    """
    check_positive("lattice_constant", lattice_constant)
    check_positive("thickness", thickness)
    check_count("max_steps", max_steps, 1)
    _check_known("facets", facets, FLAT_FACETS)
    calculator = _calculator(checkpoint, region)
    perfect = _assign_experts(
        bulk(symbol, "fcc", a=lattice_constant), region, calculator
    ).get_potential_energy()
    energies = {}
    for facet in facets:
        build, spacing, _ = FLAT_FACETS[facet]
        layers = int(np.ceil(thickness / (spacing * lattice_constant))) + 1
        atoms = _assign_experts(
            build(symbol, (1, 1, layers), a=lattice_constant, vacuum=VACUUM), region, calculator
        )
        two_areas = 2 * np.linalg.norm(np.cross(*atoms.cell.array[:2])) * ase.units.J / ase.units.m**2
        unrelaxed = (atoms.get_potential_energy() - layers * perfect) / two_areas
        converged, steps = _relax(atoms, max_steps)
        height = np.sort(atoms.positions[:, 2])
        energies[facet] = {
            "energy_J_per_m2": float((atoms.get_potential_energy() - layers * perfect) / two_areas),
            "unrelaxed_energy_J_per_m2": float(unrelaxed),
            "first_spacing_percent": float(
                100 * ((height[-1] - height[-2]) / (spacing * lattice_constant) - 1)
            ),
            "layers": layers,
            "converged": converged,
            "steps": steps,
        }
    return energies


def adsorption(
    checkpoint: Checkpoint,
    region: AtomsRegion | None = None,
    symbol: str = "Pt",
    *,
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
        symbol: of the metal.
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
    calculator = _calculator(checkpoint, region)
    allowed_species = checkpoint.experts[0 if callable(region) else region].allowed_species
    if not {symbol, "C", "O"} <= set(allowed_species):
        raise ValueError(
            f"region must name an expert that may meet {symbol}, C and O, got {region} with "
            f"allowed_species {allowed_species}."
        )
    gas = _assign_experts(Atoms("CO", [[0, 0, 0], [0, 0, _GAS_BOND]]), region, calculator)
    gas_report = _relaxed_molecule(gas, max_steps)
    clean = _assign_experts(facet_slab(symbol, lattice_constant, size, "111", VACUUM), region, calculator)
    lower_half = clean.get_tags() > (size[2] + 1) // 2  # tags count layers from the top
    clean.set_constraint(FixAtoms(mask=lower_half))
    clean_converged, clean_steps = _relax(clean, max_steps)
    reference = clean.get_potential_energy() + gas.get_potential_energy()
    adsorbed = {}
    for site in sites:
        name, n_around, height = _SITES[site]
        atoms = clean.copy()
        add_adsorbate(
            atoms, Atoms("CO", [[0, 0, 0], [0, 0, gas.get_distance(0, 1)]]), height, name, mol_index=0
        )
        adsorbed[site] = _relaxed_site(
            _assign_experts(atoms, region, calculator), n_around, reference, max_steps
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
    converged, steps = _relax(gas, max_steps)
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
    converged, steps = _relax(atoms, max_steps)
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
        "atoms_per_expert": np.bincount(atoms.get_array(_OWNER)).tolist(),
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


def _calculator(checkpoint: Checkpoint, region: AtomsRegion) -> MixtureCalculator:
    """Calculator of all structures, which share its compiled programs; it reads the experts from `_OWNER`."""
    if not callable(region):
        check_value("region", region, int)
        if not 0 <= region < len(checkpoint.experts):
            last = len(checkpoint.experts) - 1
            raise ValueError(f"region must be a function or lie between 0 and {last}, got {region}.")
    return MixtureCalculator(checkpoint, lambda atoms: atoms.get_array(_OWNER))


def _assign_experts(atoms: Atoms, region: AtomsRegion, calculator: MixtureCalculator) -> Atoms:
    """The same atoms, with the expert of each stored in their array `_OWNER` and a calculator attached."""
    owner = np.asarray(region(atoms) if callable(region) else region)
    if owner.ndim and owner.shape != (len(atoms),):
        raise ValueError(f"region must assign each of the {len(atoms)} atoms, got shape {owner.shape}.")
    atoms.set_array(_OWNER, None)
    atoms.set_array(_OWNER, np.broadcast_to(owner, len(atoms)).copy())
    atoms.calc = calculator
    calculator.reset()  # equal positions may have another assignment
    return atoms


def _relax(atoms: Atoms, max_steps: int) -> tuple[bool, int]:
    """Relax the atoms in place; whether the relaxation converged, and its steps."""
    optimizer = BFGS(atoms, logfile=None)
    converged = optimizer.run(fmax=FORCE_LIMIT, steps=max_steps)
    return bool(converged), int(optimizer.nsteps)


def _check_known(name: str, values: Sequence[str], known) -> None:
    """Raise `ValueError` unless `values` is a sequence of some of the known names."""
    if isinstance(values, str) or not values or not set(values) <= set(known):
        raise ValueError(f"{name} must be some of {tuple(known)}, got {values!r}.")
