"""Session pooling: an upstream connection outlives its client, and its next client cannot tell."""

import contextlib
import random
import re
import socket
import subprocess
import threading
import time
from hashlib import md5

import psycopg2
import pytest

from harness import background, eventually, holds, lane
from harness import wire

pytestmark = [pytest.mark.weir, pytest.mark.usefixtures("nobody_is_left")]

PASSWORD = "p00l-Pass"
USERS = ("odoo", "other_user")


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 40}


@pytest.fixture(scope="module", autouse=True)
def objects(cluster):
    cluster.sql("create role other_user login")
    cluster.sql("create database pooldb owner odoo")


def pooled(name="web", **more):
    return lane(name, pooling="session", **more)


@pytest.fixture
def make(make_weir, tmp_path):
    """A pgweir that authenticates by a users file and pools."""
    def start(lanes=None, start=True, **sections):
        users = tmp_path / "userlist.txt"
        # MD5, because the raw client can answer that; pooling is the same after it.
        users.write_text("".join(f'"{user}" "md5{md5((PASSWORD + user).encode()).hexdigest()}"\n' for user in USERS))
        users.chmod(0o600)
        lanes = lanes or [pooled(default=True, quota=10)]
        return make_weir(auth={"mode": "scram", "users_file": str(users)}, lanes=lanes, start=start, **sections)
    return start


@pytest.fixture
def weir(make):
    return make()


def connect(weir, app="web", **more):
    return weir.connect(app, password=PASSWORD, autocommit=True, **more)


def ask(conn, sql):
    with conn.cursor() as cur:
        cur.execute(sql)
        return cur.fetchone()[0] if cur.description else None


def visit(weir, *statements, **more):
    """Connects, runs the statements, goes; the pid, and the last one's value."""
    conn = connect(weir, **more)
    value = None
    for statement in statements:
        value = ask(conn, statement)
    pid = conn.info.backend_pid
    conn.close()
    at_rest(weir)
    return pid, value


def resting(weir):
    return int(weir.metric("pgweir_pooled_connections"))


def at_rest(weir, count=1):
    eventually(lambda: resting(weir) >= count, what=f"{count} pooled connections")


def alive(cluster, pid):
    return cluster.value("select count(*) from pg_stat_activity where pid = %s", pid) == 1


# -- reuse -------------------------------------------------------------------------------------------------------

def test_the_next_client_gets_the_same_backend_and_sees_its_real_pid(weir):
    first, seen = visit(weir, "select pg_backend_pid()")
    assert seen == first
    second, seen = visit(weir, "select pg_backend_pid()")
    assert second == first == seen
    with weir.connect3("web", password=PASSWORD) as conn:
        assert conn.info.backend_pid == first
        assert conn.execute("select pg_backend_pid()").fetchone() == (first,)


def test_a_connection_keeps_its_own_end_over_its_clients(weir):
    def ends():
        return [(row["remote_pid"], row["local_addr"], row["local_port"]) for row in weir.admin("SHOW SERVERS")]
    conn = connect(weir)
    (first,) = ends()
    assert first[1] == "127.0.0.1" and first[2] > 0
    conn.close()
    at_rest(weir)
    assert ends() == [first], "at rest"
    with connect(weir):
        assert ends() == [first], "reused"


def test_psql_and_a_client_that_leaves_without_a_word(weir):
    pids = set()
    for _ in range(3):
        pids.add(weir.psql("-c", "select pg_backend_pid()", app="web", password=PASSWORD).stdout.strip())
        at_rest(weir)
    assert len(pids) == 1
    raw = weir.raw("bare", password=PASSWORD)
    raw.close()
    at_rest(weir, 2)
    with weir.raw("bare", password=PASSWORD) as again:
        assert again.pid == raw.pid


def test_user_database_and_parameters_are_never_shared(weir):
    conns = [dict(), dict(user="other_user"), dict(dbname="pooldb"), dict(app="web2"), dict(options="-c search_path=pg_catalog"),
             dict(client_encoding="LATIN1")]
    pids = []
    for n, params in enumerate(conns):
        pid, _ = visit(weir, "select 1", **params)
        eventually(lambda: resting(weir) == n + 1)
        pids.append(pid)
    assert len(set(pids)) == len(pids)
    for pid, params in zip(pids, conns):
        assert visit(weir, "select 1", **params)[0] == pid
        at_rest(weir, len(conns))


def test_a_client_of_another_lane_or_without_pooling_shares_nothing(make):
    weir = make([pooled("web"), lane("plain", default=True, quota=5)])
    pid, _ = visit(weir, "select 1")
    conn = connect(weir, app="plain")
    assert conn.info.backend_pid != pid
    conn.close()
    eventually(lambda: weir.lane("plain")["slots"] == 0)
    assert resting(weir) == 1


# -- what a client leaves behind ---------------------------------------------------------------------------------

LEFTOVERS = [
    ("set statement_timeout = '17s'", "show statement_timeout", "0"),
    ("set application_name = 'liar'", "show application_name", "web"),
    ("set session authorization odoo; set role odoo", "select current_user || session_user", "odooodoo"),
    ("set search_path = nowhere", "show search_path", '"$user", public'),
    ("set client_encoding = 'LATIN9'", "show client_encoding", "UTF8"),
    ("set datestyle = 'German'", "show datestyle", "ISO, MDY"),
    ("set default_transaction_isolation = 'serializable'", "show default_transaction_isolation", "read committed"),
    ("set default_transaction_read_only = on", "show default_transaction_read_only", "off"),
    ("create temp table leftover as select 1", "select to_regclass('pg_temp.leftover') is null", True),
    ("prepare leftover as select 1", "select count(*) from pg_prepared_statements", 0),
    ("declare leftover cursor with hold for select 1", "select count(*) from pg_cursors", 0),
    ("listen leftover", "select count(*) from pg_listening_channels()", 0),
    ("select pg_advisory_lock(4711)", "select count(*) from pg_locks where locktype = 'advisory'", 0),
    ("set my.secret = 'leftover'", "select coalesce(current_setting('my.secret', true), '')", ""),
]


@pytest.mark.parametrize("leave, look, expected", LEFTOVERS, ids=[leave.split("'")[0] for leave, _, _ in LEFTOVERS])
def test_nothing_of_a_client_reaches_the_next(weir, leave, look, expected):
    first, _ = visit(weir, leave)
    second, value = visit(weir, look)
    assert (second, value) == (first, expected)


def test_sequences_and_plans(weir, cluster):
    cluster.sql("create sequence if not exists pool_seq; grant usage on pool_seq to odoo")
    first, _ = visit(weir, "select nextval('pool_seq')")
    conn = connect(weir)
    assert conn.info.backend_pid == first
    with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState):
        ask(conn, "select lastval()")
    conn.close()


def test_parameter_status_is_the_truth(weir):
    def log_in():
        client = wire.RawClient(weir.port)
        messages = client.startup("odoo", "postgres", password=PASSWORD, app="params", DateStyle="German, DMY")
        return client, dict(client.params), [m.tag for m in messages]

    client, before, tags = log_in()
    assert before["DateStyle"] == "German, DMY" and before["application_name"] == "params"
    pid = client.pid
    # Changes while it is in use are reported, and undone by the reset.
    client.query("set timezone = 'Asia/Tokyo'; set client_encoding = 'LATIN1'; set application_name = 'else'; set datestyle = 'ISO'")
    assert client.params["TimeZone"] == "Asia/Tokyo"
    client.close()
    at_rest(weir)
    client, after, again = log_in()
    assert (client.pid, after, again) == (pid, before, tags)
    assert client.ok("show datestyle") == [["German, DMY"]]
    client.close()


def test_each_client_has_a_secret_of_its_own(weir, cluster, tidy):
    gate = tidy(cluster.direct(app="suite"))
    gate.cursor().execute("select pg_advisory_lock(47)")
    first = weir.raw("keys", password=PASSWORD)
    pid, key = first.pid, first.key
    first.close()
    at_rest(weir)
    with weir.raw("keys", password=PASSWORD) as second:
        assert second.pid == pid and second.key != key
        second.send(wire.query("select pg_advisory_xact_lock(47)"))
        eventually(lambda: cluster.activity("keys", "wait_event = 'advisory'"))
        second.cancel(key=key)
        gate.close()
        assert wire.states(second.until("Z")) == [("C", "SELECT 1"), ("Z", "I")]
        second.send(wire.query("select pg_sleep(60)"))
        eventually(lambda: cluster.activity("keys", "wait_event = 'PgSleep'"))
        second.cancel()
        assert wire.states(second.until("Z")) == [("E", "57014"), ("Z", "I")]


# -- who is not pooled -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("leave", ["transaction", "failed", "running", "pipeline", "half a message", "copy"])
def test_an_end_that_is_not_orderly_is_not_pooled(weir, cluster, leave):
    client = weir.raw("rude", password=PASSWORD)
    pid = client.pid
    if leave == "transaction":
        client.ok("begin")
    elif leave == "failed":
        client.ok("begin")
        client.ask(wire.query("select 1/0"))
    elif leave == "running":
        client.send(wire.query("select pg_sleep(30)"))
    elif leave == "pipeline":
        client.send(wire.parse("select 1"))
    elif leave == "half a message":
        client.send(wire.query("select 1")[:7])
    else:
        client.ok("create temp table rude (v int)")
        client.send(wire.query("copy rude from stdin"))
        client.until("G")
    client.close()
    eventually(lambda: not alive(cluster, pid))
    assert resting(weir) == 0
    eventually(weir.drained)


def test_terminate_behind_a_request_ends_the_backend_in_order(weir, cluster):
    cluster.sql("create table if not exists pool_t (v int); grant all on pool_t to odoo; truncate pool_t")
    client = weir.raw("last", password=PASSWORD)
    client.send(wire.query("insert into pool_t select 1 from pg_sleep(0.3)"), wire.packet("X"))
    client.close()
    eventually(lambda: cluster.value("select count(*) from pool_t") == 1)
    eventually(weir.drained)


def test_cancels_never_hit_the_next_client(weir):
    """Many short queries, each cancelled at a random moment by its own client, which then goes."""
    stop, hits = threading.Event(), []

    def canceller():
        while not stop.is_set():
            with weir.raw("storm", password=PASSWORD) as client:
                client.send(wire.query("select 1"))
                client.cancel(wait=False)
                client.until("Z")

    def victim():
        while not stop.is_set():
            with weir.raw("storm", password=PASSWORD) as client:
                for message in client.ask(wire.query("select pg_sleep(0.002)")):
                    if message.tag == "E":
                        hits.append(message.sqlstate)

    workers = [background(f) for f in (canceller, canceller, victim, victim)]
    time.sleep(3)
    eventually(lambda: weir.metric("pgweir_pool_reused_total") > 20 or any(worker.done() for worker in workers))
    stop.set()
    for worker in workers:
        worker.result(60)
    assert hits == []


# -- a client that tries ---------------------------------------------------------------------------------------------

MESSAGES = [
    wire.FLUSH, wire.SYNC, wire.COPY_DONE, wire.packet("d", b"1\n"), wire.packet("f", b"no\0"), wire.parse("select 1"), wire.parse("select from where"),
    wire.parse("select 1", "named"), wire.bind(), wire.execute(), wire.describe("P", "none"), wire.close("S", "none"), wire.query(""),
    wire.extended("select 1"), wire.extended("discard all"), wire.parse("copy cp from stdin"), wire.packet("F", b"\0\0\0\1\0\0\0\0\0\0"),
    *map(wire.query, [
        "select 1", "select 1/0", "select 1; select 2", "discard all", "copy (select 1) to stdout", "create temp table if not exists cp (v int)",
        "copy cp from stdin", "begin", "rollback", "listen a; notify a", "set statement_timeout = 1", "set datestyle = 'German'",
        "set client_encoding = 'LATIN1'", "set role other_user", "prepare named as select 1", "set client_min_messages = debug5"]),
]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_client_sends_the_next_one_finds_nothing(weir, cluster, seed):
    cluster.sql("grant other_user to odoo")
    chance, pids = random.Random(seed), []
    for n in range(200):
        with weir.raw("fuzz", password=PASSWORD) as client:
            pids.append(client.pid)
            assert (client.params["DateStyle"], client.params["client_encoding"]) == ("ISO, MDY", "UTF8")
            # What was left behind would come first, or instead.
            replies = client.ask(wire.extended("select current_user || current_setting('statement_timeout')"))
            assert [m.tag for m in replies] == ["1", "2", "D", "C", "Z"] and replies[2].values == ["odoo0"]
            try:
                for _ in range(chance.randrange(1, 5)):
                    client.send(*chance.choices(MESSAGES, k=chance.randrange(1, 4)))
                end = chance.randrange(4)
                if end < 2:
                    client.send(wire.COPY_DONE, wire.SYNC, wire.query("rollback"))
                    client.quiet(0.01)
                client.reset() if end == 2 else client.send(wire.TERMINATE) if end else None
            except OSError:
                pass
        if n % 20 == 0:
            # However long resets take, now and then one is over before the next client comes.
            with weir.raw("fuzz", password=PASSWORD) as client:
                pids.append(client.pid)
                client.send(wire.TERMINATE)
            at_rest(weir)
    assert len(pids) - len(set(pids)) > 5, "hardly any was reused: the test has looked at nothing"
    eventually(lambda: weir.usage()["own_slots"] == cluster.count("fuzz"))


def test_notifications_come_to_nobody_else(weir, cluster):
    stop = threading.Event()

    def shout():
        with cluster.direct() as conn, conn.cursor() as cur:
            while not stop.is_set():
                cur.execute("notify noise")
    shouting = background(shout)
    pids = set()
    try:
        for _ in range(100):
            with weir.raw("deaf", password=PASSWORD) as client:
                pids.add(client.pid)
                assert client.quiet(0.002)
                client.query("listen noise")
                client.send(wire.TERMINATE)
    finally:
        stop.set()
    shouting.result(30)
    assert len(pids) < 50


# -- health ------------------------------------------------------------------------------------------------------

def test_a_terminated_backend_is_not_handed_out(weir, cluster):
    pid, _ = visit(weir, "select 1")
    cluster.sql(f"select pg_terminate_backend({pid})")
    eventually(lambda: resting(weir) == 0)
    assert visit(weir, "select 1")[0] != pid
    eventually(lambda: weir.lane("web")["slots"] == 1)


def test_termination_right_before_the_next_client(weir, cluster):
    for _ in range(20):
        pid, _ = visit(weir, "select 1")
        assert cluster.value(f"select pg_terminate_backend({pid}, 60000)")
        assert visit(weir, "select 41 + 1")[1] == 42


def test_a_connection_idle_for_long_is_asked_first(make, cluster):
    weir = make([pooled(default=True, server_check_delay="100ms")])

    def again():
        """Whether a client got what had rested. Within 2 s no sign of life may come from a backend that sleeps."""
        first, _ = visit(weir, "select 1")
        time.sleep(0.3)
        second, _ = visit(weir, "select 1")
        return first == second and second
    pid = eventually(again, what="one that answers is used again")
    # One that does not answer is not used: the client gets another within the bound.
    subprocess.run(["kill", "-STOP", str(pid)], check=True)
    try:
        time.sleep(0.3)
        conn = connect(weir)
        assert conn.info.backend_pid != pid
        conn.close()
    finally:
        subprocess.run(["kill", "-CONT", str(pid)], check=True)
    eventually(lambda: not alive(cluster, pid))


def test_a_restart_of_postgresql_is_not_noticed(weir, cluster):
    pid, _ = visit(weir, "select 1")
    cluster.restart()
    eventually(lambda: resting(weir) == 0)
    conn = connect(weir)
    assert conn.info.backend_pid != pid
    assert ask(conn, "select 1") == 1
    conn.close()


def test_who_is_renamed_leaves_nothing_to_the_next_of_the_name(weir, cluster):
    resting_pid, _ = visit(weir, "select 1", user="other_user")
    conn = connect(weir, app="in use", user="other_user")
    cluster.sql("alter role other_user rename to renamed; create role other_user login")
    try:
        eventually(lambda: not alive(cluster, resting_pid))
        conn.close()
        for app in ("web", "in use"):
            assert visit(weir, "select session_user", app=app, user="other_user")[1] == "other_user"
    finally:
        weir.admin("DRAIN LANE web")
        cluster.sql("drop role other_user; alter role renamed rename to other_user")


def test_logins_made_ahead_that_fail_are_few(make, cluster):
    weir = make([pooled(default=True, min_pool_size=1, server_lifetime="1s")])
    for n in range(6):
        visit(weir, "select 1", user="other_user", app=f"web{n}")
    began = time.monotonic()
    cluster.sql("alter role other_user nologin")
    try:
        eventually(lambda: resting(weir) == 0, what="all are too old")
        count = lambda: cluster.log().count('"other_user" is not permitted to log in')  # noqa: E731
        eventually(count, what="one was tried")
        # One every half minute, where it is looked for work five times a second and for six keys.
        holds(lambda: count() <= 1 + (time.monotonic() - began) // 30, 2)
    finally:
        cluster.sql("alter role other_user login")


# -- time --------------------------------------------------------------------------------------------------------

def test_lifetime(make, cluster):
    weir = make([pooled(default=True, server_lifetime="1s")])
    conn = connect(weir)
    pid = conn.info.backend_pid
    time.sleep(1.2)
    conn.close()
    eventually(lambda: not alive(cluster, pid))
    assert resting(weir) == 0
    began = time.monotonic()
    conn = connect(weir)
    pid = conn.info.backend_pid
    conn.close()
    eventually(lambda: not alive(cluster, pid))
    assert time.monotonic() - began >= 1, "it rested until then"


def test_idle_timeout(make, cluster):
    weir = make([pooled(default=True, server_idle_timeout="700ms")])
    conn = connect(weir)
    pid = conn.info.backend_pid
    began = time.monotonic()
    conn.close()
    eventually(lambda: not alive(cluster, pid))
    assert time.monotonic() - began >= 0.7, "it rested until then"
    eventually(weir.drained)


def test_min_pool_size_is_kept_for_those_seen(make, cluster):
    weir = make([pooled(default=True, min_pool_size=3, server_idle_timeout="500ms")])
    time.sleep(0.7)
    assert resting(weir) == 0
    pid, _ = visit(weir, "select 1")
    eventually(lambda: resting(weir) == 3)
    holds(lambda: resting(weir) <= 3, 1)
    conns = [connect(weir) for _ in range(3)]
    assert pid in {conn.info.backend_pid for conn in conns}
    assert weir.metric("pgweir_pool_reused_total") == 3
    for conn in conns:
        conn.close()
    # Back to three when their idle time is over, and for good.
    eventually(lambda: resting(weir) == 3)
    holds(lambda: resting(weir) >= 3, 1)


# -- one name for all workers, and a reserve that is kept open ------------------------------------------------------

ODOO = [{"match": "odoo*", "name": "odoo"}]


def normalised(name="web", **more):
    return pooled(name, server_application_name="normalised", **more)


def test_workers_share_where_postgresql_is_told_the_normalised_name(make, cluster):
    weir = make([normalised(default=True)], applications=ODOO)
    first, name = visit(weir, "show application_name", app="odoo-1")
    assert name == "odoo"
    conn = connect(weir, app="odoo-2")
    assert (conn.info.backend_pid, conn.info.parameter_status("application_name")) == (first, "odoo")
    conn.close()
    at_rest(weir)
    assert visit(weir, "show application_name", app="tool")[1] == "tool", "none of Odoo's"


def test_the_name_of_the_start_is_the_clients_own_to_the_rules(make):
    """Odoo says DISCARD ALL on each link it uses again: PostgreSQL then reports the name of the backend's start."""
    cron = lane("cron", match=[{"application": "odoo-cron*"}], pooling="session", server_application_name="normalised")
    weir = make([cron, normalised(default=True)], applications=ODOO)
    conn = connect(weir, app="odoo-cron-1")
    for statement in ("set application_name = 'odoo-2'", "select 1"):
        ask(conn, statement)
    eventually(lambda: weir.lane("web")["slots"] == 1)
    for statement in ("discard all", "select 1"):
        ask(conn, statement)
    eventually(lambda: (weir.lane("web")["slots"], weir.lane("cron")["slots"]) == (0, 1))
    conn.close()


def test_a_reserve_is_kept_open_and_strangers_cannot_take_it(make, cluster):
    web = normalised(default=True, quota=10, reserve=3, keep_reserve=True, server_idle_timeout="500ms", priority=0)
    weir = make([web], applications=ODOO)
    assert resting(weir) == 0, "nobody was seen"
    held = connect(weir, app="odoo-1")
    eventually(lambda: resting(weir) == 2, what="a reserve of 3, one of them in use")
    kept = {row["pid"] for row in cluster.activity("odoo")} - {held.info.backend_pid}
    strangers = []
    try:
        with pytest.raises(psycopg2.OperationalError, match="too many clients|remaining connection slots"):
            while True:
                strangers.append(cluster.direct(user="batch", app="stranger", tcp=True))
        eventually(lambda: weir.usage()["bypass"] >= len(strangers))
        # Unused for longer than their time, and PostgreSQL fuller than pgweir's budget.
        holds(lambda: resting(weir) == 2, 1.5)
        new = [connect(weir, app=f"odoo-{n}") for n in (2, 3)]
        assert {conn.info.backend_pid for conn in new} == kept, "no other could be had"
        for conn in new:
            conn.close()
        at_rest(weir, 2)
    finally:
        for conn in strangers:
            conn.close()
    held.close()
    holds(lambda: 2 <= resting(weir) <= 3, 1.5)
    eventually(lambda: resting(weir) == 3)


# -- quota, reserve, eviction ------------------------------------------------------------------------------------

def test_another_key_gets_the_slot_of_a_pooled_one_at_once(make, cluster):
    weir = make([pooled(default=True, quota=2, wait_timeout="5m")])
    old, _ = visit(weir, "select 1")
    kept, _ = visit(weir, "select 1", app="web2")
    at_rest(weir, 2)
    began = time.monotonic()
    conn = connect(weir, app="web3")
    assert time.monotonic() - began < 20
    assert not alive(cluster, old) and alive(cluster, kept)
    assert weir.lane("web")["slots"] == 2
    conn.close()


def test_a_waiting_client_of_the_same_key_gets_it_without_a_dial(make):
    weir = make([pooled(default=True, quota=1)])
    conn = connect(weir)
    pid = conn.info.backend_pid
    waiting = background(connect, weir)
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    conn.close()
    second = waiting.result(30)
    assert second.info.backend_pid == pid
    second.close()


def test_quota_is_never_exceeded(make, cluster):
    weir = make([pooled(default=True, quota=3)])
    sampler = cluster.sampler("web%")
    try:
        stop = threading.Event()

        def churn(n):
            while not stop.is_set():
                conn = connect(weir, app=f"web{n % 5}")
                ask(conn, "select 1")
                conn.close()
        workers = [background(churn, n) for n in range(8)]
        time.sleep(3)
        stop.set()
        for worker in workers:
            worker.result(60)
    finally:
        sampler.stop()
    # The sampler sees what it can; who rests in the end is there to be counted.
    assert sampler.maximum <= 3 and 1 <= cluster.count("web%") <= 3
    assert weir.metric("pgweir_upstream_too_many_clients_total") == 0


def test_the_budget_is_given_up_to_any_other_lane(make, cluster):
    # 40 less 3 reserved less 1 headroom less the monitor: 35.
    weir = make([pooled("batch", quota=40, priority=8), lane("web", default=True, quota=40, priority=0, reserve=3)],
                upstream={"headroom": 25})
    conns = [connect(weir, app="batch") for _ in range(8)]
    for conn in conns:
        conn.close()
    at_rest(weir, 8)
    users = [connect(weir, app="web") for _ in range(11)]
    assert weir.lane("batch")["slots"] == 0
    for conn in users:
        conn.close()


def test_usage_counts_pooled_connections(weir):
    visit(weir, "select 1")
    assert weir.usage()["own_slots"] == 1
    row = weir.lane("web")
    assert (row["slots"], row["idle"]) == (1, 1)
    eventually(lambda: weir.usage()["bypass"] == 1, what="the monitor only")
    via = lambda: {row["via"] for row in weir.admin("SHOW SESSIONS") if row["application"] == "web"}  # noqa: E731
    eventually(lambda: via() == {"pgweir"})


@pytest.mark.parametrize("of", ["role odoo", "database pooldb"])
def test_a_connection_limit_is_not_spent_on_what_nobody_uses(weir, cluster, of):
    cluster.sql(f"alter {of} connection limit 2")
    try:
        for app in ("web", "web2"):
            visit(weir, "select 1", app=app, dbname="pooldb")
        at_rest(weir, 2)
        conns = [connect(weir, app=f"more{n}", dbname="pooldb") for n in range(2)]
        # What is in use is not anybody else's.
        with pytest.raises(psycopg2.OperationalError, match="too many connections for"):
            connect(weir, app="web", dbname="pooldb")
        for conn in conns:
            conn.close()
    finally:
        cluster.sql(f"alter {of} connection limit -1")


def test_nobody_is_shed_for_what_nobody_uses(make):
    # 40 less 3 reserved: 25 are 68 %.
    weir = make([pooled("web", quota=30, priority=0),
                 lane("cron", default=True, quota=5, priority=5, shed_above=50, shed_below=40, shed_dwell="0s", wait_timeout="60s")])
    conns = [connect(weir) for _ in range(25)]
    eventually(lambda: weir.lane("cron")["state"] == "shedding")
    for conn in conns:
        conn.close()
    eventually(lambda: (row := weir.lane("web"))["idle"] == row["slots"], what="nobody uses any")
    connect(weir, app="cron").close()
    assert 10 <= resting(weir) <= 14


# -- databases that must be empty --------------------------------------------------------------------------------

@pytest.mark.parametrize("through", ["pgweir", "direct"])
def test_drop_and_template(weir, cluster, through):
    def run(sql):
        if through == "direct":
            return cluster.sql(sql)
        conn = connect(weir, app="dba")
        try:
            return ask(conn, sql)
        finally:
            conn.close()

    cluster.sql("drop database if exists pool_a")
    cluster.sql("drop database if exists pool_b")
    cluster.sql("alter role odoo createdb")
    cluster.sql("create database pool_a owner odoo")
    def kept():
        connect(weir, dbname="pool_a").close()
        eventually(lambda: resting(weir) >= 1, timeout=3)
        return True

    # A sample may have seen the DROP above: none is kept for some seconds then.
    eventually(kept)
    run("create database \"pool_b\" template 'pool_a'")
    conn = connect(weir, dbname="pool_a")
    pid = conn.info.backend_pid
    conn.close()
    # Nobody's for some seconds: PostgreSQL may still be looking.
    eventually(lambda: not alive(cluster, pid))
    run("drop database pool_a")
    run("drop database if exists pool_b")


# -- operators ---------------------------------------------------------------------------------------------------

def test_freeze_and_drain_close_what_rests(make, cluster):
    weir = make([pooled("web", freeze=True), pooled("other", default=True, quota=5)])
    pid, _ = visit(weir, "select 1")
    other, _ = visit(weir, "select 1", app="else")
    at_rest(weir, 2)
    weir.admin("FREEZE")
    eventually(lambda: not alive(cluster, pid))
    assert alive(cluster, other)
    weir.admin("RESUME ALL")
    pid, _ = visit(weir, "select 1")
    at_rest(weir, 2)
    weir.admin("DRAIN LANE web")
    eventually(lambda: not alive(cluster, pid))
    assert alive(cluster, other)


def test_a_client_that_ends_in_a_paused_lane_is_not_pooled(weir, cluster):
    conn = connect(weir)
    pid = conn.info.backend_pid
    weir.admin("PAUSE LANE web")
    conn.close()
    eventually(lambda: not alive(cluster, pid))


def test_reload(weir, cluster):
    pid, _ = visit(weir, "select 1")
    weir.write(lane=[pooled(default=True, quota=9)])
    weir.admin("RELOAD")
    assert visit(weir, "select 1")[0] == pid
    weir.write(lane=[lane("web", default=True, quota=9)])
    weir.admin("RELOAD")
    eventually(lambda: not alive(cluster, pid))
    conn = connect(weir)
    pid = conn.info.backend_pid
    conn.close()
    eventually(lambda: not alive(cluster, pid))


def test_a_login_that_outlasts_a_change_of_upstream_is_not_pooled(make, cluster):
    gate, began = threading.Event(), threading.Event()
    door = socket.create_server(("127.0.0.1", 0))

    def pump(source, target, gate=None):
        while data := source.recv(1 << 16):
            if gate:
                began.set()
                gate.wait(60)
            target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def proxy():
        near, _ = door.accept()
        far = socket.create_connection(("127.0.0.1", cluster.port))
        answers = background(pump, far, near, gate)
        pump(near, far)
        answers.result(20)

    through = background(proxy)
    direct = {"address": f"127.0.0.1:{cluster.port}", "tls": "disable", "headroom": 1}
    weir = make(upstream={"address": f"127.0.0.1:{door.getsockname()[1]}"}, monitor={"address": direct["address"]})
    login = background(connect, weir)
    assert began.wait(30)
    weir.write(upstream=direct)
    weir.admin("RELOAD")
    gate.set()
    conn = login.result(30)
    pid = conn.info.backend_pid
    conn.close()
    eventually(lambda: not alive(cluster, pid))
    assert resting(weir) == 0
    through.result(20)


def test_shutdown_is_orderly(make, cluster):
    weir = make()
    visit(weir, "select 1")
    lines = len(cluster.log().splitlines())
    began = time.monotonic()
    assert weir.stop() == 0
    assert time.monotonic() - began < 15, "nobody is waited for"
    eventually(lambda: cluster.count("web") == 0)
    assert "unexpected EOF" not in "\n".join(cluster.log().splitlines()[lines:])


def test_check_refuses_pooling_without_authentication(make_weir):
    weir = make_weir(lanes=[pooled(default=True)], start=False)
    weir.write()
    done = weir.cli("check")
    assert done.returncode != 0
    assert "pooling" in done.stdout + done.stderr and 'mode = "scram"' in done.stdout + done.stderr


# -- load --------------------------------------------------------------------------------------------------------

def test_pgbench_reconnecting(make, cluster):
    env = {"PGHOST": str(cluster.sockets), "PGPORT": str(cluster.port), "PGUSER": "odoo", "PGDATABASE": "pooldb"}
    subprocess.run([str(cluster.bin / "pgbench"), "-i", "-q", "-s", "1"], env=env, check=True, capture_output=True, timeout=60)
    weir = make([pooled(default=True, quota=8, wait_timeout="10s")])
    done = subprocess.run([str(cluster.bin / "pgbench"), "-n", "-S", "-C", "-c", "8", "-j", "2", "-T", "4"],
                          env=weir.libpq_env("pgbench", dbname="pooldb", password=PASSWORD), text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr.lower(), done.stderr
    assert "number of failed transactions: 0 " in done.stdout, done.stdout
    count = int(re.search(r"actually processed: (\d+)", done.stdout)[1])
    assert count > 100
    assert weir.metric("pgweir_pool_reused_total") > count - 30
    assert weir.metric("pgweir_refusals_total") == 0


def test_tagged_connections_are_shared_by_clients_of_one_address(make, cluster):
    weir = make(upstream={"tag_application_name": True})
    def name(pid):
        return cluster.value("select application_name from pg_stat_activity where pid = %s", pid)
    first = connect(weir)
    pid = first.info.backend_pid
    first.cursor().execute("set application_name = 'else'")
    first.close()
    # Reset, it is what its startup packet said.
    eventually(lambda: name(pid) == "web @127.0.0.1")
    at_rest(weir)
    second = connect(weir)
    assert second.info.backend_pid == pid
    assert second.info.parameter_status("application_name") == "web"
    second.cursor().execute("set application_name = 'x'; reset application_name")
    assert (second.info.parameter_status("application_name"), name(pid)) == ("web", "web @127.0.0.1")
    local = connect(weir, unix=True)
    assert local.info.backend_pid != pid and name(local.info.backend_pid) == "web @unix"
    local.close()
    second.close()
