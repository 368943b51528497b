"""The commands of docs/conformance.md, with PostgreSQL's own suites in place of the page's, and of the regression suite the short part. What
script/conformance downloads (23 MB) and builds is kept in ~/.cache/pgweir-conformance; a machine without that needs half a minute more."""

import os
import re
import shlex
import subprocess

import pytest

from harness import docs
from harness.weir import BINARY, ROOT

pytestmark = [pytest.mark.weir, pytest.mark.timeout(900)]

SUITES = {"regress", "pipeline", "psycopg2", "psycopg"}
ENV = {**os.environ, "PGWEIR_BINARY": str(BINARY.resolve()), "PGWEIR_PATIENCE": "10"}
# Tests, with libpq's traces; the set-up, tablespaces and two groups of twenty or nearly.
TESTS_MIN = {"PostgreSQL regression": 40, "libpq_pipeline": 20}


def told():
    """The page's command lines, as words."""
    return [shlex.split(text) for text in docs.commands("docs/conformance.md")]


def shortened():
    """Those, each with the short suites, once; what an option is about needs no second run of the regression suite."""
    found = {}
    for words in told():
        options = [word for word in words if word not in SUITES | {"--short"} and "=" not in word]
        found[tuple(options)] = options + (["--short", "regress", "pipeline"] if len(options) == 1 else ["pipeline"])
    return list(found.values())


@pytest.mark.parametrize("words", shortened(), ids=" ".join)
def test_nothing_fails_only_through_the_proxy(words, tmp_path):
    done = subprocess.run([ROOT / words[0], *words[1:], "--out", str(tmp_path)], env=ENV, capture_output=True, text=True)
    if done.returncode == 2 and (reason := re.search(r"not run: .*", done.stdout)):
        pytest.skip(reason[0])
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert len(rows) == (2 if "regress" in words else 1), done.stdout
    for suite, tests, direct, through, only_through in rows:
        name = suite.rpartition(" ")[0]
        assert int(tests.split()[0]) >= TESTS_MIN[name] and direct == through == "0" and only_through == "none", done.stdout
        assert "pgbouncer" in words or re.search(rf"{name}: pgweir tells of [1-9]\d* links", done.stdout), done.stdout


def test_every_suite_and_option_of_the_page_exists():
    """Those that are left out above, too."""
    known = subprocess.run([ROOT / "script" / "conformance", "--help"], env=ENV, capture_output=True, text=True).stdout
    for words in told():
        for word in words[1:]:
            assert word == "script/conformance" or re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", known), word
