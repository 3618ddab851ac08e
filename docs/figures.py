"""The pictures of these pages, drawn from moe_md itself when the pages are built.

    python docs/figures.py FOLDER

Nothing here is stored: what a picture shows is what the code beside it does. With
`MOE_MD_SMOKE` set, trajectories are short.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ase import units as ase_units
from ase.build import bulk
from jax_md import space
from matplotlib.figure import Figure

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
    folder.mkdir(parents=True, exist_ok=True)
    with jax.enable_x64(True):
        for name, draw in PICTURES.items():
            draw().savefig(folder / f"{name}.png", dpi=150)


def gate() -> Figure:
    """The weight of `around` over the distance, its slope, and two balls that melt."""
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
    left.plot(distance, weight, color=EXPENSIVE, lw=2.5, label="w")
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
    figure.colorbar(shown, ax=right, label="w", shrink=0.85)
    return figure


def bound() -> Figure:
    """The most that a mixture can gain."""
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
    """`timing.Timings` says it: steps of r, of one, and of whatever the mixture takes."""
    steps = [timing.StepTime(median, median, median, 0.0) for median in (float(r), 1.0, 1.0)]
    return timing.Timings(steps[0], steps[1], steps[2], f).s_max


def slab() -> Figure:
    """The slab of the demonstration, coloured by expert."""
    atoms = structures.co_covered_slab("Pt", LATTICE, 8, 8, 12, vacuum=12.0)
    region = mm.regions.slab(
        atoms.positions, lower=demo.lower_plane(atoms, mm.load("ptco").experts[1].cutoff)
    )
    return slab_view(atoms.positions, atoms.symbols, np.asarray(region.assignment), zoom=None)


def following() -> Figure:
    """A region that follows three molecules, from above."""
    atoms = structures.co_covered_slab("Pt", LATTICE, 12, 12, 3, vacuum=12.0)
    carbon = [atom.index for atom in atoms if atom.symbol == "C"]
    kept = [carbon[i] for i in (7, 10, 26)]
    gone = [i for c in carbon if c not in kept for i in (c, c + 1)]
    seeds = np.flatnonzero(np.isin([i for i in range(len(atoms)) if i not in gone], kept))
    del atoms[gone]
    displacement_fn, _ = space.periodic(atoms.cell.lengths())
    weight = mm.regions.around(seeds, 4.5, 3.0).gate(jnp.asarray(atoms.positions), displacement_fn)[:, 0]
    return top_view(atoms.positions, atoms.symbols, np.asarray(weight), atoms.cell.lengths())


def seam_of_pairs() -> Figure:
    """The ghost force, layer by layer, of a pair that was co-trained and of one that was not."""
    trained = mm.load("ptco-small")
    strangers = [mm.experts.lennard_jones(("Pt",), 5.5, epsilon=e, sigma=2.56) for e in (0.68, 0.60)]
    pairs = {
        "two Lennard-Jones potentials, one a tenth weaker": (
            strangers,
            [x.init(None) for x in strangers],
            RED,
        ),
        "the shipped pair ptco-small": (trained.experts, trained.params, EXPENSIVE),
    }
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    panel = figure.subplots()
    for label, (experts, params, colour) in pairs.items():
        cutoff = max(e.cutoff for e in experts)
        crystal, owner = expert_boundary.bisected_crystals("Pt", LATTICE, cutoff)["100"]
        ghost = expert_boundary.ghost_force(experts, params, crystal, owner)
        spacing = LATTICE / 2
        layer = np.rint(crystal.positions[:, 2] / spacing).astype(int)
        first = int(np.flatnonzero(np.diff(owner[np.argsort(layer)]))[0]) + 0.5
        size = 1e3 * np.linalg.norm(ghost.forces, axis=1)
        order = np.argsort(layer)
        near = (np.abs(layer[order] - first) < 4) & (size[order] > 1e-6)
        panel.semilogy(
            (layer[order] - first)[near], size[order][near], "o-", color=colour, ms=4, lw=1, label=label
        )
    panel.axvline(0, color=FAINT, lw=0.8, ls=(0, (4, 3)))
    panel.set(
        xlabel="(100) layers from the seam", ylabel="force that should be zero / meV/Å", ylim=(0.02, 2000)
    )
    panel.legend(frameon=False, fontsize=8.5)
    plain(panel)
    return figure


def conservation() -> Figure:
    """Energy while atoms change hands: three ways to let them, under two potentials that do not agree."""
    atoms = bulk("Ar", cubic=True, a=5.4).repeat(3)
    box = atoms.cell.lengths()
    displacement_fn, shift_fn = space.periodic(box)
    experts = [mm.experts.lennard_jones(("Ar",), 7.0, epsilon=e, sigma=3.4) for e in (0.0104, 0.0094)]
    species = np.zeros(len(atoms), int)
    # Some atoms that wander through the others, and take their balls with them.
    region = mm.regions.around(np.arange(0, len(atoms), 21), 3.0, 2.0)
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn,
        box,
        mm.experts.potentials(experts, [e.init(None) for e in experts]),
        species,
        region,
        capacity_multiplier=1.6,
    )

    def without(R, neighbor, **kwargs):
        parts = neighbor_fn.parts(R, neighbor)
        return jnp.sum(jax.lax.stop_gradient(parts.weight) * parts.energy)

    start = dict(masses=atoms.get_masses(), temperature_K=140.0, key=jax.random.key(0))
    nve = mm.simulate.nve(shift_fn, 4.0)
    warm_steps, n_steps = (40, 60) if os.environ.get("MOE_MD_SMOKE") else (250, 1200)
    warm = mm.simulate.run(neighbor_fn, energy_fn, nve, atoms.positions, n_steps=warm_steps, **start)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    panel = figure.subplots()
    for label, energy, more, colour in (
        ("forces with ∂w/∂R", energy_fn, {}, EXPENSIVE),
        ("forces without it", without, {}, RED),
        (
            "hard: reassigned every 20 steps",
            energy_fn,
            dict(region=mm.regions.reassigned(region), reassign_steps=20),
            CHEAP,
        ),
    ):
        neighbors = {} if more else dict(neighbors=warm.neighbors)
        log = mm.simulate.run(
            neighbor_fn, energy, nve, state=warm.state, n_steps=n_steps, chunk_steps=20, **neighbors, **more
        ).log
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
    "ghost_force": seam_of_pairs,
    "conservation": conservation,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
