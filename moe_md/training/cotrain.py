"""Co-training: one optax loop over the parameters of both experts.

Each step sees one batch of labelled frames and one of metal environments made
on the fly, which carry no labels and ask for agreement only. Everything random
follows from the seed and the step, and all that steps hand on is saved
(`progress.py`), so that a run that was killed, interrupted or out of disk ends,
once it is started again, with the same bits as one that never stopped (on a
device whose sums are reproducible, as a CPU's are).

Labels of two methods never meet in one loss, their zeros and their biases
differ: train on the many of the lesser method, then `start` from that on the
few of the better one.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ase.data import chemical_symbols
from tqdm import tqdm

from moe_md import checkpoint
from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import Batch, Prepared, batches, collate, frame_rows, prepare
from moe_md.data.dataset import (
    Dataset,
    dataset_from_frames,
    digest,
    force_rms,
    reference_energies,
    require_labels,
    summary,
)
from moe_md.data.environments import ideal_crystals, metal_frames
from moe_md.data.reading import Frame
from moe_md.data.structures import fcc_supercell
from moe_md.experts.base import Expert, Params
from moe_md.settings import LossWeights, TrainSettings
from moe_md.simulate import interrupts
from moe_md.training import progress as progress_file
from moe_md.training.evaluation import describe, loss_of, scores_of, totals_of
from moe_md.training.losses import Terms, joint_loss, joint_terms, predict
from moe_md.training.progress import Best, Progress, State, is_finite
from moe_md.training.sharding import on_devices
from moe_md.training.soap import scale_by_soap

DEFAULTS = TrainSettings()
SLOT_STEP = 16  # slots of environment batches are rounded up to this


def cotrain(
    experts: Sequence[Expert],
    dataset: Dataset,
    settings: TrainSettings = DEFAULTS,
    *,
    validation: Dataset | None = None,
    start: Checkpoint | None = None,
    extra_loss: Callable[[tuple[Params, ...], jax.Array], jax.Array] | None = None,
    watch: Callable[[int, tuple[Params, ...]], None] | None = None,
    folder=None,
    progress: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Checkpoint:
    """Train an expensive and a cheap expert together.

    Both get the reference energies and the force scale of the data. The cheap
    expert's data are the frames wholly in its domain; on the other frames the
    mixed energy is fitted, the expensive expert owning what the cheap one may
    not. Where both are at home they are made to agree.

    Args:
        experts: the expensive one, whose domain is every species, then the cheap one.
        dataset: labelled frames; labels may be missing here and there.
        settings: see `TrainSettings`.
        validation: frames to report errors on, and to stop by where
            `settings.patience` is set; groups apart from `dataset`.
        start: parameters to begin with, of the same experts, such as those
            trained on many frames of a lesser method. Their reference energies
            move to the data's: by least squares of what is left on composition.
        extra_loss: `(params, step) -> number`, differentiable and traced, added
            to the loss of every step; `step` (int, from 0) lets it grow, or wait
            its turn (`jax.lax.cond`). For what no single frame shows, such as a
            short trajectory's error (`gradients.rollout`). To go on, a training
            must be given one of the same name again.
        watch: called with the number of steps done and the averaged parameters,
            every `settings.validate_every` steps and after the last, with a
            `validation` or without: for what only a person asks, such as ghost
            forces along a training. Training does not mind what it does.
        folder: where `training.msgpack` (to resume from) and
            `checkpoint.msgpack` go; nothing is written where None. A folder
            that holds a `training.msgpack` of the same settings, experts and
            data is resumed; an interrupt (Ctrl-C) saves the last whole step.
        progress: show a bar with both experts' errors and their mismatch.
        devices: those of jax, such as `jax.devices()`, that share the rows of
            every batch (`sharding`); None for one. `settings.max_atoms` is of all
            together. Batches and losses are those of one device but for the
            order of sums, and a training may go on with another number.

    Returns:
        Experts, averaged parameters (the best of all validations where
        `settings.patience` is set, else the last), settings and record.

    Raises:
        ValueError: experts do not fit each other, the data or `start`, a label
            that the loss asks for is missing everywhere, patience finds no
            validation, devices are none, or not jax's, or `folder` holds another training, or a damaged one.
        OSError: a file cannot be written; what was saved before is whole.
        FloatingPointError: the loss is no longer finite.
    """
    experts = tuple(experts)
    _check_experts(experts)
    species = experts[0].species
    dataset = dataset_from_frames(dataset.frames, species)
    weights = settings.weights
    if settings.metal not in chemical_symbols[1:]:
        raise ValueError(f"metal must be a chemical symbol, got {settings.metal!r}.")
    require_labels(dataset, energy=weights.energy > 0, forces=weights.forces > 0)
    if extra_loss is not None and not callable(extra_loss):
        raise ValueError(f"extra_loss must be a function of params and step, got {extra_loss!r:.80}.")
    if watch is not None and not callable(watch):
        raise ValueError(f"watch must be a function of step and params, got {watch!r:.80}.")
    if settings.patience and validation is None:
        raise ValueError(f"validation must be given where patience is, {settings.patience}, got None.")
    if start is not None and [e.config for e in start.experts] != [e.config for e in experts]:
        raise ValueError(f"start must hold the experts to train, got {[e.config for e in start.experts]}.")
    place = on_devices(devices)
    cutoff = max(e.cutoff for e in experts)
    train = prepare(dataset, cutoff)
    held_out = (
        None if validation is None else prepare(dataset_from_frames(validation.frames, species), cutoff)
    )

    optimizer = optax.chain(optax.clip_by_global_norm(settings.clip_norm), scale_by_soap())
    step_fn = place.compiled(
        partial(
            _step,
            experts,
            optimizer,
            settings.seed if weights.agree_random_assignment else None,
            extra_loss,
            mesh=place.mesh,
        )
    )
    knobs = _knobs(settings)
    terms_of = place.compiled(partial(joint_terms, experts, mesh=place.mesh))
    fingerprint = {
        "settings": asdict(settings),
        "experts": [e.config for e in experts],
        "data": digest(dataset),
        "validation data": None if validation is None else digest(validation),
        "start": None if start is None else _digest(start.params),
        **(
            {}
            if extra_loss is None
            else {"extra loss": getattr(extra_loss, "__name__", type(extra_loss).__name__)}
        ),
    }
    params = (
        _initial_params(experts, dataset, settings)
        if start is None
        else _moved(start, dataset, train, settings.max_atoms)
    )
    state = State(jnp.asarray(0), params, params, optimizer.init(params))
    here = Progress(state, Best(0, np.inf, params), {}, [], 0.0)
    if folder is not None:
        here = progress_file.read(folder, here, fingerprint)
    here = here._replace(state=place.state(here.state))
    started = time.monotonic() - here.seconds

    def terms_fn(params, batch: Batch) -> Terms:
        return terms_of(params, place.batch(batch))

    def result() -> Checkpoint:
        return _result(experts, here, settings, dataset, validation, start, devices)

    inputs = (tuple(map(place.batch, pair)) for pair in _inputs(experts, train, settings, here.step))
    batch = next(inputs)
    try:
        bar_of = partial(tqdm, initial=here.step, disable=not progress, desc="co-training", unit="step")
        with interrupts.kept() as check_interrupt, bar_of(total=settings.steps) as bar:
            for step in range(here.step + 1, settings.steps + 1):
                check_interrupt()
                if _out_of_patience(here, settings):
                    break
                state, terms = step_fn(knobs(step - 1), here.state, *batch)
                batch = next(inputs)  # while the device works
                # `here` changes all at once: an interrupt finds a whole step.
                now = here._replace(
                    state=state, running=_running(here.running, terms), seconds=time.monotonic() - started
                )
                done = step == settings.steps
                save, validate = (
                    done or step % n == 0 for n in (settings.save_every, settings.validate_every)
                )
                if save or validate:
                    _check_finite(now, settings)
                if validate and held_out is not None:
                    now = _validated(
                        now, totals_of(terms_fn, state.average, held_out, settings.max_atoms), settings
                    )
                    if progress:
                        bar.write(f"step {step}: " + describe(now.history[-1]))
                here = now
                if validate and watch is not None:
                    watch(step, jax.tree.map(np.asarray, state.average))
                if save and folder is not None:
                    progress_file.write(folder, here, fingerprint)
                    checkpoint.save(Path(folder) / "checkpoint.msgpack", result())
                if step % 20 == 0:
                    bar.update(20)
                    bar.set_postfix_str(_errors_line(here.running))
    except KeyboardInterrupt:
        if folder is not None and is_finite(here):
            progress_file.write(folder, here, fingerprint)
        raise
    if folder is not None:  # also where a finished training was killed before it wrote this
        checkpoint.save(Path(folder) / "checkpoint.msgpack", result())
    return result()


def environment_batch(experts: Sequence[Expert], settings: TrainSettings, step: int) -> Batch | None:
    """Unlabelled metal environments of one step, padded to few shapes.

    Distorted metal, and perfect crystals under strain with a weight of their
    own: what two experts disagree about in the mean crystal does not average
    out in a run, however small beside their thermal disagreement.
    """
    if settings.unlabelled_atoms + settings.ideal_crystals == 0:
        return None
    rng = np.random.default_rng([settings.seed, 1, step])
    crystal = {"symbol": settings.metal, "lattice_constant": settings.lattice_constant}
    frames = ideal_crystals(rng, settings.ideal_crystals, max_strain=settings.max_ideal_strain, **crystal)
    weights = [settings.ideal_crystal_weight] * len(frames)
    if settings.unlabelled_atoms:
        distortion = {"max_strain": settings.max_strain, "max_rattle": settings.max_rattle}
        frames += metal_frames(rng, settings.unlabelled_atoms, **distortion, **crystal)
        weights += [1.0] * (len(frames) - len(weights))
    species, cutoff = experts[0].species, max(e.cutoff for e in experts)
    rows = [frame_rows(f, species, cutoff) for f in frames]
    dense = fcc_supercell(settings.metal, settings.lattice_constant * (1 - settings.max_strain), 1)
    wide = frame_rows(dense, species, cutoff + settings.max_rattle)
    slots = max(r.mask.shape[1] for r in (wide, *rows))
    return collate(
        frames,
        species,
        cutoff,
        n_rows=settings.unlabelled_atoms + settings.ideal_crystals,
        max_neighbors=-(-slots // SLOT_STEP) * SLOT_STEP,
        n_frames=settings.unlabelled_atoms // 4 + settings.ideal_crystals,
        cached_rows=rows,
        weights=weights,
    )


class StepHyperparameters(NamedTuple):
    """What a step is told by numbers: another value compiles nothing anew."""

    learning_rate: np.float32
    agreement: np.float32  # share of the weights of agreement
    pull: np.float32  # share of agreement's gradient that reaches the expensive expert
    decay: np.float32  # of the average
    weights: LossWeights


def _knobs(settings: TrainSettings) -> Callable[[int], StepHyperparameters]:
    """What each step is told, counted from 0."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        settings.learning_rate,
        min(settings.warmup_steps, settings.steps // 2),
        settings.steps,
        settings.learning_rate * settings.final_learning_rate,
    )
    learning_rates = np.asarray(schedule(jnp.arange(settings.steps)), np.float32)
    weights = jax.tree.map(np.float32, settings.weights)

    def knobs(step: int) -> StepHyperparameters:
        # Two experts agree soonest on nothing at all: let the data speak first.
        agreement = ((step + 1) / settings.steps) ** settings.agreement_ramp
        # An average that starts at the start: full weight to the newest at first.
        decay = min(settings.ema_decay, (1.0 + step) / (10.0 + step))
        return StepHyperparameters(
            learning_rates[step],
            *map(np.float32, (agreement, settings.agreement_gradient_scale, decay)),
            weights,
        )

    return knobs


def _step(
    experts,
    optimizer,
    lots_seed: int | None,
    extra_loss: Callable | None,
    knobs: StepHyperparameters,
    state: State,
    labelled: Batch,
    environment: Batch | None,
    mesh=None,
):
    def terms_of(params, batch: Batch) -> Terms:
        lots = None
        if lots_seed is not None:
            lots = jax.random.bernoulli(
                jax.random.fold_in(jax.random.key(lots_seed), state.step), shape=batch.row_mask.shape
            )
        return joint_terms(experts, params, batch, knobs.pull, lots, mesh)

    def loss_fn(params):
        params = tuple(_frozen(p) for p in params)
        terms = terms_of(params, labelled)
        loss = joint_loss(knobs.weights, terms, knobs.agreement)
        if environment is not None:
            loss = loss + joint_loss(knobs.weights, terms_of(params, environment), knobs.agreement)
        if extra_loss is not None:
            loss = loss + extra_loss(params, state.step)
        return loss, terms

    gradient, terms = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = jax.tree.map(lambda p, u: p - knobs.learning_rate * u, state.params, updates)
    average = jax.tree.map(lambda a, p: a + (1.0 - knobs.decay) * (p - a), state.average, params)
    return State(state.step + 1, params, average, optimizer_state), terms


def _frozen(params: Params) -> Params:
    """Scale and shift come from the data and stay."""
    held = {k: jax.lax.stop_gradient(params[k]) for k in ("scale", "shift") if k in params}
    return {**params, **held}


def _initial_params(experts, dataset: Dataset, settings: TrainSettings) -> tuple[Params, ...]:
    """Random, with scale and shift of the data."""
    references = reference_energies(dataset)
    scale = force_rms(dataset)
    params = []
    for n, expert in enumerate(experts):
        p = expert.init(jax.random.fold_in(jax.random.key(settings.seed), n))
        if "shift" in p:
            p["shift"] = jnp.asarray([references[s] for s in expert.species])
            p["scale"] = jnp.full(len(expert.species), scale)
        params.append(p)
    return _single_precision(params)


def _moved(start: Checkpoint, dataset: Dataset, train: Prepared, max_atoms: int) -> tuple[Params, ...]:
    """Trained parameters, their reference energies moved to those of other labels."""
    expert, params = start.experts[0], start.params[0]
    energy_fn = jax.jit(lambda batch: predict(expert, params, batch).energy)
    composition, missing = [], []
    for batch in batches(train, max_atoms=max_atoms):
        at = batch.energy_mask
        species = np.eye(len(expert.species) + 1)[np.where(batch.row_mask, batch.rows.center_species, -1)][
            :, :-1
        ]
        composition.append(
            np.stack([species[batch.frame == k].sum(0) for k in np.flatnonzero(at)])
            if at.any()
            else species[:0]
        )
        missing.append((batch.energy - np.asarray(energy_fn(batch)))[at])
    offset = np.linalg.lstsq(np.concatenate(composition), np.concatenate(missing), rcond=None)[0]
    return _single_precision(
        [{**p, "shift": p["shift"] + offset} if "shift" in p else p for p in start.params]
    )


def _single_precision(params: Sequence[Params]) -> tuple[Params, ...]:
    return tuple(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p) for p in params)


def _digest(params) -> str:
    leaves = [np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def _inputs(
    experts, train: Prepared, settings: TrainSettings, start: int
) -> Iterator[tuple[Batch, Batch | None]]:
    """What each step sees, without end, from step `start`."""
    for step, labelled in enumerate(_labelled(train, settings, start), start):
        yield labelled, environment_batch(experts, settings, step)


def _labelled(train: Prepared, settings: TrainSettings, start: int) -> Iterator[Batch]:
    """Batches without end, shuffled anew each epoch, from the one of step `start`."""
    epoch, seen, weights = 0, 0, frame_weights(train.frames, settings.force_downweight_above)
    while True:
        rng = np.random.default_rng([settings.seed, 0, epoch])
        for batch in batches(train, max_atoms=settings.max_atoms, rng=rng, weights=weights):
            if seen >= start:
                yield batch
            seen += 1
        epoch += 1


def frame_weights(frames: Sequence[Frame], force_downweight_above: float) -> list[float]:
    """Weight of each frame.

    It is one, but (force_downweight_above / F)^2 where the frame's root mean square force F
    is larger; one without forces.

    A few squeezed frames must be seen, so that dynamics finds them steep, but
    squares of their forces would outweigh all the others.
    """
    sizes = [0.0 if f.forces is None else float(np.sqrt(np.mean(f.forces**2))) for f in frames]
    return [min(1.0, force_downweight_above / size) ** 2 if size else 1.0 for size in sizes]


def _running(running: dict, terms: Terms) -> dict:
    """Smoothed root mean square errors for the progress bar, meV/Å."""
    terms = jax.device_get(terms)  # at once: each look at a device's array is a program of its own
    now = {
        "expensive": (terms.expensive.forces, terms.expensive.count[1]),
        "cheap": (terms.cheap.forces, terms.cheap.count[1]),
        "mismatch": (terms.mismatch.partial_forces, terms.mismatch.count[0]),
    }
    new = {}
    for name, (square, count) in now.items():
        old = running.get(name, 0.0)
        value = 1e3 * float(square) ** 0.5
        new[name] = old if float(count) == 0 else (0.98 * old + 0.02 * value if old else value)
    return new


def _errors_line(running: dict[str, float]) -> str:
    return f"F {running['expensive']:.0f} | {running['cheap']:.0f} mismatch {running['mismatch']:.1f} meV/Å"


def _validated(here: Progress, totals: dict[str, np.ndarray], settings: TrainSettings) -> Progress:
    """With what validation measured."""
    loss = loss_of(totals, settings.weights)
    best = Best(here.step, loss, here.state.average) if loss < here.best.loss else here.best
    return here._replace(
        best=best,
        history=[
            *here.history,
            {"step": here.step, "loss": loss, **scores_of(totals), "train": here.running},
        ],
    )


def _out_of_patience(here: Progress, settings: TrainSettings) -> bool:
    """Enough validations have passed since the best one."""
    return (
        here.best.step > 0 and 0 < settings.patience * settings.validate_every <= here.step - here.best.step
    )


def _check_finite(here: Progress, settings: TrainSettings) -> None:
    if not is_finite(here):
        raise FloatingPointError(
            f"the loss or the parameters are not finite at step {here.step}: lower learning_rate = "
            f"{settings.learning_rate}; the last saved state is whole."
        )


def _result(experts, here: Progress, settings, dataset, validation, start, devices) -> Checkpoint:
    best = here.best.step if settings.patience else 0
    record = {
        "step": here.step,
        "best_step": best or None,
        "seconds": round(here.seconds, 1),
        "jax": jax.__version__,
        "device": (jax.devices() if devices is None else devices)[0].device_kind,
        "devices": 1 if devices is None else len(devices),
        "train": summary(dataset),
        "validation": None if validation is None else summary(validation),
        "history": here.history,
        "start": None
        if start is None
        else {"digest": _digest(start.params), "train": start.record.get("train")},
    }
    params = jax.tree.map(np.asarray, here.best.average if best else here.state.average)
    return Checkpoint(tuple(experts), params, asdict(settings), record)


def _check_experts(experts: tuple[Expert, ...]) -> None:
    if len(experts) != 2:
        raise ValueError(f"experts must be two, the expensive one first, got {len(experts)}.")
    if max(e.num_hops for e in experts) > 1:
        raise ValueError(
            "experts must not pass messages, as they are made to agree row by row, "
            f"got num_hops of {[e.num_hops for e in experts]}."
        )
    if experts[0].species != experts[1].species:
        raise ValueError(
            f"experts must share one species tuple, got {experts[0].species} and {experts[1].species}."
        )
    if set(experts[0].allowed_species) != set(experts[0].species):
        raise ValueError(
            f"the expensive expert's domain must be every species {experts[0].species}, "
            f"got {experts[0].allowed_species}."
        )
