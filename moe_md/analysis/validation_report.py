"""A validation in words and tables: Markdown from what `validation.json` holds."""

from collections.abc import Sequence

WHO = {
    "expensive": "expensive expert",
    "cheap": "cheap expert",
    "mixed": "mixture",
    "expensive_where_mixed": "expensive expert, the same frames",
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
        Markdown that shows the pictures of `validation_plots.pictures` beside it.
    """
    parts = [_head(content)]
    for section, write in (
        ("errors", _errors),
        ("crystal", _crystal),
        ("surfaces", _surfaces),
        ("seam", _seam),
        ("dynamics", _dynamics),
    ):
        if section in content:
            parts.append(write(content[section], content))
    parts.append(_foot(content))
    return "\n".join(line for part in parts for line in part)


def _head(content: dict) -> list[str]:
    about, settings = content["about"], content["settings"]
    region = (
        f"atoms within {about['cutoff'] + settings['region_margin']:g} Å (the cheap expert's cutoff and "
        f"{settings['region_margin']:g} Å) of any species that the cheap expert may not meet"
        if settings["region"] == "near"
        else "what the cheap expert may not meet, and the "
        f"{settings['region_layers']} uppermost layers of a slab"
    )
    return [
        f"# Validation of {about['checkpoint']}",
        "",
        f"The expensive expert is `{about['experts'][0]}`, the cheap one `{about['experts'][1]}`, made for "
        f"{', '.join(about['domain'])} alone. In the mixture the expensive expert owns {region}; the cheap "
        "one owns the rest.",
        "",
        *_table(["in short", ""], _short(content)),
        "",
    ]


def _short(content: dict) -> list[list[str]]:
    """The few numbers to look at first."""
    rows = []
    if "errors" in content:
        errors = content["errors"]["all"]
        for who in ("expensive", "cheap", "mixed", "expensive_where_mixed"):
            score = errors[who]["forces_meV_per_A"]
            if score is not None:
                rows.append([f"force error, {WHO[who]}", f"{score['rmse']:.0f} meV/Å"])
    if "crystal" in content:
        differences = content["crystal"]["differences"]
        for name in ("lattice_constant", "bulk_modulus", "C44"):
            rows.append([f"{name.replace('_', ' ')}, cheap from expensive", f"{differences[name]:+.3f} %"])
    if "seam" in content:
        ghost, jump = content["seam"]["ghost_force"], content["seam"]["stress_jump"]
        rows.append(["largest ghost force", f"{ghost['worst']:.1f} meV/Å"])
        rows.append(["largest stress jump", f"{jump['worst']:.3f} GPa"])
    if "dynamics" in content:
        for who, label in (("mixed", "mixture"), ("expensive", "all expensive")):
            run = content["dynamics"][who]
            drift = f"{run['drift_meV_per_atom_per_ps']:+.5f} ± {run['drift_stderr']:.5f} meV/atom/ps"
            rows.append([f"drift at constant energy, {label}", drift])
    return rows


def _errors(errors: dict, content: dict) -> list[str]:
    about, seam = content["about"], errors["seam"]
    rows = []
    for kind, entry in [*errors["kinds"].items(), ("all", errors["all"])]:
        for who, label in WHO.items():
            scores = entry[who]
            if any(scores.values()):
                numbers = (
                    _pair(scores[name], form)
                    for name, form in (
                        ("energy_meV_per_atom", ".1f"),
                        ("forces_meV_per_A", ".0f"),
                        ("stress_GPa", ".2f"),
                    )
                )
                rows.append([kind, entry["frames"] if who == "expensive" else "", label, *numbers])
    atoms = []
    for group in ("environments", "species"):
        for name, entry in errors[group].items():
            if any(entry[who] for who in WHO):
                atoms.append([name, entry["atoms"], *(_pair(entry[who], ".0f") for who in WHO)])
    lines = [
        "## Errors on labelled frames",
        "",
        f"Labels are those of {about['data']}, split “{about['split']}”: {about['frames']} frames. Root mean "
        "square errors, with mean absolute ones in brackets; forces and stress by component. **The cheap "
        f"expert counts only on frames all of whose atoms are in its domain** ({', '.join(about['domain'])} "
        "with nothing else within its cutoff), as in training. The mixture counts only on frames in which "
        f"both experts own atoms, {seam['frames']} here, and beside it stands the expensive expert on the "
        "same frames. A missing label counts nowhere.",
        "",
        *_table(["frames", "number", "potential", "energy, meV/atom", "forces, meV/Å", "stress, GPa"], rows),
        "",
        "Forces by environment and by species, meV/Å. Surface atoms have fewer than 12 metal neighbours "
        "(within 1.2 nearest-neighbour distances), subsurface atoms have 12 and touch a surface atom, the "
        "others are bulk; what the cheap expert may not meet is adsorbate.",
        "",
        *_table(["atoms", "number", *WHO.values()], atoms),
        "",
        "![Force errors by environment](errors.png)",
        "",
        "### What the seam adds",
        "",
    ]
    if not seam["frames"]:
        return [*lines, "No frame has atoms of both experts: nothing to compare.", ""]
    columns = (("expensive", ".1f"), ("mixed", ".1f"), ("excess", "+.1f"), ("change", ".1f"))
    where = [
        [label, seam[key]["atoms"], *(_number(seam[key][name], form) for name, form in columns)]
        for key, label in (("inside", "inside the region"), ("outside", "outside"), ("whole", "all"))
    ]
    return [
        *lines,
        f"The mixture beside the expensive expert on the same atoms of the same {seam['frames']} frames, "
        "meV/Å. The excess is what the mixture costs in error; the change is how far its forces are from the "
        "expensive expert's, labels or not.",
        "",
        *_table(["atoms", "labelled", "error, all expensive", "error, mixture", "excess", "change"], where),
        "",
        "![Force errors over distance to the seam](boundary_distance.png)",
        "",
    ]


def _crystal(crystal: dict, content: dict) -> list[str]:
    symbol, experts, differences = crystal["symbol"], crystal["experts"], crystal["differences"]
    literature = LITERATURE.get(symbol)
    header = [
        "",
        *(["PBE", "experiment"] if literature else []),
        "expensive expert",
        "cheap expert",
        "difference, %",
    ]
    rows = [
        [
            label,
            *([format(x, form) for x in literature[key]] if literature else []),
            *(_number(e[key], form) for e in experts[:2]),
            _number(differences[short], "+.3f"),
        ]
        for key, label, form, short in PROPERTIES
    ]
    for point in ("X", "K", "L"):
        values = [" ".join(f"{f:.2f}" for f in e["frequencies_THz"][point]) for e in experts[:2]]
        rows.append([f"phonons at {point}, THz", *(["", ""] if literature else []), *values, ""])
    source = (
        [
            "",
            "PBE and experiment: Vandermause et al., Nat. Commun. 13, 5183 (2022). The labels of these "
            "experts need not be that PBE.",
        ]
        if literature
        else []
    )
    return [
        f"## The perfect crystal of {symbol}",
        "",
        "What must match across a seam in the bulk. Each expert has its own lattice constant.",
        "",
        *_table(header, rows),
        *source,
        "",
        f"Phonon frequencies of the two experts differ by {_number(differences['phonons_rms'], '.2f')} % "
        f"root mean square and {_number(differences['phonons_max'], '.2f')} % at most; their energies at "
        f"rest by {_number(differences['energy_meV_per_atom'], '+.2f')} meV/atom.",
        "",
        "![Equation of state](equation_of_state.png)",
        "",
        "![Phonons](phonons.png)",
        "",
    ]


def _surfaces(found: dict, content: dict) -> list[str]:
    metal = content["settings"]["metal"]
    both = [found["surfaces"][who] for who in ("expensive", "cheap")]
    vacancies = [found["vacancy"][who] for who in ("expensive", "cheap")]
    rows = [["vacancy, eV", *_two([v["energy_eV"] for v in vacancies], ".3f")]]
    for facet in both[0]:
        rows.append([f"surface ({facet}), J/m²", *_two([s[facet]["energy_J_per_m2"] for s in both], ".3f")])
    for facet in both[0]:
        spacings = [s[facet]["first_spacing_percent"] for s in both]
        rows.append([f"first spacing of ({facet}), %", *(f"{x:+.2f}" for x in spacings), ""])
    structures = [*vacancies, *(s[facet] for s in both for facet in s)]
    lines = [
        f"## Vacancies and surfaces of {metal}",
        "",
        "Relaxed, each expert at its own lattice constant. Surfaces are clean and not reconstructed; the "
        "first spacing is the change of the distance between the two uppermost layers.",
        "",
        *_table(["", "expensive expert", "cheap expert", "difference, %"], rows),
        "",
    ]
    if "adsorption" in found:
        runs = [found["adsorption"][who] for who in ("expensive", "mixed")]
        structures += [site for run in runs for site in run["sites"].values()]
        sites = []
        for site in runs[0]["order"]:
            a, b = (run["sites"][site] for run in runs)
            sites.append(
                [
                    site,
                    *(f"{x['energy_eV']:.3f}" for x in (a, b)),
                    f"{1e3 * (b['energy_eV'] - a['energy_eV']):+.1f}",
                    *(f"{x['bond_A']:.3f}, {x['metal_carbon_A']:.3f}" for x in (a, b)),
                    *(f"{x['stretch_cm1']:.0f}" for x in (a, b)),
                    " of ".join(str(n) for n in (b["atoms_per_expert"][0], sum(b["atoms_per_expert"]))),
                    "yes" if a["stayed"] and b["stayed"] else "no",
                ]
            )
        lines += [
            f"### CO on {metal}(111)",
            "",
            "One CO in each p(2×2) cell, all atoms on the expensive expert beside the mixture. Where the "
            "mixture's clean slab is all the cheap expert's, its energies include what the experts differ by "
            "on the atoms that change hands. Sites are ordered by what the expensive expert binds most: "
            f"{' < '.join(runs[0]['order'])}; the mixture's order is {' < '.join(runs[1]['order'])}.",
            "",
            *_table(
                [
                    "site",
                    "energy, eV",
                    "mixture",
                    "difference, meV",
                    "C–O and metal–C, Å",
                    "mixture",
                    "C–O stretch, cm⁻¹",
                    "mixture",
                    "atoms on the expensive expert",
                    "stayed",
                ],
                sites,
            ),
            "",
            "![Adsorption energies](adsorption.png)",
            "",
        ]
    failed = sum(not s["converged"] for s in structures)
    if failed:
        lines += [
            f"**{failed} of {len(structures)} relaxations did not converge**; `validation.json` says which.",
            "",
        ]
    return lines


def _seam(found: dict, content: dict) -> list[str]:
    ghost, jump = found["ghost_force"], found["stress_jump"]
    middle = len(found["strain"]) // 2
    cuts = [
        [
            label,
            *(f"{ghost[key][name][middle]:.2f}" for name in ("max", "rms")),
            f"{max(ghost[key]['max']):.2f}",
        ]
        for key, label in (("100", "plane (100)"), ("111", "plane (111)"), ("sphere", "sphere"))
    ]
    at_rest = ("at rest", *(jump["isotropic"][key][middle] for key in ("stress", "pressure")))
    strained = zip(*(jump["strained"][key] for key in ("name", "stress", "pressure")))
    jumps = [
        [name, f"{1e3 * _largest(stress):+.1f}", f"{1e3 * pressure:+.1f}"]
        for name, stress, pressure in (at_rest, *strained)
    ]
    reach = 100 * found["strain"][-1]
    return [
        "## The seam in a perfect crystal",
        "",
        "Every force should be zero; what a seam leaves is its ghost force, meV/Å.",
        "",
        *_table(
            [
                "cut",
                "largest, at rest",
                "root mean square near the seam",
                f"largest within {reach:g} % strain",
            ],
            cuts,
        ),
        "",
        "Under one strain the two experts' crystals carry different stresses, and the seam the difference: "
        "its in-plane components jump across a plane, its normal component pushes. A sphere is pushed by the "
        "pressure. MPa, expensive less cheap:",
        "",
        *_table(["crystal", "largest component", "pressure"], jumps),
        "",
        f"Over all these strains, isotropic ones of up to {reach:g} % included, the largest component is "
        f"{jump['worst']:.4f} GPa and the largest pressure {jump['worst_pressure']:.4f} GPa.",
        "",
        "![Ghost force and stress jump](expert_boundary.png)",
        "",
    ]


def _dynamics(found: dict, content: dict) -> list[str]:
    settings, mixed, expensive = content["settings"], found["mixed"], found["expensive"]
    area = (
        "the cross-section of the cell"
        if settings["region"] == "top_layers"
        else "an estimate: d²/(3√2) for each nearest-neighbour bond (of length d) that crosses the seam"
    )
    drifts = [
        [
            label,
            f"{run['drift_meV_per_atom_per_ps']:+.5f} ± {run['drift_stderr']:.5f}",
            f"{run['temperature_K']:.0f}",
            f"{1e3 * run['seconds_per_step']:.0f}",
        ]
        for label, run in (("all expensive", expensive), ("mixture", mixed))
    ]
    compared = [
        [
            f"{key.rsplit('_', 1)[0].replace('_', ' ')}, {curve['label']}",
            "∞" if curve["deviation"]["largest"] is None else f"{curve['deviation']['largest']:.1f}",
            f"{curve['deviation']['at']:.2f} {curve['x_label'].split('/')[1].strip()}",
            _number(curve["deviation"]["rms"], ".2f"),
            f"{curve['deviation']['by_chance']:.1f}",
        ]
        for key, curve in found["curves"].items()
    ]
    out_of_domain_fraction = (
        [
            f"In {found['out_of_domain_fraction']:.0%} of the frames of the mixed run some atom of the cheap "
            "expert had a species outside its domain within its cutoff: molecules move. "
            "A larger `region_margin` prevents that.",
            "",
        ]
        if found["out_of_domain_fraction"]
        else []
    )
    return [
        "## A mixed run against an all-expensive run",
        "",
        f"{found['n_atoms']} atoms, {settings['metal']}(111) with {settings['adsorbate'] or 'nothing'} on "
        f"it, of which the expensive expert owns {found['n_expensive']} in the mixture. Both runs start from "
        f"one state, {settings['equilibration_steps']} steps of Langevin dynamics at "
        f"{settings['temperature_K']:g} K under the expensive expert, and take "
        f"{settings['production_steps']} steps of {settings['timestep_fs']:g} fs ({found['time_ps']:g} ps) "
        "at constant energy, in float64.",
        "",
        *_table(["run", "drift, meV/atom/ps", "temperature, K", "ms per step"], drifts),
        "",
        f"Seen as a flux through the seam, the mixture drifts by ({mixed['flux_eV_per_ps_per_A2']:+.2e} ± "
        f"{mixed['flux_stderr']:.1e}) eV/ps/Å². The seam's area, {found['seam_area_A2']:.0f} Å², is {area}.",
        "",
        *out_of_domain_fraction,
        f"Error bars are standard errors over {settings['blocks']} blocks. The largest deviation is in units "
        "of the combined error of a point; the last column is the median of that for as many independent "
        "points of two equal curves: blocks are few, so it is not small. Runs that start alike stay alike "
        "for a while, so less than chance is no merit, and more than chance a fault. “At the seam” are metal "
        "atoms with a nearest neighbour on the other expert.",
        "",
        *_table(["curve", "largest deviation", "at", "root mean square", "largest by chance"], compared),
        "",
        "![Both runs](dynamics.png)",
        "",
    ]


def _foot(content: dict) -> list[str]:
    about = content["about"]
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in about["seconds"].items())
    return [
        "## How this was made",
        "",
        f"`moe-md validate`, on {about['device']} with jax {about['jax']}; {seconds}, compilation included. "
        f"Lattice constant {about['lattice_constant']:.4f} Å, the expensive expert's own. Digest of the "
        f"frames: `{about['data_digest'][:16]}`. Every number is in `validation.json`. Labelled frames are "
        "computed in float32, all else in float64.",
        "",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "| --- |" + " ---: |" * (len(header) - 1),
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]


def _two(values: Sequence[float], form: str) -> list[str]:
    """Two numbers, and by how many percent the second differs."""
    return [*(format(x, form) for x in values), f"{100 * (values[1] / values[0] - 1):+.2f}"]


def _pair(score: dict | None, form: str) -> str:
    return "–" if score is None else f"{score['rmse']:{form}} ({score['mae']:{form}})"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _largest(stress: Sequence[Sequence[float]]) -> float:
    return max((x for row in stress for x in row), key=abs)
