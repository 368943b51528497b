"""psycopg 3 as applications use it, for tests/postgres/test_clients.py. One process serves all modes: a line of stdin is one mode, its
connection's parameters as key=value between tabs; the answer is a line "step TAB what was seen" for each step, and a line with a dot."""

import sys
import threading

import psycopg

ROWS = 1000
BIG_CHARACTERS = 300_000


def state(action, *args):
    """The SQLSTATE that it ends with. A failed login leaves libpq's words only, without a code."""
    try:
        action(*args)
        return "none"
    except psycopg.Error as error:
        return error.sqlstate or ("28P01" if "password authentication failed" in str(error) else str(error))


def value(conn, sql, *args):
    """The first column of the first row."""
    return conn.execute(sql, args or None).fetchone()[0]


def text(row):
    return " ".join("null" if v is None else str(v) for v in row)


def simple(conn):
    cur = conn.execute("select 1, 'zwei'; select null, 'größe €'")
    rows = [text(cur.fetchone())]
    while cur.nextset():
        rows.append(text(cur.fetchone()))
    return ", ".join(rows)


def prepared(conn):
    rows = []
    for n in (1, 2, 3):
        args = (n, None if n == 2 else "größe €", bytes([0, n, 255]))
        rows.append(conn.execute("select %b::int + 1, %t::text || '!', encode(%b, 'hex')", args, prepare=True, binary=True).fetchone())
    return ", ".join(map(text, rows))


def pipelined(conn):
    """Many queries on their way at once, and a pipeline that breaks."""
    with conn.pipeline():
        cursors = [conn.execute("select %s::int", (n,)) for n in range(100)]
    total = sum(cur.fetchone()[0] for cur in cursors)

    def broken():
        with conn.pipeline():
            conn.execute("select %s::int / 0", (1,))
            conn.execute("select 1")
    return f"{total} {state(broken)}"


def transaction(conn):
    conn.execute("create temp table rolled (n int)")
    with conn.transaction(force_rollback=True):
        conn.execute("insert into rolled values (1)")
    empty = value(conn, "select count(*) from rolled")
    with conn.transaction():
        conn.execute("insert into rolled values (2)")
        with conn.transaction(force_rollback=True):
            conn.execute("insert into rolled values (3)")
    return f"{empty} {value(conn, 'select sum(n) from rolled')}"


def errors(conn):
    seen = [state(conn.execute, "select 1 / 0")]
    conn.execute("begin")
    seen += [state(conn.execute, "select * from nowhere where n = %s", (1,)), state(conn.execute, "select 1")]
    conn.execute("rollback")
    return " ".join([*seen, str(value(conn, "select 1"))])


def cursor(conn):
    """Of the server, a hundred rows at a time."""
    with conn.transaction(), conn.cursor("portal") as cur:
        cur.itersize = 100
        cur.execute("select generate_series(1, %s)", (ROWS,))
        return str(sum(n for n, in cur))


def cancel(conn, other):
    """The other connection sees the query run before it is cancelled: a cancel that is too early has nothing to hit."""
    seen = []
    running = threading.Thread(target=lambda: seen.append(state(conn.execute, "select pg_sleep(20)")))
    running.start()
    while running.is_alive() and not value(other, "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and pid = %s",
                                           conn.info.backend_pid):
        pass
    # Encrypted as the session is, by libpq 17 and later.
    conn.cancel_safe(timeout=20)
    running.join()
    return f"{seen[0]} {value(conn, 'select 1')}"


def hear(listener, other):
    listener.execute("listen pgweir_clients")
    other.execute("notify pgweir_clients, 'größe €'")
    heard = list(listener.notifies(timeout=20, stop_after=1))
    listener.execute("unlisten *")
    return f"{heard[0].channel} {heard[0].payload} {str(heard[0].pid == other.info.backend_pid).lower()} {len(heard)}"


def copy_in(conn, rows):
    with conn.cursor() as cur:
        with cur.copy("copy copied from stdin") as copy:
            copy.write(rows)
        return cur.rowcount


def copy(conn):
    """In and out, a row that is none, and one that the client gives up."""
    rows = "".join(f"{n}\tgröße {n}\n" for n in range(ROWS)).encode()
    conn.execute("create temp table copied (n int, t text)")
    count = copy_in(conn, rows)
    with conn.cursor() as cur, cur.copy("copy copied to stdout") as out:
        back = b"".join(out)
    bad = state(copy_in, conn, b"no number\tx\n")
    try:
        with conn.cursor() as cur, cur.copy("copy copied from stdin") as given:
            given.write(b"1\tx\n")
            raise KeyError
    except KeyError:
        pass
    return f"{count} {str(back == rows).lower()} {bad} {value(conn, 'select count(*) from copied')}"


def big(conn):
    sent = "größe €" * (BIG_CHARACTERS // 7)
    return str(value(conn, "select %s::text", sent) == sent).lower()


def play(mode):
    """What each step saw; only with `guess` what a wrong password gets."""
    seen = {}

    def step(name, what, *args):
        try:
            seen[name] = what(*args)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it was seen
            seen[name] = repr(problem)

    # Meanwhile: a wrong password may be answered later than a right one.
    wrong = threading.Thread(target=step, args=("wrong", state, lambda: psycopg.connect(**{**mode, "password": "wrong"})))
    guesses = mode.pop("guess", None)
    if guesses:
        wrong.start()
    try:
        with psycopg.connect(**mode, autocommit=True) as first, psycopg.connect(**mode, autocommit=True) as second:
            step("encrypted", lambda: str(first.pgconn.ssl_in_use).lower())
            step("pid", lambda: str(value(first, "select pg_backend_pid()") == first.info.backend_pid).lower())
            for name, what in {"simple": simple, "prepared": prepared, "pipeline": pipelined, "transaction": transaction, "error": errors,
                               "cursor": cursor, "copy": copy, "big": big}.items():
                step(name, what, first)
            step("cancel", cancel, first, second)
            step("notify", hear, first, second)
            step("after", lambda: f"{value(first, 'select 1')} {value(second, 'select 2')}")
    except psycopg.OperationalError as problem:
        seen["connect"] = str(problem)
    if guesses:
        wrong.join()
    return seen


sys.stdin.reconfigure(encoding="utf-8")
sys.stdout.reconfigure(encoding="utf-8")
for line in sys.stdin:
    for step, seen in play(dict(pair.split("=", 1) for pair in line.rstrip("\n").split("\t"))).items():
        print(step, seen.replace("\n", " ").replace("\t", " "), sep="\t")
    print(".", flush=True)
