"""The suites: each runs in a place and tells of every test whether it passed, failed or was skipped."""

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import xml.etree.ElementTree

import sources
from harness.cluster import as_server_user, bindir
from places import give, scratch

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
# A suite that takes longer hangs: it is killed, and what it had not told of counts as failed.
SUITE_SECONDS_MAX = 1500
TEST_SECONDS_MAX = 120


@dataclasses.dataclass
class Outcome:
    """Of one test: how it ended, and what there is to read about it."""

    status: str
    detail: str = ""


def clean_environment(**more):
    """The environment without settings of libpq that would lead elsewhere."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PG") or k.startswith("PGWEIR")} | {k: str(v) for k, v in more.items()}


def execute(argv, cwd, env, seconds_max=SUITE_SECONDS_MAX):
    """Runs a command and all its children within a time limit; (output, exit status or None at the limit)."""
    with open(pathlib.Path(cwd) / "conformance.out", "w+b") as out:
        process = subprocess.Popen([str(a) for a in argv], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   start_new_session=True)
        try:
            status = process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        out.seek(0)
        return out.read().decode(errors="replace"), status


class Regression:
    """PostgreSQL's regression suite: psql scripts whose output is compared. Tests build on each other, so all are always run."""

    name = "PostgreSQL regression"
    key = "regress"
    database = "regression"
    settings = {}
    repeats_singly = False
    # Of the schedule, where a part is enough: the set-up, and what the two first groups of parallel tests are about.
    SHORT_GROUPS = 4
    LINE = re.compile(r"^(?:test)?\s+(\S+)\s+\.\.\. (ok|FAILED|failed)", re.M)
    # pg_regress sets these for a database that it creates itself.
    DATABASE_SETTINGS = {"lc_messages": "C", "lc_monetary": "C", "lc_numeric": "C", "lc_time": "C", "bytea_output": "hex",
                         "timezone_abbreviations": "Default"}

    def __init__(self, options):
        self.short = options.short
        self.tree = sources.postgresql()
        self.version = sources.server_version()[1]

    def run(self, place, _only=None):
        for key, value in self.DATABASE_SETTINGS.items():
            place.cluster.sql(f"alter database {self.database} set {key} to '{value}'")
        base = scratch()
        try:
            # The server reads and writes files here, under its own account.
            shutil.copytree(self.tree / "src/test/regress", base / "regress", ignore=shutil.ignore_patterns("*.o", "*.c"))
            give(base)
            return self._run(place, base / "regress")
        finally:
            shutil.rmtree(base, ignore_errors=True)

    def _run(self, place, directory):
        schedule = directory / "parallel_schedule"
        if self.short:
            groups = re.findall(r"^test: .*\n", schedule.read_text(), re.M)
            schedule.write_text("".join(groups[:self.SHORT_GROUPS]))
        argv = [directory / "pg_regress", "--use-existing", f"--host={place.unix_dir}", f"--port={place.unix_port}", "--user=postgres",
                f"--dbname={self.database}", f"--bindir={bindir()}", f"--dlpath={directory}", f"--inputdir={directory}",
                f"--outputdir={directory}", f"--schedule={schedule}", "--max-concurrent-tests=20"]
        out, _ = execute(as_server_user(argv), directory, clean_environment())
        diffs = self._diffs(directory)
        found = {}
        for test, word in self.LINE.findall(out):
            found[test] = Outcome(PASSED) if word == "ok" else Outcome(FAILED, diffs.get(test, ""))
        for test in re.findall(r"^(?:test|ignore): (.*)$", schedule.read_text(), re.M):
            for one in test.split():
                found.setdefault(one, Outcome(FAILED, "not run:\n" + out[-2000:]))
        return found

    @staticmethod
    def _diffs(directory):
        path = directory / "regression.diffs"
        text = path.read_text(errors="replace") if path.exists() else ""
        parts = re.split(r"^diff .*/results/(\S+)\.out\n", text, flags=re.M)
        return dict(zip(parts[1::2], parts[2::2]))


class Pipeline:
    """libpq's own test of pipelines, with its reference traces of what the client saw on the wire."""

    name = "libpq_pipeline"
    key = "pipeline"
    database = "pipeline"
    settings = {}
    repeats_singly = True

    def __init__(self, _options):
        self.directory = sources.postgresql() / "src/test/modules/libpq_pipeline"
        self.version = sources.server_version()[1]

    def run(self, place, only=None):
        base = scratch()
        found = {}
        try:
            env = clean_environment(PGHOST="127.0.0.1", PGPORT=place.port, PGUSER="postgres", PGDATABASE=self.database)
            names, _ = execute([self.directory / "libpq_pipeline", "tests"], base, env)
            for test in names.split():
                self._one(test, base, env, found)
        finally:
            shutil.rmtree(base, ignore_errors=True)
        return {name: outcome for name, outcome in found.items() if not only or name in only}

    def _one(self, test, base, env, found):
        reference, trace = self.directory / "traces" / f"{test}.trace", base / f"{test}.trace"
        traced = ["-t", trace] if reference.exists() else []
        out, status = execute([self.directory / "libpq_pipeline", "-r", "700", *traced, test, f"dbname={self.database}"], base, env,
                              TEST_SECONDS_MAX)
        found[test] = Outcome(PASSED) if status == 0 else Outcome(FAILED, f"exit status {status}\n{out[-3000:]}")
        if traced:
            seen = trace.read_text(errors="replace") if trace.exists() else ""
            same = seen == reference.read_text()
            found[f"{test} (trace)"] = Outcome(PASSED) if same else Outcome(FAILED, "the trace was:\n" + seen[-3000:])


class Pytest:
    """A driver's own tests, run with pytest."""

    settings = {"wal_level": "logical"}
    repeats_singly = True
    arguments = ()
    needs = ()

    def environment(self, place):
        """How the suite is told where its database is."""
        raise NotImplementedError

    def run(self, place, only=None):
        base = scratch()
        try:
            shutil.copytree(self.tree / "tests", base / "tests")
            for more in self.needs:
                (base / more).parent.mkdir(exist_ok=True)
                shutil.copy(self.tree / more, base / more)
            place.cluster.sql("create extension if not exists hstore", dbname=self.database)
            report = base / "report.xml"
            # Serial numbers in the ids of some tests depend on nothing but the order, so a single one is found again by its name.
            argv = [sources.python(), "-m", "pytest", "-q", "-p", "no:randomly", f"--timeout={TEST_SECONDS_MAX}", "--tb=short",
                    f"--junitxml={report}", "-o", "junit_family=xunit1", *self.arguments, *(self._ids(only) if only else ["tests"])]
            env = clean_environment(PYTHONDONTWRITEBYTECODE="1", **self.environment(place))
            out, status = execute(argv, base, env)
            return self._read(report, out, status)
        finally:
            shutil.rmtree(base, ignore_errors=True)

    @staticmethod
    def _ids(only):
        # Parametrised ids may hold anything; the function is asked for, and the caller looks at the names it wants.
        return sorted({name.partition("[")[0] for name in only})

    @staticmethod
    def _read(report, out, status):
        if not report.exists():
            return {"(the whole suite)": Outcome(FAILED, f"exit status {status}\n{out[-4000:]}")}
        found = {}
        for case in xml.etree.ElementTree.parse(report).iter("testcase"):
            path, module = case.get("file") or "", (case.get("classname") or "")
            classes = module[len(path.removesuffix(".py").replace("/", ".")):].strip(".")
            name = "::".join(part for part in (path, *classes.split("."), case.get("name")) if part)
            bad = case.find("failure") if case.find("failure") is not None else case.find("error")
            if bad is not None:
                found[name] = Outcome(FAILED, (bad.text or bad.get("message") or "")[-6000:])
            elif name not in found:
                found[name] = Outcome(SKIPPED if case.find("skipped") is not None else PASSED)
        return found


class Psycopg2(Pytest):
    """psycopg2's tests."""

    name = "psycopg2"
    key = "psycopg2"
    database = "psycopg2_test"
    version = sources.PSYCOPG2

    def __init__(self, _options):
        self.tree = sources.psycopg2_tests()
        sources.python()

    def environment(self, place):
        return {"PSYCOPG2_TESTDB": self.database, "PSYCOPG2_TESTDB_HOST": "127.0.0.1", "PSYCOPG2_TESTDB_PORT": place.port,
                "PSYCOPG2_TESTDB_USER": "postgres", "PSYCOPG2_TEST_REPL_DSN": ""}


class Psycopg(Pytest):
    """psycopg 3's tests. Left out: its pool's, which time the pool itself against the wall clock, those for mypy, and CockroachDB's."""

    name = "psycopg 3"
    key = "psycopg"
    database = "psycopg_test"
    version = sources.PSYCOPG
    arguments = ("--ignore=tests/test_typing.py", "--ignore=tests/crdb", "--ignore=tests/pool", "-o", "filterwarnings=default")

    needs = ("pyproject.toml", "tools/pproxy_fix.py")

    def __init__(self, options):
        self.tree = sources.psycopg_tests(options.psycopg_tests)
        if not options.slow:
            self.arguments += ("-m", "not slow")
        sources.python()

    def environment(self, place):
        dsn = f"host=127.0.0.1 port={place.port} user=postgres dbname={self.database}"
        return {"PSYCOPG_TEST_DSN": dsn, "PSYCOPG_IMPL": "binary"}


SUITES = {suite.key: suite for suite in (Regression, Pipeline, Psycopg2, Psycopg)}
