"""Benchmarks of defects and adsorbed atoms: their geometry and counts, and a small run of each part."""

import json

import numpy as np
import pytest
from ase.build import bulk
from small_benchmarks import smoke, smoke_all


def as_measured(tmp_path, name: str) -> None:
    """Smoke records fill no table; without the mark they do."""
    path = tmp_path / f"{name}.jsonl"
    records = [{**json.loads(line), "smoke": False} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(
    ("crystal", "distance", "count"),
    [
        (bulk("Si", a=5.43), 5.43 * np.sqrt(3) / 4, 4),
        (bulk("Cu", a=3.6), 3.6 / np.sqrt(2), 12),
        (bulk("W", a=3.16), 3.16, 14),  # the two shells of bcc are close to each other
    ],
)
def test_the_first_shell_is_found(crystal, distance, count):
    import defect_systems

    found, n = defect_systems.first_shell(crystal)
    assert n == count and found == pytest.approx(distance, abs=1e-4)


def test_both_ends_of_a_jump_are_images_of_each_other():
    from vacancy_jump import mirrored, vacancy_jump

    perfect = bulk("Si", a=5.43, cubic=True) * 3
    jump = vacancy_jump(perfect, 2.6)
    assert (
        len(jump.first) == 215 and len(jump.rims) == 7
    )  # the jumping atom and three neighbours of either site
    moved = np.linalg.norm(jump.last.positions - jump.first.positions, axis=1)
    assert np.flatnonzero(moved).tolist() == [jump.jumper]
    relaxed = jump.first.copy()
    relaxed.rattle(0.05, seed=1)
    image = mirrored(jump, relaxed)
    ordered = [np.sort(a.get_all_distances(mic=True), axis=None) for a in (relaxed, image)]
    np.testing.assert_allclose(*ordered, atol=1e-9)
    assert np.abs(image.positions - jump.last.positions).max() < 0.3
    # In the basal plane of a crystal stretched along c, the middle between neighbours is no centre.
    stretched = vacancy_jump(bulk("Mg", a=3.2, c=5.6, orthorhombic=True) * (3, 2, 2), 3.3)
    assert mirrored(stretched, stretched.first) is None


def test_jumps_of_a_vacancy_are_counted():
    from defects_dynamics import jumps

    perfect = bulk("Cu", a=3.6, cubic=True) * 2
    atoms = perfect[1:]
    start, end = atoms.positions.copy(), atoms.positions.copy()
    end[0] = perfect.positions[0]
    rng = np.random.default_rng(0)
    frames = np.array([start] * 20 + [end] * 3 + [start] * 10 + [end] * 20)
    frames += 0.1 * rng.standard_normal(frames.shape) + 7.2  # anywhere in the periodic crystal
    found = jumps(frames, atoms, perfect.positions, 5)
    assert found["jumps"] == 1 and found["empty_sites"] == [0, 1]  # a short visit is none
    assert found["frames_with_one"] > 0.9


def test_diffusion_of_a_random_walk():
    import adsorbate_diffusion as diffusion

    rng, a = np.random.default_rng(0), 3.0
    runs = []
    for _ in range(8):
        steps = a * rng.choice([-1, 0, 1], (400, 2), p=[0.05, 0.9, 0.05]).repeat(20, axis=0) / 20
        path = np.concatenate([np.cumsum(steps, axis=0), np.zeros((8000, 1))], axis=1)[::10, None]
        n = len(path)
        runs.append(
            diffusion.Trajectory(
                0.01 * np.arange(n), path % 30.0, np.zeros(n), np.full(n, 800.0), np.array(1.0)
            )
        )
    found = diffusion.summary(runs, np.full(3, 30.0), np.array([-1.5, -1.5]), a, (0.2, 1.0), 100)
    expected = 2 * 0.1 * a**2 / 0.02 / 4  # 0.1 steps of a along both axes in 0.02 ps
    assert found["D_A2_per_ps"] == pytest.approx(expected, abs=4 * found["D_stderr"])
    assert 0 < found["D_stderr"] < 0.3 * expected
    assert sum(found["residence"].values()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="--fit-ps"):
        diffusion.summary(runs, np.full(3, 30.0), np.zeros(2), a, (100.0, 200.0), 100)


def test_a_checkpoint_needs_a_crystal_of_the_element():
    import defect_systems

    model = defect_systems.smoke_pair(("W", "Be"), "bcc", ("W",))
    assert defect_systems.reference_of(model, "W").formula == "W"
    with pytest.raises(ValueError, match=r"symbol must be an element .* got 'Be'; its crystals are W\."):
        defect_systems.reference_of(model, "Be")


@pytest.mark.thorough
def test_defects(tmp_path, tables):
    static, timed = smoke_all("defects", tmp_path)
    rows = {row["potential"]: row for row in static["rows"]}
    assert list(rows) == ["expensive", "cheap", "grown 1.5", "rims 1"] and static["atoms"] == 107
    assert rows["expensive"]["share"] == 1 and rows["cheap"]["share"] == 0
    assert 0 < rows["grown 1.5"]["share"] < 1 and rows["expensive"]["everywhere_meV_per_A"] == 0
    assert rows["rims 1"]["rim_meV_per_A"] < rows["cheap"]["rim_meV_per_A"]
    assert [row["name"] for row in timed["speed"]] == ["all expensive", "all cheap", "grown 1.5"]
    as_measured(tmp_path, "defects")
    text = tables.defects(tmp_path)
    assert "| mixture, around both rims, core 1 Å" in text and "107 atoms and a vacancy" in text


@pytest.mark.thorough
def test_defects_dynamics(tmp_path, tables):
    record = smoke("defects", tmp_path, "--dynamics", "--runs", "reassigned")
    assert record["momentum"] < 1e-10 and record["jumps"] >= 0 and record["switching_work_eV"] != 0
    assert record["drift_meV_per_atom_per_ps"] != record["total_drift_meV_per_atom_per_ps"]
    as_measured(tmp_path, "defects")
    assert "| the same, 1 fs, reassigned without a blend, 0.3 ps |" in tables.defects(tmp_path)


@pytest.mark.thorough
def test_adsorbate(tmp_path, tables):
    runs = tmp_path / "runs"
    record = smoke("adsorbate", tmp_path, "--folder", str(runs))
    assert {(row["site"], row["potential"]) for row in record["sites"]} == {
        (site, potential) for site in ("hollow", "bridge", "top") for potential in ("expensive", "mixture")
    }
    assert len(list(runs.glob("*.npz"))) == 4 and set(record["diffusion"]) == {"expensive", "mixture"}
    as_measured(tmp_path, "adsorbate")
    assert "| mixture |" in tables.adsorbate(tmp_path) and "2 runs of 0.2 ps" in tables.adsorbate(tmp_path)
