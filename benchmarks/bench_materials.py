"""One recipe for several materials: errors on published test sets, and agreement of the two experts.

    python benchmarks/bench_materials.py --data DIR [--materials Si Mo Li] [--seeds 0] [--steps N]
        [--test] [--folder RUNS]

DIR holds `NAME-train.xyz.gz` and `NAME-test.xyz.gz`, as those of Zuo et al., J. Phys. Chem. A 124, 731
(2020). Experts and environments are those that `moe-md init` writes for the training frames. Errors are those
of the validation frames, a split of the training frames; with `--test` the pair is trained on all training
frames, and errors are those of the test frames.

For the crystal of lowest energy in the training frames: its properties under both experts, the ghost force at
expert boundaries within 2 % of the lattice constant, and, at half the melting temperature, forces of the
mixture against the expensive expert near a planar boundary, and the difference of thermal expansions.
A training that was stopped continues from its folder.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import harness
import numpy as np
from ase import Atoms
from ase import units as ase_units
from ase.build import make_supercell
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

import moe_md as mm
from moe_md import units
from moe_md.analysis import errors
from moe_md.analysis.crystal_report import crystal_report
from moe_md.analysis.environments import boundary_distance
from moe_md.analysis.expert_boundary import ghost_force_report
from moe_md.commands import expert_tables
from moe_md.data import Dataset, find_references, frame_from_atoms, load_dataset, split_by_group
from moe_md.data.batching import prepare
from moe_md.data.dataset import dataset_from_frames
from moe_md.data.planes import conventional_axes
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.neighbors.rows import image_pairs
from moe_md.training.evaluation import evaluate

VALIDATION = 0.15  # share of the training frames
STRAINS = (-0.02, -0.01, 0.0, 0.01, 0.02)  # of the lattice constant, for the ghost force
NEAR = 5.0  # Å, distance from the boundary of the atoms whose forces are compared
MELTING_K = {"Si": 1687.0, "Mo": 2896.0, "Li": 454.0}  # CRC Handbook of Chemistry and Physics
TIMESTEP_FS, FRICTION = 1.0, 0.02  # fs, 1/fs
MTP = {
    "Si": (88.0, 3.03),
    "Mo": (151.0, 3.98),
    "Li": (13.2, 0.66),
}  # meV/Å, meV/atom, test errors of Zuo et al.


def trained(train: Dataset, arguments, seed: int, folder: Path | None) -> mm.Checkpoint:
    """The pair that `moe-md init` and `moe-md train` make of these frames."""
    references = find_references(train)
    experts = expert_tables.build_experts({}, train, references, None)
    if arguments.smoke:
        experts = tuple(
            mm.experts.build({**e.config, **change}) for e, change in zip(experts, harness.TINY, strict=True)
        )
    settings = expert_tables.default_training(train)
    settings = replace(settings, seed=seed, steps=arguments.steps or settings.steps)
    return mm.cotrain(
        experts,
        train,
        settings,
        references=references,
        folder=folder,
        progress=not arguments.smoke,
    )


def stand_in(model: mm.Checkpoint) -> mm.Checkpoint:
    """The checkpoint with two Lennard-Jones experts that have its crystal."""
    species, atoms = model.experts[0].species, model.references[0].atoms
    nearest = float(
        np.linalg.norm(image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)[2], axis=1).min()
    )
    experts = tuple(
        mm.experts.lennard_jones(species, 2.4 * nearest, epsilon=epsilon, sigma=nearest / 1.1)
        for epsilon in (0.6, 0.59)
    )
    return model._replace(experts=experts, params=tuple(e.init(None) for e in experts))


def errors_by_kind(model: mm.Checkpoint, frames: Dataset) -> dict:
    """Root mean square errors of both experts, of all frames and of those of each kind."""
    cutoff = max(e.cutoff for e in model.experts)
    found = {}
    for kind in ("all", *sorted({frame.kind for frame in frames.frames})):
        part = [frame for frame in frames.frames if kind in ("all", frame.kind)]
        scores = evaluate(
            model.experts, model.params, prepare(dataset_from_frames(part, model.experts[0].species), cutoff)
        )
        found[kind] = {
            "frames": len(part),
            **{key: scores[key] for key in ("expensive", "cheap", "mismatch")},
        }
    return found


def supercell(crystal: Atoms, width: float) -> Atoms:
    """Conventional cells, `width` (Å) wide along each axis and twice as high."""
    cell = make_supercell(crystal, conventional_axes(crystal))
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell.cell.array), axis=0)
    repeat = np.ceil(np.array([width, width, 2 * width]) / heights).astype(int)
    return cell * tuple(repeat.tolist())


def hot_frames(
    model: mm.Checkpoint, expert: int, atoms: Atoms, temperature_K: float, steps: int, every: int, seed: int
) -> tuple[list[Atoms], np.ndarray]:
    """Configurations of Langevin dynamics under one expert at constant volume, and their pressures in GPa."""
    atoms = atoms.copy()
    atoms.calc = MixtureCalculator(model, expert, dtype="float32")
    rng = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature_K, rng=rng)
    dynamics = Langevin(
        atoms,
        TIMESTEP_FS * ase_units.fs,
        temperature_K=temperature_K,
        friction=FRICTION / ase_units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(steps // 4)
    frames, pressures = [], []
    for _ in range(3 * steps // 4 // every):
        dynamics.run(every)
        frames.append(atoms.copy())
        kinetic = 2 * atoms.get_kinetic_energy() / 3 / atoms.get_volume()
        pressures.append((kinetic - np.trace(atoms.get_stress(voigt=False)) / 3) / units.GPa)
    return frames, np.array(pressures)


def hot_crystal(model: mm.Checkpoint, crystal: dict, temperature_K: float, arguments, seed: int) -> dict:
    """Forces near a planar boundary and thermal expansion in the crystal at a temperature."""
    reference = model.references[0].atoms
    volume = crystal["experts"][0]["volume_A3_per_atom"] * len(reference)
    relaxed = reference.copy()
    relaxed.set_cell(reference.cell.array * (volume / reference.get_volume()) ** (1 / 3), scale_atoms=True)
    width = 2 * max(e.cutoff for e in model.experts) + 0.5
    atoms = supercell(relaxed, width)
    runs = [
        hot_frames(model, expert, atoms, temperature_K, arguments.md_steps, arguments.md_every, seed)
        for expert in (0, 1)
    ]
    height = atoms.get_scaled_positions()[:, 2]
    owner = (height < 0.5 - 1e-6).astype(int)
    frames = [frame_from_atoms(each) for each in runs[0][0]]
    compared = errors.compare(
        model, dataset_from_frames(frames, model.experts[0].species), lambda frame: owner
    )
    difference = [np.linalg.norm(c.mixed.forces - c.expensive.forces, axis=1) for c in compared]
    near = np.abs(boundary_distance(frame_from_atoms(atoms), owner)) < NEAR
    rms = float(np.sqrt(np.mean([np.square(d[near]) / 3 for d in difference])))
    modulus = [expert["bulk_modulus_GPa"] for expert in crystal["experts"]]
    pressure = [mean_of_blocks(p) for _, p in runs]
    # A pressure P at the volume of both runs is a linear expansion of P / 3B.
    expansion = [100 * mean / (3 * B) for (mean, _), B in zip(pressure, modulus)]
    at_rest = crystal["differences"]["lattice_constant"]
    return {
        "temperature_K": temperature_K,
        "atoms": len(atoms),
        "boundary_rms_meV_per_A": 1e3 * rms,
        "expansion_percent": expansion,
        "expansion_stderr": [100 * error / (3 * B) for (_, error), B in zip(pressure, modulus)],
        "expansion_difference_percent": expansion[1] - expansion[0] - at_rest,
    }


def mean_of_blocks(values: np.ndarray, blocks: int = 4) -> tuple[float, float]:
    """Mean and standard error from means of blocks."""
    means = [part.mean() for part in np.array_split(values, min(blocks, len(values)))]
    return float(np.mean(means)), float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(
        means
    ) > 1 else 0.0


def measure(material: str, seed: int, arguments) -> dict:
    """The record of one material and seed, a line of `results/materials.jsonl`."""
    data = load_dataset(str(arguments.data / f"{material}-train.xyz.gz"))
    if arguments.test:
        train, held_out = data, load_dataset(str(arguments.data / f"{material}-test.xyz.gz"))
    else:
        train, held_out = split_by_group(data, validation_fraction=VALIDATION, seed=0)
    folder = None if arguments.folder is None else arguments.folder / f"{material}-{seed}"
    model = trained(train, arguments, seed, folder)
    scores = errors_by_kind(model, held_out)
    if arguments.smoke:  # experts of a few steps have no crystal
        model = stand_in(model)
    print(f"{material}, seed {seed}: {scores['all']}", flush=True)
    crystal = crystal_report(model, model.references[0])
    relaxed = model.references[0].atoms.copy()
    scale = crystal["experts"][0]["volume_A3_per_atom"] * len(relaxed) / relaxed.get_volume()
    relaxed.set_cell(relaxed.cell.array * scale ** (1 / 3), scale_atoms=True)
    temperature_K = MELTING_K.get(material, 600.0) / 2
    return {
        "benchmark": "materials",
        **harness.environment(),
        "smoke": arguments.smoke,
        "dtype": "float32",
        "material": material,
        "seed": seed,
        "frames": len(train.frames),
        "split": "test" if arguments.test else "validation",
        "published_MTP": MTP.get(material),
        "experts": [e.config for e in model.experts],
        "settings": model.settings,
        "training_s": model.record["seconds"],
        "errors": scores,
        "crystal": {
            "differences": crystal["differences"],
            "experts": [
                {key: value for key, value in e.items() if key not in ("phonons", "equation_of_state")}
                for e in crystal["experts"]
            ],
        },
        "ghost_force_meV_per_A": ghost_force_report(model, relaxed, STRAINS)["worst"],
        "hot": hot_crystal(model, crystal, temperature_K, arguments, seed),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the frames")
    parser.add_argument("--materials", nargs="+", default=list(MTP))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="of a training; default those of `moe-md init`")
    parser.add_argument("--test", action="store_true", help="errors of the test frames")
    parser.add_argument("--folder", type=Path, help="of the trainings, which are resumed from it")
    parser.add_argument("--md-steps", type=int, default=4000, help="of the hot crystal, each of TIMESTEP_FS")
    parser.add_argument("--md-every", type=int, default=50, help="steps between its configurations")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="tiny experts, few steps")
    parsed = parser.parse_args(arguments)
    if parsed.smoke:
        vars(parsed).update(steps=4, md_steps=16, md_every=4)
    for material in parsed.materials:
        for seed in parsed.seeds:
            record = measure(material, seed, parsed)
            hot = record["hot"]
            print(
                f"{material}, seed {seed}: ghost force"
                f" {record['ghost_force_meV_per_A']:.1f} meV/Å, {record['crystal']['differences']}, {hot}",
                flush=True,
            )
            harness.append(parsed.results, "materials", record)


if __name__ == "__main__":
    main()
