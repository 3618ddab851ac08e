"""Make the frames of both tiers of the Pt + CO data; `label.py` labels them.

    python sample.py pbe --out todo.xyz --clean 24 --bulk 24 --vacancy 12 --gas 6
    python sample.py fm --out fm.xyz [--model ptco]
    python sample.py fm-test --out fm-test.xyz [--model ptco]

Metal moves under ASE's EMT, metal with CO under a co-trained pair of moe_md
(its expensive expert on every atom); nothing is labelled by what moved it.
Frames of one trajectory share `origin`; `kind` says what a frame is. Frames
with atoms closer than `CLOSEST` times the sum of their covalent radii are left
out: a model that moves atoms badly must not fill the data with wreckage.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc100, fcc110, fcc111, fcc211, surface
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixedLine
from ase.data import covalent_radii
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS

LATTICE = 3.98  # Å, of PBE with the recipe of label.py; the foundation model has 3.977
CLOSEST = 0.68  # C-O at 1.0 Å has 0.70
BOND = 1.15  # Å, C-O
FACETS: dict[str, Callable] = {"111": fcc111, "100": fcc100, "110": fcc110, "211": fcc211}

# Cells of CO on (111): repeat and number of CO, from 1/16 to 2/3 of a monolayer.
COVERAGES = [
    ((4, 4, 3), 1),
    ((3, 3, 4), 1),
    ((2, 2, 4), 1),
    ((2, 3, 4), 2),
    ((3, 3, 3), 3),
    ((2, 2, 4), 2),
    ((2, 3, 4), 4),
    ((3, 3, 3), 6),
]


def sane(atoms: Atoms, closest: float = CLOSEST) -> bool:
    """No two atoms nearer than a share of the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    i, j, d = neighbor_list("ijd", atoms, 2 * closest * radii.max())
    return bool(np.all(np.isfinite(atoms.positions))) and bool(np.all(d > closest * (radii[i] + radii[j])))


def named(atoms: Atoms, kind: str, origin: str, step: int = 0) -> Atoms:
    """A frame without velocities, constraints and calculator, in digits that files need not grow for."""
    frame = Atoms(atoms.numbers, atoms.positions.round(4), cell=atoms.cell.array.round(6), pbc=atoms.pbc)
    frame.info = {"kind": kind, "origin": origin, "step": step}
    return frame


def dynamics(
    atoms: Atoms, calc, temperature_K: float, count: int, rng, *, timestep_fs: float, first: int, every: int
) -> Iterator[Atoms]:
    """Snapshots of Langevin dynamics, while they are sane."""
    atoms = atoms.copy()
    atoms.calc = calc
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature_K, rng=rng)
    md = Langevin(
        atoms, timestep_fs * units.fs, temperature_K=temperature_K, friction=0.02 / units.fs, rng=rng
    )
    md.run(first)
    for _ in range(count):
        md.run(every)
        if not sane(atoms):
            return
        yield atoms


def metal_dynamics(
    atoms: Atoms, temperature_K: float, count: int, rng, kind: str, origin: str
) -> list[Atoms]:
    """EMT: snapshots 100 fs apart after 200 fs."""
    moved = dynamics(atoms, EMT(), temperature_K, count, rng, timestep_fs=4.0, first=50, every=25)
    return [named(a, kind, origin, step) for step, a in enumerate(moved)]


def slab(facet: str, size, rng, *, fixed_bottom: bool = False) -> Atoms:
    """A slab of a facet, strained by up to 1 % in its plane."""
    atoms = FACETS[facet]("Pt", tuple(size), a=LATTICE * rng.uniform(0.99, 1.01), vacuum=8.0)
    return _as_slab(atoms, fixed_bottom)


def step_slab(indices, layers: int) -> Atoms:
    """A slab of any surface, cut from the crystal."""
    return _as_slab(surface(bulk("Pt", cubic=True, a=LATTICE), indices, layers, vacuum=8.0), False)


def _as_slab(atoms: Atoms, fixed_bottom: bool) -> Atoms:
    atoms.pbc = (True, True, False)
    if fixed_bottom:
        z = atoms.positions[:, 2]
        atoms.set_constraint(FixAtoms(mask=z < z.min() + 0.5))
    return atoms


def place_co(
    atoms: Atoms, rng, *, gap: tuple[float, float], max_tilt: float = 40.0, apart: float = 2.4
) -> bool:
    """One CO let down at a random place until C is a gap away from the nearest metal; False where none fits.

    `gap` in Å, the range of the distance; `max_tilt` in degrees off the normal;
    `apart` in Å, the least distance of C from the C and O that are there.
    """
    tilt, turn = np.deg2rad(rng.uniform(0, max_tilt)), rng.uniform(0, 2 * np.pi)
    axis = np.array([np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), np.cos(tilt)])
    bond, wanted = BOND + rng.normal() * 0.03, rng.uniform(*gap)
    for _ in range(50):
        carbon = rng.random(2) @ atoms.cell.array[:2]
        carbon[2] = _height(atoms, carbon, wanted)
        if not np.isfinite(carbon[2]):
            continue
        molecule = Atoms("CO", [carbon, carbon + bond * axis])
        trial = atoms + molecule
        others = [k for k, s in enumerate(atoms.symbols) if s in "CO"]
        free = not others or trial.get_distances(len(atoms), others, mic=True).min() > apart
        if free and sane(trial, 0.75):
            atoms.extend(molecule)
            return True
    return False


def _height(atoms: Atoms, place: np.ndarray, gap: float) -> float:
    """Height above `place` at which the nearest metal atom is `gap` away;
    minus infinity in a hole wider than that.
    """
    metal = atoms[[a.index for a in atoms if a.symbol == "Pt"]]
    from_place = np.concatenate(
        [
            metal.positions + i * atoms.cell.array[0] + j * atoms.cell.array[1] - place
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
    )
    aside = np.hypot(from_place[:, 0], from_place[:, 1])
    under = aside < gap
    return float(
        np.max(place[2] + from_place[under, 2] + np.sqrt(gap**2 - aside[under] ** 2), initial=-np.inf)
    )


def covered(facet_slab: Atoms, n_co: int, rng, **kwargs) -> Atoms | None:
    """A slab with several CO, None where they do not fit."""
    atoms = facet_slab.copy()
    placed = all(place_co(atoms, rng, gap=(1.85, 2.15), **kwargs) for _ in range(n_co))
    atoms.set_cell(atoms.cell.array + np.diag([0, 0, 3.0]))
    return atoms if placed else None


def covered_dynamics(
    atoms: Atoms | None, calc, temperature_K: float, count: int, rng, kind: str, origin: str
) -> list[Atoms]:
    """The start, and snapshots 75 fs apart after 100 fs; nothing of None, where CO did not fit."""
    if atoms is None:
        return []
    start = atoms.copy()
    start.positions += rng.normal(size=start.positions.shape) * 0.04
    moved = dynamics(atoms, calc, temperature_K, count, rng, timestep_fs=1.5, first=66, every=50)
    frames = [start, *(a.copy() for a in moved)]
    return [named(a, kind, origin, step) for step, a in enumerate(frames)]


def strained_cell(rng, *, volume: float, shear: float, rattle: float) -> Atoms:
    """Four atoms, strained by up to these and rattled."""
    cell = bulk("Pt", cubic=True, a=LATTICE)
    strain = rng.normal(size=(3, 3)) * rng.uniform(0.0, shear)
    scale = 1.0 + rng.uniform(-volume, volume)
    cell.set_cell(cell.cell.array @ (np.eye(3) + (strain + strain.T) / 2) * scale, scale_atoms=True)
    cell.positions += rng.normal(size=cell.positions.shape) * rng.uniform(0.0, rattle)
    return cell


# --- the foundation model's tier ---------------------------------------------------------------


def fm_bulk(rng, share: float) -> Iterator[list[Atoms]]:
    """Crystals: along the equation of state, strained, hot, with vacancies and interstitials."""
    for i in range(_some(60, share)):
        cell = strained_cell(rng, volume=0.08, shear=0.02 * (i % 2), rattle=0.0)[:1]
        cell.set_cell(np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) @ cell.cell.array)
        yield [named(cell, "bulk-eos", f"eos-{i}")]
    for i in range(_some(220, share)):
        yield [
            named(strained_cell(rng, volume=0.05, shear=0.04, rattle=0.25), "bulk-strained", f"strained-{i}")
        ]
    for i in range(_some(60, share)):
        cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(0.97, 1.03)) * 2
        temperature = (300, 500, 700, 900, 1200)[i % 5]
        yield metal_dynamics(cell, temperature, 4, rng, "bulk-hot", f"hot-{temperature}K-{i}")
    for i in range(_some(40, share)):
        cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(0.98, 1.02)) * 2
        kind, temperature = "bulk-vacancy", (300, 600, 900, 1200)[i % 4]
        if i % 4 == 3:
            kind, temperature = "bulk-interstitial", rng.choice([300, 600])
            cell.append("Pt")
            cell.positions[-1] = LATTICE * np.array([0.5, 0.5, 0.5]) + 0.1 * rng.normal(size=3)
        else:
            del cell[[int(k) for k in rng.choice(32, size=1 + (i % 8 == 5), replace=False)]]
        yield metal_dynamics(cell, temperature, 3, rng, kind, f"{kind}-{i}")


def fm_slabs(rng, share: float) -> Iterator[list[Atoms]]:
    """Clean and stepped surfaces to 1200 K, with adatoms."""
    for i in range(_some(80, share)):
        facet = ("111", "100", "111", "110", "211")[i % 5]
        size = [3 if facet == "211" else 2, int(rng.integers(2, 4)), int(rng.integers(3, 6))]
        temperature = (300, 600, 900, 1200)[i % 4]
        atoms = slab(facet, size, rng, fixed_bottom=bool(rng.random() < 0.3))
        yield metal_dynamics(atoms, temperature, 3, rng, f"slab-{facet}", f"slab-{facet}-{temperature}K-{i}")
    for i in range(_some(30, share)):
        facet, site = (("111", "fcc"), ("100", "hollow"), ("110", "hollow"), ("111", "hcp"))[i % 4]
        atoms = slab(facet, (3, 3, 3), rng)
        add_adsorbate(atoms, "Pt", {"111": 2.2, "100": 1.95, "110": 1.4}[facet], site)
        yield metal_dynamics(atoms, (300, 600, 900)[i % 3], 2, rng, f"slab-{facet}-adatom", f"adatom-{i}")


def fm_covered(rng, share: float, calc) -> Iterator[list[Atoms]]:
    """CO on every facet, at many coverages, moving."""
    for i in range(_some(112, share)):
        size, n_co = COVERAGES[i % len(COVERAGES)]
        temperature = (300, 450, 600, 900)[i // len(COVERAGES) % 4]
        atoms = covered(slab("111", size, rng), n_co, rng)
        yield covered_dynamics(atoms, calc, temperature, 4, rng, "co-111", f"co-111-{temperature}K-{i}")
    for i in range(_some(48, share)):
        facet = ("100", "110", "211")[i % 3]
        atoms = covered(slab(facet, (3, 2, 3 if facet == "211" else 4), rng), 1 + i // 3 % 3, rng)
        temperature = (300, 600)[i % 2]
        yield covered_dynamics(
            atoms, calc, temperature, 3, rng, f"co-{facet}", f"co-{facet}-{temperature}K-{i}"
        )


def fm_molecules(rng, share: float) -> Iterator[list[Atoms]]:
    """CO coming, leaving, alone and in pairs."""
    for i in range(_some(24, share)):
        clean = slab("111" if i % 3 else "100", (2, 2, 4), rng)
        clean.positions += rng.normal(size=clean.positions.shape) * 0.08
        place, axis = rng.random(2) @ clean.cell.array[:2], rng.normal(size=3)
        frames = []
        for step, gap in enumerate(np.sort(rng.uniform(1.7, 8.0, 6))):
            atoms = clean.copy()
            carbon = place.copy()
            carbon[2] = _height(atoms, carbon, gap) if gap < 3 else clean.positions[:, 2].max() + gap
            turned = axis + 2.0 * rng.normal(size=3) * min(1.0, gap / 8.0)
            atoms += Atoms("CO", [carbon, carbon + rng.normal(BOND, 0.04) * turned / np.linalg.norm(turned)])
            atoms.set_cell(atoms.cell.array + np.diag([0, 0, 8.0]))
            if np.isfinite(carbon[2]) and sane(atoms):
                frames.append(named(atoms, "co-approach", f"approach-{i}", step))
        yield frames
    for i, bond in enumerate(np.linspace(1.0, 1.6, _some(25, share))):
        yield [named(_in_a_room(Atoms("CO", [[0, 0, 0], [0, 0, bond]])), "gas-co", "gas-scan", i)]
    for i in range(_some(60, share)):
        pair = Atoms("CO", [[0, 0, 0], [0, 0, rng.normal(BOND, 0.04)]])
        axis, bond = rng.normal(size=3), rng.normal(BOND, 0.04)
        away = rng.normal(size=3)
        start = away / np.linalg.norm(away) * rng.uniform(1.8, 5.0)
        pair += Atoms("CO", [start, start + bond * axis / np.linalg.norm(axis)])
        if sane(pair, 0.9 * CLOSEST + 0.1):
            yield [named(_in_a_room(pair), "gas-pair", f"pair-{i}")]


def fm_contacts(rng, share: float) -> Iterator[list[Atoms]]:
    """Squeezed and rattled, so that dynamics never meets an untrained contact."""
    for i in range(_some(120, share)):
        if i % 3 == 0:
            atoms = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(0.88, 1.02)) * (2, 2, 1)
        else:
            atoms = covered(slab("111", (2, 2, 3), rng), 1 + i % 2, rng, apart=2.0)
        if atoms is None:
            continue
        for _ in range(20):
            moved = atoms.copy()
            size = np.where(np.array(atoms.symbols) == "Pt", 0.35, 0.15) * rng.uniform(0.3, 1.0)
            moved.positions += rng.normal(size=moved.positions.shape) * size[:, None]
            if sane(moved, 0.6):
                yield [named(moved, "contact", f"contact-{i}")]
                break


def test_families(rng, share: float, calc) -> Iterator[list[Atoms]]:
    """Kinds that training never sees: larger, hotter, another step, another coverage."""
    for i in range(_some(8, share)):
        atoms = covered(slab("111", (4, 4, 5), rng), 4, rng)
        yield covered_dynamics(atoms, calc, 500, 3, rng, "test-larger-cell", f"larger-{i}")[1:]
    for i in range(_some(8, share)):
        cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(1.0, 1.03)) * (3, 2, 2)
        yield metal_dynamics(cell, 1500, 3, rng, "test-hotter-bulk", f"hotter-bulk-{i}")
        atoms = covered(slab("111", (3, 3, 4), rng), 2, rng)
        yield covered_dynamics(atoms, calc, 1200, 3, rng, "test-hotter-co", f"hotter-co-{i}")[1:]
    for i in range(_some(8, share)):
        clean = step_slab(((3, 3, 2), (5, 3, 3), (3, 1, 1), (2, 2, 1))[i % 4], (2, 2, 3, 3)[i % 4])
        atoms = covered(clean, 1 + i % 2, rng)
        yield covered_dynamics(atoms, calc, 500, 3, rng, "test-unseen-step", f"step-{i}")[1:]
    for i in range(_some(8, share)):
        atoms = covered(slab("111", (3, 3, 4), rng), 4, rng)
        yield covered_dynamics(atoms, calc, 500, 3, rng, "test-unseen-coverage", f"coverage-{i}")[1:]


def _in_a_room(molecules: Atoms) -> Atoms:
    molecules.center(vacuum=5.0)
    molecules.pbc = False
    return molecules


def _some(count: int, share: float) -> int:
    return max(1, round(share * count))


def mover(name_or_path: str):
    """The expensive expert of a pair on every atom, as ASE's calculator."""
    from moe_md.interfaces.ase import MixtureCalculator

    return MixtureCalculator(name_or_path, region=0, dtype="float32")


def fm(arguments) -> None:
    rng = np.random.default_rng(arguments.seed)
    calc, share = mover(arguments.model), arguments.share
    families = (
        fm_bulk(rng, share),
        fm_slabs(rng, share),
        fm_molecules(rng, share),
        fm_contacts(rng, share),
        fm_covered(rng, share, calc),
    )
    _write(arguments.out, (trajectory for family in families for trajectory in family))


def fm_test(arguments) -> None:
    rng = np.random.default_rng([arguments.seed, 1])
    _write(arguments.out, test_families(rng, arguments.share, mover(arguments.model)))


# --- the tier of density functional theory -----------------------------------------------------


# Cells of CO on (111): repeat and number of CO.
SMALL_COVERAGES = [((2, 2, 3), 1), ((2, 3, 3), 1), ((2, 2, 4), 1), ((2, 3, 3), 2)]


def pbe(arguments) -> None:
    rng = np.random.default_rng(arguments.seed)
    _write(arguments.out, pbe_frames(rng, arguments))
    if arguments.covered:
        _write(arguments.out, small_covered(rng, arguments), append=True)
    if arguments.sites:
        _write(arguments.out, resting(rng, arguments), append=True)


def small_covered(rng, arguments) -> Iterator[list[Atoms]]:
    """One or two CO on slabs of three and four layers, moving: candidates for `choose.py`."""
    calc = mover(arguments.model)
    for i in range(arguments.covered):
        size, n_co = SMALL_COVERAGES[i % len(SMALL_COVERAGES)]
        temperature = (300, 600, 900)[i // len(SMALL_COVERAGES) % 3]
        atoms = covered(slab("111", size, rng), n_co, rng)
        moved = covered_dynamics(
            atoms, calc, temperature, 2, rng, "slab-co", f"co-{temperature}K-s{arguments.seed}-{i}"
        )
        for frame in moved:
            frame.center(vacuum=6.0, axis=2)
        yield moved


def resting(rng, arguments) -> Iterator[list[Atoms]]:
    """CO at rest on each site of a p(2x2) cell of four and three layers, then cool:
    what tells the sites apart.
    """
    calc = mover(arguments.model)
    for i in range(arguments.sites):
        site, layers = ("fcc", "hcp", "bridge", "ontop")[i % 4], (4, 3)[i // 4 % 2]
        atoms = slab("111", (2, 2, layers), rng, fixed_bottom=True)
        add_adsorbate(
            atoms,
            Atoms("CO", [[0, 0, 0], [0, 0, BOND]]),
            {"ontop": 1.85, "bridge": 1.5}.get(site, 1.35),
            site,
        )
        atoms.center(vacuum=6.5, axis=2)
        held = atoms.constraints
        atoms.set_constraint([*held, FixedLine(len(atoms) - 2, [0, 0, 1])])  # C stays above its site
        atoms.calc = calc
        BFGS(atoms, logfile=None).run(fmax=0.03, steps=60)
        rested = atoms.copy()
        atoms.set_constraint(held)
        moved = dynamics(atoms, calc, 150, 1, rng, timestep_fs=1.5, first=66, every=50)
        frames = [rested, *(a.copy() for a in moved)]
        yield [
            named(a, "slab-co", f"site-{site}-s{arguments.seed}-{i}", step) for step, a in enumerate(frames)
        ]


def pbe_frames(rng, arguments) -> Iterator[list[Atoms]]:
    """Small cells: the cost of a frame grows with the cube of its atoms."""
    tag = f"s{arguments.seed}"
    for i in range(arguments.bulk):
        cell = strained_cell(rng, volume=0.04, shear=0.03, rattle=0.15)
        yield [named(cell, "bulk-strained", f"bulk-{tag}-{i}")]
    for i in range(arguments.vacancy):
        cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(0.99, 1.02)) * (2, 1, 1)
        if i % 2:
            cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(0.99, 1.02)) * (2, 2, 1)
        del cell[int(rng.integers(len(cell)))]
        temperature = (300, 600, 900)[i % 3]
        yield metal_dynamics(cell, temperature, 1, rng, "bulk-vacancy", f"vacancy-{temperature}K-{tag}-{i}")
    for i in range(arguments.clean):
        temperature = (300, 600, 900, 1200)[i % 4]
        size = ((2, 2, 3), (2, 2, 4), (2, 3, 3))[i % 3]
        atoms = slab("111", size, rng, fixed_bottom=i % 2 == 0)
        atoms.center(vacuum=7.0, axis=2)
        yield metal_dynamics(atoms, temperature, 1, rng, "slab-clean", f"clean-{temperature}K-{tag}-{i}")
    for i in range(arguments.gas):
        bond = np.linspace(1.02, 1.34, max(arguments.gas, 2))[i]
        molecule = Atoms("CO", [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0 + bond]], cell=[10.0, 10.0, 11.0])
        yield [named(molecule, "gas-co", "gas-scan", i)]


def pbe_test(arguments) -> None:
    rng = np.random.default_rng([arguments.seed, 2])
    _write(arguments.out, small_test_families(rng, mover(arguments.model)))


def small_test_families(rng, calc) -> Iterator[list[Atoms]]:
    """The kinds of `test_families` in cells as small as they can be, four trajectories of each, one frame of
    a trajectory.

    And crystals under one strain at a time, whose stresses give the elastic constants.
    """
    for part in ("xx", "yz"):
        for size in (-0.01, 0.01):
            strain = np.zeros((3, 3))
            strain["xyz".index(part[0]), "xyz".index(part[1])] = size
            cell = bulk("Pt", cubic=True, a=LATTICE)
            cell.set_cell(cell.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
            yield [named(cell, "test-elastic", f"elastic-{part}{size:+}")]
    for i in range(4):
        cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(1.0, 1.03)) * (2, 1, 1)
        yield metal_dynamics(cell, 1500, 1, rng, "test-hotter-bulk", f"hotter-bulk-{i}")
        step = step_slab(((3, 1, 1), (2, 2, 1))[i % 2], 3)
        for kind, atoms, n_co, temperature in (
            ("hotter-co", slab("111", (2, 2, 3), rng), 1, 1200),
            ("unseen-coverage", slab("111", (2, 2, 3), rng), 2, 500),
            ("unseen-step", step, 1, 500),
            ("larger-cell", slab("111", (3, 3, 3), rng), 1, 500),
        ):
            moved = covered_dynamics(
                covered(atoms, n_co, rng), calc, temperature, 1, rng, f"test-{kind}", f"{kind}-{i}"
            )
            for frame in moved[1:]:
                frame.center(vacuum=6.0, axis=2)
                yield [frame]


def _write(path, trajectories: Iterable[list[Atoms]], *, append: bool = False) -> None:
    """A trajectory at a time, so that labelling may begin before sampling ends."""
    sizes = []
    for n, frames in enumerate(f for f in trajectories if f):
        write(path, frames, format="extxyz", append=append or n > 0)
        sizes += map(len, frames)
    print(f"{len(sizes)} frames, {sum(sizes)} atoms in {path}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)

    sub = commands.add_parser("pbe", help="small cells, for density functional theory")
    sub.add_argument("--out", required=True)
    sub.add_argument("--clean", type=int, default=24, help="clean (111) slabs, 300 to 1200 K")
    sub.add_argument("--bulk", type=int, default=24, help="strained and rattled 4-atom cells")
    sub.add_argument("--vacancy", type=int, default=12, help="7 and 15 atoms of 8 and 16")
    sub.add_argument("--gas", type=int, default=6, help="CO bond lengths")
    sub.add_argument("--covered", type=int, default=0, help="trajectories of one or two CO on (111) slabs")
    sub.add_argument(
        "--sites", type=int, default=0, help="CO at rest on fcc, hcp, bridge and top sites, two frames each"
    )
    sub.add_argument("--model", default="ptco-small", help="checkpoint that moves metal with CO")
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(run=pbe)

    for name, run, what in (
        ("fm", fm, "1 to 100 atoms, for a foundation model; about 2,000 frames"),
        ("fm-test", fm_test, "its test sets, of kinds of their own; about 120"),
        ("pbe-test", pbe_test, "test sets of the same kinds in small cells; 20 at most"),
    ):
        sub = commands.add_parser(name, help=what)
        sub.add_argument("--out", required=True)
        sub.add_argument("--model", default="ptco", help="checkpoint that moves metal with CO")
        if run is not pbe_test:
            sub.add_argument("--share", type=float, default=1.0, help="of those frames")
        sub.add_argument("--seed", type=int, default=0)
        sub.set_defaults(run=run)

    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
