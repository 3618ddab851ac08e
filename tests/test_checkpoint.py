"""Checkpoints: exact round trips, atomic writes, refused files, shipped checkpoints."""

import os
import pickle
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from contract import (
    ATOMS,
    POSITION,
    cluster_rows,
    randomized,
    small_allegro,
    small_lennard_jones,
    small_power_spectrum,
)

import moe_md as mm
from moe_md.checkpoint import Checkpoint, load, models, save
from moe_md.data.batching import frame_rows
from moe_md.data.reading import frame_from_atoms
from moe_md.files import write_atomic
from moe_md.interfaces.ase import MixtureCalculator


def make():
    experts = (small_allegro(1, 2, True), small_power_spectrum(("Pt",)), small_lennard_jones())
    params = [randomized(e, seed) for seed, e in enumerate(experts)]
    # Both dtypes, and values that a conversion to decimals would change.
    params[1] = jax.tree.map(lambda x: (x / 3).astype(np.float32), params[1])
    settings = {"steps": 10, "lr": 1e-3, "frames": ["a.xyz", "b.xyz"], "name": "Å", "none": None, "on": True}
    record = {"loss": [1.0 / 3.0, 0.1], "history": np.arange(6.0).reshape(2, 3) / 7, "empty": {}}
    return Checkpoint(experts, tuple(params), settings, record)


@pytest.fixture
def saved(tmp_path):
    checkpoint, path = make(), tmp_path / "some.msgpack"
    save(path, checkpoint)
    return checkpoint, path


def test_round_trip_is_exact(saved):
    checkpoint, path = saved
    again = mm.load(path)
    for old, new in zip(checkpoint.experts, again.experts, strict=True):
        assert old[2:] == new[2:]
    assert jax.tree.structure(list(checkpoint.params)) == jax.tree.structure(list(again.params))
    for old, new in zip(jax.tree.leaves(checkpoint.params), jax.tree.leaves(again.params), strict=True):
        assert np.asarray(new).dtype == old.dtype
        np.testing.assert_array_equal(new, old)
    assert again.settings == checkpoint.settings
    assert again.record["loss"] == checkpoint.record["loss"] and again.record["empty"] == {}
    np.testing.assert_array_equal(again.record["history"], checkpoint.record["history"])


def test_loaded_experts_give_the_same_energies(saved):
    checkpoint, path = saved
    again = load(str(path))
    rows = cluster_rows(POSITION, ATOMS)
    for i in (1, 2):
        old, new = (c.experts[i].atom_energies(c.params[i], rows) for c in (checkpoint, again))
        np.testing.assert_array_equal(new, old)


def test_jax_arrays_and_more_than_nine_experts_keep_their_order(tmp_path):
    experts = tuple(mm.experts.lennard_jones(("Pt",), 3.0 + i) for i in range(12))
    params = tuple(
        e.init(jax.random.key(0)) | {"sigma": jax.numpy.asarray(1.0 + i)} for i, e in enumerate(experts)
    )
    save(tmp_path / "x", Checkpoint(experts, params, {}, {}))
    again = load(tmp_path / "x")
    assert [e.cutoff for e in again.experts] == [3.0 + i for i in range(12)]
    assert [float(p["sigma"]) for p in again.params] == [1.0 + i for i in range(12)]


def test_truncated_files_are_refused(saved):
    _, path = saved
    complete = path.read_bytes()
    for length in (0, 1, 10, len(complete) // 2, len(complete) - 1):
        path.write_bytes(complete[:length])
        with pytest.raises(ValueError, match="must be a moe_md checkpoint"):
            load(path)


@pytest.mark.parametrize(
    "content",
    [b"\x00" * 64, bytes(range(256)), b"PK\x03\x04 a zip file", b"[project]\nname = 'x'\n", b"\xc1" * 9],
)
def test_files_of_other_formats_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="must be a moe_md checkpoint"):
        load(tmp_path / "x")


def test_any_flipped_bit_is_detected(saved):
    _, path = saved
    complete = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(complete), size=40):
        damaged = bytearray(complete)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=str(path)):
            load(path)


def test_bytes_after_the_end_are_refused(saved):
    _, path = saved
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ValueError, match="must be a moe_md checkpoint"):
        load(path)


class MaliciousPickle:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path):
    target = str(tmp_path / "executed")
    (tmp_path / "x").write_bytes(pickle.dumps(MaliciousPickle(target)))
    with pytest.raises(ValueError):
        load(tmp_path / "x")
    edited(tmp_path / "y", experts=[{"builder": "os.mkdir", "path": target}])
    with pytest.raises(ValueError, match="builder must be one of"):
        load(tmp_path / "y")
    assert not os.path.exists(target)
    pickle.loads(pickle.dumps(MaliciousPickle(target)))
    assert os.path.exists(target)  # pickle would have executed it


def content():
    expert = small_lennard_jones()
    params = {"epsilon": np.array(0.4), "sigma": np.array(1.6)}
    return {"format": 1, "experts": [expert.config], "params": [params], "settings": {}, "record": {}}


def edited(path, remove=(), **changes):
    complete = {**content(), **changes}
    path.write_bytes(
        flax.serialization.msgpack_serialize({k: v for k, v in complete.items() if k not in remove})
    )
    return path


def test_an_unedited_file_loads(tmp_path):
    assert load(edited(tmp_path / "x")).experts[0].cutoff == 3.0


def test_other_formats_are_refused(tmp_path):
    for version in (0, 2, "1", None):
        with pytest.raises(ValueError, match=f"must have checkpoint format 1, got {version!r}"):
            load(edited(tmp_path / "x", format=version))


@pytest.mark.parametrize("key", ["format", "experts", "params", "settings", "record"])
def test_missing_parts_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match=f"must be a moe_md checkpoint.*{key}"):
        load(edited(tmp_path / "x", remove=(key,)))


@pytest.mark.parametrize(
    "params",
    [
        [{"epsilon": np.zeros(2), "sigma": np.array(1.0)}],
        [{"epsilon": np.array(1.0)}],
        [{"epsilon": np.array(1.0), "sigma": np.array(1.0), "more": np.array(1.0)}],
        [{"epsilon": "one", "sigma": np.array(1.0)}],
        [{"epsilon": np.array(1.0), "sigma": {"nested": np.array(1.0)}}],
        [],
        [{"epsilon": np.array(1.0), "sigma": np.array(1.0)}] * 2,
        7,
        "text",
    ],
)
def test_parameters_that_do_not_fit_are_refused(tmp_path, params):
    with pytest.raises(ValueError, match="must"):
        load(edited(tmp_path / "x", params=params))


@pytest.mark.parametrize(
    "experts", [7, ["text"], [{"builder": ["list"]}], [{"builder": "lennard_jones", "cutoff": 3.0}]]
)
def test_invalid_experts_are_refused(tmp_path, experts):
    with pytest.raises(ValueError, match="must"):
        load(edited(tmp_path / "x", experts=experts))


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="name_or_path must be one of .* or an existing file, got 'nothing'"):
        load("nothing")
    with pytest.raises(ValueError, match="name_or_path must be"):
        load(tmp_path)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(saved, tmp_path, monkeypatch, broken):
    checkpoint, path = saved
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="no space"):
        save(path, checkpoint._replace(settings={"other": 1}))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]  # and no partial file beside it
    save(path, checkpoint._replace(settings={"other": 1}))
    assert load(path).settings == {"other": 1}


def test_a_new_file_replaces_the_old_one_atomically(tmp_path, monkeypatch):
    """At the moment of renaming, the old content is there and the new is complete elsewhere."""
    path = tmp_path / "x"
    write_atomic(path, b"old")
    seen, replace = [], os.replace

    def spy(source, target):
        seen.append((Path(source).read_bytes(), Path(target).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    write_atomic(path, b"new")
    assert seen == [(b"new", b"old")] and path.read_bytes() == b"new"


PAIRS = [name for name in models() if name.startswith("ptco") and not name.endswith("-inner")]
CRYSTALS = [name for name in models() if not name.startswith("ptco")]  # with their errors on test frames


@pytest.mark.parametrize("name", PAIRS)
def test_shipped_pairs_have_a_record_and_shorten_a_stretched_molecule(name):
    """They load with their training record, and their forces shorten a stretched CO."""
    model = load(name)
    cheap = "density_moments" if name == "ptco" else "power_spectrum"
    assert [e.config["builder"] for e in model.experts] == ["allegro", cheap]
    assert model.record["history"] and model.record["train"]["frames"] > 50 and "weights" in model.settings
    atoms = fcc111("Pt", (2, 2, 3), a=3.98, vacuum=8.0)
    add_adsorbate(atoms, Atoms("CO", [[0, 0, 0], [0, 0, 1.4]]), 1.85, "fcc")
    atoms.pbc = (True, True, False)
    atoms.calc = MixtureCalculator(name, region=np.array([0] * 14))
    on_oxygen, on_carbon = atoms.get_forces()[[13, 12], 2]
    assert on_oxygen < -5.0 and on_carbon > 2.0


@pytest.mark.parametrize("name", CRYSTALS)
def test_shipped_pairs_of_crystals_know_their_crystals(name):
    """They have errors on test frames and a domain, their crystal is in it, and it pushes an atom back."""
    model = load(name)
    held_out, domain = model.record["held_out"], model.cheap.expert.familiarity
    assert held_out["frames"] > 20 and 0 < held_out["expensive"]["forces_meV_per_A"] < 200
    atoms = model.references[0].atoms * 3
    rows = frame_rows(frame_from_atoms(atoms), model.experts[0].species, domain.cutoff)
    assert domain.distance(rows).max() < 1.0
    atoms.positions[0] += [0.1, 0.0, 0.0]
    for expert in (0, 1):
        atoms.calc = MixtureCalculator(name, region=expert)
        assert -3.0 < atoms.get_forces()[0, 0] < -0.1


@pytest.mark.parametrize("name", [name for name in models() if name.endswith("-inner")])
def test_shipped_inner_potentials_approximate_the_forces_of_their_pair(name):
    """One cheap expert of all species, whose forces on a stretched molecule are close to the pair's."""
    inner_potential, pair = load(name), load(name.removesuffix("-inner"))
    (expert,) = inner_potential.experts
    assert (
        expert.species == expert.allowed_species == pair.experts[0].species
        and inner_potential.record["step"] == inner_potential.settings["steps"]
    )
    forces = []
    for model in (inner_potential, pair):
        atoms = fcc111("Pt", (2, 2, 3), a=3.98, vacuum=8.0)
        add_adsorbate(atoms, Atoms("CO", [[0, 0, 0], [0, 0, 1.25]]), 1.3, "fcc")
        atoms.pbc = (True, True, False)
        atoms.calc = MixtureCalculator(model, region=np.array([0] * 14))
        forces.append(atoms.get_forces())
    assert np.abs(forces[1]).max() > 3.0
    assert np.abs(forces[0] - forces[1]).max() < 0.4 * np.abs(forces[1]).max()


def test_shipped_pairs_are_small():
    assert sum(p.stat().st_size for p in Path(mm.__file__).parent.glob("checkpoints/*.msgpack")) < 10e6


def test_a_folder_of_the_same_name_is_ignored(tmp_path, monkeypatch):
    (tmp_path / "ptco").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(load("ptco").experts) == 2
