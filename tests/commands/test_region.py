"""`moe-md region`: it compares regions, recommends one that `moe-md run` takes, and refuses wrong input."""

import contextlib
import io
import json
import shlex

import ase.io
import jax
import numpy as np
import pytest
from ase.build import bulk, fcc111
from command_line import as_options, failure, moe_md

from moe_md import checkpoint, experts
from moe_md.commands import main as cli
from moe_md.commands import region, region_report
from moe_md.data.references import reference_from_atoms
from moe_md.plots.region_scan import error_and_speed
from moe_md.settings import EnvironmentSettings, RegionScanSettings
from moe_md.training.domain_fit import with_domain
from moe_md.training.inputs import environments_of

SHORT = as_options(equilibration_steps=2, frames=2, frames_every=2, timing_rounds=1, temperature_K=200)


@pytest.fixture(scope="module")
def options(folder):
    """Two Lennard-Jones experts, and a slab with an atom that the cheap one does not know."""
    atoms = ase.io.read(folder / "slab.extxyz")
    atoms.symbols[int(np.argmax(atoms.positions[:, 2]))] = "C"
    atoms.rattle(0.05, seed=1)
    atoms.write(folder / "carbon.extxyz")
    return ("region", folder / "carbon.extxyz", "--checkpoint", folder / "model.msgpack", *SHORT)


@pytest.fixture(scope="module")
def compared(options, folder):
    """Folder and printed text of a comparison without a way of choosing atoms."""
    out, text = folder / "compared", io.StringIO()
    with contextlib.redirect_stdout(text):
        assert cli.main([str(a) for a in (*options, "--tolerance", 1000, "--out", out)]) == 0
    return out, text.getvalue()


@pytest.fixture(scope="module")
def content(compared):
    return json.loads((compared[0] / "region.json").read_text())


def printed(capsys, *arguments) -> dict:
    code, out, err = moe_md(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def plan_of(folder, structure="carbon.extxyz", **more):
    common = dict(checkpoint=str(folder / "model.msgpack"), structure=str(folder / structure))
    return region._plan(RegionScanSettings(**common, **more), print)


def test_radii_around_a_foreign_species(compared, content):
    """Without a way of choosing atoms these are the ones; radii begin at the cheap expert's cutoff."""
    folder, out = compared
    assert "--region-around C: species outside the cheap expert's domain" in out
    assert "radii end at half the box, 4.80 Å" in out
    rows = content["regions"]
    assert [row["size"] for row in rows] == [4.0, 4.2, 4.4, 4.6, 4.8]
    assert all(row["out_of_domain"] == 0 for row in rows)
    shares = [row["expensive_share"] for row in rows]
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] <= 1
    assert rows[0]["error_all_meV_per_A"] > rows[-1]["error_all_meV_per_A"] > 0
    for row in rows:
        cost = row["expensive_share"] + row["cheap_share"] / content["cost_ratio"]
        assert row["speedup"] == pytest.approx(1 / cost)
    assert 1 < content["n_selected"] < 64 and content["selected"].endswith("or within 4 Å of them")
    assert (folder / "region.png").stat().st_size > 5000
    assert len(ase.io.read(folder / "frames" / "trajectory.extxyz", ":")) == 4


def test_the_recommended_line_is_one_of_run(compared, content, capsys, tmp_path):
    line = content["recommended"]["command"]
    assert f"  {line}\n" in compared[1] and "--region-around C --region-core" in line
    assert line.endswith("--region-blend 2") and content["tolerance_source"] == "as given"
    code, _, err = moe_md(capsys, *shlex.split(line)[1:], "--steps", 0, "--out", tmp_path / "run")
    assert code == 0, err
    row = next(r for r in content["regions"] if r["size"] == content["recommended"]["size"])
    again = json.loads((tmp_path / "run" / "run.json").read_text())
    assert again["f"] == pytest.approx(row["expensive_share"], abs=0.05)


@pytest.mark.thorough
def test_the_settings_file_repeats_the_command(compared, content, capsys, tmp_path):
    again = printed(capsys, "region", "--settings", compared[0] / "settings.toml", "--out", tmp_path)
    assert again["settings"] == content["settings"]
    for key in ("size", "expensive_share", "error_all_meV_per_A"):
        expected = [row[key] for row in content["regions"]]
        assert [row[key] for row in again["regions"]] == pytest.approx(expected)


def test_without_a_good_region_the_remedy_is_named(content):
    (line,) = region_report.advice({**content, "recommended": None})
    assert line.startswith("no region keeps the error on the selected atoms below 1e+03 meV/Å (as given)")
    assert "the largest, a core of 4.8 Å, has" in line and "--repeat" in line and "--tolerance" in line


def test_atoms_outside_the_domain_are_named(content):
    first, *others = content["regions"]
    rows = [{**first, "out_of_domain": 2.5}, *others]
    chosen = {"size": first["size"], "command": "moe-md run"}
    lines = region_report.advice({**content, "regions": rows, "recommended": chosen})
    assert lines[-1].startswith("There the cheap expert has 2.5 atoms outside its domain")
    assert lines[-1].endswith("take a core of 4.2 Å, which has none.")
    rows = [{**row, "out_of_domain": 1.0} for row in content["regions"]]
    lines = region_report.advice({**content, "regions": rows, "recommended": chosen})
    assert lines[-1].endswith("where it is untrained.")


def test_layers(folder, options, capsys, tmp_path):
    """The clean slab has four layers."""
    clean = (options[0], folder / "slab.extxyz", *options[2:], "--region-layers", 1, "--relax-steps", 2)
    content = printed(capsys, *clean, "--tolerance", 1000, "--out", tmp_path)
    assert [row["size"] for row in content["regions"]] == [1, 2, 3]
    assert [row["expensive_share"] for row in content["regions"]] == [0.25, 0.5, 0.75]
    assert content["n_selected"] == 16
    assert "--region-layers" in content["recommended"]["command"]
    assert "--region-core" not in content["recommended"]["command"]
    assert region_report.table(content)[0].lstrip().startswith("layers")
    assert plan_of(folder, "slab.extxyz", region_layers=1, values="3,2").sizes == (2, 3)


def test_layers_of_a_thick_slab_are_at_most_eight(folder):
    fcc111("Pt", (4, 4, 10), a=3.92, vacuum=6.0, orthogonal=True).write(folder / "thick.extxyz")
    assert plan_of(folder, "thick.extxyz", region_layers=1).sizes == (1, 2, 3, 4, 5, 6, 7, 8)


def test_atoms_with_few_neighbors(folder, options, capsys, tmp_path):
    """Those of both surfaces have nine; with all atoms inside the error is zero, and so is the gain."""
    given = ("--region-coordination", "9.5,11.5,3.2,3.8", "--values", "0,20", "--region-blend", 1)
    clean = (options[0], folder / "slab.extxyz", *options[2:], *given)
    content = printed(capsys, *clean, "--tolerance", 1e-3, "--out", tmp_path)
    assert content["n_selected"] == 32 and content["selected"] == "that are followed"
    first, last = content["regions"]
    assert 0.4 < first["expensive_share"] < 1 and first["error_all_meV_per_A"] > 0
    assert last["error_largest_meV_per_A"] < 1e-6 and last["expensive_share"] == 1
    assert last["speedup"] == 1.0 and content["recommended"]["size"] == 20
    assert "no faster than the expensive expert alone" in " ".join(region_report.advice(content))


@pytest.mark.thorough
def test_unfamiliar_atoms_around_a_vacancy(capsys, tmp_path):
    built = [experts.density_moments(("Si",), 4.5, num_radial=(4, 2), hidden=(n,)) for n in (6, 4)]
    crystal = bulk("Si", a=5.47)
    drawn = environments_of([reference_from_atoms(crystal)], built, EnvironmentSettings(domain_rows=300))
    built[1] = with_domain(built[1], drawn, 0)
    params = tuple(e.init(jax.random.key(n)) for n, e in enumerate(built))
    checkpoint.save(tmp_path / "si.msgpack", checkpoint.Checkpoint(tuple(built), params, {}, {}))
    atoms = bulk("Si", a=5.47, cubic=True) * 2
    del atoms[0]
    atoms.write(tmp_path / "vacancy.extxyz")
    system = ("--checkpoint", tmp_path / "si.msgpack", "--region-unfamiliar", "0.6,0.9")
    given = (*SHORT, "--values", "0,2,20", "--region-blend", 1, "--out", tmp_path / "out")
    content = printed(capsys, "region", tmp_path / "vacancy.extxyz", *system, *given)
    errors = [row["error_all_meV_per_A"] for row in content["regions"]]
    assert 4 <= content["n_selected"] < 63
    assert errors[0] > errors[-1] and errors[-1] < 1e-6
    assert "--region-unfamiliar 0.6,0.9" in content["recommended"]["command"]


def test_radii_begin_at_zero_where_the_species_is_known(folder, options):
    plan = plan_of(folder, region_indices="0,20-21")
    assert plan.sizes[0] == 0 and plan.selected == "that are followed"
    assert "--region-indices 0,20-21 --region-core 3.5 --region-blend 2" in region._run_command(plan, 3.5)


def test_the_tolerance_is_a_third_of_the_validation_error(folder):
    settings = RegionScanSettings(structure="a.xyz")
    model = checkpoint.load(folder / "model.msgpack")
    history = [{"expensive": {"forces_meV_per_A": 90.0}}, {"expensive": {"forces_meV_per_A": 60.0}}]
    value, source = region._tolerance(settings, model._replace(record={"history": history}))
    assert value == pytest.approx(20.0)
    assert source == "a third of the expensive expert's validation error, 60 meV/Å"
    for record in ({}, {"history": []}, {"history": [{"expensive": {"forces_meV_per_A": None}}]}):
        assert region._tolerance(settings, model._replace(record=record))[0] == 10.0


def test_the_figure_shows_errors_the_tolerance_and_zeros():
    row = dict(expensive_share=0.2, cheap_share=0.9, speedup=3.0, out_of_domain=0.0)
    errors = {f"error_{name}_meV_per_A": 5.0 for name in ("selected", "all", "largest")}
    rows = [{"size": 4.0, **row, **errors}, {"size": 6.0, **row, **dict.fromkeys(errors, 0.0)}]
    content = {"regions": rows, "tolerance_meV_per_A": 10.0, "scanned": "region_core"}
    above, below = error_and_speed({**content, "recommended": {"size": 6.0}}).axes
    assert above.get_yscale() == "log"
    for line in above.lines[:3]:
        assert line.get_xdata().tolist() == [4.0, 6.0] and line.get_ydata()[1] == pytest.approx(0.1)
    assert below.lines[0].get_ydata().tolist() == [3.0, 3.0] and "Å" in below.get_xlabel()
    assert any(list(line.get_xdata()) == [6.0, 6.0] for line in below.lines)
    without = error_and_speed({**content, "recommended": None}).axes[1]
    assert len(without.lines) == len(below.lines) - 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--region-around", "C", "--values", "a,5"), "values must be core radii in Å"),
        (("--region-around", "C", "--values=-1,5"), "values must be core radii in Å"),
        (("--region-layers", 1, "--values", "1.5"), "values must be numbers of layers"),
        (("--region-layers", 1, "--values", "2,9"), "n_layers must be at most the 4 layers"),
        (("--region-around", "C", "--region-core", 5), "region_core must not be given"),
        (("--region-tags", "1"), "region_tags must not be given, as planes and tags have no size"),
        (("--region-lower", 9), "region_lower must not be given"),
        (("--region-around", "C", "--region-layers", 1), "a region must be chosen in one way"),
        (("--region-around", "O"), "region_around must name species of the structure"),
        (("--region-around", "O", "--region-missing", "cheap"), "region_around must choose atoms, got 'O'"),
        (("--region-around", "C", "--equilibration-steps", 3), "equilibration_steps must be a multiple"),
        (("--region-around", "C", "--tolerance", 0), "tolerance must be positive"),
        (("--region-unfamiliar", "0.6,0.9"), "got one with a domain of species alone"),
        (("--region-coordination", "1,2,3.2,3.8"), "which chooses none of the structure"),
    ],
)
def test_wrong_input_is_one_line(options, capsys, tmp_path, more, message):
    assert message in failure(capsys, *options, *more, "--out", tmp_path)


def test_a_way_must_be_given_where_all_species_are_known(folder, options, capsys, tmp_path):
    given = (*options[2:], "--out", tmp_path)
    err = failure(capsys, "region", folder / "slab.extxyz", *given)
    ways = "region_around, region_indices, region_coordination, region_unfamiliar, region_layers"
    assert f"{ways} must choose atoms" in err
    assert "structure must be given" in failure(capsys, "region", *given)


def test_experts_that_pass_messages_are_refused(options, capsys, tmp_path, monkeypatch):
    original = checkpoint.load

    def load(path):
        model = original(path)
        return model._replace(experts=(model.experts[0]._replace(num_hops=2), model.experts[1]))

    monkeypatch.setattr(checkpoint, "load", load)
    err = failure(capsys, *options, "--region-around", "C", "--out", tmp_path)
    assert "experts of the checkpoint must not pass messages" in err
