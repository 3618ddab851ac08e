"""The checkpoints of the package: `moe-md models`."""

from argparse import Namespace
from collections.abc import Callable

from moe_md import checkpoint as checkpoints

LINE = "{name:22s} {builders:38s} {species:12s} cutoffs {cutoffs} Å"


def command(settings: None, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md models`.

    Args:
        settings, parsed: not used.
        log: takes lines of text.

    Returns:
        Under `models`, for each name, `builders`, `species` and `cutoffs` (Å).
    """
    models = {}
    for name in checkpoints.models():
        experts = checkpoints.load(name).experts
        models[name] = {
            "builders": [e.config["builder"] for e in experts],
            "species": list(experts[0].species),
            "cutoffs": [e.cutoff for e in experts],
        }
        text = {key: ", ".join(map(str, value)) for key, value in models[name].items()}
        log(LINE.format(name=name, **text))
    return {"models": models}
