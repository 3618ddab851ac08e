"""Co-training of two experts on labelled frames: `moe-md train`."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import jax

from moe_md import checkpoint as checkpoints
from moe_md import data
from moe_md.checkpoint import Checkpoint
from moe_md.commands import expert_tables, frames, settings_file, stopping
from moe_md.data.overview import overview, overview_table
from moe_md.experts.base import Expert, check_two_experts
from moe_md.files import write_json
from moe_md.settings import FROM_DATA, EnvironmentSettings, TrainSettings
from moe_md.simulate import stop_requests
from moe_md.training import cotrain, evaluation


def command(settings: TrainSettings, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md train`.

    Args:
        settings: the `[training]` table.
        parsed: further options of the command.
        log: takes lines of text.

    Returns:
        The path of the checkpoint and the content of `record.json`.
    """
    with stop_requests(parsed.max_hours) as stop_fn:
        record = _train(settings, parsed, log, stop_fn)
    if "stopped" in record:
        log(stopping.how_to_go_on({**record, "steps": settings.steps}, parsed.typed))
    return record


def _train(settings: TrainSettings, parsed: Namespace, log: Callable, stop_fn: Callable[[], str]) -> dict:
    tables = settings_file.tables(parsed.settings)
    data_settings = frames.data_settings(parsed)
    dataset = frames.load(data_settings)
    start = parsed.start or tables.get("start")
    begin = None if start is None else checkpoints.load(start)
    own_tables = {"expensive", "cheap"} & set(tables)
    before = None if begin is None else _pair(begin)
    environments = settings_file.settings(EnvironmentSettings, "environments", parsed)
    references = _references(environments, dataset, begin)
    if before is None or own_tables:
        experts = expert_tables.build_experts(tables, dataset, references, parsed.settings, before)
    else:
        experts = before
    train, validation = data.dataset_from_frames(dataset.frames, experts[0].species), None
    if parsed.validation_fraction != 0:
        train, validation = data.split_by_group(
            train, validation_fraction=parsed.validation_fraction, seed=settings.seed
        )
    parts = {"train": train} if validation is None else {"train": train, "validation": validation}
    log("; ".join(frames.describe(name, part) for name, part in parts.items()))
    log(overview_table(overview(dataset)))
    if environments.references == FROM_DATA:  # crystals of other species are the expensive expert's alone
        references = [r for r in references if set(r.atoms.symbols) <= set(experts[1].allowed_species)]
    if not environments.is_empty:
        frames.log_references("reference", references, log)
    if validation is not None:
        frames.warn_of_duplicates(train, validation)
    if level := data.common_level(dataset.frames):
        log(f"level of theory: {level}")
    devices = choose_devices(parsed.devices)
    echoed = {} if start is None else {"start": start}
    echoed |= {"data": data_settings}
    if begin is None or own_tables:
        echoed |= {name: dict(e.config) for name, e in zip(("expensive", "cheap"), experts)}
    echoed |= {"environments": environments, "training": settings}
    settings_file.echo(parsed.out, echoed, parsed.typed)
    result = cotrain.cotrain(
        experts,
        train,
        settings,
        environments=environments,
        references=references,
        validation=validation,
        start=begin,
        folder=Path(parsed.out),
        progress=not parsed.quiet,
        devices=devices,
        stop_fn=stop_fn,
    )
    split = {"validation_fraction": parsed.validation_fraction, "split_seed": settings.seed}
    result = result._replace(settings={**result.settings, **split})
    return _save(result, Path(parsed.out), [dict(e.config) for e in experts], log)


def _references(
    environments: EnvironmentSettings, dataset: data.Dataset, begin: Checkpoint | None
) -> list[data.Reference]:
    """Crystals of the data, of the checkpoint to start from where the data have none, or those of files."""
    if environments.references == FROM_DATA:
        return data.find_references(dataset) or list(() if begin is None else begin.references)
    return data.read_references(environments.references)


def choose_devices(wanted: str | None) -> list[jax.Device] | None:
    """The devices of `--devices`: a number, `all`, or None for the default device.

    Raises:
        ValueError: neither a number of existing devices nor `all`.
    """
    if wanted is None:
        return None
    found = jax.devices()
    if wanted == "all":
        return found
    if not wanted.isdecimal() or not 1 <= int(wanted) <= len(found):
        raise ValueError(
            f"devices must be 'all' or a number from 1 to the {len(found)} that jax finds, got {wanted!r}."
        )
    return found[: int(wanted)]


def _pair(model: Checkpoint) -> tuple[Expert, Expert]:
    """The two experts of a checkpoint."""
    check_two_experts(model.experts, "experts of start")
    expensive, cheap = model.experts
    return expensive, cheap


def _save(result: Checkpoint, folder: Path, configs: list[dict], log: Callable) -> dict:
    """Write the checkpoint and `record.json`; log the errors of the parameters that are saved."""
    checkpoints.save(folder / "checkpoint.msgpack", result)
    record = {"settings": result.settings, "experts": configs, **result.record}
    write_json(folder / "record.json", record)
    history = result.record["history"]
    if history:
        step = result.record["best_step"] or history[-1]["step"]
        (scores,) = (entry for entry in history if entry["step"] == step)
        log(f"step {step}: " + evaluation.describe(scores))
    log(f"wrote {folder / 'checkpoint.msgpack'}")
    return {"checkpoint": str(folder / "checkpoint.msgpack"), **record}
