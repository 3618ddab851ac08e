"""Validation: its settings, all sections for Lennard-Jones checkpoints, and the paired runs."""

import json
from functools import partial

import ase.io
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, hcp0001
from ase.constraints import FixAtoms

from moe_md import checkpoint, experts
from moe_md.analysis import adsorption, paired_runs
from moe_md.analysis.environments import near_other_species, top_layers
from moe_md.commands import main as cli
from moe_md.commands import validate, validate_plan, validate_report
from moe_md.data import structures
from moe_md.data.dataset import Dataset
from moe_md.data.reading import frame_from_atoms, frame_to_atoms
from moe_md.data.references import reference_from_atoms, reference_to_dict
from moe_md.data.slabs import rectangular_slab
from moe_md.plots import validation as validation_plots
from moe_md.settings import ValidateSettings

SPECIES, CUTOFF, SIGMA = ("Ti", "C", "O"), 4.2, 2.6
A0 = 2.9  # Å, nearest neighbours in hcp, close to the minimum
HCP = bulk("Ti", "hcp", a=A0, c=A0 * np.sqrt(8 / 3))
FCC = bulk("Ti", "fcc", a=A0 * np.sqrt(2))


# Two experts whose well depths differ by 1 / 60; shared, so that each compiles once.
EXPERTS = tuple(
    experts.lennard_jones(SPECIES, CUTOFF, epsilon=epsilon, sigma=SIGMA, allowed_species=domain)
    for epsilon, domain in ((0.6, SPECIES), (0.59, ("Ti",)))
)


def lennard_jones(*references: Atoms):
    """A checkpoint of both experts with reference crystals."""
    stored = [reference_to_dict(reference_from_atoms(atoms)) for atoms in references]
    return checkpoint.Checkpoint(EXPERTS, tuple(e.init(None) for e in EXPERTS), {}, {"references": stored})


def frames():
    rng = np.random.default_rng(0)
    for kind in ("slab-co", "slab-clean"):
        atoms = hcp0001("Ti", (2, 2, 4), a=A0, c=A0 * np.sqrt(8 / 3), vacuum=6.0)
        if kind == "slab-co":
            atoms += Atoms("CO", [atoms.positions[-1] + [0, 0, h] for h in (2.5, 4.5)])
        atoms.rattle(0.05)
        label = {"energy": -50.0, "forces": rng.normal(size=(len(atoms), 3))}
        yield frame_from_atoms(atoms)._replace(**label, kind=kind, group=kind)


DATASET = Dataset(tuple(frames()), SPECIES)


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validate")
    lines = []
    settings = validate.smoke_settings(
        ValidateSettings(region="top_layers", region_layers=2, temperature_K=100.0)
    )
    names = {"checkpoint": "two potentials", "data": "some frames", "split": "all"}
    content = validate.run(lennard_jones(HCP), DATASET, settings, folder, lines.append, names=names)
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
        "in its domain only** (Ti, as in training)",
        "The reference crystals are Ti, P6_3/mmc (194)",
        "## The perfect crystal of Ti",
        "C13, GPa",
        "vacancy of Ti, eV",
        "surface (001), J/m²",
        "plane (001)",
        "64 atoms: Ti(001)",
    ):
        assert word in report, word
    shown = {line.split("(")[-1].rstrip(")") for line in report.splitlines() if line.startswith("![")}
    assert shown == {p.name for p in folder.glob("*.png")} and len(shown) == 6
    assert all((folder / name).stat().st_size > 5000 for name in shown)
    assert "None" not in report and "nan" not in report
    assert any("dynamics: done" in line for line in lines)
    assert any("Ti(001); region top_layers" in line for line in lines)


def test_sections_hold_the_values_of_lennard_jones(validated):
    _, content, _ = validated
    # Two Lennard-Jones experts with equal sigma: well depths differ by 1 / 60, and so do moduli.
    first, second = content["crystal"]["Ti"]["experts"]
    assert second["bulk_modulus_GPa"] / first["bulk_modulus_GPa"] == pytest.approx(0.59 / 0.6)
    elastic = np.array(first["elastic_GPa"])
    assert np.array(second["elastic_GPa"]) == pytest.approx(0.59 / 0.6 * elastic, rel=1e-4, abs=1e-3)
    assert elastic[0, 0] - elastic[0, 1] == pytest.approx(2 * elastic[5, 5], rel=1e-4)  # hexagonal
    boundary = content["expert_boundary"]["Ti"]
    pressure = boundary["stress_jump"]["isotropic"]["pressure"]
    assert pressure[1] == pytest.approx(0.0, abs=1e-4) and pressure[0] > 0 > pressure[-1]
    assert boundary["strain"] == [-0.02, 0.0, 0.02]
    (expensive,), (cheap,) = (content["surfaces"]["Ti"]["vacancies"][k] for k in ("expensive", "cheap"))
    # The tolerance allows for relaxations of a few steps.
    assert cheap["energy_eV"] / expensive["energy_eV"] == pytest.approx(0.59 / 0.6, rel=1e-2)
    assert "adsorption" not in content["surfaces"]["Ti"]


def test_errors_and_dynamics_share_the_rule_of_layers(validated):
    _, content, _ = validated
    assert content["about"]["region"] == {"errors": "top_layers", "dynamics": "top_layers"}
    errors = content["errors"]
    assert errors["expert_boundary"]["frames"] == 2
    assert errors["expert_boundary"]["inside"]["atoms"] == 18
    assert errors["expert_boundary"]["outside"]["atoms"] == 16
    # Two slabs of four layers of four atoms: half of the atoms are at a surface.
    atoms = {name: entry["atoms"] for name, entry in errors["environments"].items()}
    assert atoms == {"bulk": 0, "subsurface": 16, "surface": 16, "adsorbate": 2}
    dynamics = content["dynamics"]
    assert dynamics["n_atoms"] == 64 and dynamics["n_expensive"] == 32
    assert dynamics["out_of_domain_fraction"] == 0.0
    slab, _ = rectangular_slab(
        validate_plan.relax_crystal(*lennard_jones().expensive, HCP).atoms, width=10.0, thickness=7.0
    )
    assert dynamics["boundary_area_A2"] == pytest.approx(slab.cell[0, 0] * slab.cell[1, 1])
    mixed = dynamics["mixed"]
    assert abs(mixed["drift_meV_per_atom_per_ps"]) < 5 * mixed["drift_stderr"] + 0.05
    to_flux = 1e-3 * dynamics["n_atoms"] / dynamics["boundary_area_A2"]
    assert mixed["flux_eV_per_ps_per_A2"] == pytest.approx(to_flux * mixed["drift_meV_per_atom_per_ps"])
    assert len(dynamics["curves"]) == 6
    for curve in dynamics["curves"].values():
        lengths = {len(curve[key]) for key in ("x", "expensive", "expensive_error", "mixed", "mixed_error")}
        assert len(lengths) == 1 and lengths.pop() > 3


def test_several_crystals_have_a_section_and_pictures_each(validated):
    _, content, _ = validated
    (entry,) = content["crystal"].values()
    (boundary,) = content["expert_boundary"].values()
    several = {
        **content,
        "about": {**content["about"], "references": {"Ti-194": "hexagonal titanium", "Ti-225": "cubic"}},
        "crystal": {"Ti-194": entry, "Ti-225": entry},
        "surfaces": {"Ti-194": content["surfaces"]["Ti"], "Ti-225": content["surfaces"]["Ti"]},
        "expert_boundary": {"Ti-194": boundary, "Ti-225": boundary},
    }
    report = validate_report.markdown(several)
    drawn = validation_plots.pictures("crystal", several["crystal"])
    assert set(drawn) == {f"{x}-{c}" for x in ("equation_of_state", "phonons") for c in several["crystal"]}
    for name in (*drawn, "expert_boundary-Ti-225"):
        assert f"({name}.png)" in report
    assert report.count("## The perfect crystal of") == 2


def test_adsorption_of_co_on_an_fcc_element(monkeypatch):
    small = partial(adsorption.adsorption, size=(2, 2, 2), sites=("top", "fcc"))
    monkeypatch.setattr(validate.adsorption, "adsorption", small)
    settings = validate.smoke_settings(ValidateSettings(sections="surfaces", adsorbate="CO"))
    with jax.enable_x64(True):
        plan = validate.make_plan(lennard_jones(FCC), DATASET, settings, lambda text: None)
        section = validate._adsorption(plan, plan.crystals["Ti"])
    owners = {name: found["sites"]["top"]["atoms_per_expert"] for name, found in section.items()}
    # Within 4.7 Å of C: the 4 atoms of the first layer, and the 3 of the second that are nearest.
    assert owners == {"expensive": [10], "mixed": [9, 1]}
    no_other = {"expensive": [], "cheap": []}, {"expensive": {}, "cheap": {}}
    content = {"vacancies": no_other[0], "surfaces": no_other[1], "adsorption": section}
    text = validate_report._surfaces(content, "Ti", 2, {})
    assert "CO on Ti(111)" in text and "![Adsorption energies](adsorption-Ti.png)" in text
    assert set(validation_plots.pictures("surfaces", {"Ti": content})) == {"adsorption"}


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
        ({"width": 0.0}, "width must be positive, got 0.0"),
        (
            {"structure": "a.xyz", "adsorbate": "CO"},
            "adsorbate must be empty where structure is given",
        ),
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
    ("references", "changes", "message"),
    [
        ([], {}, "references must hold a crystal .* for dynamics, got none in the checkpoint: give its file"),
        (
            [FCC],
            {"adsorbate": "unobtainium"},
            "adsorbate must be a molecule .* got 'unobtainium'",
        ),
        ([FCC], {"adsorbate": "NO"}, "adsorbate must be of the species .* got 'NO'"),
        (
            [HCP],
            {"adsorbate": "CO"},
            "adsorbate must be empty .* no fcc element, got 'CO' on Ti",
        ),
        ([HCP], {"region": "near"}, "region must leave atoms to both .* of the slab on the cheap one"),
        ([HCP], {"region_layers": 6}, "of the slab on the expensive one"),
        (
            [HCP],
            {"width": 3.0},
            "width must make the box wider than .* 2 x 4.2 Å, got 3.0 for",
        ),
        (
            [HCP],
            {"structure": "oblique.xyz"},
            "structure must have a rectangular cell, .*oblique",
        ),
        ([HCP], {"structure": "narrow.xyz"}, "structure must make the box wider than twice the cutoff"),
        ([HCP], {"structure": "fixed.xyz"}, "structure must have no constraints, got 1 in fixed.xyz"),
    ],
)
def test_checkpoint_and_structure_are_checked_before_the_first_section(
    references, changes, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ase.io.write("oblique.xyz", HCP * (4, 4, 4), format="extxyz")
    narrow = hcp0001("Ti", (2, 2, 4), a=A0, orthogonal=True, vacuum=5.0)
    narrow.info = {}
    ase.io.write("narrow.xyz", narrow, format="extxyz")
    narrow.set_constraint(FixAtoms([0]))
    ase.io.write("fixed.xyz", narrow, format="extxyz", columns=["symbols", "positions", "move_mask"])
    settings = ValidateSettings(sections="errors,dynamics", thickness=11.0, **changes)
    with pytest.raises(ValueError, match=message):
        validate.run(lennard_jones(*references), DATASET, settings, tmp_path / "out", lambda text: None)
    assert not (tmp_path / "out").exists()


def test_references_are_crystals_in_the_domain_of_both_experts(tmp_path):
    """Polymorphs are told apart; oxides and disordered structures are left out, and it is said why."""
    glass = FCC * (2, 2, 2)
    glass.rattle(0.3, seed=0)
    files = [tmp_path / f"{name}.cif" for name in ("hcp", "fcc", "oxide", "glass")]
    for path, atoms in zip(files, (HCP, FCC, bulk("TiO", "rocksalt", a=4.2), glass)):
        ase.io.write(path, atoms)
    settings = ValidateSettings(references=",".join(map(str, files)), sections="expert_boundary")
    lines = []
    with jax.enable_x64(True), pytest.warns(UserWarning, match="TiO, .* is left out for its O"):
        plan = validate.make_plan(lennard_jones(), DATASET, settings, lines.append)
    assert list(plan.crystals) == ["Ti-194", "Ti-225"]
    assert any("left out, as it is no crystal" in line for line in lines)
    assert plan.crystals["Ti-225"].is_fcc_element and not plan.crystals["Ti-194"].is_fcc_element
    assert plan.dynamics is None


def test_the_structure_of_dynamics_from_a_file(tmp_path):
    """A slab that is not periodic along its normal; by default the atoms near its molecule are chosen."""
    slab = hcp0001("Ti", (5, 6, 4), a=A0, orthogonal=True, vacuum=5.0)
    slab += Atoms("CO", slab.positions[-1] + [[0, 0, 1.9], [0, 0, 3.0]])
    slab.info = {}
    ase.io.write(tmp_path / "slab.xyz", slab, format="extxyz")
    settings = ValidateSettings(sections="dynamics", structure=str(tmp_path / "slab.xyz"))
    lines = []
    with jax.enable_x64(True):
        dynamics = validate.make_plan(lennard_jones(HCP), DATASET, settings, lines.append).dynamics
    assert dynamics.region == "near" and dynamics.atoms.pbc.all()
    assert dynamics.atoms.cell.lengths()[:2] == pytest.approx(slab.cell.lengths()[:2])
    assert "has species outside the cheap expert's domain" in lines[-1]


@pytest.mark.parametrize(
    ("crystal", "plane", "contacts"),
    [
        (bulk("Si", a=5.43), "111", {2.351: 4}),
        (bulk("Mo", a=3.15), "110", {2.728: 8}),
        (bulk("MgO", "rocksalt", a=4.21), "111", {2.105: 6}),
        (HCP, "001", {A0: 12}),
    ],
)
def test_rectangular_slabs_are_cut_from_the_crystal(crystal, plane, contacts):
    """In the middle, nearest neighbours are those of the crystal, also across the edges of the box."""
    slab, found = rectangular_slab(crystal, width=8.0, thickness=12.0, vacuum=10.0)
    assert found == plane and slab.cell.lengths()[:2].min() >= 8.0
    assert np.array(slab.cell) == pytest.approx(np.diag(slab.cell.lengths()))
    height = slab.positions[:, 2]
    assert slab.cell[2, 2] - np.ptp(height) == pytest.approx(10.0)
    middle = np.abs(height - height.mean()) < 2.0
    ((nearest, number),) = contacts.items()
    distances = slab.get_all_distances(mic=True)[middle]
    assert np.all(np.sum((distances > 0.1) & (distances < 1.01 * nearest), axis=1) == number)
    assert distances[distances > 0.1].min() == pytest.approx(nearest, abs=1e-3)


def test_a_triclinic_crystal_has_no_rectangular_slab():
    triclinic = Atoms("Si", cell=[[3.1, 0, 0], [0.4, 3.7, 0], [0.7, 0.9, 4.3]], pbc=True)
    with pytest.raises(ValueError, match="crystal must have a lattice plane with vectors at a right angle"):
        rectangular_slab(triclinic, width=8.0, thickness=12.0)


def test_slab_with_adsorbate():
    atoms = structures.slab_with_adsorbate("Pt", 3.92, (4, 6, 6), vacuum=10.0)
    carbon, oxygen = (atoms.positions[np.array(atoms.symbols) == s][0] for s in "CO")
    assert oxygen[2] > carbon[2] and np.allclose(oxygen[:2], carbon[:2])
    top = atoms.positions[:-2]
    assert np.abs(top + np.array([0, 0, structures.HEIGHT]) - carbon).sum(axis=1).min() < 1e-9
    height = atoms.positions[:, 2]
    assert height.min() == pytest.approx(5.0) and atoms.cell[2, 2] - height.max() == pytest.approx(5.0)
    bare = structures.slab_with_adsorbate("Pt", 3.92, (2, 2, 3), adsorbate="")
    assert (
        set(bare.symbols) == {"Pt"}
        and len(structures.slab_with_adsorbate("Pt", 3.92, (2, 2, 3), adsorbate="O")) == 13
    )
    with pytest.raises(ValueError, match="size must be positive with an even number of rows"):
        structures.slab_with_adsorbate("Pt", 3.92, (2, 3, 3))


def test_boundary_area_of_a_plane_and_a_sphere():
    """Counting bonds gives sqrt(6) / 3 of the area of an fcc (111) plane, and the area of a large sphere."""
    a = FCC.cell.lengths()[0] * np.sqrt(2)
    atoms = structures.slab_with_adsorbate("Ti", a, (4, 6, 6))
    owner = top_layers(("Ti",), 3, A0)(frame_from_atoms(atoms))
    plane = paired_runs.boundary_area(atoms, owner, FCC, planar=True)
    assert plane == pytest.approx(atoms.cell[0, 0] * atoms.cell[1, 1])
    assert paired_runs.boundary_area(atoms, owner, FCC) / plane == pytest.approx(np.sqrt(6) / 3)
    silicon = bulk("Si"), bulk("Si", cubic=True) * 6
    for primitive, cell in ((FCC, bulk("Ti", "fcc", a=a, cubic=True) * 7), silicon):
        radius, areas = 12.3, []
        for offset in np.random.default_rng(0).uniform(-1, 1, (8, 3)):
            inside = np.linalg.norm(cell.positions - cell.cell.lengths() / 2 - offset, axis=1) < radius
            areas.append(paired_runs.boundary_area(cell, np.where(inside, 0, 1), primitive))
        assert np.mean(areas) == pytest.approx(4 * np.pi * radius**2, rel=0.03)


def test_out_of_domain_fraction_is_a_share_of_frames():
    """A molecule moves towards the cheap expert's atoms in one of four frames."""
    atoms = structures.slab_with_adsorbate("Ti", A0 * np.sqrt(2), (4, 6, 4))
    owner = near_other_species(("Ti",), CUTOFF + 0.5)(frame_from_atoms(atoms))
    position = np.repeat(atoms.positions[None], 4, axis=0)
    position[3, -2:] += [2.0, 0.0, 0.0]
    run = paired_runs.Trajectory(None, position, position)
    assert paired_runs._out_of_domain_fraction(run, atoms, owner, lennard_jones().experts[1]) == 0.25


def test_sections_without_values_have_no_picture(validated):
    _, content, _ = validated
    empty = {**content["errors"], "expert_boundary": {**content["errors"]["expert_boundary"], "bins": []}}
    assert set(validation_plots.pictures("errors", empty)) == {"errors"}
    assert set(validation_plots.pictures("surfaces", {})) == set()
