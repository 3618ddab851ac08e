"""Nosé-Hoover chains, the barostat and cell relaxation: conserved quantities, averages, and ASE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.filters import UnitCellFilter
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.optimize import BFGS
from depths import short
from jax_md import simulate as jax_md_simulate
from jax_md import space
from trajectories import run_from

import moe_md as mm
from moe_md import simulate, units
from moe_md.experts import lennard_jones
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.mixture import mixture_neighbor_list
from moe_md.regions import around, fixed

MASS, EPSILON, SIGMA, CUTOFF = 195.08, 0.6, 2.5446, 5.2
EXPERT = lennard_jones(("Pt",), CUTOFF, epsilon=EPSILON, sigma=SIGMA)
STIFFER = lennard_jones(("Pt",), 4.8, epsilon=1.05 * EPSILON, sigma=0.99 * SIGMA)
PARAMS = (STIFFER.init(None), EXPERT.init(None))
PAIR = (STIFFER, EXPERT)


def crystal(repeat=3, a=3.95, rattle=0.05):
    atoms = bulk("Pt", a=a, cubic=True).repeat(repeat)
    atoms.rattle(rattle, seed=1)
    return atoms


def mixture(atoms, region, experts=PAIR, params=PARAMS):
    """In fractional coordinates: fractions, box, shift, list, energy."""
    box = atoms.cell.array.T
    displacement_fn, shift_fn = space.periodic_general(box, fractional_coordinates=True)
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn,
        box,
        mm.experts.potentials(experts, params),
        np.zeros(len(atoms), int),
        region,
        fractional_coordinates=True,
        capacity_multiplier=1.4,
    )
    return jnp.asarray(atoms.get_scaled_positions()), box, shift_fn, neighbor_fn, energy_fn


def half(atoms):
    return fixed((atoms.positions[:, 2] > 0.5 * atoms.cell[2, 2]).astype(int))


def run(system, integrator, n_steps, *, shift=0.0, **kwargs):
    fraction, box, _, neighbor_fn, energy_fn = system
    masses = np.full(len(fraction), MASS)
    start = {"temperature_K": 600.0, "key": jax.random.key(0), "chunk_steps": 10, **kwargs}
    return run_from(
        neighbor_fn,
        energy_fn,
        integrator,
        (fraction + np.broadcast_to(shift, (1, 3))) % 1.0,
        n_steps=n_steps,
        masses=masses,
        box=box,
        **start,
    )


def spread(values):
    return np.ptp(values - np.mean(values))


@pytest.mark.parametrize(
    ("kind", "ensemble"),
    [
        ("fixed", "nose_hoover"),
        ("around", "npt"),
        pytest.param("fixed", "npt", marks=pytest.mark.thorough),
        pytest.param("around", "nose_hoover", marks=pytest.mark.thorough),
    ],
)
def test_the_extended_energy_is_conserved(ensemble, kind):
    """Its wiggles fall as the square of the time step; those of the energy itself do not."""
    atoms = crystal()
    system = mixture(atoms, half(atoms) if kind == "fixed" else around([40], 3.0, 2.5))

    def wiggles(timestep_fs):
        arguments = (system[2], timestep_fs, 600.0) + ((0.0,) if ensemble == "npt" else ())
        periods = {"tau_fs": 60.0} | ({"barostat_tau_fs": 200.0} if ensemble == "npt" else {})
        result = run(system, getattr(simulate, ensemble)(*arguments, **periods), int(400 / timestep_fs))
        assert np.isfinite(result.log.conserved).all()
        assert np.abs(result.log.momentum).max() < 1e-9
        return spread(result.log.conserved), spread(result.log.total)

    (coarse, total), (fine, _) = wiggles(4.0), wiggles(2.0)
    assert 3.0 < coarse / fine < 5.5
    assert total > 30 * coarse


def test_a_chain_holds_the_temperature():
    """Mean kinetic temperature of a strongly coupled crystal, with 3 N - 3 degrees of freedom."""
    atoms = crystal(rattle=0.1)
    system = mixture(atoms, half(atoms))
    result = run(system, simulate.nose_hoover(system[2], 4.0, 500.0, tau_fs=100.0), 2500)
    temperature = result.log.temperature_K[50:]
    blocks = temperature[: len(temperature) // 10 * 10].reshape(10, -1).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(10)
    assert abs(temperature.mean() - 500.0) < 4 * error + 0.5
    assert error < 8.0
    # Canonical fluctuations of the kinetic energy: variance 2 T^2 / N_f.
    expected = 500.0 * np.sqrt(2 / (3 * len(atoms) - 3))
    assert 0.7 < temperature.std() / expected < 1.4


@pytest.mark.thorough
def test_a_barostat_does_not_know_the_origin():
    """Ours moves all origins alike; jax-md's, in fractional coordinates, does not."""
    atoms = crystal(rattle=0.02)
    system = mixture(atoms, half(atoms))
    fraction, box, shift_fn, neighbor_fn, energy_fn = system
    integrator = simulate.npt(shift_fn, 2.0, 600.0, 20.0, tau_fs=60.0, barostat_tau_fs=150.0)
    velocity = np.asarray(run(system, simulate.nve(shift_fn, 2.0), 0).state.velocity)

    def ours(shift):
        result = run(system, integrator, 100, shift=shift, velocity=velocity, temperature_K=None)
        assert abs(result.log.volume[-1] / result.log.volume[0] - 1) > 0.02
        return result.state.position - np.broadcast_to(shift, (1, 3)), result.log.volume[-1]

    def theirs(shift):
        init_fn, apply_fn = jax_md_simulate.npt_nose_hoover(
            energy_fn, shift_fn, 2.0 * units.fs, 20.0 * units.GPa, 600.0 * units.kB,
            {"tau": 150.0 * units.fs}, {"tau": 60.0 * units.fs},
        )  # fmt: skip
        R = (fraction + np.broadcast_to(shift, (1, 3))) % 1.0
        nbrs = neighbor_fn.allocate(R, 10)
        state = init_fn(jax.random.key(0), R, jnp.asarray(box), mass=MASS, neighbor=nbrs)
        state = state.set(momentum=MASS * velocity)

        @jax.jit
        def step(state, nbrs):
            nbrs = nbrs.update(state.position, box=state.box)
            return apply_fn(state, neighbor=nbrs), nbrs

        for _ in range(100):
            state, nbrs = step(state, nbrs)
        return state.position - np.broadcast_to(shift, (1, 3)), jnp.linalg.det(state.box)

    for follow, least, most in ((ours, 0.0, 1e-9), (theirs, 1e-6, 1.0)):
        (a, volume_a), (b, volume_b) = follow(0.0), follow(jnp.array([0.37, 0.11, 0.71]))
        apart = np.abs(np.asarray((a - b) - jnp.round(a - b))).max()
        assert least <= apart <= most, (follow.__name__, apart)
        assert abs(volume_a / volume_b - 1) < 1e-2


def test_a_run_goes_on_under_another_ensemble_in_the_box_it_reached():
    atoms = crystal()
    system = mixture(atoms, half(atoms))
    fraction, box, shift_fn, neighbor_fn, energy_fn = system
    pressed = run(system, simulate.npt(shift_fn, 2.0, 300.0, 30.0, tau_fs=60.0, barostat_tau_fs=100.0), 150)
    assert pressed.log.volume[-1] < 0.97 * pressed.log.volume[0]
    volume = abs(np.linalg.det(pressed.state.box))
    np.testing.assert_allclose(volume, pressed.log.volume[-1], rtol=1e-12)
    on = simulate.run(
        neighbor_fn,
        energy_fn,
        simulate.nve(shift_fn, 1.0),
        pressed.state,
        n_steps=50,
        neighbors=pressed.neighbors,
    )
    np.testing.assert_allclose(on.log.volume, volume, rtol=1e-12)
    np.testing.assert_allclose(on.log.potential[0], pressed.log.potential[-1], atol=0.3)
    assert spread(on.log.total) < 0.02
    back = simulate.run(
        neighbor_fn,
        energy_fn,
        simulate.npt(shift_fn, 2.0, 300.0),
        on.state,
        n_steps=2,
        neighbors=on.neighbors,
        chunk_steps=1,
    )
    np.testing.assert_allclose(back.log.volume[0], volume, rtol=2e-3)


@pytest.mark.parametrize("kind", short(["one expert", "mixture"], only=["mixture"]))
def test_cell_relaxation_is_ases(kind):
    """Positions and cell of a sheared, rattled crystal under pressure, against `UnitCellFilter`."""
    atoms = crystal(rattle=0.03)
    shear = np.array([[1.02, 0.03, 0.0], [0.03, 0.97, 0.0], [0.0, 0.0, 1.03]])
    atoms.set_cell(atoms.cell @ shear, scale_atoms=True)
    region = fixed(np.ones(len(atoms), int)) if kind == "one expert" else half(atoms)
    fraction, box, shift_fn, neighbor_fn, energy_fn = mixture(atoms, region)
    found = simulate.relax(
        neighbor_fn, energy_fn, shift_fn, fraction, box=box, relax_cell=True, pressure_GPa=10.0, n_steps=2000,
        force_tolerance=1e-4,
    )  # fmt: skip
    assert found.converged and found.max_stress_GPa < 0.05
    if kind == "one expert":
        atoms.calc = LennardJones(epsilon=EPSILON, sigma=SIGMA, rc=CUTOFF, ro=0.8 * CUTOFF, smooth=True)
    else:
        checkpoint = mm.Checkpoint(PAIR, PARAMS, {}, {})
        atoms.calc = MixtureCalculator(checkpoint, region=np.asarray(region.assignment))
    with BFGS(UnitCellFilter(atoms, scalar_pressure=10.0 * units.GPa), logfile=None) as optimizer:
        optimizer.run(fmax=1e-4, steps=400)
    volume, pressure = abs(np.linalg.det(found.box)), 10.0 * units.GPa
    # the enthalpy is what is least: the energy alone follows each last bit of the volume, by pressure times
    # volume
    theirs = atoms.get_potential_energy() + pressure * atoms.get_volume()
    np.testing.assert_allclose(found.energy + pressure * volume, theirs, atol=1e-5)
    np.testing.assert_allclose(volume, atoms.get_volume(), rtol=2e-5)
    lengths = np.linalg.norm(found.box, axis=0)
    np.testing.assert_allclose(lengths, atoms.cell.lengths(), rtol=1e-4)


def test_a_mask_holds_parts_of_the_cell():
    atoms = crystal(a=3.8)
    fraction, box, shift_fn, neighbor_fn, energy_fn = mixture(atoms, half(atoms))
    mask = np.diag([1, 0, 0])
    found = simulate.relax(
        neighbor_fn,
        energy_fn,
        shift_fn,
        fraction,
        box=box,
        relax_cell=True,
        cell_mask=mask,
        n_steps=1000,
        force_tolerance=1e-3,
    )
    change = np.asarray(found.box) / box[0, 0] - np.eye(3)
    assert abs(change[0, 0]) > 1e-3
    change[0, 0] = 0.0
    assert np.abs(change).max() < 1e-12


def volumes(log_volume, skip):
    """Mean and its standard error from ten blocks."""
    kept = np.asarray(log_volume[skip:])
    blocks = kept[: len(kept) // 10 * 10].reshape(10, -1).mean(axis=1)
    return blocks.mean(), blocks.std(ddof=1) / np.sqrt(10)


def npt_volumes(atoms, checkpoint, region, system, n_steps, timestep_fs=4.0, temperature_K=300.0):
    """Mean volumes per atom of our barostat and of ASE's, with the same experts."""
    integrator = simulate.npt(system[2], timestep_fs, temperature_K, 0.0, tau_fs=100.0, barostat_tau_fs=400.0)
    ours = run(system, integrator, n_steps, temperature_K=temperature_K)
    atoms = atoms.copy()
    atoms.calc = MixtureCalculator(checkpoint, region=region)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature_K, rng=np.random.default_rng(2))
    Stationary(atoms)
    md = IsotropicMTKNPT(
        atoms, timestep_fs * units.fs, temperature_K=temperature_K, pressure_au=0.0,
        tdamp=100.0 * units.fs, pdamp=400.0 * units.fs,
    )  # fmt: skip
    theirs = []
    md.attach(lambda: theirs.append(atoms.get_volume()), interval=10)
    md.run(n_steps)
    n_atoms, skip = len(atoms), len(theirs) // 5
    pairs = [volumes(np.asarray(v) / n_atoms, skip) for v in (ours.log.volume, theirs)]
    print(
        f"volume per atom: ours {pairs[0][0]:.4f} ± {pairs[0][1]:.4f}, ASE {pairs[1][0]:.4f} ± "
        f"{pairs[1][1]:.4f} Å^3"
    )
    return pairs


def test_npt_gives_ases_volume():
    atoms = crystal(a=3.95)
    region = half(atoms)
    checkpoint = mm.Checkpoint(PAIR, PARAMS, {}, {})
    pairs = npt_volumes(atoms, checkpoint, np.asarray(region.assignment), mixture(atoms, region), 1500)
    (a, da), (b, db) = pairs
    assert abs(a - b) < 3.5 * np.hypot(da, db) and np.hypot(da, db) < 0.003 * a


@pytest.mark.slow
def test_npt_of_platinum_gives_ases_volume():
    """Bulk Pt at 300 K under the shipped pair, half of the crystal on each expert."""
    model = mm.load("ptco")
    atoms = bulk("Pt", a=3.98, cubic=True).repeat(3)
    atoms.rattle(0.05, seed=1)
    region = half(atoms)
    system = mixture(atoms, region, model.experts, model.params)
    (a, da), (b, db) = npt_volumes(atoms, model, np.asarray(region.assignment), system, 2500)
    assert abs(a - b) < 3.5 * np.hypot(da, db) and np.hypot(da, db) < 0.003 * a


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperature_K": 0.0}, "temperature_K must be positive, got 0"),
        ({"tau_fs": -1.0}, "tau_fs must be positive, got -1"),
        ({"barostat_tau_fs": 0.0}, "barostat_tau_fs must be positive, got 0"),
        ({"pressure_GPa": np.nan}, "pressure_GPa must be finite, got nan"),
    ],
)
def test_bad_barostats_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate.npt(None, **{"timestep_fs": 1.0, "temperature_K": 300.0, **arguments})


def test_a_barostat_needs_a_box():
    atoms = crystal()
    fraction, box, shift_fn, neighbor_fn, energy_fn = mixture(atoms, half(atoms))
    start = {"masses": np.full(108, MASS), "temperature_K": 1.0, "key": jax.random.key(0), "n_steps": 1}
    with pytest.raises(ValueError, match="box must be given .* got None"):
        run_from(neighbor_fn, energy_fn, simulate.npt(shift_fn, 1.0, 300.0), fraction, **start)
    with pytest.raises(ValueError, match="box must be a number, three edges or three independent columns"):
        run_from(neighbor_fn, energy_fn, simulate.nve(shift_fn, 1.0), fraction, box=np.ones((3, 3)), **start)
    still = run_from(neighbor_fn, energy_fn, simulate.nve(shift_fn, 1.0), fraction, **start)
    with pytest.raises(ValueError, match="state must have a box"):
        simulate.run(neighbor_fn, energy_fn, simulate.npt(shift_fn, 1.0, 300.0), still.state, n_steps=1)
    with pytest.raises(ValueError, match="box must be given where relax_cell = True"):
        simulate.relax(neighbor_fn, energy_fn, shift_fn, fraction, relax_cell=True)
    with pytest.raises(ValueError, match=r"cell_mask must be a symmetric \[3, 3\] array of zeros and ones"):
        simulate.relax(
            neighbor_fn, energy_fn, shift_fn, fraction, relax_cell=True, box=box, cell_mask=np.ones(3)
        )


def test_a_box_that_collapses_stops_the_run():
    atoms = crystal()
    system = mixture(atoms, half(atoms))
    with pytest.raises(
        simulate.SimulationError, match="at step .*: box must be wider than twice the cutoff"
    ) as caught:
        run(system, simulate.npt(system[2], 2.0, 300.0, 300.0, tau_fs=60.0, barostat_tau_fs=60.0), 400)
    assert np.isfinite(caught.value.state.position).all()
