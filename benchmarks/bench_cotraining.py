"""Ablation of the agreement terms: agreement of two experts, and its cost in accuracy.

One pair is trained in seven ways on the same data, batches and number of steps.

    independent        no agreement
    distillation       the expensive expert is fitted to the data, the cheap one to its
                       energies of atoms, total forces and stress (after ML-MIX)
    total forces       joint: energies of atoms and total forces (arXiv:2604.26143)
    partial forces     joint: energies of atoms and partial forces
    stress             the same and stress: the defaults of moe_md
    one-sided          the same, but agreement changes the cheap expert only
                       (agreement_gradient_scale = 0)
    random assignment  the defaults, and forces of random assignments of rows

Measured for each: errors on validation frames, without the kinds of `--leave-out`, whose
few large errors would dominate; the differences of the two experts' crystals; the ghost
force of an ideal crystal divided along (100), along (111) and around a sphere, at
the lattice constant and 2 % to either side; the largest jump of stress; and the drift of
the mixture's energy. One line of results per way and seed. The seed also selects the
validation set.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import harness
import jax
from ase.build import bulk
from jax_md import space

import moe_md as mm
from moe_md import simulate
from moe_md.analysis.crystal_report import crystal_report
from moe_md.analysis.environments import near_other_species
from moe_md.analysis.expert_boundary import ghost_force_report, stress_jump
from moe_md.data import PACKAGED, frame_from_atoms, load_dataset, split_by_group, summary
from moe_md.data.structures import slab_with_adsorbate
from moe_md.reporters.trajectory import drift
from moe_md.settings import LossWeights, TrainSettings
from moe_md.training.evaluation import describe

SPECIES, METAL = harness.PTCO_SPECIES, "Pt"
STRAINS = (0.98, 1.0, 1.02)
ALONE = LossWeights(agree_energy=0.0, agree_partial_forces=0.0, agree_stress=0.0)
PARTIAL = LossWeights(agree_stress=0.0)
WAYS: dict[str, dict] = {
    "independent": {"weights": ALONE},
    "distillation": {
        "weights": replace(
            ALONE, agree_energy=30.0, agree_forces=1.0, agree_stress=300.0, cheap=0.0, mixed=0.0
        ),
        "agreement_gradient_scale": 0.0,
        "agreement_ramp": 0.0,
    },
    "total forces": {"weights": replace(ALONE, agree_energy=30.0, agree_forces=3.0)},
    "partial forces": {"weights": PARTIAL},
    "stress": {"weights": LossWeights()},
    "one-sided": {"weights": LossWeights(), "agreement_gradient_scale": 0.0},
    "random assignment": {"weights": LossWeights(agree_random_assignment=3.0)},
}
DYNAMICS = {
    "size": (6, 6, 5),
    "temperature_K": 500.0,
    "warm_steps": 300,
    "steps": 2000,
    "timestep_fs": 1.0,
    "limits": simulate.Limits(),
}
# Experts of two training steps pull atoms far from the crystal.
SMOKE = {
    "warm_steps": 25,
    "steps": 400,
    "timestep_fs": 0.01,
    "limits": simulate.Limits(max_temperature_K=1e5),
}


def energy_drift(
    model: mm.Checkpoint,
    lattice_constant: float,
    *,
    size,
    temperature_K,
    warm_steps,
    steps,
    timestep_fs,
    limits,
) -> dict:
    """Energy drift of CO on a slab in float64; the expensive expert owns CO and the atoms around it."""
    atoms = slab_with_adsorbate(METAL, lattice_constant, size)
    owner = near_other_species(model.experts[1].allowed_species, model.experts[1].cutoff + 0.5)(
        frame_from_atoms(atoms)
    )
    species = [SPECIES.index(s) for s in atoms.symbols]
    with jax.enable_x64(True):
        box = atoms.cell.lengths()
        displacement_fn, shift_fn = space.periodic(box)
        region = mm.regions.fixed(owner)
        mixture = mm.mixture_neighbor_list(displacement_fn, box, model.potentials, species, region)
        masses = atoms.get_masses()
        langevin = simulate.langevin(shift_fn, timestep_fs, temperature_K, friction_per_fs=0.01)
        start = simulate.start(
            langevin,
            atoms.positions,
            masses=masses,
            temperature_K=2 * temperature_K,
            key=jax.random.key(0),
        )
        warm = simulate.run(*mixture, langevin, start, n_steps=warm_steps, limits=limits).state
        nve = simulate.nve(shift_fn, timestep_fs)
        start = simulate.start(nve, warm.position, masses=masses, velocity=warm.velocity)
        log = simulate.run(*mixture, nve, start, n_steps=steps, chunk_steps=20, limits=limits).log
    found = drift(log.time_ps, log.total, len(atoms))
    return {"meV_per_atom_per_ps": found.slope, "stderr": found.standard_error}


def measure(arguments, way: str, seed: int) -> dict:
    """The record of one way and seed, a line of `results/cotraining.jsonl`."""
    dataset = load_dataset(
        PACKAGED[arguments.data]() if arguments.data in PACKAGED else arguments.data, SPECIES
    )
    train, validation = split_by_group(dataset, validation_fraction=arguments.validation_fraction, seed=seed)
    validation = validation._replace(
        frames=tuple(f for f in validation.frames if f.kind not in arguments.leave_out)
    )
    settings = TrainSettings(
        steps=arguments.steps,
        seed=seed,
        learning_rate=arguments.learning_rate,
        validate_every=arguments.steps,
        save_every=arguments.steps,
    )
    settings = replace(settings, **WAYS[way])
    model = mm.cotrain(
        harness.small_experts(tiny=arguments.smoke),
        train,
        settings,
        references=[bulk(METAL, a=arguments.lattice_constant)],
        validation=validation,
    )
    scores = model.record["history"][-1]
    print(f"{way}, seed {seed}: " + describe(scores), flush=True)
    crystal = model.references[0].atoms
    dynamics = {**DYNAMICS, **(SMOKE if arguments.smoke else {})}
    return {
        "benchmark": "cotraining",
        **harness.environment(),
        "smoke": arguments.smoke,
        "experts": [e.config for e in model.experts],
        "dtype": "float32",
        "data": arguments.data,
        "way": way,
        "seed": seed,
        "steps": arguments.steps,
        "weights": vars(settings.weights),
        "train": summary(train),
        "validation": summary(validation),
        "lattice_constant": arguments.lattice_constant,
        "strains": list(STRAINS),
        "training_s": model.record["seconds"],
        "scores": {name: scores[name] for name in ("expensive", "cheap", "mixed", "mismatch")},
        "crystal_difference": None
        if arguments.smoke
        else crystal_report(model, model.references[0])["differences"],
        "ghost_force_meV_per_A": ghost_force_report(model, crystal, [s - 1 for s in STRAINS]),
        "stress_jump_GPa": stress_jump(model, crystal, [s - 1 for s in STRAINS])["worst"],
        "drift": energy_drift(model, arguments.lattice_constant, **dynamics),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default="ptco_fm",
        help=f"extended XYZ file, or one of {', '.join(PACKAGED)}; default ptco_fm",
    )
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--validation-fraction", type=float, default=0.1)
    parser.add_argument(
        "--leave-out",
        nargs="*",
        default=["contact", "gas-co", "gas-pair"],
        help="kinds not validated on",
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--lattice-constant", type=float, default=3.98, help="Å")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="a tiny pair, a few steps, one way")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(steps=2, data="ptco_pbe", ways=["random assignment"], seeds=[0])
    for seed in arguments.seeds:
        for way in arguments.ways:
            record = measure(arguments, way, seed)
            ghost = record["ghost_force_meV_per_A"]
            print(
                f"  ghost force {ghost['worst']:.1f} meV/Å, stress jump {record['stress_jump_GPa']:.2f} GPa",
                flush=True,
            )
            harness.append(arguments.results, "cotraining", record)


if __name__ == "__main__":
    main()
