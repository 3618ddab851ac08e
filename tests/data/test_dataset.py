import json

import numpy as np
import pytest

from moe_md.data.dataset import (
    PACKAGED,
    dataset_from_frames,
    folds_by_group,
    force_rms,
    load_dataset,
    ptco_pbe,
    reference_energies,
    require_labels,
    split_by_group,
    summary,
)
from moe_md.data.reading import Frame


def frame(symbols, group="g", kind="", pbc=True, **labels):
    positions = np.arange(3.0 * len(symbols)).reshape(-1, 3)
    labels.update(group=group, kind=kind)
    return Frame(positions, tuple(symbols), 9.0 * np.eye(3), np.full(3, pbc), **labels)


@pytest.fixture(scope="module")
def ptco():
    return load_dataset(ptco_pbe())


def test_species(ptco):
    assert ptco.species == ("C", "O", "Pt")
    assert load_dataset(ptco_pbe(), ("Pt", "O", "C", "H")).species == ("Pt", "O", "C", "H")
    with pytest.raises(ValueError, match=r"frame \d+ has C, got \('Pt', 'O'\)"):
        load_dataset(ptco_pbe(), ("Pt", "O"))
    with pytest.raises(ValueError, match="must not repeat"):
        dataset_from_frames([], ("Pt", "Pt"))


@pytest.mark.parametrize("tier", ["ptco_fm", "ptco_pbe"])
def test_packaged_data_match_their_readme(tier):
    """Counts are those of the README; a test set shares neither kind nor trajectory with its training set."""
    train, test = (load_dataset(PACKAGED[name]()) for name in (tier, f"{tier}_test"))
    card = (PACKAGED[tier]().parent / "README.md").read_text()
    for part in (train, test):
        counts = summary(part)
        assert (
            f"{counts['frames']:,} frames" in card
            and counts["energy"] == counts["forces"] == counts["frames"]
        )
        assert counts["stress"] == sum(bool(f.pbc.all()) for f in part.frames)
    for key in ("kind", "group"):
        assert not {getattr(f, key) for f in train.frames} & {getattr(f, key) for f in test.frames}
    for kind in ("co-111", "contact") if tier == "ptco_fm" else ():
        assert f"| `{kind}` | {summary(train)['kinds'][kind]['frames']} | " in card
    assert max(np.abs(f.forces).max() for f in train.frames + test.frames) < 60.0


@pytest.mark.parametrize("seed", range(5))
def test_split_divides_no_group(ptco, seed):
    train, validation = split_by_group(ptco, validation_fraction=0.25, seed=seed)
    groups = [{f.group for f in part.frames} for part in (train, validation)]
    assert not groups[0] & groups[1]
    assert len(train.frames) + len(validation.frames) == len(ptco.frames)
    kinds = {f.kind for f in ptco.frames}
    many = {k for k in kinds if len({f.group for f in ptco.frames if f.kind == k}) > 1}
    for part in (train, validation):
        assert many <= {f.kind for f in part.frames} and part.species == ptco.species
    assert 0.08 < len(validation.frames) / len(ptco.frames) < 0.45
    again = split_by_group(ptco, validation_fraction=0.25, seed=seed)
    assert [id(f) for f in again[1].frames] == [id(f) for f in validation.frames]


def test_split_depends_on_the_seed(ptco):
    splits = [split_by_group(ptco, validation_fraction=0.25, seed=seed) for seed in range(5)]
    drawn = {tuple(id(f) for f in validation.frames) for _, validation in splits}
    assert len(drawn) > 1


def test_added_groups_do_not_change_the_split_of_others():
    def held_out(n):
        groups = [frame(["Pt"], f"run-{k}", "bulk") for k in range(n)]
        return {
            f.group
            for f in split_by_group(dataset_from_frames(groups), validation_fraction=0.3, seed=4)[1].frames
        }

    assert held_out(40) < held_out(80)


def test_folds_hold_out_every_group_once(ptco):
    folds = folds_by_group(ptco, n_folds=4, seed=0)
    many = {
        k for k in (f.kind for f in ptco.frames) if len({f.group for f in ptco.frames if f.kind == k}) > 1
    }
    held_out = [{f.group for f in validation.frames} for _, validation in folds]
    assert sum(map(len, held_out)) == len(set.union(*held_out))
    assert set.union(*held_out) == {f.group for f in ptco.frames if f.kind in many}
    for (train, validation), groups in zip(folds, held_out):
        assert not groups & {f.group for f in train.frames}
        assert len(train.frames) + len(validation.frames) == len(ptco.frames)
        assert 0.1 < len(validation.frames) / len(ptco.frames) < 0.45


@pytest.mark.parametrize(
    "n_folds, message", [(1, "n_folds must be at least 2"), (4, "n_folds must be at most 3")]
)
def test_folds_refuse_numbers(n_folds, message):
    frames = [frame(["Pt"], g, k) for g, k in (("a", "bulk"), ("b", "slab"), ("c", "slab"), ("d", "slab"))]
    with pytest.raises(ValueError, match=message):
        folds_by_group(dataset_from_frames(frames), n_folds=n_folds, seed=0)


def test_split_of_single_group_kinds():
    frames = [frame(["Pt"], g, k) for g, k in (("a", "bulk"), ("b", "slab"), ("c", "slab"))]
    train, validation = split_by_group(dataset_from_frames(frames), validation_fraction=0.5, seed=0)
    assert "bulk" in {f.kind for f in train.frames} and [f.kind for f in validation.frames] == ["slab"]
    train, validation = split_by_group(dataset_from_frames(frames[:2]), validation_fraction=0.5, seed=0)
    assert len(train.frames) == len(validation.frames) == 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_fractions(ptco, fraction):
    with pytest.raises(ValueError, match="validation_fraction must be in"):
        split_by_group(ptco, validation_fraction=fraction, seed=0)


def test_split_refuses_one_group():
    with pytest.raises(ValueError, match="at least 2 groups"):
        split_by_group(dataset_from_frames([frame(["Pt"])] * 3), validation_fraction=0.5, seed=0)


def test_summary(ptco):
    counts = summary(ptco)
    json.dumps(counts)
    assert counts["frames"] == len(ptco.frames) == sum(k["frames"] for k in counts["kinds"].values())
    assert counts["kinds"]["slab-co"]["stress"] == 0 < counts["kinds"]["slab-co"]["forces"]
    eos = counts["kinds"]["bulk-eos"]
    assert eos["atoms"] == 4 * eos["frames"] and eos["stress"] == eos["frames"]


def test_reference_energies_recover_exact_ones():
    true = {"C": -5.0, "O": -7.0, "Pt": -6.0}
    compositions = (["C"], ["C", "O"], ["Pt"] * 3, ["Pt", "O"], ["Pt", "Pt", "C", "O"])
    frames = [frame(s, energy=sum(true[x] for x in s)) for s in compositions]
    found = reference_energies(dataset_from_frames([*frames, frame(["Pt"])]))
    assert found == pytest.approx(true)


def test_reference_energies_of_inseparable_species():
    counts = ((1, 0), (4, 1), (2, 2))
    frames = [frame(["Pt"] * n + ["C", "O"] * m, energy=-6.0 * n - 14.0 * m) for n, m in counts]
    found = reference_energies(dataset_from_frames(frames, ("C", "O", "Pt", "H")))
    assert found == pytest.approx({"C": -7.0, "O": -7.0, "Pt": -6.0, "H": 0.0}, abs=1e-9)


def test_force_rms_ignores_missing_forces():
    forces = (np.array([[3.0, 0.0, 0.0]]), None, np.zeros((1, 3)))
    frames = [frame(["Pt"], forces=f) for f in forces]
    assert force_rms(dataset_from_frames(frames)) == pytest.approx(np.sqrt(9.0 / 6.0))


def test_labels_that_no_frame_has_are_refused():
    bare = dataset_from_frames([frame(["Pt"])])
    with pytest.raises(ValueError, match="energy"):
        reference_energies(bare)
    with pytest.raises(ValueError, match="forces"):
        force_rms(bare)
    slab = dataset_from_frames([frame(["Pt"], pbc=False, energy=0.0, stress=np.eye(3)), frame(["Pt"])])
    require_labels(slab, energy=True)
    with pytest.raises(ValueError, match="must have stress on at least one fully periodic frame"):
        require_labels(slab, stress=True)
