"""Loads: pgbench, COPY, idle links. Each returns a dict of figures for one target."""

import collections
import glob
import os
import re
import subprocess
import tempfile
import time

from . import fake
from .process import SystemCalls, resident_bytes

LATENCY_SAMPLE = 0.25
APPLICATION = "bench"
MODES = ("simple", "extended", "prepared")
# Transactions of each client where 0 seconds are asked for: enough to see that everything runs.
TRIAL = 20
ROWS = {"narrow": 20, "8 kB": 8_000, "1 MB": 1_000_000}


def libpq_env(port):
    """Environment of pgbench and psql: TCP, no TLS, no GSS."""
    return {**os.environ, "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "odoo", "PGDATABASE": "bench",
            "PGSSLMODE": "disable", "PGGSSENCMODE": "disable", "PGAPPNAME": APPLICATION, "PGCONNECT_TIMEOUT": "60",
            "PGPASSFILE": "/nonexistent"}


def run(argv, port, cwd=None):
    """Runs a client program that must succeed; what it printed."""
    done = subprocess.run([str(a) for a in argv], env=libpq_env(port), cwd=cwd, text=True, capture_output=True)
    if done.returncode != 0 or "error" in done.stderr.lower():
        raise RuntimeError(f"{argv} against port {port}: {done.stderr[-2000:]}")
    return done.stdout


def length(seconds):
    """pgbench's options for a run of so many seconds; 0 is a trial."""
    return ["-T", seconds] if seconds else ["-t", TRIAL]


def pgbench(target, mode, clients, seconds, reconnect=False, latency=True, script=("-S",)):
    """pgbench, select-only by default: transactions, tps, p50 and p99 in µs, and the proxy's CPU µs per transaction."""
    with tempfile.TemporaryDirectory() as logs:
        argv = [target.cluster.bin / "pgbench", "-n", *script, "-M", mode, "-c", clients, "-j", min(clients, 2), *length(seconds)]
        argv += ["-C"] if reconnect else []
        argv += ["--log", f"--sampling-rate={LATENCY_SAMPLE if seconds else 1}"] if latency else []
        before = target.cpu_ns()
        printed = run(argv, target.port, cwd=logs)
        cpu = target.cpu_ns() - before
        count = int(re.search(r"actually processed: (\d+)", printed)[1])
        out = {"transactions": count, "tps": float(re.search(r"tps = ([\d.]+)", printed)[1]), "cpu_us": cpu / 1000 / count}
        if latency:
            out |= latencies(logs)
    return out


def busy(target, directory, clients, rate, seconds):
    """pgbench at a fixed rate, with a statement that the fake PostgreSQL understands; the script is kept in `directory`."""
    script = directory / "select.sql"
    script.write_text("select 1;\n")
    return pgbench(target, "simple", clients, seconds, script=("-f", script, "-R", rate))


def latencies(directory):
    """p50 and p99 of pgbench's per-transaction logs. The figures are whole µs: a percentile is interpolated inside its µs, or
    differences of a few µs would come in steps. With -R the wait for the schedule is left out."""
    histogram = collections.Counter()
    for path in glob.glob(f"{directory}/pgbench_log.*"):
        with open(path) as log:
            for line in log:
                fields = line.split()
                histogram[int(fields[2]) - (int(fields[6]) if len(fields) > 6 else 0)] += 1
    return {"p50_us": percentile(histogram, 0.5), "p99_us": percentile(histogram, 0.99)}


def percentile(histogram, share):
    """Where `share` of the values lie below, each whole µs being spread evenly over its width."""
    left = share * sum(histogram.values())
    for value in sorted(histogram):
        if histogram[value] >= left:
            return value + left / histogram[value]
        left -= histogram[value]
    return 0.0


def system_calls(target, mode, clients, seconds=2, reconnect=False):
    """System calls of the proxy per transaction, in a run of its own: counting slows it. Nothing where they may not be counted."""
    with SystemCalls(target.pid) as calls:
        count = pgbench(target, mode, clients, seconds, reconnect, latency=False)["transactions"]
    return {"system_calls": calls.count / count} if calls.count else {}


def copy(rows, megabytes):
    """COPY to stdout of that many MB of rows, for psql; and how many GB it is, headers not counted."""
    width = ROWS[rows]
    count = max(1, int(megabytes * 1_000_000) // width)
    inner = min(count, 1000)
    # Two factors, because one large generate_series would be written to disk first.
    series = f"generate_series(1, {max(1, count // inner)}) a, generate_series(1, {inner}) b"
    sent = max(1, count // inner) * inner * width / 1e9
    return f"\\copy (select repeat('x', {width - 1}) from {series}) to /dev/null", sent


def copy_out(target, rows, megabytes):
    """That COPY: the proxy's CPU seconds per GB, and GB/s."""
    sql, sent = copy(rows, megabytes)
    before, began = target.cpu_ns(), time.monotonic()
    run(["psql", "-XAtq", "-c", sql], target.port)
    took = time.monotonic() - began
    return {"cpu_s_gb": (target.cpu_ns() - before) / 1e9 / sent, "gb_s": sent / took}


def idle_memory(kind, counts):
    """Resident bytes per idle link, both sides of it, after one query each, before a fake PostgreSQL; by number of links."""
    cluster = fake.FakeCluster().start()
    target = kind(cluster, **({"monitored": False} if hasattr(kind, "workers") else {})).start()
    socks = []
    try:
        # What is allocated once, at the first use, is no link's.
        for _ in range(20):
            sock = fake.login(target.port)
            fake.ask(sock)
            sock.close()
        time.sleep(1)
        empty, out = resident_bytes(target.pid), {}
        for count in counts:
            while len(socks) < count:
                socks.append(fake.login(target.port))
                fake.ask(socks[-1])
            time.sleep(1)
            out[f"bytes_{count}"] = (resident_bytes(target.pid) - empty) / count
        return out
    finally:
        for sock in socks:
            sock.close()
        target.close()
        cluster.close()
