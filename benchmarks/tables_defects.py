"""Tables of a vacancy and of an atom on a surface: mixtures beside the expensive expert alone."""

from pathlib import Path

import harness
from tables_format import markdown, newest, unmeasured, where

RUNS = {
    "grown": "grown region, 1 fs",
    "half step": "the same, 0.5 fs",
    "reassigned": "the same, 1 fs, reassigned without a blend",
}


def defects(folder: Path) -> str:
    """Energy and barrier of a vacancy, and its dynamics: the newest records of each checkpoint."""
    command = "python benchmarks/bench_defects.py --checkpoint PAIR --symbol SYMBOL"
    groups: dict[tuple, dict[tuple, dict]] = {}
    for r in harness.read(folder, "defects"):
        if not r["smoke"]:
            group = groups.setdefault((r["device"], r["checkpoint"], r["symbol"]), {})
            group[r["part"], r.get("run"), r["selection"]] = r
    parts = [f"`{command}`, and with `--dynamics`"]
    for group in groups.values():
        for part, printed in (("barrier", _barrier), ("speed", _speed), ("dynamics", _dynamics)):
            for selection in ("changed", "unfamiliar", "few"):
                found = [r for (name, _, of), r in group.items() if (name, of) == (part, selection)]
                parts += printed(found) if found else []
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def _title(r: dict) -> str:
    return f"{r['symbol']}, `{r['checkpoint']}`"


def _selection(r: dict) -> str:
    """What regions grow from, as a sentence."""
    n = r["neighbors"]
    atoms = {
        "changed": f"that have fewer or more than {n} nearest neighbours",
        "few": f"that have fewer than {n} nearest neighbours",
        "unfamiliar": "whose environments are unlike those that the experts were made to agree on",
    }[r["selection"]]
    return f"Grown: from the atoms {atoms}, a blend of {r['blend']:g} Å."


def _potential(name: str) -> str:
    kind, _, core = name.partition(" ")
    words = {
        "grown": f"mixture, grown, core {core} Å",
        "rims": f"mixture, around both rims, core {core} Å",
    }
    return words.get(kind, f"all {kind}")


def _barrier(records: list[dict]) -> list[str]:
    """Table and note of the energies of a vacancy."""
    (r,) = records
    rows = [
        [
            _potential(row["potential"]) + ("" if row["converged"] else " (not converged)"),
            f"{row['share']:.2f} ({row['share_range'][0]:.2f} to {row['share_range'][1]:.2f})",
            f"{row['vacancy_eV']:.3f}",
            f"{row['barrier_eV']:.3f}",
            f"{row['barrier_difference_meV']:+.1f}",
            f"{row['rim_meV_per_A']:.1f}",
            f"{row['everywhere_meV_per_A']:.1f}",
            f"{1e3 * row['call_s']['median']:,.0f}",
        ]
        for row in r["rows"]
    ]
    head = [
        _title(r),
        "f",
        "vacancy, eV",
        "barrier, eV",
        "difference, meV",
        "forces at the rims, meV/Å",
        "all forces",
        "ms per call",
    ]
    note = (
        f"{r['atoms']} atoms and a vacancy; a nearest neighbour jumps into it (climbing band of "
        f"{r['images']} images, {r['fmax']:g} eV/Å). f: share of atoms with a gate above zero, mean "
        f"(and range) over the path. {_selection(r)} Forces: root mean square differences from all "
        "expensive on its path, after random displacements. In the crystal the energies of the experts "
        f"differ by {r['crystal_difference_meV']:+.3f} meV per atom. Calls of the calculator in float64. "
        f"{where(r)}."
    )
    return [markdown(head, rows), note]


def _speed(records: list[dict]) -> list[str]:
    """Table and note of the time of steps in a larger crystal."""
    (r,) = records
    note = f"{r['speed_atoms']:,} atoms and a vacancy, molecular dynamics at 300 K, float32. {where(r)}."
    return [_steps(f"{_title(r)}, one vacancy", r["speed"]), note]


def _steps(title: str, steps: list[dict]) -> str:
    """The rows of `defect_systems.timed_steps`."""
    rows = [
        [
            row["name"] if row["name"].startswith("all") else _potential(row["name"]),
            f"{row['f']:.2f}",
            "{:.1f} ({:.1f} to {:.1f})".format(*(1e3 * s for s in (row["median_s"], *row["quartiles_s"]))),
            f"{row['speedup']:.1f}",
            f"{row['s_max']:.1f}",
        ]
        for row in steps
    ]
    return markdown([title, "f", "ms per step (quartiles)", "speed-up", "S_max"], rows)


def _dynamics(records: list[dict]) -> list[str]:
    """Table and note of runs at constant energy."""
    rows = []
    for r in sorted(records, key=lambda r: list(RUNS).index(r["run"])):
        mean, least, most = r["atoms_inside"]
        blending = r["blending"]
        rows.append(
            [
                f"{RUNS[r['run']]}, {r['ps']:g} ps",
                f"{r['jumps']}",
                f"{mean:.0f} ({least:.0f} to {most:.0f})",
                _micro(r["drift_meV_per_atom_per_ps"], r["drift_stderr"]),
                _micro(r["total_drift_meV_per_atom_per_ps"], r["total_drift_stderr"]),
                f"{r['fluctuation_meV']:.2f}",
                f"{r['momentum']:.0e}",
                f"{blending['gate_over_thermal']:.2%}"
                if r["run"] != "reassigned" and "gate_over_thermal" in blending
                else "–",
                f"{r['temperature_K']:.0f}",
            ]
        )
    r = records[-1]
    head = [
        _title(r),
        "jumps",
        "atoms on the expensive expert",
        "drift, µeV/atom/ps",
        "drift, work not counted",
        "fluctuation, meV",
        "momentum",
        "gate-gradient force",
        "K",
    ]
    note = (
        f"{r['atoms']} atoms and a vacancy at constant energy from one thermalised state, float64. "
        f"{_selection(r)} Core: {r['core']:g} Å. Jumps: changes of the empty site that last 0.1 ps. Drift: "
        "of the energy less the work of reassignments, and of the energy alone. Other columns as "
        f"[above](#conservation-with-dynamic-regions). {where(r)}."
    )
    return [markdown(head, rows), note]


def _micro(slope: float, error: float) -> str:
    return f"{1e3 * slope:+.2f} ± {1e3 * error:.2f}"


def adsorbate(folder: Path) -> str:
    """Adsorption energies and diffusion of an atom on a surface: the newest record of each checkpoint."""
    command = "python benchmarks/bench_adsorbate.py --checkpoint PAIR"
    parts = [f"`{command}`"]
    for r in newest(harness.read(folder, "adsorbate"), "checkpoint", "adsorbate", "temperature_K"):
        parts += [_sites(r), _diffusion(r), _steps("steps of molecular dynamics", r["speed"]), _note(r)]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def _sites(r: dict) -> str:
    """Energies of sites, a row for each potential."""
    sites = list(dict.fromkeys(row["site"] for row in r["sites"]))
    rows = []
    for potential in dict.fromkeys(row["potential"] for row in r["sites"]):
        found = {row["site"]: row for row in r["sites"] if row["potential"] == potential}
        cells = [f"{found[site]['energy_eV']:.3f}; {found[site]['height_A']:.2f}" for site in sites]
        name = "mixture" if potential == "mixture" else f"all {potential}"
        rows.append([name, f"{found[sites[0]]['share']:.2f}", *cells])
    heads = [f"{site}: energy, eV; height, Å" for site in sites]
    return markdown([f"{r['adsorbate']} on {r['metal']}(001), `{r['checkpoint']}`", "f", *heads], rows)


def _diffusion(r: dict) -> str:
    """Diffusion under each potential."""
    rows = [
        [
            "mixture" if name == "mixture" else f"all {name}",
            f"{found['D_A2_per_ps']:.3f} ± {found['D_stderr']:.3f}",
            f"{found['jumps']}",
            f"{found['jumps_per_ps']:.3f} ± {found['jumps_stderr']:.3f}",
            " / ".join(f"{found['residence'][site]:.0%}" for site in ("hollow", "bridge", "top")),
            f"{found['temperature_K']:.0f}",
            f"{1e3 * found['drift_meV_per_atom_per_ps']:+.1f}",
            f"{found['ms_per_step']:.1f}",
        ]
        for name, found in r["diffusion"].items()
    ]
    head = [
        "diffusion",
        "D, Å²/ps",
        "jumps",
        "jumps per atom and ps",
        "nearest to hollow / bridge / top",
        "K",
        "drift, µeV/atom/ps",
        "ms per step",
    ]
    return markdown(head, rows)


def _note(r: dict) -> str:
    atom = "the free atom" if r["atom_reference"] == "atom" else f"the atom in {r['atom_reference']}"
    ends, symbol = r["fit_ps"], r["adsorbate"]
    return (
        f"{r['atoms']} atoms, the lowest {r['fixed_layers']} of {r['size'][2]} layers fixed. Mixture: "
        f"a sphere of {r['core']:g} Å and a blend of {r['blend']:g} Å around each {symbol}. Energies "
        f"relative to the clean slab and {atom}. Diffusion: {r['runs']} runs of {r['ps']:g} ps at constant "
        f"energy for each potential, from the same states, thermalised at {r['temperature_K']:g} K with "
        f"{r['adsorbed']} {symbol}. D: slope of the mean square displacement between {ends[0]:g} and "
        f"{ends[1]:g} ps, over 4; ± standard errors over the runs. float32. {where(r)}."
    )
