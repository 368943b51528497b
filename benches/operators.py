#!/usr/bin/env python3
"""Who looks, slows: 5,000 clients (a third each live, held and queued) in 20 lanes, and once a second, all three: `/metrics`, SHOW CLIENTS
over psql's protocol, and the page's stream of events. Busy clients at a fixed rate, with and without them in turn. Then the page itself, in headless
Chromium: when it can be used, how soon it shows what it is told, what keeps its thread busy.

The pollers share the machine's cores with the rest; they sit in one process of their own, whose CPU time is told. Exit status 1 if a goal is missed.

Run with .venv/bin/python benches/operators.py."""

import argparse
import base64
import http.client
import multiprocessing
import pathlib
import statistics
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from measure import fake, page  # noqa: E402
from measure.crowd import Side  # noqa: E402
from measure.report import note, spread  # noqa: E402
from measure.sampled import Sampled  # noqa: E402

LANES = 20
# Of the crowd's own configuration.
LANES_OF_CROWD = 6
METRICS_GOAL_MS = 50
SLOWER_GOAL = 1.01
USABLE_GOAL_MS = 2000
SHOWN_GOAL_MS = 100
AWAKE_S = 1.0


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="busy,page", help="of these, comma-separated (default all)")
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--busy", type=int, default=50, help="busy clients (default %(default)s)")
    parser.add_argument("--rate", type=int, default=2000, help="transactions per second of the busy clients together (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=5, help="of each run (default %(default)s)")
    parser.add_argument("--page-seconds", type=int, default=30, help="to look at the page (default %(default)s)")
    parser.add_argument("--picture", type=pathlib.Path, help="write what the page looks like there")
    return parser.parse_args()


class Looks:
    """What somebody who looks once a second waits for, in ms."""

    def __init__(self, weir):
        self.weir = weir
        self.stop = threading.Event()
        self.took = {"metrics": [], "clients": [], "snapshot": []}
        token = base64.b64encode(f"admin:{weir.password}".encode()).decode()
        self.headers = {"Authorization": f"Basic {token}"}

    def run(self, seconds):
        """Looks for so long; the figures."""
        threads = [threading.Thread(target=what) for what in (self.metrics, self.clients, self.events)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.stop.set()
        for thread in threads:
            thread.join()
        return self.took, time.process_time()

    def every_second(self, name, what):
        """Until the end."""
        while not self.stop.is_set():
            began = time.perf_counter()
            what()
            self.took[name].append((time.perf_counter() - began) * 1000)
            self.stop.wait(max(0, 1 - (time.perf_counter() - began)))

    def metrics(self):
        """A scrape."""
        def scrape():
            connection = http.client.HTTPConnection("127.0.0.1", self.weir.admin_port, timeout=30)
            connection.request("GET", "/metrics")
            assert len(connection.getresponse().read()) > 1000
            connection.close()
        self.every_second("metrics", scrape)

    def clients(self):
        """SHOW CLIENTS on one connection."""
        connection = self.weir.admin_connection()

        def show():
            with connection.cursor() as cursor:
                cursor.execute("SHOW CLIENTS")
                assert cursor.rowcount > 1000
        self.every_second("clients", show)
        connection.close()

    def events(self):
        """The page's stream; how far apart its snapshots come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.weir.admin_port, timeout=30)
        connection.request("GET", "/api/v1/events", headers=self.headers)
        response, last = connection.getresponse(), None
        assert response.status == 200, response.status
        while not self.stop.is_set():
            if response.readline().startswith(b"event: snapshot"):
                now = time.perf_counter()
                if last is not None:
                    self.took["snapshot"].append((now - last) * 1000)
                last = now
        connection.close()


def look(weir, seconds, pipe):
    """In a process of its own."""
    pipe.send(Looks(weir).run(seconds))


def one(args, side, looked):
    """One run of the busy clients, with the lookers or without."""
    time.sleep(AWAKE_S)
    if not looked:
        return side.busy(args.busy, args.rate, args.seconds), None
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=look, args=(side.weir, args.seconds + AWAKE_S, there))
    process.start()
    time.sleep(AWAKE_S / 2)
    figures = side.busy(args.busy, args.rate, args.seconds)
    took, cpu_s = here.recv()
    process.join()
    return figures, {"took": took, "cores": cpu_s / (args.seconds + AWAKE_S)}


def busy(args, side):
    """Rounds of the busy clients; whether the goals are met."""
    runs, looks = {False: [], True: []}, []
    for number in range(args.rounds):
        for looked in ((False, True) if number % 2 else (True, False)):
            figures, seen = one(args, side, looked)
            runs[looked].append(figures)
            looks += [seen] if seen else []
        note(f"round {number + 1}: p50 {runs[False][-1]['p50_us']:.0f} → {runs[True][-1]['p50_us']:.0f} µs")
    print(f"| {args.busy} busy clients, {args.rate:,}/s | nobody looks | all three look | with / without |\n| --- | ---: | ---: | ---: |")
    ratio = {}
    for key, words in (("p50_us", "p50, µs"), ("p99_us", "p99, µs"), ("cpu_us", "pgweir's CPU µs per transaction, answers to lookers included")):
        without, with_ = ([run[key] for run in runs[looked]] for looked in (False, True))
        ratio[key] = [a / b for a, b in zip(with_, without)]
        print(f"| {words} | {spread(without, 0)} | {spread(with_, 0)} | {spread(ratio[key])} |")
    took = {name: [ms for seen in looks for ms in seen["took"][name]] for name in looks[0]["took"]}
    print(f"\n`/metrics` {spread(took['metrics'], 1)} ms, at most {max(took['metrics']):.1f}; SHOW CLIENTS {spread(took['clients'], 1)} ms; a snapshot every "
          f"{spread(took['snapshot'], 0)} ms. The lookers' own CPU: {spread([seen['cores'] for seen in looks])} cores.")
    fast = max(took["metrics"]) < METRICS_GOAL_MS
    level = statistics.median(ratio["p50_us"]) <= SLOWER_GOAL
    print(f"\nGoals: `/metrics` under {METRICS_GOAL_MS} ms: {'met' if fast else '**missed**'}; p50 with / without ≤ {SLOWER_GOAL}: {'met' if level else '**missed**'}\n",
          flush=True)
    return fast and level


def looked_at(args, side):
    """The page beside the crowd; whether it can be used."""
    page.leak(side)
    figures = page.measure(side.weir, args.page_seconds, args.picture)
    usable = figures["usable_ms"] < USABLE_GOAL_MS and statistics.median(figures["shown_ms"]) < SHOWN_GOAL_MS
    print(page.told(figures, args.page_seconds))
    print(f"\nGoals: usable within {USABLE_GOAL_MS:,} ms, a snapshot shown within {SHOWN_GOAL_MS} ms: {'met' if usable else '**missed**'}")
    return usable


def main():
    """Measures and prints."""
    args = arguments()
    fake.raise_file_limit()
    sampled = Sampled(args.clients + 1000)
    side = Side(sampled, more_lanes=LANES - LANES_OF_CROWD)
    try:
        sampled.start()
        side.start()
        wanted = args.only.split(",")
        if "page" in wanted:
            page.invite(side)
        side.grow(args.clients)
        note(f"{args.clients:,} clients in {LANES} lanes")
        parts = {"busy": busy, "page": looked_at}
        met = [part(args, side) for name, part in parts.items() if name in wanted]
        return 0 if all(met) else 1
    finally:
        side.close()
        sampled.close()


if __name__ == "__main__":
    sys.exit(main())
