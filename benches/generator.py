"""What the drill's load generator can do: against a server that answers at once (benches/measure/answer.c), with generator, server and all else
on this machine's cores. Run by .venv/bin/python; needs cc, PostgreSQL (the drill wants a staging database beside it) and a built pgweir.

    .venv/bin/python benches/generator.py [--rate 10000] [--rate 60000] [--connections 2000] [--seconds 15]

Half of the connections listen, half poll; each poll is a transaction of four statements. Prints a Markdown table, one row a rate: what was
asked for, what the server saw, how late the schedule was, and whether the drill says that it was the bottleneck."""

import argparse
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "postgres"))

from harness.rehearsal import staging  # noqa: E402
from harness.util import free_port  # noqa: E402
from harness.weir import BINARY  # noqa: E402

SCENARIO = """
title = "What the generator can do"
[[phase]]
name = "steady"
duration = "{seconds}s"
steady = true
[[actor]]
kind = "live"
workers = {workers}
rate = {rate}
max_waiting = 100000
"""

HEADS = ("asked for", "served", "connections, by the server's count", "p50", "p99", "schedule late, p99", "timers late, p99", "CPU of the cores",
         "says that it was the bottleneck")


def measure(base, cluster, connections, rate, seconds):
    """One run; its row."""
    scenario, port = base / "capacity.toml", free_port()
    scenario.write_text(SCENARIO.format(seconds=seconds, workers=connections // 2, rate=rate))
    server = subprocess.Popen([base / "answer", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        done = subprocess.run([BINARY, "drill", scenario, "--target", f"postgres://odoo@127.0.0.1:{cluster.port}/odoo",
                               "--through", f"answer=127.0.0.1:{port}", "--skip-direct", "--max-connections", str(connections + 50),
                               "--drain", "2s", "--json"], stdout=subprocess.PIPE, text=True, timeout=seconds + 600)
    finally:
        server.send_signal(signal.SIGTERM)
        seen = server.communicate(timeout=60)[0].strip()
    (run,) = json.loads(done.stdout)["runs"]
    live, generator = run["lanes"]["live"], run["details"]["generator"]
    logged_in, worked = re.match(r"answer: (\d+) connections .* at once, (\d+) with", seen).groups()
    cells = [f"{rate:,}/s", f"{live['ok']:,} of {live['attempts']:,}", f"{int(logged_in):,} at once, {int(worked):,} with a transaction",
             f"{live['p50_ms']} ms", f"{live['p99_ms']} ms", f"{generator['schedule_late_p99_ms']:.1f} ms", f"{generator['timers_late_p99_ms']:.1f} ms",
             f"{generator['cpu_share'] * 100:.0f} %", f"yes: {generator['bottleneck']}" if generator["bottleneck"] else "no"]
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rate", type=int, action="append", help="transactions a second; again for another run (10000, then 60000)")
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=15)
    options = parser.parse_args()
    cluster = staging()
    try:
        with tempfile.TemporaryDirectory() as name:
            base = pathlib.Path(name)
            subprocess.run(["cc", "-O2", "-o", base / "answer", ROOT / "benches" / "measure" / "answer.c"], check=True)
            print("| " + " | ".join(HEADS) + " |\n| --- |" + " ---: |" * (len(HEADS) - 2) + " --- |")
            for rate in options.rate or [10_000, 60_000]:
                print(measure(base, cluster, options.connections, rate, options.seconds), flush=True)
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
