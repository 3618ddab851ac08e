"""Tables of the README, of the benchmarks' own page and of docs/, printed from the results.

    python benchmarks/tables.py            prints every table
    python benchmarks/tables.py --write    puts them into the pages

A table stands in a page between `<!-- table: name -->` and
`<!-- /table -->`, the command that makes its numbers first. The newest line per
device counts; smoke runs do not.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import harness

import moe_md as mm
from moe_md import checkpoint

PAGES = (
    harness.ROOT / "README.md",
    harness.ROOT / "benchmarks/README.md",
    harness.ROOT / "docs/gradients.md",
)
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def mixture(folder: Path) -> str:
    """Speed beside its bound, and what the speed costs in accuracy."""
    command = "python benchmarks/bench_mixture.py"
    parts = [f"`{command}`"]
    for record in newest(harness.read(folder, "mixture"), "atoms"):
        rows = [
            [
                row["name"] if not row["name"].startswith("mixture") else "mixture",
                f"{row['f']:.2f}",
                f"{1e3 * row['median_s']:,.0f} ({1e3 * row['quartiles_s'][0]:,.0f} to "
                f"{1e3 * row['quartiles_s'][1]:,.0f})",
                f"{row['speedup']:.1f}",
                f"{row['s_max']:.1f}",
                f"{row['fraction_of_bound']:.2f}",
                "–" if record["random_params"] else f"{row['force_difference_meV_per_A']:.0f}",
            ]
            for row in record["rows"]
        ]
        head = [
            "atoms on",
            "f",
            "ms per step (quartiles)",
            "speedup",
            "S_max",
            "of bound",
            "force change, meV/Å",
        ]
        parts += [markdown(head, rows), mixture_note(record)]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def mixture_note(record: dict) -> str:
    errors = record["force_error_meV_per_A"]
    known = ", ".join(f"{name} {error:.0f}" for name, error in errors.items() if error is not None)
    told = (
        f" Force errors on validation frames, meV/Å: {known}."
        if known and not record["random_params"]
        else ""
    )
    return (
        f"{record['atoms']:,} atoms, {record['dtype']}, {where(record)}; r = {record['r']:.1f}. "
        f"The force change is the root mean square difference from all-expensive, at equal positions. "
        f"A rebuild of the neighbour list takes {1e3 * record['rebuild_s']:.0f} ms more.{told}"
    )


def roofline(folder: Path) -> str:
    """Each expert beside what its products and its bytes allow."""
    command = "python benchmarks/bench_roofline.py"
    parts = [f"`{command}`"]
    for record in newest(harness.read(folder, "roofline")):
        kinds = ["embedding", "latents", "readout", "environment", "radial, harmonics, sums"]
        rows = [
            [
                f"{row['expert']}, {row['pass']}",
                f"{row['neighbours']:.0f} in {row['slots']}",
                f"{1e-6 * row['product_flops']:.2f} of {1e-6 * row['flops']:.2f}",
                f"{1e-3 * row['bytes']:,.0f}",
                f"{1e6 * row['product_s']:.1f}",
                f"{1e6 * row['memory_s']:.1f}",
                f"{1e6 * row['measured_s']:.1f}",
                f"{row['reached']:.2f}",
                ", ".join(f"{row['parts'].get(kind, 0):.0%}" for kind in kinds),
            ]
            for row in record["rows"]
        ]
        head = [
            "expert",
            "neighbours",
            "MFLOP, in products",
            "kB",
            "products alone, µs",
            "bytes alone, µs",
            "measured, µs",
            "reached",
            "where the time goes",
        ]
        note = (
            f"Per atom of bulk Pt, chunks of {record['rows'][0]['rows']} rows, float32. "
            f"A large product runs at {1e-9 * record['peak_flops']:.0f} GFLOP/s, "
            f"memory at {1e-9 * record['bandwidth']:.0f} GB/s. "
            f"Where the time goes: {', '.join(kinds)}. {where(record)}."
        )
        parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def respa(folder: Path) -> str:
    """Multiple time steps: energy against the outer step, and speed beside its bound."""
    command = "python benchmarks/bench_respa.py"
    records = harness.read(folder, "respa")
    parts = [f"`{command}`"]
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
            "inner_potential",
            "expensive forces every, fs",
            "drift, µeV/atom/ps",
            "fluctuation, meV",
            "C-O, Å",
        ]
        note = (
            f"{rows[0]['ps']:g} ps of {rows[0]['n_atoms']} atoms under `{record['checkpoint']}`, "
            "one CO and a ball about it on the expensive expert, float64, 1 fs. "
            f"The inner potential: l_max {record['inner_potential']['l_max']}, "
            f"{record['inner_potential']['num_channels']} channels. "
            f"{where(record)}."
        )
        parts += [
            markdown(
                head, [[row["inner_potential"], f"{row['outer_every']}", *_energy_of(row)] for row in rows]
            ),
            note,
        ]
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
            "of bound",
            "over all expensive",
        ]
        parts += [
            markdown(head, rows),
            f"{timed['atoms']:,} atoms under `{record['speed_checkpoint']}`, float32; "
            f"r = {timed['r']:.1f}. {where(record)}.",
        ]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def _energy_of(row: dict) -> list[str]:
    if row["failed"]:
        return ["–", "–", "failed"]
    return [
        f"{1e3 * row['drift_meV_per_atom_per_ps']:+.2f} ± {1e3 * row['drift_stderr']:.2f}",
        f"{row['fluctuation_meV']:.2f}",
        f"{row['bond'][0]:.2f} to {row['bond'][1]:.2f}",
    ]


def cotraining(folder: Path) -> str:
    """Ways of training a pair, side by side."""
    command = "python benchmarks/bench_cotraining.py"
    groups: dict[tuple, dict[tuple, dict]] = {}
    for record in harness.read(folder, "cotraining"):
        if not record["smoke"]:
            group = groups.setdefault((record["device"], record["data"], record["steps"]), {})
            group[record["way"], record["seed"]] = record
    parts = [f"`{command}`"]
    for group in groups.values():
        ways = list(dict.fromkeys(way for way, _ in group))
        rows = [
            [
                way,
                *(
                    mean_of([r for (w, _), r in group.items() if w == way], value)
                    for value in ABLATION.values()
                ),
            ]
            for way in ways
        ]
        record = list(group.values())[-1]
        seeds = sorted({seed for _, seed in group})
        of_seed = {seed: r for (_, seed), r in group.items()}

        def frames(part: str, of_seed: dict = of_seed, seeds: list = seeds) -> str:
            return " and ".join(f"{of_seed[seed][part]['frames']:,}" for seed in seeds)

        note = (
            f"{seed_note(len(seeds))}, {record['steps']:,} steps of `{record['data']}`, "
            f"{frames('train')} frames; "
            f"errors on {frames('validation')} others, meV/Å. Crystals: the largest difference of the "
            "experts in a0, and in C11, C12 and C44. Ghost force: "
            "the longest, over three seams and lattice constants "
            f"{', '.join(f'{s:g}' for s in record['strains'])} times {record['lattice_constant']:g} Å. "
            f"Drift of the mixture, 2 ps in float64. {where(record)}."
        )
        parts += [markdown(["trained", *ABLATION], rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def learning_curve(folder: Path) -> str:
    """Errors against the number of labelled frames."""
    command = "python benchmarks/bench_learning_curve.py [--start CHECKPOINT]"
    parts = [f"`{command}`"]
    groups: dict[tuple, dict[int, dict]] = {}
    for record in harness.read(folder, "learning_curve"):
        if not record["smoke"]:
            groups.setdefault(
                (record["device"], record["data"], record["start"] is None, record["steps"]), {}
            )[record["seed"]] = record
    for group in groups.values():
        records = list(group.values())
        record = records[-1]
        rows = []
        for n, point in enumerate(record["points"]):
            of_seeds = [r["points"][n]["scores"] for r in records]
            errors = [
                mean_of(of_seeds, lambda s, name=name: s[name]["forces_meV_per_A"])
                for name in ("expensive", "cheap", "mixed")
            ]
            rows.append(
                [
                    f"{point['frames']:,}",
                    *errors,
                    mean_of(of_seeds, lambda s: s["expensive"]["energy_meV_per_atom"]),
                ]
            )
        cheap = record["experts"][1]
        begun = (
            "random parameters"
            if record["start"] is None
            else f"a pair trained on {record['start']['data']:,} frames of the foundation model"
        )
        note = (
            f"From {begun}; force errors in meV/Å and energy error of the expensive expert in meV/atom, "
            f"against `{record['data']}`: "
            f"{record['validation']['frames']} held-out frames, {record['steps']:,} steps at most, "
            "best of the validations. "
            f"Cheap expert: l_max {cheap['l_max']}, {cheap['num_channels']} channels. "
            f"{seed_note(len(records))}. {where(record)}."
        )
        parts += [markdown(["frames", "expensive", "cheap", "mixed", "energy, expensive"], rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def mean_of(records: list[dict], value: Callable[[dict], float]) -> str:
    """Mean over seeds, and each where there are several."""
    values = [value(record) for record in records]
    digits = 1 if sum(values) < 100 * len(values) else 0
    digits = 2 if sum(values) < 1.0 * len(values) else digits
    each = f" ({', '.join(f'{v:.{digits}f}' for v in values)})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.{digits}f}{each}"


def seed_note(count: int) -> str:
    return "One seed" if count == 1 else f"Means over {count} seeds (each in brackets)"


def _largest_elastic_difference(record: dict) -> float:
    return max(abs(record["crystal_difference"][name]) for name in ("C11", "C12", "C44"))


ABLATION: dict[str, Callable[[dict], float]] = {
    "expensive": lambda r: r["scores"]["expensive"]["forces_meV_per_A"],
    "cheap": lambda r: r["scores"]["cheap"]["forces_meV_per_A"],
    "mixed": lambda r: r["scores"]["mixed"]["forces_meV_per_A"],
    "a0, %": lambda r: abs(r["crystal_difference"]["lattice_constant"]),
    "C_ij, %": _largest_elastic_difference,
    "ghost force, meV/Å": lambda r: r["ghost_force_meV_per_A"]["worst"],
    "stress jump, GPa": lambda r: r["stress_jump_GPa"],
    "drift, µeV/atom/ps": lambda r: 1e3 * abs(r["drift"]["meV_per_atom_per_ps"]),
}


def accuracy(folder: Path) -> str:
    """A pair beside its labels, and its experts beside each other."""
    command = "python benchmarks/bench_accuracy.py CHECKPOINT [--data ptco_fm]"
    parts = [f"`{command}`"]
    newest_of = {(r["checkpoint"], r["data"]): r for r in harness.read(folder, "accuracy") if not r["smoke"]}
    for r in newest_of.values():
        rows = [
            [
                part["name"],
                str(part["frames"]),
                *(
                    beside(part[who]["forces_meV_per_A"], part["wanted"].get(who))
                    for who in ("expensive", "cheap")
                ),
                *(
                    f"{shown(part[where]['mixed'])} ({shown(part[where]['expensive'])})"
                    if part[where]["mixed"]
                    else "–"
                    for where in ("inside", "outside")
                ),
                *(shown(part[who]["energy_meV_per_atom"], 1) for who in ("expensive", "cheap")),
            ]
            for part in r["parts"]
        ]
        head = [
            "frames held out",
            "",
            "expensive",
            "cheap",
            "mixture, its region",
            "mixture, elsewhere",
            "energy, expensive",
            "energy, cheap",
        ]
        parts += [markdown(head, rows), accuracy_note(r)]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def accuracy_note(r: dict) -> str:
    columns = [crystal for crystal in (*r["agreement"]["crystal"], r.get("crystal_of_labels")) if crystal]
    crystal = ", ".join(
        f"{name} {' | '.join(f'{column[key]:.{digits}f}' for column in columns)} {unit}"
        for name, key, digits, unit in (
            ("a0", "lattice_constant_A", 4, "Å"),
            ("B", "bulk_modulus_GPa", 0, "GPa"),
            ("C11", "C11_GPa", 0, "GPa"),
            ("C12", "C12_GPa", 0, "GPa"),
            ("C44", "C44_GPa", 0, "GPa"),
        )
    )
    whose = "expensive | cheap expert" + (" | the labels themselves" if len(columns) == 3 else "")
    differ = ", ".join(
        f"{name} {beside(r['agreement'][key], r['wanted'][key], 2)} {unit}"
        for key, (name, unit) in AGREEMENT.items()
    )
    return (
        f"`{r['checkpoint']}`, {r['steps']:,} steps on {r['train']['frames']:,} frames, "
        f"against the labels of `{r['data']}`: root mean square errors, "
        "forces in meV/Å, energies in meV/atom; after a stroke what was wanted. The mixture's region "
        "is the adsorbates and two layers; in brackets "
        f"the expensive expert on the same atoms. The crystal by {whose}: {crystal}. "
        f"The experts differ by: {differ}. {where(r)}."
    )


AGREEMENT = {
    "lattice_constant": ("a0", "%"),
    "bulk_modulus": ("B", "%"),
    "C_ij": ("C_ij at most", "%"),
    "phonons": ("phonons (rms)", "%"),
    "ghost_force": ("ghost force at most", "meV/Å"),
    "stress_jump": ("stress jump at most", "GPa"),
}


def shown(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def beside(value: float | None, wanted: float | None, digits: int = 0) -> str:
    """A figure, and what was wanted of it."""
    return shown(value, digits) + (f" / {wanted:g}" if wanted is not None and value is not None else "")


def ptco(folder: Path) -> str:
    """What the training of shipped checkpoints recorded."""
    del folder
    return "\n\n".join(
        recorded(name) for name in ("ptco", "ptco-small", "ptco-large") if name in checkpoint.models()
    ) or unmeasured("moe-md train")


def recorded(name: str) -> str:
    """Validation errors of the parameters that a checkpoint holds."""
    record = mm.load(name).record
    kept = record.get("best_step") or record["step"]
    last = next(h for h in record["history"] if h["step"] == kept)
    rows = [
        [what, *("–" if last[who][key] is None else f"{last[who][key]:.{digits}f}" for key, digits in KEYS)]
        for who, what in (
            ("expensive", "expensive expert, all frames"),
            ("cheap", "cheap expert, frames without C and O"),
            ("mixed", "mixture, frames with C and O"),
        )
    ]
    mismatch = last["mismatch"]
    train, validation = record["train"], record["validation"]
    note = (
        f"Root mean square errors on {validation['frames']} validation frames ({validation['groups']} "
        "groups apart from the "
        f"{train['frames']} training frames), after {kept:,} steps. Where both experts are at home "
        "they differ by "
        f"{mismatch['energy_meV']:.1f} meV per atom and {mismatch['partial_forces_meV_per_A']:.1f} "
        "meV/Å in partial forces."
    )
    return "\n\n".join(
        [markdown([f"`{name}`", "energy, meV/atom", "forces, meV/Å", "stress, GPa"], rows), note]
    )


def soak(folder: Path) -> str:
    """What long runs did: the newest of each kind."""
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
        went = (
            f" In the last {r['this_process_steps']:,} C went {r['co_farthest_A']:.1f} Å along the "
            f"surface, C-O was {r['co_bond_A'][0]:.2f} to {r['co_bond_A'][1]:.2f} Å long."
            if r["co_bond_A"]
            else ""
        )
        parts.append(
            f"{r['steps']:,} steps of {r['atoms']} atoms under `{r['checkpoint']}`, "
            "a CO with the expensive expert around it, "
            f"{r['dtype']}, {conserved}, {r['lists_grown']} lists outgrown.{went} "
            f"{1e3 * r['seconds_per_step']:.0f} ms per step. Over the last nine tenths of "
            f"{r['this_process_steps']:,} steps of one process memory went from {r['memory_MB'][0]:,.0f} "
            f"to {r['memory_MB'][1]:,.0f} MB, "
            f"and {r['compiled'][1] - r['compiled'][0]} programs were compiled. {where(r)}."
        )
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def ase(folder: Path) -> str:
    """What ASE users get."""
    command = "python benchmarks/bench_ase.py"
    parts = []
    for r in newest(harness.read(folder, "ase"), "checkpoint"):
        rows = [
            [
                case["region"],
                f"{case['atoms']:,}",
                *(
                    "{:.1f} ({:.1f} to {:.1f})".format(
                        *(1e3 * case["seconds"][who][k] for k in ("median", "lower", "upper"))
                    )
                    for who in ("mixture", "calculator")
                ),
                f"{100 * case['overhead']:+.0f} %",
            ]
            for case in r["overhead"]
        ]
        head = ["region", "atoms", "list, energy and forces, ms", "the calculator's forces, ms", "more"]
        bands, waves = r["band"], r["modes"]
        exact = waves["expensive"]["THz"]
        off = {
            who: max(abs(x / y - 1) for x, y in zip(waves[who]["THz"], exact)) for who in ("mixture", "cheap")
        }
        text = (
            f"`{r['checkpoint']}`. CO from the fcc site to on top, climbing band of {bands['images']} "
            f"images of {bands['mixture']['atoms']} atoms, the lowest "
            f"layer on the cheap expert: barrier {bands['mixture']['barrier_eV']:.3f} eV, "
            f"reaction {bands['mixture']['reaction_eV']:+.3f} eV, in {bands['mixture']['seconds']:.0f} s; "
            f"expensive expert alone: {bands['expensive']['barrier_eV']:.3f} eV, "
            f"{bands['expensive']['reaction_eV']:+.3f} eV, {bands['expensive']['seconds']:.0f} s. "
            f"ASE's phonons of a crystal whose layers change owner ({waves['mixture']['atoms']} atoms): "
            f"its modes at the centre of the cubic cell's zone, {exact[0]:.2f} to {exact[-1]:.2f} THz, "
            f"are within {off['mixture']:.1%} of the expensive expert's (cheap expert alone: "
            f"{off['cheap']:.1%}). {where(r)}."
        )
        parts.append(f"{markdown(head, rows)}\n\n{text}")
    return "\n\n".join([f"`{command}`", *parts]) if parts else unmeasured(command)


def halo(folder: Path) -> str:
    """What message passing costs at a seam."""
    command = "python benchmarks/bench_halo.py"
    parts = [f"`{command}`"]
    for r in newest(harness.read(folder, "halo")):
        parts.append(
            f"{r['atoms']:,} atoms, {r['f']:.1%} of them on jax-md's NequIP of {r['layers']} layers: "
            "its halo has "
            f"{r['halo'] / r['f']:.1f} rows per owned row. {r['speedup']:.1f} times faster than NequIP on "
            "all atoms, where "
            f"{r['s_max']:.1f} is the bound with the halo and {r['s_max_without_halo']:.1f} without; "
            f"r = {r['r']:.0f}, {r['dtype']}, {where(r)}."
        )
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def public_dft(folder: Path) -> str:
    """Errors on public frames, beside a peer's."""
    command = "python benchmarks/bench_public_dft.py --data frames.xyz.gz"
    parts = [f"`{command}`"]
    names = {
        "nothing": "none",
        "peer": "PyTorch Allegro",
        "expensive": "expensive expert",
        "mixture": "mixture",
    }
    for r in newest(harness.read(folder, "public_dft")):
        rows = [
            [
                name,
                f"{s['energy_meV_per_atom']:.1f}",
                f"{s['forces_meV_per_A']:.0f}",
                f"{s['forces_mae_meV_per_A']:.0f}",
                *("–" if v is None else f"{v:.0f}" for v in (*s["by_species"].values(), s["cheap_atoms"])),
            ]
            for key, name in names.items()
            if (s := r["scores"].get(key))
        ]
        species = list(r["scores"]["mixture"]["by_species"])
        head = [
            "",
            "energy, meV/atom",
            "forces, meV/Å",
            "mean absolute",
            *species,
            "atoms of the cheap expert",
        ]
        parts += [markdown(head, rows), public_dft_note(r)]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def public_dft_note(r: dict) -> str:
    ours, peer = r["budgets"]["ours"], r["budgets"].get("peer")
    beside = (
        f" {r['peer']}, of the expensive expert's architecture and trained alone on the same batches, "
        "got the same processor "
        f"time: {peer['steps']:,} steps, {peer['frames_seen']:,} frames."
        if peer
        else ""
    )
    return (
        f"Root mean square errors on {r['held_out']['frames']} held-out frames "
        f"({r['held_out']['groups']} trajectories apart from the "
        f"{r['train']['groups']} of {r['train']['frames']} training frames; {r['dropped']} with "
        f"forces above {r['max_force']:g} eV/Å dropped). "
        f"The mixture gives {r['cheap_share']:.0%} of atoms to the cheap expert. "
        f"Both experts were co-trained for {ours['steps']:,} steps, "
        f"{ours['frames_seen']:,} frames, in {ours['cpu_s'] / 60:.0f} minutes of one core.{beside} "
        "None: energies by composition, no forces. "
        f"Largest ghost force {r['ghost_force_meV_per_A']['worst']:.1f} meV/Å. {where(r)}."
    )


def moving(folder: Path) -> str:
    """What regions that move do to energy and momentum: the newest of each run."""
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
        for r in sorted(records, key=lambda r: list(RUNS).index(r["run"])):
            blend = r["blend"]
            _, least, most = blend["share"][0]
            rows.append(
                [
                    f"{RUNS[r['run']]}, {r['ps']:g} ps",
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
            "gate's force",
            "flux, µeV/ps/Å²",
            "way of a CO, Å",
        ]
        note = (
            f"{r['n_atoms']} atoms under `{r['checkpoint']}`, {r['molecules']} of them CO molecules, "
            f"a kick of {r['kick_eV']:g} eV for each every {r['kick_every_ps']:g} ps. "
            "Energy less the work of kicks and of "
            "atoms that change hands at once; fluctuation: standard deviation about the line of the "
            "drift. Momentum: the largest of the whole, "
            "amu Å / (Å sqrt(amu / eV)). The gate's force over all force on atoms of the blend, "
            "and the energy that passes "
            f"through the blend, are root mean squares. {where(r)}."
        )
        parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


RUNS = {
    "moving": "balls that follow each CO, float64, 1 fs",
    "half step": "the same, 0.5 fs",
    "no slope": "the same, 1 fs, without ∂w/∂R in the forces",
    "reassigned": "the same, atoms change hands at once",
    "one": "one CO",
    "none": "nothing moves",
    "float32": "balls that follow each CO, float32",
}


def regions(folder: Path) -> str:
    """What it costs to follow atoms."""
    command = "python benchmarks/bench_regions.py"
    parts = [f"`{command}`"]
    for r in newest(harness.read(folder, "regions")):
        rows = [
            [
                f"{row['atoms']:,}",
                f"{row['seeds']:,}",
                *(f"{row[f'{name}_ms'][0]:.2f}" for name in ("gate", "update", "rebuild", "touch")),
            ]
            for row in r["rows"]
        ]
        near = sum(row["near_a_seed"] for row in r["rows"]) / len(r["rows"])
        note = (
            f"Milliseconds, {r['dtype']}; {near:.0f} atoms near a seed (balls of {r['r_core']:g} Å, "
            f"{r['r_blend']:g} Å of blend, and the skin). Gate: with the gradient of its sum. "
            f"One pass: the sum of squares of all positions and its gradient. {where(r)}."
        )
        parts += [
            markdown(
                ["atoms", "seeds", "gate", "list, looked at", "list, rebuilt", "one pass over positions"],
                rows,
            ),
            note,
        ]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def gradient(folder: Path) -> str:
    """Gradients through trajectories beside the trajectories alone:
    the newest line of each system and length, by device.
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
        head = ["system", "steps", "forward, ms per step", *(f"{way}, times forward; MB" for way in ways)]
        notes = sorted({r["note"] for r in group.values() if r["note"]})
        commits = sorted({(r["commit"] or "unknown")[:9] for r in group.values()})
        note = (
            f"Gradients with respect to parameters, positions and momenta of the start, {last['dtype']}, "
            f"{last['timestep_fs']:g} fs, lists made anew every {last['update_every']} steps. "
            "Memory: what the compiled program sets aside; of the reversible one, with the positions "
            "kept where lists were made. Medians; a dash: not run, too large. "
            f"{' '.join(notes)} "
            f"{where(last)}{'' if len(commits) == 1 else f' (commits {chr(44).join(commits)})'}."
        )
        parts += [markdown(head, lines), " ".join(note.split())]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def gradient_cell(row: dict) -> str:
    """Time over that of the trajectory alone, and megabytes."""
    ratio = "–" if row["over_forward"] is None else f"{row['over_forward']:.1f}"
    megabytes = 1e-6 * row["bytes"]
    return f"{ratio}; {megabytes:,.0f}" if megabytes >= 10 else f"{ratio}; {megabytes:.1f}"


def lyapunov(folder: Path) -> str:
    """How soon neighbouring trajectories part: the newest run of each device."""
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
        head = ["system", "K", "λ, 1/ps", "1/λ", "e^ in the whole run", "10³ after", "10⁶ after"]
        note = (
            f"One trajectory each, {r['dtype']}, Pt + CO under `{r['model']}`; λ from the later seven "
            "tenths, ± the standard error of five consecutive blocks, which are not independent. "
            f"Not resolved: below three such errors. {where(r)}."
        )
        parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def peers(folder: Path) -> str:
    """Energy and forces beside other programs: the newest run of each device."""
    command = "python benchmarks/bench_peers.py"
    parts = [f"`{command}`"]
    for r in newest(harness.read(folder, "peers")):
        sizes = sorted({row["atoms"] for row in r["rows"]})
        found = {(row["name"], row["atoms"]): row for row in r["rows"]}
        names = list(dict.fromkeys(row["name"] for row in r["rows"]))
        # By cost per atom, at the largest size that a program was run at.
        names.sort(key=lambda name: -[found[name, n]["us_per_atom"] for n in sizes if (name, n) in found][-1])
        rows = [
            [
                name,
                *(peer_time(found[name, n]) if (name, n) in found else "–" for n in sizes),
                " / ".join(
                    ratio(found[name, n]["over_our_allegro"]) if (name, n) in found else "–" for n in sizes
                ),
            ]
            for name in names
        ]
        head = ["µs per atom", *(f"{n:,} atoms" for n in sizes), "over our Allegro's"]
        parts += [markdown(head, rows), peers_note(r)]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def peer_time(row: dict) -> str:
    """Microseconds per atom, and quartiles."""
    median, low, high = (1e6 * t / row["atoms"] for t in (row["median_s"], *row["quartiles_s"]))
    digits = 0 if median >= 100 else 1
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def peers_note(r: dict) -> str:
    a, others = r["allegro"], r["others"]
    differ = [row["force_difference"] for row in r["rows"] if "force_difference" in row]
    same = (
        f", equal weights in all (forces differ by {max(differ):.0e} of the longest at most)"
        if differ
        else ""
    )
    versions = {package: v for row in r["rows"] for package, v in row["versions"].items() if package != "jax"}
    left_out = (
        f" Left out: {'; '.join(f'{name} ({why})' for name, why in r['left_out'].items())}."
        if r["left_out"]
        else ""
    )
    return (
        f"Energy and forces: medians and quartiles. Rattled Pt crystals, {r['dtype']}, "
        f"{r['threads']} threads, neighbour lists {r['neighbour_lists']}. "
        f"Allegro: l_max {a['l_max']}, {a['num_layers']} layers, {a['num_scalar_features']} scalar "
        f"and {a['num_tensor_features']} tensor features{same}. "
        f"NequIP: {others['irreps']}. MACE: {others['mace']['num_channels']} channels, "
        f"correlation {others['mace']['correlation']}. "
        f"Cutoff {others['cutoff']:g} Å. EAM and EMT are classical and in float64.{peers_ratios(r['rows'])} "
        f"{', '.join(f'{package} {v}' for package, v in sorted(versions.items()))}.{left_out} {where(r)}."
    )


def peers_ratios(rows: list[dict]) -> str:
    """How many times the atoms per second of others, at the largest size that both were run at."""
    cost = {}
    for row in sorted(rows, key=lambda row: row["atoms"]):
        cost.setdefault(row["name"], {})[row["atoms"]] = row["us_per_atom"]

    def times(ours: str, other: str) -> float:
        size = max(set(cost[ours]) & set(cost[other]))
        return cost[other][size] / cost[ours][size]

    mixture = next(name for name in cost if name.startswith("mixture"))
    allegro = "Allegro, moe_md"
    compiled = [name for name in cost if name.startswith("Allegro, PyTorch") and not name.endswith("eager")]
    wanted = {
        allegro: ["Allegro, PyTorch eager", *sorted(compiled, key=lambda name: times(allegro, name))[:1]],
        mixture: ["Allegro, PyTorch eager", "NequIP, mlip"],
    }
    told = [
        f"{ours}: "
        + ", ".join(f"{times(ours, other):.0f} times that of {other}" for other in others if other in cost)
        for ours, others in wanted.items()
        if any(other in cost for other in others)
    ]
    return f" Atoms per second, at the largest size that both were run at: {'; '.join(told)}." if told else ""


def scale(folder: Path) -> str:
    """Cost per atom and memory of crystals of several sizes."""
    command = "python benchmarks/bench_scale.py"
    parts = [f"`{command}`"]
    for r in newest(harness.read(folder, "scale")):
        rows = [
            [
                row["name"],
                f"{row['atoms']:,}",
                "{:.2f} ({:.2f} to {:.2f})".format(
                    *(1e6 * t / row["atoms"] for t in (row["step_s"], *row["quartiles_s"]))
                ),
                f"{row['us_per_atom'] / r['rows'][0]['us_per_atom']:.2f}",
                f"{row['rebuilds']} in {row['steps']}",
                f"{1e6 * row['rebuild_s'] / row['atoms']:.1f}",
                f"{row['rebuild_share']:.1%}",
                "–" if row["bytes_per_atom"] is None else f"{row['bytes_per_atom']:,.0f}",
            ]
            for row in r["rows"]
        ]
        head = [
            "",
            "atoms",
            "µs per atom and step",
            "over the smallest",
            "rebuilds in steps",
            "a rebuild, µs per atom",
            "its share",
            "bytes per atom",
        ]
        note = (
            f"f = {r['f']:g}, {r['dtype']}, {r['temperature_K']:.0f} K. Steps include the rebuilds they "
            f"meet. Share: at the {r['long_rebuilds']} rebuilds in {r['long_steps']} steps "
            "of a longer run of the smallest crystal. Bytes: all that the compiled chunk of steps "
            f"holds. {where(r)}."
        )
        parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def training(folder: Path) -> str:
    """Frames per second of training."""
    command = "python benchmarks/bench_training.py"
    parts = [f"`{command}`"]
    for r in newest(harness.read(folder, "training")):
        rows = [
            [
                row["name"],
                "{:.1f} ({:.1f} to {:.1f})".format(
                    *(1 / t for t in (row["s_per_frame"], *row["quartiles_s"][::-1]))
                ),
                f"{row['over_ours']:.2f}",
            ]
            for row in r["rows"]
        ]
        left_out = (
            f" Left out: {'; '.join(f'{name} ({why})' for name, why in r['left_out'].items())}."
            if r["left_out"]
            else ""
        )
        e = r["experts"][0]
        note = (
            f"{r['frames']} frames of `{r['data']}` with {r['atoms']:,} atoms, batches of at most "
            f"{r['max_atoms']} atoms, {r['dtype']}; gradient of the energies' and forces' errors and one "
            "step of Adam. "
            f"Allegro: l_max {e['l_max']}, {e['num_layers']} layers, {e['num_scalar_features']} scalar "
            f"and {e['num_tensor_features']} tensor features; PyTorch's is {r['peer']}. "
            f"Co-training trains both experts, on metal environments too.{left_out} {where(r)}."
        )
        parts += [markdown(["", "frames a second", "time over our Allegro's"], rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


KEYS = (("energy_meV_per_atom", 1), ("forces_meV_per_A", 0), ("stress_GPa", 2))
TABLES: dict[str, Callable[[Path], str]] = {
    "mixture": mixture,
    "peers": peers,
    "scale": scale,
    "training": training,
    "moving": moving,
    "respa": respa,
    "roofline": roofline,
    "gradient": gradient,
    "lyapunov": lyapunov,
    "regions": regions,
    "cotraining": cotraining,
    "learning_curve": learning_curve,
    "accuracy": accuracy,
    "ptco": ptco,
    "public_dft": public_dft,
    "soak": soak,
    "halo": halo,
    "ase": ase,
}


def fill(text: str, folder: Path = harness.RESULTS) -> str:
    """The text with every marked table printed anew.

    Raises:
        ValueError: a marker names no table.
    """

    def printed(match: re.Match) -> str:
        name = match[2]
        if name not in TABLES:
            raise ValueError(f"table must be one of {sorted(TABLES)}, got {name!r}.")
        return f"{match[1]}{TABLES[name](folder)}\n{match[3]}"

    return MARKED.sub(printed, text)


def newest(records: list[dict], *keys: str) -> list[dict]:
    """The last record of each device, and of each value of some keys; smoke runs left out."""
    return list({(r["device"], *(r[key] for key in keys)): r for r in records if not r["smoke"]}.values())


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def where(record: dict) -> str:
    device = (
        f"{record['cores']} cores of {record['cpu']}" if record["platform"] == "cpu" else record["device"]
    )
    commit = (record["commit"] or "unknown")[:9] + (" with changes" if record["dirty"] else "")
    return f"{device}, jax {record['jax']}, commit {commit}, {record['date'][:10]}"


def unmeasured(command: str) -> str:
    return f"Not measured yet: `{command}`."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--write", action="store_true", help="rewrite the pages between their markers")
    arguments = parser.parse_args()
    if arguments.write:
        for page in PAGES:
            page.write_text(fill(page.read_text(), arguments.results))
        return
    print("\n\n".join(f"## {name}\n\n{table(arguments.results)}" for name, table in TABLES.items()))


if __name__ == "__main__":
    main()
