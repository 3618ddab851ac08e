"""The benchmark of materials: its settings files, corrections of frames, and a small run of two materials."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from small_benchmarks import smoke_all

from moe_md.analysis import environments
from moe_md.data import frame_from_atoms, load_dataset

PUBLISHED = """
[Cu]
train = "metals/Cu-train.xyz.gz"
test = "metals/Cu-test.xyz.gz"
melting_K = 1200.0
shear = { hot = ["xy", "yz", "xz"] }
DFT.Cu = { lattice_constant_A = 3.63 }
errors.SNAP = { all = { energy = 2.0, forces = 30 }, hot = { forces = 40 } }

[CuAu]
frames = "metals/CuAu.xyz.gz"
melting_K = 1200.0
drop_frames = [1]
drop_series = ["bad"]
drop_stress = ["alloy"]
note = "SNAP: of other frames"
"""


def labelled(symbol: str, shift: float, rng: np.random.Generator, **info) -> Atoms:
    """A conventional cell of copper, with a gold atom where its symbol is given, labelled by EMT."""
    atoms = bulk("Cu", a=3.6, cubic=True)
    atoms.symbols[0] = symbol
    atoms.positions += shift * rng.standard_normal((4, 3))
    atoms.calc = EMT()
    atoms.get_forces(), atoms.get_stress()
    atoms.info |= info
    return atoms


@pytest.fixture
def folder(tmp_path) -> Path:
    """Frames in `metals`, settings of two materials beside it."""
    rng = np.random.default_rng(0)
    (tmp_path / "metals").mkdir()

    def series(name: str, count: int) -> list[Atoms]:
        return [
            labelled("Cu", 0.1 * (k > 0), rng, kind="hot" if k else "bulk", origin=f"{name} {k}")
            for k in range(count)
        ]

    for part, count in (("train", 8), ("test", 3)):
        write(tmp_path / "metals" / f"Cu-{part}.xyz.gz", series(part, count), format="extxyz")
    alloy = [labelled("Au", 0.1, rng, kind="alloy", origin=f"gold {k}") for k in range(8)]
    bad = [labelled("Au", 0.1, rng, kind="alloy", origin=f"bad {k}") for k in range(2)]
    write(tmp_path / "metals" / "CuAu.xyz.gz", series("copper", 8) + alloy + bad, format="extxyz")
    (tmp_path / "Cu.toml").write_text("")
    (tmp_path / "CuAu.toml").write_text('[cheap]\nallowed_species = ["Cu"]\n[training]\nsteps = 7\n')
    (tmp_path / "published.toml").write_text(PUBLISHED)
    return tmp_path


def test_settings_files_are_those_of_published_materials():
    import materials_data

    known = materials_data.published()
    assert list(known) == ["Si", "Mo", "Li", "WBe", "MoNbTaW"]
    assert {path.stem for path in materials_data.FOLDER.glob("*.toml")} == {*known, "published"}
    for name in known:
        tables = materials_data.material(name).tables  # as `moe-md train --settings` reads them
        assert tables["training"]["agreement_gradient_scale"] == 0.1
    assert materials_data.material("WBe").tables["cheap"] == {"allowed_species": ["W"]}
    with pytest.raises(ValueError, match=r"materials must be of Si.*got 'Cu'"):
        materials_data.material("Cu")


def test_frames_are_corrected_and_split(folder):
    import materials_data

    copper = materials_data.material("Cu", folder)
    train, held_out = materials_data.frames(copper, folder, test=True)
    assert (len(train.frames), len(held_out.frames)) == (8, 3)
    given = load_dataset(folder / "metals" / "Cu-train.xyz.gz")
    for before, after in zip(given.frames, train.frames, strict=True):
        stored = [before.stress[1, 2], before.stress[0, 2], before.stress[0, 1]]
        true = [after.stress[1, 2], after.stress[0, 2], after.stress[0, 1]]
        expected = stored if before.kind == "bulk" else [stored[1], stored[2], stored[0]]
        assert true == expected and (after.stress == after.stress.T).all()
        np.testing.assert_array_equal(np.diag(after.stress), np.diag(before.stress))
    train, held_out = materials_data.frames(copper, folder, test=False)
    assert len(train.frames) + len(held_out.frames) == 8 and held_out.frames

    alloy = materials_data.material("CuAu", folder)
    parts = [materials_data.frames(alloy, folder, test=test) for test in (False, True)]
    assert parts[0][0].frames[0].group == parts[1][0].frames[0].group  # one split in both cases
    assert {f.kind: f.stress is None for f in parts[0][0].frames} == {
        "bulk": False,
        "hot": False,
        "alloy": True,
    }
    groups = {frame.group for part in parts[0] for frame in part.frames}
    assert len(groups) == 15 and "copper 1" not in groups and not any(g.startswith("bad") for g in groups)


def test_keys_that_settings_lack_are_those_of_init(folder):
    import materials_data

    given = materials_data.material("CuAu", folder)
    train, _ = materials_data.frames(given, folder, test=True)
    (expensive, cheap), settings, _ = materials_data.training(given, train, seed=3)
    assert (settings.steps, settings.seed, settings.agreement_gradient_scale) == (7, 3, 0.1)
    assert expensive.species == cheap.species and cheap.allowed_species == ("Cu",)
    assert materials_data.training(given, train, seed=3, steps=5).settings.steps == 5


def test_a_plane_halves_a_frame():
    import bench_materials

    frame = frame_from_atoms(bulk("Cu", a=3.6, cubic=True) * (1, 1, 3))
    owner = bench_materials.upper_half(frame)
    assert owner.sum() == 6 and frame.positions[owner == 1, 2].max() < frame.positions[owner == 0, 2].min()
    assert np.abs(environments.boundary_distance(frame, owner)).max() < 3.7  # no atom is far from the plane
    assert bench_materials.upper_half(frame_from_atoms(bulk("Cu"))).tolist() == [1]  # an atom alone


@pytest.mark.thorough
def test_materials(folder, tables, monkeypatch):
    """Copper by EMT: the recipe takes its crystal from the frames; both experts learn and are compared."""
    import materials_data

    given = ["--data", str(folder), "--settings", str(folder)]
    copper, alloy = smoke_all("materials", folder, *given, "--test", "--folder", str(folder / "runs"))
    assert (copper["split"], copper["test_file"], alloy["test_file"]) == ("test", True, False)
    assert set(copper["errors"]) == {"all", "bulk", "hot"} and copper["errors"]["all"]["frames"] == 3
    assert copper["errors"]["all"]["mixture"]["frames"] == 3
    assert (folder / "runs" / "Cu-0" / "training.msgpack").exists()
    assert copper["crystal"]["differences"]["C11"] != 0 and copper["ghost_force_meV_per_A"] > 0
    hot = copper["hot"]
    assert hot["temperature_K"] == 600 and hot["boundary_rms_meV_per_A"] > 0
    assert abs(hot["expansion_difference_percent"]) < 20 and hot["expansion_stderr"][0] > 0
    # Gold is within the cutoff of all atoms, so the cheap expert owns none in the frames of the alloy.
    mixture = alloy["errors"]["alloy"]["mixture"]
    assert mixture["frames"] == 0 and mixture["forces_meV_per_A"] is None
    assert alloy["errors"]["alloy"]["cheap"]["forces_meV_per_A"] is None

    # Two seeds are one row, with their mean and both values; an old record has no mixture.
    old = {kind: {k: v for k, v in e.items() if k != "mixture"} for kind, e in copper["errors"].items()}
    old = {
        key: value for key, value in {**copper, "errors": old}.items() if key not in ("crystals", "test_file")
    }
    lines = [
        {**record, "smoke": False, "seed": seed, "training_s": 60 * seed}
        for record, seed in ((old, 3), (old, 1), (alloy, 0))
    ]
    (folder / "materials.jsonl").write_text("\n".join(map(json.dumps, lines)))
    known = materials_data.published(folder)
    monkeypatch.setattr(materials_data, "published", lambda: known)
    text = tables.materials(folder)
    rows = [line for line in text.splitlines() if line.startswith("| Cu |")]
    assert rows[0].endswith("| 2.0 (1.0, 3.0) |") and "| – | 2; 30 | – |" in rows[0]
    assert [row.split(" | ")[1] for row in rows[1:3]] == ["bulk", "hot"] and rows[2].endswith("SNAP: –; 40 |")
    assert "; 3.630 |" in rows[3]
    assert "CuAu: SNAP: of other frames." in text and "Test frames of CuAu: groups" in text


def test_corrected_frames_are_written(folder):
    from small_benchmarks import run_here

    out = folder / "out"
    given = ["--data", str(folder), "--settings", str(folder), "--write-frames", str(out), "--test"]
    run_here("bench_materials", folder, *given)
    assert sorted(path.name for path in out.iterdir()) == [
        f"{name}-{part}.xyz.gz" for name in ("Cu", "CuAu") for part in ("test", "train")
    ]
    import materials_data

    expected, _ = materials_data.frames(materials_data.material("Cu", folder), folder, test=True)
    found = load_dataset(out / "Cu-train.xyz.gz")
    np.testing.assert_allclose(found.frames[1].stress, expected.frames[1].stress, atol=1e-7)
