"""Plays scenarios of `pgweir drill` on a throw-away PostgreSQL with 100 connections: direct, through PgBouncer if wanted, and through a
pgweir configured by a file of config/ (web's `reset` at 5s). Exit status: 0 if pgweir held what the scenarios state."""

import argparse
import json
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "postgres"))

from harness import Weir  # noqa: E402
from harness.rehearsal import LEAKS, Hands, PgBouncer, drill, odoo_config, staging  # noqa: E402

STDOUT = "-"
CONFIG = "odoo-pooled.toml"


def say(text=""):
    print(text, flush=True)


def tell(options, scenario, out):
    """What the drill printed, where it was asked for."""
    if options.json in (None, STDOUT) or not out.startswith("{"):
        return say(out.rstrip("\n"))
    pathlib.Path(options.json.format(scenario=scenario)).write_text(out)
    said = json.loads(out)
    return say(f"{said['sentence']}\n{said['verdict']}")


def play(options, scenario, cleanup):
    """One scenario on fresh servers; its exit status."""
    hands = scenario in ("upstream-restart", "slow-upstream")
    cluster = staging(**(Hands.SETTINGS if hands else {}))
    cleanup.append(cluster.close)
    env = {}
    if hands:
        hand = Hands(cluster)
        cleanup.append(hand.close)
        env = hand.commands
    weir = Weir(cluster, **odoo_config(leaks={**LEAKS, "when": options.when}, config=options.config))
    cleanup.append(weir.close)
    weir.start()
    bouncer = None
    if options.pgbouncer:
        bouncer = PgBouncer(cluster)
        cleanup.append(bouncer.close)
        bouncer.start()
    report = (options.report or "{scenario}.html").format(scenario=scenario)
    argv, env = drill(scenario, cluster, "--duration", options.duration, "--drain", options.drain, "--seed", options.seed, "--report", report,
                      *(["--allow-commands"] if hands else []), *(["--json"] if options.json else []),
                      *(["--skip-direct"] if options.skip_direct else []), weir=weir, bouncer=bouncer, env=env)
    # A group of its own: Ctrl-C at the terminal comes here only, and is passed on once.
    child = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out = child.communicate()[0]
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        tell(options, scenario, child.communicate()[0])
        raise
    tell(options, scenario, out)
    if options.log:
        pathlib.Path(options.log.format(scenario=scenario)).write_text(weir.log())
    if options.json != STDOUT:
        say(f"report: {pathlib.Path(report).resolve()}")
    return child.returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="+")
    parser.add_argument("--duration", default="45s", help="length of each run (45s)")
    parser.add_argument("--drain", default="10s", help="at most, for what is under way when a run's time is over (10s)")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--config", default=CONFIG, help=f"file of config/ that pgweir gets ({CONFIG})")
    parser.add_argument("--when", choices=("harm", "always"), default=LEAKS["when"], help="web's leaks are reset when they block somebody, or always")
    parser.add_argument("--pgbouncer", action="store_true", help="play PgBouncer in session mode as well")
    parser.add_argument("--skip-direct", action="store_true", help="leave the direct run out")
    parser.add_argument("--report", help="HTML file; {scenario} is replaced")
    parser.add_argument("--log", help="file for pgweir's log; {scenario} is replaced")
    parser.add_argument("--json", nargs="?", const=STDOUT, metavar="FILE",
                        help="print the drill's object and nothing else, one a scenario; or write it to FILE; {scenario} is replaced")
    options = parser.parse_args()
    if options.json and (ROOT / "config" / "drills" / f"{options.json}.toml").exists():
        parser.error(f"--json {options.json}: write the scenarios first, or --json=FILE")
    worst = 0
    for scenario in options.scenario:
        cleanup = []
        try:
            worst = max(worst, play(options, scenario, cleanup))
        finally:
            for step in reversed(cleanup):
                step()
    return worst


if __name__ == "__main__":
    # SIGTERM ends it as Ctrl-C does: with everything cleaned up. A shell's background job ignores SIGINT by inheritance.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
