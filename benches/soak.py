#!/usr/bin/env python3
"""Mixed load through pgweir before a real PostgreSQL; then memory, descriptors, threads, slots and links must be where they began.

Clients come and go all the time: transactions, prepared statements and pipelines, COPY both ways, LISTEN and NOTIFY, cancels, wrong
passwords, leaks (rolled back or disconnected), hang-ups while logging in, queued, in a query, in a COPY and in a transaction.
pgbench runs beside them. An operator freezes, resumes over ramps, drains, kills, cancels and resets; connections that bypass pgweir move
usage over the thresholds; the configuration is changed and reloaded by SIGHUP.

After the warm-up, at the end, and now and then between, all clients leave and the figures are taken at rest. Those of the warm-up's end are
what the later ones are compared with: descriptors and threads must be the same; slots, links, logins in progress and waiters none;
PostgreSQL's backends the monitor alone. Resident memory may be --memory-mb above, and so may its slope over all rests, times their duration:
allocators keep what they were given once, and the timeline holds its last 1,000 entries. Exit status 1 if anything is not so."""

import argparse
import collections
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import psycopg2

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from measure import process  # noqa: E402
from harness import Cluster, Weir, eventually, lane  # noqa: E402
from harness import cluster as clusters  # noqa: E402
from harness.actors import SOAK, Actor, Crowd, bypass, operator  # noqa: E402

LANES = ("web", "cron", "batch")
SOAK_TABLE = ("create table soak (id int primary key, n int) with (fillfactor = 50)", "insert into soak select n, 0 from generate_series(1, 1000) n",
              "grant all on soak to public")
PGBENCH = "begin;\nupdate soak set n = n + 1 where id = 1 + :client_id;\nselect n from soak where id = 1 + :client_id;\ncommit;\n"
PGBENCH_S = 15
LEAK_S = 4.0
OPERATOR_S = 8.0
BYPASS_S = 6.0
RESTART_S = 300
# Idle threads that looked client processes up end by themselves after 10 s.
REST_S = 12
# A kind of life that was tried so often has ended well at least once.
TRIED = 30
# After so long each of what is counted has happened.
LOAD_MINUTES = 3
COLUMNS = ("rss_mb", "fds", "threads", "slots", "links", "logins", "waiting", "backends", "timeline", "timeline_kb", "cpu_percent")


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of load after the warm-up (default %(default)s)")
    parser.add_argument("--warm-up", type=float, default=3, help="minutes of load before the first figures (default %(default)s)")
    parser.add_argument("--rest-every", type=float, default=10, help="minutes of load between two rests (default %(default)s)")
    parser.add_argument("--actors", type=int, default=24, help="clients at a time (default %(default)s)")
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds between two lives of a client (default %(default)s)")
    parser.add_argument("--reload", type=float, default=30, help="seconds between two reloads (default %(default)s)")
    parser.add_argument("--restarts", type=float, nargs="?", const=RESTART_S, metavar="SECONDS",
                        help="also restart PostgreSQL, every %(const)s s if not told otherwise")
    parser.add_argument("--memory-mb", type=float, default=4, help="by which resident memory may grow (default %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    return parser.parse_args()


def lanes(quota=10, reset="1500ms"):
    """The lanes; a reload changes one's quota and when leaks are reset."""
    leaks = {"warn": "500ms", "reset": reset, "when": "always", "action": "rollback"}
    return [lane("ghost", match=[{"process": "*no such program*"}]),
            lane("live", match=[{"statement": "listen soak"}], quota=10, reserve=2),
            lane("web", quota=quota, reserve=3, priority=1, wait_timeout="5s", idle_in_transaction=leaks, reclaim_idle_after="2s"),
            lane("cron", quota=3, priority=4, freeze=True, wait_timeout="3s", idle_in_transaction={**leaks, "action": "disconnect"},
                 shed_above=70, shed_below=50, shed_dwell="1s"),
            lane("batch", quota=3, priority=8, wait_timeout="500ms", max_waiting=5, connect_rate=30, on_shed="reject",
                 shed_above=75, shed_below=60, shed_dwell="1s"),
            lane("other", default=True, quota=5)]


class Soak:
    """A cluster, a pgweir and everybody around them."""

    def __init__(self, args):
        self.args = args
        self.random = random.Random(args.seed)
        template = clusters.template()
        try:
            self.cluster = Cluster(max_connections=60, template=template, autovacuum="on")
        finally:
            template.close()
        self.weir = Weir(self.cluster, lanes=lanes(), limits={"max_resets_per_minute": 100_000}, monitor={"interval": "500ms"},
                         env={"RUST_LOG": "error"})
        self.script = self.weir.base / "soak.sql"
        self.script.write_text(PGBENCH)
        self.began = self.cpu_at = time.monotonic()
        self.cpu_s = 0.0
        self.ends = collections.Counter()
        self.crossed = []
        self.reloads = 0
        self.rests = []
        self.problems = []

    def start(self):
        """Starts both; itself."""
        self.cluster.start()
        for statement in SOAK_TABLE:
            self.cluster.sql(statement)
        self.weir.start()
        return self

    def close(self):
        """Ends both."""
        self.weir.close()
        self.cluster.close()

    # -- load ----------------------------------------------------------------------------------------------------

    def load(self, minutes):
        """So many minutes of everything, with a line of figures each."""
        crowd = Crowd()
        leaks = {"kinds": SOAK, "leak_s": LEAK_S, "pause_s": self.args.pause}
        actors = [Actor(self.weir, LANES[(0, 0, 1, 2)[n % 4]], self.random.random(), crowd.stop, **leaks) for n in range(self.args.actors)]
        for actor in actors:
            crowd.add(actor.run)
        crowd.add(operator, self.weir, crowd.stop, self.random.random(), OPERATOR_S)
        crowd.add(bypass, self.cluster, crowd.stop, self.random.random(), BYPASS_S)
        crowd.add(self.pgbench, crowd.stop)
        crowd.add(self.reload, crowd.stop)
        now = time.monotonic()
        until, restart = now + minutes * 60, now + (self.args.restarts or math.inf)
        while (now := time.monotonic()) < until:
            minute = min(until, now + 60)
            while (now := time.monotonic()) < minute:
                time.sleep(min(minute - now, max(0.0, restart - now)))
                if time.monotonic() >= restart:
                    # Not in a thread of its own: the server would end with that.
                    self.cluster.restart()
                    restart += self.args.restarts
            if self.weir.process.poll() is not None:
                raise AssertionError(f"pgweir ended with {self.weir.process.returncode}: {self.weir.log()[-3000:]}")
            self.line("load", sum(actor.lives for actor in actors))
        crowd.end()
        for actor in actors:
            self.ends.update(actor.ends)
            self.crossed += actor.crossed

    def pgbench(self, stop):
        """Links that live longer, of all three protocols in turn."""
        for number in range(1 << 30):
            if stop.wait(1):
                return
            argv = [self.cluster.bin / "pgbench", "-n", "-f", self.script, "-c", 3, "-R", 30, "-T", PGBENCH_S,
                    "-M", ("simple", "extended", "prepared")[number % 3]]
            with subprocess.Popen([str(a) for a in argv], env=self.weir.libpq_env("web-bench"), stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL) as running:
                # The operator may have killed its links: how it ends is not judged.
                while running.poll() is None and not stop.wait(0.5):
                    pass
                running.terminate()

    def read_again(self):
        """Has it read its configuration; when, its log does not say here."""
        self.weir.write()
        self.weir.signal(signal.SIGHUP)

    def reload(self, stop):
        """Changes the file and sends SIGHUP."""
        while not stop.wait(self.args.reload):
            self.reloads += 1
            self.weir.config["lane"] = lanes(*((8, "2500ms") if self.reloads % 2 else ()))
            self.read_again()

    # -- rest ----------------------------------------------------------------------------------------------------

    def rest(self):
        """Waits until nobody is there any more, and takes the figures."""
        self.weir.config["lane"] = lanes()
        self.read_again()
        self.weir.admin("RESUME ALL")
        first = self.rests[0] if self.rests else None
        time.sleep(REST_S)

        def quiet():
            found = self.figures()
            waited = ("slots", "links", "logins", "waiting")
            assert not any(found[key] for key in waited) and found["backends"] == 1, found
            assert first is None or all(found[key] == first[key] for key in ("fds", "threads")), found
            return found

        try:
            eventually(quiet, timeout=60, interval=0.5, what="nobody there")
        except AssertionError as error:
            self.problems.append(f"at rest: {error}")
            print(f"clients: {self.weir.clients()}\ndescriptors: {self.descriptors()}", file=sys.stderr)
        self.rests.append(self.line("rest"))

    def descriptors(self):
        """Open files by kind."""
        kinds = collections.Counter()
        for fd in pathlib.Path(f"/proc/{self.weir.pid}/fd").iterdir():
            try:
                kinds[re.sub(r"\d+", "", os.readlink(fd))] += 1
            except FileNotFoundError:
                pass
        return dict(kinds)

    def figures(self):
        """What is counted, now."""
        # One scrape and no console session: looking must not show in the figures.
        text = self.weir.http("/metrics")[1]

        def metric(name):
            return round(sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))
        try:
            backends = self.cluster.count() if self.cluster.process else -1
        except psycopg2.Error:
            backends = -1
        file = self.weir.state / "timeline.jsonl"
        return {"minute": (time.monotonic() - self.began) / 60, "rss_mb": process.resident_bytes(self.weir.pid) / 2**20, "fds": self.weir.fds(),
                "threads": len(os.listdir(f"/proc/{self.weir.pid}/task")), "slots": metric("pgweir_own_slots"),
                "links": max(metric("pgweir_clients"), len(self.weir.clients())), "logins": metric("pgweir_logins"),
                "waiting": metric("pgweir_lane_waiting"), "backends": backends, "timeline": len(self.weir.timeline()),
                "timeline_kb": file.stat().st_size / 1024 if file.exists() else 0, "panics": metric("pgweir_panics_total"),
                "resets": metric("pgweir_resets_total"), "refusals": metric("pgweir_refusals_total"),
                "transactions": metric("pgweir_transactions_total")}

    def line(self, phase, lives=None):
        """Prints a line of figures; the figures."""
        found = self.figures()
        now, cpu = time.monotonic(), self.weir.cpu_seconds()
        found["cpu_percent"] = 100 * (cpu - self.cpu_s) / (now - self.cpu_at)
        self.cpu_at, self.cpu_s = now, cpu
        cells = [f"{found['minute']:.1f}", phase, *(f"{found[key]:.1f}" if isinstance(found[key], float) else str(found[key]) for key in COLUMNS),
                 str(found["transactions"]), str(found["resets"]), str(found["refusals"]), str(self.reloads), "" if lives is None else str(lives)]
        print("| " + " | ".join(cells) + " |", flush=True)
        return found

    # -- judgement -----------------------------------------------------------------------------------------------

    def judge(self):
        """Compares the rests, and says whether the load was one; the problems."""
        first, last = self.rests[0], self.rests[-1]
        for key in ("fds", "threads"):
            if last[key] != first[key]:
                self.problems.append(f"{key}: {first[key]} → {last[key]}")
        grown, slope = last["rss_mb"] - first["rss_mb"], slope_per_minute(self.rests)
        over = slope * (last["minute"] - first["minute"])
        print(f"\nmemory at rest: {first['rss_mb']:.1f} → {last['rss_mb']:.1f} MB ({grown:+.1f}; bound {self.args.memory_mb:g});"
              f" slope over {len(self.rests)} rests {slope * 60:+.2f} MB/h")
        if max(grown, over) > self.args.memory_mb:
            self.problems.append(f"memory grew by {grown:.1f} MB, by its slope {over:.1f} MB")
        if last["panics"] or "panicked" in self.weir.log():
            self.problems.append("a link panicked: " + self.weir.log()[-2000:])
        self.problems += [f"a reply to another question: {text}" for text in self.crossed[:5]]
        for name in ("transactions", "resets", "refusals"):
            if not last[name] and last["minute"] > LOAD_MINUTES:
                self.problems.append(f"no {name}: that was no load")
        self.lives()
        return self.problems

    def lives(self):
        """Prints how the lives ended; a kind that never ended well is a problem."""
        print("\n| life | well | otherwise |\n| --- | ---: | --- |")
        for kind in sorted(set(SOAK)):
            ends = {end: count for (what, end), count in self.ends.items() if what == kind}
            well = ends.pop("well", 0)
            print(f"| {kind} | {well} | {', '.join(f'{end} {count}' for end, count in sorted(ends.items(), key=lambda e: -e[1]))} |")
            if not well and sum(ends.values()) >= TRIED:
                self.problems.append(f"no life of the kind {kind!r} ended well: {ends}")


def slope_per_minute(rests):
    """Least squares of resident MB over minutes; 0 for fewer than three points."""
    if len(rests) < 3:
        return 0.0
    xs, ys = [rest["minute"] for rest in rests], [rest["rss_mb"] for rest in rests]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys)) / sum((a - x) ** 2 for a in xs)


def main():
    """Loads, rests, judges."""
    args = arguments()
    print(f"--seed {args.seed}", file=sys.stderr)
    soak = Soak(args)
    try:
        soak.start()
        words = ("minute", "phase", "RSS MB", "fds", "threads", "slots", "links", "logins", "waiting", "backends", "timeline", "its kB", "CPU %",
                 "transactions", "resets", "refusals", "reloads", "lives")
        print("| " + " | ".join(words) + " |\n|" + " ---: |" * len(words), flush=True)
        soak.load(args.warm_up)
        soak.rest()
        left = args.minutes
        while left > 0:
            soak.load(min(left, args.rest_every))
            left -= args.rest_every
            soak.rest()
        problems = soak.judge()
    finally:
        soak.close()
    for problem in problems:
        print(f"NOT where it began: {problem}", flush=True)
    print("" if problems else "\neverything is where it began")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
