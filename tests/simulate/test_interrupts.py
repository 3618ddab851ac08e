"""Ctrl-C ends a loop also where Python ignores the exception."""

import gc
import signal
import sys
import threading

import pytest

from moe_md.simulate import interrupts


class Dying:
    """Ctrl-C comes while this is destroyed."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def ignored(monkeypatch):
    """The exceptions that Python ignored."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: found.append(args.exc_type))
    return found


def test_raised_at_once():
    with pytest.raises(KeyboardInterrupt), interrupts.deferred_sigint():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")


def test_one_that_was_ignored_is_raised_at_the_next_look(ignored):
    seen = []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred_sigint() as check:
        check()
        thing = Dying()
        del thing
        gc.collect()
        seen.append("went on")
        check()
        pytest.fail("it was lost")
    assert seen == ["went on"] and ignored == [KeyboardInterrupt]


def test_it_leaves_as_it_came():
    before = signal.getsignal(signal.SIGINT)
    with interrupts.deferred_sigint():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler


def test_other_handlers_stay():
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        mine = signal.getsignal(signal.SIGINT)
        with interrupts.deferred_sigint() as check:
            assert signal.getsignal(signal.SIGINT) is mine
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_may_use_it():
    def work():
        with interrupts.deferred_sigint() as check:
            check()
            done.append(True)

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
