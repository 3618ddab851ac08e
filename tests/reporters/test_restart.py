import dataclasses
import resource
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space
from trajectories import run_from

import moe_md as mm
from moe_md import simulate
from moe_md.reporters.restart import FORMAT, Restart, load_restart
from moe_md.simulate.advance import advance_chunk

SETTINGS = {"timestep_fs": 1.0, "region": [3.0, 1.5], "checkpoint": "abc"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class List:
    idx: tuple
    reference_position: Any
    size: int = dataclasses.field(metadata={"static": True})
    grid: tuple = dataclasses.field(metadata={"static": True})
    width: float = dataclasses.field(metadata={"static": True})
    update_fn: Any = dataclasses.field(metadata={"static": True})


class Dynamics(NamedTuple):
    position: jax.Array
    rng: jax.Array
    thermostat: dict


def update():
    pass


def state(seed=0, n_atoms=5, dtype=jnp.float64):
    position = jnp.asarray(np.random.default_rng(seed).normal(size=(n_atoms, 3)), dtype)
    weak = jnp.asarray(0.5) if seed else 0.5
    return simulate.State(
        Dynamics(position, jax.random.key(seed), {"chain": [position[0], np.int32(seed)], "tau": weak}),
        7 * seed,
        0.1 * seed,
    )


def neighbors(size=4, width=4.3):
    idx = (jnp.arange(5 * size, dtype=jnp.int32).reshape(5, size), jnp.arange(5, dtype=jnp.int32)[:, None])
    return List(idx, jnp.ones((5, 3)), size, (size, 1, 3), width, update)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "restart.msgpack"
    Restart(file, fingerprint=SETTINGS).on_state(state(3), neighbors(6))
    return file


def test_state_and_neighbors_read_back(path):
    got, rows = load_restart(path, state(0), neighbors(4), SETTINGS)
    assert jax.tree.structure(got) == jax.tree.structure(state(3)) and rows.update_fn is update
    assert (got.step, type(got.step), got.time_ps, rows.size, rows.grid) == (21, int, 0.1 * 3, 6, (6, 1, 3))
    assert jax.random.normal(got.dynamics.rng) == jax.random.normal(jax.random.key(3))
    np.testing.assert_array_equal(got.dynamics.position, state(3).dynamics.position)
    np.testing.assert_array_equal(got.dynamics.thermostat["chain"][0], state(3).dynamics.position[0])
    assert got.dynamics.thermostat["chain"][1] == 3
    assert got.dynamics.thermostat["tau"] == 0.5
    as_before = load_restart(path, state(1), neighbors(), SETTINGS)[0].dynamics.thermostat["tau"]
    assert as_before.weak_type and as_before == 0.5  # a strong type would compile another program
    np.testing.assert_array_equal(rows.idx[0], neighbors(6).idx[0])
    assert jax.tree.structure(rows) == jax.tree.structure(neighbors(6)) and rows.idx[0].dtype == jnp.int32
    assert list(path.parent.iterdir()) == [path]


def test_every_nth_state_is_written(tmp_path):
    path = tmp_path / "r"
    restart = Restart(path, every=3)
    on_disk = []
    for k in range(6):
        restart.on_state(state(k), neighbors())
        on_disk.append(load_restart(path, state(), neighbors())[0].step // 7)
    assert on_disk == [0, 0, 0, 3, 3, 3]
    restart.on_failure(state(9))  # no trajectory contains this state
    assert load_restart(path, state(), neighbors())[0].step == 7 * 5
    path.unlink()
    restart.close()
    assert not path.exists()  # everything was written


def test_another_run_is_refused(path):
    other = {**SETTINGS, "timestep_fs": 2.0, "seed": 1}
    with pytest.raises(
        ValueError,
        match="restart.msgpack must be a restart of the same run, but seed was absent and is 1; "
        "timestep_fs was 1.0 and is 2.0",
    ):
        load_restart(path, state(), neighbors(), other)
    load_restart(
        path, state(), neighbors(), {"timestep_fs": np.float64(1), "region": (3.0, 1.5), "checkpoint": "abc"}
    )


@pytest.mark.parametrize(
    "like_state, like_neighbors, message",
    [
        (
            state(n_atoms=6),
            neighbors(),
            r"state.dynamics.position must be float64\[6, 3\], got float64\[5, 3\]",
        ),
        (
            state(dtype=jnp.float32),
            neighbors(),
            r"state.dynamics.position must be float32\[5, 3\], got float64",
        ),
        (state()._replace(step=0.0), neighbors(), "state.step must be a number like 0.0, got 21"),
        (
            state()._replace(dynamics=neighbors()),
            neighbors(),
            r"state.dynamics must hold \['grid', 'idx'.*got \['position', 'rng'",
        ),
        (state(), neighbors(width=5.0), "neighbors.width must be 5.0, got 4.3"),
        (state(), neighbors().idx, r"neighbors must hold \['0', '1'\], got \['grid'"),
        (
            state(),
            dataclasses.replace(neighbors(), reference_position=jnp.ones(3)),
            "neighbors.reference_position must be float64 of 1 dimensions",
        ),
        (
            state(),
            dataclasses.replace(neighbors(), reference_position=jax.random.key(0)),
            "neighbors.reference_position must be a random key of threefry2x32, got ndarray",
        ),
    ],
)
def test_another_kind_of_run_is_refused(path, like_state, like_neighbors, message):
    with pytest.raises(
        ValueError, match="restart.msgpack must fit the run that it continues, but " + message
    ):
        load_restart(path, like_state, like_neighbors, SETTINGS)


def test_damage_is_refused(path, tmp_path):
    complete = path.read_bytes()
    for length in (0, 1, 100, len(complete) - 1):
        path.write_bytes(complete[:length])
        with pytest.raises(
            ValueError, match="restart.msgpack must (be a whole moe_md restart|have restart format)"
        ):
            load_restart(path, state(), neighbors(), SETTINGS)
    for byte in range(60, len(complete), 97):
        path.write_bytes(complete[:byte] + bytes([complete[byte] ^ 1]) + complete[byte + 1 :])
        with pytest.raises(
            ValueError, match="restart.msgpack must (be a whole moe_md restart|have restart format)"
        ):
            load_restart(path, state(), neighbors(), SETTINGS)
    content = flax.serialization.msgpack_restore(complete)
    path.write_bytes(flax.serialization.msgpack_serialize({**content, "format": FORMAT + 1}))
    with pytest.raises(ValueError, match=f"must have restart format {FORMAT}, got {FORMAT + 1}"):
        load_restart(path, state(), neighbors(), SETTINGS)
    with pytest.raises(ValueError, match="nowhere must be a whole moe_md restart, but it cannot be read"):
        load_restart(tmp_path / "nowhere", state(), neighbors())


def test_full_disk(path):
    """The older restart is kept, and the next one is written when there is space."""
    older = path.read_bytes()
    restart = Restart(path, fingerprint=SETTINGS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match="cannot be written, the previous file is unchanged"):
            restart.on_state(state(4), neighbors())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == older and list(path.parent.iterdir()) == [path]
    restart.close()
    assert load_restart(path, state(), neighbors(), SETTINGS)[0].step == 28


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="every must be a whole number of chunks, at least 1, got 0"):
        Restart(tmp_path / "r", every=0)
    with pytest.raises(ValueError, match="fingerprint must be a dict that JSON can store"):
        Restart(tmp_path / "r", fingerprint={"x": object()})
    with pytest.raises(TypeError, match="arrays, numbers and strings in containers, got bytes"):
        Restart(tmp_path / "r").on_state(state(), b"x")
    with pytest.raises(OSError, match="cannot be written.*No such file or directory.*nowhere/r"):
        Restart(tmp_path / "nowhere" / "r").on_state(state(), ())


@pytest.mark.thorough
def test_continues_bit_for_bit_and_compiles_nothing(tmp_path):
    """In one process, through a file, with a random key: the continued run uses the same programs."""
    n = 64
    R = 2.6 * np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3) + 0.1
    displacement_fn, shift_fn = space.periodic(10.4)
    experts = [mm.experts.lennard_jones(("Pt",), 4.0, epsilon=e, sigma=2.3) for e in (0.4, 0.3)]
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn,
        10.4,
        mm.experts.potentials(experts, [e.init(None) for e in experts]),
        np.zeros(n, int),
        mm.regions.around([0], 3.0, 1.0),
    )

    def run(*args, **kwargs):
        integrator = simulate.langevin(shift_fn, 1.0, 300.0, 0.01)
        return run_from(neighbor_fn, energy_fn, integrator, *args, chunk_steps=5, **kwargs)

    begin = dict(masses=np.full(n, 195.0), temperature_K=300.0, key=jax.random.key(1))
    path = tmp_path / "r"
    uninterrupted = run(jnp.asarray(R), n_steps=40, **begin)
    half = run(jnp.asarray(R), n_steps=20, reporters=[Restart(path)], **begin)
    compiled = advance_chunk._cache_size()
    others = half.state.dynamics.set(position=jnp.zeros((n, 3)), rng=jax.random.key(9))
    like = half.state._replace(dynamics=others, step=0)
    restored, neighbors = load_restart(path, like, neighbor_fn.allocate(jnp.asarray(R)))
    rest = run(n_steps=20, state=restored, neighbors=neighbors)
    for got, expected in zip(jax.tree.leaves(rest.state), jax.tree.leaves(uninterrupted.state)):
        assert jnp.all(got == expected)
    np.testing.assert_array_equal(rest.log.potential, uninterrupted.log.potential[-4:])
    assert advance_chunk._cache_size() == compiled
