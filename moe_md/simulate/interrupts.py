"""Ctrl-C that is not lost.

Python answers SIGINT with `KeyboardInterrupt`, raised wherever the main thread
happens to be. In a destructor, or in a callback of the garbage collector (jax
has one), such an exception is printed as ignored and the program goes on.
"""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


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

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
