"""Tables of models: ways of training, learning curves, errors of the shipped pairs, public data."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import harness
from tables_format import markdown, mean_of, newest, seed_note, shown, unmeasured, where, with_target

import moe_md as mm
from moe_md import checkpoint
from moe_md.renamed import KEYS

SHIPPED = ("ptco", "ptco-small", "ptco-large")


def cotraining(folder: Path) -> str:
    """Ways of training one pair."""
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
                WAYS.get(way, way),
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
            f"force errors on {frames('validation')} others, meV/Å. Crystals: the largest difference between "
            "the experts in a0, and in C11, C12 and C44. Ghost force: "
            "the largest, over three expert boundaries and lattice constants "
            f"{', '.join(f'{s:g}' for s in record['strains'])} times {record['lattice_constant']:g} Å. "
            f"Drift of the mixture, 2 ps in float64. {where(record)}."
        )
        parts += [markdown(["trained", *ABLATION], rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


# Names in the records, and what the table says.
WAYS = {
    "independent": "independently",
    "total forces": "agreement of total forces",
    "partial forces": "agreement of partial forces",
    "stress": "partial forces and stress (default)",
    "one-sided": "one-sided (gradient to the cheap expert only)",
    "random assignment": "default and random assignment",
}


def _largest_elastic_difference(record: dict) -> float:
    """Percent, of the elastic constants of the two experts."""
    return max(abs(record["crystal_difference"][name]) for name in ("C11", "C12", "C44"))


# Columns of the comparison of trainings, and their values in a record.
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
        initial = (
            "random parameters"
            if record["start"] is None
            else f"a pair trained on {record['start']['data']:,} frames of the foundation model"
        )
        note = (
            f"From {initial}; force errors in meV/Å and energy error of the expensive expert in meV/atom, "
            f"against `{record['data']}`: "
            f"{record['validation']['frames']} held-out frames, {record['steps']:,} steps at most, "
            "parameters of the best validation. "
            f"Cheap expert: {_size_of(cheap)}. "
            f"{seed_note(len(records))}. {where(record)}."
        )
        parts += [markdown(["frames", "expensive", "cheap", "mixed", "energy, expensive"], rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def _size_of(config: dict) -> str:
    """Size of a cheap expert."""
    if "l_max" in config:
        return f"l_max {config['l_max']}, {config['num_channels']} channels"
    return f"{config['builder']}, num_radial {', '.join(map(str, config['num_radial']))}"


def accuracy(folder: Path) -> str:
    """Errors of a pair, and differences between its experts."""
    command = "python benchmarks/bench_accuracy.py CHECKPOINT [--data ptco_fm]"
    parts = [f"`{command}`"]
    newest_of = {(r["checkpoint"], r["data"]): r for r in harness.read(folder, "accuracy") if not r["smoke"]}
    for r in newest_of.values():
        rows = [
            [
                part["name"],
                str(part["frames"]),
                *(
                    with_target(part[who]["forces_meV_per_A"], part["wanted"].get(who))
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
            "mixture, inside its region",
            "mixture, outside",
            "energy, expensive",
            "energy, cheap",
        ]
        parts += [markdown(head, rows), accuracy_note(r)]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def accuracy_note(r: dict) -> str:
    """Conditions, the crystal of each expert and of the labels, and differences between the experts."""
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
        f"{name} {with_target(r['agreement'][key], r['wanted'][key], 2)} {unit}"
        for key, (name, unit) in AGREEMENT.items()
    )
    return (
        f"`{r['checkpoint']}`, {r['steps']:,} steps on {r['train']['frames']:,} frames, "
        f"against the labels of `{r['data']}`: root mean square errors, "
        "forces in meV/Å, energies in meV/atom; error / target where a target was set. The mixture's region "
        "is the adsorbates and two layers; in brackets "
        f"the error of the expensive expert on the same atoms. The crystal by {whose}: {crystal}. "
        f"Differences between the experts: {differ}. {where(r)}."
    )


AGREEMENT = {
    "lattice_constant": ("a0", "%"),
    "bulk_modulus": ("B", "%"),
    "C_ij": ("C_ij at most", "%"),
    "phonons": ("phonons (rms)", "%"),
    "ghost_force": ("ghost force at most", "meV/Å"),
    "stress_jump": ("stress jump at most", "GPa"),
}


def ptco(_: Path) -> str:
    """Validation errors recorded while the shipped checkpoints were trained."""
    return "\n\n".join(recorded(name) for name in SHIPPED if name in checkpoint.models()) or unmeasured(
        "moe-md train"
    )


def recorded(name: str) -> str:
    """Validation errors of the parameters that a checkpoint holds."""
    record = mm.load(name).record
    step = record.get("best_step") or record["step"]
    last = next(h for h in record["history"] if h["step"] == step)
    rows = [
        [what, *("–" if last[who][key] is None else f"{last[who][key]:.{digits}f}" for key, digits in ERRORS)]
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
        f"{train['frames']} training frames), after {step:,} steps. On environments in the domain of both, "
        "the experts differ by "
        f"{mismatch['energy_meV']:.1f} meV per atom and {mismatch['partial_forces_meV_per_A']:.1f} "
        "meV/Å in partial forces."
    )
    return "\n\n".join(
        [markdown([f"`{name}`", "energy, meV/atom", "forces, meV/Å", "stress, GPa"], rows), note]
    )


ERRORS = (("energy_meV_per_atom", 1), ("forces_meV_per_A", 0), ("stress_GPa", 2))


def public_dft(folder: Path) -> str:
    """Errors on public frames, and those of a peer."""
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
    """Frames, budgets and conditions of the comparison."""
    ours, peer = r["budgets"]["ours"], r["budgets"].get("peer")
    peer_budget = (
        f" {r['peer']}, of the architecture of the expensive expert and trained alone on the same batches, "
        "had the same processor "
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
        f"{ours['frames_seen']:,} frames, in {ours['cpu_s'] / 60:.0f} minutes of one core.{peer_budget} "
        "None: energies by composition, no forces. "
        f"Largest ghost force {r['ghost_force_meV_per_A']['worst']:.1f} meV/Å. {where(r)}."
    )


def pairs(folder: Path) -> str:
    """The shipped pairs: elements, labels, cutoff, force errors against PBE, ratio of costs."""
    newest_of = {
        r["checkpoint"]: r
        for r in harness.read(folder, "accuracy")
        if r["data"] == "ptco_pbe" and not r["smoke"]
    }
    rows = []
    for name in SHIPPED:
        expensive, cheap = mm.load(name).experts
        parts = {part["name"]: part for part in newest_of[name]["parts"]} if name in newest_of else {}
        rows.append(
            [
                f"`{name}`",
                ", ".join(expensive.species),
                "foundation model, then PBE",
                f"{max(expensive.cutoff, cheap.cutoff):g}",
                *(
                    shown(parts[kind]["expensive"]["forces_meV_per_A"]) if kind in parts else "–"
                    for kind in ("bulk", "CO/Pt(111)")
                ),
                shown(cost_ratio(folder, [expensive.config, cheap.config])),
            ]
        )
    head = [
        "pair",
        "elements",
        "labels",
        "cutoff, Å",
        "force error in bulk, meV/Å",
        "on CO/Pt(111), meV/Å",
        "cost ratio r",
    ]
    return markdown(head, rows)


def shipped(folder: Path) -> str:
    """The shipped pairs of crystals: elements, labels, cutoff, errors on test frames, licence."""
    del folder  # all is in the checkpoints
    about = tomllib.loads((harness.ROOT / "moe_md/checkpoints/about.toml").read_text(encoding="utf-8"))
    rows = []
    for name in checkpoint.models():
        model = mm.load(name)
        errors = model.record.get("held_out")
        if errors is None:
            continue
        cells = [
            f"{shown(errors[who]['energy_meV_per_atom'], 1)}; {shown(errors[who]['forces_meV_per_A'])}"
            for who in ("expensive", "cheap")
        ]
        rows.append(
            [
                f"`{name}`",
                ", ".join(model.experts[0].species),
                about[name]["labels"],
                f"{max(e.cutoff for e in model.experts):g}",
                *cells,
                f"{errors['frames']:,}",
                about[name]["licence"],
            ]
        )
    head = [
        "pair",
        "elements",
        "labels",
        "cutoff, Å",
        "expensive: energy; forces",
        "cheap",
        "frames",
        "licence",
    ]
    note = (
        "Root mean square errors on test frames, meV/atom and meV/Å, of the cheap expert in its domain. "
        "The licence is that of the frames of the training."
    )
    return f"{markdown(head, rows)}\n\n{note}"


def cost_ratio(folder: Path, configs: list[dict]) -> float | None:
    """Cost of an atom on the expensive expert over one on the cheap expert; None if not measured."""
    wanted = json.loads(json.dumps(configs))
    for record in reversed([r for r in harness.read(folder, "mixture") if not r["smoke"]]):
        found = [{KEYS.get(key, key): value for key, value in e.items()} for e in record["experts"]]
        if found == wanted:
            return record["r"]
    return None
