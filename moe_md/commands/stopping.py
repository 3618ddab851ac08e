"""What a command says that ended early, at SIGTERM or after `--max-hours`."""

import shlex
from collections.abc import Sequence


def how_to_go_on(record: dict, command: Sequence[str]) -> str:
    """One line: why a command stopped, at which step, and the command that continues it.

    Args:
        record: `stopped`, the reason; `step`, the last step that is saved, or None; and `steps`, all of them.
        command: the arguments of `moe-md`.
    """
    step = record["step"]
    where = (
        "before the first step" if step is None else f"after step {step} of {record['steps']}, which is saved"
    )
    return f"stopped by {record['stopped']} {where}. To go on, repeat: moe-md {shlex.join(command)}"
