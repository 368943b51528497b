"""Hostile and unlucky peers: what each of them may cost, and that nothing of them is left."""

import socket
import struct
import threading
import time

import pytest

from harness import background, eventually, lane, never
from harness import wire

pytestmark = pytest.mark.weir


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 60}


@pytest.fixture(scope="module", autouse=True)
def table(cluster):
    cluster.sql("create table attack (id int primary key, t text); insert into attack values (1, 'x'); grant all on attack to public")


def lanes(**web):
    return [lane("web", **{"quota": 10, "wait_timeout": "30s", **web}), lane("other", default=True, quota=10)]


def drained(weir, fds):
    eventually(weir.drained, timeout=30, what="no slot left")
    eventually(lambda: weir.fds() <= fds + 2, timeout=30, what="no descriptor left")


class FakeUpstream:
    """Accepts like PostgreSQL and then does what `serve` says."""

    def __init__(self, serve):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listener.getsockname()[1]
        self.serve, self.dials = serve, 0
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            self.dials += 1
            threading.Thread(target=self.one, args=(conn,), daemon=True).start()

    def one(self, conn):
        with conn:
            head = conn.recv(4)
            if len(head) == 4:
                conn.recv(struct.unpack("!I", head)[0] - 4)
            self.serve(conn)

    def close(self):
        self.listener.close()


@pytest.fixture
def fake(make_weir, tidy):
    def make(serve, **sections):
        upstream = tidy(FakeUpstream(serve))
        sections.setdefault("lanes", lanes(wait_timeout="3s"))
        weir = make_weir(upstream={"address": f"127.0.0.1:{upstream.port}"}, monitor={"user": None}, **sections)
        return weir, upstream
    return make


# -- logins ------------------------------------------------------------------------------------------------------

def test_killed_logins_give_their_slots_back_at_once(make_weir, cluster):
    weir = make_weir(lanes=lanes(quota=8), limits={"max_logins": 64})
    fds, stuck = weir.fds(), []
    for _ in range(2):
        client = weir.socket()
        client.send(wire.startup_packet("u_scram", "postgres", app="web"))
        assert client.receive().tag == "R"
        stuck.append(client)
    for row in eventually(lambda: len(rows := [r for r in weir.clients("web") if r["state"] == "login"]) == len(stuck) and rows):
        weir.admin(f"KILL CLIENT {row['id']}")
    eventually(lambda: weir.lane("web")["slots"] == 0, timeout=30, what="slots without backends")
    for client in stuck:
        assert client.error()["C"] == "57P01"
        client.close()
    drained(weir, fds)


def test_refused_logins_leave_no_memory_behind(make_weir):
    weir = make_weir(lanes=lanes(quota=10, max_waiting=0), limits={"max_logins": 64})

    def hail(count, first):
        for n in range(first, first + count):
            client = weir.socket()
            client.send(wire.startup_packet("nobody-here", "postgres", app=f"web{n:06}" + "x" * 9000))
            client.until("E")
            client.close()
    hail(300, 0)
    before = weir.rss()
    hail(900, 300)
    assert weir.rss() - before < 4 * 1024 * 1024, "9 kB a refused client would be 8 MB"


def test_a_queued_client_that_sent_much_ahead_is_noticed_when_it_goes(make_weir, tidy):
    weir = make_weir(lanes=lanes(quota=1))
    tidy(weir.raw("web"))
    client = weir.socket()
    client.send(wire.startup_packet("odoo", "postgres", app="web"), b"x" * 60_000)
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    client.close()
    eventually(lambda: weir.lane("web")["waiting"] == 0, timeout=25)


def test_an_upstream_that_says_nothing_is_not_the_clients_fault(fake):
    weir, _ = fake(lambda conn: conn.recv(1), limits={"startup_timeout": "5s"})
    client = weir.socket()
    client.send(wire.startup_packet("odoo", "postgres", app="web"))
    fields = client.error()
    assert fields["C"] == "57P03" and fields["M"].startswith("pgweir: ")
    client.close()
    eventually(lambda: weir.timeline_has("upstream_down"))


def test_an_upstream_that_lets_in_and_closes_is_not_dialled_in_a_storm(fake, tidy):
    weir, upstream = fake(lambda conn: conn.sendall(wire.packet("R", struct.pack("!I", 0))), lanes=lanes(wait_timeout="4s", quota=40))
    clients = []
    for _ in range(30):
        client = tidy(weir.socket())
        client.send(wire.startup_packet("odoo", "postgres", app="web"))
        clients.append(client)
    for client in clients:
        assert client.error()["C"] == "57P03"
    assert upstream.dials < 300, "4 s of jittered back-off, one at a time"


def test_garbage_from_upstream_ends_one_client_only(fake):
    weir, _ = fake(lambda conn: conn.sendall(b"\xff" * 4096))
    client = weir.socket()
    client.send(wire.startup_packet("odoo", "postgres", app="web"))
    assert client.error()["C"] == "57P03"
    client.close()
    assert weir.process.poll() is None


# -- orphans -----------------------------------------------------------------------------------------------------

def test_a_client_that_dies_in_the_middle_of_a_message_leaves_no_query(make_weir, cluster):
    weir = make_weir(lanes=lanes())
    fds = weir.fds()
    client = weir.raw("web")
    half = wire.query("select '" + "x" * 200_000 + "'")[:100_000]
    client.send(wire.query("select pg_sleep(60)"), half)
    eventually(lambda: cluster.activity("web", "wait_event = 'PgSleep'"))
    client.reset()
    eventually(lambda: cluster.activity("web") == [], timeout=40)
    drained(weir, fds)


def test_a_copy_that_waits_for_a_lock_is_cancelled_when_its_client_dies(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes())
    fds = weir.fds()
    holder = tidy(cluster.direct(user="odoo", app="holder", autocommit=False))
    holder.cursor().execute("insert into attack values (7, 'mine')")
    client = weir.raw("web")
    client.send(wire.query("copy attack from stdin"))
    assert client.receive().tag == "G"
    client.send(wire.packet("d", b"7\ttheirs\n"), wire.packet("d", b"8\tx\n" * 20_000))
    eventually(lambda: cluster.activity("web", "wait_event_type = 'Lock'"))
    client.reset()
    eventually(lambda: cluster.activity("web") == [], timeout=40)
    holder.rollback()
    drained(weir, fds)


# -- slow, not dead ----------------------------------------------------------------------------------------------

def test_a_slow_reader_is_not_taken_for_dead(make_weir, cluster):
    """TCP_USER_TIMEOUT would end it: its window stays shut for much longer than a dead peer is given."""
    weir = make_weir(lanes=lanes(), limits={"tcp_keepalive": "2s"})
    client = weir.socket(rcvbuf=4096)
    client.startup(app="web")
    client.send(wire.query("select repeat('x', 1000) from generate_series(1, 30000)"))
    eventually(lambda: cluster.activity("web", "wait_event = 'ClientWrite'"))
    never(lambda: cluster.activity("web") == [], 7)
    assert len(client.until("Z")) == 30_003
    client.close()


def test_a_lock_behind_a_long_pipeline_is_waited_for(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes(), limits={"tcp_keepalive": "2s"})
    holder = tidy(cluster.direct(user="odoo", app="holder", autocommit=False))
    holder.cursor().execute("update attack set t = 'held' where id = 1")
    client = weir.raw("web", timeout=60)
    big = wire.query("select length('" + "y" * 1_000_000 + "')")
    sent = background(client.send, wire.query("update attack set t = 'mine' where id = 1"), *[big] * 20)
    eventually(lambda: cluster.activity("web", "wait_event_type = 'Lock'"))
    never(lambda: cluster.activity("web") == [], 7)
    holder.rollback()
    sent.result(30)
    for _ in range(21):
        assert client.until("Z")[-1].tag == "Z"
    client.close()


# -- crowds ------------------------------------------------------------------------------------------------------

def test_strangers_do_not_use_up_max_clients(make_weir, tidy):
    weir = make_weir(lanes=lanes(), limits={"max_clients": 20})
    for _ in range(40):
        tidy(weir.socket())
    assert tidy(weir.raw("web")).ok("select 1") == [["1"]]


def test_silent_connections_do_not_shut_operators_out(make_weir, tidy):
    weir = make_weir(lanes=lanes())
    for _ in range(150):
        tidy(socket.create_connection(("127.0.0.1", weir.admin_port), timeout=10))
    assert eventually(lambda: weir.admin("SHOW VERSION"), timeout=15)
    assert weir.http("/healthz")[0] == 200


def test_idle_links_cost_no_time(make_weir, tidy):
    weir = make_weir(lanes=lanes(quota=30))
    for _ in range(20):
        tidy(weir.raw("web")).ok("select 1")
    began, before = time.monotonic(), weir.cpu_seconds()
    time.sleep(2)
    used = weir.cpu_seconds() - before
    assert used / (time.monotonic() - began) < 0.25, "a link that spins would take all of it"
