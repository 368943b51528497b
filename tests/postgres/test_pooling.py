"""Session pooling: an upstream connection outlives its client, and its next client cannot tell."""

import re
import subprocess
import threading
import time
from hashlib import md5

import psycopg2
import pytest

from harness import background, eventually, holds, lane
from harness import wire

pytestmark = pytest.mark.weir

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


def test_each_client_has_a_secret_of_its_own(weir):
    first = weir.raw("keys", password=PASSWORD)
    pid, key = first.pid, first.key
    first.close()
    at_rest(weir)
    with weir.raw("keys", password=PASSWORD) as second:
        assert second.pid == pid and second.key != key
        second.send(wire.query("select pg_sleep(1)"))
        eventually(lambda: weir.cluster.activity("keys", "wait_event = 'PgSleep'"))
        second.cancel(key=key)
        assert wire.states(second.until("Z")) == [("C", "SELECT 1"), ("Z", "I")]
        second.send(wire.query("select pg_sleep(60)"))
        eventually(lambda: weir.cluster.activity("keys", "wait_event = 'PgSleep'"))
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
    stop.set()
    for worker in workers:
        worker.result(20)
    assert hits == []
    assert weir.metric("pgweir_pool_reused_total") > 20


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
        cluster.sql(f"select pg_terminate_backend({pid}, 5000)")
        assert visit(weir, "select 41 + 1")[1] == 42


def test_a_connection_idle_for_long_is_asked_first(make, cluster):
    weir = make([pooled(default=True, server_check_delay="100ms")])
    pid, _ = visit(weir, "select 1")
    time.sleep(0.3)
    assert visit(weir, "select 1")[0] == pid
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


# -- time --------------------------------------------------------------------------------------------------------

def test_lifetime(make, cluster):
    weir = make([pooled(default=True, server_lifetime="1s")])
    conn = connect(weir)
    pid = conn.info.backend_pid
    time.sleep(1.2)
    conn.close()
    eventually(lambda: not alive(cluster, pid))
    assert resting(weir) == 0
    pid, _ = visit(weir, "select 1")
    eventually(lambda: not alive(cluster, pid), timeout=5)


def test_idle_timeout(make, cluster):
    weir = make([pooled(default=True, server_idle_timeout="700ms")])
    pid, _ = visit(weir, "select 1")
    time.sleep(0.3)
    assert alive(cluster, pid)
    eventually(lambda: not alive(cluster, pid), timeout=5)
    eventually(weir.drained)


def test_min_pool_size_is_kept_for_those_seen(make, cluster):
    weir = make([pooled(default=True, min_pool_size=3, server_idle_timeout="500ms")])
    time.sleep(0.7)
    assert resting(weir) == 0
    pid, _ = visit(weir, "select 1")
    eventually(lambda: resting(weir) == 3, timeout=10)
    holds(lambda: resting(weir) <= 3, 1)
    conns = [connect(weir) for _ in range(3)]
    assert pid in {conn.info.backend_pid for conn in conns}
    assert weir.metric("pgweir_pool_reused_total") == 3
    for conn in conns:
        conn.close()
    # Back to three when their idle time is over, and for good.
    eventually(lambda: resting(weir) == 3, timeout=10)
    holds(lambda: resting(weir) >= 3, 1)


# -- quota, reserve, eviction ------------------------------------------------------------------------------------

def test_another_key_gets_the_slot_of_a_pooled_one_at_once(make, cluster):
    weir = make([pooled(default=True, quota=2)])
    old, _ = visit(weir, "select 1")
    kept, _ = visit(weir, "select 1", app="web2")
    at_rest(weir, 2)
    began = time.monotonic()
    conn = connect(weir, app="web3")
    assert time.monotonic() - began < 2
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
    second = waiting.result(10)
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
            worker.result(20)
    finally:
        sampler.stop()
    assert 1 <= sampler.maximum <= 3
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
    visit(weir, "select 1", dbname="pool_a")
    run('create database "pool_b" template pool_a')
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


def test_shutdown_is_orderly(make, cluster):
    weir = make()
    visit(weir, "select 1")
    lines = len(cluster.log().splitlines())
    began = time.monotonic()
    assert weir.stop() == 0
    assert time.monotonic() - began < 2
    assert cluster.count("web") == 0
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
    second = eventually(lambda: (conn := connect(weir)).info.backend_pid == pid and conn or conn.close())
    assert second.info.parameter_status("application_name") == "web"
    second.cursor().execute("set application_name = 'x'; reset application_name")
    assert (second.info.parameter_status("application_name"), name(pid)) == ("web", "web @127.0.0.1")
    local = connect(weir, unix=True)
    assert local.info.backend_pid != pid and name(local.info.backend_pid) == "web @unix"
    local.close()
    second.close()
