"""Proxies to compare, loads to put on them, and what they cost."""

import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "postgres"))

# SIGTERM ends a bench as Ctrl-C does: with everything cleaned up. A shell's background job ignores SIGINT by inheritance.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.default_int_handler)
