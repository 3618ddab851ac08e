"""Errors on labelled frames: against the ASE calculator and `evaluate`, and with missing labels."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111

from moe_md import experts
from moe_md.analysis import errors
from moe_md.analysis.environments import environments, near_other_species
from moe_md.checkpoint import Checkpoint
from moe_md.data.dataset import Dataset
from moe_md.data.reading import frame_from_atoms, frame_to_atoms
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.training import evaluation

SPECIES, CUTOFF, A0 = ("Pt", "C", "O"), 4.0, 3.92
RULE = near_other_species(("Pt",), CUTOFF)  # the assignment of the loss


@pytest.fixture(scope="module")
def model():
    built = [
        experts.lennard_jones(SPECIES, CUTOFF, epsilon=epsilon, sigma=2.5446, allowed_species=domain)
        for epsilon, domain in ((0.6, SPECIES), (0.5, ("Pt",)))
    ]
    return Checkpoint(tuple(built), tuple(e.init(None) for e in built), {}, {})


def labelled(atoms: Atoms, kind: str, seed: int):
    rng = np.random.default_rng(seed)
    atoms.rattle(0.05, seed=seed)
    frame = frame_from_atoms(atoms)
    stress = rng.normal(size=(3, 3)) if all(atoms.pbc) else None
    return frame._replace(
        energy=rng.normal(),
        forces=rng.normal(size=(len(atoms), 3)),
        stress=None if stress is None else 0.01 * (stress + stress.T),
        kind=kind,
        group=str(seed),
    )


@pytest.fixture(scope="module")
def dataset():
    frames = [labelled(bulk("Pt", a=A0, cubic=True), "bulk", 0), labelled(bulk("Pt", a=A0) * 2, "bulk", 1)]
    for seed in (2, 3):
        atoms = fcc111("Pt", (2, 2, 4), a=A0, vacuum=6.0)
        atoms += Atoms("CO", [atoms.positions[-1] + [0, 0, h] for h in (2.5, 4.5)])
        frames.append(labelled(atoms, "slab-co", seed))
    frames.insert(1, labelled(fcc111("Pt", (2, 2, 3), a=A0, vacuum=6.0), "", 4))
    return Dataset(tuple(frames), SPECIES)


@pytest.fixture(scope="module")
def compared(model, dataset):
    return errors.compare(model, dataset, RULE, max_atoms=24, dtype=np.float64)


def environment_fn(frame):
    return environments(frame, {"Pt": 12}, 1.2 * A0 / np.sqrt(2))


@pytest.mark.filterwarnings("ignore:region gives expert")
def test_predictions_agree_with_the_ase_calculator(model, dataset, compared):
    for frame, comparison in zip(dataset.frames, compared, strict=True):
        assert comparison.frame is frame
        atoms = frame_to_atoms(frame)
        for potential, region in (("expensive", 0), ("cheap", 1), ("mixed", RULE(frame))):
            atoms.calc = MixtureCalculator(model, region=region)
            predicted = getattr(comparison, potential)
            assert predicted.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
            np.testing.assert_allclose(predicted.forces, atoms.get_forces(), atol=1e-9)
            assert (predicted.stress is None) == (not atoms.pbc.all())
            if predicted.stress is not None:
                np.testing.assert_allclose(predicted.stress, atoms.get_stress(voigt=False), atol=1e-9)


@pytest.mark.thorough
def test_errors_by_kind_agree_with_evaluate(model, dataset, compared):
    report = errors.report(compared, environment_fn)
    expected = evaluation.evaluate_by_kind(model.experts, model.params, dataset)
    for kind, entry in (("all", report["all"]), *report["kinds"].items()):
        assert entry["frames"] == expected[kind]["frames"]
        for potential in ("expensive", "cheap", "mixed"):
            for name, value in expected[kind][potential].items():
                score, case = entry[potential][name], (kind, potential, name)
                assert (score is None) == (value is None), case
                assert value is None or score["rmse"] == pytest.approx(value, rel=1e-4), case
    assert set(report["kinds"]) == {"bulk", "slab-co", "unnamed"}


def test_every_atom_is_in_one_environment_and_one_bin(compared, dataset):
    report = errors.report(compared, environment_fn)
    n_atoms = sum(len(f.symbols) for f in dataset.frames)
    for group in ("environments", "species"):
        assert sum(entry["atoms"] for entry in report[group].values()) == n_atoms
        counts = [entry["expensive"]["count"] for entry in report[group].values()]
        assert sum(counts) == 3 * n_atoms
        squares = [
            entry["expensive"]["rmse"] ** 2 * entry["expensive"]["count"] for entry in report[group].values()
        ]
        assert sum(squares) == pytest.approx(
            report["all"]["expensive"]["forces_meV_per_A"]["rmse"] ** 2 * sum(counts)
        )
    assert report["environments"]["adsorbate"]["cheap"] is None
    boundary = report["expert_boundary"]
    assert boundary["frames"] == 2 and boundary["atoms"] == boundary["all"]["atoms"] == 36
    assert boundary["inside"]["atoms"] + boundary["outside"]["atoms"] == 36
    assert sum(b["atoms"] for b in boundary["bins"]) == 36
    assert report["all"]["expensive_where_mixed"]["forces_meV_per_A"]["rmse"] == pytest.approx(
        boundary["all"]["expensive"]
    )
    for b in (*boundary["bins"], boundary["all"]):
        assert b["excess"] == pytest.approx(b["mixed"] - b["expensive"])
        # Inside the region, farther than the cutoff from the boundary, the mixture is the expensive expert.
        if b.get("from", -1.0) >= CUTOFF:
            assert b["change"] == pytest.approx(0.0, abs=1e-9)
    assert all(b["change"] > 0 for b in boundary["bins"] if b["to"] < 0)


def test_missing_labels_are_left_out(model, dataset):
    """Frames without labels change the number of frames and no error."""
    bare = [
        f._replace(energy=None, forces=None, stress=None, group=f"bare {f.group}") for f in dataset.frames
    ]
    half = bare[-1]._replace(energy=1.0)
    reports = [
        errors.report(
            errors.compare(model, dataset._replace(frames=frames), RULE, max_atoms=24, dtype=np.float64),
            environment_fn,
        )
        for frames in (dataset.frames, (*dataset.frames, *bare), (*dataset.frames, half))
    ]
    for potential in errors.POTENTIALS:
        for name in errors.UNITS:
            first, second, third = (r["all"][potential][name] for r in reports)
            assert (first is None) == (second is None)
            assert first is None or second == pytest.approx(first, rel=1e-9)
            if name != "energy_meV_per_atom":
                assert third is None or third == pytest.approx(first, rel=1e-9)
        assert reports[2]["all"]["mixed"]["energy_meV_per_atom"]["count"] == 3
    assert reports[1]["expert_boundary"]["all"]["atoms"] == reports[0]["expert_boundary"]["all"]["atoms"]
    assert reports[1]["expert_boundary"]["frames"] == 2 * reports[0]["expert_boundary"]["frames"]
    unlabelled = errors.report(
        errors.compare(model, dataset._replace(frames=tuple(bare)), RULE), environment_fn
    )
    assert unlabelled["all"]["expensive"] == dict.fromkeys(errors.UNITS)
    assert unlabelled["expert_boundary"]["all"]["mixed"] is None
    assert unlabelled["expert_boundary"]["all"]["change"] > 0


def test_bad_input(model, dataset):
    with pytest.raises(
        ValueError, match="experts of the checkpoint must be two, the expensive one first, got 1"
    ):
        errors.compare(Checkpoint(model.experts[:1], model.params[:1], {}, {}), dataset, RULE)
    with pytest.raises(ValueError, match="at least one frame"):
        errors.compare(model, dataset._replace(frames=()), RULE)
    with pytest.raises(ValueError, match="rule must return 0 or 1 for each of the 4 atoms of frame 0"):
        errors.compare(model, dataset, lambda frame: np.full(len(frame.symbols), 2))
    gold = dataset.frames[0]._replace(symbols=("Au",) * 4)
    with pytest.raises(ValueError, match="species must include every symbol.*Au"):
        errors.compare(model, dataset._replace(frames=(gold,)), RULE)
