"""Two servers with streaming replication: the primary dies, or is taken out of service, and clients are delayed rather than failed."""

import os
import shutil
import signal
import threading
import time

import psycopg2
import psycopg2.errors
import pytest

from harness import Cluster, Weir, background, eventually, lane, never

pytestmark = pytest.mark.weir

LANES = [lane("web", quota=20, wait_timeout="60s"), lane("other", default=True, quota=10)]


class Pair:
    """A primary `a` and its synchronous standby `b`."""

    def __init__(self, template, host="127.0.0.1", standby_host="127.0.0.1", same_port=False):
        self.made = []
        self.a = self._keep(Cluster(template=template, listen_addresses=host)).start()
        self.b = self.standby_of(self.a, listen_addresses=standby_host, port=self.a.port if same_port else None)
        self.a.sql("alter role odoo set synchronous_commit = 'remote_apply'")
        self.a.sql("create table sums (client int, n int)", dbname="odoo")
        self.a.sql("grant all on sums to public", dbname="odoo")
        conn = self.a.direct(app="suite")
        conn.cursor().execute("alter system set synchronous_standby_names = '*'")
        conn.cursor().execute("select pg_reload_conf()")
        conn.close()
        eventually(lambda: self.a.value("select count(*) from pg_stat_replication where sync_state = 'sync'") == 1)

    def _keep(self, cluster):
        self.made.append(cluster)
        return cluster

    def standby_of(self, primary, **settings):
        return self._keep(Cluster(primary=primary, **settings)).start()

    def fence(self, cluster, on=True):
        """What a careful operator does first: no transaction that begins from now on may write."""
        conn = cluster.direct(app="suite")
        conn.cursor().execute(f"alter system set default_transaction_read_only = {'on' if on else 'off'}")
        conn.cursor().execute("select pg_reload_conf()")
        conn.close()

    def close(self):
        for cluster in self.made:
            cluster.close()


@pytest.fixture
def pair(template):
    pair = Pair(template)
    yield pair
    pair.close()


@pytest.fixture
def weir_at(make_weir):
    """Starts pgweirs in front of several servers; `make_weir`'s own cluster is of no interest here."""
    def start(*clusters, upstream=None, **more):
        addresses = [f"127.0.0.1:{cluster.port}" for cluster in clusters]
        return make_weir(lanes=more.pop("lanes", LANES), upstream={"address": addresses, **(upstream or {})}, **more)
    return start


def upstreams(weir):
    """Rows of SHOW UPSTREAMS by port."""
    return {int(row["address"].rpartition(":")[2]): row for row in weir.admin("SHOW UPSTREAMS")}


def current(weir):
    """The port that is dialled."""
    return next((port for port, row in upstreams(weir).items() if row["current"] in (True, "t")), None)


def port_of(conn):
    """Which server a connection has come to."""
    with conn.cursor() as cur:
        cur.execute("show port")
        port = int(cur.fetchone()[0])
    conn.rollback()
    return port


class OdooShaped(threading.Thread):
    """One worker: borrows its connection as Odoo's pool does (a dead one is replaced unseen), writes, commits, gives it back."""

    def __init__(self, weir, number, until):
        super().__init__(daemon=True)
        self.weir, self.number, self.until = weir, number, until
        self.acknowledged, self.cut, self.refused, self.slowest = [], [], [], 0.0
        self.conn = None

    def borrow(self):
        if self.conn is not None:
            try:
                self.conn.reset()
                return self.conn
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                self.conn = None
        self.conn = self.weir.connect("web", user="odoo", dbname="odoo", connect_timeout=90, autocommit=False)
        return self.conn

    def run(self):
        n = 0
        while not self.until.is_set():
            n += 1
            began = time.monotonic()
            try:
                conn = self.borrow()
            except psycopg2.Error as error:
                self.refused.append(error)
                continue
            try:
                with conn.cursor() as cur:
                    cur.execute("insert into sums values (%s, %s)", (self.number, n))
                conn.commit()
                self.acknowledged.append(n)
                self.slowest = max(self.slowest, time.monotonic() - began)
            except psycopg2.Error as error:
                self.cut.append(error)
            time.sleep(0.01)


def workers(weir, count=6):
    until = threading.Event()
    crew = [OdooShaped(weir, number, until) for number in range(count)]
    for worker in crew:
        worker.start()
    eventually(lambda: all(len(worker.acknowledged) > 5 for worker in crew))
    return crew, until


def carried_on(crew, until):
    """Waits until each worker has gone on for a while, then ends them."""
    marks = [len(worker.acknowledged) for worker in crew]
    eventually(lambda: all(len(w.acknowledged) > mark + 20 for w, mark in zip(crew, marks)), timeout=40,
               what="every worker commits again")
    until.set()
    for worker in crew:
        worker.join(30)


def delayed_not_failed(crew, primary):
    for worker in crew:
        assert not worker.refused, worker.refused
        # Only what was under way when its server died, once.
        assert len(worker.cut) <= 1, worker.cut
        rows = primary.sql("select n from sums where client = %s", worker.number, dbname="odoo")
        assert set(worker.acknowledged) <= {row["n"] for row in rows}, "an acknowledged commit is gone"


def test_the_primary_is_killed(pair, weir_at):
    weir = weir_at(pair.a, pair.b)
    assert current(weir) == pair.a.port and upstreams(weir)[pair.b.port]["role"] == "standby"
    crew, until = workers(weir)
    pair.a.crash()
    eventually(lambda: weir.lane("web")["waiting"] == 6, what="all wait in their queue")
    never(lambda: any(worker.refused for worker in crew), 1)
    assert upstreams(weir)[pair.a.port]["role"] == "down" and weir.http("/readyz")[0] == 503
    pair.b.promote()
    carried_on(crew, until)
    delayed_not_failed(crew, pair.b)
    assert current(weir) == pair.b.port and weir.http("/readyz")[0] == 200
    assert weir.timeline_has("upstream_switched", str(pair.b.port))
    assert weir.metric("pgweir_upstream_switches_total") == 1
    assert weir.metric("pgweir_upstream_current", address=f"127.0.0.1:{pair.b.port}") == 1
    # Its usage is that of the new server.
    eventually(lambda: weir.usage()["sampled_ms_ago"] < 2000 and weir.usage()["own_slots"] == pair.b.count("web%"))


def test_the_primary_hangs(pair, weir_at, tidy):
    """It accepts connections and says nothing any more: links to it end with the switch, logins under way are begun anew."""
    weir = weir_at(pair.a, pair.b)
    inside = tidy(weir.raw("web-inside"))
    inside.ok("begin")
    pair.a.freeze()
    try:
        busy = background(lambda: (inside.send(b"Q\0\0\0\x0dselect 1\0"), inside.error())[1])
        logins = [background(weir.connect, "web-new") for _ in range(3)]
        eventually(lambda: upstreams(weir)[pair.a.port]["role"] == "down")
        never(lambda: busy.done() or any(login.done() for login in logins), 0.5)
        pair.b.promote()
        fields = busy.result(5)
        assert fields["C"] == "57P01" and fields["D"] == "its server does not answer"
        for login in logins:
            assert port_of(tidy(login.result(5))) == pair.b.port
        # Its slots are nothing to the new server.
        eventually(lambda: weir.lane("web")["slots"] == 3, timeout=3)
        assert port_of(tidy(weir.connect("web"))) == pair.b.port
    finally:
        pair.a.freeze(False)


def test_a_planned_switchover(pair, weir_at):
    weir = weir_at(pair.a, pair.b)
    crew, until = workers(weir)
    pair.a.stop()
    eventually(lambda: weir.lane("web")["waiting"] == 6)
    pair.b.promote()
    carried_on(crew, until)
    delayed_not_failed(crew, pair.b)
    # The old primary comes back, as the standby of the new one, under its old address.
    pair.standby_of(pair.b, port=pair.a.port)
    eventually(lambda: upstreams(weir)[pair.a.port]["role"] == "standby")
    never(lambda: current(weir) != pair.b.port, 1)
    assert port_of(weir.connect("web")) == pair.b.port
    assert weir.metric("pgweir_upstream_switches_total") == 1


def test_a_fenced_primary_is_left_and_newcomers_wait(pair, weir_at, tidy):
    """Idle links at once, the others with their transaction; a cancel still finds the server its link is on."""
    weir = weir_at(pair.a, pair.b)
    idle = tidy(weir.raw("web-idle"))
    listener = tidy(weir.raw("web-listen"))
    listener.ok("listen imbus")
    busy = tidy(weir.connect("web-busy", user="odoo", dbname="odoo", autocommit=False))
    busy.cursor().execute("insert into sums values (99, 1)")
    asleep = tidy(weir.connect("web-asleep", autocommit=False))
    asleep.cursor().execute("select 1")
    sleeps = background(lambda: asleep.cursor().execute("select pg_sleep(60)"))
    pair.fence(pair.a)
    for client in (idle, listener):
        fields = client.error()
        assert fields["C"] == "57P01" and "another server" in fields["M"] and client.at_eof()
    newcomer = background(weir.connect, "web-new")
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    assert current(weir) is None and weir.http("/readyz")[0] == 503
    assert weir.timeline_has("upstream_hold")
    with pytest.raises(psycopg2.Error, match="no server is dialled"):
        weir.admin("TERMINATE PID 2147483647")
    # What had begun to write may end, and is told so.
    busy.cursor().execute("insert into sums values (99, 2)")
    busy.commit()
    eventually(lambda: pair.a.count("web-busy") == 0, what="its link ends with its transaction")
    asleep.cancel()
    with pytest.raises(psycopg2.errors.QueryCanceled):
        sleeps.result(10)
    assert not newcomer.done()
    pair.a.stop()
    pair.b.promote()
    assert port_of(tidy(newcomer.result(20))) == pair.b.port
    assert pair.b.value("select count(*) from sums where client = 99", dbname="odoo") == 2


def test_a_cancel_after_the_switch_goes_to_the_links_own_server(pair, weir_at, tidy):
    weir = weir_at(pair.a, pair.b)
    asleep = tidy(weir.connect("web-asleep", autocommit=False))
    asleep.cursor().execute("select 1")
    sleeps = background(lambda: asleep.cursor().execute("select pg_sleep(60)"))
    eventually(lambda: pair.a.value("select count(*) from pg_stat_activity where query like '%%pg_sleep(60)%%' and state = 'active'"
                                    " and application_name = 'web-asleep'") == 1)
    pair.fence(pair.a)
    pair.b.promote()
    eventually(lambda: current(weir) == pair.b.port)
    assert not sleeps.done()
    asleep.cancel()
    with pytest.raises(psycopg2.errors.QueryCanceled):
        sleeps.result(10)


def test_split_brain(pair, weir_at, tidy):
    """Two primaries: clients are led to the one promoted last, once, and stay there."""
    weir = weir_at(pair.a, pair.b)
    before = tidy(weir.connect("web-before", autocommit=False))
    before.cursor().execute("select 1")
    pair.b.promote()
    eventually(lambda: weir.timeline_has("upstream_split", "split brain") and current(weir) == pair.b.port)
    before.commit()
    assert port_of(tidy(weir.connect("web"))) == pair.b.port
    assert sum(weir.metric("pgweir_upstream_role", role="primary", address=f"127.0.0.1:{c.port}") for c in (pair.a, pair.b)) == 2
    check = weir.cli("check")
    assert "more than one server is a primary" in check.stdout + check.stderr
    never(lambda: current(weir) != pair.b.port, 1)
    assert weir.metric("pgweir_upstream_switches_total") == 1
    late = Weir(pair.a, lanes=LANES, upstream={"address": [f"127.0.0.1:{c.port}" for c in (pair.a, pair.b)]})
    try:
        late.start()
        assert current(late) == pair.b.port
    finally:
        late.close()


def end_monitor(cluster):
    """Ends the monitor's session, and nothing else."""
    return cluster.value("select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'pgweir monitor'")


def test_an_old_primary_that_returns_is_not_served(pair, weir_at, tidy):
    """Not rewound, it still calls itself the primary. Whatever becomes of the new one, and of the monitor's session there."""
    a, b = pair.a, pair.b
    weir = weir_at(a, b)
    a.crash()
    b.promote()
    eventually(lambda: current(weir) == b.port)
    a.start(wait=False)
    eventually(lambda: upstreams(weir)[a.port]["role"] == "primary")
    never(lambda: current(weir) != b.port, 1)
    assert end_monitor(b) == 1
    never(lambda: current(weir) != b.port, 2)
    b.crash()
    eventually(lambda: upstreams(weir)[b.port]["role"] == "down")
    eventually(lambda: weir.timeline_has("upstream_stale", "left behind"))
    waiting = background(weir.connect, "web")
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    never(lambda: current(weir) != b.port, 1)
    weir.reload()
    never(lambda: current(weir) != b.port, 1)
    b.start(wait=False)
    assert port_of(tidy(waiting.result(20))) == b.port
    assert weir.metric("pgweir_upstream_switches_total") == 1


@pytest.fixture
def two(template):
    """Two servers that have nothing to do with each other."""
    a, b = Cluster(template=template).start(), Cluster(template=template).start()
    yield a, b
    a.close()
    b.close()


def test_trouble_of_the_monitor_is_not_the_servers(two, weir_at, tidy):
    """A session that is ended, one that hangs, one that waits for a lock: the server is overloaded at most, and lives."""
    a, b = two
    weir = weir_at(a, b, upstream={"target_session_attrs": "any"})
    assert current(weir) == a.port
    conn = tidy(weir.connect("web", autocommit=False))
    conn.cursor().execute("select 1")
    assert end_monitor(a) == 1
    never(lambda: current(weir) != a.port, 1.5)
    pid = a.value("select pid from pg_stat_activity where application_name = 'pgweir monitor'")
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: "did not answer" in upstreams(weir)[a.port]["cause"])
        eventually(lambda: upstreams(weir)[a.port]["role"] == "primary")
        assert a.value("select pid from pg_stat_activity where application_name = 'pgweir monitor' and pid <> %s", pid)
    finally:
        os.kill(pid, signal.SIGCONT)
    lock = tidy(a.direct(autocommit=False))
    lock.cursor().execute("lock table pg_authid in access exclusive mode")
    eventually(lambda: "55P03" in upstreams(weir)[a.port]["cause"])
    # Longer than a login may take.
    never(lambda: current(weir) != a.port, 6)
    lock.rollback()
    eventually(lambda: upstreams(weir)[a.port]["role"] == "primary")
    conn.cursor().execute("select 2")
    assert weir.metric("pgweir_upstream_switches_total") == 0


def test_a_reload_that_leaves_the_server_the_same_drops_nobody(pair, make_weir, tidy):
    """From one address to several, in another order, and back."""
    a, b = (f"127.0.0.1:{cluster.port}" for cluster in (pair.a, pair.b))
    weir = make_weir(lanes=LANES, upstream={"address": a})
    idle = tidy(weir.raw("web-idle"))
    inside = tidy(weir.connect("web-inside", autocommit=False))
    inside.cursor().execute("select 1")
    for addresses in ([a, b], [b, a], a, [b, a]):
        weir.config["upstream"]["address"] = addresses
        if isinstance(addresses, list):
            weir.config["monitor"].pop("address", None)
        weir.reload()
        eventually(lambda: weir.usage()["sampled_ms_ago"] is not None)
        if isinstance(addresses, list):
            eventually(lambda: upstreams(weir)[pair.b.port]["role"] == "standby" and upstreams(weir)[pair.a.port]["role"] == "primary")
        never(lambda: current(weir) != pair.a.port, 0.7)
        assert idle.ok("select 1") == [["1"]]
        inside.cursor().execute("select 1")
    inside.commit()
    inside.cursor().execute("select 1")
    assert weir.metric("pgweir_upstream_switches_total") == 0
    # It is the same one still where it is left.
    pair.fence(pair.a)
    assert idle.error()["C"] == "57P01"


def strangers(weir):
    """Sessions that are nobody's link."""
    return [row for row in weir.admin("SHOW SESSIONS") if row["via"] == "bypass"]


def test_a_reload_that_spells_the_address_otherwise_is_no_switch(template, make_weir, tidy):
    """The links stay, stay pgweir's own, and are not taken for leaks that bypass it; whichever way the server is named, alone or as one of several."""
    cluster = Cluster(template=template).start()
    try:
        weir = make_weir(lanes=LANES, bypass={"action": "terminate", "after": "1s"}, upstream={"address": f"127.0.0.1:{cluster.port}"})
        idle = tidy(weir.raw("web-idle"))
        inside = tidy(weir.connect("web-inside", autocommit=False))
        inside.cursor().execute("select 1")
        name, number = f"localhost:{cluster.port}", f"127.0.0.1:{cluster.port}"
        for address in (name, f"unix:{cluster.sockets}:{cluster.port}", number, [name, "127.0.0.1:1"], [number, "127.0.0.1:1"], number):
            weir.config["upstream"]["address"] = address
            weir.reload()
            eventually(lambda: current(weir) == cluster.port, what=str(address))
            # The monitor itself; that before it may be among the first sample's.
            eventually(lambda: weir.usage()["own_slots"] == 2 and weir.usage()["bypass"] == 1 and not strangers(weir)
                       and weir.usage()["sampled_ms_ago"] is not None, what=f"nobody is a stranger at {address}")
            never(lambda: strangers(weir) or weir.usage()["bypass"] != 1 or weir.timeline_has("terminate"), 1.8)
            assert idle.ok("select 1") == [["1"]], address
            inside.cursor().execute("select 1")
            new = weir.raw("web-new")
            assert new.ok("select 1") == [["1"]], address
            new.close()
        assert weir.metric("pgweir_upstream_switches_total") == 0
    finally:
        cluster.close()


@pytest.mark.parametrize("left", ["for one", "for others", "for nobody"])
def test_links_leave_a_server_that_a_reload_takes_away(two, weir_at, tidy, left):
    a, b = two
    weir = weir_at(a, b, upstream={"connect_timeout": "500ms"}, limits={"startup_timeout": "500ms"})
    # Longer than links are looked for that were logging in when the first server was chosen.
    never(lambda: current(weir) != a.port, 2.5)
    idle = tidy(weir.raw("web-idle"))
    inside = tidy(weir.connect("web-inside", autocommit=False))
    inside.cursor().execute("select 1")
    new = f"127.0.0.1:{b.port}"
    weir.config["upstream"]["address"] = {"for one": new, "for others": [new, "127.0.0.1:1"], "for nobody": ["127.0.0.1:1", "127.0.0.1:2"]}[left]
    weir.reload()
    assert idle.error()["C"] == "57P01"
    inside.cursor().execute("select 2")
    inside.commit()
    eventually(lambda: a.count("web%") == 0, timeout=5, what="the other one leaves with its transaction")
    if left != "for nobody":
        assert port_of(tidy(weir.connect("web"))) == b.port


WITHOUT_TIMELINE = "revoke execute on function pg_current_wal_lsn() from public"


def test_one_server_is_not_asked_what_it_is(template, make_weir):
    """What derives from PostgreSQL may raise an error there, as Aurora does."""
    cluster = Cluster(template=template).start()
    try:
        cluster.sql(WITHOUT_TIMELINE, dbname="postgres")
        weir = make_weir(lanes=LANES, upstream={"address": f"127.0.0.1:{cluster.port}"})
        eventually(lambda: weir.usage()["sampled_ms_ago"] is not None)
        assert not weir.timeline_has("monitor_down")
        assert [row["role"] for row in weir.admin("SHOW UPSTREAMS")] == ["unknown"]
        check = weir.cli("check")
        assert "was not reached" not in check.stdout + check.stderr, check
    finally:
        cluster.close()


def test_servers_that_do_not_tell_their_timelines(pair, weir_at):
    pair.a.sql(WITHOUT_TIMELINE, dbname="postgres")
    weir = weir_at(pair.a, pair.b)
    eventually(lambda: current(weir) == pair.a.port)
    row = upstreams(weir)[pair.a.port]
    assert (row["role"], row["timeline"]) == ("primary", None)
    eventually(lambda: weir.usage()["sampled_ms_ago"] is not None)
    check = weir.cli("check")
    assert "was not reached" not in check.stdout + check.stderr, check
    pair.a.crash()
    pair.b.promote()
    eventually(lambda: current(weir) == pair.b.port)


def test_a_restart_of_the_primary_switches_nothing(pair, weir_at, tidy):
    weir = weir_at(pair.a, pair.b)
    pair.a.stop()
    waiting = background(weir.connect, "web")
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    pair.a.start()
    assert port_of(tidy(waiting.result(20))) == pair.a.port
    assert weir.metric("pgweir_upstream_switches_total") == 0


def test_nobody_suits(pair, weir_at):
    """Held within wait_timeout, then told what is missing."""
    lanes = [lane("web", quota=5, wait_timeout="1s"), lane("other", default=True, quota=5)]
    weir = weir_at(pair.b, lanes=lanes, wait=False, upstream={"target_session_attrs": "read-write"})
    eventually(lambda: weir.http("/healthz")[0] == 200)
    eventually(lambda: upstreams(weir)[pair.b.port]["role"] == "standby")
    with pytest.raises(psycopg2.OperationalError, match="no server is known"):
        weir.connect("web")
    assert weir.metric("pgweir_refusals_total", lane="web", reason="no_primary") == 1
    assert "no server is read-write" in weir.http("/readyz")[1]
    check = weir.cli("check")
    assert "no server is read-write" in check.stdout + check.stderr
    # The configuration says otherwise now.
    weir.config["upstream"]["target_session_attrs"] = "standby"
    weir.write()
    weir.admin("RELOAD")
    eventually(lambda: current(weir) == pair.b.port)
    weir.connect("web").close()


def test_pooled_connections_of_the_old_primary_are_closed(pair, weir_at, tmp_path):
    users = tmp_path / "userlist.txt"
    users.write_text('"odoo" "p00l-Pass"\n')
    users.chmod(0o600)
    lanes = [lane("web", default=True, quota=10, pooling="session", wait_timeout="30s")]
    weir = weir_at(pair.a, pair.b, lanes=lanes, auth={"mode": "scram", "users_file": str(users)})
    weir.connect("web", password="p00l-Pass").close()
    eventually(lambda: weir.metric("pgweir_pooled_connections", lane="web") == 1 and pair.a.count("web") == 1, what="it rests")
    pair.fence(pair.a)
    eventually(lambda: pair.a.count("web") == 0, what="it is closed")
    pair.a.stop()
    pair.b.promote()
    again = weir.connect("web", password="p00l-Pass")
    assert port_of(again) == pair.b.port
    again.close()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a mount namespace of its own")
def test_a_name_that_leads_to_both(template, make_weir, tidy, tmp_path):
    """One name for all servers. The old primary comes back as it was, while the new one is only restarted."""
    pair = Pair(template, standby_host="127.0.0.2", same_port=True)
    try:
        hosts = tmp_path / "hosts"
        hosts.write_text("127.0.0.1 localhost pg-of-the-suite\n127.0.0.2 pg-of-the-suite\n")
        os.chmod(tmp_path, 0o755)
        prefix = ["unshare", "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"']
        weir = make_weir(lanes=LANES, prefix=prefix, upstream={
            "address": f"pg-of-the-suite:{pair.a.port}", "target_session_attrs": "read-write", "resolve_interval": "500ms"})

        def where():
            client = tidy(weir.raw("web"))
            return client.ok("select inet_server_addr()")[0][0]

        assert where() == "127.0.0.1"
        # Only restarted: its standby, of the same name, is no reason to leave it.
        pair.a.stop()
        waiting = background(where)
        eventually(lambda: weir.admin("SHOW UPSTREAMS")[0]["ip"] == "127.0.0.2")
        never(lambda: weir.timeline_has("upstream_hold"), 1)
        assert not weir.timeline_has("monitor_ok"), "the standby's usage is not the primary's"
        pair.a.start()
        assert waiting.result(20) == "127.0.0.1" and weir.metric("pgweir_upstream_switches_total") == 0
        pair.a.crash()
        pair.b.promote()
        eventually(lambda: weir.admin("SHOW UPSTREAMS")[0]["ip"] == "127.0.0.2")
        assert where() == "127.0.0.2"
        pair.a.start(wait=False)
        pair.a.wait_ready()
        pair.b.stop()
        waiting = background(where)
        eventually(lambda: weir.timeline_has("upstream_stale", "left behind"))
        never(waiting.done, 1)
        pair.b.start(wait=False)
        assert waiting.result(20) == "127.0.0.2" and weir.metric("pgweir_upstream_switches_total") == 1
    finally:
        pair.close()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a mount namespace of its own")
def test_a_name_that_leads_to_both_whose_primary_does_not_let_the_monitor_in(template, make_weir, tidy, tmp_path):
    """It serves its clients all the same: that its standby is none is no word on it, and a reload is none either."""
    pair = Pair(template, standby_host="127.0.0.2", same_port=True)
    try:
        hosts = tmp_path / "hosts"
        # The standby first.
        hosts.write_text("127.0.0.2 pg-of-the-suite\n127.0.0.1 localhost pg-of-the-suite\n")
        os.chmod(tmp_path, 0o755)
        prefix = ["unshare", "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"']
        lanes = [lane("web", quota=20, wait_timeout="60s", protected=True), lane("other", default=True, quota=10)]
        weir = make_weir(lanes=lanes, prefix=prefix, upstream={
            "address": f"pg-of-the-suite:{pair.a.port}", "target_session_attrs": "read-write", "resolve_interval": "500ms"})
        idle = tidy(weir.raw("web-idle"))
        assert idle.ok("select inet_server_addr()") == [["127.0.0.1"]]
        weir.config["upstream"]["address"] = [f"pg-of-the-suite:{pair.a.port}", "127.0.0.1:1"]
        weir.reload()
        eventually(lambda: weir.admin("SHOW UPSTREAMS")[0]["ip"] == "127.0.0.1")
        assert idle.ok("select 1") == [["1"]]
        pair.a.rule("host all pgweir all reject")
        assert end_monitor(pair.a) == 1
        eventually(lambda: "pg_hba.conf" in weir.admin("SHOW UPSTREAMS")[0]["cause"])
        never(lambda: weir.timeline_has("upstream_hold"), 2.5)
        assert idle.ok("select inet_server_addr()") == [["127.0.0.1"]]
        assert tidy(weir.raw("web-new")).ok("select inet_server_addr()") == [["127.0.0.1"]]
        # It is left when it dies.
        pair.a.crash()
        pair.b.promote()
        assert tidy(weir.raw("web-after")).ok("select inet_server_addr()") == [["127.0.0.2"]]
    finally:
        pair.close()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a mount namespace of its own")
def test_a_name_that_comes_to_lead_elsewhere(template, make_weir, tidy, tmp_path):
    """The resolver's file is pgweir's own: nobody else on this machine sees it."""
    pair = Pair(template, standby_host="127.0.0.2", same_port=True)
    try:
        hosts = tmp_path / "hosts"
        hosts.write_text("127.0.0.1 localhost pg-of-the-suite\n")
        os.chmod(tmp_path, 0o755)
        prefix = ["unshare", "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"']
        weir = make_weir(lanes=LANES, prefix=prefix, upstream={
            "address": f"pg-of-the-suite:{pair.a.port}", "target_session_attrs": "read-write", "resolve_interval": "500ms"})
        before = tidy(weir.raw("web-before"))
        assert before.ok("select pg_is_in_recovery()") == [["f"]]
        assert weir.admin("SHOW UPSTREAMS")[0]["ip"] == "127.0.0.1"
        pair.a.crash()
        pair.b.promote()
        never(lambda: weir.admin("SHOW UPSTREAMS")[0]["role"] == "primary", 1)
        waiting = background(weir.raw, "web-after")
        eventually(lambda: weir.lane("web")["waiting"] == 1)
        hosts.write_text("127.0.0.2 localhost pg-of-the-suite\n")
        after = tidy(waiting.result(20))
        assert after.ok("select inet_server_addr()") == [["127.0.0.2"]]
        assert weir.admin("SHOW UPSTREAMS")[0]["ip"] == "127.0.0.2"
    finally:
        pair.close()
