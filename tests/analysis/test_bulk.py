"""Bulk properties against lattice sums and ASE."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units as ase_units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.data import atomic_masses
from ase.phonons import Phonons as AsePhonons

from moe_md import experts, units
from moe_md.analysis.bulk import elastic_constants, equation_of_state, relax_fcc
from moe_md.analysis.crystal_report import fcc_report
from moe_md.analysis.phonons import phonons
from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import frame_rows
from moe_md.data.structures import fcc_supercell
from moe_md.interfaces.ase import MixtureCalculator

SIGMA, EPSILON, CUTOFF = 2.5446, 0.6, 6.0
MASS = atomic_masses[78]
A_COMPRESSED = 3.75  # Å, where both potentials below are under pressure


@pytest.fixture(scope="module")
def crystal():
    expert = experts.lennard_jones(("C", "Pt"), CUTOFF, epsilon=EPSILON, sigma=SIGMA)
    return relax_fcc(expert, expert.init(None), "Pt")


@pytest.fixture(scope="module")
def angular():
    """An expert with angular terms and random parameters; its crystal is under pressure."""
    expert = experts.power_spectrum(
        ("C", "Pt"), 3.3, l_max=2, num_bessels=4, num_channels=4, hidden=(8,), avg_num_neighbors=6.0
    )
    return expert, jax.jit(expert.init)(jax.random.key(2))


def lennard_jones():
    expert = experts.lennard_jones(("C", "Pt"), CUTOFF, epsilon=EPSILON, sigma=SIGMA)
    return expert, expert.init(None)


def ase_lennard_jones():
    return LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF, ro=0.8 * CUTOFF, smooth=True)


def finite_strain(calculator, lattice_constant: float, strain, h: float = 1e-4) -> np.ndarray:
    """GPa, change of the stress (xx, yy, zz, yz, xz, xy) per strain, by central differences."""
    stress = []
    for sign in (1, -1):
        atoms = bulk("Pt", "fcc", a=lattice_constant)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + sign * h * np.asarray(strain)), scale_atoms=True)
        atoms.calc = calculator
        stress.append(atoms.get_stress())
    return (stress[0] - stress[1]) / (2 * h) / units.GPa


STRETCH = np.diag([1.0, 0, 0])
SHEAR = np.array([[0, 0, 0], [0, 0, 0.5], [0, 0.5, 0]])


def ase_energy_per_atom(lattice_constant: float) -> float:
    from ase import Atoms

    frame = fcc_supercell("Pt", lattice_constant, 4)
    atoms = Atoms(frame.symbols, frame.positions, cell=frame.cell, pbc=True)
    atoms.calc = ase_lennard_jones()
    return atoms.get_potential_energy() / len(atoms)


def test_equilibrium_agrees_with_ase(crystal):
    a0, h = crystal.lattice_constant, 2e-3
    low, middle, high = (ase_energy_per_atom(a0 * np.exp(s)) for s in (-h, 0.0, h))
    assert middle == pytest.approx(crystal.energy, abs=1e-9)
    assert (
        abs(high - low) / (2 * h) < 1e-3 * 9
    )  # dE/ds = (a^3 / 4) 3 P, zero within the error of the finite difference
    curvature = (high - 2 * middle + low) / h**2
    assert crystal.bulk_modulus_GPa == pytest.approx(curvature / (9 * a0**3 / 4) / units.GPa, rel=1e-3)


def test_agrees_with_the_lattice_sums():
    """Without truncation, a^6 = 16 sigma^6 A12 / A6 (Ashcroft and Mermin, ch. 20)."""
    A12, A6 = 12.13188, 14.45392
    nearest = (2 * A12 / A6) ** (1 / 6) * SIGMA
    expert = experts.lennard_jones(("Pt",), 16.0, epsilon=EPSILON, sigma=SIGMA, onset=15.0)
    crystal = relax_fcc(expert, expert.init(None), "Pt")
    assert crystal.lattice_constant == pytest.approx(np.sqrt(2) * nearest, rel=1e-3)
    assert crystal.energy == pytest.approx(-0.5 * EPSILON * A6**2 / A12, rel=1e-2)
    volume = nearest**3 / np.sqrt(2)
    modulus = 4 * EPSILON * A6**2 / A12 / volume / units.GPa  # B = -8 E / V
    assert crystal.bulk_modulus_GPa == pytest.approx(modulus, rel=2e-2)


def test_independent_of_the_guess(crystal):
    expert = experts.lennard_jones(("C", "Pt"), CUTOFF, epsilon=EPSILON, sigma=SIGMA)
    again = relax_fcc(expert, expert.init(None), "Pt", guess=4.1)
    assert again.lattice_constant == pytest.approx(crystal.lattice_constant, abs=1e-8)


def passing_messages(cutoff: float = 3.2):
    """Pair energies weighted by the neighbour's density: two hops."""

    def atom_energies(params, rows):
        r2 = jnp.sum(rows.displacement**2, axis=-1)
        bond = jnp.where(rows.mask & (r2 < cutoff**2), (1 - r2 / cutoff**2) ** 4, 0.0)
        density = jnp.sum(bond, axis=1)
        sent = density.at[rows.neighbor].get(mode="fill", fill_value=0.0)
        return params * jnp.sum(bond * (1 + 40 * sent**2), axis=1)

    return experts.Expert(lambda key: 100.0, atom_energies, cutoff, ("Pt",), ("Pt",), {}, num_hops=2), 100.0


def test_message_passing_in_a_primitive_cell():
    """Energies agree with a larger cell, and phonons with the speed of sound."""
    expert, params = passing_messages()
    rows = frame_rows(fcc_supercell("Pt", 3.9, 1), ("Pt",), expert.cutoff, dtype=float)
    (energy,) = equation_of_state(expert, params, lattice_constants=[3.9])["energy_eV_per_atom"]
    np.testing.assert_allclose(expert.atom_energies(params, rows), energy, rtol=1e-12)
    assert_speed_of_sound((expert, params), 3.9)


def test_equation_of_state_agrees_with_ase(crystal):
    constants = [3.8, crystal.lattice_constant, 4.1, 3.7]
    curve = equation_of_state(*lennard_jones(), lattice_constants=constants)
    for k, a in enumerate(constants):
        atoms = bulk("Pt", "fcc", a=a, cubic=True)
        atoms.calc = ase_lennard_jones()
        assert curve["volume_A3_per_atom"][k] == pytest.approx(atoms.get_volume() / 4)
        assert curve["energy_eV_per_atom"][k] == pytest.approx(atoms.get_potential_energy() / 4, abs=1e-9)
        assert curve["pressure_GPa"][k] == pytest.approx(-atoms.get_stress()[:3].mean() / units.GPa, abs=1e-7)
    assert abs(curve["pressure_GPa"][1]) < 1e-5 < curve["pressure_GPa"][0] < curve["pressure_GPa"][3]


@pytest.mark.parametrize("compressed", [False, True])
def test_elastic_constants_agree_with_finite_strains_of_ase(crystal, compressed):
    a = A_COMPRESSED if compressed else crystal.lattice_constant
    elastic = elastic_constants(*lennard_jones(), lattice_constant=a)
    stretched = finite_strain(ase_lennard_jones(), a, STRETCH)
    sheared = finite_strain(ase_lennard_jones(), a, SHEAR)
    assert pytest.approx(stretched[0], rel=1e-6) == elastic.C11
    assert pytest.approx(stretched[1], rel=1e-6) == elastic.C12
    assert pytest.approx(sheared[3], rel=1e-6) == elastic.C44
    # Pair potentials at zero pressure have C12 = C44 (Cauchy); under pressure, C12 - C44 = 2 P.
    (pressure,) = equation_of_state(*lennard_jones(), lattice_constants=[a])["pressure_GPa"]
    assert pytest.approx(2 * pressure, abs=1e-5 * elastic.C12) == elastic.C12 - elastic.C44
    if not compressed:
        assert elastic.bulk_modulus == pytest.approx(crystal.bulk_modulus_GPa, rel=1e-8)


def test_elastic_constants_with_angular_terms_agree_with_finite_strains(angular):
    elastic = elastic_constants(*angular, lattice_constant=A_COMPRESSED)
    expert, params = angular
    calculator = MixtureCalculator(Checkpoint((expert,), (params,), {}, {}), 0)
    stretched = finite_strain(calculator, A_COMPRESSED, STRETCH)
    assert elastic[:2] == pytest.approx(stretched[:2], rel=1e-5)
    assert pytest.approx(finite_strain(calculator, A_COMPRESSED, SHEAR)[3], rel=1e-5) == elastic.C44


def test_the_bulk_modulus_is_the_slope_of_the_pressure(angular):
    h = 1e-4
    curve = equation_of_state(*angular, lattice_constants=[A_COMPRESSED * (1 - h), A_COMPRESSED * (1 + h)])
    slope = np.diff(curve["pressure_GPa"]) / np.diff(np.log(curve["volume_A3_per_atom"]))
    elastic = elastic_constants(*angular, lattice_constant=A_COMPRESSED)
    # The pressure is large enough to tell measures of strain apart (a third of it in the bulk modulus).
    assert min(np.abs(curve["pressure_GPa"])) > 1e-2 * abs(elastic.bulk_modulus)
    assert elastic.bulk_modulus == pytest.approx(-slope[0], rel=1e-5)


def pair_frequencies(q_points, lattice_constant: float) -> np.ndarray:
    """M w^2 are the eigenvalues of sum_R [f'' rr + f'/r (1 - rr)] (1 - cos q.R), f the pair energy."""
    atoms = bulk("Pt", "fcc", a=lattice_constant)
    n = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), -1).reshape(-1, 3)
    R = n @ atoms.cell.array
    r = np.linalg.norm(R, axis=1)
    keep = (r > 0) & (r < CUTOFF)
    n, R, r = n[keep], R[keep], r[keep]

    def f(r):
        o2, c2 = (0.8 * CUTOFF) ** 2, CUTOFF**2
        switch = (c2 - r**2) ** 2 * (c2 + 2 * r**2 - 3 * o2) / (c2 - o2) ** 3
        return 4 * EPSILON * ((SIGMA / r) ** 12 - (SIGMA / r) ** 6) * np.where(r**2 < o2, 1.0, switch)

    h = 1e-4
    first, second = (f(r + h) - f(r - h)) / (2 * h), (f(r + h) - 2 * f(r) + f(r - h)) / h**2
    rr = np.einsum("na,nb->nab", R, R) / r[:, None, None] ** 2
    springs = second[:, None, None] * rr + (first / r)[:, None, None] * (np.eye(3) - rr)
    wave = 1 - np.cos(2 * np.pi * q_points @ n.T)
    w2 = np.linalg.eigvalsh(np.einsum("qn,nab->qab", wave, springs) / MASS)
    return np.sqrt(np.abs(w2)) * ase_units.fs * 1e3 / (2 * np.pi)  # per time unit of ASE to THz


def test_phonons_of_a_pair_potential_agree_with_the_closed_form(crystal):
    waves = phonons(*lennard_jones(), lattice_constant=crystal.lattice_constant, n_points=9)
    # Rounding in the second differences of the reference: 1e-16 eV / h^2, 1e-8 of a force constant.
    expected = pair_frequencies(waves.q_points, crystal.lattice_constant)
    np.testing.assert_allclose(waves.frequencies_THz, expected, atol=1e-4)
    assert waves.frequencies_THz.max() > 4
    assert waves.labels == ("Γ", "X", "K", "Γ", "L") and waves.ticks == (0, 8, 16, 24, 32)
    corners = np.diff(waves.distance[list(waves.ticks)]) * crystal.lattice_constant / (2 * np.pi)
    np.testing.assert_allclose(corners, [1, 0.125**0.5, 1.125**0.5, 0.75**0.5], rtol=1e-12)
    assert np.diff(waves.distance).min() > 0


def test_phonons_with_angular_terms_agree_with_ase(angular, tmp_path):
    """ASE displaces an atom of the same supercell."""
    expert, params = angular
    waves = phonons(expert, params, lattice_constant=A_COMPRESSED, repeat=5, n_points=4)
    calculator = MixtureCalculator(Checkpoint((expert,), (params,), {}, {}), 0)
    ase_phonons = AsePhonons(
        bulk("Pt", "fcc", a=A_COMPRESSED),
        calculator,
        supercell=(5, 5, 5),
        delta=2e-3,
        name=str(tmp_path / "phonons"),
    )
    ase_phonons.run()
    ase_phonons.read(acoustic=True)
    # ASE returns energies h f, imaginary ones negative as in phonopy.
    expected = ase_phonons.band_structure(waves.q_points) / (ase_units._hplanck * ase_units.J) * 1e-12
    np.testing.assert_allclose(waves.frequencies_THz, np.sort(expected, axis=1), atol=2e-3)
    assert np.abs(waves.frequencies_THz).max() > 0.5


def assert_speed_of_sound(potential, a: float):
    """Near Γ along Γ-X, M w^2 = V C44 q^2 (twice) and V C11 q^2 with Birch's constants at any pressure."""
    waves = phonons(*potential, lattice_constant=a, n_points=101)
    elastic = elastic_constants(*potential, lattice_constant=a)
    speed = waves.frequencies_THz[1] / waves.distance[1] * 2 * np.pi / (ase_units.fs * 1e3)
    modulus = MASS * speed**2 / (a**3 / 4) / units.GPa
    # w is proportional to a sine: smaller by a relative (q a / 2)^2 / 6 = 4e-5, twice that in the square.
    assert modulus == pytest.approx(sorted([elastic.C44, elastic.C44, elastic.C11]), rel=1e-3)


def test_long_waves_have_the_speed_of_sound():
    assert_speed_of_sound(lennard_jones(), A_COMPRESSED)


def test_missing_phonopy_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "phonopy", None)
    with pytest.raises(ImportError, match="validate"):
        phonons(*lennard_jones(), lattice_constant=3.9)


def test_report_of_a_stiffer_expert():
    """Energies 10 % larger: equal lattice constants, moduli 10 % larger, frequencies by sqrt(1.1)."""
    pair = [experts.lennard_jones(("Pt",), 4.2, epsilon=e, sigma=SIGMA) for e in (0.5, 0.55)]
    checkpoint = Checkpoint(tuple(pair), tuple(e.init(None) for e in pair), {}, {})
    with jax.enable_x64(False):  # the report is computed in float64 anyway
        report = fcc_report(checkpoint)
    assert json.loads(json.dumps(report)) == report
    differences = report["differences"]
    assert differences.pop("lattice_constant") == pytest.approx(0, abs=1e-7)
    for name in ("phonons_rms", "phonons_max"):
        assert differences.pop(name) == pytest.approx(100 * (1.1**0.5 - 1), rel=1e-5)
    first = report["experts"][0]
    assert differences.pop("energy_meV_per_atom") == pytest.approx(
        100 * first["energy_eV_per_atom"], rel=1e-6
    )
    assert sorted(differences) == ["C11", "C12", "C44", "bulk_modulus"]
    assert list(differences.values()) == pytest.approx([10] * 4, rel=1e-5)
    curve = first["equation_of_state"]
    assert np.argmin(curve["energy_eV_per_atom"]) == 4 and len(curve["pressure_GPa"]) == 9
    assert first["lattice_constant_A"] ** 3 / 4 == pytest.approx(curve["volume_A3_per_atom"][4])
    assert all(min(first["frequencies_THz"][name]) > 0 for name in ("X", "K", "L"))


def test_report_of_one_expert_and_of_an_element_outside_a_domain():
    expert = experts.lennard_jones(("Pt", "C"), 4.5, sigma=SIGMA)
    assert fcc_report(Checkpoint((expert,), (expert.init(None),), {}, {}))["differences"] is None
    out_of_domain = experts.lennard_jones(("Pt", "C"), 4.5, sigma=SIGMA, allowed_species=("C",))
    with pytest.raises(ValueError, match=r"domain of every expert, \('C',\) of expert 1, got 'Pt'"):
        fcc_report(Checkpoint((expert, out_of_domain), (expert.init(None),) * 2, {}, {}))


def test_bad_input():
    expert = experts.lennard_jones(("C", "Pt"), CUTOFF, sigma=SIGMA)
    params = expert.init(None)
    with pytest.raises(ValueError, match="symbol must be one of .* got 'Au'"):
        relax_fcc(expert, params, "Au")
    with pytest.raises(ValueError, match="minimum"):
        relax_fcc(expert, params, "Pt", guess=6.0)
    with pytest.raises(ValueError, match="guess"):
        relax_fcc(expert, params, "Pt", guess=-1.0)
    with pytest.raises(ValueError, match="symbol"):
        phonons(expert, params, "Au", lattice_constant=4.0)
    with pytest.raises(ValueError, match="lattice_constant must be positive"):
        elastic_constants(expert, params, lattice_constant=-1.0)
    with pytest.raises(ValueError, match="repeat .* got 0"):
        phonons(expert, params, lattice_constant=4.0, repeat=0)
    with pytest.raises(ValueError, match="repeat must be of type int"):
        phonons(expert, params, lattice_constant=4.0, repeat=2.5)
    with pytest.raises(ValueError, match="n_points .* and 1"):
        phonons(expert, params, lattice_constant=4.0, n_points=1)
    with pytest.raises(ValueError, match="lattice_constants must not be empty"):
        equation_of_state(expert, params, lattice_constants=[])
    with pytest.raises(ValueError, match="lattice_constants must be positive, got 0"):
        equation_of_state(expert, params, lattice_constants=[4.0, 0])
