#!/usr/bin/env python3
"""Ten thousand links beside 200 busy ones: does anybody notice? Two pgweirs before one fake PostgreSQL, one of them with links queued,
held, idle and idle in transaction; the busy clients run against either in turn. Run with .venv/bin/python benches/scale.py."""

import argparse
import multiprocessing
import pathlib
import socket
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from measure import fake, load, process  # noqa: E402
from harness import Weir, eventually, lane  # noqa: E402
from harness.cluster import bindir  # noqa: E402
from harness.wire import query, startup_packet  # noqa: E402

QUEUE_SLOTS = 5
BUSY = 200


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", type=int, default=10_000, help="links that do nothing (default 10000)")
    parser.add_argument("--rate", type=int, default=2000, help="transactions per second of the busy clients together (default 2000)")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=5, help="of each busy run (default 5)")
    parser.add_argument("--storm", type=int, default=2000, help="connects per second against a full lane (default 2000)")
    return parser.parse_args()


class Side:
    """A pgweir with lanes for everybody."""

    def __init__(self, name, cluster):
        self.name = name
        self.cluster = cluster
        lanes = [lane("busy", match=[{"application": load.APPLICATION}], quota=400, priority=1), lane("live", quota=12_000), lane("held", quota=12_000),
                 lane("queue", quota=QUEUE_SLOTS, max_waiting=12_000, wait_timeout="1h"),
                 lane("storm", quota=1, wait_timeout="0"), lane("other", default=True, quota=10)]
        limits = {"max_clients": 15_000, "max_logins": 15_000}
        self.weir = Weir(cluster, lanes=lanes, upstream={"headroom": 0}, monitor={"user": None}, limits=limits, env={"RUST_LOG": "error"})
        self.port = self.weir.port
        self.socks = []

    def start(self):
        """Starts it; itself."""
        self.weir.start(wait=False)
        eventually(lambda: self.weir.http("/healthz")[0] == 200, what="pgweir up")
        self.socks.append(fake.login(self.port, "storm"))
        return self

    def close(self):
        """Ends it and its clients."""
        for sock in self.socks:
            sock.close()
        self.weir.close()

    def cpu_ns(self):
        """CPU time so far."""
        return process.cpu_ns(self.weir.pid)

    def crowd(self, links):
        """A third each queued, held, and live (every other one of those inside a transaction)."""
        third = links // 3
        for number in range(third):
            self.socks.append(fake.login(self.port, "live"))
            fake.ask(self.socks[-1], "BEGIN" if number % 2 else "SELECT 1")
        held = [fake.login(self.port, "held") for _ in range(third)]
        self.weir.admin("PAUSE LANE held")
        for sock in held:
            sock.sendall(query("SELECT 1"))
        self.socks += held
        for number in range(links - 2 * third):
            self.socks.append(fake.login(self.port, "queue", wait=number < QUEUE_SLOTS))
        queued = links - 2 * third - QUEUE_SLOTS
        eventually(lambda: self.weir.lane("queue")["waiting"] == queued, timeout=60, what=f"{queued} queued")
        return {name: {k: row[k] for k in ("slots", "waiting", "idle", "idle_in_transaction")} for name, row in self.weir.lanes().items()}

    def busy(self, args):
        """The busy clients, at a fixed rate: the fake upstream is no match for more."""
        script = self.weir.base / "select.sql"
        script.write_text("select 1;\n")
        return load.pgbench(self, "simple", BUSY, args.seconds, script=("-f", script, "-R", args.rate))

    def idle_cpu_percent(self, seconds=5):
        """Percent of a core while nothing happens."""
        before = self.cpu_ns()
        time.sleep(seconds)
        return (self.cpu_ns() - before) / 1e7 / seconds

    def median_ms(self, what, times=40):
        """Median duration of something in ms."""
        took = []
        for _ in range(times):
            began = time.perf_counter()
            what()
            took.append((time.perf_counter() - began) * 1000)
        return statistics.median(took)

    def connect(self):
        """One client comes and goes."""
        sock = fake.login(self.port, "live-too")
        sock.close()


def storm(port, rate, seconds, done):
    """Connects at a fixed rate, each refused; how many were is put into `done`."""
    packet = startup_packet("odoo", "bench", "storm")
    began, count = time.monotonic(), 0
    while (now := time.monotonic()) < began + seconds:
        if count >= (now - began) * rate:
            time.sleep(0.0005)
            continue
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            sock.sendall(packet)
            # Refused, or the storm hits nothing.
            assert sock.recv(4096)[:1] == b"E"
        count += 1
    done.value = count


def stormy(args, side, rounds):
    """Median p99 of the busy clients with and without a storm, in turn; what the storm itself costs, in cores; its rate."""
    calm, rough, cores, rates = [], [], [], []
    for _ in range(rounds):
        before = side.cpu_ns()
        calm.append(side.busy(args))
        quiet_ns = side.cpu_ns() - before
        done = multiprocessing.Value("i", 0)
        child = multiprocessing.Process(target=storm, args=(side.port, args.storm, args.seconds, done))
        before = side.cpu_ns()
        child.start()
        rough.append(side.busy(args))
        child.join()
        cores.append((side.cpu_ns() - before - quiet_ns) / 1e9 / args.seconds)
        rates.append(done.value / args.seconds)
    return median(calm, "p99_us"), median(rough, "p99_us"), statistics.median(cores), statistics.median(rates)


def median(figures, key):
    """Median of one figure."""
    return statistics.median(f[key] for f in figures)


def main():
    """Measures and prints."""
    args = arguments()
    fake.raise_file_limit()
    cluster = fake.FakeCluster(bindir()).start()
    empty, crowded = Side("without", cluster), Side("with", cluster)
    try:
        empty.start()
        crowded.start()
        began = time.monotonic()
        print("lanes:", crowded.crowd(args.links), file=sys.stderr)
        print(f"{args.links} links in {time.monotonic() - began:.1f} s", file=sys.stderr)
        runs = {side.name: [] for side in (empty, crowded)}
        for number in range(args.rounds):
            for side in (empty, crowded) if number % 2 else (crowded, empty):
                runs[side.name].append(side.busy(args))
        ratio = statistics.median(b["p99_us"] / a["p99_us"] for a, b in zip(runs["without"], runs["with"]))
        print(f"| {BUSY} busy clients, {args.rate}/s | without | with {args.links:,} links |\n| --- | ---: | ---: |")
        for key, words in (("p50_us", "p50, µs"), ("p99_us", "p99, µs"), ("cpu_us", "CPU µs per transaction")):
            print(f"| {words} | {median(runs['without'], key):.1f} | {median(runs['with'], key):.1f} |")
        rows = [("idle CPU, % of a core", Side.idle_cpu_percent),
                ("SHOW LANES with its login, ms", lambda s: s.median_ms(lambda: s.weir.admin("SHOW LANES"))),
                ("SHOW CLIENTS with its login, ms", lambda s: s.median_ms(lambda: s.weir.admin("SHOW CLIENTS"), 10)),
                ("login of a client, ms", lambda s: s.median_ms(s.connect, 200)),
                ("resident MB", lambda s: process.resident_bytes(s.weir.pid) / 1e6)]
        for words, figure in rows:
            print(f"| {words} | {figure(empty):.2f} | {figure(crowded):.2f} |")
        print(f"\np99 with by without, median of the rounds: {ratio:.2f} (goal ≤ 1.10)")
        calm, rough, cores, rate = stormy(args, empty, max(2, args.rounds // 2))
        print(f"storm of {rate:.0f} connects/s against a full lane: {cores:.3f} cores of pgweir's (goal < 0.25); p99 {calm:.0f} → {rough:.0f} µs")
    finally:
        for side in (empty, crowded):
            side.close()
        cluster.close()


if __name__ == "__main__":
    main()
