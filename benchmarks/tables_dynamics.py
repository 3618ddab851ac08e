"""Tables of molecular dynamics: conservation, multiple time steps, long runs, gradients."""

from pathlib import Path

import harness
from tables_format import markdown, newest, unmeasured, where


def moving(folder: Path) -> str:
    """Energy and momentum with dynamic regions: the newest record of each run."""
    command = "python benchmarks/bench_moving.py"
    newest_of = {
        (r["device"], r["checkpoint"], str(r["size"]), r["run"]): r
        for r in harness.read(folder, "moving")
        if not r["smoke"]
    }
    groups: dict[tuple, list[dict]] = {}
    for key, r in newest_of.items():
        groups.setdefault(key[:3], []).append(r)
    parts = [f"`{command}`"]
    for records in groups.values():
        rows = []
        for r in sorted(records, key=lambda r: list(RUNS).index(run_name(r))):
            blend = r["blend"]
            _, least, most = blend["share"][0]
            rows.append(
                [
                    f"{RUNS[run_name(r)]}, {r['ps']:g} ps",
                    f"{least:.0%} to {most:.0%}",
                    f"{1e3 * r['drift_meV_per_atom_per_ps']:+.2f} ± {1e3 * r['drift_stderr']:.2f}",
                    f"{r['fluctuation_meV']:.2f}",
                    f"{r['momentum']:.0e}",
                    f"{blend['gate_over_thermal']:.2%}" if "gate_over_thermal" in blend else "–",
                    f"{1e6 * blend['flux_rms']:.0f}" if "flux_rms" in blend else "–",
                    f"{r['farthest']:.0f}",
                ]
            )
        r = max(records, key=lambda r: r["n_atoms"])
        head = [
            "run",
            "on the expensive expert",
            "drift, µeV/atom/ps",
            "fluctuation, meV",
            "momentum",
            "gate-gradient force",
            "flux, µeV/ps/Å²",
            "CO displacement, Å",
        ]
        note = (
            f"{r['n_atoms']} atoms under `{r['checkpoint']}`, {r['molecules']} of them CO molecules, "
            f"a kick of {r['kick_eV']:g} eV for each every {r['kick_every_ps']:g} ps. "
            "Energy without the work of the kicks and of "
            "reassignments; fluctuation: standard deviation about the fitted line of the "
            "drift. Momentum: the largest total momentum, "
            "amu Å / (Å sqrt(amu / eV)). Gate-gradient force: relative to the total force on atoms of the "
            "blend; flux: energy that passes "
            f"through the blend; both are root mean squares. {where(r)}."
        )
        parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


# Names of runs in the records, and what the table says.
RUNS = {
    "moving": "spheres that follow each CO, float64, 1 fs",
    "half step": "the same, 0.5 fs",
    "no slope": "the same, 1 fs, without ∂w/∂R in the forces",
    "reassigned": "the same, reassigned without a blend",
    "one": "one CO",
    "none": "static region",
    "float32": "spheres that follow each CO, float32",
}


def run_name(record: dict) -> str:
    """The name of a run; records of earlier versions say "hard" for reassigned regions."""
    return {"hard": "reassigned"}.get(record["run"], record["run"])


def respa(folder: Path) -> str:
    """Multiple time steps: energy against the outer step, and speed beside its bound."""
    command = "python benchmarks/bench_respa.py"
    records = harness.read(folder, "respa")
    parts = [f"`{command}`", *_respa_conservation(records), *_respa_speed(records)]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def _respa_conservation(records: list[dict]) -> list[str]:
    """Table and note of each pair: drift against the interval between expensive forces."""
    parts = []
    groups: dict[tuple, dict[tuple, dict]] = {}
    for record in records:
        if "conservation" in record and not record["smoke"]:
            row = record["conservation"]
            groups.setdefault((record["device"], record["checkpoint"]), {})[
                row["inner_potential"], row["outer_every"]
            ] = record
    for group in groups.values():
        rows, record = [r["conservation"] for r in group.values()], list(group.values())[-1]
        head = [
            "inner potential",
            "expensive forces every, fs",
            "drift, µeV/atom/ps",
            "fluctuation, meV",
            "C-O, Å",
        ]
        note = (
            f"{rows[0]['ps']:g} ps of {rows[0]['n_atoms']} atoms under `{record['checkpoint']}`, "
            "one CO and a sphere around it on the expensive expert, float64, 1 fs. "
            f"The inner potential: l_max {record['inner_potential']['l_max']}, "
            f"{record['inner_potential']['num_channels']} channels. "
            f"{where(record)}."
        )
        parts += [
            markdown(
                head,
                [
                    [
                        INNER.get(row["inner_potential"], row["inner_potential"]),
                        f"{row['outer_every']}",
                        *_energy_of(row),
                    ]
                    for row in rows
                ],
            ),
            note,
        ]
    return parts


def _respa_speed(records: list[dict]) -> list[str]:
    """Table and note of each device: time per step against the interval."""
    parts = []
    for record in newest([r for r in records if "speed" in r]):
        timed = record["speed"]
        rows = [
            [
                f"{row['f']:.2f}",
                f"{row['outer_every']}",
                f"{1e3 * row['median_s']:,.0f} ({1e3 * row['quartiles_s'][0]:,.0f} to "
                f"{1e3 * row['quartiles_s'][1]:,.0f})",
                f"{row['gain']:.2f}",
                f"{row['bound']:.2f}",
                f"{row['gain'] / row['bound']:.2f}",
                f"{row['speedup']:.1f}",
            ]
            for row in timed["rows"]
        ]
        head = [
            "f",
            "expensive forces every, steps",
            "ms per step (quartiles)",
            "gain",
            "bound",
            "fraction of bound",
            "relative to all expensive",
        ]
        parts += [
            markdown(head, rows),
            f"{timed['atoms']:,} atoms under `{record['speed_checkpoint']}`, float32; "
            f"r = {timed['r']:.1f}. {where(record)}.",
        ]
    return parts


# Names in the records, and what the table says.
INNER = {"inner_potential": "trained inner potential", "guide": "trained inner potential"}


def _energy_of(row: dict) -> list[str]:
    """Drift, fluctuation and range of the C-O distance of a run."""
    if row["failed"]:
        return ["–", "–", "failed"]
    return [
        f"{1e3 * row['drift_meV_per_atom_per_ps']:+.2f} ± {1e3 * row['drift_stderr']:.2f}",
        f"{row['fluctuation_meV']:.2f}",
        f"{row['bond'][0]:.2f} to {row['bond'][1]:.2f}",
    ]


def soak(folder: Path) -> str:
    """Long runs: the newest record of each kind."""
    command = "python benchmarks/bench_soak.py"
    parts = [f"`{command}`"]
    runs = [r for r in harness.read(folder, "soak") if not r["smoke"]]
    for r in {
        (r["device"], r["checkpoint"], str(r["size"]), r["dtype"], r["temperature_K"], r["thermostat"]): r
        for r in runs
    }.values():
        conserved = (
            f"{r['mean_temperature_K']:.0f} K under a thermostat"
            if r["thermostat"]
            else f"{r['mean_temperature_K']:.0f} K: drift {r['drift_meV_per_atom_per_ps']:+.5f} ± "
            f"{r['drift_stderr']:.5f} meV/atom/ps, "
            f"largest total momentum {r['momentum']:.0e}"
        )
        molecule = (
            f" In the last {r['this_process_steps']:,} steps C moved {r['co_farthest_A']:.1f} Å along the "
            f"surface; C-O distances were {r['co_bond_A'][0]:.2f} to {r['co_bond_A'][1]:.2f} Å."
            if r["co_bond_A"]
            else ""
        )
        parts.append(
            f"{r['steps']:,} steps of {r['atoms']} atoms under `{r['checkpoint']}`, "
            "a CO inside the expensive region, "
            f"{r['dtype']}, {conserved}, {r['lists_grown']} reallocations.{molecule} "
            f"{1e3 * r['seconds_per_step']:.0f} ms per step. Over the last nine tenths of "
            f"{r['this_process_steps']:,} steps of one process, memory went from {r['memory_MB'][0]:,.0f} "
            f"to {r['memory_MB'][1]:,.0f} MB, "
            f"and {r['compiled'][1] - r['compiled'][0]} programs were compiled. {where(r)}."
        )
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def gradient(folder: Path) -> str:
    """Gradients through trajectories relative to the trajectories alone: the newest record of each
    system and length, by device.
    """
    command = "python benchmarks/bench_gradient.py"
    parts = [f"`{command}`"]
    groups: dict[str, dict[tuple, dict]] = {}
    for record in harness.read(folder, "gradient"):
        if not record["smoke"]:
            group = groups.setdefault(record["device"], {})
            group[record["rows"][0]["system"], record["rows"][0]["steps"]] = record
    for group in groups.values():
        ways = list(
            dict.fromkeys(row["way"] for r in group.values() for row in r["rows"] if row["way"] != "forward")
        )
        lines = []
        for (name, steps), r in sorted(group.items()):
            found = {row["way"]: row for row in r["rows"]}
            forward = found["forward"]
            cells = [gradient_cell(found[way]) if way in found else "–" for way in ways]
            lines.append(
                [
                    f"{name}, {forward['atoms']} atoms",
                    f"{steps:,}",
                    f"{1e3 * forward['median_s'] / steps:.2f}",
                    *cells,
                ]
            )
        last = list(group.values())[-1]
        head = ["system", "steps", "forward, ms per step", *(f"{way}: time / forward; MB" for way in ways)]
        notes = sorted({r["note"] for r in group.values() if r["note"]})
        commits = sorted({(r["commit"] or "unknown")[:9] for r in group.values()})
        note = (
            f"Gradients with respect to parameters, initial positions and momenta, {last['dtype']}, "
            f"{last['timestep_fs']:g} fs, neighbour lists rebuilt every {last['update_every']} steps. "
            "Memory: allocated by the compiled program; for the reversible one, with the positions "
            "stored at list rebuilds. Medians; a dash: not run, too large. "
            f"{' '.join(notes)} "
            f"{where(last)}{'' if len(commits) == 1 else f' (commits {chr(44).join(commits)})'}."
        )
        parts += [markdown(head, lines), " ".join(note.split())]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def gradient_cell(row: dict) -> str:
    """Time relative to the trajectory alone, and memory in MB."""
    ratio = "–" if row["over_forward"] is None else f"{row['over_forward']:.1f}"
    megabytes = 1e-6 * row["bytes"]
    return f"{ratio}; {megabytes:,.0f}" if megabytes >= 10 else f"{ratio}; {megabytes:.1f}"


def lyapunov(folder: Path) -> str:
    """Divergence of neighbouring trajectories: the newest run of each device."""
    command = "python benchmarks/bench_lyapunov.py"
    parts = [f"`{command}`"]
    for r in newest(harness.read(folder, "lyapunov")):
        rows = []
        for row in r["rows"]:
            grown = [f"{t:.1f} ps" if t is not None else "not reached" for t in row["grown_by_ps"].values()]
            resolved = row["exponent_per_ps"] > 3 * row["error_per_ps"]
            rows.append([
                f"{row['name']}, {row['atoms']} atoms",
                f"{row['temperature_K']:.0f}",
                f"{row['exponent_per_ps']:.2f} ± {row['error_per_ps']:.2f}",
                f"{1e-3 * row['lyapunov_time_fs']:.2f} ps" if resolved else "not resolved",
                f"{row['log_growth'][-1]:.0f} in {row['time_ps'][-1]:.1f} ps",
                *grown,
            ])  # fmt: skip
        head = ["system", "K", "λ, 1/ps", "1/λ", "ln growth in the run", "10³ after", "10⁶ after"]
        note = (
            f"One trajectory each, {r['dtype']}, Pt + CO under `{r['model']}`; λ from the last 70 % of "
            "the run, ± the standard error of five consecutive blocks, which are not independent. "
            f"Not resolved: below three such errors. {where(r)}."
        )
        parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)
