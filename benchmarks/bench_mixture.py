"""How fast is the mixture beside its bound?

One step of velocity Verlet (neighbour update, energy and its gradient) of a
rattled Pt crystal of about 8,000 atoms, in float32. The cases are all atoms on
the expensive expert, all on the cheap one, a slab with the share f of the atoms
on the expensive one, and spheres that each follow an atom, with a blend. With
c_e the measured cost per atom of expert e, and f_e the share of atoms whose gate
for it is above zero, the largest possible speed-up is

    S_max = c_0 / (f_0 c_0 + f_1 c_1)

relative to the expensive expert alone; without a blend f_1 = 1 - f_0. Both
references run as mixtures of one expert, with their own neighbour list.

A step checks its neighbour list, but the atoms do not move far enough to rebuild
it. A rebuild is timed separately; output includes its share at one rebuild in 20
steps.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_masses, atomic_numbers
from jax_md import simulate, space

import moe_md as mm
from moe_md.data import fcc_supercell

SYMBOL, LATTICE_CONSTANT = "Pt", 3.98  # Å
RATTLE = 0.1  # Å, standard deviation of each coordinate
TIMESTEP_FS, TEMPERATURE_K = 1.0, 300.0
SHARES = (0.05, 0.1, 0.2, 0.25, 0.5)
STEPS_PER_REBUILD = 20
R_BLEND = 1.5  # Å; the core radius of a sphere is the cutoff of the cheap expert


def cells_for(n_atoms: int) -> tuple[int, int, int]:
    """Cubic cells `(a, a, b)`, b at least a, of the crystal closest to `n_atoms`."""
    sizes = [(a, a, b) for a in range(3, 80) for b in range(a, a + 4)]
    return min(sizes, key=lambda size: (abs(4 * size[0] * size[1] * size[2] - n_atoms), size[2] - size[0]))


def crystal(n_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and box, as `crystal_of`, of a crystal of about `n_atoms` atoms."""
    return crystal_of(cells_for(n_atoms))


def crystal_of(cells: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions `[n, 3]` Å of a rattled fcc crystal of these numbers of cells, and its box `[3]` Å."""
    frame = fcc_supercell(SYMBOL, LATTICE_CONSTANT, cells)
    rng = np.random.default_rng(0)
    edges = np.diag(frame.cell)
    position = np.mod(frame.positions + RATTLE * rng.standard_normal(frame.positions.shape), edges)
    return position.astype(np.float32), edges.astype(np.float32)


def upper_share(position: np.ndarray, share: float) -> mm.regions.Fixed:
    """A region that owns a share of the atoms, those with the largest z."""
    count = max(1, round(share * len(position)))
    return mm.regions.slab(position, lower=np.sort(position[:, 2])[-count])


def spheres(n_atoms: int, count: int, r_core: float) -> mm.regions.Around:
    """Spheres around random atoms, which they follow."""
    return mm.regions.around(np.random.default_rng(0).choice(n_atoms, count, replace=False), r_core, R_BLEND)


def step_case(position, edges, experts, params, species, region, chunk_size: int) -> harness.Case:
    """One step of velocity Verlet as a program of `(state, neighbors)`."""
    displacement_fn, shift_fn = space.periodic(edges)
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn, edges, mm.experts.potentials(experts, params), species, region, chunk_size=chunk_size
    )
    step = harness.dynamics_step(mm.simulate.nve(shift_fn, TIMESTEP_FS), energy_fn)
    return harness.Case(
        lambda carry: step(*carry), (start(position), neighbor_fn.allocate(jnp.asarray(position)))
    )


def start(position, temperature_K: float = TEMPERATURE_K) -> simulate.NVEState:
    """Initial state of all cases: random momenta, and no force in the first half step."""
    position = jnp.asarray(position)
    mass = jnp.full((len(position), 1), atomic_masses[atomic_numbers[SYMBOL]], position.dtype)
    momentum = jnp.sqrt(mass * mm.units.kB * temperature_K) * jax.random.normal(
        jax.random.key(0), position.shape, position.dtype
    )
    return simulate.NVEState(position, momentum - momentum.mean(0), jnp.zeros_like(position), mass)


def rebuild_case(reference: harness.Case, edges) -> harness.Case:
    """A neighbour list that is rebuilt at every call, as all atoms move by half a box."""
    state, neighbors, *_ = reference.state
    shift = jnp.asarray(edges) * 0.5

    def rebuild(carry):
        position, built = carry
        position = jnp.mod(position + shift, jnp.asarray(edges))
        return position, built.update(position)

    return harness.Case(rebuild, (state.position, neighbors))


def measure(arguments) -> dict:
    """Time all cases; returns the record."""
    model = harness.two_experts(arguments.checkpoint, random=arguments.random, tiny=arguments.tiny)
    experts = model.experts[:2]
    position, edges = crystal(arguments.atoms)
    n_atoms = len(position)
    regions = {f"mixture {share:g}": upper_share(position, share) for share in arguments.shares}
    regions |= {  # these names are stored in the results
        f"moving, {count} ball{'s' * (count > 1)}": spheres(n_atoms, count, experts[1].cutoff)
        for count in arguments.spheres
    }
    cases = compile_cases(model, position, edges, regions, arguments.chunk_size)

    # The first step starts without force: afterwards all cases have forces at the same positions.
    for case in cases.values():
        case.advance()
    forces = {name: np.asarray(case.state[0].force) for name, case in cases.items() if name != "rebuild"}
    timings = harness.interleave(cases, repeats=arguments.repeats)
    expensive, cheap, rebuild = (timings[name].median for name in ("all expensive", "all cheap", "rebuild"))
    displacement_fn, _ = space.periodic(edges)
    shares = {"all expensive": (1.0, 0.0), "all cheap": (0.0, 1.0)}
    for name, region in regions.items():
        gate = np.asarray(region.gate(jnp.asarray(position), displacement_fn))
        shares[name] = tuple(np.mean(gate > 0, axis=0).tolist())
    rows = []
    for name, force in forces.items():
        row = row_of(name, cases[name], timings[name], force, shares[name], expensive, cheap)
        difference = float(np.sqrt(np.mean((force - forces["all expensive"]) ** 2)))
        rows.append({**row, "force_difference_meV_per_A": 1e3 * difference})
    return {
        "benchmark": "mixture",
        "checkpoint": arguments.checkpoint,
        **harness.environment(),
        "smoke": arguments.smoke,
        "random_params": arguments.random or arguments.tiny,
        "experts": [e.config for e in experts],
        "force_error_meV_per_A": force_errors(model),
        "dtype": str(position.dtype),
        "atoms": n_atoms,
        "chunk_size": arguments.chunk_size,
        "repeats": arguments.repeats,
        "r": expensive / cheap,
        "rebuild_s": rebuild,
        "rows": rows,
    }


def compile_cases(model, position, edges, regions: dict, chunk_size: int) -> dict[str, harness.Case]:
    """Compile a step of each expert alone and of the mixture with each region, and a rebuild of a list."""
    experts, params = model.experts[:2], model.params[:2]
    species = np.full(len(position), experts[0].species.index(SYMBOL))
    alone = mm.regions.fixed(np.zeros(len(position), int), n_experts=1)
    chosen = {
        "all expensive": (experts[:1], params[:1], alone),
        "all cheap": (experts[1:], params[1:], alone),
        **{name: (experts, params, region) for name, region in regions.items()},
    }
    cases = {}
    for name, (some_experts, some_params, region) in chosen.items():
        cases[name] = step_case(position, edges, some_experts, some_params, species, region, chunk_size)
        print(f"{name}: compiled in {cases[name].compile_seconds:.1f} s", flush=True)
    cases["rebuild"] = rebuild_case(cases["all expensive"], edges)
    return cases


def row_of(
    name: str,
    case: harness.Case,
    timing: harness.Timing,
    force: np.ndarray,
    shares: tuple[float, float],
    expensive: float,
    cheap: float,
) -> dict:
    """The results of one case.

    Args:
        name: of the case.
        case: after the timed calls.
        timing: of the case.
        force: `[n_atoms, 3]` eV/Å, of the first step.
        shares: of atoms whose gate is above zero, for each expert.
        expensive, cheap: seconds per step of either expert alone.

    Raises:
        RuntimeError: neighbour lists overflowed, or forces are not finite.
    """
    neighbors = case.state[1]
    if bool(neighbors.did_buffer_overflow) or not np.isfinite(force).all():
        raise RuntimeError(
            f"{name}: neighbour lists overflowed or forces are not finite; its time is invalid."
        )
    f, f_cheap = shares
    s_max = expensive / (f * expensive + f_cheap * cheap)
    speedup = expensive / timing.median
    return {
        "name": name,
        "f": f,
        "f_cheap": f_cheap,
        "capacity": [int(c.shape[0]) for c in neighbors.centers],
        "slots": int(neighbors.idx.shape[1]),
        "edges": int(np.sum(np.asarray(neighbors.idx) < len(force))),  # skin included
        "compile_s": round(case.compile_seconds, 2),
        "median_s": timing.median,
        "quartiles_s": [timing.lower, timing.upper],
        "speedup": speedup,
        "s_max": s_max,
        "fraction_of_bound": speedup / s_max,
    }


def force_errors(model) -> dict:
    """Validation errors that the checkpoint records, by expert; None if it records none."""
    history = model.record.get("history", [])
    last = history[-1] if history else {}
    return {name: last.get(name, {}).get("forces_meV_per_A") for name in ("expensive", "cheap", "mixed")}


def describe(record: dict) -> str:
    """The record as lines of text."""
    lines = [f"{record['atoms']} atoms, {record['dtype']}, {record['device']}, r = {record['r']:.1f}"]
    for row in record["rows"]:
        low, high = row["quartiles_s"]
        amortised = row["median_s"] + record["rebuild_s"] / STEPS_PER_REBUILD
        lines.append(
            f"{row['name']:15s} f {row['f']:.3f}  {1e3 * row['median_s']:8.1f} ms ({1e3 * low:.1f} to "
            f"{1e3 * high:.1f}; "
            f"{1e3 * amortised:.1f} with rebuilds)  speedup {row['speedup']:5.2f} of {row['s_max']:5.2f} = "
            f"{row['fraction_of_bound']:.2f}  forces differ by {row['force_difference_meV_per_A']:.1f} meV/Å"
        )
    lines.append(f"a rebuild of the list: {1e3 * record['rebuild_s']:.1f} ms")
    return "\n".join(lines)


LABELS = {"mixture": "slab", "moving": "spheres that follow atoms", "all": "one expert alone"}
COLORS = {"mixture": "tab:blue", "moving": "tab:orange", "all": "tab:gray"}
OFFSETS = {"mixture": ((6, 3), "left"), "moving": ((0, -14), "left"), "all": ((-7, -3), "right")}  # of texts


def draw(record: dict, folder: Path) -> Path:
    """Draw speed against share beside the bound, and differences of forces against time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    draw_speed(left, record["rows"])
    draw_force_differences(right, record["rows"], record["atoms"])
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{record['atoms']:,} Pt atoms, {record['cores']} cores of {record['cpu']}"
        if record["platform"] == "cpu"
        else f"{record['atoms']:,} Pt atoms, {record['device']}",
        fontsize=10,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mixture.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def draw_speed(axes, rows: list[dict]) -> None:
    """Draw the speed-up of each case against its share of atoms on the expensive expert, and the bound."""
    seconds = {row["name"]: row["median_s"] for row in rows}
    expensive, cheap = seconds["all expensive"], seconds["all cheap"]
    f = np.linspace(0.0, 1.0, 400)
    axes.plot(f, expensive / (f * expensive + (1 - f) * cheap), color="black", linewidth=1, label="bound")
    for kind, label in LABELS.items():
        some = [row for row in rows if row["name"].startswith(kind)]
        if not some:
            continue
        # A blend computes both experts in its shell: the share with the same bound.
        x = [(expensive / row["s_max"] - cheap) / (expensive - cheap) for row in some]
        low, high = (
            [abs(expensive / t - row["speedup"]) for row, t in zip(some, ends)]
            for ends in zip(*(row["quartiles_s"][::-1] for row in some))
        )
        axes.errorbar(
            x,
            [row["speedup"] for row in some],
            (low, high),
            fmt="o",
            color=COLORS[kind],
            markersize=5,
            capsize=2,
            label=label,
        )
    axes.set(
        xlabel="share of the atoms on the expensive expert",
        ylabel="speed-up over the expensive expert alone",
        ylim=(0, None),
    )
    axes.legend(frameon=False)


def draw_force_differences(axes, rows: list[dict], n_atoms: int) -> None:
    """Draw the difference of forces from the expensive expert against time per atom and step."""
    for kind, (offset, side) in OFFSETS.items():
        for row in (row for row in rows if row["name"].startswith(kind)):
            x, y = 1e6 * row["median_s"] / n_atoms, row["force_difference_meV_per_A"]
            axes.plot(x, y, "o", color=COLORS[kind])
            axes.annotate(
                row["name"].replace("mixture", "f =").replace("moving, ", "").replace("ball", "sphere"),
                (x, y),
                xytext=offset,
                textcoords="offset points",
                fontsize=8,
                ha=side,
            )
    axes.set(
        xscale="log",
        xlabel="µs per atom and step",
        ylabel="force difference from the expensive expert, meV/Å",
        ylim=(-1, None),
    )
    axes.margins(x=0.2, y=0.12)


def with_checkpoint(results) -> list[dict]:
    """The records, each with its checkpoint: earlier ones, which do not name it, are of `ptco`."""
    return [{"checkpoint": "ptco", **record} for record in harness.read(results, "mixture")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="ptco", help="name or path")
    parser.add_argument(
        "--random", action="store_true", help="random parameters: they change errors, not the speed"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny experts with random parameters")
    parser.add_argument("--atoms", type=int, default=8064)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--spheres", type=int, nargs="*", default=(1, 4), help="numbers of spheres")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--chunk-size", type=int, default=64, help="rows computed at a time")
    parser.add_argument("--plots", type=Path, help="folder for the picture of the record")
    parser.add_argument("--redraw", action="store_true", help="draw the newest record of the checkpoint")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="a few hundred atoms, one share, two repeats")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(atoms=256, repeats=2, shares=SHARES[1:2], spheres=(1,))
    if arguments.redraw:
        records = [r for r in with_checkpoint(arguments.results) if r["checkpoint"] == arguments.checkpoint]
        print(draw(records[-1], arguments.plots))
        return
    record = measure(arguments)
    print(describe(record))
    harness.append(arguments.results, "mixture", record)
    if arguments.plots:
        print(draw(record, arguments.plots))


if __name__ == "__main__":
    main()
