"""Direct connections, PgBouncer (session mode), HAProxy (tcp mode) and pgweir side by side, interleaved in short
runs, because nothing else helps on a busy machine, on a throw-away PostgreSQL. Started by benches/compare, which installs what is missing. Prints a Markdown table of medians; `ratio` is pgweir's figure by PgBouncer's of the
same round: median over the rounds, and the quartiles."""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import platform
import random
import shlex
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from measure import fake, load, process, report, targets  # noqa: E402
from measure.report import note  # noqa: E402
from harness import Cluster  # noqa: E402
from harness.cluster import ROLES  # noqa: E402
from harness.weir import BINARY  # noqa: E402

LOADS = [*load.MODES, "churn", "copy", "memory"]
PLACES = ["any", "one", "own"]


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(prog="benches/compare", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: about two minutes")
    parser.add_argument("--only", metavar="NAMES", help=f"loads, with commas between: {', '.join(LOADS)}")
    parser.add_argument("--targets", metavar="NAMES", help=f"of these, with commas between; PgBouncer and pgweir always: {', '.join(t.name for t in targets.ALL)}")
    parser.add_argument("--rounds", type=int, help="rounds (default 10; --quick 1)")
    parser.add_argument("--seconds", type=int, help="of each pgbench run (default 2); 0 is a trial: some transactions each")
    parser.add_argument("--copy-mb", type=int, help="of each COPY load, spread over the rounds (default 1000; --quick 100)")
    parser.add_argument("--links", metavar="NUMBERS", help="of idle links whose memory is measured, with commas between (default 1000,5000; --quick 1000)")
    parser.add_argument("--cores", choices=PLACES, default="any", help="where processes run: where the kernel likes (any), all on one core (one), or the proxies on another core than "
                        "all else (own); without wake-ups from core to core that differ from round to round, rounds lie close together (default any)")
    parser.add_argument("--json", metavar="FILE", help="every round's figures")
    args = parser.parse_args()
    quick = args.quick
    args.rounds = args.rounds or (1 if quick else 10)
    args.seconds = 2 if args.seconds is None else args.seconds
    args.copy_mb = args.copy_mb or (100 if quick else 1000)
    args.links = [int(links) for links in args.links.split(",")] if args.links else [1000] if quick else [1000, 5000]
    args.only = args.only.split(",") if args.only else LOADS
    names = [target.name for target in targets.ALL]
    wanted = {report.PEER, report.OURS, *args.targets.split(",")} if args.targets else set(names)
    unknown = set(args.only) - set(LOADS) | wanted - set(names)
    if unknown:
        parser.error(f"no such load or target: {', '.join(sorted(unknown))}")
    args.targets = [target for target in targets.ALL if target.name in wanted]
    args.free = sorted(os.sched_getaffinity(0))
    if args.cores == "own" and len(args.free) < 2:
        parser.error("--cores own: there is one core only")
    return args


def name(mode, clients):
    """A pgbench load in words."""
    return f"-S {mode}, {clients} client{'s' if clients > 1 else ''}"


@contextlib.contextmanager
def fresh(args, cluster):
    """New processes, warmed up: where a process's pages happen to lie is worth a tenth at one client, and must not become a figure
    of all rounds."""
    live = []
    try:
        for kind in args.targets:
            live.append(kind(cluster).start())
            if args.cores == "own" and live[-1].pid:
                process.move(live[-1].pid, args.free[1])
        for target in live:
            load.pgbench(target, "simple", 8, min(args.seconds, 1), latency=False)
        yield live
    finally:
        for target in live:
            target.close()


def one_round(args, results, live, number):
    """Every load once, target by target, in an order that is drawn anew for each load: who runs behind whom matters too."""
    draw = random.Random(number)
    shuffled = functools.partial(draw.sample, live, len(live))
    for mode in load.MODES:
        for clients in (1, 8) if mode in args.only else ():
            for target in shuffled():
                note(f"round {number + 1}: {name(mode, clients)}: {target.name}")
                results.add(name(mode, clients), target.name, load.pgbench(target, mode, clients, args.seconds))
    if "churn" in args.only:
        for target in shuffled():
            note(f"round {number + 1}: churn: {target.name}")
            results.add("-S -C, 8 clients", target.name, load.pgbench(target, "simple", 8, args.seconds, reconnect=True, latency=False))
    for rows in load.ROWS if "copy" in args.only else ():
        for target in shuffled():
            note(f"round {number + 1}: COPY, {rows}: {target.name}")
            results.add(f"COPY out, {rows} rows", target.name, load.copy_out(target, rows, args.copy_mb / args.rounds))


def once(args, results, live):
    """What does not vary from round to round: system calls and memory."""
    seconds = 0 if args.seconds == 0 else 1 if args.quick else 3
    for target in live:
        if target.name == targets.Target.name:
            continue
        note(f"system calls: {target.name}")
        for mode in load.MODES:
            for clients in (1, 8) if mode in args.only else ():
                results.add(name(mode, clients), target.name, load.system_calls(target, mode, clients, seconds))
        if "churn" in args.only:
            results.add("-S -C, 8 clients", target.name, load.system_calls(target, "simple", 8, seconds, reconnect=True))
    for kind in args.targets if "memory" in args.only else ():
        if kind is targets.Target:
            continue
        note(f"idle links: {kind.name}")
        results.add("idle links after a query", kind.name, load.idle_memory(kind, args.links))


def prepare():
    """A PostgreSQL with pgbench's tables."""
    cluster = Cluster(max_connections=300, shared_buffers="256MB", max_wal_senders="0", wal_level="minimal", log_min_messages="fatal",
                      log_checkpoints="off").start()
    for statement in ROLES.strip().rstrip(";").split(";\n"):
        cluster.sql(statement)
    cluster.sql("create database bench owner odoo")
    load.run([cluster.bin / "pgbench", "-i", "-q", "-s", "5"], cluster.port)
    cluster.sql("vacuum analyze", dbname="bench")
    return cluster


def about(results):
    """Under what circumstances."""
    def first_line(argv):
        return subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()[0]

    cpu = next((line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return [f"{os.cpu_count()} × {cpu}, Linux {platform.release()}, load average {os.getloadavg()[1]:.1f}",
            first_line(["/usr/sbin/pgbouncer", "-V"]) + "; " + first_line(["/usr/sbin/haproxy", "-v"]),
            f"system calls counted by {process.counter()}; rounds of the direct run lie up to {report.noise(results):.0f} % apart"]


def main():
    """Measures and prints."""
    args = arguments()
    if not BINARY.exists():
        sys.exit(f"{BINARY} is not built: cargo build --release")
    fake.raise_file_limit()
    if args.cores != "any":
        # PostgreSQL, pgbench and the proxies inherit it.
        os.sched_setaffinity(0, {args.free[0]})
    results = report.Results()
    cluster = prepare()
    try:
        for number in range(args.rounds):
            with fresh(args, cluster) as live:
                one_round(args, results, live, number)
            save(args, results)
        with fresh(args, cluster) as live:
            once(args, results, live)
    finally:
        cluster.close()
    results.derive()
    print(f"`{shlex.join(['benches/compare', *sys.argv[1:]])}`\n")
    print(report.table(results, [kind.name for kind in args.targets]) + "\n")
    if set(load.MODES) <= set(args.only) and args.rounds > 1:
        print(report.all_rows(results) + "\n")
    for line in about(results):
        print(f"- {line}")
    save(args, results)


def save(args, results):
    """Writes --json; after each round, so that a run that is broken off is not lost."""
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results.as_json(), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
