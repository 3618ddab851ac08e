"""One recipe for several materials: errors beside published ones, and agreement of the two experts.

    python benchmarks/bench_materials.py --data DIR [--materials Si Mo Li] [--seeds 0] [--steps N]
        [--test] [--folder RUNS] [--settings FOLDER]
    python benchmarks/bench_materials.py --data DIR --write-frames OUT

Settings of a material are a file of `benchmarks/materials`, which `moe-md train --settings` reads too; keys
left out are those that `moe-md init` writes for the training frames. `published.toml` beside them names the
frames in DIR, the corrections of their labels, and published numbers. A part of the training frames is held
out for errors; with `--test` the pair is trained on all training frames, and errors are those of the test
frames. A material without a test file has the part held out in both cases.

In the mixture the expensive expert owns the species outside the cheap one's domain and all atoms near
them. In other frames a plane through the middle divides the atoms between the experts.

For the crystal of lowest energy in the training frames: its properties under both experts, the ghost force at
expert boundaries within 2 % of the lattice constant, and, at half the melting temperature, forces of the
mixture against the expensive expert near a planar boundary, and the difference of thermal expansions.
Properties of further crystals of one element, in an alloy, are computed too.
A training that was stopped continues from its folder. `--write-frames` writes the corrected frames, for
`moe-md train --settings benchmarks/materials/NAME.toml --data OUT/NAME-train.xyz.gz --validation-fraction 0`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import harness
import materials_data
import numpy as np
from ase import Atoms
from ase import units as ase_units
from ase.build import make_supercell
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from materials_familiarity import familiarity

import moe_md as mm
from moe_md import units
from moe_md.analysis import errors
from moe_md.analysis.crystal_report import crystal_report
from moe_md.analysis.environments import Rule, boundary_distance, near_other_species
from moe_md.analysis.expert_boundary import ghost_force_report
from moe_md.data import Dataset, Frame, frame_from_atoms, frame_to_atoms
from moe_md.data.dataset import dataset_from_frames
from moe_md.data.planes import conventional_axes
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.neighbors.rows import image_pairs
from moe_md.settings import ValidateSettings
from moe_md.training.evaluation import evaluate_by_kind

STRAINS = (-0.02, -0.01, 0.0, 0.01, 0.02)  # of the lattice constant, for the ghost force
NEAR = 5.0  # Å, distance from the boundary of the atoms whose forces are compared
TIMESTEP_FS, FRICTION = 1.0, 0.02  # fs, 1/fs
SAME_HEIGHT = 1e-4  # of the longest vector of a cell


def trained(
    material: materials_data.Material, train: Dataset, arguments, seed: int, folder: Path | None
) -> mm.Checkpoint:
    """The pair that `moe-md train` makes of these frames and the settings of the material."""
    experts, settings, environments = materials_data.training(
        material, train, seed=seed, steps=arguments.steps
    )
    if arguments.smoke:
        experts = tuple(
            mm.experts.build({**e.config, **change}) for e, change in zip(experts, harness.TINY, strict=True)
        )
        environments = replace(environments, domain_rows=150)
    return mm.cotrain(
        experts,
        train,
        settings,
        environments=environments,
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


def mixture_rule(model: mm.Checkpoint) -> Rule:
    """The region of the mixture: near species outside the cheap expert's domain, else a half of the frame."""
    cheap = model.experts[1]
    near = near_other_species(cheap.allowed_species, cheap.cutoff + ValidateSettings.region_margin)

    def rule(frame: Frame) -> np.ndarray:
        owner = near(frame)
        return upper_half(frame) if owner.all() else owner

    return rule


def upper_half(frame: Frame) -> np.ndarray:
    """The owners on both sides of a plane through the median height along the longest vector of the cell."""
    longest = int(np.argmax(np.linalg.norm(frame.cell, axis=1)))
    height = (frame.positions @ np.linalg.inv(frame.cell))[:, longest] % 1.0
    return (height <= np.median(height) + SAME_HEIGHT).astype(int)


def errors_by_kind(model: mm.Checkpoint, frames: Dataset) -> dict:
    """Root mean square errors of experts and mixture, of all frames and of those of each kind."""
    scores = evaluate_by_kind(model.experts, model.params, frames)
    report = errors.report(
        errors.compare(model, frames, mixture_rule(model)),
        lambda frame: np.full(len(frame.symbols), "unknown"),
    )
    found = {}
    for kind in ("all", *sorted(set(scores) - {"all"})):
        mixed = report["all"] if kind == "all" else report["kinds"][kind]
        energies = mixed["mixed"]["energy_meV_per_atom"]
        found[kind] = {
            **{key: scores[kind][key] for key in ("frames", "expensive", "cheap", "mismatch")},
            # On frames in which both experts own atoms, beside the expensive expert on the same frames.
            "mixture": {
                "frames": 0 if energies is None else energies["count"],
                **root_mean_squares(mixed["mixed"]),
                "expensive": root_mean_squares(mixed["expensive_where_mixed"]),
            },
        }
    return found


def root_mean_squares(scores: dict) -> dict:
    """The root mean squares of `errors.report`; None where no frame is scored."""
    return {key: None if score is None else score["rmse"] for key, score in scores.items()}


def crystals_of(model: mm.Checkpoint, arguments) -> dict[str, dict]:
    """`crystal_report` of the first crystal, and of all others of one element, without its long lists."""
    first, *others = model.references
    chosen = [first, *(r for r in others if r.is_crystal and len(set(r.atoms.symbols)) == 1)]
    found = {}
    for reference in chosen[:1] if arguments.smoke else chosen:
        report = crystal_report(model, reference)
        found[reference.formula] = {
            "differences": report["differences"],
            "experts": [
                {key: value for key, value in e.items() if key not in ("phonons", "equation_of_state")}
                for e in report["experts"]
            ],
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


def measure(name: str, seed: int, arguments) -> dict:
    """The record of one material and seed, a line of `results/materials.jsonl`."""
    material = materials_data.material(name, arguments.settings)
    train, held_out = materials_data.frames(material, arguments.data, test=arguments.test)
    folder = None if arguments.folder is None else arguments.folder / f"{name}-{seed}"
    model = trained(material, train, arguments, seed, folder)
    scores = errors_by_kind(model, held_out)
    distances = familiarity(model, held_out)
    if arguments.smoke:  # experts of a few steps have no crystal
        model = stand_in(model)
    print(f"{name}, seed {seed}: {scores['all']}", flush=True)
    crystals = crystals_of(model, arguments)
    crystal = next(iter(crystals.values()))
    relaxed = model.references[0].atoms.copy()
    scale = crystal["experts"][0]["volume_A3_per_atom"] * len(relaxed) / relaxed.get_volume()
    relaxed.set_cell(relaxed.cell.array * scale ** (1 / 3), scale_atoms=True)
    temperature_K = material.published["melting_K"] / 2
    return {
        "benchmark": "materials",
        **harness.environment(),
        "smoke": arguments.smoke,
        "dtype": "float32",
        "material": name,
        "seed": seed,
        "frames": len(train.frames),
        "atoms": sum(len(frame.symbols) for frame in train.frames),
        "split": "test" if arguments.test else "validation",
        "test_file": arguments.test and "test" in material.published,
        "experts": [e.config for e in model.experts],
        "settings": model.settings,
        "training_s": model.record["seconds"],
        "errors": scores,
        "familiarity": distances,
        "crystal": crystal,
        "crystals": crystals,
        "ghost_force_meV_per_A": ghost_force_report(model, relaxed, STRAINS)["worst"],
        "hot": hot_crystal(model, crystal, temperature_K, arguments, seed),
    }


def write_frames(name: str, arguments) -> None:
    """Write the corrected frames of a material, those to train on and those held out."""
    material = materials_data.material(name, arguments.settings)
    arguments.write_frames.mkdir(parents=True, exist_ok=True)
    parts = materials_data.frames(material, arguments.data, test=arguments.test)
    for part, dataset in zip(("train", "test" if arguments.test else "validation"), parts, strict=True):
        path = arguments.write_frames / f"{name}-{part}.xyz.gz"
        write(path, [frame_to_atoms(frame) for frame in dataset.frames], format="extxyz")
        print(f"{path}: {len(dataset.frames)} frames")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="folder of the frames")
    made.add_argument("--settings", type=Path, default=materials_data.FOLDER, help="folder of settings")
    made.add_argument("--materials", nargs="+", help="names of settings files; default all")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--steps", type=int, help="of a training; default those of the settings")
    made.add_argument("--test", action="store_true", help="errors of the test frames")
    made.add_argument("--folder", type=Path, help="of the trainings, which are resumed from it")
    made.add_argument("--write-frames", type=Path, metavar="OUT", help="only write the corrected frames")
    made.add_argument("--md-steps", type=int, default=4000, help="of the hot crystal, each of TIMESTEP_FS")
    made.add_argument("--md-every", type=int, default=50, help="steps between its configurations")
    made.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    made.add_argument("--smoke", action="store_true", help="tiny experts, few steps")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parser().parse_args(arguments)
    if parsed.smoke:
        vars(parsed).update(steps=4, md_steps=16, md_every=4)
    for name in parsed.materials or materials_data.published(parsed.settings):
        if parsed.write_frames is not None:
            write_frames(name, parsed)
            continue
        for seed in parsed.seeds:
            record = measure(name, seed, parsed)
            hot = record["hot"]
            print(
                f"{name}, seed {seed}: ghost force"
                f" {record['ghost_force_meV_per_A']:.1f} meV/Å, {record['crystal']['differences']}, {hot}",
                flush=True,
            )
            harness.append(parsed.results, "materials", record)


if __name__ == "__main__":
    main()
