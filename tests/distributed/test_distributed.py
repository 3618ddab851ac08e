"""Several devices give what one gives.

Run as a program, this file is what happens on eight simulated devices, which must be asked for before jax
starts: `test_distributed.py [PART ...]` prints what it found as JSON.
"""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from jax_md import space

if __name__ == "__main__":
    import conftest  # noqa: F401  float64, and compiled programs kept between runs

import moe_md as mm
from moe_md import distributed, simulate

BOX = np.array([8 * 5.4, 2 * 5.4, 2 * 5.4])  # Å; eight subdomains just as wide as the halo of 5.4 Å
SPECIES = ("Ar", "Kr")
SPREAD = 0.1  # Å


def argon():
    """128 atoms of rattled fcc argon and krypton, every other plane of them at a face between subdomains,
    some outside the box.
    """
    atoms = bulk("Ar", a=5.4, cubic=True).repeat((8, 2, 2))
    atoms.symbols[::5] = "Kr"
    atoms.rattle(SPREAD, seed=0)
    atoms.positions += [0.05, 0.3, 40.0]
    return atoms


def pair(kind="analytic"):
    """Two experts that differ, in cutoff too."""
    if kind == "analytic":
        experts = [
            mm.experts.lennard_jones(SPECIES, c, epsilon=e, sigma=3.4) for c, e in ((5.0, 0.02), (4.6, 0.025))
        ]
    else:
        sizes = dict(
            num_layers=1,
            num_scalar_features=4,
            num_tensor_features=2,
            scalar_embed_mlp=(4,),
            allegro_mlp=(4,),
            readout_mlp=(4,),
        )
        experts = [
            mm.experts.allegro(SPECIES, 5.0, l_max=1, **sizes),
            mm.experts.density_moments(SPECIES, 4.6, num_radial=(3, 2), hidden=(4,), allowed_species=("Ar",)),
        ]
    return experts, [e.init(jax.random.key(n)) for n, e in enumerate(experts)]


def system(region=None, kind="analytic"):
    """Arguments of both builders that they share."""
    atoms = argon()
    experts, params = pair(kind)
    species = np.array([SPECIES.index(s) for s in atoms.symbols])
    owner = np.random.default_rng(0).integers(0, 2, len(atoms))
    return atoms, (
        mm.experts.potentials(experts, params),
        species,
        mm.regions.fixed(owner) if region is None else region,
    )


def on_one_device(atoms, arguments):
    """Energy and forces."""
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(space.periodic(BOX)[0], BOX, *arguments)
    position = jnp.asarray(atoms.positions)
    energy, gradient = jax.jit(jax.value_and_grad(energy_fn))(position, neighbor_fn.allocate(position))
    return float(energy), -np.asarray(gradient)


def compared(parallel, state, reference):
    """How far energy and forces are from those of one device, and how large forces are."""
    energy, force = reference
    found = parallel.gather(state).force
    return {
        "energy": abs(state.potential - energy),
        "force": float(np.abs(found - force).max()),
        "largest": float(np.abs(force).max()),
    }


def owners(parallel, state):
    """The subdomain of each atom, in their order."""
    index = np.asarray(state.atoms.index).reshape(len(jax.devices()), -1)
    subdomain, slot = np.nonzero(index < len(argon()))
    return subdomain[np.argsort(index[subdomain, slot])]


def statics(found):
    """Energies and forces, of whatever number of devices, experts and region;
    and what a halo too thin does to them.
    """
    atoms, arguments = system()
    reference = on_one_device(atoms, arguments)
    for n in (1, 2, 4, 8):
        parallel = distributed.mixture(BOX, *arguments, devices=jax.devices()[:n])
        state = parallel.evaluate(parallel.scatter(atoms.positions, atoms.get_masses()))
        found[f"fixed, {n}"] = compared(parallel, state, reference)
    # Half a halo: those farthest from the face are forgotten.
    low = BOX[0] / 8 * np.repeat(np.arange(8), state.capacities.halo)
    along = np.append(np.asarray(state.atoms.position[:, 0]).reshape(8, -1), np.full((8, 1), np.nan), axis=1)
    slot = np.minimum(np.asarray(state.lists.before).reshape(8, -1), state.capacities.atoms)
    far = np.take_along_axis(along, slot, axis=1).ravel() - low > 2.5
    thin = jax.device_put(
        np.where(far, state.capacities.atoms, slot.ravel()).astype(np.int32), state.lists.before.sharding
    )
    found["thin"] = compared(
        parallel,
        parallel.evaluate(replace(state, lists=state.lists._replace(before=thin))),
        reference,
    )
    single = parallel.evaluate(parallel.scatter(atoms.positions.astype(np.float32)))
    found["float32"] = compared(parallel, single, reference) | {"dtype": str(single.atoms.position.dtype)}
    atoms, arguments = system(kind="learned")
    parallel = distributed.mixture(BOX, *arguments, chunk_size=4)
    state = parallel.evaluate(parallel.scatter(atoms.positions))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        in_domain = parallel.check_domains(state)
        found["learned"] = compared(parallel, state, on_one_device(atoms, arguments))
    found["warned"] = {
        "in_domain": in_domain,
        "messages": [str(w.message) for w in caught if "domain" in str(w.message)],
    }


def dynamics(found):
    """Constant energy on eight devices beside one: atoms that migrate, capacities that run out,
    what is compiled.
    """
    atoms, arguments = system()
    velocity = np.random.default_rng(1).normal(0.0, 0.04, (len(atoms), 3))  # hot, so that atoms change places
    velocity -= np.average(velocity, axis=0, weights=atoms.get_masses())
    shift_fn = space.periodic(BOX)[1]
    integrator = simulate.nve(shift_fn, 4.0)
    parallel = distributed.mixture(BOX, *arguments, capacity_multiplier=1.05)
    first = parallel.scatter(atoms.positions, atoms.get_masses(), velocity=velocity)
    seen = []
    result = distributed.run(
        parallel, first, integrator, n_steps=200, chunk_steps=20, reporters=[seen.append]
    )
    fns = mm.mixture_neighbor_list(space.periodic(BOX)[0], BOX, *arguments)
    one = simulate.run(
        *fns,
        integrator,
        simulate.start(
            integrator, jnp.asarray(atoms.positions), masses=atoms.get_masses(), velocity=velocity
        ),
        n_steps=200,
        chunk_steps=20,
    )
    apart = np.asarray(parallel.gather(result.state).position) - np.asarray(one.state.position)
    found["nve"] = {
        "total": [frame.total for frame in result.frames],
        "momentum": max(frame.momentum for frame in result.frames),
        "potential_apart": float(
            np.abs(np.array([frame.potential for frame in result.frames]) - one.log.potential).max()
        ),
        "apart": float(np.abs((apart + BOX / 2) % BOX - BOX / 2).max()),
        "moved": float(np.ptp([frame.potential for frame in result.frames])),
        "migrated": int(np.sum(owners(parallel, result.state) != owners(parallel, first))),
        "regrown": result.frames[-1].n_reallocations,
        "step": result.frames[-1].step,
        "seen": [list(frame.position.shape) for frame in seen],
    }
    # Lists that have room: nothing is compiled any more, and what goes on is what would have been.
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiled.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
        )
    )
    longer = distributed.run(parallel, result.state, simulate.nve(shift_fn, 3.0), n_steps=30, chunk_steps=20)
    found["compiled"] = {
        "count": len(compiled),
        "regrown": longer.frames[-1].n_reallocations,
        "step": longer.frames[-1].step,
    }
    for name, factor in (("fast", 1e3), ("nan", np.nan)):
        wild = replace(
            longer.state, atoms=longer.state.atoms._replace(momentum=factor * longer.state.atoms.momentum)
        )
        with pytest.raises(simulate.SimulationError) as error:
            parallel.advance(wild, integrator, 5)
        found[name] = str(error.value)
        assert error.value.state is wild


def following(found):
    """A region that follows atoms across the faces, and Langevin dynamics."""
    atoms, arguments = system(mm.regions.around([3, 60, 127], 3.0, 2.0))
    parallel = distributed.mixture(BOX, *arguments, dr_threshold=0.4)
    state = parallel.scatter(atoms.positions, atoms.get_masses(), temperature_K=150.0, key=jax.random.key(0))
    found["around"] = compared(parallel, parallel.evaluate(state), on_one_device(atoms, arguments))
    result = distributed.run(parallel, state, simulate.nve(space.free()[1], 4.0), n_steps=100, chunk_steps=50)
    found["around, nve"] = {"total": [f.total for f in result.frames], "momentum": result.frames[-1].momentum}
    atoms.positions = parallel.gather(result.state).position
    found["around, after"] = compared(parallel, result.state, on_one_device(atoms, arguments))
    hot = distributed.run(
        parallel, state, simulate.langevin(space.free()[1], 4.0, 40.0, 0.02), n_steps=300, chunk_steps=10
    )
    found["langevin"] = [f.temperature_K for f in hot.frames]


if __name__ == "__main__":
    answers = {"devices": len(jax.devices())}
    for part in (statics, dynamics, following):
        if part.__name__ in (sys.argv[1:] or part.__name__):
            part(answers)
        print(json.dumps(answers), flush=True)


@pytest.fixture(scope="module")
def found():
    """What the program found."""
    done = subprocess.run(
        [sys.executable, __file__],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(Path(mm.__file__).parent.parent), str(Path(__file__).parent.parent)]
            ),
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["devices"] == 8
    return answers


@pytest.mark.parametrize(
    "what", ["fixed, 1", "fixed, 2", "fixed, 4", "fixed, 8", "learned", "around", "around, after"]
)
def test_energies_and_forces_are_those_of_one_device(found, what):
    assert found[what]["energy"] < 1e-10 and found[what]["force"] < 1e-10
    assert found[what]["largest"] > 1e-3


def test_float32_stays_float32(found):
    assert (
        found["float32"]["dtype"] == "float32"
        and found["float32"]["energy"] < 1e-4
        and found["float32"]["force"] < 1e-5
    )


def test_a_halo_too_thin_gives_wrong_forces(found):
    """The test above would notice."""
    assert found["thin"]["force"] > 1e-4 and found["thin"]["energy"] > 1e-4


def test_constant_energy_is_the_trajectory_of_one_device(found):
    nve = found["nve"]
    assert nve["step"] == 200 and nve["seen"] == [[128, 3]] * 11
    assert np.ptp(nve["total"]) < 0.02 * nve["moved"] and nve["moved"] > 0.1
    assert nve["momentum"] < 1e-10
    assert nve["apart"] < 1e-6 and nve["potential_apart"] < 1e-7


def test_atoms_migrate(found):
    assert found["nve"]["migrated"] > 10


def test_capacities_that_run_out_grow(found):
    """Without room to spare some did, and the trajectory is still right."""
    assert found["nve"]["regrown"] > 0


def test_nothing_compiles_after_warm_up(found):
    assert found["compiled"] == {"count": 0, "regrown": 0, "step": 230}


def test_atoms_that_fly_and_numbers_that_are_none_raise(found):
    assert "more than half of dr_threshold = 0.4 Å in a step, but one did at step 231" in found["fast"]
    assert "must stay finite" in found["nan"]


def test_warns_as_one_device_does(found):
    warned = found["warned"]
    assert not warned["in_domain"] and len(warned["messages"]) == 2 and len(set(warned["messages"])) == 1


def test_a_region_that_follows_atoms_conserves_energy(found):
    nve = found["around, nve"]
    assert np.ptp(nve["total"]) < 5e-3 and nve["momentum"] < 1e-10


def test_langevin_dynamics_reach_their_temperature(found):
    """128 atoms: temperatures of single frames spread by 40 sqrt(2 / 384) = 2.9 K."""
    late = np.mean(found["langevin"][-12:])
    assert abs(late - 40.0) < 10.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": np.array([[43.2, 1.0, 0.0], [0.0, 10.8, 0.0], [0.0, 0.0, 10.8]])}, "right-angled"),
        ({"dr_threshold": 0.0}, "dr_threshold must be positive"),
        ({"axis": 3}, "axis must be 0, 1 or 2"),
        ({"devices": []}, "devices must be at least one"),
        ({"devices": 9 * [None]}, "9 subdomains of 43.2 Å along axis 0 are 4.8 Å wide, at most 8 fit"),
        (
            {"devices": 3 * [None], "axis": 1},
            "subdomains are as wide as the longest cutoff and the skin, 5.4 Å",
        ),
        ({"region": mm.regions.fixed([0, 1])}, "must assign each of the 128 atoms to one of 2 experts"),
        ({"region": mm.regions.around([128], 3.0, 1.0)}, "seeds below the number of atoms, 128"),
        ({"region": mm.regions.complement(mm.regions.around([0], 3.0, 1.0))}, "static, or around seeds"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    _, (potentials, species, region) = system()
    given = {"box": BOX, "potentials": potentials, "species": species, "region": region} | change
    with pytest.raises(ValueError, match=message):
        distributed.mixture(**given)


def test_experts_that_pass_messages_are_refused():
    _, ((first, second), species, region) = system()
    passing = first._replace(expert=first.expert._replace(num_hops=2))
    with pytest.raises(ValueError, match="strictly local"):
        distributed.mixture(BOX, (passing, second), species, region)


def test_bad_atoms_and_integrators_are_refused():
    atoms, arguments = system()
    parallel = distributed.mixture(BOX, *arguments, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match=r"position must be finite numbers of shape \[128, 3\]"):
        parallel.scatter(atoms.positions[1:])
    with pytest.raises(ValueError, match="masses must be positive"):
        parallel.scatter(atoms.positions, np.zeros(128))
    with pytest.raises(ValueError, match="temperature_K must come with"):
        parallel.scatter(atoms.positions, temperature_K=3.0)
    with pytest.raises(ValueError, match="integrator must be nve"):
        parallel.advance(None, simulate.nose_hoover(None, 1.0, 300.0), 1)
