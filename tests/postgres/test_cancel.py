"""Cancel: it reaches its query, only its query, and past every quota."""

import random
import struct
import threading

import psycopg
import psycopg2
import pytest

from harness import DIRECT, RawClient, background, eventually, lane
from harness import wire


@pytest.fixture(scope="module")
def weir(make_module_weir):
    return make_module_weir()


def sleeping(cluster, app):
    return cluster.activity(app, "state = 'active' and wait_event = 'PgSleep'")


def test_psycopg2(weir, cluster):
    conn = weir.connect("cancel2")
    cur = conn.cursor()
    running = background(cur.execute, "select pg_sleep(60)")
    eventually(lambda: sleeping(cluster, "cancel2"))
    conn.cancel()
    with pytest.raises(psycopg2.errors.QueryCanceled):
        running.result(50)
    conn.rollback()
    cur.execute("select 1")
    assert cur.fetchone() == (1,)
    conn.close()


def test_psycopg3(weir, cluster):
    conn = weir.connect3("cancel3")
    running = background(conn.execute, "select pg_sleep(60)")
    eventually(lambda: sleeping(cluster, "cancel3"))
    conn.cancel()
    with pytest.raises(psycopg.errors.QueryCanceled):
        running.result(50)
    conn.rollback()
    assert conn.execute("select 1").fetchone() == (1,)
    conn.close()


def test_a_canceller_that_does_not_wait(weir, cluster):
    with weir.raw(app="nowait") as client:
        client.send(wire.query("select pg_sleep(60)"))
        eventually(lambda: sleeping(cluster, "nowait"))
        client.cancel(wait=False)
        assert wire.states(client.until("Z")) == [("E", "57014"), ("Z", "I")]


def test_protocol_3_2_key(weir, cluster):
    with weir.raw(app="cancel32", protocol=(3, 2)) as client:
        client.send(wire.query("select pg_sleep(60)"))
        eventually(lambda: sleeping(cluster, "cancel32"))
        client.cancel()
        assert wire.states(client.until("Z")) == [("E", "57014"), ("Z", "I")]


def test_wrong_secret_does_nothing(weir, cluster, tidy):
    # Its query lasts as long as somebody else holds the lock, however long the cancels take.
    holder = tidy(cluster.direct())
    holder.cursor().execute("select pg_advisory_lock(4711)")
    with weir.raw(app="wrong") as client, weir.raw(app="neighbour") as neighbour:
        client.send(wire.query("select pg_advisory_lock(4711)"))
        eventually(lambda: cluster.activity("wrong", "state = 'active' and wait_event_type = 'Lock'"))
        for bit in range(32):
            key = struct.unpack("!I", client.key)[0] ^ (1 << bit)
            client.cancel(key=struct.pack("!I", key))
        client.cancel(key=neighbour.key)
        client.cancel(pid=neighbour.pid)
        client.cancel(pid=2**31 - 1)
        assert client.quiet()
        holder.cursor().execute("select pg_advisory_unlock(4711)")
        assert wire.states(client.until("Z")) == [("C", "SELECT 1"), ("Z", "I")]


def test_an_idle_session_is_not_hurt(weir):
    with weir.raw() as client:
        for i in range(150):
            client.ok("select 1")
            client.cancel()
            assert client.ok(f"select {i}") == [[str(i)]]


def test_a_cancel_hits_no_later_query_and_no_neighbour(weir, tidy):
    # The cancel races with the end of its query. Once the cancel connection is closed, the next query is safe. Who wins says how long
    # the next one lasts, so that the race stays close on every machine.
    victim = tidy(weir.raw(app="victim"))
    stop = threading.Event()

    def neighbour():
        n = 0
        with weir.raw(app="neighbour") as client:
            while not stop.is_set():
                client.ok("select pg_sleep(0.001)")
                n += 1
        return n

    neighbours = [background(neighbour) for _ in range(3)]
    cancelled, lasts = 0, 0.001
    for i in range(400):
        victim.send(wire.query(f"select {i}, pg_sleep({lasts * random.random():f})"))
        cancel = background(victim.cancel)
        seen = wire.states(victim.until("Z"))
        cancelled += seen[0] == ("E", "57014")
        assert seen[0] in (("E", "57014"), ("C", "SELECT 1")), seen
        lasts = max(lasts / 1.2, 0.0001) if seen[0][0] == "E" else min(lasts * 1.2, 1)
        cancel.result(60)
        assert victim.ok(f"select 'after {i}'") == [[f"after {i}"]]
    stop.set()
    assert all(n.result(60) > 0 for n in neighbours)
    assert 0 < cancelled < 400, "the race was never close"


@pytest.mark.weir
def test_no_query_is_forwarded_while_a_cancel_is_in_flight(weir, tidy):
    # Without waiting for the cancel's end: it may hit the query it meant or nothing. A query sent after its reply waits.
    client = tidy(weir.raw(app="inflight"))
    for i in range(200):
        client.send(wire.query("select pg_sleep(0.001)"))
        other = RawClient(weir.port)
        other.send(struct.pack("!IIi", 12 + len(client.key), 80877102, client.pid) + client.key)
        if i % 2:
            assert other.at_eof(30)
        client.until("Z")
        if not i % 2:
            assert other.at_eof(30)
        assert client.ok("select 1") == [["1"]]
        other.close()


@pytest.mark.weir
def test_a_cancel_passes_every_quota(make_weir, cluster):
    weir = make_weir(lanes=[lane("tight", quota=1, wait_timeout="30s"), lane("other", default=True, quota=5)],
                     limits={"max_clients": 3})
    with weir.raw(app="tight") as client:
        waiting = weir.socket()
        waiting.send(wire.startup_packet("odoo", "postgres", app="tight2"))
        eventually(lambda: weir.lane("tight")["waiting"] == 1)
        client.send(wire.query("select pg_sleep(60)"))
        eventually(lambda: sleeping(cluster, "tight"))
        client.cancel()
        assert wire.states(client.until("Z")) == [("E", "57014"), ("Z", "I")]
        waiting.close()


@pytest.mark.weir
def test_cancel_of_a_held_statement(make_weir):
    weir = make_weir(lanes=[lane("cron", freeze=True), lane("other", default=True)])
    with weir.raw(app="cron") as client:
        weir.admin("FREEZE")
        client.send(wire.query("select 'held'"))
        eventually(lambda: weir.client("cron")["state"] == "held")
        client.cancel()
        assert wire.states(client.until("Z")) == [("E", "57014"), ("Z", "I")]
        weir.admin("RESUME LANE cron")
        assert client.ok("select 'now'") == [["now"]]


@pytest.mark.weir
def test_cancel_of_a_held_extended_statement(make_weir):
    weir = make_weir(lanes=[lane("cron", freeze=True), lane("other", default=True)])
    with weir.raw(app="cron") as client:
        weir.admin("FREEZE")
        client.send(wire.extended("select 'held'"))
        eventually(lambda: weir.client("cron")["state"] == "held")
        client.cancel()
        assert wire.states(client.until("Z")) == [("E", "57014"), ("Z", "I")]
        weir.admin("RESUME LANE cron")
        assert client.ok("select 'now'") == [["now"]]
        assert [m.values for m in client.ask(wire.extended("select 'too'")) if m.tag == "D"] == [["too"]]


@pytest.mark.weir
def test_cancel_client_command(weir, cluster):
    with weir.raw(app="bycommand") as client:
        client.send(wire.query("select pg_sleep(60)"))
        eventually(lambda: sleeping(cluster, "bycommand"))
        weir.admin(f"CANCEL CLIENT {weir.client('bycommand')['id']}")
        assert wire.states(client.until("Z")) == [("E", "57014"), ("Z", "I")]
        assert client.ok("select 1") == [["1"]]


def test_nothing_left_at_the_end(weir, cluster):
    eventually(lambda: cluster.count() == (0 if DIRECT else 1), what="only the monitor's backend")
    if not DIRECT:
        eventually(weir.drained)
