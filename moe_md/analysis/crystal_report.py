"""Properties of a perfect crystal under each expert, and the differences of two experts."""

from typing import NamedTuple

import numpy as np
import spglib
from ase import Atoms
from ase.cell import Cell
from ase.dft.kpoints import BandPath

from moe_md.analysis.bulk import elastic_constants, equation_of_state, relax_crystal
from moe_md.analysis.phonons import import_phonopy, phonons
from moe_md.checkpoint import Checkpoint
from moe_md.data.overview import NEAR, shortest_distance
from moe_md.data.reading import frame_from_atoms
from moe_md.data.references import SYMMETRY_TOLERANCE, Reference
from moe_md.experts.base import Expert, Params
from moe_md.renamed import missing_attribute

EOS_STRAINS = np.linspace(-0.04, 0.04, 9)  # relative changes of lengths
MIN_COMPARED_THZ = 0.3  # frequencies below it, next to Γ, have no meaningful relative difference
MIN_COMPARED_SHARE = 0.05  # of the largest elastic constant; smaller ones are not compared
FIRST_CUBIC = 195  # number of the first cubic space group
N_POINTS = 101  # wave vectors of the phonons


class StandardCell(NamedTuple):
    """A crystal in the standard setting of its space group (spglib)."""

    atoms: Atoms  # primitive cell
    conventional: np.ndarray  # [3, 3], conventional lattice vectors in those of the primitive cell
    space_group: str  # international symbol and number, such as "Fm-3m (225)"
    is_cubic: bool


def crystal_report(checkpoint: Checkpoint, reference: Reference) -> dict:
    """Properties of a perfect crystal under every expert, and differences of the first two experts.

    Args:
        checkpoint: any number of experts.
        reference: a crystal of species in the domain of every expert, near equilibrium.

    Returns:
        A dictionary that JSON can store, computed in float64:

        - `formula` and `space_group`;
        - `experts`, for each expert in order `builder`, `lattice_constant_A` (the first length of the
          conventional cell), `cell_A` (its three lengths, Å, and three angles, degrees),
          `volume_A3_per_atom`, `energy_eV_per_atom`, `bulk_modulus_GPa`, `elastic_GPa` and
          `clamped_elastic_GPa` (6 x 6, Voigt order xx yy zz yz xz xy, in the standard setting; with
          relaxed and with clamped internal coordinates), of cubic crystals `C11_GPa`, `C12_GPa` and
          `C44_GPa`, `equation_of_state` (lengths within 4 % of equilibrium), `phonons` (`distance`,
          `labels`, `ticks`, `frequencies_THz`) and `frequencies_THz` at the corners of the path but Γ,
          each expert at its own cell;
        - `differences` of the second expert from the first, None for one expert: in
          percent `lattice_constant` (of the three lengths the one that differs most), `bulk_modulus`,
          `elastic` (the largest over constants of at least 5 % of the largest constant), of cubic
          crystals `C11`, `C12`, `C44`; `phonons_rms` and `phonons_max` (over frequencies of at least
          0.3 THz under the first expert); and `energy_meV_per_atom`.

    Raises:
        ValueError: the reference is not a crystal, a species is outside the domain of an expert, or as
            `relax_crystal`.
        ImportError: phonopy is not installed.
    """
    if not reference.is_crystal:
        raise ValueError(
            f"reference must be a crystal, got {reference.source or reference.formula} without symmetry:"
            " give the structure of a perfect crystal."
        )
    for number, expert in enumerate(checkpoint.experts):
        outside = sorted(set(reference.atoms.get_chemical_symbols()) - set(expert.allowed_species))
        if outside:
            raise ValueError(
                f"reference must be in the domain of every expert, {expert.allowed_species} of expert"
                f" {number}, got {reference.formula}: choose another crystal."
            )
    import_phonopy()
    standard = standard_cell(reference.atoms)
    properties: list[dict] = []
    path: BandPath | None = None
    for expert, params in zip(checkpoint.experts, checkpoint.params, strict=True):
        entry, path = _properties(expert, params, standard, path)
        properties.append(entry)
    return {
        "formula": reference.formula,
        "space_group": standard.space_group,
        "experts": properties,
        "differences": _differences(*properties[:2]) if len(properties) > 1 else None,
    }


def standard_cell(atoms: Atoms) -> StandardCell:
    """The primitive cell of a crystal in the standard setting: origin, axes and orientation of spglib.

    Args:
        atoms: any cell of the crystal in any orientation; positions are made exactly symmetric.

    Returns:
        The same primitive cell for each cell of the crystal; the number of atoms may be smaller than given.

    Raises:
        ValueError: spglib finds no space group.

    >>> from ase.build import bulk
    >>> turned = bulk("Si", cubic=True)
    >>> turned.rotate(30, "x", rotate_cell=True)
    >>> standard_cell(turned).atoms.cell.cellpar().round(2).tolist()
    [3.84, 3.84, 3.84, 60.0, 60.0, 60.0]
    """
    whole = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    tolerance = SYMMETRY_TOLERANCE * (shortest_distance(frame_from_atoms(whole)) or NEAR)
    cell = (whole.cell.array, whole.get_scaled_positions(), whole.numbers)
    primitive = spglib.standardize_cell(cell, to_primitive=True, symprec=tolerance)
    conventional = spglib.standardize_cell(cell, to_primitive=False, symprec=tolerance)
    dataset = spglib.get_symmetry_dataset(cell, symprec=tolerance)
    if primitive is None or conventional is None or dataset is None:
        raise ValueError(
            f"atoms must have a space group, got {atoms.symbols} without one that spglib finds at a tolerance"
            f" of {tolerance:.2g} Å: give the structure of a perfect crystal."
        )
    lattice, positions, numbers = primitive
    reduced = Atoms(numbers=numbers, scaled_positions=positions, cell=lattice, pbc=True)
    vectors = conventional[0] @ np.linalg.inv(lattice)
    space_group = f"{dataset.international} ({dataset.number})"
    return StandardCell(reduced, vectors, space_group, dataset.number >= FIRST_CUBIC)


def _properties(
    expert: Expert, params: Params, standard: StandardCell, path: BandPath | None
) -> tuple[dict, BandPath]:
    """The entry of one expert in `experts` of `crystal_report`, and the path of its phonons."""
    crystal = relax_crystal(expert, params, standard.atoms)
    atoms = _standard_orientation(crystal.atoms, standard)
    cell = Cell(standard.conventional @ atoms.cell.array).cellpar()
    elastic = elastic_constants(expert, params, atoms)
    path = atoms.cell.bandpath(npoints=N_POINTS) if path is None else path
    waves = phonons(expert, params, atoms, path=path)
    entry = {
        "builder": expert.config["builder"],
        "lattice_constant_A": float(cell[0]),
        "cell_A": cell.tolist(),
        "volume_A3_per_atom": crystal.volume,
        "energy_eV_per_atom": crystal.energy,
        "bulk_modulus_GPa": crystal.bulk_modulus_GPa,
        "elastic_GPa": elastic.relaxed.tolist(),
        "clamped_elastic_GPa": elastic.clamped.tolist(),
    }
    if standard.is_cubic:
        for i, j in ((1, 1), (1, 2), (4, 4)):
            entry[f"C{i}{j}_GPa"] = float(elastic.relaxed[i - 1, j - 1])
    entry["equation_of_state"] = equation_of_state(expert, params, atoms, strains=EOS_STRAINS)
    entry["frequencies_THz"] = {
        label: waves.frequencies_THz[tick].tolist()
        for label, tick in zip(waves.labels, waves.ticks)
        if label != "Γ" and "|" not in label
    }
    entry["phonons"] = {
        "distance": waves.distance.tolist(),
        "labels": list(waves.labels),
        "ticks": list(waves.ticks),
        "frequencies_THz": waves.frequencies_THz.tolist(),
    }
    return entry, path


def _standard_orientation(atoms: Atoms, standard: StandardCell) -> Atoms:
    """The crystal turned so that its conventional cell has a along x and b in the plane of x and y."""
    conventional = standard.conventional @ atoms.cell.array
    turned = Cell(conventional).standard_form()[0].array
    rotation = np.linalg.solve(conventional, turned)  # rows are multiplied by it
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array @ rotation, scale_atoms=True)
    return atoms


def _differences(first: dict, second: dict) -> dict[str, float]:
    """Entry `differences` of `crystal_report`: percent of the first expert, energy in meV per atom."""

    def percent(key: str) -> float:
        return 100 * (second[key] / first[key] - 1)

    def largest(a, b) -> float:
        relative = 100 * (np.asarray(b, float) / np.asarray(a, float) - 1)
        return float(relative[np.argmax(np.abs(relative))])

    C_1, C_2 = (np.array(entry["elastic_GPa"]) for entry in (first, second))
    is_large = np.abs(C_1) >= MIN_COMPARED_SHARE * np.abs(C_1).max()
    f_1, f_2 = (np.array(entry["phonons"]["frequencies_THz"]) for entry in (first, second))
    compared = f_1 >= MIN_COMPARED_THZ
    relative = 100 * (f_2[compared] / f_1[compared] - 1)
    return {
        "lattice_constant": largest(first["cell_A"][:3], second["cell_A"][:3]),
        "bulk_modulus": percent("bulk_modulus_GPa"),
        "elastic": largest(C_1[is_large], C_2[is_large]),
        **{name: percent(f"{name}_GPa") for name in ("C11", "C12", "C44") if f"{name}_GPa" in first},
        "phonons_rms": float(np.sqrt(np.mean(relative**2))),
        "phonons_max": float(np.abs(relative).max()),
        "energy_meV_per_atom": 1000 * (second["energy_eV_per_atom"] - first["energy_eV_per_atom"]),
    }


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
