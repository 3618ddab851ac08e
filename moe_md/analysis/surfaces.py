"""Energies of vacancies and of surfaces, under one expert or a mixture.

With E(N) the energy of the perfect crystal of N atoms, and all structures relaxed in cells of given size,

    vacancy      E(N - 1) - (N - 1)/N E(N)
    surface      (E(slab) - E(N)) / 2A          N atoms in the slab too

In an element E(N)/N is the chemical potential of the removed atom. In a compound it is not: there
energies of vacancies compare experts, and differ from those of a reservoir by a constant for each
species.

A region is the number of an expert, or a function of the ASE atoms that returns the
expert of each atom. The function is called once for every structure,
before its relaxation, so that the energy has no discontinuities.
"""

from collections.abc import Callable

import ase.units
import numpy as np
import spglib
from ase import Atoms
from ase.optimize import BFGS
from jaxtyping import Int

from moe_md.checkpoint import Checkpoint
from moe_md.checks import check_count, check_positive, check_value
from moe_md.data.planes import (
    SYMMETRY_TOLERANCE,
    Plane,
    conventional_cell,
    cut_at_widest_gap,
    oriented_cell,
    plane_name,
    repeats_to_width,
    widest_planes,
)
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.renamed import missing_attribute

AtomsRegion = int | Callable[[Atoms], Int[np.ndarray, " atoms"]]

FORCE_LIMIT = 0.01  # eV/Å, the longest force of a relaxed structure
VACUUM = 10.0  # Å, on each side of a slab
SAME_HEIGHT = 0.05  # Å, atoms of one layer of an unrelaxed slab
OWNER = "moe_md_owner"  # name of the atoms' array with the expert of each atom
_SITE = "moe_md_site"  # name of the atoms' array with the index in the primitive cell


def vacancy_energies(
    checkpoint: Checkpoint,
    atoms: Atoms,
    region: AtomsRegion = 0,
    *,
    width: float = 10.0,
    max_steps: int = 300,
) -> list[dict]:
    """Energy to remove one atom from a crystal at constant volume, for each inequivalent site.

    Args:
        checkpoint: the experts.
        atoms: primitive cell of a crystal, periodic in all directions, relaxed.
        region: the expert of each atom, as above; evaluated before the atom is removed.
        width: Å, smallest distance between opposite faces of the cell, which is built of
            conventional cells.
        max_steps: largest number of steps of each relaxation.

    Returns:
        A dictionary that JSON can store for each kind of site, in the order of `atoms`:
        `site` (the symbol, with a number where several sites have it), `symbol`, `multiplicity` (sites of
        this kind in `atoms`), `energy_eV` of the relaxed vacancy,
        `unrelaxed_energy_eV`, `n_atoms` without the removed one, `converged` (no
        force above 0.01 eV/Å) and `steps`.

    Raises:
        ValueError: an argument is out of range, or the region is not valid.

    >>> import moe_md as mm
    >>> from ase.build import bulk
    >>> expert = mm.experts.lennard_jones(("Pt",), 5.6, epsilon=0.6, sigma=2.5446)
    >>> checkpoint = mm.Checkpoint((expert,), (expert.init(None),), {}, {})
    >>> (found,) = vacancy_energies(checkpoint, bulk("Pt", a=3.95), width=7.0)
    >>> 0 < found["energy_eV"] < found["unrelaxed_energy_eV"]
    True
    """
    check_positive("width", width)
    check_count("max_steps", max_steps, 1)
    calculator = region_calculator(checkpoint, region)
    cell = atoms.copy()
    cell.set_array(_SITE, np.arange(len(atoms)))
    cell = conventional_cell(cell)
    perfect = assign_experts(cell * repeats_to_width(cell.cell.array, width), region, calculator)
    perfect_energy = perfect.get_potential_energy()
    kinds = _inequivalent_sites(atoms)
    names = _site_names([atoms.symbols[k] for k in kinds])
    return [
        {"site": name, "symbol": atoms.symbols[k], "multiplicity": multiplicity}
        | _vacancy(perfect, int(np.argmax(perfect.get_array(_SITE) == k)), perfect_energy, max_steps)
        for name, (k, multiplicity) in zip(names, kinds.items())
    ]


def surface_energies(
    checkpoint: Checkpoint,
    atoms: Atoms,
    region: AtomsRegion = 0,
    *,
    n_planes: int = 3,
    thickness: float = 15.0,
    max_steps: int = 300,
) -> dict[str, dict]:
    """Energy per area of clean, unreconstructed surfaces along the most widely spaced lattice planes.

    Slabs have the composition of the crystal and the smallest cells of their planes, with images as
    neighbours. They are cut where the layer without atoms is widest. Both of their faces relax; in
    crystals where the two differ the energy is the mean of both. Polar surfaces, as (111) of rock
    salt, are among them.

    Args:
        checkpoint: the experts.
        atoms: primitive cell of a crystal, periodic in all directions, relaxed.
        region: the expert of each atom, as above.
        n_planes: number of planes.
        thickness: Å, smallest thickness of a slab. Above three cutoffs the middle is
            bulk-like.
        max_steps: largest number of steps of each relaxation.

    Returns:
        A dictionary that JSON can store: for each plane, by its Miller indices in the conventional cell
        (`"111"`, `"100"` and `"110"` in fcc), `energy_J_per_m2`,
        `unrelaxed_energy_J_per_m2`, `first_spacing_percent` (change of the distance
        between the first two layers, mean of both faces), `layers`, `converged` (no force above
        0.01 eV/Å) and `steps`.

    Raises:
        ValueError: an argument is out of range, or the region is not valid.
    """
    check_positive("thickness", thickness)
    check_count("max_steps", max_steps, 1)
    calculator = region_calculator(checkpoint, region)
    per_cell = assign_experts(atoms.copy(), region, calculator).get_potential_energy()
    energies = {}
    for hkl in widest_planes(atoms.cell.array, n_planes):
        slab, n_cells = _slab(atoms, hkl, thickness)
        assign_experts(slab, region, calculator)
        perfect = n_cells * per_cell
        two_areas = 2 * np.linalg.norm(np.cross(*slab.cell.array[:2])) * ase.units.J / ase.units.m**2
        unrelaxed = (slab.get_potential_energy() - perfect) / two_areas
        layer = _layers(slab)
        before = _first_spacings(slab, layer)
        converged, steps = relax(slab, max_steps)
        energies[plane_name(atoms, hkl)] = {
            "energy_J_per_m2": float((slab.get_potential_energy() - perfect) / two_areas),
            "unrelaxed_energy_J_per_m2": float(unrelaxed),
            "first_spacing_percent": float(100 * np.mean(_first_spacings(slab, layer) / before - 1)),
            "layers": int(layer.max()) + 1,
            "converged": converged,
            "steps": steps,
        }
    return energies


def _vacancy(perfect: Atoms, site: int, perfect_energy: float, max_steps: int) -> dict:
    """Energies of one vacancy; `perfect_energy` is that of all atoms of `perfect`, eV."""
    atoms = perfect.copy()
    atoms.calc = perfect.calc
    del atoms[site]
    others = perfect_energy * len(atoms) / len(perfect)
    unrelaxed = atoms.get_potential_energy() - others
    converged, steps = relax(atoms, max_steps)
    return {
        "energy_eV": atoms.get_potential_energy() - others,
        "unrelaxed_energy_eV": unrelaxed,
        "n_atoms": len(atoms),
        "converged": converged,
        "steps": steps,
    }


def _inequivalent_sites(atoms: Atoms) -> dict[int, int]:
    """The first atom of each kind of site, and the number of atoms of this kind."""
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    kinds = np.arange(len(atoms))
    try:
        dataset = spglib.get_symmetry_dataset(cell, symprec=SYMMETRY_TOLERANCE)
        kinds = kinds if dataset is None else dataset.equivalent_atoms
    except spglib.SpglibError:
        pass  # without symmetry every atom is a kind of its own
    return {int(k): int(n) for k, n in zip(*np.unique(kinds, return_counts=True))}


def _site_names(symbols: list[str]) -> list[str]:
    """Symbols, with a number where several sites have the same: O 1, O 2."""
    return [s if symbols.count(s) == 1 else f"{s} {symbols[: k + 1].count(s)}" for k, s in enumerate(symbols)]


def _slab(atoms: Atoms, hkl: Plane, thickness: float) -> tuple[Atoms, int]:
    """A slab of whole primitive cells, periodic in its plane, and the number of cells."""
    cell, gap = cut_at_widest_gap(oriented_cell(atoms, hkl))
    spacing = cell.get_volume() / np.linalg.norm(np.cross(*cell.cell.array[:2]))
    n_cells = int(np.ceil((thickness + gap) / spacing))
    slab = cell * (1, 1, n_cells)
    slab.rotate(np.cross(*slab.cell.array[:2]), "z", rotate_cell=True)
    slab.cell[2] = (0.0, 0.0, 1.0)
    slab.pbc = (True, True, False)
    slab.center(vacuum=VACUUM, axis=2)
    return slab, n_cells


def _layers(slab: Atoms) -> np.ndarray:
    """Number of each atom's layer, from the bottom."""
    height = slab.positions[:, 2]
    order = np.argsort(height)
    layer = np.zeros(len(slab), int)
    layer[order] = np.cumsum(np.diff(height[order], prepend=height.min()) > SAME_HEIGHT)
    return layer


def _first_spacings(slab: Atoms, layer: np.ndarray) -> np.ndarray:
    """Distance between the first two layers at both faces, Å; of mean heights."""
    top = layer.max()
    height = np.array([slab.positions[layer == k, 2].mean() for k in (0, 1, top - 1, top)])
    return np.array([height[1] - height[0], height[3] - height[2]])


def region_calculator(checkpoint: Checkpoint, region: AtomsRegion) -> MixtureCalculator:
    """Calculator of all structures, which share its compiled programs; it reads the experts from `OWNER`."""
    if not callable(region):
        check_value("region", region, int)
        if not 0 <= region < len(checkpoint.experts):
            last = len(checkpoint.experts) - 1
            raise ValueError(f"region must be a function or lie between 0 and {last}, got {region}.")
    return MixtureCalculator(checkpoint, lambda atoms: atoms.get_array(OWNER))


def assign_experts(atoms: Atoms, region: AtomsRegion, calculator: MixtureCalculator) -> Atoms:
    """The same atoms, with the expert of each stored in their array `OWNER` and a calculator attached."""
    owner = np.asarray(region(atoms) if callable(region) else region)
    if owner.ndim and owner.shape != (len(atoms),):
        raise ValueError(f"region must assign each of the {len(atoms)} atoms, got shape {owner.shape}.")
    atoms.set_array(OWNER, None)
    atoms.set_array(OWNER, np.broadcast_to(owner, len(atoms)).copy())
    atoms.calc = calculator
    calculator.reset()  # equal positions may have another assignment
    return atoms


def relax(atoms: Atoms, max_steps: int) -> tuple[bool, int]:
    """Relax the atoms in place; whether the relaxation converged, and its steps."""
    optimizer = BFGS(atoms, logfile=None)
    converged = optimizer.run(fmax=FORCE_LIMIT, steps=max_steps)
    return bool(converged), int(optimizer.nsteps)


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
