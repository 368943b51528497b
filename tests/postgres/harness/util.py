"""Waiting for events, and work in the background."""

import os
import random
import socket
import threading
import time
from concurrent.futures import Future

# A slow machine waits longer for events: every deadline of `eventually` is multiplied by this.
PATIENCE = float(os.environ.get("PGWEIR_PATIENCE", "1"))


def eventually(fn, timeout=15, interval=0.03, what=None):
    """The first truthy value of `fn`; AssertionError when there is none within `timeout` seconds.

    An AssertionError raised by `fn` means "not yet"; any other exception is a failure of the test.
    """
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    last = None
    while True:
        try:
            last = fn()
            if last:
                return last
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or 'condition'}; last seen: {last!r}")
        time.sleep(interval)


def holds(fn, seconds, interval=0.05, what=None):
    """Asserts that `fn` is truthy at once and stays so for `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = fn()
        assert value, f"did not hold: {what or 'condition'}; saw {value!r}"
        if time.monotonic() > deadline:
            return
        time.sleep(interval)


def never(fn, seconds, interval=0.05, what=None):
    """Asserts that `fn` stays falsy for `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = fn()
        assert not value, f"must not happen: {what or 'condition'}; saw {value!r}"
        if time.monotonic() > deadline:
            return
        time.sleep(interval)


def background(fn, *args, **kwargs):
    """Runs `fn` in a daemon thread; a Future with its outcome."""
    future = Future()

    def run():
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - the Future carries it to the test
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


_given = set()
# Suites run beside each other: none gives away a port that another has just found free.
_OTHERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
_OWN = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def free_port():
    """A TCP port of 127.0.0.1 below the ephemeral range, so that no outgoing connection can take it meanwhile."""
    for _ in range(200):
        port = random.randrange(15000 + _OWN, 30000, _OTHERS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise RuntimeError("no free port")
