"""psql as people use it, at a terminal, for tests/postgres/test_clients.py; the argument is the program. One process serves all modes: a
line of stdin is one mode, its connection's parameters as key=value between tabs; the answer is a line "step TAB what was seen" for each
step, and a line with a dot."""

import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import tempfile
import termios
import threading

ROWS = 1000
BIG_CHARACTERS = 300_000
# Each prompt is a line of its own, the first one with the pid that libpq was told. Nothing of ~/.psqlrc, and no password is asked for.
PROMPT, MORE_ROWS = re.compile(r"\(([0-9]+)\)"), re.compile(r"\(rows\)")
ARGUMENTS = ["-XAtqwn", "-F", " ", "-P", "null=null", "-P", "pager=off", "-v", "VERBOSITY=sqlstate",
             "-v", "PROMPT1=(%p)%012", "-v", "PROMPT2=", "-v", "PROMPT3=(rows)%012"]
ENVIRONMENT = {**os.environ, "PGCLIENTENCODING": "UTF8", "LC_ALL": "C.UTF-8"}
ERROR = re.compile(r"ERROR:  (\w{5})")
HEARD = re.compile(r'Asynchronous notification "(.*)" with payload "(.*)" received from server process with PID (\d+)\.')


def conninfo(mode):
    return " ".join(f"{key}='{value}'" for key, value in mode.items())


class Psql:
    """A psql, logged in."""

    def __init__(self, program, mode):
        ours, terminal = pty.openpty()
        looks = termios.tcgetattr(terminal)
        # Neither echo nor carriage returns: what is read is what psql wrote.
        looks[1] &= ~termios.OPOST
        looks[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, looks)
        self.process = subprocess.Popen([program, *ARGUMENTS, conninfo(mode)], stdin=terminal, stdout=terminal, stderr=terminal, env=ENVIRONMENT)
        os.close(terminal)
        self.keys = open(ours, "w", encoding="utf-8", buffering=1, closefd=False)
        self.screen = open(ours, encoding="utf-8")
        self.pid = None
        self.until(PROMPT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.type(r"\q")
        self.process.wait(10)
        self.screen.close()

    def type(self, line):
        print(line, file=self.keys)

    def until(self, prompt):
        """The lines before a prompt; ConnectionError with all of them if psql ends instead."""
        lines = []
        try:
            for line in map(str.rstrip, self.screen):
                if found := prompt.fullmatch(line):
                    self.pid = found[1] if prompt is PROMPT else self.pid
                    return lines
                lines.append(line)
        except OSError:
            pass  # A terminal without a program: its end.
        raise ConnectionError(" ".join(lines))

    def ask(self, *lines):
        """What psql says to the last of these lines."""
        for line in lines:
            self.type(line)
            said = self.until(PROMPT)
        return said

    def value(self, sql):
        return " ".join(self.ask(sql))

    def interrupt(self):
        """Ctrl-C, once psql sleeps: between a prompt and the read behind it, it would take it for another thing."""
        while pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            pass
        self.process.send_signal(signal.SIGINT)


def state(said):
    """The SQLSTATE of what psql said: its variable of that name does not know how a \\copy ended."""
    return " ".join(found[1] for line in said if (found := ERROR.fullmatch(line))) or "none"


def simple(psql):
    return ", ".join(psql.ask(r"select 1, 'zwei' \; select null, 'größe €';"))


def described(psql):
    """psql's one use of the extended protocol."""
    return ", ".join(psql.ask(r"select 1::int as n, 'x'::text as t \gdesc"))


def transaction(psql):
    psql.ask("create temp table rolled (n int);", "begin;", "insert into rolled values (1);", "rollback;")
    empty = psql.value("select count(*) from rolled;")
    psql.ask("begin;", "insert into rolled values (2);", "savepoint s;", "insert into rolled values (3);", "rollback to s;", "commit;")
    return f"{empty} {psql.value('select sum(n) from rolled;')}"


def errors(psql):
    seen = [state(psql.ask(*lines)) for lines in (["select 1 / 0;"], ["begin;", "select * from nowhere;"], ["select 1;"])]
    psql.ask("rollback;")
    return " ".join([*seen, psql.value("select 1;")])


def cursor(psql):
    """By a cursor of psql's own, a hundred rows at a time."""
    psql.ask(r"\set FETCH_COUNT 100")
    rows = psql.ask(f"select generate_series(1, {ROWS});")
    psql.ask(r"\set FETCH_COUNT 0")
    return str(sum(map(int, rows)))


def cancel(psql, other):
    """The other one sees the query run before it is cancelled: a cancel that is too early has nothing to hit."""
    psql.type("select pg_sleep(20);")
    while other.value(f"select count(*) from pg_stat_activity where wait_event = 'PgSleep' and pid = {psql.pid};") == "0":
        pass
    psql.interrupt()
    return f"{state(psql.until(PROMPT))} {psql.value('select 1;')}"


def hear(listener, other):
    """psql looks for notifications behind each of its queries."""
    listener.ask("listen pgweir_clients;")
    other.ask("notify pgweir_clients, 'größe €';")
    heard = []
    while not heard:
        heard = [found for line in listener.ask("select;") if (found := HEARD.fullmatch(line))]
    heard += filter(None, map(HEARD.fullmatch, listener.ask("unlisten *;")))
    channel, payload, pid = heard[0].groups()
    return f"{channel} {payload} {str(pid == other.pid).lower()} {len(heard)}"


def copy(psql, files):
    """In and out, a row that is none, and one that the client gives up."""
    rows = "".join(f"{n}\tgröße {n}\n" for n in range(ROWS)).encode()
    (files / "rows").write_bytes(rows)
    (files / "bad").write_text("no number\tx\n")
    psql.ask("create temp table copied (n int, t text);", rf"\copy copied from '{files}/rows'")
    count = psql.value(r"\echo :ROW_COUNT")
    psql.ask(rf"\copy copied to '{files}/back'")
    back = (files / "back").read_bytes()
    bad = state(psql.ask(rf"\copy copied from '{files}/bad'"))
    for line in (r"\copy copied from stdin", "1\tx"):
        psql.type(line)
        psql.until(MORE_ROWS)
    psql.interrupt()
    psql.until(PROMPT)
    return f"{count} {str(back == rows).lower()} {bad} {psql.value('select count(*) from copied;')}"


def big(psql, files):
    sent = "größe €" * (BIG_CHARACTERS // 7)
    (files / "big").write_text(sent, encoding="utf-8")
    psql.ask(rf"\set big `cat '{files}/big'`", rf"select :'big' \g '{files}/back'")
    return str((files / "back").read_text(encoding="utf-8") == sent + "\n").lower()


def reconnect(psql):
    """With the parameters of before, password and all."""
    before = psql.pid
    psql.ask(r"\connect")
    return str(before != psql.pid == psql.value("select pg_backend_pid();")).lower()


def wrong(program, mode):
    """A failed login leaves libpq's words only, without a code."""
    done = subprocess.run([program, *ARGUMENTS, conninfo({**mode, "password": "wrong"})], stdin=subprocess.DEVNULL, env=ENVIRONMENT,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")
    return "28P01" if "password authentication failed" in done.stdout else done.stdout


def play(program, mode, files):
    """What each step saw; only with `guess` what a wrong password gets."""
    seen = {}

    def step(name, what, *args):
        try:
            seen[name] = what(*args)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it was seen
            seen[name] = repr(problem)

    guesses = mode.pop("guess", None)
    # Meanwhile: a wrong password may be answered later than a right one.
    guess = threading.Thread(target=step, args=("wrong", wrong, program, mode))
    if guesses:
        guess.start()
    try:
        with Psql(program, mode) as first, Psql(program, mode) as second:
            step("encrypted", lambda: str("SSL connection" in first.value(r"\conninfo")).lower())
            step("pid", lambda: str(first.value("select pg_backend_pid();") == first.pid).lower())
            for name, what in {"simple": simple, "described": described, "transaction": transaction, "error": errors, "cursor": cursor}.items():
                step(name, what, first)
            step("copy", copy, first, files)
            step("big", big, first, files)
            step("cancel", cancel, first, second)
            step("notify", hear, first, second)
            step("reconnect", reconnect, first)
            step("after", lambda: f"{first.value('select 1;')} {second.value('select 2;')}")
    except ConnectionError as problem:
        seen["connect"] = str(problem)
    if guesses:
        guess.join()
    return seen


sys.stdin.reconfigure(encoding="utf-8")
sys.stdout.reconfigure(encoding="utf-8")
for line in sys.stdin:
    with tempfile.TemporaryDirectory() as directory:
        answers = play(sys.argv[1], dict(pair.split("=", 1) for pair in line.rstrip("\n").split("\t")), pathlib.Path(directory))
    for step, seen in answers.items():
        print(step, seen.replace("\n", " ").replace("\t", " "), sep="\t")
    print(".", flush=True)
