"""The demonstration: geometry of its slab, and all of it in a small form."""

import csv
import json

import ase.io
import jax
import numpy as np
import pytest

from moe_md import checkpoint, experts, regions, timing
from moe_md.commands import demo
from moe_md.data import structures
from moe_md.neighbors.rows import image_pairs
from moe_md.settings import DemoSettings

SPECIES, CUTOFF = ("Pt", "C", "O"), 4.5


@pytest.fixture(scope="module")
def metal_like():
    """Lennard-Jones platinum, twice."""
    built = [
        experts.lennard_jones(SPECIES, CUTOFF, epsilon=epsilon, sigma=2.5446, allowed_species=domain)
        for epsilon, domain in ((0.6, SPECIES), (0.59, ("Pt",)))
    ]
    return checkpoint.Checkpoint(tuple(built), tuple(e.init(None) for e in built), {}, {})


def test_slab_has_a_quarter_layer_of_upright_co():
    atoms = structures.co_covered_slab("Pt", 3.98, 8, 8, 32)
    symbols = np.array(atoms.symbols)
    assert len(atoms) == 2080 and (symbols == "C").sum() == (symbols == "O").sum() == 64 // 4
    carbon, oxygen = atoms.positions[symbols == "C"], atoms.positions[symbols == "O"]
    np.testing.assert_allclose(oxygen - carbon, [[0, 0, structures.CO_LENGTH]] * 16, atol=1e-12)
    # p(2x2): each carbon has six others at twice the metal's distance, none nearer.
    i, _, D = image_pairs(carbon, atoms.cell.array, atoms.pbc, 1.05 * 2 * 3.98 / np.sqrt(2))
    assert (np.bincount(i, minlength=16) == 6).all()
    np.testing.assert_allclose(np.linalg.norm(D, axis=1), 2 * 3.98 / np.sqrt(2), rtol=1e-9)
    # Each stands on a platinum atom of the top layer.
    top = atoms.positions[atoms.get_tags() == 1]
    for site in carbon:
        assert np.abs(top + np.array([0, 0, structures.HEIGHT]) - site).sum(axis=1).min() < 1e-9


def test_slab_fits_its_box():
    atoms = structures.co_covered_slab("Pt", 3.98, 8, 8, 32, vacuum=16.0)
    low, high = atoms.positions[:, 2].min(), atoms.positions[:, 2].max()
    assert low == pytest.approx(8.0) and atoms.cell[2, 2] - high == pytest.approx(8.0)
    # Beyond three times cutoff and skin jax-md uses its cell list.
    assert (atoms.cell.lengths() > 3 * (5.0 + timing.SKIN)).all()
    i, _, _ = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, 0.9 * 3.98)
    metal = np.array(atoms.symbols) == "Pt"
    inner = metal & (atoms.get_tags() > 2) & (atoms.get_tags() < 31)
    assert (np.bincount(i, minlength=len(atoms))[inner] == 12).all()


@pytest.mark.parametrize("cutoff", [4.0, 5.0, 6.0])
def test_cheap_expert_sees_no_molecule(cutoff):
    atoms = structures.co_covered_slab("Pt", 3.98, 4, 8, 8)
    region = regions.slab(atoms.positions, lower=demo.lower_plane(atoms, cutoff))
    cheap = np.asarray(region.assignment) == 1
    i, j, _ = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff + demo.MARGIN)
    out_of_domain = np.array(atoms.symbols) != "Pt"
    assert not cheap[out_of_domain].any()
    assert not (cheap[i] & out_of_domain[j]).any()
    # Whole layers, and one layer less would not do.
    tags = atoms.get_tags()
    owned = set(tags[~cheap])
    assert not owned & set(tags[cheap])
    assert out_of_domain[j[tags[i] == max(owned)]].any()


def test_too_thin_a_slab():
    atoms = structures.co_covered_slab("Pt", 3.98, 4, 8, 2)
    with pytest.raises(ValueError, match="layers must be more than 2, .* got 2"):
        demo.lower_plane(atoms, 5.0)


def test_settings_say_what_is_wrong():
    with pytest.raises(ValueError, match="columns must be even and rows a multiple of 4, .* got 7 and 8"):
        DemoSettings(columns=7)
    with pytest.raises(ValueError, match="production_steps must be at least 20 x log_every = 200"):
        DemoSettings(production_steps=100)
    with pytest.raises(ValueError, match="trajectory_every must be a multiple of log_every = 10, got 25"):
        DemoSettings(trajectory_every=25)
    assert demo.small(DemoSettings(seed=3)).seed == 3


def test_experts_must_fit(metal_like):
    one = metal_like._replace(experts=metal_like.experts[:1])
    with pytest.raises(ValueError, match="experts of the checkpoint must be two, .* got 1"):
        demo.check_experts(one)
    other = tuple(experts.lennard_jones(("Pt",), CUTOFF) for _ in range(2))
    with pytest.raises(ValueError, match="must know Pt, C and O, got species"):
        demo.check_experts(metal_like._replace(experts=other))


@pytest.mark.filterwarnings("ignore:region gives expert")
def test_timed_program_gives_the_forces(metal_like):
    """The program that is timed computes what it should: forces of the mixture, at rest and on the move."""
    system = demo.build(metal_like, demo.small(DemoSettings()), 3.9, np.float64)
    cases = timing.steppers(metal_like, system, 1.0, 64)
    rng = np.random.default_rng(0)
    position = system.position + 0.03 * rng.standard_normal(system.position.shape)
    timings = timing.interleave(cases, system, system.position, np.zeros_like(position), 2)
    assert timings.f == pytest.approx(np.mean(system.assignment == 0))
    assert timings.s_max == pytest.approx(1 / (timings.f + (1 - timings.f) / timings.r))
    forces = {name: case.forces(position) for name, case in cases.items()}
    np.testing.assert_allclose(forces["cheap"] * 0.6, forces["expensive"] * 0.59, atol=1e-9)
    i, j, D = image_pairs(position, np.diag(system.box), (True,) * 3, CUTOFF)
    epsilon = np.where(system.assignment == 0, 0.6, 0.59)
    shared = 0.5 * (epsilon[i] + epsilon[j])

    def pair(r):
        value = 4 * ((2.5446 / r) ** 12 - (2.5446 / r) ** 6)
        o2, c2, r2 = (0.8 * CUTOFF) ** 2, CUTOFF**2, r**2
        return value * np.where(r2 < o2, 1.0, (c2 - r2) ** 2 * (c2 + 2 * r2 - 3 * o2) / (c2 - o2) ** 3)

    r, h = np.linalg.norm(D, axis=1), 1e-6
    slope = shared * (pair(r + h) - pair(r - h)) / (2 * h)
    expected = np.zeros_like(position)
    np.add.at(expected, i, (slope / r)[:, None] * D)
    size = np.abs(expected).max()
    np.testing.assert_allclose(forces["mixed"], expected, atol=1e-6 * size)


def soft_model() -> checkpoint.Checkpoint:
    """A cheap expert that is platinum, and an expensive one that hardly pushes.

    Under Lennard-Jones platinum's diameter a CO bond of 1.15 Å would explode.
    """
    soft = experts.power_spectrum(SPECIES, 4.0, l_max=1, num_bessels=4, num_channels=4, hidden=(8,))
    params = soft.init(jax.random.key(0))
    cheap = experts.lennard_jones(SPECIES, CUTOFF, epsilon=0.6, sigma=2.5446, allowed_species=("Pt",))
    return checkpoint.Checkpoint(
        (soft, cheap), ({**params, "scale": 1e-3 * params["scale"]}, cheap.init(None)), {}, {}
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    checkpoint.save(folder / "soft.msgpack", soft_model())
    said: list[str] = []
    settings = demo.small(DemoSettings(checkpoint=str(folder / "soft.msgpack"), temperature_K=100.0))
    return folder / "out", demo.run(settings, folder / "out", said.append), said, settings


def test_summary(finished):
    folder, summary, _, _ = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert tuple(summary) == demo.SUMMARY_KEYS
    assert all(np.isfinite(value) for value in summary.values())
    assert summary["n_atoms"] == 4 * 8 * 8 + 2 * 8
    assert 0 < summary["f"] < 1 and summary["drift_stderr"] > 0
    bound = 1 / (summary["f"] + (1 - summary["f"]) / summary["r"])
    assert summary["s_max"] == pytest.approx(bound)
    assert summary["fraction_of_bound"] == pytest.approx(summary["speedup"] / bound)


def test_files(finished):
    folder, summary, said, settings = finished
    for name in ("slab.png", "energy.png", "mismatch.png"):
        assert (folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert f"({name})" in (folder / "report.md").read_text()
    with open(folder / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(
        range(0, settings.production_steps + 1, settings.log_every)
    )
    frames = ase.io.read(folder / "trajectory.extxyz", index=":")
    assert len(frames) == 1 + settings.production_steps // settings.trajectory_every
    assert len(frames[0]) == summary["n_atoms"] and frames[0].pbc.all()
    assert np.mean(frames[0].arrays["expert"] == 0) == pytest.approx(summary["f"])
    assert frames[0].get_potential_energy() == pytest.approx(float(rows[0]["potential"]), abs=1e-3)
    assert all(row["conserved"] == row["total"] for row in rows)
    assert len(said) >= 8


def test_energies_in_the_log_are_whole(finished):
    """The run counts from its start; what is written does not."""
    folder, _, _, settings = finished
    model = checkpoint.load(settings.checkpoint)
    frame = ase.io.read(folder / "trajectory.extxyz", index=-1)
    from moe_md.interfaces.ase import MixtureCalculator

    energy = frame.get_potential_energy()
    frame.calc = MixtureCalculator(model, region=frame.arrays["expert"])
    assert frame.get_potential_energy() == pytest.approx(energy, abs=2e-3)


@pytest.mark.slow
@pytest.mark.skipif("ptco" not in checkpoint.names(), reason="the package holds no checkpoint named ptco yet")
def test_shipped_checkpoint(tmp_path):
    summary = demo.run(DemoSettings(), tmp_path, print)
    assert summary["n_atoms"] >= 2000 and summary["f"] <= 0.1
    assert summary["speedup"] > 0.7 * summary["s_max"]
    assert abs(summary["drift_meV_per_atom_per_ps"]) < 1.0
