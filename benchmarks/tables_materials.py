"""The tables of materials: one recipe, errors beside published ones, and agreement of the two experts."""

from collections.abc import Callable
from pathlib import Path

import harness
import materials_data
from tables_format import markdown, mean_of, shown, unmeasured, where

COMMAND = "python benchmarks/bench_materials.py --data DIR --test"
POTENTIALS = ("SNAP", "qSNAP", "MTP")
ERRORS = (
    "material",
    "expensive: energy; forces",
    "cheap",
    "mixture",
    *POTENTIALS,
    "mismatch",
    "training, min",
)
KINDS = ("material", "kind", "frames", "expensive: energy; forces", "cheap", "mixture", "published")
CRYSTALS = (
    "crystal",
    "a0, Å: expensive, cheap; DFT",
    "C11, GPa",
    "C12",
    "C44",
    "difference of a0, %",
    "of C_ij, %",
    "ghost force",
    "near a boundary",
    "expansion, %",
)
DOMAINS = (
    "material",
    "atoms in the domain, %",
    "rank correlation: expensive, cheap",
    "distance up to 0.5",
    "0.5 to 1",
    "1 to 1.5",
    "above 1.5",
)
CONSTANTS = (("lattice_constant_A", 3), ("C11_GPa", 0), ("C12_GPa", 0), ("C44_GPa", 0))


def materials(folder: Path) -> str:
    """Errors, errors by kind, and crystals, of pairs trained by one recipe."""
    groups: dict[str, dict[int, dict]] = {}
    for record in harness.read(folder, "materials"):
        if not record["smoke"] and record["split"] == "test":
            groups.setdefault(record["material"], {})[record["seed"]] = record
    if not groups:
        return unmeasured(COMMAND)
    found = {name: [of_seed[seed] for seed in sorted(of_seed)] for name, of_seed in sorted(groups.items())}
    known = materials_data.published()
    return "\n\n".join(
        [
            f"`{COMMAND}`",
            markdown(list(ERRORS), [_errors(*group, known) for group in found.items()]),
            _note_of_errors(found, known),
            markdown(list(KINDS), [row for group in found.items() for row in _kinds(*group, known)]),
            "Errors by kind of test frame, in the same units.",
            markdown(list(CRYSTALS), [row for group in found.items() for row in _crystals(*group, known)]),
            "Lattice and elastic constants: means over the seeds, and those of DFT where they are known "
            "(sources in `benchmarks/materials/published.toml`); –: not known, or not measured. Differences "
            "of the experts: the largest over the seeds. Ghost force: the longest in the perfect crystal, "
            "meV/Å, at lattice constants within 2 %. Near a boundary: root mean square difference of the "
            "forces of mixture and expensive expert within 5 Å of a plane, meV/Å, and expansion: difference "
            "of the linear thermal expansions of the two experts (the largest over the seeds), both at half "
            "the melting temperature. In brackets: each seed.",
            *_domains(found),
        ]
    )


def _domains(found: dict[str, list[dict]]) -> list[str]:
    """How errors rise with the distance from the domain, in a table and a note."""
    rows = []
    for name, records in found.items():
        having = [r["familiarity"] for r in records if r.get("familiarity")]
        if having:
            rank = [
                _mean(having, lambda f, w=who: f["rank_correlation"][w]) for who in ("expensive", "cheap")
            ]
            of_bins = [
                ", ".join(
                    _mean(having, lambda f, k=k, w=who: f["bins"][k][w]) for who in ("expensive", "cheap")
                )
                for k in range(len(having[0]["bins"]))
            ]
            share = mean_of(having, lambda f: 100 * f["share_in_domain"])
            rows.append([name, share, ", ".join(rank), *of_bins])
    if not rows:
        return []
    return [
        markdown(list(DOMAINS), rows),
        "Distance of the atoms of the test frames from the environments of the training, 1 at the limit of "
        "the cheap expert's domain; its rank correlation with the length of the force error of each expert; "
        "and root mean square errors, expensive, cheap, of the forces of atoms by distance, meV/Å.",
    ]


def _note_of_errors(found: dict[str, list[dict]], known: dict[str, dict]) -> str:
    trained = "; ".join(
        f"{name}, {records[-1]['frames']} frames, cutoff {records[-1]['experts'][0]['cutoff']:g} Å,"
        f" {records[-1]['settings']['steps']:,} steps, {where(records[-1])}"
        for name, records in found.items()
    )
    split = [name for name, records in found.items() if not records[-1].get("test_file", True)]
    notes = [f"{name}: {known[name]['note']}." for name in found if "note" in known.get(name, {})]
    return " ".join(
        [
            "Root mean square errors on the test frames, energies in meV/atom; forces in meV/Å. The mixture "
            "is scored on frames in which both experts own atoms, and the cheap expert within its domain. "
            "SNAP, qSNAP, MTP: published potentials, as evaluated anew. Mismatch: root mean square "
            "difference of the partial forces of the experts, meV/Å. In brackets: each seed.",
            *notes,
            f"Trained on all training frames: {trained}.",
            *([f"Test frames of {', '.join(split)}: groups of frames held out."] if split else []),
        ]
    )


def _errors(name: str, records: list[dict], known: dict[str, dict]) -> list[str]:
    """The cells of one material."""
    return [
        name,
        *(_error(records, "all", who) for who in ("expensive", "cheap", "mixture")),
        *(_published(known.get(name, {}), potential, "all") for potential in POTENTIALS),
        _mean(records, lambda r: r["errors"]["all"]["mismatch"]["partial_forces_meV_per_A"]),
        mean_of(records, lambda r: r["training_s"] / 60),
    ]


def _kinds(name: str, records: list[dict], known: dict[str, dict]) -> list[list[str]]:
    """A row of cells for each kind of frame."""
    return [
        [
            name,
            kind,
            str(records[-1]["errors"][kind]["frames"]),
            *(_error(records, kind, who) for who in ("expensive", "cheap", "mixture")),
            _published_of_kind(known.get(name, {}), kind),
        ]
        for kind in records[-1]["errors"]
        if kind != "all"
    ]


def _crystals(name: str, records: list[dict], known: dict[str, dict]) -> list[list[str]]:
    """A row of cells for each crystal; what only the first has is a dash in the others."""
    last = records[-1]
    crystals = last.get("crystals") or {name: last["crystal"]}
    rows = []
    for number, formula in enumerate(crystals):
        of_seeds = [r.get("crystals", {}).get(formula, r["crystal"]) for r in records]
        dft = known.get(name, {}).get("DFT", {}).get(formula, {})
        largest = [
            max(abs(c["differences"][key]) for c in of_seeds) for key in ("lattice_constant", "elastic")
        ]
        rows.append(
            [
                formula if formula == name else f"{formula} ({name})",
                *(_constant(of_seeds, key, digits, dft) for key, digits in CONSTANTS),
                f"{largest[0]:.3f}",
                f"{largest[1]:.1f}",
                *(_agreement(records) if number == 0 else ["–"] * 3),
            ]
        )
    return rows


def _agreement(records: list[dict]) -> list[str]:
    """Ghost force, and what is compared in the hot crystal."""
    return [
        mean_of(records, lambda r: r["ghost_force_meV_per_A"]),
        mean_of(records, lambda r: r["hot"]["boundary_rms_meV_per_A"]),
        f"{max(abs(r['hot']['expansion_difference_percent']) for r in records):.3f}",
    ]


def _constant(crystals: list[dict], key: str, digits: int, dft: dict) -> str:
    """Means of one constant under both experts, and that of DFT."""
    if not all(key in expert for crystal in crystals for expert in crystal["experts"]):
        return "–"
    means = [
        sum(crystal["experts"][number][key] for crystal in crystals) / len(crystals) for number in (0, 1)
    ]
    return ", ".join(shown(mean, digits) for mean in means) + f"; {shown(dft.get(key), digits)}"


def _error(records: list[dict], kind: str, who: str) -> str:
    """Energy and forces; the seeds that have both."""
    cells = [
        _mean(records, lambda r, key=key: r["errors"].get(kind, {}).get(who, {}).get(key))
        for key in ("energy_meV_per_atom", "forces_meV_per_A")
    ]
    return "–" if set(cells) == {"–"} else "; ".join(cells)


def _mean(records: list[dict], value: Callable[[dict], float | None]) -> str:
    """`mean_of` over the records that have the value; a dash where none has."""
    having = [record for record in records if value(record) is not None]
    return mean_of(having, value) if having else "–"  # type: ignore[arg-type]


def _published(table: dict, potential: str, kind: str) -> str:
    """Published energy and forces; a dash for what is not known."""
    numbers = table.get("errors", {}).get(potential, {}).get(kind, {})
    if not numbers:
        return "–"
    return "; ".join("–" if key not in numbers else f"{numbers[key]:g}" for key in ("energy", "forces"))


def _published_of_kind(table: dict, kind: str) -> str:
    """The potentials with errors of a kind of frames, and these errors."""
    cells = [(potential, _published(table, potential, kind)) for potential in POTENTIALS]
    return ", ".join(f"{potential}: {cell}" for potential, cell in cells if cell != "–") or "–"
