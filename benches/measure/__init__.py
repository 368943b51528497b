"""Proxies to compare, loads to put on them, and what they cost."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "postgres"))
