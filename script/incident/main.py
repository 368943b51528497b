"""Plays an incident on a throw-away PostgreSQL twice, direct and through pgweir, and prints what was measured."""

import argparse
import collections
import json
import multiprocessing
import pathlib
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "postgres"))

import psycopg2  # noqa: E402
from actors import HOT_ROWS, cast  # noqa: E402
from harness import DIRECT, Weir, lane  # noqa: E402
from harness.cluster import ROLES, Cluster  # noqa: E402

MAX_CONNECTIONS = 40
LANES = ["web", "notify", "leak", "cron", "reports", "imports"]

SCHEMA = f"""
create table res_partner (id int primary key, amount int);
insert into res_partner select g, g % 97 from generate_series(1, 1000) g;
create table sale_order (ref text primary key);
create table stock (id int primary key, quantity int) with (fillfactor = 50);
insert into stock select g, 1000000 from generate_series(1, {HOT_ROWS}) g;
create table ir_cron (id int primary key);
insert into ir_cron select generate_series(1, 20);
create table mail_queue (id int primary key, tries int) with (fillfactor = 50);
insert into mail_queue select g, 0 from generate_series(1, 200) g;
"""


def configuration():
    """Lanes for forty connections: 37 usable, 2 for people who come past pgweir, 1 for the monitor."""
    exempt = ["*ir_cron*for no key update skip locked*"]
    return {
        "upstream": {"headroom": 2},
        "monitor": {"interval": "500ms"},
        "limits": {"max_resets_per_minute": 20},
        "applications": [{"match": "odoo-*", "name": "odoo", "quota": 32}],
        "lanes": [
            lane("admin", match=[{"user": "postgres"}], protected=True, quota=2),
            lane("cron", match=[{"application": "odoo-cron*"}], priority=5, quota=12, shed_above=80, shed_below=70, freeze=True,
                 idle_in_transaction={"warn": "10s", "reset": "60s", "action": "disconnect", "exempt": exempt}),
            lane("reports", match=[{"application": "odoo-reports*"}], priority=6, quota=4, shed_above=80, shed_below=70,
                 freeze=True),
            lane("notify", match=[{"user": "odoo*", "database": "postgres"}], priority=0, quota=5, reserve=3),
            lane("web", match=[{"application": "odoo-*"}], priority=0, quota=16, reserve=11, reclaim_idle_after="30s",
                 idle_in_transaction={"warn": "1s", "reset": "2s", "when": "harm", "cap": "1m", "action": "rollback"}),
            lane("imports", match=[{"application": "import*"}], priority=8, quota=6, shed_above=80, shed_below=70, freeze=True,
                 connect_rate=10, wait_timeout="20s"),
            lane("other", default=True, priority=9, quota=4),
        ],
    }


def say(text=""):
    print(text, flush=True)


def play(cluster, dsn, seconds, operator=None):
    """One run; what the actors saw and the highest number of connections."""
    context = multiprocessing.get_context("fork")
    start, stop, results = context.Event(), context.Event(), context.Queue()
    people = cast(dsn)
    processes = [context.Process(target=person.main, args=(start, stop, results), daemon=True) for person in people]
    for process in processes:
        process.start()
    sampler = cluster.sampler()
    try:
        began = time.monotonic()
        start.set()
        for second, act in sorted((operator or {}).items()):
            if second < seconds:
                time.sleep(max(0.0, began + second - time.monotonic()))
                act()
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        stop.set()
        seen = [results.get(timeout=20) for _ in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)
        sampler.stop()
    told = [ref for one in seen for ref in one["told"]]
    there = {row["ref"] for row in cluster.sql("select ref from sale_order", dbname="odoo")}
    return {"lanes": summary(seen), "retries": sum(one["retries"] for one in seen), "peak": sampler.maximum,
            "told": len(told), "lost": sum(ref not in there for ref in told)}


def summary(seen):
    """Figures per lane."""
    out = {}
    for name in LANES:
        rows = [row for one in seen for row in one["done"] if row[0] == name]
        failures = collections.Counter(state for _, state, _ in rows if state)
        good = sorted(ms for _, state, ms in rows if not state)
        out[name] = {"attempts": len(rows), "ok": len(good), "failures": dict(failures),
                     "p50_ms": percentile(good, 50), "p99_ms": percentile(good, 99), "max_ms": good[-1] if good else None}
    return out


def percentile(values, percent):
    """The nearest-rank percentile of sorted values."""
    return values[min(len(values) - 1, -(-len(values) * percent // 100) - 1)] if values else None


def table(result):
    """The figures of a run, for people."""
    say(f"  {'lane':<9}{'attempts':>9}{'ok':>8}{'failed':>8}   {'by SQLSTATE':<34}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}")
    for name in LANES:
        row = result["lanes"][name]
        failures = ", ".join(f"{state} × {n}" for state, n in sorted(row["failures"].items())) or "–"
        figures = "".join(f"{'–' if row[k] is None else format(row[k], '.0f'):>9}" for k in ("p50_ms", "p99_ms", "max_ms"))
        say(f"  {name:<9}{row['attempts']:>9}{row['ok']:>8}{row['attempts'] - row['ok']:>8}   {failures:<34}{figures}")
    say(f"  connections in PostgreSQL, most at once: {result['peak']} of {MAX_CONNECTIONS};"
        f" requests repeated by Odoo's rule: {result['retries']}; orders told saved: {result['told']}, of these missing: {result['lost']}")
    say()


def operator(weir, acts):
    """What the person on call types."""
    def command(sql):
        def act():
            try:
                said = " ".join(str(line).removeprefix("NOTICE:").strip() + "." for line in weir.admin(sql))
            except psycopg2.Error as error:
                said = str(error).strip()
            acts.append((sql, said))
        return act
    return {15: command("FREEZE REASON 'imports went wild'"), 20: command("RESUME ALL OVER '8 s'")}


def fresh(cluster):
    """The database anew, so that both runs begin alike."""
    cluster.sql("drop database if exists odoo with (force)")
    cluster.sql("create database odoo owner odoo")
    conn = cluster.direct(user="odoo", dbname="odoo", app="suite")
    conn.cursor().execute(SCHEMA)
    conn.close()


def timeline(weir, limit=80):
    """pgweir's own record of the run."""
    rows = [row for row in weir.admin("SHOW TIMELINE") if not str(row.get("text")).startswith("step ")]
    say("What pgweir put on record (single steps of ramps left out):")
    for row in rows[:limit]:
        words = [str(value) for key, value in row.items() if key != "seq" and value not in (None, "")]
        say("  " + "  ".join(words)[:170])
    if len(rows) > limit:
        say(f"  … and {len(rows) - limit} more")
    say()


def run(arguments, cluster, cleanup):
    report = {"max_connections": MAX_CONNECTIONS, "seconds": arguments.seconds}
    direct = {"host": "127.0.0.1", "port": cluster.port, "user": "odoo"}
    say(f"PostgreSQL with max_connections = {MAX_CONNECTIONS}. Ten web users, four cron workers, six reports at a time; at 6 s a request"
        " waits for a carrier with two rows locked, for 20 s; at 10 s an import opens 45 connections and comes again when refused.\n")
    say(f"1. Direct, {arguments.seconds} s")
    fresh(cluster)
    report["direct"] = play(cluster, direct, arguments.seconds)
    table(report["direct"])
    if DIRECT:
        return report

    weir = Weir(cluster, **configuration())
    cleanup.append(weir.close)
    weir.start()
    fresh(cluster)
    acts = []
    say(f"2. Through pgweir, {arguments.seconds} s; at 15 s the operator types FREEZE, at 20 s RESUME ALL OVER '8 s'")
    report["pgweir"] = play(cluster, {**direct, "port": weir.port}, arguments.seconds, operator(weir, acts))
    table(report["pgweir"])
    for sql, said in acts:
        say(f"  operator> {sql}\n            {said[:300]}")
    say()
    timeline(weir)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=35, help="length of each run (35)")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    # SIGTERM ends the demo as Ctrl-C does: with everything cleaned up. A shell's background job ignores SIGINT by inheritance.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cleanup = []
    try:
        cluster = Cluster(max_connections=MAX_CONNECTIONS)
        cleanup.append(cluster.close)
        cluster.start()
        conn = cluster.direct(app="suite")
        for statement in ROLES.strip().rstrip(";").split(";\n"):
            conn.cursor().execute(statement)
        conn.close()
        report = run(arguments, cluster, cleanup)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    except KeyboardInterrupt:
        say("\ninterrupted")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for step in reversed(cleanup):
            step()


if __name__ == "__main__":
    main()
