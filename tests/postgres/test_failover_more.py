"""Failovers at awkward moments: in the middle of a login, before the old primary is known to be silent, behind a name whose server only fails
to tell what it is, or that leads to a pooler, too."""

import socket
import struct
import threading

import psycopg2
import pytest

from harness import Cluster, RawClient, background, eventually, never
from harness.wire import cstr, packet, query, startup_packet
from test_failover import current, named, pair, port_of, stranger, upstreams, weir_at, where  # noqa: F401

pytestmark = pytest.mark.weir


def test_a_login_that_ends_at_a_server_left_meanwhile_begins_no_transaction_there(pair, weir_at, tidy):
    """Its client was asked for a password by the old primary, which lives on, and answers when the new one is dialled."""
    pair.a.sql("alter role odoo password 'odd'")
    pair.a.rule("host all odoo all password")
    weir = weir_at(pair.a, pair.b)
    pipelined, patient = (tidy(RawClient(weir.port)) for _ in range(2))
    for client in (pipelined, patient):
        client.send(startup_packet("odoo", "odoo", "web"))
        assert client.receive().tag == "R"
    pair.b.promote()
    eventually(lambda: current(weir) == pair.b.port)
    # With its first statement behind the password, or only after it is let in.
    pipelined.send(packet("p", cstr("odd")), query("select 'begun'"))
    patient.send(packet("p", cstr("odd")))
    for client in (pipelined, patient):
        seen = client.until("Z")
        assert not [message for message in seen if message.tag == "E"]
        fields = client.error()
        assert fields["C"] == "57P01" and "its server was left" in fields["D"], fields
    assert pair.a.value("select count(*) from pg_stat_activity where query = 'select ''begun'''") == 0
    assert port_of(tidy(weir.connect("web", password="odd"))) == pair.b.port


def test_links_to_a_server_that_is_silent_only_after_it_was_left(pair, weir_at, tidy):
    """The standby is promoted before anybody can know that the old primary hangs: what waits for it ends when it is known."""
    weir = weir_at(pair.a, pair.b)
    inside = tidy(weir.raw("web-inside"))
    inside.ok("begin")
    pair.a.freeze()
    try:
        inside.send(query("select 1"))
        pair.b.promote()
        eventually(lambda: current(weir) == pair.b.port, timeout=3)
        assert upstreams(weir)[pair.a.port]["role"] == "primary", "nobody knows yet"
        inside.sock.settimeout(20)
        fields = inside.error()
        assert fields["C"] == "57P01" and fields["D"] == "its server does not answer"
        assert upstreams(weir)[pair.a.port]["role"] == "down"
    finally:
        pair.a.freeze(False)


def test_a_name_that_moved_is_followed_though_its_server_answers_with_errors(named, tidy):
    """The old primary lets the monitor in, and does not tell it what it is."""
    pair, lead, start = named
    lead("127.0.0.1")
    weir = start("read-write")
    idle = tidy(weir.raw("web-idle"))
    assert idle.ok("select inet_server_addr()") == [["127.0.0.1"]]
    lock = tidy(pair.a.direct(autocommit=False))
    lock.cursor().execute("lock table pg_authid in access exclusive mode")
    eventually(lambda: "55P03" in weir.admin("SHOW UPSTREAMS")[0]["cause"])
    pair.b.promote()
    never(lambda: where(weir) == "127.0.0.2", 1)
    assert idle.ok("select 1") == [["1"]]
    lead("127.0.0.2")
    assert idle.error()["C"] == "57P01"
    assert tidy(weir.raw("web-new")).ok("select inet_server_addr()") == [["127.0.0.2"]]
    assert weir.metric("pgweir_upstream_switches_total") == 1


def test_a_sample_that_is_refused_costs_no_timeline(pair, weir_at, tidy):
    """What is refused is the list of sessions. Without the timeline a promotion would not be followed while the old primary lives."""
    weir = weir_at(pair.a, pair.b)
    pair.a.sql("revoke select on pg_catalog.pg_stat_activity from public")
    eventually(lambda: "42501" in upstreams(weir)[pair.a.port]["cause"])
    pair.a.sql("grant select on pg_catalog.pg_stat_activity to public")
    eventually(lambda: upstreams(weir)[pair.a.port]["role"] == "primary")
    assert upstreams(weir)[pair.a.port]["timeline"] in (1, "1")
    assert "its timeline cannot be asked for" not in weir.log()
    idle = tidy(weir.raw("web-idle"))
    pair.b.promote()
    assert idle.error()["C"] == "57P01"
    assert current(weir) == pair.b.port


def test_users_are_not_looked_up_in_another_cluster(template, stranger, weir_at, tidy, tmp_path):
    """Nobody is dialled, and the only server that answers is of another cluster: a password that is good there is good for nothing."""
    a = Cluster(template=template).start()
    try:
        for cluster, password in ((a, "ours"), (stranger, "theirs")):
            cluster.sql(f"alter role odoo password '{password}'; grant select on pg_catalog.pg_shadow to pgweir")
        auth = {"mode": "scram", "query": "select usename, passwd from pg_catalog.pg_shadow where usename = $1"}
        weir = weir_at(a, stranger, auth=auth, limits={"startup_timeout": "20s"})
        assert current(weir) == a.port
        weir.stop()
        a.stop()
        weir.config["upstream"]["address"] = [f"127.0.0.1:{cluster.port}" for cluster in (stranger, a)]
        weir.start(wait=False)
        eventually(lambda: weir.http("/healthz")[0] == 200)
        eventually(lambda: "of another cluster" in upstreams(weir)[stranger.port]["cause"])
        theirs, ours = (background(weir.connect, "web", password=password) for password in ("theirs", "ours"))
        never(lambda: weir.lane("web")["waiting"] > 0, 1)
        a.start()
        assert port_of(tidy(ours.result(20))) == a.port
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            theirs.result(20)
    finally:
        a.close()


class Pooler:
    """Answers at an address of its own for a server at another, and announces pids of its own making."""

    def __init__(self, address, port, to):
        self.to, self.port = to, port
        self.listener = socket.create_server((address, port))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near = self.listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection((self.to, self.port))
            threading.Thread(target=self.move, args=[near, far, False], daemon=True).start()
            threading.Thread(target=self.move, args=[far, near, True], daemon=True).start()

    @staticmethod
    def move(source, sink, lies):
        try:
            while data := source.recv(65536):
                at = data.find(b"K\0\0\0\x0c") if lies else -1
                if at >= 0:
                    data = data[:at + 5] + struct.pack("!I", 1) + data[at + 9:]
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def test_a_name_that_leads_to_a_pooler_too(named, tidy):
    """It is passed over for the servers at the other addresses."""
    pair, lead, start = named
    pooler = Pooler("127.0.0.3", pair.a.port, "127.0.0.2")
    try:
        lead("127.0.0.3", "127.0.0.1")
        weir = start("read-write")
        assert tidy(weir.raw("web")).ok("select inet_server_addr()") == [["127.0.0.1"]]
        pair.a.stop()
        eventually(lambda: "backend" in weir.admin("SHOW UPSTREAMS")[0]["cause"])
        pair.a.start()
        eventually(lambda: where(weir) == "127.0.0.1" and weir.admin("SHOW UPSTREAMS")[0]["role"] == "primary", timeout=8)
        assert tidy(weir.raw("web")).ok("select inet_server_addr()") == [["127.0.0.1"]]
        assert weir.metric("pgweir_upstream_switches_total") == 0
    finally:
        pooler.close()
