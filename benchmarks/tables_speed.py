"""Tables of speed and memory: the mixture, other programs, roofline, scale, lists, training, ASE."""

from pathlib import Path

import bench_mixture
import harness
from tables_format import markdown, newest, unmeasured, where


def mixture(folder: Path) -> str:
    """Time per step beside its bound, and the change of forces."""
    command = "python benchmarks/bench_mixture.py"
    parts = [f"`{command}`"]
    for record in newest(bench_mixture.with_checkpoint(folder), "checkpoint", "atoms"):
        rows = [
            [
                mixture_case(row["name"]),
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
            "atoms assigned to",
            "f",
            "ms per step (quartiles)",
            "speed-up",
            "S_max",
            "fraction of S_max",
            "force change, meV/Å",
        ]
        parts += [markdown(head, rows), mixture_note(record)]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def mixture_case(name: str) -> str:
    """What a row of the table is about, from the name in the record."""
    if name.startswith("mixture"):
        return "mixture, static region"
    moving, _, spheres = name.partition(", ")
    return name if moving != "moving" else f"mixture, {spheres.replace('ball', 'moving sphere')}"


def mixture_note(record: dict) -> str:
    """The conditions of a timing."""
    errors = record["force_error_meV_per_A"]
    known = ", ".join(f"{name} {error:.0f}" for name, error in errors.items() if error is not None)
    known_errors = (
        f" Force errors on validation frames, meV/Å: {known}."
        if known and not record["random_params"]
        else ""
    )
    return (
        f"`{record['checkpoint']}`, {record['atoms']:,} atoms, {record['dtype']}, {where(record)}; "
        f"r = {record['r']:.1f}. "
        f"The force change is the root mean square difference from all-expensive, at equal positions. "
        f"A rebuild of the neighbour list takes {1e3 * record['rebuild_s']:.0f} ms more.{known_errors}"
    )


def peers(folder: Path) -> str:
    """Energy and forces of several programs: the newest run of each device."""
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
        head = ["µs per atom", *(f"{n:,} atoms" for n in sizes), "relative to Allegro, moe_md"]
        parts += [markdown(head, rows), peers_note(r)]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def peer_time(row: dict) -> str:
    """Microseconds per atom, and quartiles."""
    median, low, high = (1e6 * t / row["atoms"] for t in (row["median_s"], *row["quartiles_s"]))
    digits = 0 if median >= 100 else 1
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratio(value: float) -> str:
    """A ratio with two significant digits, or as an integer from 10."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def peers_note(r: dict) -> str:
    """Models, packages and conditions of the comparison."""
    a, others = r["allegro"], r["others"]
    differ = [row["force_difference"] for row in r["rows"] if "force_difference" in row]
    same = (
        f", equal weights in all (forces differ by {max(differ):.0e} relative to the largest force at most)"
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
    """Atoms per second relative to other programs, at the largest size common to both."""
    cost = {}
    for row in sorted(rows, key=lambda row: row["atoms"]):
        cost.setdefault(row["name"], {})[row["atoms"]] = row["us_per_atom"]

    def times(ours: str, other: str) -> float:
        size = max(set(cost[ours]) & set(cost[other]))
        return cost[other][size] / cost[ours][size]

    mixture = next(name for name in cost if name.startswith("mixture"))
    allegro = "Allegro, moe_md"
    compiled = [name for name in cost if name.startswith("Allegro, PyTorch") and not name.endswith("eager")]
    pairs = {
        allegro: ["Allegro, PyTorch eager", *sorted(compiled, key=lambda name: times(allegro, name))[:1]],
        mixture: ["Allegro, PyTorch eager", "NequIP, mlip"],
    }
    parts = [
        f"{ours}: "
        + ", ".join(f"{times(ours, other):.0f} times that of {other}" for other in others if other in cost)
        for ours, others in pairs.items()
        if any(other in cost for other in others)
    ]
    return f" Atoms per second, at the largest common size: {'; '.join(parts)}." if parts else ""


def roofline(folder: Path) -> str:
    """Time of each expert beside the time of its matrix products and of its memory traffic."""
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
            "neighbours in slots",
            "MFLOP, in products",
            "kB",
            "products alone, µs",
            "bytes alone, µs",
            "measured, µs",
            "fraction reached",
            "shares of the time",
        ]
        sizes = dict.fromkeys(f"{row['rows']:,}" for row in record["rows"])
        note = (
            f"Per atom of bulk Pt, chunks of {' or '.join(sizes)} rows, float32. "
            f"A large product runs at {1e-9 * record['peak_flops']:.0f} GFLOP/s, "
            f"memory at {1e-9 * record['bandwidth']:.0f} GB/s. "
            f"Shares of the time: {', '.join(kinds)}. {where(record)}."
        )
        parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


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
            "relative to the smallest",
            "rebuilds in steps",
            "a rebuild, µs per atom",
            "share of rebuilds",
            "bytes per atom",
        ]
        note = (
            f"f = {r['f']:g}, {r['dtype']}, {r['temperature_K']:.0f} K. Steps include their rebuilds. "
            f" Share: at the {r['long_rebuilds']} rebuilds in {r['long_steps']} steps "
            "of a longer run of the smallest crystal. Bytes: memory of the compiled chunk of "
            f"steps. {where(r)}."
        )
        parts += [markdown(head, rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def regions(folder: Path) -> str:
    """Time of gates and neighbour lists of dynamic regions."""
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
            f"Milliseconds, {r['dtype']}; {near:.0f} atoms near a seed (spheres of {r['r_core']:g} Å, "
            f"a blend of {r['r_blend']:g} Å, and the skin). Gate: with the gradient of its sum. "
            f"One pass: the sum of squares of all positions and its gradient. {where(r)}."
        )
        parts += [
            markdown(
                ["atoms", "seeds", "gate", "list checked", "list rebuilt", "one pass over positions"],
                rows,
            ),
            note,
        ]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def halo(folder: Path) -> str:
    """Speed of a mixture whose expensive expert passes messages."""
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
        parts += [markdown(["", "frames per second", "time relative to Allegro, moe_md"], rows), note]
    return "\n\n".join(parts) if len(parts) > 1 else unmeasured(command)


def ase(folder: Path) -> str:
    """Time of the ASE calculator, a barrier and phonons."""
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
        head = [
            "region",
            "atoms",
            "list, energy and forces, ms",
            "forces of the calculator, ms",
            "difference",
        ]
        bands, modes = r["band"], r["modes"]
        exact = modes["expensive"]["THz"]
        error = {
            who: max(abs(x / y - 1) for x, y in zip(modes[who]["THz"], exact)) for who in ("mixture", "cheap")
        }
        text = (
            f"`{r['checkpoint']}`. CO from the fcc site to on top, climbing band of {bands['images']} "
            f"images of {bands['mixture']['atoms']} atoms, the lowest "
            f"layer on the cheap expert: barrier {bands['mixture']['barrier_eV']:.3f} eV, "
            f"reaction {bands['mixture']['reaction_eV']:+.3f} eV, in {bands['mixture']['seconds']:.0f} s; "
            f"expensive expert alone: {bands['expensive']['barrier_eV']:.3f} eV, "
            f"{bands['expensive']['reaction_eV']:+.3f} eV, {bands['expensive']['seconds']:.0f} s. "
            f"Phonons by ASE of a crystal whose layers alternate between the experts "
            f"({modes['mixture']['atoms']} atoms): "
            f"the modes at Γ of the cubic cell, {exact[0]:.2f} to {exact[-1]:.2f} THz, "
            f"are within {error['mixture']:.1%} of the expensive expert's (cheap expert alone: "
            f"{error['cheap']:.1%}). {where(r)}."
        )
        parts.append(f"{markdown(head, rows)}\n\n{text}")
    return "\n\n".join([f"`{command}`", *parts]) if parts else unmeasured(command)
