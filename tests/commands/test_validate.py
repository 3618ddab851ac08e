"""Validation: its settings, all sections for a Lennard-Jones checkpoint, and the paired runs."""

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111

from moe_md import checkpoint, experts
from moe_md.analysis import paired_runs
from moe_md.analysis.environments import near_other_species, top_layers
from moe_md.commands import main as cli
from moe_md.commands import validate
from moe_md.data import structures
from moe_md.data.dataset import Dataset
from moe_md.data.reading import frame_from_atoms, frame_to_atoms
from moe_md.plots import validation as validation_plots
from moe_md.settings import ValidateSettings

SPECIES, CUTOFF, A0 = ("Pt", "C", "O"), 4.0, 3.92


def lennard_jones(second: float = 0.59, **kwargs):
    built = [
        experts.lennard_jones(SPECIES, CUTOFF, epsilon=epsilon, sigma=2.5446, allowed_species=domain)
        for epsilon, domain in ((0.6, SPECIES), (second, kwargs.get("allowed_species", ("Pt",))))
    ]
    return checkpoint.Checkpoint(tuple(built), tuple(e.init(None) for e in built), {}, {})


def frames():
    rng = np.random.default_rng(0)
    for kind in ("slab-co", "slab-clean"):
        atoms = fcc111("Pt", (2, 2, 4), a=A0, vacuum=6.0)
        if kind == "slab-co":
            atoms += Atoms("CO", [atoms.positions[-1] + [0, 0, h] for h in (2.5, 4.5)])
        atoms.rattle(0.05)
        label = {"energy": -50.0, "forces": rng.normal(size=(len(atoms), 3))}
        yield frame_from_atoms(atoms)._replace(**label, kind=kind, group=kind)


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validate")
    lines = []
    settings = validate.smoke_settings(
        ValidateSettings(adsorbate="", region="top_layers", region_layers=2, temperature_K=100.0)
    )
    names = {"checkpoint": "two potentials", "data": "some frames", "split": "all"}
    content = validate.run(
        lennard_jones(), Dataset(tuple(frames()), SPECIES), settings, folder, lines.append, names=names
    )
    return folder, content, lines


def test_report_shows_all_sections_and_pictures(validated):
    folder, content, lines = validated
    assert json.loads((folder / "validation.json").read_text()) == content
    assert set(validate.SECTIONS) <= set(content)
    report = (folder / "report.md").read_text()
    for word in (
        "two potentials",
        "some frames",
        "split “all”",
        "only on frames all of whose atoms are in its domain",
        "Vandermause",
    ):
        assert word in report, word
    shown = {line.split("(")[-1].rstrip(")") for line in report.splitlines() if line.startswith("![")}
    assert shown == {p.name for p in folder.glob("*.png")} and len(shown) >= 6
    assert all((folder / name).stat().st_size > 5000 for name in shown)
    assert "None" not in report and "nan" not in report
    assert any("dynamics: done" in line for line in lines)


def test_sections_hold_the_values_of_lennard_jones(validated):
    _, content, _ = validated
    # Two Lennard-Jones experts with equal sigma: well depths differ by 1 / 60, and so do moduli.
    first, second = content["crystal"]["experts"]
    assert second["bulk_modulus_GPa"] / first["bulk_modulus_GPa"] == pytest.approx(0.59 / 0.6)
    pressure = content["expert_boundary"]["stress_jump"]["isotropic"]["pressure"]
    assert pressure[1] == pytest.approx(0.0, abs=1e-6) and pressure[0] > 0 > pressure[-1]
    vacancy = {name: entry["energy_eV"] for name, entry in content["surfaces"]["vacancy"].items()}
    # The tolerance allows for relaxations of a few steps.
    assert vacancy["cheap"] / vacancy["expensive"] == pytest.approx(0.59 / 0.6, rel=1e-2)
    assert set(content["surfaces"]["adsorption"]) == {"expensive", "mixed"}
    assert content["expert_boundary"]["ghost_force"]["lattice_constants"][1] == pytest.approx(
        content["about"]["lattice_constant"]
    )
    boundary = content["errors"]["expert_boundary"]
    assert boundary["frames"] == 2
    assert boundary["inside"]["atoms"] == 18 and boundary["outside"]["atoms"] == 16
    dynamics = content["dynamics"]
    assert (
        dynamics["n_atoms"] == 4 * 6 * 4
        and dynamics["n_expensive"] == 4 * 6 * 2
        and dynamics["out_of_domain_fraction"] == 0.0
    )
    a = content["about"]["lattice_constant"]
    assert dynamics["boundary_area_A2"] == pytest.approx(4 * a / np.sqrt(2) * 6 * a * np.sqrt(3 / 8))
    mixed = dynamics["mixed"]
    assert abs(mixed["drift_meV_per_atom_per_ps"]) < 5 * mixed["drift_stderr"] + 0.05
    to_flux = 1e-3 * dynamics["n_atoms"] / dynamics["boundary_area_A2"]
    assert mixed["flux_eV_per_ps_per_A2"] == pytest.approx(to_flux * mixed["drift_meV_per_atom_per_ps"])
    assert len(dynamics["curves"]) == 6
    for curve in dynamics["curves"].values():
        lengths = {len(curve[key]) for key in ("x", "expensive", "expensive_error", "mixed", "mixed_error")}
        assert len(lengths) == 1 and lengths.pop() > 3


def test_sections_chosen_by_command_line(capsys, tmp_path):
    checkpoint.save(tmp_path / "model.msgpack", lennard_jones())
    ase.io.write(tmp_path / "frames.extxyz", [frame_to_atoms(f) for f in frames()])
    (tmp_path / "settings.toml").write_text('[validate]\nsections = "expert_boundary"\nregion_margin = 0.0\n')
    arguments = [
        "validate",
        tmp_path / "model.msgpack",
        "--data",
        tmp_path / "frames.extxyz",
        "--out",
        tmp_path / "out",
    ]
    code = cli.main(
        [
            str(a)
            for a in (*arguments, "--settings", tmp_path / "settings.toml", "--sections", "errors", "--small")
        ]
    )
    assert code == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert "errors" in content and "expert_boundary" not in content
    assert content["about"]["split"] == "all" and content["about"]["frames"] == 2
    assert content["settings"]["region_margin"] == 0.0
    assert content["errors"]["kinds"]["slab-clean"]["cheap"]["forces_meV_per_A"]["count"] == 48
    code = cli.main([str(a) for a in (*arguments, "--split", "validation")])
    assert code == 2 and "validation_fraction must be given" in capsys.readouterr().err
    (tmp_path / "settings.toml").write_text("[validate]\nsection = 'expert_boundary'\n")
    code = cli.main([str(a) for a in (*arguments, "--settings", tmp_path / "settings.toml")])
    err = capsys.readouterr().err
    assert code == 2 and "'section'" in err and "[validate]" in err and "sections" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sections": "errors,magic"}, "sections must be of .* got 'magic'"),
        ({"sections": "errors,seam"}, "sections must be of .* got 'seam': it is now 'expert_boundary'"),
        ({"sections": " "}, "sections must name at least one"),
        ({"region": "sphere"}, "region must be one of .* got 'sphere'"),
        ({"region_margin": -1.0}, "region_margin must not be negative, got -1.0"),
        ({"region_layers": 0}, "region_layers must be positive, got 0"),
        ({"rows": 5}, "rows must be even.* got 5"),
        ({"strains": 4}, "strains must be odd and at least 3.* got 4"),
        ({"blocks": 1}, "blocks must be at least 2, got 1"),
        (
            {"production_steps": 100},
            "production_steps must be at least 20 x blocks x log_every = 400.* got 100",
        ),
        ({"temperature_K": "hot"}, "temperature_K must be of type float, got 'hot'"),
    ],
)
def test_wrong_settings_are_named_with_their_value(changes, message):
    with pytest.raises(ValueError, match=message):
        ValidateSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metal": "C"}, "metal must be among the allowed_species of the cheap expert, .* got 'C'"),
        ({"adsorbate": "unobtainium"}, "adsorbate must be a molecule that ASE knows, got 'unobtainium'"),
        ({"adsorbate": "NO"}, "adsorbate must be of the species .* got 'NO'"),
        (
            {"adsorbate": ""},
            "region must leave atoms to both experts, got all 144 of the slab on the cheap one",
        ),
        ({"region": "top_layers", "region_layers": 6}, "got all 146 of the slab on the expensive one"),
        ({"columns": 2}, "columns must make the slab wider than twice the cutoff, 2 x 4.0 Å, got 2 for 5"),
    ],
)
def test_checkpoint_and_slab_are_checked_before_the_first_section(changes, message, tmp_path):
    settings = ValidateSettings(sections="errors,dynamics", **changes)
    with pytest.raises(ValueError, match=message):
        validate.run(
            lennard_jones(), Dataset(tuple(frames()), SPECIES), settings, tmp_path / "out", lambda text: None
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("cutoff", "columns", "rows"), [(4.0, 4, 6), (6.0, 5, 6), (8.0, 6, 8)])
def test_the_slab_is_wider_than_twice_the_cutoff(cutoff, columns, rows):
    settings = validate._with_slab_size(ValidateSettings(), A0 / np.sqrt(2), cutoff)
    assert (settings.columns, settings.rows) == (columns, rows)
    atoms = structures.slab_with_adsorbate("Pt", A0, (columns, rows, 3))
    assert atoms.cell.lengths()[:2].min() > 2 * cutoff


def test_slab_with_adsorbate():
    atoms = structures.slab_with_adsorbate("Pt", A0, (4, 6, 6), vacuum=10.0)
    carbon, oxygen = (atoms.positions[np.array(atoms.symbols) == s][0] for s in "CO")
    assert oxygen[2] > carbon[2] and np.allclose(oxygen[:2], carbon[:2])
    top = atoms.positions[:-2]
    assert np.abs(top + np.array([0, 0, structures.HEIGHT]) - carbon).sum(axis=1).min() < 1e-9
    height = atoms.positions[:, 2]
    assert height.min() == pytest.approx(5.0) and atoms.cell[2, 2] - height.max() == pytest.approx(5.0)
    bare = structures.slab_with_adsorbate("Pt", A0, (2, 2, 3), adsorbate="")
    assert (
        set(bare.symbols) == {"Pt"}
        and len(structures.slab_with_adsorbate("Pt", A0, (2, 2, 3), adsorbate="O")) == 13
    )
    with pytest.raises(ValueError, match="size must be positive with an even number of rows"):
        structures.slab_with_adsorbate("Pt", A0, (2, 3, 3))


def test_boundary_area_of_a_plane_and_a_sphere():
    """Counting bonds gives sqrt(6) / 3 of the area of a (111) plane, and the area of a large sphere."""
    nearest = A0 / np.sqrt(2)
    atoms = structures.slab_with_adsorbate("Pt", A0, (4, 6, 6))
    owner = top_layers(("Pt",), 3, nearest)(frame_from_atoms(atoms))
    plane = paired_runs.boundary_area(atoms, owner, nearest, planar=True)
    assert plane == pytest.approx(atoms.cell[0, 0] * atoms.cell[1, 1])
    assert paired_runs.boundary_area(atoms, owner, nearest) / plane == pytest.approx(np.sqrt(6) / 3)
    crystal = ase.build.bulk("Pt", a=A0, cubic=True) * 8
    radius = 12.3
    inside = np.linalg.norm(crystal.positions - crystal.cell.lengths() / 2 - 0.3, axis=1) < radius
    area = paired_runs.boundary_area(crystal, np.where(inside, 0, 1), nearest)
    assert area == pytest.approx(4 * np.pi * radius**2, rel=0.05)


def test_out_of_domain_fraction_is_a_share_of_frames():
    """A molecule moves towards the cheap expert's atoms in one of four frames."""
    atoms = structures.slab_with_adsorbate("Pt", A0, (4, 6, 4))
    owner = near_other_species(("Pt",), CUTOFF + 0.5)(frame_from_atoms(atoms))
    position = np.repeat(atoms.positions[None], 4, axis=0)
    position[3, -2:] += [2.0, 0.0, 0.0]
    run = paired_runs.Trajectory(None, position, position)
    assert paired_runs._out_of_domain_fraction(run, atoms, owner, lennard_jones().experts[1]) == 0.25


def test_sections_without_values_have_no_picture(validated):
    _, content, _ = validated
    empty = {**content["errors"], "expert_boundary": {**content["errors"]["expert_boundary"], "bins": []}}
    assert set(validation_plots.pictures("errors", empty)) == {"errors"}
    assert set(validation_plots.pictures("surfaces", {})) == set()
