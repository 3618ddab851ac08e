"""Signals that end a long loop: Ctrl-C that is not lost, and SIGTERM that is answered between two steps.

Python answers SIGINT with `KeyboardInterrupt`, raised wherever the main thread
happens to be. In a destructor, or in a callback of the garbage collector (jax
has one), such an exception is printed as ignored and the program goes on.

SIGTERM, which clusters send at a job's time limit, ends a Python program at once,
also in the middle of a file.
"""

import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from moe_md.checks import check_positive
from moe_md.failures import is_main_thread, raise_terminated

SECONDS_PER_HOUR = 3600.0


@contextmanager
def stop_requests(max_hours: float | None = None) -> Generator[Callable[[], str]]:
    """Reasons to end a run early: SIGTERM, and a limit of time.

    Yields `stop_fn`, for `simulate.run(stop_fn=)` and `cotrain(stop_fn=)`, which end
    as they do after their last step: all files are whole. Inside, SIGTERM is only
    remembered; outside the main thread, or where it is handled in another way than
    Python's, it is left alone.

    Args:
        max_hours: hours from here after which to stop; None for no limit. A chunk of
            steps that has begun is finished first.

    Raises:
        ValueError: `max_hours` is not a positive number.

    >>> with stop_requests(max_hours=23.5) as stop_fn:
    ...     print(repr(stop_fn()))  # later "SIGTERM" or "max_hours = 23.5"
    ''
    """
    if max_hours is not None:
        check_positive("max_hours", max_hours)
    started, received = time.monotonic(), []

    def remember(number, frame) -> None:
        received.append(number)

    def reason() -> str:
        if received:
            return "SIGTERM"
        if max_hours is not None and time.monotonic() - started >= SECONDS_PER_HOUR * max_hours:
            return f"max_hours = {max_hours:g}"
        return ""

    before = signal.getsignal(signal.SIGTERM)
    ours = is_main_thread() and before in (signal.SIG_DFL, raise_terminated)
    if ours:
        signal.signal(signal.SIGTERM, remember)
    try:
        yield reason
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


def never() -> str:
    """The `stop_fn` of a run that takes all its steps."""
    return ""


@contextmanager
def deferred_sigint() -> Generator[Callable[[], None]]:
    """A long loop that Ctrl-C ends, wherever the signal arrives.

    `KeyboardInterrupt` is raised as ever. Yields `check`, to be called once in
    a while: it raises the one that was ignored. Changes nothing outside the
    main thread, or where SIGINT is handled in another way than Python's.
    """
    asked = False

    def remember(number, frame):
        nonlocal asked
        asked = True
        signal.default_int_handler(number, frame)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    ours = is_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
