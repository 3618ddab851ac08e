"""The Markdown report of a validation: templates filled with the numbers of `validation.json`."""

from collections.abc import Sequence

from moe_md.commands import validate_templates as templates

LABELS = {
    "expensive": "expensive expert",
    "cheap": "cheap expert",
    "mixed": "mixture",
    "expensive_where_mixed": "expensive expert, the mixture's frames",
}
# Vandermause et al., Nat. Commun. 13, 5183 (2022): their PBE, and experiment.
LITERATURE = {
    "Pt": {
        "lattice_constant_A": (3.968, 3.923),
        "bulk_modulus_GPa": (248.0, 280.1),
        "C11_GPa": (314.5, 348.7),
        "C12_GPa": (214.8, 245.8),
        "C44_GPa": (64.9, 73.4),
    }
}
# Key of an expert's value, label, number format, key of the difference.
PROPERTIES = (
    ("lattice_constant_A", "lattice constant, Å", ".3f", "lattice_constant"),
    ("bulk_modulus_GPa", "bulk modulus, GPa", ".1f", "bulk_modulus"),
    ("C11_GPa", "C11, GPa", ".1f", "C11"),
    ("C12_GPa", "C12, GPa", ".1f", "C12"),
    ("C44_GPa", "C44, GPa", ".1f", "C44"),
)


def markdown(content: dict) -> str:
    """The report.

    Args:
        content: what `validation.json` holds; sections may be missing.

    Returns:
        Markdown that shows the pictures of `plots.validation.pictures`, in the same folder.
    """
    fill = {
        "errors": _errors,
        "crystal": _crystal,
        "surfaces": _surfaces,
        "expert_boundary": _expert_boundary,
        "dynamics": _dynamics,
    }
    sections = [fn(content[name], content) for name, fn in fill.items() if name in content]
    return "\n".join([_head(content), *sections, _foot(content)])


def _head(content: dict) -> str:
    about, settings = content["about"], content["settings"]
    distance = about["cutoff"] + settings["region_margin"]
    return templates.HEAD.format(
        checkpoint=about["checkpoint"],
        experts=about["experts"],
        domain=", ".join(about["domain"]),
        region=templates.REGION[settings["region"]].format(distance=distance, **settings),
        summary=_table(["summary", ""], _summary(content)),
    )


def _summary(content: dict) -> list[list[str]]:
    """Rows of the table at the top of the report."""
    rows = []
    if "errors" in content:
        for name, label in LABELS.items():
            score = content["errors"]["all"][name]["forces_meV_per_A"]
            if score is not None:
                rows.append([f"force error, {label}", f"{score['rmse']:.0f} meV/Å"])
    if "crystal" in content:
        differences = content["crystal"]["differences"]
        for name in ("lattice_constant", "bulk_modulus", "C44"):
            label = f"{name.replace('_', ' ')}, cheap from expensive"
            rows.append([label, f"{differences[name]:+.3f} %"])
    if "expert_boundary" in content:
        boundary = content["expert_boundary"]
        rows.append(["largest ghost force", f"{boundary['ghost_force']['worst']:.1f} meV/Å"])
        rows.append(["largest stress jump", f"{boundary['stress_jump']['worst']:.3f} GPa"])
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
    columns = ("frames", "number", "potential", "energy, meV/atom", "forces, meV/Å", "stress, GPa")
    return templates.ERRORS.format(
        data=about["data"],
        split=about["split"],
        frames=about["frames"],
        domain=", ".join(about["domain"]),
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


def _crystal(crystal: dict, content: dict) -> str:
    experts, differences = crystal["experts"][:2], crystal["differences"]
    literature = LITERATURE.get(crystal["symbol"])
    rows = [
        [
            label,
            *([format(x, form) for x in literature[key]] if literature else []),
            *(_number(e[key], form) for e in experts),
            _number(differences[difference], "+.3f"),
        ]
        for key, label, form, difference in PROPERTIES
    ]
    for point in ("X", "K", "L"):
        values = [" ".join(f"{f:.2f}" for f in e["frequencies_THz"][point]) for e in experts]
        rows.append([f"phonons at {point}, THz", *(["", ""] if literature else []), *values, ""])
    references = ["PBE", "experiment"] if literature else []
    return templates.CRYSTAL.format(
        symbol=crystal["symbol"],
        table=_table(["", *references, "expensive expert", "cheap expert", "difference, %"], rows),
        source=templates.SOURCE if literature else "",
        rms=_number(differences["phonons_rms"], ".2f"),
        largest=_number(differences["phonons_max"], ".2f"),
        energy=_number(differences["energy_meV_per_atom"], "+.2f"),
    )


def _surfaces(section: dict, content: dict) -> str:
    metal = content["settings"]["metal"]
    surfaces, vacancies = (
        [section[key][name] for name in ("expensive", "cheap")] for key in ("surfaces", "vacancy")
    )
    rows = [["vacancy, eV", *_two([v["energy_eV"] for v in vacancies], ".3f")]]
    for facet in surfaces[0]:
        energies = [s[facet]["energy_J_per_m2"] for s in surfaces]
        rows.append([f"surface ({facet}), J/m²", *_two(energies, ".3f")])
    for facet in surfaces[0]:
        spacings = [s[facet]["first_spacing_percent"] for s in surfaces]
        rows.append([f"first spacing of ({facet}), %", *(f"{x:+.2f}" for x in spacings), ""])
    relaxed = [*vacancies, *(s[facet] for s in surfaces for facet in s)]
    columns = ("", "expensive expert", "cheap expert", "difference, %")
    text = templates.SURFACES.format(metal=metal, table=_table(columns, rows))
    if "adsorption" in section:
        runs = [section["adsorption"][name] for name in ("expensive", "mixed")]
        relaxed += [site for run in runs for site in run["sites"].values()]
        text += templates.ADSORPTION.format(
            metal=metal,
            expensive_order=" < ".join(runs[0]["order"]),
            mixed_order=" < ".join(runs[1]["order"]),
            table=_table(templates.ADSORPTION_COLUMNS, [_site(name, *runs) for name in runs[0]["order"]]),
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


def _expert_boundary(section: dict, content: dict) -> str:
    ghost, jump = section["ghost_force"], section["stress_jump"]
    middle, largest_strain = len(section["strain"]) // 2, 100 * section["strain"][-1]
    ghost_rows = [
        [
            label,
            *(f"{ghost[key][name][middle]:.2f}" for name in ("max", "rms")),
            f"{max(ghost[key]['max']):.2f}",
        ]
        for key, label in (("100", "plane (100)"), ("111", "plane (111)"), ("sphere", "sphere"))
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
        ghost_table=_table(columns, ghost_rows),
        jump_table=_table(["crystal", "largest component", "pressure"], jump_rows),
        strain=largest_strain,
        worst=jump["worst"],
        worst_pressure=jump["worst_pressure"],
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
        **{**settings, "adsorbate": settings["adsorbate"] or "no adsorbate"},
        n_atoms=section["n_atoms"],
        n_expensive=section["n_expensive"],
        time_ps=section["time_ps"],
        drift_table=_table(["run", "drift, meV/atom/ps", "temperature, K", "ms per step"], drifts),
        flux=mixed["flux_eV_per_ps_per_A2"],
        flux_stderr=mixed["flux_stderr"],
        area=section["boundary_area_A2"],
        area_source=templates.AREA_SOURCE[settings["region"]],
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


def _two(values: Sequence[float], form: str) -> list[str]:
    """Two numbers, and the difference of the second from the first in percent."""
    return [*(format(x, form) for x in values), f"{100 * (values[1] / values[0] - 1):+.2f}"]


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
