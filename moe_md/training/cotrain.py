"""Co-training: optimisation of the parameters of two experts with one joint loss.

Each step takes one batch of labelled frames, and one of unlabelled environments, cut from
reference structures, that enter the agreement terms only (`inputs`). All random numbers follow from the seed
and the number of the step, and everything that one step passes to the next is saved
(`progress`). A training that was killed, interrupted or stopped by a full disk
therefore ends, when it is started again, with the same bits as one that never
stopped, on devices whose sums are reproducible, such as CPUs.

Labels of two methods must not be mixed in one training, as their reference energies and
systematic errors differ; frames that name different levels of theory are refused. Train
on the many frames of the less accurate method, then use `start` to continue on the few
of the more accurate one.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ase import Atoms
from jaxtyping import Float
from tqdm import tqdm

from moe_md import checkpoint, memory
from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import Batch, Prepared, prepare
from moe_md.data.dataset import Dataset, dataset_from_frames
from moe_md.data.references import Reference
from moe_md.experts.base import Expert, Params, check_two_experts
from moe_md.files import locked
from moe_md.settings import EnvironmentSettings, TrainSettings
from moe_md.simulate import interrupts
from moe_md.training import identity, training_data
from moe_md.training import progress as progress_file
from moe_md.training.domain_fit import with_domain
from moe_md.training.evaluation import describe, loss_of, scores_of, totals_of
from moe_md.training.inputs import environments_of, training_inputs
from moe_md.training.losses import Terms, joint_terms
from moe_md.training.parameters import initial_params, is_same_expert, params_of_start
from moe_md.training.progress import Best, Progress, is_finite
from moe_md.training.sharding import Placement, on_devices
from moe_md.training.step import (
    ExtraLoss,
    hyperparameters,
    initial_state,
    learning_rates,
    step_config,
    training_step,
)

DEFAULTS, DEFAULT_ENVIRONMENTS = TrainSettings(), EnvironmentSettings()


def cotrain(
    experts: Sequence[Expert],
    dataset: Dataset,
    settings: TrainSettings = DEFAULTS,
    *,
    environments: EnvironmentSettings = DEFAULT_ENVIRONMENTS,
    references: Sequence[Atoms | Reference] | None = None,
    validation: Dataset | None = None,
    start: Checkpoint | None = None,
    extra_loss: ExtraLoss | None = None,
    watch: Callable[[int, tuple[Params, ...]], None] | None = None,
    folder=None,
    progress: bool = True,
    devices: Sequence[jax.Device] | None = None,
    stop_fn: Callable[[], str] = interrupts.never,
) -> Checkpoint:
    """Train an expensive and a cheap expert together.

    Both get the reference energies and the force scale of the data. The cheap expert's
    domain are its species, in environments like those of the references
    (`environments.domain_rows`). It is fitted to the forces of atoms in its domain, and to
    the energies of frames that are wholly in it. On the other frames the mixed energy is
    fitted, in which the expensive expert owns the atoms outside that domain. Within the
    domain both experts are fitted to each other (`losses`).

    Args:
        experts: the expensive one, whose domain has every species, then the cheap one.
        dataset: labelled frames; some labels may be missing.
        settings: see `TrainSettings`.
        environments: of the unlabelled environments in which experts are made to agree.
        references: crystals and other periodic structures that environments are cut from, in place of
            `environments.references`; by default the crystals of `dataset`, or
            those of `start` where it has none. The checkpoint stores them.
        validation: frames for validation errors, and for early stopping where
            `settings.patience` is set. Its groups must not occur in `dataset`.
        start: initial parameters, of the same experts, such as those trained on
            many frames of a less accurate method. Where its cheap expert is another one,
            the new one starts at random, as with `settings.freeze_expensive`. Their reference energies are
            shifted to the labels of `dataset` by least squares on composition.
        extra_loss: `(params, step) -> number`, differentiable and traceable, added
            to the loss of every step, for properties that no single frame has, such
            as the error of a short trajectory (`gradients.rollout`). `step` (int,
            from 0) may change its weight, or skip steps (`jax.lax.cond`). To resume
            a training, pass an extra loss of the same name.
        watch: called with the number of steps done and the averaged parameters,
            every `settings.validate_every` steps and after the last one, with or
            without `validation`. It does not change the training.
        folder: folder for `training.msgpack`, from which a training is resumed, and
            `checkpoint.msgpack`; None writes nothing. A `training.msgpack` of the
            same settings, experts and data is resumed. An interrupt (Ctrl-C) saves
            the last complete step.
        progress: show a bar with the errors of both experts and their mismatch.
        devices: jax devices, such as `jax.devices()`, that share the rows of every
            batch (`sharding`); None for one. `settings.max_atoms` is the number of
            atoms on all devices together. Batches do not depend on the devices, and
            losses differ by the order of sums only, so that a training may be resumed
            on another number of devices.
        stop_fn: asked before each step; the training ends there, and is saved, if it returns
            a text, as that of `simulate.stop_requests` does. The record then has it as `stopped`.

    Returns:
        Experts, averaged parameters (those of the best validation where
        `settings.patience` is set, else the last), settings and record.

    Raises:
        ValueError: experts do not fit each other, the data or `start`; no frame has a
            label that the loss needs, or all are zero; an expert has no training atom;
            environments are asked for and there are no references, or they have species outside the
            cheap expert's domain, or `environments.domain_rows` are too few; `settings.patience` is
            set without labelled `validation`; `devices` are empty or no jax devices; or `folder`
            holds another training, or a damaged file; or labels are of two levels of theory.
        OSError: a file cannot be written, the file saved before is unchanged; or another process
            trains in `folder`.
        MemoryError: memory is exhausted; lower `settings.max_atoms`.
        FloatingPointError: the loss or the parameters are not finite.
    """
    experts = tuple(experts)
    _check_experts(experts)
    dataset = dataset_from_frames(dataset.frames, experts[0].species)
    _check_arguments(experts, settings, validation, start, extra_loss, watch)
    training_data.check_labels(dataset, validation, settings, alone=extra_loss is None)
    found = training_data.chosen_references(experts, dataset, environments, references, start)
    unlabelled = environments_of(found, experts, environments)
    experts = (experts[0], with_domain(experts[1], unlabelled, settings.seed))
    level = training_data.level_of_theory(dataset, validation, start)
    placement = on_devices(devices)
    cutoff = max(e.cutoff for e in experts)
    train = prepare(dataset, cutoff)
    training_data.check_domains(experts, train)
    config = step_config(experts, settings, extra_loss, placement.mesh)
    training = _Training(
        experts=experts,
        settings=settings,
        step_fn=placement.compiled(partial(training_step, config)),
        terms_fn=partial(
            _placed_terms, placement.compiled(partial(joint_terms, experts, mesh=placement.mesh)), placement
        ),
        learning_rates=learning_rates(settings),
        validation=_prepared_validation(validation, experts[0].species, cutoff),
        watch=watch,
        folder=None if folder is None else Path(folder),
        fingerprint=identity.fingerprint(
            experts, settings, environments, found, dataset, validation, start, extra_loss, level
        ),
        record=identity.static_record(dataset, validation, start, devices, level, found),
        environments=environments,
    )
    if start is None:
        params = initial_params(experts, dataset, settings, train)
    else:
        params = params_of_start(experts, start, dataset, settings, train)
    training_data.warn(dataset, validation)
    current = Progress(initial_state(config, params), Best(0, np.inf, params), {}, [], 0.0)
    with (
        contextlib.nullcontext() if training.folder is None else locked(training.folder),
        memory.naming(f"lower max_atoms, now {settings.max_atoms}; the step saved last is kept"),
    ):
        if training.folder is not None:
            current = progress_file.read(training.folder, current, training.fingerprint)
        current = current._replace(state=placement.state(current.state))
        inputs = (
            (placement.batch(labelled), placement.batch(rows))
            for labelled, rows in training_inputs(unlabelled, train, settings, current.step)
        )
        return _run(training, current, inputs, stop_fn, show_bar=progress)


@dataclass(frozen=True)
class _Training:
    """Everything that stays constant during a training."""

    experts: tuple[Expert, ...]
    settings: TrainSettings
    step_fn: Callable  # compiled `training_step` without its first argument
    terms_fn: Callable  # (params, Batch) -> Terms
    learning_rates: Float[np.ndarray, " steps"]
    validation: Prepared | None
    watch: Callable[[int, tuple[Params, ...]], None] | None
    folder: Path | None
    fingerprint: dict  # identifies the training that a folder holds
    record: dict  # data, references, device and start, for the checkpoint
    environments: EnvironmentSettings


def _run(
    training: _Training, current: Progress, inputs, stop_fn: Callable[[], str], *, show_bar: bool
) -> Checkpoint:
    """Take the remaining steps, validate and save.

    Args:
        training: the constant parts.
        current: the progress to continue from.
        inputs: iterator of the labelled and unlabelled batches of every step.
        stop_fn: as in `cotrain`.
        show_bar: whether to show a progress bar.

    Returns:
        The checkpoint.
    """
    settings, folder = training.settings, training.folder
    started = time.monotonic() - current.seconds
    batch, stopped = next(inputs), ""
    bar_of = partial(tqdm, initial=current.step, disable=not show_bar, desc="co-training", unit="step")
    try:
        with interrupts.deferred_sigint() as check_interrupt, bar_of(total=settings.steps) as bar:
            for step in range(current.step + 1, settings.steps + 1):
                check_interrupt()
                if _out_of_patience(current, settings) or (stopped := stop_fn()):
                    break
                numbers = hyperparameters(settings, training.learning_rates, step - 1)
                state, terms = training.step_fn(numbers, current.state, *batch)
                batch = next(inputs)  # prepared while the device computes
                running = _smoothed_errors(current.running, terms)
                after = current._replace(state=state, running=running, seconds=time.monotonic() - started)
                validate = _is_due(step, settings.validate_every, settings)
                save = _is_due(step, settings.save_every, settings)
                if validate or save:
                    _check_finite(after, settings)
                if validate and training.validation is not None:
                    after = _validated(training, after)
                    if show_bar:
                        bar.write(f"step {step}: " + describe(after.history[-1]), file=sys.stderr)
                current = after  # one assignment per step: an interrupt finds a complete step
                if validate and training.watch is not None:
                    training.watch(step, jax.tree.map(np.asarray, state.average))
                if save and folder is not None:
                    _save(training, current)
                if step % 20 == 0:
                    bar.update(20)
                    bar.set_postfix_str(_errors_line(current.running))
    except KeyboardInterrupt:
        if folder is not None and is_finite(current):
            progress_file.write(folder, current, training.fingerprint)
        raise
    result = _result(training, current, stopped)
    if folder is not None:  # a finished training may have been killed before it wrote the checkpoint
        if stopped:
            _check_finite(current, settings)
            progress_file.write(folder, current, training.fingerprint)
        checkpoint.save(folder / "checkpoint.msgpack", result)
    return result


def _placed_terms(
    compiled_fn: Callable, placement: Placement, params: tuple[Params, ...], batch: Batch
) -> Terms:
    """Terms of a batch, which is placed on the devices first."""
    return compiled_fn(params, placement.batch(batch))


def _prepared_validation(
    validation: Dataset | None, species: tuple[str, ...], cutoff: float
) -> Prepared | None:
    """Validation frames with their rows; None without any."""
    if validation is None:
        return None
    return prepare(dataset_from_frames(validation.frames, species), cutoff)


def _is_due(step: int, every: int, settings: TrainSettings) -> bool:
    """True every `every` steps and after the last step."""
    return step == settings.steps or step % every == 0


def _validated(training: _Training, current: Progress) -> Progress:
    """The progress with the results of a validation of the averaged parameters."""
    settings, average = training.settings, current.state.average
    assert training.validation is not None
    totals = totals_of(training.terms_fn, average, training.validation, settings.max_atoms)
    loss = loss_of(totals, settings.weights)
    best = Best(current.step, loss, average) if loss < current.best.loss else current.best
    entry = {"step": current.step, "loss": loss, **scores_of(totals), "train": current.running}
    return current._replace(best=best, history=[*current.history, entry])


def _out_of_patience(current: Progress, settings: TrainSettings) -> bool:
    """True where `settings.patience` validations brought no lower loss."""
    since_best = current.step - current.best.step
    return current.best.step > 0 and 0 < settings.patience * settings.validate_every <= since_best


def _smoothed_errors(running: dict[str, float], terms: Terms) -> dict[str, float]:
    """Exponentially smoothed root mean square errors of the training batches, meV/Å."""
    terms = jax.device_get(terms)  # in one transfer, as each access to a device array is a program
    latest = {
        "expensive": (terms.expensive.forces, terms.expensive.count[1]),
        "cheap": (terms.cheap.forces, terms.cheap.count[1]),
        "mismatch": (terms.mismatch.partial_forces, terms.mismatch.count[0]),
    }
    smoothed = {}
    for name, (square, count) in latest.items():
        old = running.get(name, 0.0)
        value = 1e3 * float(square) ** 0.5
        smoothed[name] = old if float(count) == 0 else (0.98 * old + 0.02 * value if old else value)
    return smoothed


def _errors_line(running: dict[str, float]) -> str:
    """Text beside the progress bar."""
    return f"F {running['expensive']:.0f} | {running['cheap']:.0f} mismatch {running['mismatch']:.1f} meV/Å"


def _check_finite(current: Progress, settings: TrainSettings) -> None:
    if not is_finite(current):
        raise FloatingPointError(
            f"the loss or the parameters are not finite at step {current.step}: lower learning_rate, "
            f"now {settings.learning_rate}. The step saved last is finite."
        )


def _save(training: _Training, current: Progress) -> None:
    """Write the progress and the checkpoint."""
    assert training.folder is not None
    progress_file.write(training.folder, current, training.fingerprint)
    checkpoint.save(training.folder / "checkpoint.msgpack", _result(training, current))


def _result(training: _Training, current: Progress, stopped: str = "") -> Checkpoint:
    """The checkpoint: the best parameters where `settings.patience` is set, else the last."""
    best = current.best.step if training.settings.patience else 0
    record = {
        "step": current.step,
        "best_step": best or None,
        "seconds": round(current.seconds, 1),
        **training.record,
        **({"stopped": stopped} if stopped else {}),
        "history": current.history,
    }
    params = jax.tree.map(np.asarray, current.best.average if best else current.state.average)
    settings = {**asdict(training.settings), "environments": asdict(training.environments)}
    return Checkpoint(training.experts, params, settings, record)


def _check_arguments(
    experts: tuple[Expert, ...],
    settings: TrainSettings,
    validation: Dataset | None,
    start: Checkpoint | None,
    extra_loss,
    watch,
) -> None:
    if extra_loss is not None and not callable(extra_loss):
        raise ValueError(f"extra_loss must be a function of params and step, got {extra_loss!r:.80}.")
    if watch is not None and not callable(watch):
        raise ValueError(f"watch must be a function of step and params, got {watch!r:.80}.")
    if settings.patience and validation is None:
        raise ValueError(f"validation must be given where patience is set, here {settings.patience}.")
    if settings.freeze_expensive and start is None:
        raise ValueError("start must be given where freeze_expensive = true: it has the parameters to keep.")
    if start is not None and not (len(start.experts) == 2 and is_same_expert(start.experts[0], experts[0])):
        raise ValueError(
            f"start must hold the expensive expert to train, got {[e.config for e in start.experts]}."
        )


def _check_experts(experts: tuple[Expert, ...]) -> None:
    check_two_experts(experts, strictly_local=True)
    if experts[0].species != experts[1].species:
        raise ValueError(
            f"experts must share one species tuple, got {experts[0].species} and {experts[1].species}."
        )
    if set(experts[0].allowed_species) != set(experts[0].species):
        raise ValueError(
            f"the expensive expert's domain must be every species {experts[0].species}, "
            f"got {experts[0].allowed_species}."
        )
