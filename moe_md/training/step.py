"""One optimisation step of co-training, as a pure function.

    config = step_config(experts, settings)
    step_fn = jax.jit(partial(training_step, config))
    state, rates = initial_state(config, params), learning_rates(settings)
    state, terms = step_fn(hyperparameters(settings, rates, n), state, labelled, unlabelled)

`cotrain` runs this step in a loop. Learning rate, loss weights and the like are
arguments of the compiled step: other values of them need no new compilation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int

from moe_md.data.batching import Batch
from moe_md.experts.base import Expert, Params
from moe_md.settings import LossWeights, TrainSettings
from moe_md.training.losses import Terms, joint_loss, joint_terms
from moe_md.training.soap import scale_by_soap

COMPUTED = ("scale", "shift", "inputs")  # parameters that are computed from the data
ExtraLoss = Callable[[tuple[Params, ...], Int[Array, ""]], Float[Array, ""]]  # of parameters and step


class TrainState(NamedTuple):
    """What one training step passes to the next."""

    step: Int[Array, ""]  # number of steps done
    params: tuple[Params, ...]
    average: tuple[Params, ...]  # exponential moving average of `params`
    optimizer: Any  # state of the optax transformation


class StepHyperparameters(NamedTuple):
    """Numbers of one step; they are arguments of the compiled step."""

    learning_rate: np.float32
    agreement: np.float32  # factor of all agreement terms
    gradient_scale: np.float32  # factor of agreement's gradient for the expensive expert
    decay: np.float32  # decay of the moving average
    weights: LossWeights


@dataclass(frozen=True)
class StepConfig:
    """Static configuration of a training step."""

    experts: tuple[Expert, ...]  # the expensive one, then the cheap one
    optimizer: optax.GradientTransformation
    assignment_seed: int | None  # seed of the random assignments of rows; None draws none
    extra_loss: ExtraLoss | None
    mesh: Mesh | None  # devices that share the rows; None for one device
    freeze_expensive: bool = False  # whether the first expert keeps its parameters


def step_config(
    experts: tuple[Expert, ...],
    settings: TrainSettings,
    extra_loss: ExtraLoss | None = None,
    mesh: Mesh | None = None,
) -> StepConfig:
    """The configuration of `cotrain`: gradients clipped by their norm, then SOAP."""
    optimizer = optax.chain(optax.clip_by_global_norm(settings.clip_norm), scale_by_soap())
    seed = settings.seed if settings.weights.agree_random_assignment else None
    return StepConfig(experts, optimizer, seed, extra_loss, mesh, settings.freeze_expensive)


def initial_state(config: StepConfig, params: tuple[Params, ...]) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.asarray(0), params, params, config.optimizer.init(params))


def learning_rates(settings: TrainSettings) -> Float[np.ndarray, " steps"]:
    """Learning rate of every step: linear warm-up, then a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        settings.learning_rate,
        min(settings.warmup_steps, settings.steps // 2),
        settings.steps,
        settings.learning_rate * settings.final_learning_rate,
    )
    return np.asarray(schedule(jnp.arange(settings.steps)), np.float32)


def hyperparameters(
    settings: TrainSettings, rates: Float[np.ndarray, " steps"], step: int
) -> StepHyperparameters:
    """Hyperparameters of a step, counted from 0; `rates` are from `learning_rates`.

    The factor of agreement grows as ((step + 1) / steps)^agreement_ramp: with full
    agreement at the start, experts would first agree on wrong energies. The decay
    of the average starts at 0.1, so that the average soon forgets the initial
    parameters, and grows to `settings.ema_decay`.
    """
    agreement = ((step + 1) / settings.steps) ** settings.agreement_ramp
    decay = min(settings.ema_decay, (1.0 + step) / (10.0 + step))
    return StepHyperparameters(
        rates[step],
        *map(np.float32, (agreement, settings.agreement_gradient_scale, decay)),
        jax.tree.map(np.float32, settings.weights),
    )


def training_step(
    config: StepConfig,
    hyperparameters: StepHyperparameters,
    state: TrainState,
    labelled: Batch,
    unlabelled: Batch | None,
) -> tuple[TrainState, Terms]:
    """Update the parameters once.

    Args:
        config: experts, optimiser and the rest that is static.
        hyperparameters: numbers of this step.
        state: from `initial_state` or the step before.
        labelled: frames with labels.
        unlabelled: environments for the agreement terms; None for none.

    Returns:
        The next state, and errors and mismatch on the labelled batch before the update.
    """
    loss_fn = partial(_loss, config, hyperparameters, state.step, labelled, unlabelled)
    gradient, terms = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, optimizer_state = config.optimizer.update(gradient, state.optimizer, state.params)
    params = jax.tree.map(lambda p, u: p - hyperparameters.learning_rate * u, state.params, updates)
    average = jax.tree.map(lambda a, p: a + (1.0 - hyperparameters.decay) * (p - a), state.average, params)
    return TrainState(state.step + 1, params, average, optimizer_state), terms


def _loss(
    config: StepConfig,
    hyperparameters: StepHyperparameters,
    step: Array,
    labelled: Batch,
    unlabelled: Batch | None,
    params: tuple[Params, ...],
) -> tuple[Array | float, Terms]:
    """The loss of both batches and the extra loss; terms of the labelled batch."""
    weights, agreement = hyperparameters.weights, hyperparameters.agreement
    terms_fn = partial(_terms, config, hyperparameters.gradient_scale, step)
    params = tuple(_with_computed_constant(p) for p in params)
    if config.freeze_expensive:
        params = (jax.lax.stop_gradient(params[0]), *params[1:])
    terms = terms_fn(params, labelled)
    loss = joint_loss(weights, terms, agreement)
    if unlabelled is not None:
        loss = loss + joint_loss(weights, terms_fn(params, unlabelled), agreement)
    if config.extra_loss is not None:
        loss = loss + config.extra_loss(params, step)
    return loss, terms


def _terms(
    config: StepConfig, gradient_scale, step: Array, params: tuple[Params, ...], batch: Batch
) -> Terms:
    """Terms of a batch, with a random assignment of its rows where the configuration has a seed."""
    assignment = None
    if config.assignment_seed is not None:
        key = jax.random.fold_in(jax.random.key(config.assignment_seed), step)
        assignment = jax.random.bernoulli(key, shape=batch.row_mask.shape)
    return joint_terms(config.experts, params, batch, gradient_scale, assignment, config.mesh)


def _with_computed_constant(params: Params) -> Params:
    """Parameters of which those computed from the data get no gradient."""
    constant = {k: jax.lax.stop_gradient(params[k]) for k in COMPUTED if k in params}
    return {**params, **constant}
