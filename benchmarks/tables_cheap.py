"""Tables of cheap experts: errors, agreement and cost of several, time of a step, skin."""

from pathlib import Path

import harness
from tables_format import markdown, newest, unmeasured, where


def cheap_widths(folder: Path) -> str:
    """Agreement of cheap experts with one trained expensive expert, beside their cost."""
    command = "python benchmarks/bench_cheap_widths.py"
    parts = [f"`{command}`"]
    for record in newest(harness.read(folder, "cheap_widths"), "checkpoint"):
        rows = []
        for row in record["rows"]:
            scores = row["scores"]
            rows.append(
                [
                    row["expert"],
                    f"{row['parameters']:,}",
                    f"{row['us_per_atom']:.2f}",
                    f"{scores['cheap']['forces_meV_per_A']:.0f}",
                    f"{scores['mismatch']['partial_forces_meV_per_A']:.0f}",
                    f"{scores['mismatch']['forces_meV_per_A']:.0f}",
                    f"{scores['mismatch']['stress_GPa']:.2f}",
                    f"{row['training_s']:.0f}",
                ]
            )
        head = [
            "cheap expert",
            "parameters",
            "µs per atom and step",
            "force error, meV/Å",
            "partial forces differ by, meV/Å",
            "forces differ by, meV/Å",
            "stress differs by, GPa",
            "training, s",
        ]
        note = (
            f"{record['steps']:,} steps beside the expensive expert of `{record['checkpoint']}`, which "
            f"keeps its parameters; errors and differences on validation frames of `{record['data']}`. "
            f"A step has {record['atoms']:,} atoms, all on the cheap expert, float32. {where(record)}."
        )
        parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def cheap_expert(folder: Path) -> str:
    """Errors of cheap experts fitted alone to public data, for equal time."""
    command = "python benchmarks/bench_cheap_expert.py --data TRAIN --test TEST"
    parts = [f"`{command}`"]
    for record in newest(harness.read(folder, "cheap_expert"), "name"):
        rows = [
            [
                row["expert"],
                f"{row['steps']:,} of {row['step_ms']:.1f} ms",
                *(
                    f"{row[part]['energy_meV_per_atom']:.1f}; {row[part]['forces_meV_per_A']:.0f}"
                    for part in ("validation", "test")
                    if part in row
                ),
            ]
            for row in record["rows"]
        ]
        head = ["cheap expert", "steps", "validation", *(["test"] if "test" in record["rows"][0] else [])]
        note = (
            f"{record['name']}, {record['seconds']:.0f} s of processor time for each; errors of the energy "
            f"in meV/atom and of forces in meV/Å. {where(record)}."
        )
        parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def step(folder: Path) -> str:
    """Where the time of a step goes in which every atom is on the cheap expert."""
    command = "python benchmarks/bench_roofline.py"
    parts = [f"`{command}`"]
    for record in newest(harness.read(folder, "roofline"), "checkpoint"):
        rows = []
        for found in record.get("steps", []):
            us = {name: 1e6 * s / found["atoms"] for name, s in found["seconds"].items()}
            others = us["step"] - us["forces"] - us["list check"]
            rows.append(
                [
                    f"{found['expert']}, {found['atoms']:,} atoms",
                    f"{us['list check']:.2f}",
                    f"{us['rows']:.2f}",
                    f"{us['energy'] - us['rows']:.2f}",
                    f"{us['forces'] - us['energy']:.2f}",
                    f"{others:.2f}",
                    f"{us['step']:.2f}",
                ]
            )
        head = [
            "µs per atom",
            "list check",
            "neighbours' positions, nearest images",
            "sums and network",
            "forces: their derivatives, scatter",
            "integrator and rest",
            "whole step",
        ]
        if rows:
            note = (
                "Differences of nested programs, each timed whole; what two of them share may be fused, "
                f"so the rest may be below zero. {where(record)}."
            )
            parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def skin(folder: Path) -> str:
    """Time of a run against the skin and the spare capacity of the lists."""
    command = "python benchmarks/bench_skin.py"
    parts = [f"`{command}`"]
    for record in newest(harness.read(folder, "skin"), "checkpoint"):
        cases = dict.fromkeys((row["share"], row["temperature_K"]) for row in record["rows"])
        choices = dict.fromkeys((row["skin"], row["capacity_multiplier"]) for row in record["rows"])
        found = {
            (row["share"], row["temperature_K"], row["skin"], row["capacity_multiplier"]): row
            for row in record["rows"]
        }
        rows = []
        for choice in sorted(choices):
            some = [found.get((*case, *choice)) for case in cases]
            slots = next(row for row in some if row)["slots"]
            rows.append(
                [
                    f"{choice[0]:g}; {choice[1]:g}",
                    f"{slots[0]}",
                    *(
                        f"{row['us_per_atom']:.2f} ({row['steps_per_rebuild']:.0f})" if row else "–"
                        for row in some
                    ),
                ]
            )
        head = [
            "skin, Å; capacity",
            "slots",
            *(f"f = {share:g}, {kelvin:.0f} K" for share, kelvin in cases),
        ]
        note = (
            "µs per atom and step, rebuilds included; in brackets the steps between two of them. "
            f"`{record['checkpoint']}`, {record['atoms']:,} Pt atoms, float32, {where(record)}."
        )
        parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)
