"""Clients that vanish: their queries end, their locks go, their slots come back when PostgreSQL has really closed."""

import subprocess
import sys

import psycopg2
import pytest

from harness import DIRECT, background, eventually, lane
from harness import wire

SLEEPER = """if True:
    import sys, psycopg2
    conn = psycopg2.connect(sys.argv[1])
    cur = conn.cursor()
    cur.execute("select 1")
    print("ready", flush=True)
    cur.execute(sys.argv[2])
"""


@pytest.fixture(scope="module")
def weir(make_module_weir, cluster):
    cluster.sql("create table gone (id int primary key, n int default 0); insert into gone values (1), (2); grant all on gone to public;"
                "create table gone_copy (t text); grant all on gone_copy to public")
    return make_module_weir(lanes=[lane("gone", quota=5, wait_timeout="60s"), lane("other", default=True, quota=40)])


def released(weir, cluster, app="gone%"):
    eventually(lambda: cluster.activity(app) == [], timeout=30, what="no backend")
    if not DIRECT:
        eventually(lambda: weir.lane("gone")["slots"] == 0, what="no slot")


@pytest.mark.weir  # PostgreSQL by itself runs the orphan to its end
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_a_sigkilled_clients_query_is_gone_long_before_its_end(weir, cluster, unix):
    worker = subprocess.Popen([sys.executable, "-c", SLEEPER, psycopg2.extensions.make_dsn(**weir.dsn("gone", unix=unix)),
                               "update gone set n = 1 where id = 1; select pg_sleep(120)"], stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "ready\n"
    eventually(lambda: cluster.activity("gone", "wait_event = 'PgSleep'"))
    worker.kill()
    worker.wait(30)
    eventually(lambda: cluster.activity("gone") == [], timeout=20, what="the query's end")
    released(weir, cluster)


@pytest.mark.weir
def test_killed_while_its_result_is_being_sent(weir, cluster):
    client = weir.socket(rcvbuf=4096)
    client.startup(app="gone")
    client.send(wire.query("select repeat('x', 1000) from generate_series(1, 10000000)"))
    eventually(lambda: cluster.activity("gone", "wait_event = 'ClientWrite'"))
    client.reset()
    eventually(lambda: cluster.activity("gone") == [], timeout=30)
    released(weir, cluster)


@pytest.mark.weir
@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_killed_with_requests_unread(weir, cluster, how):
    client = weir.raw("gone")
    client.send(wire.query("select pg_sleep(60)"), *[wire.query("select 'nobody reads this'")] * 100)
    eventually(lambda: cluster.activity("gone", "wait_event = 'PgSleep'"))
    getattr(client, how)()
    eventually(lambda: cluster.activity("gone") == [], timeout=30)
    released(weir, cluster)


MANY = 12_000  # more than pgweir has in flight at once


def test_a_terminate_behind_requests_that_were_kept_back(weir, cluster):
    """All of them were asked for before the end, and it is an orderly one."""
    cluster.sql("create table gone_many (n int); grant all on gone_many to public")
    client = weir.raw("gone")

    def say():
        client.send(*(wire.query(f"insert into gone_many values ({n})") for n in range(MANY)), wire.TERMINATE)
        client.half_close()
    said, replies = background(say), []
    with pytest.raises(EOFError):
        while True:
            replies.append(client.receive().tag)
    said.result(30)
    assert replies.count("Z") == MANY
    assert cluster.value("select count(*) from gone_many") == MANY
    client.close()
    released(weir, cluster)


@pytest.mark.weir
def test_killed_with_requests_kept_back(weir, cluster):
    client = weir.raw("gone")
    client.send(wire.query("select pg_sleep(60)"), *[wire.query("select")] * MANY)
    eventually(lambda: cluster.activity("gone", "wait_event = 'PgSleep'"))
    client.close()
    eventually(lambda: cluster.activity("gone") == [], timeout=30)
    released(weir, cluster)


def test_idle_in_transaction_and_killed(weir, cluster):
    client = weir.raw("gone")
    client.ok("begin")
    client.ok("update gone set n = 2 where id = 2")
    client.reset()
    conn = weir.connect("other", autocommit=True)
    conn.cursor().execute("set lock_timeout = '30s'; update gone set n = 3 where id = 2")
    conn.close()
    released(weir, cluster)


def test_killed_while_blocked_by_a_lock(weir, cluster, tidy):
    holder = tidy(weir.raw("other"))
    holder.ok("begin")
    holder.ok("update gone set n = 4 where id = 1")
    client = weir.raw("gone")
    client.send(wire.query("update gone set n = 5 where id = 1"))
    eventually(lambda: cluster.activity("gone", "wait_event_type = 'Lock'"))
    client.reset()
    if DIRECT:
        holder.ok("rollback")
    eventually(lambda: cluster.activity("gone") == [], timeout=30)
    if not DIRECT:
        holder.ok("rollback")
    released(weir, cluster)


def test_killed_inside_copy(weir, cluster):
    client = weir.raw("gone")
    client.send(wire.query("copy gone_copy from stdin"))
    assert client.receive().tag == "G"
    client.send(wire.packet("d", b"half a row"))
    client.reset()
    released(weir, cluster)
    assert cluster.value("select count(*) from gone_copy") == 0


@pytest.mark.weir
def test_slots_return_under_a_hail_of_kills(weir, cluster):
    """The lane never has more backends than its quota, although every client dies with a query running."""
    sampler = cluster.sampler("gone%")
    for _ in range(12):
        clients = [weir.raw("gone") for _ in range(5)]
        for client in clients:
            client.send(wire.query("select pg_sleep(60)"))
        for client in clients:
            client.reset()
    released(weir, cluster)
    assert sampler.stop().maximum <= 5


@pytest.mark.weir
def test_a_query_that_ignores_the_first_cancel(weir, cluster):
    """The slot lives until the backend is gone, however long that takes."""
    client = weir.raw("gone")
    client.send(wire.query("do $$ begin loop begin perform pg_sleep(0.3); exception when query_canceled then perform pg_sleep(0.3); end;"
                           " end loop; end $$"))
    eventually(lambda: cluster.activity("gone", "state = 'active'"))
    client.reset()

    def consistent():
        backends, slots = len(cluster.activity("gone")), weir.lane("gone")["slots"]
        assert slots >= len(cluster.activity("gone")) or backends == 0, "a slot was given back while its backend lives"
        return True
    for _ in range(20):
        consistent()
    cluster.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'gone'")
    released(weir, cluster)


def test_nothing_left_at_the_end(weir, cluster):
    eventually(lambda: cluster.count() == (0 if DIRECT else 1), what="only the monitor's backend")
