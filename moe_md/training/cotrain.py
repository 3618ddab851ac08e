"""Co-training: one optax loop over the parameters of both experts.

Each step sees one batch of labelled frames and one of metal environments made
on the fly, which carry no labels and ask for agreement only. Everything random
follows from the seed and the step, and all that steps hand on is saved
(`Progress`), so that a run that was killed, interrupted or out of disk ends, once
it is started again, with the same bits as one that never stopped (on a device
whose sums are reproducible, as a CPU's are).
"""

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ase.data import chemical_symbols
from tqdm import tqdm

from moe_md import checkpoint, units
from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import Batch, Prepared, batches, collate, frame_rows, prepare
from moe_md.data.crystals import metal_frames, perfect_crystals
from moe_md.data.dataset import Dataset, dataset_from_frames, digest, force_rms, reference_energies, require_labels, summary
from moe_md.experts import Expert, Params
from moe_md.settings import check_fields
from moe_md.training.losses import Terms, Weights, joint_loss, joint_terms

FORMAT = 2  # of training.msgpack
SLOT_STEP = 16  # slots of environment batches are rounded up to this


@dataclass(frozen=True)
class Settings:
    """What training is told; keys of the `[training]` table of a settings file."""

    steps: int = 4000
    max_rows: int = 64  # rows of a labelled batch
    environment_rows: int = 48  # rows of unlabelled, distorted metal per step; 0 for none
    perfect_crystals: int = 8  # strained one-atom cells beside them
    perfect_weight: float = 60.0  # of a perfect crystal's disagreement, against that of a distorted one
    metal: str = "Pt"  # what environments are made of
    lattice_constant: float = 3.98  # Å
    max_strain: float = 0.04  # of distorted metal
    max_perfect_strain: float = 0.03  # of perfect crystals
    max_rattle: float = 0.2  # Å
    agreement_ramp: float = 2.0  # the weights of agreement grow as (step / steps)^this
    agreement_pull: float = 0.3  # share of agreement's gradient that reaches the expensive expert
    learning_rate: float = 5e-3
    warmup_steps: int = 100
    final_learning_rate: float = 0.01  # share of the peak at the end of the cosine
    clip_norm: float = 10.0
    ema_decay: float = 0.998
    seed: int = 0
    validate_every: int = 500
    save_every: int = 500
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self):
        check_fields(self)
        positive = ("steps", "max_rows", "lattice_constant", "learning_rate", "clip_norm", "validate_every", "save_every")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        not_negative = ("warmup_steps", "seed", "max_rattle", "agreement_ramp", "perfect_crystals", "perfect_weight")
        for name in not_negative:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.environment_rows < 4 and self.environment_rows != 0:
            raise ValueError(f"environment_rows must be 0 or at least 4, got {self.environment_rows}.")
        for name in ("max_strain", "max_perfect_strain"):
            if not 0 <= getattr(self, name) < 0.3:
                raise ValueError(f"{name} must be in [0, 0.3), got {getattr(self, name)}.")
        if self.metal not in chemical_symbols[1:]:
            raise ValueError(f"metal must be a chemical symbol, got {self.metal!r}.")
        for name in ("ema_decay", "final_learning_rate", "agreement_pull"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")


class State(NamedTuple):
    """What a training step changes."""

    step: jax.Array  # int
    params: tuple
    average: tuple  # exponential moving average of params
    optimizer: Any


class Progress(NamedTuple):
    """Where a training stands after a whole step: what `training.msgpack` holds."""

    state: State
    running: dict[str, float]  # smoothed errors, meV/Å
    history: list[dict]  # what validation measured
    seconds: float  # of training so far

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.step)


def cotrain(
    experts: Sequence[Expert],
    dataset: Dataset,
    settings: Settings = Settings(),
    *,
    validation: Dataset | None = None,
    folder=None,
    progress: bool = True,
) -> Checkpoint:
    """Train an expensive and a cheap expert together.

    Both get the reference energies and the force scale of the data. The cheap
    expert's data are the frames wholly in its domain; on the other frames the
    mixed energy is fitted, the expensive expert owning what the cheap one may
    not. Where both are at home they are made to agree.

    Args:
        experts: the expensive one, whose domain is every species, then the cheap one.
        dataset: labelled frames; labels may be missing here and there.
        settings: see `Settings`.
        validation: frames to report errors on; groups apart from `dataset`.
        folder: where `training.msgpack` (to resume from) and
            `checkpoint.msgpack` go; nothing is written where None. A folder
            that holds a `training.msgpack` of the same settings, experts and
            data is resumed; an interrupt (Ctrl-C) saves the last whole step.
        progress: show a bar with both experts' errors and their mismatch.

    Returns:
        Experts, averaged parameters, settings and record.

    Raises:
        ValueError: experts do not fit each other or the data, a label that the
            loss asks for is missing everywhere, or `folder` holds another
            training, or a damaged one.
        OSError: a file cannot be written; what was saved before is whole.
        FloatingPointError: the loss is no longer finite.
    """
    experts = tuple(experts)
    _check_experts(experts)
    species = experts[0].species
    dataset = dataset_from_frames(dataset.frames, species)
    weights = settings.weights
    require_labels(dataset, energy=weights.energy > 0, forces=weights.forces > 0)
    cutoff = max(e.cutoff for e in experts)
    train = prepare(dataset, cutoff)
    held_out = None if validation is None else prepare(dataset_from_frames(validation.frames, species), cutoff)

    optimizer = _optimizer(settings)
    step_fn = jax.jit(partial(_step, experts, optimizer, settings))
    terms_fn = jax.jit(partial(joint_terms, experts))
    fingerprint = {
        "settings": asdict(settings),
        "experts": [e.config for e in experts],
        "data": digest(dataset),
        "validation data": None if held_out is None else digest(validation),
    }
    here = Progress(_initial_state(experts, dataset, optimizer, settings), {}, [], 0.0)
    if folder is not None:
        here = _resume(folder, here, fingerprint)
    started = time.monotonic() - here.seconds

    def result() -> Checkpoint:
        return _result(experts, here, settings, dataset, validation)

    labelled = _labelled(train, settings, here.step)
    try:
        with tqdm(total=settings.steps, initial=here.step, disable=not progress, desc="co-training", unit="step") as bar:
            for step in range(here.step + 1, settings.steps + 1):
                environment = environment_batch(experts, settings, step - 1)
                state, terms = step_fn(here.state, next(labelled), environment)
                running, history = _running(here.running, terms), here.history
                done = step == settings.steps
                save, validate = (done or step % n == 0 for n in (settings.save_every, settings.validate_every))
                if save or validate:
                    _check_finite(state, running, settings)
                if validate and held_out is not None:
                    scores = _scores(_totals(terms_fn, state.average, held_out, settings.max_rows))
                    history = [*history, {"step": step, **scores, "train": running}]
                    if progress:
                        bar.write(f"step {step}: " + describe(scores))
                # All at once: an interrupt finds a whole step.
                here = Progress(state, running, history, time.monotonic() - started)
                if save and folder is not None:
                    _save_progress(folder, here, fingerprint)
                    checkpoint.save(Path(folder) / "checkpoint.msgpack", result())
                if step % 20 == 0:
                    bar.update(20)
                    bar.set_postfix_str(_errors_line(running))
    except KeyboardInterrupt:
        if folder is not None and _is_finite(here.state, here.running):
            _save_progress(folder, here, fingerprint)
        raise
    if folder is not None:  # also where a finished training was killed before it wrote this
        checkpoint.save(Path(folder) / "checkpoint.msgpack", result())
    return result()


def evaluate(experts: Sequence[Expert], params: Sequence[Params], prepared: Prepared, max_rows: int = 64) -> dict:
    """Root mean square errors and mismatch over all frames.

    Args:
        experts, params: the two experts.
        prepared: from `data.batching.prepare`.
        max_rows: rows per batch.

    Returns:
        For `expensive`, `cheap` (frames in its domain) and `mixed` (the other
        frames) a dict of `energy_meV_per_atom`, `forces_meV_per_A`,
        `stress_GPa`; for `mismatch` a dict of `energy_meV`,
        `partial_forces_meV_per_A`, `stress_GPa`. None where nothing is labelled.
    """
    return _scores(_totals(jax.jit(partial(joint_terms, tuple(experts))), params, prepared, max_rows))


def evaluate_by_kind(experts: Sequence[Expert], params: Sequence[Params], dataset: Dataset, max_rows: int = 64) -> dict:
    """`evaluate` for each kind of frame and for `"all"`, each with its number of `frames`.

    Args:
        experts, params: the two experts.
        dataset: frames; labels may be missing.
        max_rows: rows per batch.

    Raises:
        ValueError: there is no frame, or a species is unknown to the experts.
    """
    terms_fn = jax.jit(partial(joint_terms, tuple(experts)))
    cutoff = max(e.cutoff for e in experts)
    dataset = dataset_from_frames(dataset.frames, experts[0].species)
    report: dict[str, dict] = {}
    overall: dict[str, np.ndarray] = {}
    for kind in sorted({f.kind for f in dataset.frames}):
        frames = tuple(f for f in dataset.frames if f.kind == kind)
        totals = _totals(terms_fn, params, prepare(dataset._replace(frames=frames), cutoff), max_rows)
        report[kind or "unnamed"] = {"frames": len(frames), **_scores(totals)}
        overall = {name: overall.get(name, 0.0) + total for name, total in totals.items()}
    return {**report, "all": {"frames": len(dataset.frames), **_scores(overall)}}


def _totals(terms_fn: Callable, params: Sequence[Params], prepared: Prepared, max_rows: int) -> dict[str, np.ndarray]:
    """Sums of squares and counts, `[2, 3]` for each part of a report."""
    totals = {name: np.zeros((2, 3)) for name in ("expensive", "cheap", "mixed", "mismatch")}
    for batch in batches(prepared, max_rows=max_rows):
        terms = jax.device_get(terms_fn(tuple(params), batch))
        for name in ("expensive", "cheap", "mixed"):
            e = getattr(terms, name)
            totals[name] += _weighted([e.energy, e.forces, e.stress], e.count)
        m = terms.mismatch
        totals["mismatch"] += _weighted([m.energy, m.partial_forces, m.stress], [m.count[0], m.count[0], m.count[1]])
    return totals


def _weighted(means, counts) -> np.ndarray:
    counts = np.asarray(counts, float)
    return np.stack([np.asarray(means, float) * counts, counts])


def _scores(totals: dict[str, np.ndarray]) -> dict:
    """Roots of means, in the units that people read."""
    names = ("energy_meV_per_atom", "forces_meV_per_A", "stress_GPa")
    mismatch_names = ("energy_meV", "partial_forces_meV_per_A", "stress_GPa")
    return {
        part: {
            name: float(unit * np.sqrt(square / count)) if count else None
            for name, unit, square, count in zip(
                mismatch_names if part == "mismatch" else names, (1e3, 1e3, 1.0 / units.GPa), squares, counts
            )
        }
        for part, (squares, counts) in totals.items()
    }


def describe(scores: dict) -> str:
    """One line of errors, for people."""

    def number(value, form):
        return "-" if value is None else format(value, form)

    parts = []
    for name in ("expensive", "cheap", "mixed"):
        e = scores[name]
        energy, forces = number(e["energy_meV_per_atom"], ".1f"), number(e["forces_meV_per_A"], ".0f")
        parts.append(f"{name} {energy} meV/atom {forces} meV/Å")
    m = scores["mismatch"]
    parts.append(f"mismatch {number(m['energy_meV'], '.1f')} meV {number(m['partial_forces_meV_per_A'], '.1f')} meV/Å")
    return ", ".join(parts)


def environment_batch(experts: Sequence[Expert], settings: Settings, step: int) -> Batch | None:
    """Unlabelled metal environments of one step, padded to few shapes.

    Distorted metal, and perfect crystals under strain with a weight of their
    own: what two experts disagree about in the mean crystal does not average
    out in a run, however small beside their thermal disagreement.
    """
    if settings.environment_rows + settings.perfect_crystals == 0:
        return None
    rng = np.random.default_rng([settings.seed, 1, step])
    crystal = {"symbol": settings.metal, "lattice_constant": settings.lattice_constant}
    frames = perfect_crystals(rng, settings.perfect_crystals, max_strain=settings.max_perfect_strain, **crystal)
    weights = [settings.perfect_weight] * len(frames)
    if settings.environment_rows:
        distortion = {"max_strain": settings.max_strain, "max_rattle": settings.max_rattle}
        frames += metal_frames(rng, settings.environment_rows, **distortion, **crystal)
        weights += [1.0] * (len(frames) - len(weights))
    species, cutoff = experts[0].species, max(e.cutoff for e in experts)
    rows = [frame_rows(f, species, cutoff) for f in frames]
    slots = max(r.mask.shape[1] for r in rows)
    return collate(
        frames,
        species,
        cutoff,
        n_rows=settings.environment_rows + settings.perfect_crystals,
        n_slots=-(-slots // SLOT_STEP) * SLOT_STEP,
        n_frames=settings.environment_rows // 4 + settings.perfect_crystals,
        cached_rows=rows,
        weights=weights,
    )


def _step(experts, optimizer, settings: Settings, state: State, labelled: Batch, environment: Batch | None):
    # Two experts agree soonest on nothing at all: let the data speak first.
    agreement = ((state.step + 1) / settings.steps) ** settings.agreement_ramp

    def loss_fn(params):
        params = tuple(_frozen(p) for p in params)
        terms = joint_terms(experts, params, labelled, settings.agreement_pull)
        loss = joint_loss(settings.weights, terms, agreement)
        if environment is not None:
            unlabelled = joint_terms(experts, params, environment, settings.agreement_pull)
            loss = loss + joint_loss(settings.weights, unlabelled, agreement)
        return loss, terms

    gradient, terms = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    # An average that starts at the start: full weight to the newest at first.
    decay = jnp.minimum(settings.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    average = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), state.average, params)
    return State(state.step + 1, params, average, optimizer_state), terms


def _frozen(params: Params) -> Params:
    """Scale and shift come from the data and stay."""
    held = {k: jax.lax.stop_gradient(params[k]) for k in ("scale", "shift") if k in params}
    return {**params, **held}


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        settings.learning_rate,
        min(settings.warmup_steps, settings.steps // 2),
        settings.steps,
        settings.learning_rate * settings.final_learning_rate,
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(schedule))


def _initial_state(experts, dataset: Dataset, optimizer, settings: Settings) -> State:
    references = reference_energies(dataset)
    scale = force_rms(dataset)
    params = []
    for n, expert in enumerate(experts):
        p = expert.init(jax.random.fold_in(jax.random.key(settings.seed), n))
        if "shift" in p:
            p["shift"] = jnp.asarray([references[s] for s in expert.species])
            p["scale"] = jnp.full(len(expert.species), scale)
        params.append(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p))
    params = tuple(params)
    return State(jnp.asarray(0), params, params, optimizer.init(params))


def _labelled(train, settings: Settings, start: int) -> Iterator[Batch]:
    """Batches without end, shuffled anew each epoch, from the one of step `start`."""
    epoch, seen = 0, 0
    while True:
        for batch in batches(train, max_rows=settings.max_rows, rng=np.random.default_rng([settings.seed, 0, epoch])):
            if seen >= start:
                yield batch
            seen += 1
        epoch += 1


def _running(running: dict, terms: Terms) -> dict:
    """Smoothed root mean square errors for the progress bar, meV/Å."""
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


def _is_finite(state: State, running: dict[str, float]) -> bool:
    # Whatever broke the parameters stays in their average.
    numbers = [*running.values(), *jax.tree.leaves(state.average)]
    return all(np.isfinite(x).all() for x in numbers)


def _check_finite(state: State, running: dict[str, float], settings: Settings) -> None:
    if not _is_finite(state, running):
        raise FloatingPointError(
            f"the loss or the parameters are not finite at step {int(state.step)}: lower learning_rate = "
            f"{settings.learning_rate}; the last saved state is whole."
        )


def _save_progress(folder, here: Progress, fingerprint: dict) -> None:
    state = flax.serialization.to_state_dict(jax.tree.map(np.asarray, here.state))
    content = {"fingerprint": fingerprint, **here._asdict(), "state": state}
    checkpoint.write(Path(folder) / "training.msgpack", FORMAT, content)


def _resume(folder, initial: Progress, fingerprint: dict) -> Progress:
    """What a folder holds, `initial` where it holds nothing yet."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / "training.msgpack"
    if not path.exists():
        return initial
    content = checkpoint.read(path, "a saved training", FORMAT, ("fingerprint", *Progress._fields))
    saved = content["fingerprint"] if isinstance(content["fingerprint"], dict) else {}
    other = [name for name, value in fingerprint.items() if name not in saved or saved[name] != value]
    if other:
        raise ValueError(
            f"folder must hold no training of other {' and other '.join(other)}, got {folder}: choose another."
        )
    wanted = checkpoint.signature(flax.serialization.to_state_dict(initial.state), dtypes=True)
    found = checkpoint.signature(content["state"], dtypes=True)
    if found != wanted:
        raise ValueError(f"{path} must hold a state of shapes and dtypes {wanted}, got {found}.")
    state = flax.serialization.from_state_dict(initial.state, content["state"])
    here = Progress(jax.tree.map(jnp.asarray, state), *(content[name] for name in Progress._fields[1:]))
    right = (
        isinstance(here.running, dict)
        and isinstance(here.history, list)
        and isinstance(here.seconds, float)
        and 0 <= here.step <= fingerprint["settings"]["steps"]
        and all(isinstance(x, float) for x in here.running.values())
        and _is_finite(here.state, here.running)
    )
    if not right:
        raise ValueError(f"{path} must hold a whole and finite training, got a damaged one: remove it to start anew.")
    return here


def _result(experts, here: Progress, settings, dataset, validation) -> Checkpoint:
    record = {
        "step": here.step,
        "seconds": round(here.seconds, 1),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "train": summary(dataset),
        "validation": None if validation is None else summary(validation),
        "history": here.history,
    }
    params = jax.tree.map(np.asarray, here.state.average)
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
        raise ValueError(f"experts must share one species tuple, got {experts[0].species} and {experts[1].species}.")
    if set(experts[0].domain) != set(experts[0].species):
        raise ValueError(
            f"the expensive expert's domain must be every species {experts[0].species}, got {experts[0].domain}."
        )
