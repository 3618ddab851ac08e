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
    rows = [_row(material, list(of_seed.values())) for material, of_seed in groups.items()]
    last = list(list(groups.values())[-1].values())[-1]
    frames = ", ".join(
        f"{material} {len(of_seed)} of {next(iter(of_seed.values()))['frames']} frames"
        for material, of_seed in groups.items()
    )
    note = (
        "Root mean square errors on the test frames, energies in meV/atom and forces in meV/Å; MTP: the "
        "potentials of Zuo et al., J. Phys. Chem. A 124, 731 (2020), as evaluated anew. "
        "Ghost force: the longest in the perfect crystal, meV/Å, at lattice constants within 2 %. a0 and "
        "C_ij: the largest differences between the experts. Near a boundary: root mean square difference of "
        "the forces of mixture and expensive expert within 5 Å of a plane, meV/Å, and expansion: difference "
        "of the linear thermal expansions of the two experts from zero temperature, both at half the melting "
        "temperature. Several seeds: means, with each in brackets. "
        f"Trainings, and frames of each: {frames}; {last['settings']['steps']:,} steps. {where(last)}."
    )
    return "\n\n".join([f"`{COMMAND}`", markdown(list(HEAD), rows), note])


def _row(material: str, records: list[dict]) -> list[str]:
    """The cells of one material from the records of its seeds."""

    def error(who: str, key: str) -> str:
        return mean_of(records, lambda r: r["errors"]["all"][who][key])

    def difference(key: str) -> str:
        return mean_of(records, lambda r: abs(r["crystal"]["differences"][key]))

    published = records[-1]["published_MTP"]
    return [
        material,
        error("expensive", "energy_meV_per_atom"),
        error("expensive", "forces_meV_per_A"),
        "–" if published is None else f"{published[1]:g}; {published[0]:g}",
        error("cheap", "energy_meV_per_atom"),
        error("cheap", "forces_meV_per_A"),
        mean_of(records, lambda r: r["ghost_force_meV_per_A"]),
        difference("lattice_constant"),
        difference("elastic"),
        mean_of(records, lambda r: r["hot"]["boundary_rms_meV_per_A"]),
        mean_of(records, lambda r: abs(r["hot"]["expansion_difference_percent"])),
        mean_of(records, lambda r: r["training_s"] / 60),
    ]
