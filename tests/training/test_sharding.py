"""A training on eight devices equals the training on one.

Run as a program, `test_sharding.py FOLDER` trains on eight simulated devices and prints its results as JSON.
It is a program of its own, as the number of devices must be set before jax starts.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import conftest  # noqa: F401  float64, and compiled programs kept between runs

import small_training

import moe_md as mm
from moe_md.data.batching import prepare
from moe_md.data.references import reference_from_atoms
from moe_md.settings import LossWeights
from moe_md.training import inputs as training_inputs_module
from moe_md.training import parameters, step
from moe_md.training.cotrain import cotrain
from moe_md.training.inputs import training_inputs
from moe_md.training.sharding import on_devices

HERE = Path(__file__).parent
SPECIES = small_training.SPECIES
STEPS = 30
# All terms of the loss; 4 + 3 unlabelled rows, which eight devices cannot share evenly.
SETTINGS = replace(
    small_training.settings(STEPS),
    weights=LossWeights(agree_forces=0.5, agree_random_assignment=1.0),
)
AGREEMENT = {
    "environments": replace(small_training.ENVIRONMENTS, perfect_rows=3),
    "references": [reference_from_atoms(atoms) for atoms in small_training.REFERENCES],
}
ENVIRONMENTS = training_inputs_module.environments_of(
    AGREEMENT["references"], small_training.EXPERTS, AGREEMENT["environments"]
)
TINY = dict(
    num_layers=1,
    num_scalar_features=4,
    num_tensor_features=2,
    scalar_embed_mlp=(4,),
    allegro_mlp=(4,),
    readout_mlp=(4,),
)


def double(tree):
    """A batch, hyperparameters or parameters in float64."""
    return jax.tree.map(lambda x: np.asarray(x, float) if np.asarray(x).dtype == np.float32 else x, tree)


def steps(devices, found):
    """Terms of each of `STEPS` training steps in float64, and the final parameters, by Adam.

    (SOAP's bases are arbitrary where a gradient is zero, which amplifies the order of sums.)
    """
    experts = (mm.experts.allegro(SPECIES, 3.5, l_max=1, **TINY), small_training.EXPERTS[1])
    data, place = small_training.frames(7, 0), on_devices(devices)
    optimizer = optax.chain(optax.clip_by_global_norm(SETTINGS.clip_norm), optax.scale_by_adam())
    config = step.StepConfig(experts, optimizer, SETTINGS.seed, None, place.mesh)
    step_fn = place.compiled(partial(step.training_step, config))
    train = prepare(data, 3.5, dtype=np.float64)
    params = parameters.initial_params(experts, data, SETTINGS, train)
    params = jax.tree.map(jax.numpy.asarray, double(params))
    state = place.state(step.initial_state(config, params))
    inputs = training_inputs(ENVIRONMENTS, train, SETTINGS, 0)
    rates = step.learning_rates(SETTINGS)
    all_terms = []
    for k in range(STEPS):
        numbers = double(step.hyperparameters(SETTINGS, rates, k))
        labelled, unlabelled = (place.batch(double(batch)) for batch in next(inputs))
        if k == 0:
            found["program"] = step_fn.lower(numbers, state, labelled, unlabelled).compile().as_text()
            found["widths"] = sorted({batch.rows.mask.shape[1] for batch in (labelled, unlabelled)})
            found["rows"] = [len(batch.row_mask) for batch in (labelled, unlabelled)]
        state, terms = step_fn(numbers, state, labelled, unlabelled)
        all_terms.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(terms)]))
    found["compiled"] = step_fn._cache_size()
    return np.array(all_terms), [np.asarray(x) for x in jax.tree.leaves(state.params)]


def shapes(program: str) -> set[tuple[int, ...]]:
    """Shapes of all arrays of floating point numbers in a compiled program."""
    return {tuple(map(int, s.split(","))) for s in re.findall(r"f64\[([\d,]+)\]", program)}


def gathered(program: str) -> list[tuple[int, ...]]:
    """Shapes of arrays that devices collect from each other without summing them."""
    lines = [
        line
        for line in program.splitlines()
        if re.search(r" (all-gather|all-to-all|collective-permute)(-start)?\(", line)
    ]
    return sorted(
        {
            tuple(map(int, s.split(",")))
            for line in lines
            for s in re.findall(r"\w\d+\[([\d,]+)\]", line.split("(")[0])
        }
    )


def summed(program: str) -> set[tuple[int, ...]]:
    """Shapes of arrays that are summed over devices."""
    lines = [
        re.split(r" all-reduce(?:-start)?\(", line)[0]
        for line in program.splitlines()
        if re.search(r" all-reduce(-start)?\(", line)
    ]
    return {tuple(map(int, s.split(","))) for line in lines for s in re.findall(r"f64\[([\d,]+)\]", line)}


def compared() -> dict:
    one, eight = {}, {}
    terms, params = steps(None, one)
    sharded_terms, sharded_params = steps(jax.devices(), eight)
    size = np.abs(terms).max(axis=0)
    return {
        "terms": int(np.sum(size > 0)),
        "difference": float((np.abs(terms - sharded_terms) / np.where(size > 0, size, 1.0)).max()),
        "params_difference": max(float(np.abs(a - b).max()) for a, b in zip(params, sharded_params)),
        "moved": float(np.abs(params[-1]).max()),
        "compiled": eight["compiled"],
        "rows": [one["rows"], eight["rows"]],
        "widths": eight["widths"],
        "shapes": [sorted(shapes(x["program"])) for x in (one, eight)],
        "gathered": gathered(eight["program"]),
        "summed": sorted(summed(eight["program"])),
        "of_params": sorted({p.shape for p in params if p.ndim > 1}),
    }


class Killed(Exception):
    pass


def trained(folder, devices, until=None, **changes):
    """`cotrain` on these devices, killed when it makes the unlabelled batch of step `until`."""
    environment_batch = training_inputs_module.environment_batch

    def killing(environments, seed, step):
        if step == until:
            raise Killed
        return environment_batch(environments, seed, step)

    training_inputs_module.environment_batch = killing
    try:
        return cotrain(
            small_training.EXPERTS,
            small_training.frames(7, 0),
            replace(SETTINGS, **changes),
            **AGREEMENT,
            validation=small_training.frames(3, 1),
            folder=folder,
            progress=False,
            devices=devices,
        )
    except Killed:
        return None
    finally:
        training_inputs_module.environment_batch = environment_batch


def trainings(folder) -> dict:
    """Results of `cotrain` in float32: by SOAP on eight devices; by Adam on one, and on eight.

    One more, by Adam, is resumed on other devices: on one, eight, three and one.
    """
    soap = trained(folder / "soap", jax.devices())
    step.scale_by_soap = optax.scale_by_adam
    alone = trained(None, None)
    together = trained(None, jax.devices())
    for devices, until in ((None, 7), (jax.devices(), 14), (jax.devices()[:3], 22)):
        assert trained(folder / "moved", devices, until) is None
    moved = trained(folder / "moved", None)

    def losses(result):
        return [entry["loss"] for entry in result.record["history"]]

    return {
        "differences": [difference(alone, together), difference(alone, moved)],
        "losses": [losses(alone), losses(together), losses(moved)],
        "devices": [result.record["devices"] for result in (soap, together, moved)],
        "finite": bool(np.isfinite(losses(soap)).all()),
        "stored": difference(mm.load(folder / "soap" / "checkpoint.msgpack"), soap),
    }


def difference(a, b) -> float:
    """Largest difference of the parameters of two checkpoints."""
    leaves = zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params))
    return max(float(np.abs(x - y).max()) for x, y in leaves)


def with_extra_loss() -> dict:
    def square(params, step):
        return 1e-3 * sum(jax.numpy.sum(x**2) for x in jax.tree.leaves(params)) * (1.0 + step)

    a, b = (
        cotrain(
            small_training.EXPERTS,
            small_training.frames(3, 0),
            replace(SETTINGS, steps=3),
            **AGREEMENT,
            extra_loss=square,
            progress=False,
            devices=devices,
        )
        for devices in (None, jax.devices()[:2])
    )
    return {"difference": difference(a, b)}


if __name__ == "__main__":
    answers = {
        "devices": len(jax.devices()),
        "compared": compared(),
        "cotrain": trainings(Path(sys.argv[1])),
        "extra": with_extra_loss(),
    }
    print(json.dumps(answers), flush=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results of this file run as a program."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path_factory.mktemp("trainings"))],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(Path(mm.__file__).parent.parent), str(HERE), str(HERE.parent)]
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


def test_all_terms_and_parameters_equal_those_of_one_device(found):
    compared = found["compared"]
    assert compared["terms"] >= 20 and compared["moved"] > 0
    assert compared["difference"] < 1e-10 and compared["params_difference"] < 1e-10


def test_batches_that_do_not_divide_are_padded(found):
    assert found["compared"]["rows"] == [[8, 7], [8, 8]]


def test_each_device_computes_its_rows_only(found):
    """A device has one row of eight with its neighbours, never all; only forces on atoms are collected."""
    compared = found["compared"]
    alone, shared = ({tuple(s) for s in program} for program in compared["shapes"])
    for width in compared["widths"]:
        all_rows = {(8, width, 3), (7, width, 3)}  # displacements, or derivatives with respect to them
        assert all_rows & alone and not all_rows & shared and (1, width, 3) in shared
    assert all(np.prod(s) <= 3 * 8 for s in compared["gathered"])


def test_little_more_than_gradients_is_summed_over_devices(found):
    compared = found["compared"]
    summed = {tuple(s) for s in compared["summed"]}
    for shape in map(tuple, compared["of_params"]):
        assert any(np.prod(s) == np.prod(shape) for s in summed), shape
    most = max(np.prod(s) for s in compared["of_params"])
    assert max(np.prod(s) for s in summed) <= max(most, 9 * 8)


def test_a_step_compiles_once_per_shape(found):
    assert found["compared"]["compiled"] == 1


def test_cotrain_resumes_on_another_number_of_devices(found):
    results = found["cotrain"]
    assert max(results["differences"]) < 1e-4  # single precision, thirty steps
    alone, together, moved = results["losses"]
    assert len(alone) == 3
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    np.testing.assert_allclose(moved, alone, rtol=1e-4)
    assert results["devices"] == [8, 8, 1]


def test_soap_trains_on_eight_devices_and_is_stored(found):
    assert found["cotrain"]["finite"] and found["cotrain"]["stored"] == 0.0


def test_extra_loss_equals_that_of_one_device(found):
    assert found["extra"]["difference"] < 1e-4


def test_one_given_device_equals_the_default(monkeypatch):
    monkeypatch.setattr(step, "scale_by_soap", optax.scale_by_adam)
    data = small_training.frames(3, 0)
    a, b = (
        cotrain(
            small_training.EXPERTS,
            data,
            small_training.settings(2),
            **AGREEMENT,
            progress=False,
            devices=devices,
        )
        for devices in (None, jax.devices()[:1])
    )
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params)):
        np.testing.assert_allclose(x, y, atol=1e-6)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], "devices must be at least one, and each only once, got \\[\\]"),
        (2, "devices must be jax's devices, such as jax.devices\\(\\), got 2"),
        ("all", "devices must be jax's devices, such as jax.devices\\(\\), got 'all'"),
        ([0, 1], "devices must be jax's devices, such as jax.devices\\(\\), got \\[0, 1\\]"),
        (2 * jax.devices()[:1], "devices must be at least one, and each only once"),
    ],
)
def test_invalid_devices_are_refused(devices, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        cotrain(
            small_training.EXPERTS,
            small_training.frames(2, 0),
            small_training.settings(1),
            **AGREEMENT,
            folder=tmp_path / "x",
            devices=devices,
        )
    assert not (tmp_path / "x").exists()
