"""The table of materials: one recipe, errors on published test sets, agreement of the two experts."""

from pathlib import Path

import harness
from tables_format import markdown, mean_of, unmeasured, where

COMMAND = "python benchmarks/bench_materials.py --data DIR --test"
HEAD = (
    "crystal",
    "expensive: energy",
    "forces",
    "MTP: energy; forces",
    "cheap: energy",
    "forces",
    "ghost force",
    "a0, %",
    "C_ij, %",
    "near a boundary",
    "expansion, %",
    "training, min",
)


def materials(folder: Path) -> str:
    """Errors and agreement of pairs trained by one recipe, a row for each material."""
    groups: dict[str, dict[int, dict]] = {}
    for record in harness.read(folder, "materials"):
        if not record["smoke"] and record["split"] == "test":
            groups.setdefault(record["material"], {})[record["seed"]] = record
    if not groups:
        return unmeasured(COMMAND)
    sorted_groups = {
        material: [of_seed[seed] for seed in sorted(of_seed)] for material, of_seed in sorted(groups.items())
    }
    rows = [_row(material, records) for material, records in sorted_groups.items()]
    trained = "; ".join(
        f"{material}, {records[-1]['frames']} frames, cutoff {records[-1]['experts'][0]['cutoff']:g} Å,"
        f" {records[-1]['settings']['steps']:,} steps, {where(records[-1])}"
        for material, records in sorted_groups.items()
    )
    note = (
        "Root mean square errors on the test frames, energies in meV/atom and forces in meV/Å; MTP: the "
        "potentials of Zuo et al., J. Phys. Chem. A 124, 731 (2020), as evaluated anew. "
        "Ghost force: the longest in the perfect crystal, meV/Å, at lattice constants within 2 %. a0 and "
        "C_ij: the largest differences between the experts, over the seeds. Near a boundary: root mean "
        "square difference of the forces of mixture and expensive expert within 5 Å of a plane, meV/Å, and "
        "expansion: difference of the linear thermal expansions of the two experts (the largest over the "
        "seeds), both at half the melting temperature. Several seeds: means, with each in brackets. "
        f"Trained on all training frames: {trained}."
    )
    return "\n\n".join([f"`{COMMAND}`", markdown(list(HEAD), rows), note])


def _row(material: str, records: list[dict]) -> list[str]:
    """The cells of one material from the records of its seeds."""

    def error(who: str, key: str) -> str:
        return mean_of(records, lambda r: r["errors"]["all"][who][key])

    def largest(key: str) -> float:
        return max(abs(r["crystal"]["differences"][key]) for r in records)

    published = records[-1]["published_MTP"]
    return [
        material,
        error("expensive", "energy_meV_per_atom"),
        error("expensive", "forces_meV_per_A"),
        "–" if published is None else f"{published[1]:g}; {published[0]:g}",
        error("cheap", "energy_meV_per_atom"),
        error("cheap", "forces_meV_per_A"),
        mean_of(records, lambda r: r["ghost_force_meV_per_A"]),
        f"{largest('lattice_constant'):.3f}",
        f"{largest('elastic'):.1f}",
        mean_of(records, lambda r: r["hot"]["boundary_rms_meV_per_A"]),
        f"{max(abs(r['hot']['expansion_difference_percent']) for r in records):.3f}",
        mean_of(records, lambda r: r["training_s"] / 60),
    ]
