"""The training loop: learning, resuming, and errors on invalid arguments."""

import jax
import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from random_crystals import random_cell

import moe_md as mm
from moe_md.data.batching import batches, prepare
from moe_md.data.dataset import dataset_from_frames, force_rms, split_by_group
from moe_md.data.reading import frame_from_atoms, frame_to_atoms
from moe_md.data.references import reference_from_atoms
from moe_md.settings import EnvironmentSettings, TrainSettings
from moe_md.training import cotrain as cotraining
from moe_md.training.evaluation import describe, evaluate
from moe_md.training.inputs import environment_batch, frame_weights

SPECIES = ("Pt", "C")
SMALL = TrainSettings(
    steps=12,
    max_atoms=16,
    warmup_steps=2,
    validate_every=6,
    save_every=4,
    learning_rate=3e-2,
)
PLATINUM = reference_from_atoms(bulk("Pt", a=3.98))


def cotrain(*args, **kwargs):
    """A training with platinum as its reference, unless told otherwise."""
    return cotraining.cotrain(*args, **{"references": [PLATINUM], **kwargs})


@pytest.fixture(scope="module")
def pair():
    return (
        mm.experts.allegro(SPECIES, 4.0, l_max=1, num_layers=1, num_scalar_features=8, num_tensor_features=4),
        mm.experts.power_spectrum(
            SPECIES, 4.0, l_max=1, num_channels=4, hidden=(8,), allowed_species=("Pt",)
        ),
    )


@pytest.fixture(scope="module")
def metal():
    """Platinum cells labelled by ASE's EMT."""
    rng = np.random.default_rng(0)
    frames = []
    while len(frames) < 8:
        atoms = frame_to_atoms(random_cell(rng, max_strain=0.02, max_rattle=0.1))
        atoms.calc = EMT()
        atoms.get_forces(), atoms.get_stress()
        atoms.info["origin"] = str(len(frames))
        frames.append(frame_from_atoms(atoms))
    return dataset_from_frames(frames)


def test_training_learns_forces_and_agreement(pair, metal):
    train, validation = split_by_group(metal, validation_fraction=0.25, seed=0)
    settings = TrainSettings(**{**vars(SMALL), "steps": 300, "validate_every": 10_000})
    trained = cotrain(pair, train, settings, validation=validation, progress=False)
    scores = evaluate(
        trained.experts, trained.params, prepare(dataset_from_frames(train.frames, SPECIES), 4.0)
    )
    no_forces = 1e3 * force_rms(train)  # the error of predicting zero
    for name in ("expensive", "cheap"):
        assert scores[name]["forces_meV_per_A"] < 0.5 * no_forces
    assert scores["mismatch"]["partial_forces_meV_per_A"] < 0.5 * no_forces
    assert scores["mixed"]["forces_meV_per_A"] is None  # no frame outside the cheap expert's domain
    assert trained.record["history"][-1]["step"] == 300 and "meV/atom" in describe(scores)


def test_a_resumed_training_equals_an_uninterrupted_one(pair, metal, tmp_path, monkeypatch):
    uninterrupted = cotrain(pair, metal, SMALL, folder=tmp_path / "uninterrupted", progress=False)

    class Killed(Exception):
        pass

    def killed_after_seven(environments, seed, step):
        if step == 7:
            raise Killed
        return environment_batch(environments, seed, step)

    with monkeypatch.context() as patch:
        patch.setattr("moe_md.training.inputs.environment_batch", killed_after_seven)
        with pytest.raises(Killed):
            cotrain(pair, metal, SMALL, folder=tmp_path / "cut", progress=False)
    resumed = cotrain(pair, metal, SMALL, folder=tmp_path / "cut", progress=False)
    jax.tree.map(np.testing.assert_array_equal, uninterrupted.params, resumed.params)
    stored = mm.load(tmp_path / "cut" / "checkpoint.msgpack")
    jax.tree.map(np.testing.assert_array_equal, stored.params, resumed.params)
    assert stored.record["step"] == SMALL.steps
    with pytest.raises(ValueError, match="folder must hold no training of other settings"):
        cotrain(
            pair, metal, TrainSettings(**{**vars(SMALL), "seed": 5}), folder=tmp_path / "cut", progress=False
        )


def test_references_and_scale_come_from_the_data(pair, metal):
    trained = cotrain(pair, metal, TrainSettings(**{**vars(SMALL), "steps": 1}), progress=False)
    for params in trained.params:
        energies = [f.energy / len(f.symbols) for f in metal.frames]
        assert params["shift"][0] == pytest.approx(np.mean(energies), abs=1e-5)
        assert params["scale"][0] == pytest.approx(
            np.sqrt(np.mean(np.concatenate([f.forces for f in metal.frames]) ** 2)), rel=1e-5
        )


def test_frames_with_large_forces_have_smaller_weights(pair, metal, monkeypatch):
    frames = [
        f._replace(forces=f.forces / np.sqrt(np.mean(f.forces**2)) * size)
        for f, size in zip(metal.frames, (1.0, 2.0, 8.0))
    ]
    assert frame_weights([*frames, frames[0]._replace(forces=None)], 2.0) == pytest.approx(
        [1.0, 1.0, 1 / 16, 1.0]
    )
    seen = []

    def watch(prepared, *, max_atoms, rng=None, weights=None):
        for batch in batches(prepared, max_atoms=max_atoms, rng=rng, weights=weights):
            seen.extend(batch.weight[batch.n_atoms > 0].tolist())
            yield batch

    monkeypatch.setattr("moe_md.training.inputs.environment_batch", lambda *_: None)
    monkeypatch.setattr("moe_md.training.inputs.batches", watch)
    settings = TrainSettings(**{**vars(SMALL), "steps": 1, "max_atoms": 64, "force_downweight_above": 2.0})
    cotrain(pair, dataset_from_frames(frames), settings, progress=False)
    assert sorted(seen[:3]) == pytest.approx([1 / 16, 1.0, 1.0])  # the first epoch, a batch


def test_start_moves_references_to_other_labels(pair, metal):
    """With labels of other reference energies, a training starts at those references."""
    before = cotrain(pair, metal, SMALL, progress=False)
    other = dataset_from_frames([f._replace(energy=f.energy + 7.5 * len(f.symbols)) for f in metal.frames])
    still = TrainSettings(**{**vars(SMALL), "steps": 1, "learning_rate": 1e-12, "warmup_steps": 0})
    moved = cotrain(pair, other, still, start=before, progress=False)

    def errors(checkpoint, dataset):
        return evaluate(
            checkpoint.experts, checkpoint.params, prepare(dataset_from_frames(dataset.frames, SPECIES), 4.0)
        )

    here, there = errors(before, metal)["expensive"], errors(moved, other)["expensive"]
    assert there["forces_meV_per_A"] == pytest.approx(here["forces_meV_per_A"], rel=1e-4)
    # The least-squares shift can only reduce the error, here by 7.5 eV per atom.
    assert there["energy_meV_per_atom"] < here["energy_meV_per_atom"] + 1.0
    shifts = [np.asarray(p["shift"]) - np.asarray(q["shift"]) for p, q in zip(moved.params, before.params)]
    np.testing.assert_allclose(shifts[0], shifts[1], atol=1e-4)
    assert shifts[0][0] == pytest.approx(7.5, abs=0.5) and shifts[0][1] == 0.0  # no carbon in these frames
    assert moved.record["start"]["train"]["frames"] == len(metal.frames)


def test_start_begins_with_the_loss_of_the_checkpoint(pair, metal):
    """If energies have no mean error, nothing is shifted, and the first step has the checkpoint's errors."""
    before = cotrain(
        pair, metal, TrainSettings(**{**vars(SMALL), "steps": 100, "validate_every": 1000}), progress=False
    )
    prepared = prepare(dataset_from_frames(metal.frames, SPECIES), 4.0)
    weights = {
        **vars(SMALL.weights),
        **{f"agree_{name}": 0.0 for name in ("energy", "partial_forces", "stress")},
    }
    one_batch = {
        "max_atoms": 64,
        "steps": 1,
        "warmup_steps": 0,
        "validate_every": 1,
    }
    still = TrainSettings(
        **{
            **vars(SMALL),
            **one_batch,
            "learning_rate": 1e-12,
            "force_downweight_above": 1e3,
            "weights": type(SMALL.weights)(**weights),
        }
    )
    # A second least-squares shift to the same labels is zero.
    level = cotrain(pair, metal, still, start=before, progress=False)
    seen = cotrain(pair, metal, still, start=level, validation=metal, progress=False)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), seen.params, level.params
    )
    scores = evaluate(level.experts, level.params, prepared)
    first = seen.record["history"][0]
    for who in ("expensive", "cheap"):
        for name, value in scores[who].items():
            assert first[who][name] == pytest.approx(value, rel=1e-3), (who, name)
        assert first["train"][who] == pytest.approx(
            scores[who]["forces_meV_per_A"], rel=1e-3
        )  # as the loss of the step had it
    fresh = cotrain(pair, metal, still, validation=metal, progress=False).record["history"][0]
    assert fresh["loss"] > 2 * first["loss"]


def test_start_refuses_unknown_species(pair, metal):
    before = cotrain(pair, metal, TrainSettings(**{**vars(SMALL), "steps": 1}), progress=False)
    gold = dataset_from_frames([metal.frames[0]._replace(symbols=("Au", "Pt", "Pt", "Pt"))])
    with pytest.raises(
        ValueError, match=r"species must include every symbol: frame 0 has Au, got \('Pt', 'C'\)"
    ):
        cotrain(before.experts, gold, SMALL, start=before, progress=False)
    wider = mm.experts.power_spectrum(SPECIES, 4.0, l_max=2, num_channels=4, hidden=(8,))
    with pytest.raises(ValueError, match="start must hold the expensive expert to train"):
        cotrain((wider, pair[1]), metal, SMALL, start=before, progress=False)


def test_another_cheap_expert_comes_to_a_frozen_expensive_one(pair, metal):
    settings = TrainSettings(**{**vars(SMALL), "steps": 60, "agreement_ramp": 0.0, "freeze_expensive": True})
    before = cotrain(pair, metal, TrainSettings(**{**vars(SMALL), "steps": 20}), progress=False)
    cheap = mm.experts.density_moments(SPECIES, 4.0, num_radial=(4, 2), hidden=(8,), allowed_species=("Pt",))
    data = prepare(metal, 4.0)
    first, after = (
        cotrain(
            (pair[0], cheap),
            metal,
            TrainSettings(**{**vars(settings), "steps": steps}),
            start=before,
            progress=False,
        )
        for steps in (1, settings.steps)
    )
    mismatch = [
        evaluate(found.experts, found.params, data)["mismatch"]["partial_forces_meV_per_A"]
        for found in (first, after)
    ]
    assert mismatch[1] < 0.7 * mismatch[0]
    # Only its reference energies follow the labels, and the cheap expert has the same.
    jax.tree.map(np.testing.assert_array_equal, after.params[0]["network"], before.params[0]["network"])
    np.testing.assert_array_equal(after.params[1]["shift"], after.params[0]["shift"])
    # Inputs of its network have zero mean and unit variance on the data.
    inputs = after.params[1]["inputs"]
    assert np.all(inputs["scale"] > 0) and not np.allclose(inputs["mean"], 0.0)
    with pytest.raises(ValueError, match="start must be given where freeze_expensive = true"):
        cotrain((pair[0], cheap), metal, settings, progress=False)


def test_watch_gets_the_averages_and_changes_nothing(pair, metal):
    seen = []
    settings = TrainSettings(**{**vars(SMALL), "steps": 8, "validate_every": 3})
    watched = cotrain(
        pair, metal, settings, watch=lambda step, params: seen.append((step, params)), progress=False
    )
    assert [step for step, _ in seen] == [3, 6, 8]
    jax.tree.map(np.testing.assert_array_equal, seen[-1][1], watched.params)
    assert not np.array_equal(jax.tree.leaves(seen[0][1][0])[0], jax.tree.leaves(watched.params[0])[0])
    alone = cotrain(pair, metal, settings, progress=False)
    jax.tree.map(np.testing.assert_array_equal, alone.params, watched.params)
    with pytest.raises(ValueError, match="watch must be a function of step and params, got 3"):
        cotrain(pair, metal, settings, watch=3, progress=False)


def test_patience_ends_training_with_the_best_parameters(pair, metal, tmp_path):
    train, validation = split_by_group(metal, validation_fraction=0.25, seed=0)
    # The learning rate is so large that the loss soon grows.
    unstable = TrainSettings(
        **{
            **vars(SMALL),
            "steps": 400,
            "validate_every": 4,
            "patience": 3,
            "learning_rate": 0.3,
            "warmup_steps": 8,
        }
    )
    stopped = cotrain(pair, train, unstable, validation=validation, folder=tmp_path, progress=False)
    history, best = stopped.record["history"], stopped.record["best_step"]
    losses = {h["step"]: h["loss"] for h in history}
    assert stopped.record["step"] == best + 12 < 400
    assert losses[best] == min(losses.values())
    scores = evaluate(
        stopped.experts, stopped.params, prepare(dataset_from_frames(validation.frames, SPECIES), 4.0)
    )
    at_best = next(h for h in history if h["step"] == best)
    assert scores["expensive"]["forces_meV_per_A"] == pytest.approx(
        at_best["expensive"]["forces_meV_per_A"], rel=1e-3
    )
    again = cotrain(pair, train, unstable, validation=validation, folder=tmp_path, progress=False)
    assert again.record["step"] == stopped.record["step"]
    jax.tree.map(np.testing.assert_array_equal, again.params, stopped.params)
    with pytest.raises(ValueError, match="validation must be given where patience is set, here 3"):
        cotrain(pair, train, unstable, progress=False)
    with pytest.raises(ValueError, match="start must hold the expensive expert to train"):
        cotrain(pair, train, SMALL, start=stopped._replace(experts=stopped.experts[::-1]), progress=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"ema_decay": 1.5}, "ema_decay must lie between 0 and 1, got 1.5"),
        ({"agreement_gradient_scale": 1.5}, "agreement_gradient_scale must lie between 0 and 1, got 1.5"),
    ],
)
def test_settings_refuse(change, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**change)


def test_references_are_needed_where_environments_are_asked_for(pair, metal):
    hot = [f._replace(positions=f.positions + np.eye(4, 3) * 0.3) for f in metal.frames]  # no crystal
    with pytest.raises(ValueError, match='references must be at least one structure of Pt.*"bulk.cif"'):
        cotrain(pair, dataset_from_frames(hot), SMALL, references=None, progress=False)
    with pytest.raises(
        ValueError, match="references must have species of the cheap expert's domain, Pt, got C"
    ):
        cotrain(pair, metal, SMALL, references=[bulk("C", "diamond", a=3.57)], progress=False)
    one = TrainSettings(**{**vars(SMALL), "steps": 1})
    start = cotrain(pair, metal, one, progress=False)
    again = cotrain(pair, dataset_from_frames(hot), one, references=None, start=start, progress=False)
    assert again.references[0].atoms == start.references[0].atoms
    slab = fcc111("Pt", (1, 1, 4), vacuum=6.0, periodic=True)
    with pytest.raises(ValueError, match="references must fill their cell, got Pt4 with an empty layer"):
        cotrain(pair, metal, SMALL, references=[slab], progress=False)


def test_references_are_stored(pair, metal, tmp_path):
    """Given as atoms, as a file, or found in the data: a supercell becomes the same primitive cell."""
    crystal = bulk("Pt", a=3.98, cubic=True) * 2
    crystal.write(tmp_path / "bulk.cif")
    crystal.calc = SinglePointCalculator(crystal, energy=-1000.0)
    with_crystal = dataset_from_frames([*metal.frames, frame_from_atoms(crystal)])
    one = TrainSettings(**{**vars(SMALL), "steps": 1})
    from_file = EnvironmentSettings(references=str(tmp_path / "bulk.cif"))
    for trained in (
        cotrain(pair, metal, one, references=[crystal], progress=False),
        cotrain(pair, metal, one, references=None, environments=from_file, progress=False),
        cotrain(pair, with_crystal, one, references=None, progress=False),
    ):
        mm.save(tmp_path / "checkpoint.msgpack", trained)
        (reference,) = mm.load(tmp_path / "checkpoint.msgpack").references
        assert (reference.formula, reference.space_group, len(reference.atoms)) == ("Pt", "Fm-3m (225)", 1)
        assert reference.atoms.get_volume() == pytest.approx(3.98**3 / 4, rel=1e-5)


def test_bad_experts_and_missing_labels_are_refused(pair, metal):
    expensive, cheap = pair
    passing = pair[0]._replace(num_hops=2)
    with pytest.raises(ValueError, match=r"experts must not pass messages.* got num_hops of \[2, 1\]"):
        cotrain((passing, pair[1]), metal)
    with pytest.raises(ValueError, match="experts must be two"):
        cotrain([expensive], metal, SMALL, progress=False)
    with pytest.raises(ValueError, match="the expensive expert's domain must be every species"):
        cotrain([cheap, expensive], metal, SMALL, progress=False)
    other = mm.experts.power_spectrum(("Pt", "O"), 4.0)
    with pytest.raises(ValueError, match="experts must share one species tuple"):
        cotrain([expensive, other], metal, SMALL, progress=False)
    bare = dataset_from_frames([f._replace(forces=None) for f in metal.frames])
    with pytest.raises(ValueError, match="forces"):
        cotrain(pair, bare, SMALL, progress=False)
    gold = dataset_from_frames([metal.frames[0]._replace(symbols=("Au",) * 4)])
    with pytest.raises(ValueError, match="Au"):
        cotrain(pair, gold, SMALL, progress=False)
