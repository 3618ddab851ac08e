import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.lj import LennardJones
from depths import short
from jax_md import space

import moe_md as mm
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.interfaces.cached_rows import bucket_size

SPECIES = ("C", "O", "Pt")


@pytest.fixture(scope="module")
def checkpoint():
    """Two untrained experts that differ in kind and cutoff, and a Lennard-Jones one."""
    experts = (
        mm.experts.allegro(
            SPECIES,
            3.6,
            l_max=1,
            num_layers=1,
            num_scalar_features=8,
            num_tensor_features=4,
            avg_num_neighbors=12.0,
        ),
        mm.experts.power_spectrum(
            SPECIES, 4.1, l_max=1, num_bessels=4, num_channels=4, hidden=(8,), avg_num_neighbors=12.0
        ),
        mm.experts.lennard_jones(SPECIES, 5.0, epsilon=0.4, sigma=1.2),
    )
    return mm.Checkpoint(experts, tuple(e.init(jax.random.key(k)) for k, e in enumerate(experts)), {}, {})


@pytest.fixture(scope="module")
def calculator(checkpoint):
    """Neighbouring atoms belong to different experts: an expert boundary surrounds every atom."""
    return MixtureCalculator(checkpoint, lambda atoms: np.arange(len(atoms)) % 3)


def rattled(atoms, scale=0.1):
    atoms = atoms.copy()
    atoms.rattle(scale, seed=3)
    return atoms


CELLS = {
    "one atom": bulk("Pt", a=3.9),
    "sheared cell": rattled(bulk("Pt", a=3.9, cubic=True)),
    "slab": rattled(fcc111("Pt", (1, 2, 3), a=3.97, vacuum=5.0)),
    "open slab": rattled(fcc111("Pt", (2, 1, 2), a=3.97)),
    "molecule": rattled(molecule("CO2")),
    "molecule in a box": rattled(molecule("CO", vacuum=4.0)),
    "wire": rattled(
        ase.Atoms(
            "PtCOPt", [[0, 0, 0], [1.9, 0, 0.5], [2.6, 1, 0.5], [4.2, 0, 0]], cell=[6, 0, 0], pbc=(1, 0, 0)
        )
    ),
}
CELLS["sheared cell"].set_cell(
    CELLS["sheared cell"].cell.array @ [[1, 0.1, 0], [0, 1, 0.2], [0, 0, 1.05]], scale_atoms=True
)


@pytest.mark.parametrize("name", CELLS)
def test_forces_are_the_gradient(calculator, name):
    atoms = CELLS[name].copy()
    atoms.calc = calculator
    forces = atoms.get_forces()
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-4), atol=2e-6)
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(atoms.get_potential_energies().sum(), atoms.get_potential_energy(), rtol=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


@pytest.mark.parametrize("name", ["one atom", "sheared cell", "slab", "molecule in a box"])
def test_stress_is_the_strain_derivative(calculator, name):
    atoms = CELLS[name].copy()
    atoms.calc = calculator
    stress = atoms.get_stress()
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5), atol=1e-7)
    if name == "sheared cell":
        assert np.abs(stress).min() > 1e-4  # every component is tested


@pytest.mark.parametrize("name", ["molecule", "wire", "open slab"])
def test_no_stress_without_a_volume(calculator, name):
    atoms = CELLS[name].copy()
    assert atoms.cell.rank < 3
    atoms.calc = calculator
    with pytest.raises(PropertyNotImplementedError, match="stress needs a cell with a volume"):
        atoms.get_stress()


@pytest.mark.parametrize("name", ["one atom", "sheared cell", "slab", "open slab"])
def test_lennard_jones_of_ase(name):
    atoms = CELLS[name].copy()
    expert = mm.experts.lennard_jones(("Pt",), 5.6, epsilon=0.6, sigma=2.5446, onset=4.5)
    ours = MixtureCalculator(mm.Checkpoint((expert,), (expert.init(None),), {}, {}), 0)
    theirs = LennardJones(epsilon=0.6, sigma=2.5446, rc=5.6, ro=4.5, smooth=True)
    properties = ["energy", "forces", "energies"] + (["stress"] if atoms.cell.rank == 3 else [])
    for calc in (ours, theirs):
        calc.calculate(atoms, properties, ["positions"])
    for name in properties:
        np.testing.assert_allclose(ours.results[name], theirs.results[name], rtol=1e-10, atol=1e-11)


def test_agrees_with_the_mixture(checkpoint):
    """The same slab through jax-md's lists."""
    atoms = rattled(fcc111("Pt", (4, 6, 2), a=3.97, orthogonal=True, vacuum=6.0))
    assignment = np.arange(len(atoms)) % 3
    region = mm.regions.fixed(assignment, 3)
    displacement_fn, _ = space.periodic(jnp.asarray(np.diag(atoms.cell)))
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn,
        np.diag(atoms.cell),
        checkpoint.potentials,
        np.full(len(atoms), 2),
        region,
        per_particle=True,
    )
    R = jnp.asarray(atoms.positions)
    neighbors = neighbor_fn.allocate(R)
    atoms.calc = MixtureCalculator(checkpoint, region)
    np.testing.assert_allclose(atoms.get_potential_energies(), jax.jit(energy_fn)(R, neighbors), atol=1e-10)
    forces = -jax.jit(jax.grad(lambda R: jnp.sum(energy_fn(R, neighbors))))(R)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-9)
    atoms.calc = MixtureCalculator(checkpoint, assignment, chunk_size=5)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-9)


def test_compiled_once_per_padded_shape():
    expert = mm.experts.power_spectrum(
        SPECIES, 4.1, l_max=1, num_bessels=4, num_channels=4, hidden=(8,), avg_num_neighbors=12.0
    )
    checkpoint = mm.Checkpoint((expert,), (expert.init(jax.random.key(0)),), {}, {})
    calculator = MixtureCalculator(checkpoint, 0)
    evaluate = calculator._evaluators[0].__wrapped__  # the compiled function

    def energy(atoms):
        calculator.calculate(atoms)
        return calculator.results["energy"]

    slab = CELLS["slab"]
    first = energy(slab)
    assert evaluate._cache_size() == 1
    energy(rattled(slab, 0.02))
    assert evaluate._cache_size() == 1
    twice = energy(slab * (1, 2, 1))
    np.testing.assert_allclose(twice, 2 * first, rtol=1e-10)
    assert evaluate._cache_size() == 2
    energy(slab * (2, 1, 1))  # the same numbers of atoms and neighbours
    assert evaluate._cache_size() == 2
    # Another calculator, as for the next image of a band.
    calculator = MixtureCalculator(checkpoint, 0, dr_threshold=0.3)
    energy(slab)
    assert evaluate._cache_size() == 2
    assert [bucket_size(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 17, 100)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 128]


def test_dtype_leaves_jax_as_it_is(checkpoint):
    atoms = CELLS["slab"]
    double, single = (MixtureCalculator(checkpoint, 0, dtype=d) for d in ("float64", "float32"))
    single.calculate(atoms)
    with jax.enable_x64(False):
        double.calculate(atoms)
        assert jnp.zeros(1).dtype == jnp.float32
    exact = MixtureCalculator(checkpoint, 0)
    exact.calculate(atoms)
    np.testing.assert_allclose(double.results["forces"], exact.results["forces"], atol=1e-12)
    error = np.abs(single.results["forces"] - exact.results["forces"]).max()
    assert 1e-10 < error < 1e-3


def test_warns_outside_the_domain():
    expert = mm.experts.lennard_jones(SPECIES, 4.0, epsilon=0.1, sigma=1.0, allowed_species=("Pt",))
    calculator = MixtureCalculator(mm.Checkpoint((expert,), (expert.init(None),), {}, {}), 0)
    with pytest.warns(UserWarning, match=r"expert 0 2 atoms outside its domain.* may meet Pt alone"):
        calculator.calculate(CELLS["molecule in a box"])


@pytest.mark.parametrize(
    "region, message",
    [
        (3, "region must name experts 0 to 2 of the checkpoint, got 3 to 3"),
        ([0, -1], "region must name experts 0 to 2 of the checkpoint, got -1 to 0"),
        ([0.5, 1.0], "region must be an expert's number"),
        (None, "region must be an expert's number"),
    ],
)
def test_bad_regions(checkpoint, region, message):
    with pytest.raises(ValueError, match=message):
        MixtureCalculator(checkpoint, region)


def test_bad_atoms(checkpoint):
    with pytest.raises(ValueError, match="region must assign each of the 6 atoms, got a length of 2"):
        MixtureCalculator(checkpoint, [0, 1]).calculate(CELLS["slab"])
    with pytest.raises(ValueError, match=r"the checkpoint's species \('C', 'O', 'Pt'\), got Cu, H"):
        MixtureCalculator(checkpoint, 0).calculate(ase.Atoms("HCuPt", np.eye(3)))
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float64', got 'float16'"):
        MixtureCalculator(checkpoint, 0, dtype="float16")
    with pytest.raises(ValueError, match="name_or_path must be"):
        MixtureCalculator("nowhere", 0)


def test_stresses_of_atoms_add_up_and_come_from_their_own_rows(checkpoint, calculator):
    """Per-atom stresses add up to the stress; an atom's does not depend on the experts of other atoms."""
    atoms = CELLS["sheared cell"].copy()
    atoms.calc = calculator
    mixed = atoms.get_stresses()
    np.testing.assert_allclose(mixed.sum(axis=0), atoms.get_stress(), atol=1e-12)
    assert mixed.shape == (4, 6) and np.abs(mixed).max() > 1e-4
    for e in range(3):
        atoms.calc = MixtureCalculator(checkpoint, region=e)
        own = np.arange(4) % 3 == e
        np.testing.assert_allclose(mixed[own], atoms.get_stresses()[own], atol=1e-12)


def test_stresses_of_lennard_jones_are_ases(checkpoint):
    atoms = CELLS["sheared cell"].copy()
    atoms.calc = MixtureCalculator(checkpoint, region=2)
    ours = atoms.get_stresses()
    atoms.calc = LennardJones(epsilon=0.4, sigma=1.2, rc=5.0, ro=4.0, smooth=True)
    np.testing.assert_allclose(ours, atoms.get_stresses(), atol=1e-10)


@pytest.mark.thorough
@pytest.mark.parametrize("name", short(["sheared cell", "molecule"], only=["molecule"]))
def test_an_expert_that_passes_messages_gets_its_halo(name):
    """Half of the atoms on NequIP: forces are the gradient, energies equal those of NequIP on all atoms."""
    experts = (
        mm.experts.nequip(
            SPECIES, 3.0, l_max=1, hidden_irreps="4x0e + 2x1o", radial_width=8, avg_num_neighbors=8.0
        ),
        mm.experts.lennard_jones(SPECIES, 3.5, epsilon=0.4, sigma=1.2),
    )
    checkpoint = mm.Checkpoint(
        experts, tuple(e.init(jax.random.key(k)) for k, e in enumerate(experts)), {}, {}
    )
    atoms = CELLS[name].copy()
    owner = np.arange(len(atoms)) % 2
    atoms.calc = MixtureCalculator(checkpoint, region=owner)
    mixed, forces = atoms.get_potential_energies(), atoms.get_forces()
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6)
    if atoms.cell.rank == 3:
        np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-7)
    atoms.calc = MixtureCalculator(checkpoint, region=0)
    np.testing.assert_allclose(mixed[owner == 0], atoms.get_potential_energies()[owner == 0], atol=1e-10)


def count_rebuilds(calculator, monkeypatch):
    """A list with one entry for each time that the calculator builds its rows."""
    builds, build_cache = [], calculator._build_cache
    monkeypatch.setattr(calculator, "_build_cache", lambda *a: builds.append(1) or build_cache(*a))
    return builds


@pytest.mark.parametrize("name", short(["slab", "sheared cell", "one atom"], thorough=["sheared cell"]))
def test_rows_are_reused_within_the_skin(checkpoint, calculator, monkeypatch, name):
    """Reused rows give the results of a new calculator to rounding, also in another cell;
    beyond the skin rows are rebuilt.
    """
    skin = 0.4
    reused = MixtureCalculator(checkpoint, calculator.region, dr_threshold=skin)
    builds = count_rebuilds(reused, monkeypatch)
    atoms, rng = CELLS[name].copy(), np.random.default_rng(0)

    def same(atoms):
        results = []
        for calc in (reused, MixtureCalculator(checkpoint, calculator.region, dr_threshold=0.0)):
            calc.calculate(atoms)
            results.append(calc.results)
        for key in ("energies", "forces", *(["stresses"] if atoms.cell.rank == 3 else [])):
            np.testing.assert_allclose(results[0][key], results[1][key], atol=1e-10)

    for _ in range(3):
        move = rng.standard_normal(atoms.positions.shape)
        atoms.positions += 0.3 * 0.5 * skin * move / np.linalg.norm(move, axis=1).max()
        same(atoms)
    assert len(builds) == 1
    if atoms.cell.rank == 3:
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.003 * rng.standard_normal((3, 3))), scale_atoms=True)
        same(atoms)
        assert len(builds) == 1
    atoms.positions[0, 2] += 1.5 * skin
    same(atoms)
    assert len(builds) == 2
    atoms.set_cell(0.85 * atoms.cell.array, scale_atoms=True)
    same(atoms)
    assert len(builds) == 3
    same(atoms * (1, 1, 2))
    assert len(builds) == 4


def test_rows_are_rebuilt_when_and_only_when_the_skin_is_used_up(monkeypatch):
    """Two atoms approach from beyond cutoff and skin: the pair is never missed."""
    expert = mm.experts.lennard_jones(("Pt",), 4.0, epsilon=1.0, sigma=3.0)
    calculator = MixtureCalculator(
        mm.Checkpoint((expert,), (expert.init(None),), {}, {}), 0, dr_threshold=0.5
    )
    builds, zero = count_rebuilds(calculator, monkeypatch), []
    for distance in np.arange(5.0, 3.0, -0.05):
        calculator.calculate(ase.Atoms("Pt2", [[0, 0, 0], [distance, 0, 0]]))
        zero.append(calculator.results["energy"] == 0)
        assert zero[-1] == (distance >= 4.0 - 1e-9)
    assert 6 <= len(builds) <= 9  # over 2 Å, one for each 0.25 Å or so


def test_packed_rows_that_overflow_are_rebuilt(checkpoint, monkeypatch):
    """Allegro gets rows packed to the neighbours within its cutoff: where more neighbours come
    within it than columns were allocated, rows are rebuilt and results are right.
    """
    angles = np.linspace(1.0, 5.5, 10)
    shell = np.stack([np.cos(angles), 0.2 * np.sin(5 * angles), np.sin(angles)], axis=1)
    shell /= np.linalg.norm(shell, axis=1)[:, None]
    far, near = 3.7, 3.52  # Å from the first atom; the cutoff is 3.6 Å
    chain = ase.Atoms("Pt12", [[0, 0, 0], [2.5, 0, 0], *(far * shell)])
    reused = MixtureCalculator(checkpoint, 0, dr_threshold=0.4)
    builds = count_rebuilds(reused, monkeypatch)
    reused.calculate(chain)
    before = reused._cache.max_neighbors[0]
    nearer = chain.copy()
    nearer.positions[2:] = near * shell
    reused.calculate(nearer)
    assert len(builds) == 2 and reused._cache.max_neighbors[0] > before
    new = MixtureCalculator(checkpoint, 0, dr_threshold=0.0)
    new.calculate(nearer)
    np.testing.assert_allclose(reused.results["forces"], new.results["forces"], atol=1e-10)
    assert np.abs(new.results["forces"][0]).max() > 1e-6
    with pytest.raises(ValueError, match="dr_threshold must be a length"):
        MixtureCalculator(checkpoint, 0, dr_threshold=-0.1)
