"""The Markdown report of a validation: templates filled with the numbers of `validation.json`."""

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement

from moe_md.commands import validate_templates as templates
from moe_md.plots.validation import picture_name
from moe_md.settings import SECTIONS

LABELS = {
    "expensive": "expensive expert",
    "cheap": "cheap expert",
    "mixed": "mixture",
    "expensive_where_mixed": "expensive expert, the mixture's frames",
}
MAX_LISTED_BANDS = 6  # of more phonon bands the report gives the lowest and the highest
_SUMMARISED = {
    "lattice_constant": "lattice constant",
    "bulk_modulus": "bulk modulus",
    "C44": "C44",
    "elastic": "most different elastic constant",
}
SAME_LENGTH = 1e-5  # relative difference of two lengths that symmetry makes equal
_EQUAL_IF_UNIAXIAL = ((1, 1), (4, 4), (1, 2))
SMALL_CONSTANT = 0.01  # of the largest elastic constant


def markdown(content: dict) -> str:
    """The report.

    Args:
        content: what `validation.json` holds; sections may be missing.

    Returns:
        Markdown that shows the pictures of `plots.validation.pictures`, in the same folder.
    """
    sections = [_section(name, content) for name in SECTIONS if name in content]
    return "\n".join([_head(content), *sections, _foot(content)])


def _section(name: str, content: dict) -> str:
    """Text of a section, once for each of its crystals."""
    found = content[name]
    of_crystal = {"crystal": _crystal, "surfaces": _surfaces, "expert_boundary": _expert_boundary}.get(name)
    if of_crystal is not None:
        return "\n".join(of_crystal(entry, crystal, len(found), content) for crystal, entry in found.items())
    return _errors(found, content) if name == "errors" else _dynamics(found, content)


def _head(content: dict) -> str:
    about = content["about"]
    names = ", ".join(about["references"].values())
    return templates.HEAD.format(
        checkpoint=about["checkpoint"],
        experts=about["experts"],
        domain=_domain(about),
        references=templates.REFERENCES.format(names=names) if names else templates.NO_REFERENCES,
        summary=_table(["summary", ""], _summary(content)),
    )


def _domain(about: dict) -> str:
    """The cheap expert's domain, in words."""
    where = " in environments like those of its training" if about.get("domain_by_environment") else ""
    return ", ".join(about["domain"]) + where


def _region(content: dict, section: str) -> str:
    """What the expensive expert owns in the mixture of a section."""
    about, settings = content["about"], content["settings"]
    distance = about["cutoff"] + settings["region_margin"]
    return templates.REGION[about["region"][section]].format(distance=distance, **settings)


def _summary(content: dict) -> list[list[str]]:
    """Rows of the table at the top of the report."""
    rows = []
    if "errors" in content:
        for name, label in LABELS.items():
            score = content["errors"]["all"][name]["forces_meV_per_A"]
            if score is not None:
                rows.append([f"force error, {label}", f"{score['rmse']:.0f} meV/Å"])
    for crystal, entry in content.get("crystal", {}).items():
        differences = entry["differences"]
        for name, label in _SUMMARISED.items():
            if name in differences and not (name == "elastic" and "C44" in differences):
                text = f"{_number(differences[name], '+.3f')} %"
                rows.append([f"{label} of {crystal}, cheap from expensive", text])
    for crystal, entry in content.get("expert_boundary", {}).items():
        rows.append([f"largest ghost force, {crystal}", f"{entry['ghost_force']['worst']:.1f} meV/Å"])
        rows.append([f"largest stress jump, {crystal}", f"{entry['stress_jump']['worst']:.3f} GPa"])
    if "dynamics" in content:
        for name, label in (("mixed", "mixture"), ("expensive", "expensive expert")):
            text = f"{_drift(content['dynamics'][name])} meV/atom/ps"
            rows.append([f"drift at constant energy, {label}", text])
    return rows


def _errors(errors: dict, content: dict) -> str:
    about = content["about"]
    formats = {"energy_meV_per_atom": ".1f", "forces_meV_per_A": ".0f", "stress_GPa": ".2f"}
    frame_rows = [
        [
            kind,
            entry["frames"] if name == "expensive" else "",
            label,
            *(_pair(entry[name][key], form) for key, form in formats.items()),
        ]
        for kind, entry in [*errors["kinds"].items(), ("all", errors["all"])]
        for name, label in LABELS.items()
        if any(entry[name].values())
    ]
    atom_rows = [
        [name, entry["atoms"], *(_pair(entry[potential], ".0f") for potential in LABELS)]
        for group in ("environments", "species")
        for name, entry in errors[group].items()
        if any(entry[potential] for potential in LABELS)
    ]
    has_environments = any(
        entry[potential] for entry in errors["environments"].values() for potential in LABELS
    )
    columns = ("frames", "number", "potential", "energy, meV/atom", "forces, meV/Å", "stress, GPa")
    return templates.ERRORS.format(
        data=about["data"],
        split=about["split"],
        frames=about["frames"],
        domain=_domain(about),
        region=_region(content, "errors"),
        environments=templates.ENVIRONMENTS if about["references"] else templates.NO_ENVIRONMENTS,
        picture=templates.ENVIRONMENTS_PICTURE if has_environments else "",
        n_mixed=errors["expert_boundary"]["frames"],
        frame_table=_table(columns, frame_rows),
        atom_table=_table(["atoms", "number", *LABELS.values()], atom_rows),
        boundary=_boundary_errors(errors["expert_boundary"]),
    )


def _boundary_errors(boundary: dict) -> str:
    if not boundary["frames"]:
        return templates.NO_BOUNDARY
    formats = {"expensive": ".1f", "mixed": ".1f", "excess": "+.1f", "change": ".1f"}
    rows = [
        [label, boundary[key]["atoms"], *(_number(boundary[key][name], f) for name, f in formats.items())]
        for key, label in (("inside", "inside the region"), ("outside", "outside"), ("all", "all"))
    ]
    columns = ("atoms", "labelled", "error, expensive expert", "error, mixture", "excess", "change")
    return templates.BOUNDARY_ERRORS.format(n_mixed=boundary["frames"], table=_table(columns, rows))


def _crystal(crystal: dict, name: str, n_crystals: int, content: dict) -> str:
    experts, differences = crystal["experts"][:2], crystal["differences"]
    rows = [
        [label, *_two(values, form, "+.3f")]
        for label, form, values in (*_cells(experts), *_elastic_constants(experts))
    ]
    for point in experts[0]["frequencies_THz"]:
        both = [_frequencies(e["frequencies_THz"][point]) for e in experts]
        rows.append([f"phonons at {point}, THz", *both, ""])
    return templates.CRYSTAL.format(
        name=name,
        reference=content["about"]["references"][name],
        elastic="" if _is_cubic(experts) else templates.NOT_CUBIC,
        table=_table(["", "expensive expert", "cheap expert", "difference, %"], rows),
        rms=_number(differences["phonons_rms"], ".2f"),
        largest=_number(differences["phonons_max"], ".2f"),
        energy=_number(differences["energy_meV_per_atom"], "+.2f"),
        **_pictures(("equation_of_state", "phonons"), name, n_crystals),
    )


def _is_cubic(experts: Sequence[dict]) -> bool:
    return "C11_GPa" in experts[0]


def _is_uniaxial(experts: Sequence[dict]) -> bool:
    """Whether a = b, as in hexagonal, trigonal and tetragonal crystals: C22 = C11, C55 = C44, C23 = C13."""
    return all(math.isclose(*e["cell_A"][:2], rel_tol=SAME_LENGTH) for e in experts)


def _cells(experts: Sequence[dict]) -> list[tuple[str, str, list[float]]]:
    """Label, number format and both values of lengths and volume of the cell, and of the bulk modulus."""
    if _is_cubic(experts):
        lengths = [("lattice constant, Å", ".3f", [e["lattice_constant_A"] for e in experts])]
    else:
        lengths = [
            (f"{name} of the conventional cell, Å", ".3f", [e["cell_A"][k] for e in experts])
            for k, name in enumerate("abc")
            if name != "b" or not _is_uniaxial(experts)
        ]
    return [
        *lengths,
        ("volume per atom, Å³", ".3f", [e["volume_A3_per_atom"] for e in experts]),
        ("bulk modulus, GPa", ".1f", [e["bulk_modulus_GPa"] for e in experts]),
    ]


def _elastic_constants(experts: Sequence[dict]) -> list[tuple[str, str, list[float]]]:
    """Rows as of `_cells`: C11, C12 and C44 of a cubic crystal, else all that are not small."""
    if _is_cubic(experts):
        names = ("C11", "C12", "C44")
        return [(f"{name}, GPa", ".1f", [e[f"{name}_GPa"] for e in experts]) for name in names]
    by_symmetry = _EQUAL_IF_UNIAXIAL if _is_uniaxial(experts) else ()
    largest = max(abs(x) for row in experts[0]["elastic_GPa"] for x in row)
    rows = []
    for i, j in sorted(combinations_with_replacement(range(6), 2), key=lambda ij: ij[0] != ij[1]):
        values = [e["elastic_GPa"][i][j] for e in experts]
        if (i, j) not in by_symmetry and max(map(abs, values)) > SMALL_CONSTANT * largest:
            rows.append((f"C{i + 1}{j + 1}, GPa", ".1f", values))
    return rows


def _frequencies(values: Sequence[float]) -> str:
    """All frequencies of a wave vector, or the lowest and the highest of many."""
    few = len(values) <= MAX_LISTED_BANDS
    return " ".join(f"{f:.2f}" for f in values) if few else f"{values[0]:.2f} to {values[-1]:.2f}"


def _surfaces(section: dict, name: str, n_crystals: int, content: dict) -> str:
    surfaces, vacancies = (
        [section[key][expert] for expert in ("expensive", "cheap")] for key in ("surfaces", "vacancies")
    )
    rows = [
        [f"vacancy of {both[0]['site']}, eV", *_two([v["energy_eV"] for v in both], ".3f")]
        for both in zip(*vacancies)
    ]
    planes = [plane for plane in surfaces[0] if plane in surfaces[1]]
    for plane in planes:
        energies = [s[plane]["energy_J_per_m2"] for s in surfaces]
        rows.append([f"surface ({plane}), J/m²", *_two(energies, ".3f")])
    for plane in planes:
        spacings = [s[plane]["first_spacing_percent"] for s in surfaces]
        rows.append([f"first spacing of ({plane}), %", *(f"{x:+.2f}" for x in spacings), ""])
    relaxed = [
        *(v for of_expert in vacancies for v in of_expert),
        *(s[plane] for s in surfaces for plane in s),
    ]
    columns = ("", "expensive expert", "cheap expert", "difference, %")
    text = templates.SURFACES.format(name=name, table=_table(columns, rows))
    if "adsorption" in section:
        runs = [section["adsorption"][who] for who in ("expensive", "mixed")]
        relaxed += [site for run in runs for site in run["sites"].values()]
        text += templates.ADSORPTION.format(
            name=name,
            expensive_order=" < ".join(runs[0]["order"]),
            mixed_order=" < ".join(runs[1]["order"]),
            table=_table(templates.ADSORPTION_COLUMNS, [_site(site, *runs) for site in runs[0]["order"]]),
            **_pictures(("adsorption",), name, n_crystals),
        )
    failed = sum(not structure["converged"] for structure in relaxed)
    return text + (templates.NOT_CONVERGED.format(failed=failed, total=len(relaxed)) if failed else "")


def _site(name: str, expensive: dict, mixed: dict) -> list[str]:
    """Row of one site in the table of adsorption energies."""
    both = a, b = [run["sites"][name] for run in (expensive, mixed)]
    return [
        name,
        *(f"{site['energy_eV']:.3f}" for site in both),
        f"{1e3 * (b['energy_eV'] - a['energy_eV']):+.1f}",
        *(f"{site['bond_A']:.3f}, {site['metal_carbon_A']:.3f}" for site in both),
        *(f"{site['stretch_cm1']:.0f}" for site in both),
        f"{b['atoms_per_expert'][0]} of {sum(b['atoms_per_expert'])}",
        "yes" if a["stayed"] and b["stayed"] else "no",
    ]


def _expert_boundary(section: dict, name: str, n_crystals: int, content: dict) -> str:
    ghost, jump = section["ghost_force"], section["stress_jump"]
    middle, largest_strain = len(section["strain"]) // 2, 100 * section["strain"][-1]
    ghost_rows = [
        [
            boundary if boundary == "sphere" else f"plane ({boundary})",
            *(f"{forces[key][middle]:.2f}" for key in ("max", "rms")),
            f"{max(forces['max']):.2f}",
        ]
        for boundary, forces in ghost.items()
        if isinstance(forces, dict)
    ]
    unstrained = ("unstrained", *(jump["isotropic"][key][middle] for key in ("stress", "pressure")))
    strained = zip(*(jump["strained"][key] for key in ("name", "stress", "pressure")))
    jump_rows = [
        [name, f"{1e3 * _largest(stress):+.1f}", f"{1e3 * pressure:+.1f}"]
        for name, stress, pressure in (unstrained, *strained)
    ]
    columns = (
        "boundary",
        "largest, unstrained",
        "root mean square near the boundary",
        f"largest within {largest_strain:g} % strain",
    )
    return templates.EXPERT_BOUNDARY.format(
        name=name,
        ghost_table=_table(columns, ghost_rows),
        jump_table=_table(["crystal", "largest component", "pressure"], jump_rows),
        strain=largest_strain,
        worst=jump["worst"],
        worst_pressure=jump["worst_pressure"],
        **_pictures(("expert_boundary",), name, n_crystals),
    )


def _dynamics(section: dict, content: dict) -> str:
    settings, mixed, fraction = content["settings"], section["mixed"], section["out_of_domain_fraction"]
    runs = (("expensive expert", section["expensive"]), ("mixture", mixed))
    drifts = [
        [label, _drift(run), f"{run['temperature_K']:.0f}", f"{1e3 * run['seconds_per_step']:.0f}"]
        for label, run in runs
    ]
    curves = [_curve(key.rsplit("_", 1)[0], curve) for key, curve in section["curves"].items()]
    columns = ("curve", "largest deviation", "at", "root mean square", "largest by chance")
    return templates.DYNAMICS.format(
        **{**settings, "structure": section["structure"], "region": _region(content, "dynamics")},
        n_atoms=section["n_atoms"],
        n_expensive=section["n_expensive"],
        time_ps=section["time_ps"],
        drift_table=_table(["run", "drift, meV/atom/ps", "temperature, K", "ms per step"], drifts),
        flux=mixed["flux_eV_per_ps_per_A2"],
        flux_stderr=mixed["flux_stderr"],
        area=section["boundary_area_A2"],
        area_source=templates.AREA_SOURCE[content["about"]["region"]["dynamics"]],
        out_of_domain=templates.OUT_OF_DOMAIN.format(fraction=fraction) if fraction else "",
        curve_table=_table(columns, curves),
    )


def _curve(quantity: str, curve: dict) -> list[str]:
    """Row of one curve in the table of deviations."""
    deviation, unit = curve["deviation"], curve["x_label"].split("/")[1].strip()
    return [
        f"{quantity.replace('_', ' ')}, {curve['label']}",
        "∞" if deviation["largest"] is None else f"{deviation['largest']:.1f}",
        f"{deviation['at']:.2f} {unit}",
        _number(deviation["rms"], ".2f"),
        f"{deviation['by_chance']:.1f}",
    ]


def _foot(content: dict) -> str:
    about = content["about"]
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in about["seconds"].items())
    return templates.FOOT.format(**{**about, "seconds": seconds, "digest": about["data_digest"][:16]})


def _table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = [
        "| " + " | ".join(header) + " |",
        "| --- |" + " ---: |" * (len(header) - 1),
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _two(values: Sequence[float], form: str, percent: str = "+.2f") -> list[str]:
    """Two numbers, and the difference of the second from the first in percent."""
    difference = 100 * (values[1] / values[0] - 1) if values[0] else None
    return [*(format(x, form) for x in values), _number(difference, percent)]


def _pictures(names: Sequence[str], crystal: str, n_crystals: int) -> dict[str, str]:
    """Files of the pictures of a crystal, by name."""
    return {name: f"{picture_name(name, crystal, n_crystals)}.png" for name in names}


def _pair(score: dict | None, form: str) -> str:
    """Root mean square and mean absolute error."""
    return "–" if score is None else f"{score['rmse']:{form}} ({score['mae']:{form}})"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _drift(run: dict) -> str:
    return f"{run['drift_meV_per_atom_per_ps']:+.5f} ± {run['drift_stderr']:.5f}"


def _largest(stress: Sequence[Sequence[float]]) -> float:
    """The component of largest absolute value."""
    return max((x for row in stress for x in row), key=abs)
