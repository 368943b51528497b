#!/usr/bin/env python3
"""Who looks, slows: 5,000 clients (a third each live, held and queued) in 20 lanes, and once a second, all three: `/metrics`, SHOW CLIENTS
over psql's protocol, and the page's stream of events. Busy clients at a fixed rate that never stop, with and without the others by turns. Then the page
itself, in headless Chromium: when it can be used, how soon it shows what it is told, what keeps its thread busy.

The pollers share the machine's cores with the rest; they sit in one process of their own, whose CPU time is told. Exit status 1 if a goal is missed.

Run with .venv/bin/python benches/operators.py."""

import argparse
import base64
import http.client
import multiprocessing
import pathlib
import socket
import statistics
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from measure import fake, page, turns  # noqa: E402
from measure.crowd import Side  # noqa: E402
from measure.report import MISSED, decided, interval, note, spread  # noqa: E402
from measure.sampled import Sampled  # noqa: E402

LANES = 20
# Of the crowd's own configuration.
LANES_OF_CROWD = 6
METRICS_GOAL_MS = 50
SLOWER_GOAL = 1.01
USABLE_GOAL_MS = 2000
SHOWN_GOAL_MS = 100
STOPS_S = 1.2
# The load ends after the last window, also where the windows begin late.
SPARE_S = 10


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="busy,page", help="of these, comma-separated (default all)")
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--busy", type=int, default=50, help="busy clients (default %(default)s)")
    parser.add_argument("--rate", type=int, default=2000, help="transactions per second of the busy clients together (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=60, help="pairs of a window with those who look and one without (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="of each window (default %(default)s)")
    parser.add_argument("--page-seconds", type=int, default=30, help="to look at the page (default %(default)s)")
    parser.add_argument("--picture", type=pathlib.Path, help="write what the page looks like there")
    return parser.parse_args()


class Looks:
    """Somebody who looks, once a second each at all three, when told to; in a process of its own, over `pipe`."""

    def __init__(self, weir, clients, pipe):
        self.weir, self.clients_min, self.pipe = weir, clients, pipe
        self.stop = threading.Event()
        self.took = {"metrics": [], "clients": [], "snapshot": []}
        token = base64.b64encode(f"admin:{weir.password}".encode()).decode()
        self.headers = {"Authorization": f"Basic {token}"}
        self.console = weir.admin_connection()

    def serve(self):
        """Looks from each True to the next False; then None, and the answer is what everything took in ms, and the CPU seconds."""
        threads = []
        while (told := self.pipe.recv()) is not None:
            if told:
                self.stop.clear()
                threads = [threading.Thread(target=what, args=(phase,)) for what, phase in
                           ((self.metrics, 0.0), (self.clients, 1 / 3), (self.events, 2 / 3))]
                for thread in threads:
                    thread.start()
            else:
                self.stop.set()
                for thread in threads:
                    thread.join()
                self.pipe.send(True)
        self.pipe.send((self.took, time.process_time()))

    def every_second(self, name, phase, what):
        """Until the end; not all at the same moment."""
        self.stop.wait(turns.MARGIN_S + phase)
        while not self.stop.is_set():
            began = time.perf_counter()
            what()
            self.took[name].append((time.perf_counter() - began) * 1000)
            self.stop.wait(max(0, 1 - (time.perf_counter() - began)))

    def metrics(self, phase):
        """Scrapes."""
        def scrape():
            connection = http.client.HTTPConnection("127.0.0.1", self.weir.admin_port, timeout=30)
            connection.request("GET", "/metrics")
            assert len(connection.getresponse().read()) > 1000
            connection.close()
        self.every_second("metrics", phase, scrape)

    def clients(self, phase):
        """SHOW CLIENTS on one connection."""
        def show():
            with self.console.cursor() as cursor:
                cursor.execute("SHOW CLIENTS")
                assert cursor.rowcount >= self.clients_min
        self.every_second("clients", phase, show)

    def events(self, phase):
        """The page's stream; how far apart its snapshots come."""
        self.stop.wait(phase)
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
        # What is left of a snapshot would be read by nobody.
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()


def look(*args):
    """In a process of its own."""
    Looks(*args).serve()


def pairs(args, side):
    """Windows with the lookers and without, by turns: pairs of (without, with), and what the lookers saw."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=look, args=(side.weir, args.clients, there))
    process.start()
    script = side.weir.base / "select.sql"
    script.write_text("select 1;\n")
    # A looker that is told to stop ends with the next snapshot.
    seconds = args.rounds * 2 * (args.seconds + turns.MARGIN_S + STOPS_S) + SPARE_S
    running = turns.Load(side, script, args.busy, args.rate, seconds)
    try:
        for number in range(args.rounds):
            for looked in ((False, True) if number % 2 else (True, False)):
                if looked:
                    here.send(True)
                running.window(looked, args.seconds)
                if looked:
                    here.send(False)
                    here.recv()
            if (number + 1) % 10 == 0:
                note(f"{number + 1} pairs")
        here.send(None)
        took, cpu_s = here.recv()
        process.join()
        found = running.figures()
    finally:
        running.close()
    couples = [dict(found[n:n + 2]) for n in range(0, len(found), 2)]
    return couples, took, cpu_s / (args.rounds * (args.seconds + turns.MARGIN_S))


def busy(args, side):
    """The busy clients with and without those who look; whether the goals are met."""
    couples, took, cores = pairs(args, side)
    print(f"| {args.busy} busy clients, {args.rate:,}/s, {len(couples)} pairs of {args.seconds} s | nobody looks | all three look | with / without |\n"
          "| --- | ---: | ---: | ---: |")
    ratio = {}
    for key, text in (("p50_us", "p50, µs"), ("mean_us", "mean, µs"), ("p99_us", "p99, µs"),
                      ("cpu_us", "pgweir's CPU µs per transaction, answers to lookers included")):
        without, with_ = ([couple[looked][key] for couple in couples] for looked in (False, True))
        ratio[key] = [a / b for a, b in zip(with_, without)]
        low, high = interval(ratio[key])
        print(f"| {text} | {spread(without, 0)} | {spread(with_, 0)} | {spread(ratio[key], 3)}; the median in {low:.3f}–{high:.3f} with 95 % |")
    print(f"\n`/metrics` {spread(took['metrics'], 1)} ms, at most {max(took['metrics']):.1f}; SHOW CLIENTS {spread(took['clients'], 1)} ms; a snapshot every "
          f"{spread(took['snapshot'], 0)} ms. The lookers' own CPU: {cores:.2f} cores while they look.")
    fast = max(took["metrics"]) < METRICS_GOAL_MS
    level = decided(ratio["p50_us"], SLOWER_GOAL)
    print(f"\nGoals: `/metrics` under {METRICS_GOAL_MS} ms: {'met' if fast else MISSED}; p50 with / without ≤ {SLOWER_GOAL}: {level}\n", flush=True)
    return fast and not level.startswith(MISSED)


def looked_at(args, side):
    """The page beside the crowd; whether it can be used."""
    page.leak(side)
    figures = page.measure(side.weir, args.page_seconds, args.picture)
    usable = figures["usable_ms"] < USABLE_GOAL_MS and statistics.median(figures["shown_ms"]) < SHOWN_GOAL_MS
    print(page.told(figures, args.page_seconds))
    print(f"\nGoals: usable within {USABLE_GOAL_MS:,} ms, a snapshot shown within {SHOWN_GOAL_MS} ms: {'met' if usable else MISSED}")
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
