"""Memory that runs out is answered in one line that names chunk_size or max_atoms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from command_line import as_options, failure
from jax_md import space

import moe_md as mm
from moe_md import memory, simulate
from moe_md.data import Dataset, prepare
from moe_md.data.reading import frame_from_atoms
from moe_md.interfaces import cached_rows
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.simulate import advance
from moe_md.training import evaluation

MESSAGE = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34359738368 bytes.\n[tf-allocator]"
ARGON = mm.experts.lennard_jones(("Ar",), 4.5, epsilon=0.0104, sigma=3.4)
BOX = np.full(3, 10.6)


def exhausted(*args, **kwargs):
    raise jax.errors.JaxRuntimeError(MESSAGE)


def mixture(**kwargs):
    return mm.mixture_neighbor_list(
        space.periodic(BOX)[0],
        BOX,
        [(ARGON, ARGON.init(None))],
        [0] * 32,
        mm.regions.fixed([0] * 32, 1),
        **kwargs,
    )


def argon():
    return bulk("Ar", "fcc", 5.3, cubic=True).repeat(2)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="INTERNAL"), memory.naming("lower chunk_size"):
        raise RuntimeError("INTERNAL: something else")
    with pytest.raises(MemoryError, match="8 EiB.: lower chunk_size, now 2"), memory.naming("outer"):  # noqa: SIM117
        with memory.naming(memory.of_chunk_size(2)):
            raise MemoryError("Unable to allocate 8 EiB")  # of numpy


def test_the_error_of_xla_is_recognised():
    match = "exhausted .281474976710656 bytes.: lower chunk_size"
    with pytest.raises(MemoryError, match=match), memory.naming("lower chunk_size"):
        jnp.zeros(2**48, jnp.int8).block_until_ready()


def test_calculators_name_chunk_size(monkeypatch):
    monkeypatch.setattr(cached_rows, "evaluator", lambda *_: exhausted)
    checkpoint = mm.Checkpoint((ARGON,), (ARGON.init(None),), {}, {})
    atoms = argon()
    atoms.calc = MixtureCalculator(checkpoint, 0, chunk_size=48)
    with pytest.raises(
        MemoryError, match="exhausted .34359738368 bytes.: lower chunk_size, now 48, or"
    ) as error:
        atoms.get_potential_energy()
    assert "\n" not in str(error.value)


def test_runs_and_relaxations_name_chunk_size_and_keep_their_state(monkeypatch):
    neighbor_fn, energy_fn = mixture(chunk_size=16)
    shift_fn = space.periodic(BOX)[1]
    nve = simulate.nve(shift_fn, 1.0)
    position = jnp.asarray(argon().positions)
    state = simulate.start(nve, position, masses=[40.0] * 32, velocity=np.zeros((32, 3)))
    monkeypatch.setattr(advance, "advance_chunk", exhausted)
    with pytest.raises(simulate.SimulationError, match="after step 0 .* lower chunk_size, now 16") as error:
        simulate.run(neighbor_fn, energy_fn, nve, state, n_steps=2)
    np.testing.assert_array_equal(error.value.state.position, position)
    with pytest.raises(simulate.SimulationError, match="lower chunk_size, now 16"):
        simulate.relax(neighbor_fn, energy_fn, shift_fn, position)


def test_training_and_evaluation_name_max_atoms(monkeypatch):
    prepared = prepare(Dataset((frame_from_atoms(argon()),), ("Ar",)), 4.5)
    monkeypatch.setattr(evaluation, "totals_of", exhausted)
    with pytest.raises(MemoryError, match="lower max_atoms, now 7, or use frames of fewer atoms"):
        evaluation.evaluate((ARGON, ARGON), (None, None), prepared, max_atoms=7)


def test_commands_end_in_one_line(folder, capsys, tmp_path, monkeypatch):
    """Exit code 1, as the input is right; also where no part of the package expects it."""
    run = ("run", "--structure", folder / "slab.extxyz", "--checkpoint", folder / "model.msgpack")
    run += as_options(region_layers=1, steps=10, chunk_size=24, out=tmp_path)
    monkeypatch.setattr("moe_md.commands.run._build", exhausted)
    assert "lower chunk_size, now 24" in failure(capsys, *run, code=1)
    train = ("train", "--settings", folder / "train.toml", "--out", tmp_path / "training", "--quiet")
    monkeypatch.setattr("moe_md.training.cotrain._run", exhausted)
    assert "lower max_atoms, now " in failure(capsys, *train, code=1)


def test_lists_that_cannot_fit_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: (3 * memory.GIB, "GPU 0"))
    memory.check_lists(1_000_000, (60, 40), 4)  # 1.7 GiB
    with pytest.raises(
        ValueError, match="1000000 atoms with 100 neighbours of 8 bytes need 4.8 GiB and GPU 0 has 3.0"
    ):
        memory.check_lists(1_000_000, (100, 1), 8)
    monkeypatch.setattr(memory, "GIB", 8)  # as if the box were large
    monkeypatch.setattr(memory, "free_bytes", lambda: (1000, "GPU 0"))
    with pytest.raises(ValueError, match="neighbour lists must fit into memory, but 32 atoms"):
        mixture()[0].allocate(jnp.asarray(argon().positions))


def test_free_memory_is_that_of_the_device_or_of_the_host(monkeypatch):
    class Device:
        @staticmethod
        def memory_stats():
            return {"bytes_limit": 100, "bytes_in_use": 30}

        def __str__(self):
            return "GPU 3"

    free, where = memory.free_bytes()
    assert where == "this computer" and 2**20 < free < 2**50
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert memory.free_bytes() == (70, "GPU 3")
