"""Keywords of the ASE calculator, and results that follow every change of its inputs."""

import jax
import numpy as np
import pytest
from ase.build import fcc111

import moe_md as mm
from moe_md.interfaces import ase_arguments
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.interfaces.selections import by_tag


def checkpoint():
    """Two Lennard-Jones potentials that disagree, with parameters in numpy arrays that can be written to."""
    experts = [mm.experts.lennard_jones(("Pt",), 3.6, epsilon=e, sigma=2.5) for e in (0.2, 0.3)]
    params = [jax.tree.map(np.array, e.init(jax.random.key(0))) for e in experts]
    return mm.Checkpoint(tuple(experts), tuple(params), {}, {})


def slab(region, **keywords):
    atoms = fcc111("Pt", (2, 2, 3), a=3.97, vacuum=5.0)
    atoms.rattle(0.1, seed=0)
    atoms.calc = MixtureCalculator(checkpoint(), region, **keywords)
    return atoms


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dr_treshold": 5.0}, "^MixtureCalculator has no keyword 'dr_treshold': use 'dr_threshold'"),
        ({"default_dtype": "float32"}, "no keyword 'default_dtype': use 'dtype'"),
        ({"deivce": "cpu"}, "no keyword 'deivce': use 'device'"),
        ({"restart": "file"}, "no keyword 'restart'. Known are checkpoint, region"),
    ],
)
def test_unknown_keywords_are_refused_with_the_nearest_one(keywords, message):
    with pytest.raises(TypeError, match=message) as error:
        MixtureCalculator(checkpoint(), 0, **keywords)
    assert "\n" not in str(error.value)


def test_ase_keywords_are_taken(tmp_path):
    atoms = slab(0)
    calculator = MixtureCalculator(checkpoint(), 0, atoms=atoms, directory=str(tmp_path), label="name")
    assert atoms.calc is calculator and calculator.directory == str(tmp_path)


def test_a_device_by_name_or_itself():
    default = slab(0).get_potential_energy()
    cpu = jax.devices("cpu")[0]
    for device in ("cpu", cpu):
        atoms = slab(0, device=device)
        assert atoms.calc.device == cpu
        assert all(x.devices() == {cpu} for x in jax.tree.leaves(atoms.calc.checkpoint.params))
        np.testing.assert_allclose(atoms.get_potential_energy(), default, rtol=1e-14)


@pytest.mark.parametrize("device", ["cuda", "tpu", "cuda:0", 0])
def test_a_device_that_is_not_there_is_refused_with_what_there_is(monkeypatch, device):
    def devices(platform=None):
        if platform in ("cuda", "gpu", "tpu"):
            raise RuntimeError("Unknown backend")
        return jax.local_devices(backend="cpu")

    monkeypatch.setattr(ase_arguments.jax, "devices", devices)
    with pytest.raises(ValueError, match=f"jax must have it, got {device!r}. jax has here: cpu"):
        MixtureCalculator(checkpoint(), 0, device=device)


def energies(atoms):
    """Energy of the calculator as it is, and that of a new one with the same region and parameters."""
    new = atoms.copy()
    new.calc = MixtureCalculator(atoms.calc.checkpoint, atoms.calc.region)
    return atoms.get_potential_energy(), new.get_potential_energy()


@pytest.mark.parametrize("region", [1, [0] * 6 + [1] * 6, mm.regions.around([0], 2.0, 1.0)])
def test_another_region_discards_the_result(region):
    atoms = slab(0)
    before = atoms.get_potential_energy()
    atoms.calc.region = region
    assert atoms.calc.results == {}
    now, expected = energies(atoms)
    assert now == pytest.approx(expected, abs=1e-12) and abs(now - before) > 0.1
    atoms.calc.set(region=0)
    assert atoms.get_potential_energy() == pytest.approx(before, abs=1e-12)


def test_what_changes_in_place_changes_the_energy():
    """Tags under `by_tag`, an array of the region, arrays that a function of the atoms reads, parameters."""
    atoms = slab(by_tag(1))
    seen = [atoms.get_potential_energy()]
    atoms.set_tags(np.arange(12) % 2)
    now, expected = energies(atoms)
    assert now == pytest.approx(expected, abs=1e-12)
    seen.append(now)
    assignment = np.zeros(12, int)
    atoms.calc.region = assignment
    seen.append(atoms.get_potential_energy())
    assignment[:3] = 1
    seen.append(atoms.get_potential_energy())
    atoms.set_array("owner", np.arange(12) // 9)
    atoms.calc.region = lambda atoms: atoms.get_array("owner")
    seen.append(atoms.get_potential_energy())
    atoms.arrays["owner"][:] = np.arange(12) // 7
    seen.append(atoms.get_potential_energy())
    atoms.calc.checkpoint.params[0]["epsilon"] = np.asarray(0.9)
    now, expected = energies(atoms)
    assert now == pytest.approx(expected, abs=1e-12)
    seen.append(now)
    assert len({round(e, 6) for e in seen}) == len(seen), seen


def test_what_cannot_be_changed_says_so():
    calculator = slab(0).calc
    for name, value in {
        "dtype": "float32",
        "device": "cpu",
        "chunk_size": 8,
        "dr_threshold": 0.1,
        "checkpoint": checkpoint(),
    }.items():
        with pytest.raises(AttributeError, match=f"^{name} cannot be changed, got .*Make a new"):
            setattr(calculator, name, value)
    with pytest.raises(ValueError, match="read-only"):
        calculator.checkpoint.params[0]["epsilon"][...] = 0.9
    with pytest.raises(TypeError, match="MixtureCalculator.set has no keyword 'dtype'. Known are region"):
        calculator.set(dtype="float32")
    with pytest.raises(ValueError, match="region must name experts 0 to 1"):
        calculator.region = 7


def test_equal_inputs_are_not_computed_again(monkeypatch):
    """A function that returns a new region each time, with equal values."""
    atoms = slab(lambda atoms: mm.regions.around([0], 2.0, 1.0))
    atoms.get_potential_energy()
    monkeypatch.setattr(atoms.calc, "_compute", lambda *_: pytest.fail("computed again"))
    assert atoms.get_forces().shape == (12, 3)
