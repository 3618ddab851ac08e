"""The report of a crystal: values of known ratio, and no dependence on the cell that is given."""

import json

import jax
import numpy as np
import pytest
from ase.build import bulk
from example_crystals import SIGMA, keating, lennard_jones

from moe_md import experts
from moe_md.analysis.crystal_report import crystal_report
from moe_md.checkpoint import Checkpoint
from moe_md.data.references import Reference, reference_from_atoms

PLATINUM = reference_from_atoms(bulk("Pt"))


def one_expert(expert, params) -> Checkpoint:
    return Checkpoint((expert,), (params,), {}, {})


def test_a_stiffer_expert():
    """Energies 10 % larger: equal lattice constants, moduli 10 % larger, frequencies by sqrt(1.1)."""
    pair = [experts.lennard_jones(("Pt",), 4.2, epsilon=e, sigma=SIGMA) for e in (0.5, 0.55)]
    checkpoint = Checkpoint(tuple(pair), tuple(e.init(None) for e in pair), {}, {})
    with jax.enable_x64(False):  # the report is computed in float64 anyway
        report = crystal_report(checkpoint, PLATINUM)
    assert json.loads(json.dumps(report)) == report
    assert report["formula"] == "Pt" and report["space_group"] == "Fm-3m (225)"
    differences = report["differences"]
    assert differences.pop("lattice_constant") == pytest.approx(0, abs=1e-7)
    for name in ("phonons_rms", "phonons_max"):
        assert differences.pop(name) == pytest.approx(100 * (1.1**0.5 - 1), rel=1e-5)
    first = report["experts"][0]
    assert differences.pop("energy_meV_per_atom") == pytest.approx(
        100 * first["energy_eV_per_atom"], rel=1e-6
    )
    assert sorted(differences) == ["C11", "C12", "C44", "bulk_modulus", "elastic"]
    assert list(differences.values()) == pytest.approx([10] * 5, rel=1e-5)
    curve = first["equation_of_state"]
    assert np.argmin(curve["energy_eV_per_atom"]) == 4 and len(curve["pressure_GPa"]) == 9
    assert first["lattice_constant_A"] ** 3 / 4 == pytest.approx(curve["volume_A3_per_atom"][4])
    assert first["cell_A"] == pytest.approx([first["lattice_constant_A"]] * 3 + [90] * 3)
    assert first["bulk_modulus_GPa"] == pytest.approx((first["C11_GPa"] + 2 * first["C12_GPa"]) / 3)
    assert all(min(first["frequencies_THz"][name]) > 0 for name in ("X", "K", "L"))


@pytest.mark.parametrize("name", ["zincblende", "hexagonal"])
def test_the_cell_that_is_given_does_not_matter(name):
    """Neither its orientation nor its size; constants are those of the standard setting."""
    if name == "zincblende":
        potential, given = keating(), bulk("GaAs", "zincblende", a=5.3, cubic=True)
    else:
        potential, given = lennard_jones(3.4), bulk("Pt", "hcp", a=2.8, c=4.5)
    reports = []
    for turn in (False, True):
        atoms = given.copy()
        if turn:
            atoms = atoms.repeat((1, 1, 2))
            atoms.rotate(50, (1, 2, 3), rotate_cell=True)
            atoms.positions += 0.3
        reports.append(crystal_report(one_expert(*potential), reference_from_atoms(atoms)))
    first, second = (report["experts"][0] for report in reports)
    for key in ("elastic_GPa", "clamped_elastic_GPa", "cell_A"):
        np.testing.assert_allclose(first[key], second[key], rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(*(e["phonons"]["frequencies_THz"] for e in (first, second)), atol=1e-5)
    C, clamped = (np.array(first[key]) for key in ("elastic_GPa", "clamped_elastic_GPa"))
    if name == "zincblende":
        assert first["C44_GPa"] == C[3, 3] == pytest.approx(C[5, 5])
        assert first["C44_GPa"] < 0.9 * clamped[3, 3]
        assert np.abs(C[3:, :3]).max() < 1e-6  # axes along those of the cube
    else:
        assert "C44_GPa" not in first and reports[0]["space_group"] == "P6_3/mmc (194)"
        assert C[5, 5] == pytest.approx((C[0, 0] - C[0, 1]) / 2)  # the sixfold axis is z
        assert C[0, 0] == pytest.approx(C[1, 1]) and C[2, 2] != pytest.approx(C[0, 0], rel=1e-3)
        assert first["cell_A"][2] > 1.6 * first["cell_A"][0]


def test_a_structure_that_cannot_be_reported():
    expert, params = lennard_jones()
    with pytest.raises(ValueError, match="reference must be a crystal, got melt.xyz without symmetry"):
        crystal_report(one_expert(expert, params), Reference(PLATINUM.atoms, "", "melt.xyz"))
    outside = experts.lennard_jones(("Pt", "C"), 4.5, sigma=SIGMA, allowed_species=("C",))
    with pytest.raises(ValueError, match=r"domain of every expert, \('C',\) of expert 0, got Pt"):
        crystal_report(one_expert(outside, params), PLATINUM)
