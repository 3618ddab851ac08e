"""Tables of cheap experts: errors, agreement and cost of several, time of a step, skin."""

from collections.abc import Callable, Sequence
from pathlib import Path

import harness
from tables_format import markdown, newest, unmeasured, where

Table = tuple[list[str], list[list[str]], str]  # column heads, rows and the text below


def cheap_widths(folder: Path) -> str:
    """Agreement of cheap experts with one trained expensive expert, beside their cost."""
    records = newest(harness.read(folder, "cheap_widths"), "checkpoint")
    return _printed("python benchmarks/bench_cheap_widths.py", records, _cheap_widths)


def cheap_expert(folder: Path) -> str:
    """Errors of cheap experts fitted alone to public data, for equal time."""
    records = newest(harness.read(folder, "cheap_expert"), "name")
    return _printed(
        "python benchmarks/bench_cheap_expert.py --data TRAIN --test TEST", records, _cheap_expert
    )


def step(folder: Path) -> str:
    """Where the time of a step goes in which every atom is on the cheap expert."""
    records = [record for record in harness.read(folder, "roofline") if record.get("steps")]
    return _printed("python benchmarks/bench_roofline.py", newest(records, "checkpoint"), _step)


def skin(folder: Path) -> str:
    """Time of a run against the skin and the spare capacity of the lists."""
    return _printed(
        "python benchmarks/bench_skin.py", newest(harness.read(folder, "skin"), "checkpoint"), _skin
    )


def boundary(folder: Path) -> str:
    """Change of forces at the boundary between the experts in a hot crystal."""
    command = "python benchmarks/bench_boundary.py"
    records = [r for r in harness.read(folder, "boundary") if not r["smoke"]]
    if not records:
        return unmeasured(command)
    rows = [
        [
            f"`{r['checkpoint']}`",
            f"{r['mean_temperature_K']:.0f}",
            *(
                f"{r[f'{name}_meV_per_A']:.1f}"
                for name in ("rms_force", "near", "near_expensive_side", "near_cheap_side", "far_cheap_side")
            ),
        ]
        for r in records
    ]
    head = [
        "pair",
        "temperature, K",
        "force",
        "within 5 Å of the boundary",
        "on its expensive side",
        "on its cheap side",
        "cheap side, 10 Å and more away",
    ]
    last = records[-1]
    note = (
        "Root mean squares, meV/Å: of the forces, and of the differences between those of the mixture and "
        f"of the expensive expert. {last['samples']} samples of {last['atoms']} atoms. {where(last)}."
    )
    return "\n\n".join([f"`{command}`", markdown(head, rows), note])


def _printed(command: str, records: Sequence[dict], table: Callable[[dict], Table]) -> str:
    """The command, and the table of each record."""
    if not records:
        return unmeasured(command)
    parts = [f"`{command}`"]
    for record in records:
        head, rows, note = table(record)
        parts += [markdown(head, rows), f"{note} {where(record)}."]
    return "\n\n".join(parts)


def _cheap_widths(record: dict) -> Table:
    rows = [
        [
            row["expert"],
            f"{row['parameters']:,}",
            f"{row['us_per_atom']:.2f}",
            f"{row['scores']['cheap']['forces_meV_per_A']:.0f}",
            f"{row['scores']['mismatch']['partial_forces_meV_per_A']:.0f}",
            f"{row['scores']['mismatch']['forces_meV_per_A']:.0f}",
            f"{row['scores']['mismatch']['stress_GPa']:.2f}",
            f"{row['training_s']:.0f}",
        ]
        for row in record["rows"]
    ]
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
        f"{record['steps']:,} steps beside the expensive expert of `{record['checkpoint']}`, which keeps its "
        f"parameters; errors and differences on validation frames of `{record['data']}`. A step has "
        f"{record['atoms']:,} atoms, all on the cheap expert, float32."
    )
    return head, rows, note


def _cheap_expert(record: dict) -> Table:
    parts = [part for part in ("validation", "test") if part in record["rows"][0]]
    rows = [
        [
            row["expert"],
            f"{row['steps']:,} of {row['step_ms']:.1f} ms",
            *(
                f"{row[part]['energy_meV_per_atom']:.1f}; {row[part]['forces_meV_per_A']:.0f}"
                for part in parts
            ),
        ]
        for row in record["rows"]
    ]
    note = (
        f"{record['name']}, {record['seconds']:.0f} s of processor time for each; errors of the energy in "
        "meV/atom and of forces in meV/Å."
    )
    return ["cheap expert", "steps", *parts], rows, note


def _step(record: dict) -> Table:
    rows = []
    for found in record["steps"]:
        us = {name: 1e6 * s / found["atoms"] for name, s in found["seconds"].items()}
        parts = [
            us["list check"],
            us["rows"],
            us["energy"] - us["rows"],
            us["forces"] - us["energy"],
            us["step"] - us["forces"] - us["list check"],
            us["step"],
        ]
        rows.append([f"{found['expert']}, {found['atoms']:,} atoms", *(f"{part:.2f}" for part in parts)])
    head = [
        "µs per atom",
        "list check",
        "neighbours' positions, nearest images",
        "sums and network",
        "forces: their derivatives, scatter",
        "integrator and rest",
        "whole step",
    ]
    note = (
        "Differences of nested programs, each timed whole; what two of them share may be fused, so the rest "
        "may be below zero."
    )
    return head, rows, note


def _skin(record: dict) -> Table:
    cases = dict.fromkeys((row["share"], row["temperature_K"]) for row in record["rows"])
    choices = dict.fromkeys((row["skin"], row["capacity_multiplier"]) for row in record["rows"])
    found = {
        (row["share"], row["temperature_K"], row["skin"], row["capacity_multiplier"]): row
        for row in record["rows"]
    }
    rows = []
    for skin, multiplier in sorted(choices):
        some = [found[*case, skin, multiplier] for case in cases]
        rows.append(
            [
                f"{skin:g}; {multiplier:g}",
                f"{some[0]['slots'][0]}",
                *(f"{row['us_per_atom']:.2f} ({row['steps_per_rebuild']:.0f})" for row in some),
            ]
        )
    head = ["skin, Å; capacity", "slots", *(f"f = {share:g}, {kelvin:.0f} K" for share, kelvin in cases)]
    note = (
        "µs per atom and step, rebuilds included; in brackets the steps between two of them. "
        f"`{record['checkpoint']}`, {record['atoms']:,} Pt atoms, float32."
    )
    return head, rows, note
