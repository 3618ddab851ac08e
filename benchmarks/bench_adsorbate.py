"""An atom on a bcc (001) surface: adsorption energies and diffusion, beside the expensive expert alone.

    python benchmarks/bench_adsorbate.py --checkpoint PAIR [--metal W --adsorbate Be] [--folder RUNS]

PAIR is the name or path of a checkpoint that has a crystal of the metal; its cheap expert may know the metal
alone. The bottom layers of the slab are fixed. In the mixture the expensive expert owns a sphere around
each adsorbed atom, of the cheap expert's cutoff, and shares a blend around it.

Adsorption: E(slab + atom) - E(slab) - E(atom), on hollow, bridge and top; the atom moves only perpendicular
to the surface. In a mixture the clean slab keeps the gates of the slab with the atom. E(atom) is that of the
expensive expert in a crystal of the checkpoint. All cheap: where that expert knows the species.

Diffusion: for each of `--runs`, Langevin dynamics of the expensive expert thermalises the slab. Then the
mixture and the expensive expert run from there at constant energy. The diffusion constant is the slope of the
mean square displacement in the plane over 4; errors are standard errors over the runs. `--folder` keeps the
runs; those that are there are not repeated.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import adsorbate_diffusion
import defect_systems as systems
import harness
import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bcc100
from ase.constraints import FixAtoms, FixCartesian
from vacancy_jump import relax

import moe_md as mm
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.regions.static import FixedGates

# ASE's name of each site, and a first height of the atom in units of the lattice constant.
SITES = {"hollow": ("hollow", 0.35), "bridge": ("bridge", 0.5), "top": ("ontop", 0.7)}
VACUUM = 7.0  # Å, on each side of the slab


def clean_slab(crystal: systems.Crystal, metal: str, size: Sequence[int], fixed_layers: int) -> Atoms:
    """A slab of `size` columns, rows and layers, periodic; its lowest layers are fixed.

    Raises:
        ValueError: the crystal is not bcc.
    """
    lengths = crystal.cell.cell.lengths()
    if len(crystal.cell) != 2 or np.ptp(lengths) > 1e-3:
        raise ValueError(f"metal must be bcc, got {len(crystal.cell)} atoms in a cell of {lengths} Å.")
    slab = bcc100(metal, size, a=float(lengths.mean()), vacuum=VACUUM)
    slab.pbc = True
    slab.set_constraint(FixAtoms(mask=slab.get_tags() > size[2] - fixed_layers))
    return slab


def with_adsorbate(slab: Atoms, symbol: str, site: str, a: float, offsets: Sequence = ((0, 0),)) -> Atoms:
    """The slab with an atom above a site, for each of some offsets in cells of the surface."""
    name, height = SITES[site]
    atoms = slab.copy()
    for offset in offsets:
        add_adsorbate(atoms, symbol, height * a, name, offset=tuple(offset))
    atoms.pbc = True
    return atoms


def region_around(model: mm.Checkpoint, slab: Atoms, atoms: Atoms, arguments) -> mm.regions.Region:
    """Spheres around the adsorbed atoms."""
    core = model.experts[1].cutoff if arguments.core is None else arguments.core
    return mm.regions.around(np.arange(len(slab), len(atoms)), core, arguments.blend)


def atom_energy(model: mm.Checkpoint, metal_eV: float, arguments) -> tuple[float, str]:
    """Energy of an adsorbate atom in a crystal, eV, under the expensive expert, and the crystal's formula.

    The crystal is that of the largest share of the adsorbate; metal atoms in it count `metal_eV` each.
    Without such a crystal it is the energy of the atom alone.
    """
    symbol, metal = arguments.adsorbate, arguments.metal
    known = [r for r in model.references if r.is_crystal and symbol in r.atoms.symbols]
    known = [r for r in known if set(r.atoms.symbols) <= {symbol, metal}]
    if not known:
        alone = Atoms(symbol)
        alone.calc = MixtureCalculator(model, 0)
        return alone.get_potential_energy(), "atom"
    best = max(known, key=lambda r: r.atoms.symbols.count(symbol) / len(r.atoms))
    count = best.atoms.symbols.count(symbol)
    total = len(best.atoms) * systems.energy_per_atom(model, 0, best.atoms)
    return (total - (len(best.atoms) - count) * metal_eV) / count, best.formula


def adsorption(model: mm.Checkpoint, crystal: systems.Crystal, slab: Atoms, arguments) -> dict:
    """Adsorption energies of the sites under each potential."""
    a = float(crystal.cell.cell.lengths()[0])
    atom_eV, reference = atom_energy(model, crystal.energies[0], arguments)
    rows = []
    for site in SITES:
        atoms = with_adsorbate(slab, arguments.adsorbate, site, a)
        lateral = FixCartesian(len(slab), mask=(True, True, False))
        atoms.set_constraint([*slab.constraints, lateral])
        potentials = {"expensive": 0, "mixture": region_around(model, slab, atoms, arguments)}
        if arguments.adsorbate in model.experts[1].allowed_species:
            potentials["cheap"] = 1
        for name, region in potentials.items():
            converged = relax(atoms, MixtureCalculator(model, region), arguments.fmax, arguments.steps)
            gate = systems.gates(model, [atoms], region)[0]
            clean = slab.copy()
            if not isinstance(region, int):
                metal = gate[: len(slab)]
                region = FixedGates(np.stack([metal, 1.0 - metal], axis=1))
            converged &= relax(clean, MixtureCalculator(model, region), arguments.fmax, arguments.steps)
            energy = atoms.get_potential_energy() - clean.get_potential_energy() - atom_eV
            top = atoms.positions[: len(slab)][slab.get_tags() == 1, 2].mean()
            rows.append(
                {
                    "site": site,
                    "potential": name,
                    "energy_eV": float(energy),
                    "height_A": float(atoms.positions[-1, 2] - top),
                    "share": float(np.mean(gate > 0)),
                    "converged": bool(converged),
                }
            )
            print(rows[-1], flush=True)
    return {"sites": rows, "atom_reference": reference, "atom_eV": atom_eV}


def measure(model: mm.Checkpoint, arguments) -> dict:
    """The record, a line of `results/adsorbate.jsonl`."""
    crystal = systems.crystal_of(model, arguments.metal)
    a = float(crystal.cell.cell.lengths()[0])
    slab = clean_slab(crystal, arguments.metal, arguments.size, arguments.fixed_layers)
    found = adsorption(model, crystal, slab, arguments)
    columns, rows, _ = arguments.size
    offsets = [
        (n * columns // arguments.adsorbed, n * rows // arguments.adsorbed) for n in range(arguments.adsorbed)
    ]
    atoms = with_adsorbate(slab, arguments.adsorbate, "hollow", a, offsets)
    region = region_around(model, slab, atoms, arguments)
    relax(atoms, MixtureCalculator(model, 0), 5 * arguments.fmax, arguments.steps)
    diffusion = adsorbate_diffusion.measure(model, atoms, slab, region, a, arguments)
    timed = systems.timed_steps(model, atoms, {"mixture": region}, arguments.repeats)
    print(systems.describe_steps(timed), flush=True)
    return {
        "benchmark": "adsorbate",
        **harness.environment(),
        "smoke": arguments.smoke,
        "dtype": "float32",
        "checkpoint": systems.name_of(arguments.checkpoint),
        "experts": [e.config for e in model.experts[:2]],
        "metal": arguments.metal,
        "adsorbate": arguments.adsorbate,
        "size": list(arguments.size),
        "fixed_layers": arguments.fixed_layers,
        "adsorbed": arguments.adsorbed,
        "atoms": len(atoms),
        "lattice_constant_A": a,
        "core": float(region.r_core),
        "blend": float(region.r_blend),
        **found,
        **diffusion,
        "speed": timed,
    }


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--checkpoint", default="", help="name or path")
    add("--metal", default="W")
    add("--adsorbate", default="Be")
    add("--size", type=int, nargs=3, default=(5, 5, 6), help="columns, rows and layers")
    add("--fixed-layers", type=int, default=2)
    add("--adsorbed", type=int, default=1, help="atoms on the surface in the dynamics")
    add("--core", type=float, help="Å; default the cheap expert's cutoff")
    add("--blend", type=float, default=1.5, help="Å")
    add("--fmax", type=float, default=0.01, help="eV/Å, of relaxations")
    add("--steps", type=int, default=500, help="of each relaxation, at most")
    add("--temperature-K", type=float, default=800.0)
    add("--runs", type=int, default=6, help="independent runs of each potential")
    add("--ps", type=float, default=10.0, help="of each run")
    add("--thermalize-ps", type=float, default=1.0)
    add("--fit-ps", type=float, nargs=2, default=(0.5, 2.5), help="times between which the slope is fitted")
    add("--repeats", type=int, default=15, help="timed steps")
    add("--folder", type=Path, help="for the runs, which are kept")
    add("--results", default=harness.RESULTS, help="folder of the JSON lines")
    add("--smoke", action="store_true", help="two Lennard-Jones experts, few steps")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parser().parse_args(arguments)
    if parsed.smoke:
        short = {"size": (4, 4, 3), "fixed_layers": 1, "fmax": 1.0, "steps": 2, "runs": 2, "ps": 0.2}
        short |= {"thermalize_ps": 0.02, "fit_ps": (0.02, 0.1), "repeats": 1, "blend": 0.9}
        vars(parsed).update(short, checkpoint="smoke")
        model = systems.smoke_pair(("W", "Be"), "bcc", ("W",))
    else:
        model = mm.load(parsed.checkpoint)
    record = measure(model, parsed)
    for name, found in record["diffusion"].items():
        print(name, {k: v for k, v in found.items() if k != "msd_A2"}, flush=True)
    harness.append(parsed.results, "adsorbate", record)


if __name__ == "__main__":
    main()
