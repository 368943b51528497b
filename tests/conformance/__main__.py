"""script/conformance: suites that others wrote, direct and through a proxy, and the difference between the sets of failures."""

import argparse
import json
import pathlib
import re
import signal
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "postgres")]

import sources  # noqa: E402
from harness.weir import BINARY  # noqa: E402
from places import Place  # noqa: E402
from suites import FAILED, SKIPPED, SUITES, Outcome  # noqa: E402

REPEATS_MAX = 3


def say(text):
    print(f"== {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def failures(found):
    """The names of the tests that failed."""
    return {name for name, outcome in found.items() if outcome.status == FAILED}


class Comparison:
    """One suite, direct and through one proxy."""

    def __init__(self, suite, peer, out):
        self.suite, self.peer, self.out = suite, peer, out
        self.times = {}
        self.flaky = {}
        self.said = ""

    def run(self):
        """Runs both and repeats what differs; self."""
        self.direct = self._once("direct")
        self.through = self._once(self.peer)
        for name in self.direct.keys() - self.through.keys():
            self.through[name] = Outcome(FAILED, "told nothing of")
        for name, outcome in self.through.items():
            # Many a test skips itself where the server seems to lack something: what ran direct has to run.
            if outcome.status == SKIPPED and name in self.direct and self.direct[name].status != SKIPPED:
                self.through[name] = Outcome(FAILED, "skipped, but not direct")
        self.only_through = failures(self.through) - failures(self.direct)
        self.only_direct = failures(self.direct) - failures(self.through)
        for name in self.only_through:
            self.times[name] = [1, 1, 0, 1]
        for _ in range(REPEATS_MAX):
            left = {name for name in self.only_through if name not in self.flaky}
            if not left:
                break
            self._repeat(left)
        self.only_through -= self.flaky.keys()
        return self

    def _repeat(self, names):
        # A test is flaky where it passes through the proxy after all, or fails without it.
        through, direct = self._once(self.peer, names), self._once("direct", names)
        for name in names:
            failed_through = through.get(name, Outcome(FAILED)).status in (FAILED, SKIPPED)
            failed_direct = direct.get(name, Outcome(FAILED)).status == FAILED
            count = self.times[name]
            count[0] += failed_through
            count[1] += 1
            count[2] += failed_direct
            count[3] += 1
            if failed_direct or not failed_through:
                self.flaky[name] = count

    def _once(self, place_name, only=None):
        say(f"{self.suite.name}, {place_name}" + (f": {len(only)} again" if only else ""))
        started = time.monotonic()
        with Place(place_name, self.suite.database, **self.suite.settings) as place:
            found = self.suite.run(place, only)
            said = place.check()
            if said and not only:
                self.said = f"{self.suite.name}: {place_name} tells of {said}"
            self._keep(place_name, place, found, again=bool(only))
        bad = failures(found) & only if only else failures(found)
        say(f"{self.suite.name}, {place_name}: {len(only or found)} tests, {len(bad)} failed, {time.monotonic() - started:.0f} s")
        return found

    def _keep(self, place_name, place, found, again):
        base = self.out / f"{self.suite.key}-{place_name}{'-again' if again else ''}"
        base.mkdir(parents=True, exist_ok=True)
        (base / "server.log").write_text(place.cluster.log())
        (base / "proxy.log").write_text(place.log())
        (base / "results.json").write_text(json.dumps({name: outcome.status for name, outcome in found.items()}, indent=0))
        for name in failures(found):
            (base / (re.sub(r"[^\w.\[\]-]+", "_", name)[-150:] + ".txt")).write_text(found[name].detail)

    def differently(self):
        """Tests of the regression suite that fail in both, with another output through the proxy."""
        def lines(outcome):
            return [line for line in outcome.detail.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        if self.suite.repeats_singly:
            return []
        both = failures(self.direct) & failures(self.through)
        return sorted(name for name in both if lines(self.direct[name]) != lines(self.through[name]))

    def row(self):
        """The row of the table."""
        skipped = sum(outcome.status == SKIPPED for outcome in self.direct.values())
        tests = f"{len(self.direct)}" + (f" ({skipped} skipped)" if skipped else "")
        cells = [f"{self.suite.name} {self.suite.version}", tests, len(failures(self.direct)), len(failures(self.through)),
                 ", ".join(sorted(self.only_through)) or "none"]
        return "| " + " | ".join(map(str, cells)) + " |"

    def notes(self):
        """What the table does not show."""
        if self.said:
            yield self.said
        for name, (bad, runs, direct_bad, direct_runs) in sorted(self.flaky.items()):
            yield f"flaky: {name}: failed {bad} of {runs} through {self.peer}, {direct_bad} of {direct_runs} direct"
        for name in sorted(self.only_direct):
            yield f"failed direct only: {name}"
        for name in self.differently():
            yield f"fails in both, with other output through {self.peer}: {name}"


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(prog="script/conformance", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default: all")
    parser.add_argument("--peer", choices=("pgweir", "pgbouncer"), default="pgweir", help="what to run through")
    parser.add_argument("--psycopg-tests", metavar="DIR", help=f"a tree whose tests/ are psycopg {sources.PSYCOPG}'s")
    parser.add_argument("--slow", action="store_true", help="psycopg 3's slow tests too: leaks, large COPY, random types")
    parser.add_argument("--short", action="store_true", help="of the regression suite its first groups only: to see that it works, in seconds")
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, help="where details of failures go; default: in the cache")
    options = parser.parse_args()
    unknown = set(options.suites) - SUITES.keys()
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    return options


def main():
    """Exit status: 0 nothing fails only through the proxy, 1 something does, 2 a suite could not be run."""
    options = arguments()
    # A shell starts what runs in the background with SIGINT ignored, children inherit that, and drivers test Control-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.peer == "pgweir" and not BINARY.exists():
        sys.exit(f"script/conformance: {BINARY} is not built")
    out = options.out or sources.CACHE / "out" / options.peer
    done, missing = [], []
    for key in options.suites or SUITES:
        try:
            suite = SUITES[key](options)
        except sources.Unavailable as error:
            missing.append(f"{SUITES[key].name}: not run: {error}")
            say(missing[-1])
            continue
        done.append(Comparison(suite, options.peer, out).run())
    print(f"| suite | tests | failures direct | failures through {options.peer} | only through {options.peer} |\n| --- | --- | --- | --- | --- |")
    for comparison in done:
        print(comparison.row())
    for note in [note for comparison in done for note in comparison.notes()] + missing:
        print(f"- {note}")
    print(f"details: {out}")
    if any(comparison.only_through for comparison in done):
        sys.exit(1)
    sys.exit(2 if missing else 0)


main()
