"""Perfect crystals that are found in datasets."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.spacegroup import crystal as of_spacegroup

from moe_md.data import (
    dataset_from_frames,
    describe_reference,
    find_references,
    frame_from_atoms,
    read_references,
    reference_from_atoms,
)
from moe_md.data.references import reference_from_dict, reference_to_dict

RUTILE = of_spacegroup(
    ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.6, 4.6, 2.96, 90, 90, 90]
)
CRYSTALS = {
    "fcc": (bulk("Cu", cubic=True) * 2, "Cu", "Fm-3m (225)", 1),
    "bcc": (bulk("W", cubic=True) * (2, 2, 3), "W", "Im-3m (229)", 1),
    "hcp": (bulk("Be") * (3, 3, 2), "Be", "P6_3/mmc (194)", 2),
    "diamond": (bulk("Si", cubic=True) * 2, "Si", "Fd-3m (227)", 2),
    "rock salt": (bulk("MgO", "rocksalt", a=4.21, cubic=True), "MgO", "Fm-3m (225)", 2),
    "rutile": (RUTILE * (1, 1, 2), "TiO2", "P4_2/mnm (136)", 6),
}


def with_energy(atoms: Atoms, per_atom: float) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=per_atom * len(atoms))
    return atoms


def found(*images: Atoms):
    return find_references(dataset_from_frames([frame_from_atoms(atoms) for atoms in images]))


@pytest.mark.parametrize("name", CRYSTALS)
def test_a_supercell_with_small_displacements(name):
    """The lowest energy of a composition is taken, at its own volume, and reduced to the primitive cell."""
    atoms, formula, space_group, n = CRYSTALS[name]
    wide = atoms.copy()
    wide.set_cell(1.03 * wide.cell.array, scale_atoms=True)
    nearly = atoms.copy()
    nearly.rattle(0.005, seed=1)
    (reference,) = found(with_energy(wide, -1.0), with_energy(nearly, -1.1), with_energy(wide, -0.9))
    assert (reference.formula, reference.space_group, len(reference.atoms)) == (formula, space_group, n)
    assert reference.atoms.get_volume() / n == pytest.approx(atoms.get_volume() / len(atoms), rel=1e-3)
    assert describe_reference(reference).startswith(f"{formula}, {space_group}, {n} atom")


def test_what_is_no_crystal():
    """A slab in a periodic cell, a molecule in a box, an atom alone, and a melt."""
    slab = fcc111("Cu", (2, 2, 4), vacuum=6.0, periodic=True)
    molecule = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[9.0] * 3, pbc=True)
    alone = Atoms("C", cell=[9.0] * 3, pbc=True)
    hot = bulk("Ag", cubic=True) * 2
    hot.rattle(0.5, seed=0)
    assert found(*(with_energy(atoms, -1.0) for atoms in (slab, molecule, alone, hot))) == []
    assert found(bulk("Cu")) == []  # without an energy none is the lowest


def test_the_most_frequent_comes_first():
    iron, ordered = bulk("Fe", cubic=True), bulk("CuAu", "cesiumchloride", a=3.1)
    references = found(*(with_energy(ordered, -1.0 - 0.1 * k) for k in range(3)), with_energy(iron, -2.0))
    assert [r.formula for r in references] == ["AuCu", "Fe"]
    np.testing.assert_allclose(references[0].atoms.cell.lengths(), 3.1)


def test_references_from_files(tmp_path):
    (bulk("W", cubic=True) * 2).write(tmp_path / "w.cif")
    RUTILE.write(tmp_path / "rutile.vasp")
    tungsten, oxide = read_references(f"{tmp_path / 'w.cif'}, {tmp_path / 'rutile.vasp'}")
    assert (tungsten.space_group, len(tungsten.atoms)) == ("Im-3m (229)", 1) and tungsten.source.endswith(
        "w.cif"
    )
    assert (oxide.space_group, len(oxide.atoms)) == ("P4_2/mnm (136)", 6) and oxide.is_crystal


def test_a_melt_is_kept_whole():
    melt = bulk("Ag", cubic=True) * 2
    melt.rattle(0.5, seed=0)
    reference = reference_from_atoms(melt, "melt.xyz")
    assert not reference.is_crystal and len(reference.atoms) == 32
    assert describe_reference(reference).startswith("Ag, disordered, 32 atoms in ")
    stored = reference_from_dict(reference_to_dict(reference))
    np.testing.assert_array_equal(stored.atoms.positions, melt.positions)
    assert stored[1:] == reference[1:]


@pytest.mark.parametrize(
    "atoms, message",
    [
        (fcc111("Cu", (2, 2, 4), vacuum=6.0), "references must be periodic in all directions, got Cu16"),
        (fcc111("Cu", (2, 2, 4), vacuum=6.0, periodic=True), "references must fill their cell, got Cu16"),
        (Atoms("Cu", cell=[9.0] * 3, pbc=True), "references must fill their cell, got Cu "),
    ],
)
def test_what_cannot_be_a_reference(atoms, message):
    with pytest.raises(ValueError, match=message):
        reference_from_atoms(atoms)
