"""Every program that docs/performance.md and docs/drill.md measure with is run, by the page's own command line and with shorter settings behind it
(argparse takes the last). Each must come to its end, and print the page's table with a figure in each cell. How good the figures are is not
asked: some goals are missed here, where several of them run beside each other and at a low priority, so that other tests are not slowed."""

import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import pytest

from harness import Weir, docs, rehearsal
from harness.cluster import PASSWORD
from harness.weir import BINARY, ROOT

pytestmark = [pytest.mark.weir, pytest.mark.timeout(900)]

PAGES = [ROOT / "README.md", ROOT / "docs" / "performance.md", ROOT / "docs" / "drill.md"]
# What goes behind a page's options: as little as makes each figure.
SHORT = {
    "benches/compare": "--rounds 1 --seconds 0 --copy-mb 20 --links 300",
    "benches/churn.py": "--rounds 1 --seconds 0 --clients 2",
    "benches/scale.py": "--rounds 1 --storm-rounds 1 --seconds 1 --rest 1 --links 100 --busy 20 --rate 500 --storm 200",
    "benches/operators.py": "--rounds 1 --clients 300 --busy 10 --rate 500 --page-seconds 3",
    "benches/soak": "--warm-up 0.05 --minutes 0.05 --memory-mb 100",
    "benches/tls.py": "--rounds 1 --seconds 0 --copy-mb 20 --idle 50",
    "benches/generator.py": "--seconds 1 --connections 100",
    "script/rehearse.py": "--duration 3s --drain 1s",
    "script/demo": "--duration 3s --drain 1s --report runbook.html",
}
# What else than 0 a program may end with: a goal was missed, an expectation did not hold; a storm was not as strong as asked for, on a
# machine that has other things to do.
STORM_MISSED = 3
STATUS = {"benches/scale.py": {1, STORM_MISSED}, "benches/operators.py": {1}, "script/rehearse.py": {1}, "script/demo": {1}}
BESIDE = 4
SECONDS_MAX = 800
PROGRAM = re.compile(r"(?:\.venv/bin/python )?((?:benches|script)/[\w.]+)")
# In prose a program's name alone is no command; with options, or with what runs it, it is.
SPAN = re.compile(r"`((?:\.venv/bin/python benches/|benches/[\w.]+ --)[^`]*)`")


def commands(path):
    """The command lines on a page that start one of the programs, each once."""
    prose = re.sub(r"^( *)```.*?^\1```$", "", path.read_text(), flags=re.M | re.S)
    told = [step.text for step in docs.script(path) if isinstance(step, docs.Command)] + SPAN.findall(prose)
    return list(dict.fromkeys(" ".join(shlex.split(text.replace("\\\n", ""), comments=True)) for text in told
                              if (found := PROGRAM.match(text)) and found[1] in SHORT))


def groups(words):
    """Options with their values, and what stands alone."""
    found = []
    for word in words:
        if word.startswith("--") or not found or not found[-1][0].startswith("--"):
            found.append([word])
        else:
            found[-1].append(word)
    return found


def essence(text):
    """What is left of a command line where the short settings override the rest: commands of one essence do the same here."""
    short = {group[0] for group in groups(SHORT[program(text)].split())}
    words = [word for group in groups(text.split()) if group[0] not in short for word in group]
    return " ".join(words).removeprefix(".venv/bin/python ")


def program(text):
    """Which program it starts."""
    return PROGRAM.match(text)[1]


def gathered():
    """The commands that are run: of those that would do the same, the first."""
    found = {}
    for path in PAGES:
        for text in commands(path):
            found.setdefault(essence(text), text)
    return list(found.values())


COMMANDS = gathered()
REHEARSALS = [text for text in COMMANDS if program(text).startswith("script/")]
BENCHES = [text for text in COMMANDS if text not in REHEARSALS]
# The one that takes longest begins.
ORDER = sorted(COMMANDS, key=lambda text: (program(text) != "benches/compare", program(text) != "benches/soak"))


def scenarios(text):
    """Of a rehearsal's command: the scenarios."""
    words = text.split()
    behind = words[words.index(program(text)) + 1:]
    return ["runbook"] if program(text) == "script/demo" else [group[0] for group in groups(behind) if not group[0].startswith("--")]


def one_scenario(text):
    """The command line with one of its scenarios, another one for each command: all of them are played by test_drill.py."""
    names = scenarios(text)
    chosen = names[REHEARSALS.index(text) % len(names)]
    return [word for word in text.split() if word not in names or word == chosen], chosen


def argv_of(text):
    """How the command is started here, where the working directory is not the repository."""
    words = one_scenario(text)[0] if text in REHEARSALS else text.split()
    words = words[1:] if words[0] == ".venv/bin/python" else words
    runs = [sys.executable] if words[0].endswith(".py") else []
    return ["nice", "-n", "10", *runs, str(ROOT / words[0]), *words[1:], *SHORT[program(text)].split()]


class Bench:
    """All commands, some at a time."""

    def __init__(self, directory):
        self.directory, self.children = directory, set()
        self.pool = concurrent.futures.ThreadPoolExecutor(BESIDE)
        self.runs = {text: self.pool.submit(self.run, text) for text in ORDER}

    def run(self, text):
        """One; its exit status and what it printed."""
        here = self.directory / str(ORDER.index(text))
        here.mkdir()
        # They wait longer for what must happen: several of them share the machine with other tests, and come last.
        env = {**os.environ, "PGWEIR_BINARY": str(BINARY.resolve()), "PGWEIR_PATIENCE": "20"}
        with open(here / "out", "w") as out, open(here / "err", "w") as err:
            child = subprocess.Popen(argv_of(text), cwd=here, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        self.children.add(child)
        try:
            status = child.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.end(child)
            status = None
        self.children.discard(child)
        return status, (here / "out").read_text(), (here / "err").read_text()[-6000:], here

    @staticmethod
    def end(child):
        """Ends it and what it started; PostgreSQL ends with whoever started it."""
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def close(self):
        """Ends all."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        for child in list(self.children):
            self.end(child)
        self.pool.shutdown()


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """All commands, under way."""
    running = Bench(tmp_path_factory.mktemp("benches"))
    yield running
    running.close()


# -- the drill itself --------------------------------------------------------------------------------------------

def drills():
    """The command lines of `pgweir drill` on its page."""
    return docs.commands("docs/drill.md", "PGWEIR_PASSWORD=… pgweir drill *")


@pytest.mark.parametrize("text", drills())
@pytest.mark.usefixtures("bench")
def test_the_drill_of_the_page_is_played(text, tmp_path):
    """Passwords, places and duration are the test's. It is played while the others are under way."""
    cluster = rehearsal.staging()
    weir = Weir(cluster, **rehearsal.odoo_config())
    try:
        weir.start()
        places = {"PGWEIR_PASSWORD=…": f"PGWEIR_PASSWORD={weir.password}", "odoo:…@staging:5432": f"odoo:{PASSWORD}@127.0.0.1:{cluster.port}",
                  "127.0.0.1:6432": f"127.0.0.1:{weir.port}", "127.0.0.1:6433": f"127.0.0.1:{weir.admin_port}", "pgweir drill": f"{BINARY.resolve()} drill"}
        line = text
        for told, real in places.items():
            assert told in line, told
            line = line.replace(told, real)
        (tmp_path / "config").symlink_to(ROOT / "config")
        done = subprocess.run(["bash", "-c", f"{line} --duration 3s --drain 1s"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    finally:
        weir.close()
        cluster.close()
    assert done.returncode in (0, 1), done.stderr
    told = json.loads((tmp_path / "runbook.json").read_text())
    assert [run["through"] for run in told["runs"]] == ["direct", "pgweir"] and told["runs"][1]["lanes"]["web"]["ok"] > 0
    assert "uPlot" in (tmp_path / "runbook.html").read_text()


# -- tables ------------------------------------------------------------------------------------------------------

# Where little is measured a difference may be anything, less than nothing included, and what is small nothing.
SMALL = re.compile(
    r"added p50|CPU, ms|CPU of the control thread|bytes per|tasks of its thread|its thread is busy|of direct|late, p99|CPU of the cores")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def cells(line):
    """Of a row."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text):
    """Markdown tables: heads, alignments, rows."""
    lines, found = text.splitlines(), []
    for at, line in enumerate(lines[1:], 1):
        if re.fullmatch(r"\|(?: *-+:? *\|)+", line):
            rows = []
            for row in lines[at + 1:]:
                if not row.startswith("|"):
                    break
                rows.append(cells(row))
            found.append((cells(lines[at - 1]), cells(line), rows))
    return found


def label(row, alignments):
    """What a row is about: its cells that are no figures, up to the first one that is."""
    figures = [at for at, alignment in enumerate(alignments) if alignment.endswith(":")]
    return tuple(docs.shape(cell) for cell in row[:figures[0] if figures else 1])


def on_the_page(path):
    """Rows of the page's tables by their table's heads, without figures."""
    found = {}
    for heads, alignments, rows in tables(path.read_text()):
        found.setdefault(tuple(map(docs.shape, heads)), {}).update({label(row, alignments): row for row in rows})
    return found


def checked(table, page, partial):
    """Each figure of it is one, or, where only a part was asked for, missing; whether the page has the same table."""
    heads, alignments, rows = table
    assert rows, heads
    shown = page.get(tuple(map(docs.shape, heads)))
    for row in rows:
        what = label(row, alignments)
        assert shown is None or what in shown, f"the page's table has no row {row}"
        for at, (cell, alignment) in enumerate(zip(row, alignments)):
            if not alignment.endswith(":"):
                continue
            number, small = NUMBER.search(cell), SMALL.search(" ".join([*row[:2], heads[at]]))
            if number:
                assert small or float(number[0].replace(",", "")) > 0, row
            else:
                assert cell in ("", "–") and (small or partial or shown is None or shown[what][at] == cell), row
    return shown is not None


@pytest.mark.parametrize("text", BENCHES)
def test_a_bench_prints_its_page_s_table(text, bench):
    status, out, err, _ = bench.runs[text].result()
    assert status in {0} | STATUS.get(program(text), set()), f"exit status {status}:\n{out[-3000:]}\n{err}"
    found = tables(out)
    assert found, out
    if program(text) == "benches/soak":
        return soaked(found)
    (path,) = [path for path in PAGES if text in commands(path)]
    known = [checked(table, on_the_page(path), "--only" in text) for table in found]
    # With its defaults scale.py has more conditions than the page shows.
    assert all(known) or program(text) == "benches/scale.py", f"the page has no such table:\n{out}"
    assert status != STORM_MISSED or "too slow for it" in err, err


def soaked(found):
    """It worked, rested, and let everybody live who was to."""
    (heads, _, rows), (_, _, lives) = found
    assert [row[heads.index("phase")] for row in rows] == ["load", "rest", "load", "rest"]
    assert all(int(rows[-1][heads.index(of)]) > 0 for of in ("fds", "threads", "backends", "transactions")), rows[-1]
    assert sum(int(row[1]) for row in lives) > 0


def test_the_key_derivation_can_be_taken_out():
    """By a verifier of one round, which PostgreSQL, PgBouncer and pgweir take as any other. The page has it on one core, with a program that
    takes minutes to build."""
    argv = [sys.executable, ROOT / "benches" / "churn.py", *SHORT["benches/churn.py"].split(), "--auth", "scram", "--iterations", "1"]
    done = subprocess.run(argv, env={**os.environ, "PGWEIR_BINARY": str(BINARY.resolve())}, capture_output=True, text=True, timeout=SECONDS_MAX)
    assert done.returncode == 0, done.stderr
    ((_, _, rows),) = tables(done.stdout)
    assert [row[2] for row in rows] == ["direct", "PgBouncer", "pgweir, pass-through", "pgweir, pooled"] * 2, done.stdout


def test_every_program_in_benches_is_named_with_a_command_line():
    """Those of Rust are run by cargo."""
    # A program with a starter of its own is run by that.
    there = {f"benches/{path.name}" for path in (ROOT / "benches").iterdir() if path.is_file() and path.suffix in ("", ".py")
             if path.suffix == "" or not path.with_suffix("").exists()}
    assert there == {program(text) for text in BENCHES}


# -- rehearsals ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", REHEARSALS)
def test_a_rehearsal_of_the_page_is_played(text, bench):
    for name in scenarios(text):
        assert (ROOT / "config" / "drills" / f"{name}.toml").exists(), name
    status, out, err, here = bench.runs[text].result()
    assert status in {0} | STATUS[program(text)], f"exit status {status}:\n{out[-3000:]}\n{err}"
    name = one_scenario(text)[1]
    assert "web" in out and "uPlot" in (here / f"{name}.html").read_text(), out
