#!/usr/bin/env python3
"""Ten thousand links beside 200 busy ones: does anybody notice? And what do admission, samples and the console cost as links grow, and
a connect storm against a full lane?

Two pgweirs, each before a fake PostgreSQL of its own, their monitors on a real one that lists the fakes' backends. One has a crowd: a
third each live (half of those inside a transaction), held by a paused lane, and queued. Busy clients run against either in turn,
while the other one is stopped (SIGSTOP) and costs nothing. PostgreSQL's own work for a sample of the crowd is on the crowd's side only, though
it is not pgweir's: a third run, beside the crowd but without samples, tells what samples have to do with it; and two with HAProxy, with and
without as many idle sockets, what sockets alone cost. The storm has a control: the same storm against a listener that does nothing
but refuse, while the busy clients use pgweir. Generators, proxy and PostgreSQL share the machine's cores: what differs from the control
is pgweir's doing. Exit status 1 if a goal is missed, 3 if the storm was not the one asked for.

Run with .venv/bin/python benches/scale.py."""

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from measure import fake, storm  # noqa: E402
from measure.beside import Beside  # noqa: E402
from measure.crowd import Side  # noqa: E402
from measure.report import MISSED, decided, note, spread  # noqa: E402
from measure.sampled import Sampled  # noqa: E402

P99_GOAL = 1.10
STORM_CORES_GOAL = 0.25
CONDITIONS = ["without", "with", "unsampled", "HAProxy without", "HAProxy with"]
# After SIGCONT: what piled up meanwhile is done with.
AWAKE_S = 1.2
# Of max_connections, beside the crowd's.
SPARE_CONNECTIONS = 1000
# pgbench connects first, and ends when its last transaction does.
STORM_EXTRA_S = 0.5
COSTS = [
    ("login_cpu_ms", "login to an open lane and its end: CPU, ms", 3), ("login_ms", "login to an open lane: wall, ms", 2),
    ("refusal_cpu_ms", "refusal by a full lane: CPU, ms", 3), ("refusal_ms", "refusal by a full lane: wall, ms", 2),
    ("sample_ms", "a sample: CPU of the control thread, ms", 2), ("control_ms_s", "control thread at rest: CPU, ms/s", 1),
    ("rest_ms_s", "all threads at rest: CPU, ms/s", 1), ("lanes_cpu_ms", "SHOW LANES: CPU, ms", 2), ("lanes_ms", "SHOW LANES: wall, ms", 2),
    ("clients_cpu_ms", "SHOW CLIENTS: CPU, ms", 1), ("clients_ms", "SHOW CLIENTS: wall, ms", 1), ("resident_mb", "resident, MB", 1),
]


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="costs,busy,storm", help="of these, comma-separated (default all)")
    parser.add_argument("--links", default="100,1000,3000,10000", help="sizes of the crowd; the last one sits beside the busy clients (default %(default)s)")
    parser.add_argument("--busy", type=int, default=200, help="busy clients (default %(default)s)")
    parser.add_argument("--rate", type=int, default=2000, help="transactions per second of the busy clients together (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="of the busy clients with and without the crowd (default %(default)s)")
    parser.add_argument("--conditions", default=",".join(CONDITIONS), help="of the busy clients, comma-separated; without and with decide (default all)")
    parser.add_argument("--storm-rounds", type=int, default=5, help="of calm, control and storm (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=5, help="of each busy run (default %(default)s)")
    parser.add_argument("--rest", type=float, default=3, help="seconds in which is seen what happens at rest (default %(default)s)")
    parser.add_argument("--storm", type=int, default=2000, help="connects per second against a full lane (default %(default)s)")
    parser.add_argument("--storm-processes", type=int, default=2, help="that generate the storm (default %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures of all rounds there")
    return parser.parse_args()


def column(runs, key):
    """One figure of each round."""
    return [run[key] for run in runs]


def ratios(runs, bases, key="p99_us"):
    """Round by round."""
    return [a / b for a, b in zip(column(runs, key), column(bases, key))]


def costs(side, sizes, wanted, rest_s):
    """Lets the crowd grow, and measures at each size if that is wanted; figures by size."""
    found = {}
    for size in sizes:
        began = time.monotonic()
        side.grow(size)
        note(f"{size:,} links in {time.monotonic() - began:.1f} s: {side.crowd()}")
        if wanted:
            found[size] = side.costs(rest_s)
            note(f"  {({k: round(v, 3) for k, v in found[size].items()})}")
    return found


def costs_table(found):
    """Figures by size of the crowd."""
    lines = ["| links | " + " | ".join(f"{size:,}" for size in found) + " |", "| --- |" + " ---: |" * len(found)]
    for key, words, decimals in COSTS:
        lines.append(f"| {words} | " + " | ".join(f"{figures[key]:,.{decimals}f}" for figures in found.values()) + " |")
    return "\n".join(lines)


def busy(args, empty, crowded, alone, beside):
    """Rounds of the busy clients without the crowd, with it, with it but without samples; and the same through HAProxy without and with."""
    sides = zip(CONDITIONS, (empty, crowded, crowded, alone, beside))
    conditions = [(name, side) for name, side in sides if name in args.conditions.split(",")]
    runs = {name: [] for name, _ in conditions}
    for number in range(args.rounds):
        first = number % len(conditions)
        for name, side in conditions[first:] + conditions[:first]:
            with contextlib.ExitStack() as stack:
                for other in {empty, crowded, alone, beside} - {side}:
                    stack.enter_context(other.stopped())
                if name == "unsampled":
                    stack.enter_context(side.unsampled())
                time.sleep(AWAKE_S)
                runs[name].append(side.busy(args.busy, args.rate, args.seconds))
        note(f"busy {number + 1}, p99 in µs: " + ", ".join(f"{name} {found[-1]['p99_us']:.0f}" for name, found in runs.items()))
    return runs


def busy_table(args, runs, links):
    """All side by side, and whether the goal is met."""
    words = {"without": "without", "with": f"with {links:,} links", "unsampled": "the same, no samples", "HAProxy without": "HAProxy",
             "HAProxy with": "HAProxy, as many sockets"}
    pairs = [(a, b) for a, b in (("with", "without"), ("unsampled", "without"), ("HAProxy with", "HAProxy without")) if a in runs and b in runs]
    heads = [words[name] for name in runs] + [f"{a} / {b}" for a, b in pairs]
    lines = [f"| {args.busy} busy clients, {args.rate:,}/s | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for key, name in (("p50_us", "p50, µs"), ("p99_us", "p99, µs"), ("cpu_us", "CPU µs per transaction, idle work included")):
        cells = [spread(column(found, key), 0) for found in runs.values()] + [spread(ratios(runs[a], runs[b], key)) for a, b in pairs]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    found = decided(ratios(runs["with"], runs["without"]), P99_GOAL)
    return "\n".join(lines) + f"\n\nGoal: p99 with / without ≤ {P99_GOAL:.2f}: {found}", found


def stormy(args, side, listener):
    """Rounds of the busy clients: calm, beside the control's storm, beside a storm against pgweir's full lane."""
    runs = {"calm": [], "control": [], "storm": []}
    kinds = [("calm", None), ("control", listener.port), ("storm", side.port)]
    for number in range(args.storm_rounds):
        for name, port in kinds[number % 3:] + kinds[:number % 3]:
            runs[name].append(one_storm(args, side, port))
        note(f"storm {number + 1}: " + "; ".join(f"{name} p99 {found[-1]['p99_us']:.0f} µs, {found[-1]['cores']:.3f} cores" for name, found in runs.items()))
    return runs


def one_storm(args, side, port):
    """The busy clients' figures, pgweir's cores meanwhile, and the storm's own figures where there was one."""
    seconds = args.seconds + STORM_EXTRA_S
    made = storm.Storm(port, "storm", args.storm, seconds, args.storm_processes) if port else None
    try:
        before, began = side.cpu_ns(), time.monotonic()
        if made:
            made.go()
        out = side.busy(args.busy, args.rate, args.seconds)
        found = made.result() if made else {}
        time.sleep(max(0, began + seconds - time.monotonic()))
        return out | {"cores": (side.cpu_ns() - before) / 1e9 / (time.monotonic() - began)} | {f"storm_{k}": v for k, v in found.items()}
    finally:
        if made:
            made.close()


def storm_table(args, runs):
    """The three side by side, and whether the goals are met."""
    lines = [f"| {args.busy} busy clients, {args.rate:,}/s | calm | control | storm | storm / calm | storm / control |", "| --- |" + " ---: |" * 5]
    for key, words, decimals in (("p50_us", "p50, µs", 0), ("p99_us", "p99, µs", 0), ("cores", "pgweir's CPU, cores", 3)):
        cells = [spread(column(found, key), decimals) for found in runs.values()]
        cells += [spread(ratios(runs["storm"], runs[base], key)) for base in ("calm", "control")]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    for key, words, decimals in (("storm_rate", "connects/s, all refused", 0), ("storm_p50_ms", "refusal p50, ms", 2), ("storm_p99_ms", "refusal p99, ms", 2)):
        cells = [spread(column(runs[name], key), decimals) for name in ("control", "storm")]
        lines.append(f"| {words} | – | {' | '.join(cells)} | – | – |")
    cores = [a["cores"] - b["cores"] for a, b in zip(runs["storm"], runs["control"])]
    latency = ratios(runs["storm"], runs["control"])
    found = [decided(cores, STORM_CORES_GOAL, strict=True), decided(latency, P99_GOAL)]
    return "\n".join(lines) + (f"\n\nGoals: the storm's own cost, storm less control, {spread(cores, 3)} cores < {STORM_CORES_GOAL}: {found[0]};"
                               f" p99 storm / control ≤ {P99_GOAL:.2f}: {found[1]}"), found


def main():
    """Measures and prints."""
    args = arguments()
    wanted = set(args.only.split(","))
    if not {"without", "with"} <= set(args.conditions.split(",")) <= set(CONDITIONS):
        sys.exit(f"benches/scale.py: --conditions: without, with, and of {', '.join(CONDITIONS[2:])}")
    sizes = sorted(int(size) for size in args.links.split(","))
    files = fake.raise_file_limit()
    if files < 2 * sizes[-1]:
        note(f"warning: only {files} file descriptors a process: {sizes[-1]} links may not fit")
    made, results, verdicts = [], {}, []
    try:
        listener, sampled = keep(made, storm.Listener()), keep(made, Sampled(sizes[-1] + SPARE_CONNECTIONS))
        listener.start()
        sampled.start()
        empty, crowded = keep(made, Side(sampled, database="odoo")), keep(made, Side(sampled))
        empty.start()
        crowded.start()
        if wanted & {"costs", "busy"}:
            with empty.stopped():
                results["costs"] = costs(crowded, sizes if "costs" in wanted else sizes[-1:], "costs" in wanted, args.rest)
            if results["costs"]:
                print(costs_table(results["costs"]) + "\n", flush=True)
        if "busy" in wanted:
            # Started only now: the costs above are pgweir's, and nobody else's.
            alone, beside = (keep(made, Beside(sampled.cluster.bin, links)).start() for links in (0, sizes[-1]))
            results["busy"] = busy(args, empty, crowded, alone, beside)
            text, found = busy_table(args, results["busy"], sizes[-1])
            print(text + "\n", flush=True)
            verdicts.append(found)
        if "storm" in wanted:
            with crowded.stopped():
                results["storm"] = stormy(args, empty, listener)
            text, found = storm_table(args, results["storm"])
            print(text, flush=True)
            verdicts += found
        if args.json:
            args.json.write_text(json.dumps(results))
    except storm.Missed as missed:
        sys.stdout.flush()
        note(f"benches/scale.py: {missed}")
        return 3
    finally:
        for thing in reversed(made):
            thing.close()
    return 1 if any(found.startswith(MISSED) for found in verdicts) else 0


def keep(made, thing):
    """`thing`, which is to be closed in the end."""
    made.append(thing)
    return thing


if __name__ == "__main__":
    sys.exit(main())
