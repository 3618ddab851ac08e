"""Pictures of the documentation, drawn from moe_md itself when the pages are built.

    python docs/figures.py FOLDER            draws all pictures
    python docs/figures.py --readme          draws those of the README into docs/images/

With `MOE_MD_SMOKE` set, trajectories are short. Plots of measured results are in
`figures_results.py`, pictures of the code in `figures_architecture.py`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import figures_architecture
import figures_results
import jax
import jax.numpy as jnp
import numpy as np
from ase import units as ase_units
from ase.build import bulk
from jax_md import space
from matplotlib.figure import Figure
from PIL import Image

import moe_md as mm
from moe_md import timing
from moe_md.analysis import expert_boundary
from moe_md.commands import demo
from moe_md.data import structures
from moe_md.plots.moving import top_view
from moe_md.plots.plots import CHEAP, EXPENSIVE, FAINT, INK, plain, slab_view

RED = "#9b2d5e"
LATTICE = 3.98  # Å, of platinum in the pictures


def main(folder: Path) -> None:
    """Draw every picture into a folder."""
    save(folder, PICTURES, dpi=150)


def save(
    folder: Path, pictures: dict[str, Callable[[], Figure]], dpi: int, colours: int | None = None
) -> None:
    """Draw some pictures into a folder, as PNG; with a number of colours the files are small."""
    folder.mkdir(parents=True, exist_ok=True)
    with jax.enable_x64(True):
        for name, draw in pictures.items():
            path = folder / f"{name}.png"
            draw().savefig(path, dpi=dpi)
            if colours:
                Image.open(path).convert("RGB").quantize(colours).save(path, optimize=True)


def gate() -> Figure:
    """The gate of `around` against the distance, its slope, and the smooth union of two spheres."""
    r_core, r_blend = 4.0, 2.0
    alone, pair = mm.regions.around([0], r_core, r_blend), mm.regions.around([0, 1], r_core, r_blend)
    far, _ = space.free()

    def along(r):
        return alone.gate(jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]) * r, far)[1, 0]

    distance = np.linspace(2.5, 8.5, 201)
    weight, slope = (np.asarray(jax.jit(jax.vmap(f))(distance)) for f in (along, jax.grad(along)))

    def at(x, y):
        place = jnp.stack(
            [jnp.array([-4.0, 0.0, 0.0]), jnp.array([4.0, 0.0, 0.0]), jnp.stack([x, y, 0.0 * x])]
        )
        return pair.gate(place, far)[2, 0]

    x, y = np.meshgrid(np.linspace(-12, 12, 121), np.linspace(-8, 8, 81))
    map_of = np.asarray(jax.jit(jax.vmap(jax.vmap(at)))(x, y))

    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    left.plot(distance, weight, color=EXPENSIVE, lw=2.5, label="gate w")
    left.plot(distance, -slope, color=INK, lw=1.2, ls=(0, (4, 2)), label="−dw/dr, 1/Å")
    left.axvspan(r_core, r_core + r_blend, color=FAINT, alpha=0.12, lw=0)
    left.text(r_core + r_blend / 2, 1.04, "blend", ha="center", color=FAINT)
    left.text(r_core - 0.75, 1.04, "core", ha="center", color=FAINT)
    left.set(xlabel="distance from the seed / Å", ylim=(-0.05, 1.15))
    left.legend(frameon=False, loc="upper right", fontsize=8.5)
    plain(left)
    shown = right.contourf(x, y, map_of, levels=np.linspace(0, 1, 11), cmap="cividis")
    right.plot([-4, 4], [0, 0], "o", color=INK, ms=5)
    right.set(xlabel="x / Å", ylabel="y / Å", aspect="equal", title="two seeds")
    figure.colorbar(shown, ax=right, label="gate w", shrink=0.85)
    return figure


def bound() -> Figure:
    """The largest possible speed-up of a mixture."""
    f = np.geomspace(0.005, 1.0, 200)
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    panel = figure.subplots()
    for r, colour in zip((3, 10, 30, 100), ("#c9d3dd", CHEAP, "#55708c", "#1f3d5c")):
        panel.loglog(f, [demo_bound(share, r) for share in f], color=colour, lw=2, label=f"r = {r}")
    panel.loglog(f, 1 / f, color=FAINT, lw=1, ls=(0, (4, 3)), label="1 / f")
    panel.set(xlabel="f, share of atoms on the expensive expert", ylabel=r"$S_\mathrm{max}$", ylim=(0.9, 130))
    panel.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    panel.set_xticks([0.01, 0.1, 1], ["1 %", "10 %", "100 %"])
    panel.legend(frameon=False, fontsize=8.5)
    plain(panel)
    return figure


def demo_bound(f: float, r: float) -> float:
    """S_max of `timing.Timings`, for steps that take r (expensive) and 1 (cheap)."""
    steps = [timing.StepTime(median, median, median, 0.0) for median in (float(r), 1.0, 1.0)]
    return timing.Timings(steps[0], steps[1], steps[2], f).s_max


def slab() -> Figure:
    """The slab of the demonstration from the side, coloured by expert."""
    return _covered_slab((8, 8, 12))


def wide_slab() -> Figure:
    """The same of fewer layers and more width, for the top of the README."""
    return _covered_slab((18, 2, 6))


def _covered_slab(size: tuple[int, int, int]) -> Figure:
    atoms = structures.co_covered_slab("Pt", LATTICE, *size, vacuum=12.0)
    region = mm.regions.slab(
        atoms.positions, lower=demo.lower_plane(atoms, mm.load("ptco").experts[1].cutoff)
    )
    return slab_view(atoms.positions, atoms.symbols, np.asarray(region.assignment), zoom=None)


def following() -> Figure:
    """A region that follows three molecules, from above."""
    atoms = structures.co_covered_slab("Pt", LATTICE, 12, 12, 3, vacuum=12.0)
    carbon = [atom.index for atom in atoms if atom.symbol == "C"]
    chosen = [carbon[i] for i in (7, 10, 26)]
    removed = [i for c in carbon if c not in chosen for i in (c, c + 1)]
    seeds = np.flatnonzero(np.isin([i for i in range(len(atoms)) if i not in removed], chosen))
    del atoms[removed]
    displacement_fn, _ = space.periodic(atoms.cell.lengths())
    weight = mm.regions.around(seeds, 4.5, 3.0).gate(jnp.asarray(atoms.positions), displacement_fn)[:, 0]
    return top_view(atoms.positions, atoms.symbols, np.asarray(weight), atoms.cell.lengths())


def ghost_force() -> Figure:
    """The ghost force, layer by layer, of a pair that was co-trained and of one that was not."""
    trained = mm.load("ptco-small")
    untrained = [mm.experts.lennard_jones(("Pt",), 5.5, epsilon=e, sigma=2.56) for e in (0.68, 0.60)]
    pairs = {
        "two Lennard-Jones potentials, one weaker by a tenth": (
            untrained,
            [x.init(None) for x in untrained],
            RED,
        ),
        "the shipped pair ptco-small": (trained.experts, trained.params, EXPENSIVE),
    }
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    panel = figure.subplots()
    for label, (experts, params, colour) in pairs.items():
        cutoff = max(e.cutoff for e in experts)
        crystal, owner = expert_boundary.bisected_crystals(bulk("Pt", a=LATTICE), cutoff)["100"]
        ghost = expert_boundary.ghost_force(experts, params, crystal, owner)
        spacing = LATTICE / 2
        layer = np.floor(crystal.positions[:, 2] / spacing).astype(int)
        first = int(np.flatnonzero(np.diff(owner[np.argsort(layer)]))[0]) + 0.5
        size = 1e3 * np.linalg.norm(ghost.forces, axis=1)
        order = np.argsort(layer)
        near = (np.abs(layer[order] - first) < 4) & (size[order] > 1e-6)
        panel.semilogy(
            (layer[order] - first)[near], size[order][near], "o-", color=colour, ms=4, lw=1, label=label
        )
    panel.axvline(0, color=FAINT, lw=0.8, ls=(0, (4, 3)))
    panel.set(
        xlabel="(100) layers from the expert boundary",
        ylabel="force that should be zero / meV/Å",
        ylim=(0.02, 2000),
    )
    panel.legend(frameon=False, fontsize=8.5)
    plain(panel)
    return figure


def conservation() -> Figure:
    """Energy while atoms switch experts: three ways, with two potentials that do not agree."""
    atoms = bulk("Ar", cubic=True, a=5.4).repeat(3)
    box = atoms.cell.lengths()
    displacement_fn, shift_fn = space.periodic(box)
    experts = [mm.experts.lennard_jones(("Ar",), 7.0, epsilon=e, sigma=3.4) for e in (0.0104, 0.0094)]
    species = np.zeros(len(atoms), int)
    # Every 21st atom carries a sphere with it.
    region = mm.regions.around(np.arange(0, len(atoms), 21), 3.0, 2.0)
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn,
        box,
        mm.experts.potentials(experts, [e.init(None) for e in experts]),
        species,
        region,
        capacity_multiplier=1.6,
    )

    def without_gate_gradient(R, neighbor, **kwargs):
        parts = neighbor_fn.parts(R, neighbor)
        return jnp.sum(jax.lax.stop_gradient(parts.gate) * parts.energy)

    nve = mm.simulate.nve(shift_fn, 4.0)
    start = mm.simulate.start(
        nve, atoms.positions, masses=atoms.get_masses(), temperature_K=140.0, key=jax.random.key(0)
    )
    warm_steps, n_steps = (40, 60) if os.environ.get("MOE_MD_SMOKE") else (250, 1200)
    warm = mm.simulate.run(neighbor_fn, energy_fn, nve, start, n_steps=warm_steps)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    panel = figure.subplots()
    options = dict(n_steps=n_steps, chunk_steps=20)

    def smooth(energy):
        return mm.simulate.run(neighbor_fn, energy, nve, warm.state, neighbors=warm.neighbors, **options).log

    def reassigned():
        at_once = mm.regions.reassigned(region)
        return mm.simulate.run_reassigned(
            neighbor_fn, energy_fn, nve, warm.state, at_once, reassign_every=20, **options
        ).log

    for label, log, colour in (
        ("forces with ∂w/∂R", smooth(energy_fn), EXPENSIVE),
        ("forces without it", smooth(without_gate_gradient), RED),
        ("reassigned every 20 steps", reassigned(), CHEAP),
    ):
        total = log.total - log.total[0]
        panel.plot(log.time_ps - log.time_ps[0], 1e3 * total / len(atoms), color=colour, lw=1.6, label=label)
    kinetic = 1e3 * 1.5 * ase_units.kB * float(np.mean(log.temperature_K))
    panel.set(xlabel="time / ps", ylabel="change of energy / meV per atom")
    panel.set_title(f"{len(atoms)} argon atoms, {kinetic:.0f} meV of kinetic energy each", fontsize=9.5)
    panel.legend(frameon=False, fontsize=8.5)
    plain(panel)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "gate": gate,
    "bound": bound,
    "slab": slab,
    "following": following,
    "ghost_force": ghost_force,
    "conservation": conservation,
    "speed": figures_results.speed,
    "peers": figures_results.peers,
    "respa": figures_results.respa,
    "cotraining": figures_results.cotraining,
    "rooms": figures_architecture.rooms,
    "walk": figures_architecture.walk,
}

README = {"wide_slab": wide_slab, "speed": figures_results.speed}  # small files, which are committed

if __name__ == "__main__":
    if sys.argv[1] == "--readme":
        save(Path(__file__).parent / "images", README, dpi=100, colours=64)
    else:
        main(Path(sys.argv[1]))
