"""README's first steps as a newcomer takes them: an empty directory, the program, and the page's own commands, as they stand there. Then all
kinds of Odoo's processes come where the page has led Odoo, and each is in its lane. `pytest -rP` prints the seconds of each step."""

import configparser
import itertools
import json
import os
import shutil
import time

import pytest

from harness import docs, eventually
from harness.weir import ROOT
from test_docs import ELSEWHERE, FirstSteps, play, sandbox, web  # noqa: F401 - a fixture

pytestmark = pytest.mark.weir

README = ROOT / "README.md"
BACK = "sudo cp odoo.conf.direct"
# Beside the two HTTP workers and the cron worker of its odoo.conf.
COMING = {
    "live": {"title": "python3 /usr/bin/odoo gevent --config /etc/odoo/odoo.conf", "application": "odoo-2201", "database": "postgres",
             "do": ["listen imbus"]},
    "queue": {"title": "odoo: WorkerJobRunner 2202", "application": "odoo-2202", "database": "odoo", "do": ["LISTEN queue_job"]},
    "notify": web(2203, """SELECT "pg_notify"('imbus', '[["odoo","res.partner",3]]')""", database="postgres"),
    "other": {"title": "python3 /usr/bin/odoo shell -d odoo", "application": "odoo-2204", "database": "odoo"},
    "web": web(2205, "BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1"),
}


def steps():
    """README's commands and scenes from its section for newcomers on, up to the way back."""
    begin = README.read_text().splitlines().index("## Put it in front of an Odoo you have")
    parts = [part for part in docs.script(README) if part.line > begin
             and (isinstance(part, docs.Scene) or not docs.found_elsewhere(ELSEWHERE, "README.md", part.text))]
    taken = list(itertools.takewhile(lambda part: BACK not in getattr(part, "text", ""), parts))
    assert len(taken) < len(parts), f"README has no {BACK!r} any more"
    return taken


class Stopwatch:
    """Seconds of each step, in order."""

    def __init__(self):
        self.steps = []

    def __call__(self, what, do):
        """Does it, and keeps how long it took."""
        began = time.monotonic()
        do()
        self.steps.append((time.monotonic() - began, what))

    def __str__(self):
        total = sum(seconds for seconds, _ in self.steps)
        return "\n".join(f"{seconds:6.2f} s  {what}" for seconds, what in [*self.steps, (total, "all of it")])


def told(page, command):
    """What a command of the newcomer's pgweir tells, as JSON."""
    return json.loads(page.box.must(f"target/release/pgweir {command} --json"))


def lanes_of(page):
    """The lane of each of Odoo's links, by its name."""
    return {row["application"]: row["lane"] for row in told(page, "clients") if row["user"] == "odoo"}


def test_from_an_empty_directory_and_the_readme_alone(sandbox):  # noqa: F811
    page, watch = FirstSteps(sandbox), Stopwatch()
    shutil.rmtree(page.box.home / "config")
    assert os.listdir(page.box.home) == ["target"]

    for step in steps():
        if isinstance(step, docs.Scene):
            watch(step.name, lambda: page.scene(step.name))
        else:
            watch(" ".join(step.text.split(" #")[0].split())[:110], lambda: play(page, step, docs.Updates(README), "README.md"))

    # Where the page has led Odoo, in the words of its own file.
    conf = configparser.RawConfigParser()
    conf.read(page.box.base / "etc/odoo/odoo.conf")
    where = {key: conf["options"][f"db_{key}"] for key in ("host", "port", "user", "password")}
    assert where["host"] == f"{page.box.home}/data/run", where
    # Odoo is another account than who tries this.
    for place in (page.box.home / "data", page.box.home / "data" / "run"):
        assert os.stat(place).st_mode & 0o001, f"others cannot enter {place}"
    wanted = {role["application"]: lane for lane, role in COMING.items()} | {"odoo-2101": "web", "odoo-2102": "web", "odoo-2110": "cron"}
    watch("the rest of Odoo's processes", lambda: page.box.cast([{**role, "where": where} for role in COMING.values()]))
    watch("each is in its lane", lambda: eventually(lambda: lanes_of(page) == wanted, what=f"Odoo's lanes {wanted}"))
    print(watch)

    lanes = {row["lane"]: row for row in told(page, "lanes")}
    for lane in set(wanted.values()):
        assert int(lanes[lane]["slots"]) == sum(there == lane for there in wanted.values()), lanes[lane]
        assert not int(lanes[lane]["waiting"]), lanes[lane]
    assert "Mode observe" in page.box.must("target/release/pgweir status")
    metrics = page.box.must("curl -s --noproxy '*' http://127.0.0.1:6433/metrics")
    refused = [line for line in metrics.splitlines() if line.startswith("pgweir_refusals_total") and not line.endswith(" 0")]
    assert "pgweir_clients" in metrics and not refused, refused
    # Not even said to be: nobody would have waited, been refused or reset.
    timeline = page.box.must("target/release/pgweir timeline --last 500")
    assert "observed" not in timeline and "would" not in timeline, timeline
