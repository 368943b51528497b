"""Two servers with streaming replication: the primary dies, or is taken out of service, and clients are delayed rather than failed."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time

import psycopg2
import psycopg2.errors
import pytest

from harness import Cluster, Weir, background, docs, eventually, free_port, lane, never
from harness.cluster import stat
from harness.weir import ROOT

# Two servers are made for nearly each test.
pytestmark = [pytest.mark.weir, pytest.mark.timeout(240)]

LANES = [lane("web", quota=20, wait_timeout="300s"), lane("other", default=True, quota=10)]


# Root in a container may not do so either.
CAN_MOUNT = os.geteuid() == 0 and shutil.which("unshare") is not None and subprocess.run(
    ["unshare", "-m", "mount", "--bind", "/etc/hosts", "/etc/hosts"], capture_output=True).returncode == 0


class Pair:
    """A primary `a` and its synchronous standby `b`."""

    def __init__(self, template, host="127.0.0.1", standby_host="127.0.0.1", same_port=False):
        self.made = []
        self.a = self._keep(Cluster(template=template, listen_addresses=host)).start()
        self.b = self.standby_of(self.a, listen_addresses=standby_host, port=self.a.port if same_port else None)
        self.a.sql("alter role odoo set synchronous_commit = 'remote_apply'")
        self.a.sql("create table sums (client int, n int)", dbname="odoo")
        self.a.sql("grant all on sums to public", dbname="odoo")
        self.a.configure("synchronous_standby_names", "'*'")
        eventually(lambda: self.a.value("select count(*) from pg_stat_replication where sync_state = 'sync'") == 1)

    def _keep(self, cluster):
        self.made.append(cluster)
        return cluster

    def standby_of(self, primary, **settings):
        return self._keep(Cluster(primary=primary, **settings)).start()

    def fence(self, cluster, on=True):
        """What a careful operator does first: no transaction that begins from now on may write."""
        cluster.configure("default_transaction_read_only", "on" if on else "off")

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


@pytest.fixture
def weir_at_first(weir_at):
    """The same, where more than one would do: the first is dialled, for the others are silent until that is decided."""
    def start(first, *others, **more):
        with contextlib.ExitStack() as frozen:
            for other in others:
                frozen.enter_context(other.frozen())
            weir = weir_at(first, *others, **more)
            assert current(weir) == first.port
            return weir
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
        self.conn = self.weir.connect("web", user="odoo", dbname="odoo", connect_timeout=300, autocommit=False)
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
    eventually(lambda: all(len(w.acknowledged) > mark + 20 for w, mark in zip(crew, marks)), timeout=60,
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


class Page:
    """The commands of docs/high-availability.md, in their order, each held against what the page shows."""

    def __init__(self, weir):
        self.weir, self.path = weir, ROOT / "docs" / "high-availability.md"
        self.steps = docs.steps("docs/high-availability.md")
        self.updates = docs.Updates(self.path)

    def plays(self, *names):
        """The next ones, which are these commands: what the page shows comes to be shown."""
        for name in names:
            step = self.steps.pop(0)
            words = shlex.split(step.text, comments=True)
            assert words == ["pgweir", name], f"{self.path.name}:{step.line}: not the turn of {words}"
            eventually(lambda name=name, step=step: self._shows(name, step), what=f"the page's {name}")

    def _shows(self, name, step):
        done = self.weir.cli(name)
        where = f"{self.path.name}:{step.line}: {step.text}: "
        assert done.returncode == step.status, f"{where}exit status {done.returncode}\n{done.stdout}{done.stderr}"
        fault = docs.fault(step, done.stdout, self.updates)
        assert not fault, where + fault
        return True

    def close(self):
        """All of them were played."""
        self.updates.write()
        assert not self.steps


def test_a_failover_looks_as_on_its_page(pair, weir_at):
    weir = weir_at(pair.a, pair.b)
    page = Page(weir)
    crew, until = workers(weir)
    pair.a.crash()
    eventually(lambda: weir.lane("web")["waiting"] == 6, what="all wait in their queue")
    eventually(lambda: "refused" in weir.cli("upstreams").stdout, what="its address is tried again")
    eventually(lambda: all(word in weir.cli("status").stdout for word in ("UPSTREAM DOWN", "BLIND", "PRESSURE")), what="status tells")
    page.plays("upstreams", "status")
    pair.b.promote()
    carried_on(crew, until)
    page.plays("upstreams", "timeline")
    page.close()


def test_the_primary_is_killed(pair, weir_at):
    weir = weir_at(pair.a, pair.b)
    eventually(lambda: current(weir) == pair.a.port and upstreams(weir)[pair.b.port]["role"] == "standby")
    crew, until = workers(weir)
    pair.a.crash()
    eventually(lambda: weir.lane("web")["waiting"] == 6, what="all wait in their queue")
    never(lambda: any(worker.refused for worker in crew), 1)
    eventually(lambda: upstreams(weir)[pair.a.port]["role"] == "down" and weir.http("/readyz")[0] == 503)
    pair.b.promote()
    carried_on(crew, until)
    delayed_not_failed(crew, pair.b)
    assert current(weir) == pair.b.port
    eventually(lambda: weir.http("/readyz")[0] == 200)
    assert weir.timeline_has("upstream_switched", str(pair.b.port))
    assert weir.metric("pgweir_upstream_switches_total") == 1
    assert weir.metric("pgweir_upstream_current", address=f"127.0.0.1:{pair.b.port}") == 1
    # Its usage is that of the new server.
    eventually(lambda: weir.is_sampled() and weir.usage()["own_slots"] == pair.b.count("web%"))


def test_the_primary_hangs(pair, weir_at, tidy):
    """It accepts connections and says nothing any more: links to it end with the switch, logins under way are begun anew."""
    weir = weir_at(pair.a, pair.b)
    inside = tidy(weir.raw("web-inside", timeout=120))
    inside.ok("begin")
    pair.a.freeze()
    try:
        busy = background(lambda: (inside.send(b"Q\0\0\0\x0dselect 1\0"), inside.error())[1])
        logins = [background(weir.connect, "web-new") for _ in range(3)]
        eventually(lambda: upstreams(weir)[pair.a.port]["role"] == "down")
        never(lambda: busy.done() or any(login.done() for login in logins), 0.5)
        pair.b.promote()
        fields = busy.result(60)
        assert fields["C"] == "57P01" and fields["D"] == "its server does not answer"
        for login in logins:
            assert port_of(tidy(login.result(60))) == pair.b.port
        # Its slots are nothing to the new server.
        eventually(lambda: weir.lane("web")["slots"] == 3, timeout=15)
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


def sleeping(cluster, app):
    return cluster.activity(app, "state = 'active' and wait_event = 'PgSleep'")


def test_a_fenced_primary_is_left_and_newcomers_wait(pair, weir_at, tidy):
    """Idle links at once, the others with their transaction; a cancel still finds the server its link is on."""
    weir = weir_at(pair.a, pair.b)
    idle = tidy(weir.raw("web-idle", timeout=60))
    listener = tidy(weir.raw("web-listen", timeout=60))
    listener.ok("listen imbus")
    busy = tidy(weir.connect("web-busy", user="odoo", dbname="odoo", autocommit=False))
    busy.cursor().execute("insert into sums values (99, 1)")
    asleep = tidy(weir.connect("web-asleep", autocommit=False))
    asleep.cursor().execute("select 1")
    sleeps = background(lambda: asleep.cursor().execute("select pg_sleep(600)"))
    eventually(lambda: sleeping(pair.a, "web-asleep"))
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
        sleeps.result(60)
    assert not newcomer.done()
    pair.a.stop()
    pair.b.promote()
    assert port_of(tidy(newcomer.result(60))) == pair.b.port
    assert pair.b.value("select count(*) from sums where client = 99", dbname="odoo") == 2


def test_a_cancel_after_the_switch_goes_to_the_links_own_server(pair, weir_at, tidy):
    weir = weir_at(pair.a, pair.b)
    asleep = tidy(weir.connect("web-asleep", autocommit=False))
    asleep.cursor().execute("select 1")
    sleeps = background(lambda: asleep.cursor().execute("select pg_sleep(600)"))
    eventually(lambda: sleeping(pair.a, "web-asleep"))
    pair.fence(pair.a)
    pair.b.promote()
    eventually(lambda: current(weir) == pair.b.port)
    assert not sleeps.done()
    asleep.cancel()
    with pytest.raises(psycopg2.errors.QueryCanceled):
        sleeps.result(60)


def test_split_brain(pair, weir_at, tidy):
    """Two primaries: clients are led to the one promoted last, once, and stay there."""
    weir = weir_at(pair.a, pair.b)
    before = tidy(weir.connect("web-before", autocommit=False))
    before.cursor().execute("select 1")
    pair.b.promote()
    eventually(lambda: weir.timeline_has("upstream_split", "split brain") and current(weir) == pair.b.port)
    before.commit()
    assert port_of(tidy(weir.connect("web"))) == pair.b.port
    eventually(lambda: sum(weir.metric("pgweir_upstream_role", role="primary", address=f"127.0.0.1:{c.port}") for c in (pair.a, pair.b)) == 2)
    check = weir.cli("check")
    assert "more than one server is a primary" in check.stdout + check.stderr
    never(lambda: current(weir) != pair.b.port, 1)
    assert weir.metric("pgweir_upstream_switches_total") == 1
    late = Weir(pair.a, lanes=LANES, upstream={"address": [f"127.0.0.1:{c.port}" for c in (pair.a, pair.b)]})
    try:
        began = time.monotonic()
        late.start()
        first = current(late)
        # For a second it waits until it has seen both, and not any longer.
        assert first == pair.b.port or time.monotonic() - began > 1
        eventually(lambda: current(late) == pair.b.port)
    finally:
        late.close()


def end_monitor(cluster):
    """Ends the monitor's session, and nothing else. It may be between two of them."""
    return eventually(lambda: end_monitors(cluster), what="a session of the monitor")


def end_monitors(cluster):
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
    end_monitor(b)
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
    assert port_of(tidy(waiting.result(60))) == b.port
    assert weir.metric("pgweir_upstream_switches_total") == 1


@pytest.fixture
def two(template):
    """Two servers that have nothing to do with each other."""
    a, b = Cluster(template=template).start(), Cluster(template=template).start()
    yield a, b
    a.close()
    b.close()


def stop_between_looks(cluster):
    """Stops the process of the monitor's session, at rest: it holds nothing that others wait for. Its pid."""
    def stopped():
        (pid,) = eventually(lambda: [row["pid"] for row in cluster.activity("pgweir monitor")])
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: stat(pid)[0] == "T")
        if cluster.activity("pgweir monitor", f"pid = {pid} and state = 'idle'"):
            return pid
        os.kill(pid, signal.SIGCONT)
        return None
    return eventually(stopped)


def test_trouble_of_the_monitor_is_not_the_servers(two, weir_at_first, tidy):
    """A session that is ended, one that hangs, one that waits for a lock: the server is overloaded at most, and lives."""
    a, b = two
    # A session that is slow for three seconds is not lost: where logins wait for a lock no other would be had.
    weir = weir_at_first(a, b, upstream={"target_session_attrs": "any"}, monitor={"interval": "3s", "stale_after": "30s"})
    conn = tidy(weir.connect("web", autocommit=False))
    conn.cursor().execute("select 1")
    end_monitor(a)
    never(lambda: current(weir) != a.port, 1.5)
    pid = stop_between_looks(a)
    try:
        # For a moment only: it gets another one.
        eventually(lambda: weir.timeline_has("upstream_seen", f":{a.port} is unknown", "did not answer"))
        eventually(lambda: upstreams(weir)[a.port]["role"] == "primary")
        eventually(lambda: a.activity("pgweir monitor", f"pid <> {pid}"))
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
        eventually(weir.is_sampled)
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


def pids(weir, via):
    """Sessions of a sample that are the monitor's own, or ("bypass") nobody's."""
    return [row["pid"] for row in weir.admin("SHOW SESSIONS") if row["via"] == via]


def new_monitor(weir, old):
    """Waits for a sample of another session than the monitor's `old` ones, in which no trace is left of those; its own."""
    def seen():
        rows = [(row["via"], row["pid"]) for row in weir.admin("SHOW SESSIONS")]
        own = [pid for via, pid in rows if via == "monitor"]
        return own if own and not set(own) & set(old) and "bypass" not in {via for via, _ in rows} else None
    return eventually(seen, what="the new monitor sees nobody but pgweir's own")


def test_a_reload_that_spells_the_address_otherwise_is_no_switch(template, make_weir, tidy):
    """The links stay, stay pgweir's own, and are not taken for leaks that bypass it; whichever way the server is named, alone or as one of several."""
    cluster = Cluster(template=template).start()
    try:
        weir = make_weir(lanes=LANES, bypass={"action": "terminate", "after": "1s"}, upstream={"address": f"127.0.0.1:{cluster.port}"})
        idle = tidy(weir.raw("web-idle"))
        inside = tidy(weir.connect("web-inside", autocommit=False))
        inside.cursor().execute("select 1")
        monitor = eventually(lambda: pids(weir, "monitor"))
        name, number = f"localhost:{cluster.port}", f"127.0.0.1:{cluster.port}"
        for address in (name, f"unix:{cluster.sockets}:{cluster.port}", number, [name, "127.0.0.1:1"], [number, "127.0.0.1:1"], number):
            weir.config["upstream"]["address"] = address
            weir.reload()
            eventually(lambda: current(weir) == cluster.port, what=str(address))
            # That before it may be among the first sample's.
            monitor = new_monitor(weir, monitor)
            # The monitor itself is past pgweir.
            eventually(lambda: (usage := weir.usage())["own_slots"] == 2 and usage["bypass"] == 1, what=f"nobody is a stranger at {address}")
            never(lambda: pids(weir, "bypass") or weir.usage()["bypass"] != 1 or weir.timeline_has("terminate"), 1.8)
            assert idle.ok("select 1") == [["1"]], address
            inside.cursor().execute("select 1")
            new = weir.raw("web-new")
            assert new.ok("select 1") == [["1"]], address
            new.close()
        assert weir.metric("pgweir_upstream_switches_total") == 0
    finally:
        cluster.close()


@pytest.mark.parametrize("left", ["for one", "for others", "for nobody"])
def test_links_leave_a_server_that_a_reload_takes_away(two, weir_at_first, tidy, left):
    a, b = two
    weir = weir_at_first(a, b, upstream={"connect_timeout": "1s"}, limits={"startup_timeout": "500ms"})
    # Longer than links are looked for that were logging in when the first server was chosen.
    never(lambda: current(weir) != a.port, 3)
    # Who logs in from now on has more time.
    weir.config["limits"]["startup_timeout"] = "30s"
    weir.reload()
    idle = tidy(weir.raw("web-idle"))
    inside = tidy(weir.connect("web-inside", autocommit=False))
    inside.cursor().execute("select 1")
    new = f"127.0.0.1:{b.port}"
    weir.config["upstream"]["address"] = {"for one": new, "for others": [new, "127.0.0.1:1"], "for nobody": ["127.0.0.1:1", "127.0.0.1:2"]}[left]
    weir.reload()
    assert idle.error()["C"] == "57P01"
    inside.cursor().execute("select 2")
    inside.commit()
    eventually(lambda: a.count("web%") == 0, what="the other one leaves with its transaction")
    if left != "for nobody":
        assert port_of(tidy(weir.connect("web"))) == b.port


WITHOUT_TIMELINE = "revoke execute on function pg_current_wal_lsn() from public"


def test_one_server_is_not_asked_what_it_is(template, make_weir):
    """What derives from PostgreSQL may raise an error there, as Aurora does."""
    cluster = Cluster(template=template).start()
    try:
        cluster.sql(WITHOUT_TIMELINE, dbname="postgres")
        # An answer that takes three seconds is no trouble either.
        weir = make_weir(lanes=LANES, upstream={"address": f"127.0.0.1:{cluster.port}"}, monitor={"interval": "3s", "stale_after": "30s"})
        eventually(lambda: weir.is_sampled(30_000))
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

    def is_primary():
        row = upstreams(weir)[pair.a.port]
        assert row["timeline"] is None
        return row["role"] == "primary"
    eventually(is_primary)
    eventually(weir.is_sampled)
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
    assert port_of(tidy(waiting.result(60))) == pair.a.port
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
    lanes[0]["wait_timeout"] = "60s"
    weir.config["upstream"]["target_session_attrs"] = "standby"
    weir.write()
    weir.admin("RELOAD")
    eventually(lambda: current(weir) == pair.b.port)
    weir.connect("web").close()


def test_pooled_connections_of_the_old_primary_are_closed(pair, weir_at, tmp_path):
    users = tmp_path / "userlist.txt"
    users.write_text('"odoo" "p00l-Pass"\n')
    users.chmod(0o600)
    lanes = [lane("web", default=True, quota=10, pooling="session", wait_timeout="300s")]
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


@pytest.mark.skipif(not CAN_MOUNT, reason="needs a mount namespace of its own")
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
            client = tidy(weir.raw("web", timeout=120))
            return client.ok("select inet_server_addr()")[0][0]

        assert where() == "127.0.0.1"
        # Only restarted: its standby, of the same name, is no reason to leave it.
        pair.a.stop()
        waiting = background(where)
        eventually(lambda: weir.admin("SHOW UPSTREAMS")[0]["ip"] == "127.0.0.2")
        never(lambda: weir.timeline_has("upstream_hold"), 1)
        assert not weir.timeline_has("monitor_ok"), "the standby's usage is not the primary's"
        pair.a.start()
        assert waiting.result(60) == "127.0.0.1" and weir.metric("pgweir_upstream_switches_total") == 0
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
        assert waiting.result(60) == "127.0.0.2" and weir.metric("pgweir_upstream_switches_total") == 1
    finally:
        pair.close()


@pytest.mark.skipif(not CAN_MOUNT, reason="needs a mount namespace of its own")
def test_a_name_that_leads_to_both_whose_primary_does_not_let_the_monitor_in(template, make_weir, tidy, tmp_path):
    """It serves its clients all the same: that its standby is none is no word on it, and a reload is none either."""
    pair = Pair(template, standby_host="127.0.0.2", same_port=True)
    try:
        hosts = tmp_path / "hosts"
        # The standby first.
        hosts.write_text("127.0.0.2 pg-of-the-suite\n127.0.0.1 localhost pg-of-the-suite\n")
        os.chmod(tmp_path, 0o755)
        prefix = ["unshare", "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"']
        lanes = [lane("web", quota=20, wait_timeout="300s", protected=True), lane("other", default=True, quota=10)]
        weir = make_weir(lanes=lanes, prefix=prefix, upstream={
            "address": f"pg-of-the-suite:{pair.a.port}", "target_session_attrs": "read-write", "resolve_interval": "500ms"})
        idle = tidy(weir.raw("web-idle"))
        assert idle.ok("select inet_server_addr()") == [["127.0.0.1"]]
        weir.config["upstream"]["address"] = [f"pg-of-the-suite:{pair.a.port}", "127.0.0.1:1"]
        weir.reload()
        eventually(lambda: weir.admin("SHOW UPSTREAMS")[0]["ip"] == "127.0.0.1")
        assert idle.ok("select 1") == [["1"]]
        pair.a.rule("host all pgweir all reject")
        # The reload may just have given it another session.
        eventually(lambda: not end_monitors(pair.a) and "pg_hba.conf" in weir.admin("SHOW UPSTREAMS")[0]["cause"])
        never(lambda: weir.timeline_has("upstream_hold"), 2.5)
        assert idle.ok("select inet_server_addr()") == [["127.0.0.1"]]
        assert tidy(weir.raw("web-new")).ok("select inet_server_addr()") == [["127.0.0.1"]]
        # It is left when it dies.
        pair.a.crash()
        pair.b.promote()
        assert tidy(weir.raw("web-after", timeout=120)).ok("select inet_server_addr()") == [["127.0.0.2"]]
    finally:
        pair.close()


@pytest.mark.skipif(not CAN_MOUNT, reason="needs a mount namespace of its own")
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
        eventually(lambda: weir.admin("SHOW UPSTREAMS")[0]["ip"] == "127.0.0.1")
        pair.a.crash()
        pair.b.promote()
        never(lambda: weir.admin("SHOW UPSTREAMS")[0]["role"] == "primary", 1)
        waiting = background(weir.raw, "web-after", timeout=120)
        eventually(lambda: weir.lane("web")["waiting"] == 1)
        hosts.write_text("127.0.0.2 localhost pg-of-the-suite\n")
        after = tidy(waiting.result(60))
        assert after.ok("select inet_server_addr()") == [["127.0.0.2"]]
        eventually(lambda: weir.admin("SHOW UPSTREAMS")[0]["ip"] == "127.0.0.2")
    finally:
        pair.close()


def alive(weir):
    """Waits for a pgweir that may have nobody to dial."""
    eventually(lambda: weir.http("/healthz")[0] == 200)


def kept(weir):
    """What the state directory holds of the servers: written by and by."""
    try:
        return (weir.state / "upstream.json").read_text()
    except FileNotFoundError:
        return ""


def system_of(cluster):
    return cluster.value("select system_identifier::text from pg_control_system()")


@pytest.fixture
def stranger():
    """A primary of another cluster."""
    cluster = Cluster()
    cluster.start()
    conn = cluster.direct(app="suite", user="postgres", dbname="postgres")
    conn.cursor().execute("create role pgweir login; grant pg_monitor to pgweir; create role odoo login")
    conn.close()
    yield cluster
    cluster.close()


@pytest.mark.parametrize("session", ["read-write", "any"])
def test_a_server_of_another_cluster_is_never_dialled(template, stranger, weir_at_first, tidy, session):
    a = Cluster(template=template).start()
    try:
        weir = weir_at_first(a, stranger, upstream={"target_session_attrs": session})
        foreign = eventually(lambda: [entry for entry in weir.admin("SHOW TIMELINE") if entry["event"] == "upstream_foreign"])
        eventually(lambda: "of another cluster" in upstreams(weir)[stranger.port]["cause"])
        assert len(foreign) == 1 and system_of(a) in foreign[0]["text"] and system_of(stranger) in foreign[0]["text"], foreign
        assert weir.log().count("event=upstream_foreign") == 1
        assert not weir.timeline_has("upstream_split")
        check = weir.cli("check")
        assert "of several clusters" in check.stdout + check.stderr
        a.crash()
        waiting = background(weir.connect, "web")
        eventually(lambda: upstreams(weir)[a.port]["role"] == "down")
        never(lambda: current(weir) != a.port, 2)
        # Neither after a restart of pgweir, while it is the only one that answers.
        weir.stop()
        alive(weir.start(wait=False))
        eventually(lambda: upstreams(weir)[stranger.port]["role"] == "primary")
        never(lambda: current(weir) is not None, 2)
        assert weir.http("/readyz")[0] == 503
        # The operator means this one.
        weir.config["upstream"] = {"address": f"127.0.0.1:{stranger.port}"}
        weir.reload()
        assert port_of(tidy(weir.connect("web"))) == stranger.port
        assert weir.timeline_has("upstream", "is forgotten")
        eventually(lambda: not kept(weir))
        weir.config["upstream"] = {"address": [f"127.0.0.1:{port}" for port in (a.port, stranger.port)], "target_session_attrs": session}
        weir.config["monitor"].pop("address", None)
        weir.reload()
        a.start()
        eventually(lambda: "of another cluster" in upstreams(weir)[a.port]["cause"])
        assert current(weir) == stranger.port
        with pytest.raises(psycopg2.Error):
            waiting.result(60)
    finally:
        a.close()


NOT_TOLD = {
    "revoked": "revoke execute on function pg_control_system() from public",
    # Replaced it would go on: PostgreSQL finds functions of its own by their number.
    "an error": """alter function pg_catalog.pg_control_system() rename to pg_control_system_of_old;
        create function pg_catalog.pg_control_system(out pg_control_version int, out catalog_version_no int, out system_identifier bigint,
        out pg_control_last_modified timestamptz) language plpgsql as $$begin raise 'not here' using errcode = 'XX000'; end$$""",
}


@pytest.mark.parametrize("how", NOT_TOLD)
def test_a_role_that_may_not_read_the_system_identifier(pair, weir_at, how):
    """It is a monitor all the same."""
    pair.a.sql(NOT_TOLD[how], dbname="postgres")
    weir = weir_at(pair.a, pair.b)
    assert current(weir) == pair.a.port
    eventually(lambda: upstreams(weir)[pair.b.port]["role"] == "standby")
    eventually(lambda: "its system identifier cannot be asked for" in weir.log())
    check = weir.cli("check")
    assert "clusters" not in check.stdout + check.stderr
    pair.a.crash()
    pair.b.promote()
    eventually(lambda: current(weir) == pair.b.port)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_an_old_primary_is_not_served_after_a_restart_of_pgweir(pair, weir_at, tidy, how):
    a, b = pair.a, pair.b
    weir = weir_at(a, b)
    a.crash()
    b.promote()
    eventually(lambda: current(weir) == b.port)
    eventually(lambda: '"timeline": 2' in kept(weir))
    if how == "killed":
        weir.process.kill()
        weir.process.wait()
    else:
        weir.stop()
    b.crash()
    a.start(wait=False)
    a.wait_ready()
    alive(weir.start(wait=False))
    eventually(lambda: upstreams(weir)[a.port]["role"] == "primary")
    eventually(lambda: weir.timeline_has("upstream_stale", "left behind"))
    waiting = background(weir.connect, "web")
    never(lambda: current(weir) is not None or waiting.done(), 2)
    if how == "stopped":
        b.start(wait=False)
        assert port_of(tidy(waiting.result(60))) == b.port
        return
    # The operator goes on with the old one.
    weir.config["upstream"]["address"] = f"127.0.0.1:{a.port}"
    weir.reload()
    assert port_of(tidy(waiting.result(60))) == a.port
    weir.config["upstream"]["address"] = [f"127.0.0.1:{cluster.port}" for cluster in (b, a)]
    weir.config["monitor"].pop("address", None)
    weir.reload()
    eventually(lambda: '"timeline": 1' in kept(weir))
    weir.stop()
    weir.start()
    assert current(weir) == a.port


def test_what_was_kept_of_the_servers_and_is_not_understood_is_put_aside(pair, weir_at):
    weir = weir_at(pair.a, pair.b)
    weir.stop()
    (weir.state / "upstream.json").write_text('{"version": 9}')
    weir.start()
    assert current(weir) == pair.a.port
    assert [path.read_text() for path in weir.state.glob("upstream.json.unreadable-*")] == ['{"version": 9}']
    assert "would not be noticed" in weir.log()


def test_what_could_not_be_kept_of_the_servers_is_kept_later(pair, weir_at):
    weir = weir_at(pair.a, pair.b)
    in_the_way = weir.state / "upstream.json.tmp"
    eventually(lambda: f'"system_identifier": "{system_of(pair.a)}"' in kept(weir))
    in_the_way.mkdir()
    pair.a.crash()
    pair.b.promote()
    eventually(lambda: current(weir) == pair.b.port)
    eventually(lambda: "could not be saved" in weir.log())
    assert '"timeline": 1' in kept(weir)
    in_the_way.rmdir()
    eventually(lambda: '"timeline": 2' in kept(weir))


class Relay:
    """A server's address, which is there or not at once: a restart takes as long as the machine likes."""

    def __init__(self, cluster):
        self.cluster, self.port, self.open_ones = cluster, free_port(), []
        # How many of those who come next are hung up on.
        self.refuses = 0
        self.open()

    def open(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.accept, args=[self.listener], daemon=True).start()

    def accept(self, listener):
        while True:
            try:
                near = listener.accept()[0]
            except OSError:
                return
            if self.refuses > 0:
                self.refuses -= 1
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.cluster.port))
            self.open_ones += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self.move, args=[source, sink], daemon=True).start()

    @staticmethod
    def move(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self):
        """Ends the connections that are there."""
        ended, self.open_ones = self.open_ones, []
        self.end(ended)

    def close(self):
        """Refuses whoever comes, and cuts the others."""
        self.end([self.listener])
        self.cut()

    @staticmethod
    def end(sockets):
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()


def test_one_attempt_of_the_monitor_in_vain_is_no_lost_server(two, weir_at_first):
    """Two that suit: the one in use is left when it lets nobody in for seconds, not when it does so once."""
    a, b = Relay(two[0]), two[1]
    weir = weir_at_first(a, b, upstream={"target_session_attrs": "any"})
    a.refuses = 1
    a.cut()
    eventually(lambda: a.refuses == 0 and upstreams(weir)[a.port]["role"] == "primary")
    assert weir.timeline_has("upstream_seen", f":{a.port} is unknown")
    assert current(weir) == a.port and weir.metric("pgweir_upstream_switches_total") == 0
    died = time.monotonic()
    a.close()
    eventually(lambda: current(weir) == b.port)
    assert time.monotonic() - died > 2.5
    assert weir.metric("pgweir_upstream_switches_total") == 1


@pytest.fixture
def named(template, make_weir, tmp_path):
    """Two servers at one port, a pgweir that knows them by one name, and where that leads."""
    if not CAN_MOUNT:
        pytest.skip("needs a mount namespace of its own")
    pair = Pair(template, standby_host="127.0.0.2", same_port=True)
    hosts = tmp_path / "hosts"
    os.chmod(tmp_path, 0o755)

    def lead(*addresses):
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} pg-of-the-suite\n" for address in addresses))

    def start(session):
        prefix = ["unshare", "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"']
        return make_weir(lanes=LANES, prefix=prefix, upstream={
            "address": f"pg-of-the-suite:{pair.a.port}", "target_session_attrs": session, "resolve_interval": "250ms"})
    yield pair, lead, start
    pair.close()


def where(weir):
    return weir.admin("SHOW UPSTREAMS")[0]["ip"]


def is_elsewhere(weir, address):
    """Whether the monitor is with another server; while it has lost a session it is nowhere."""
    return where(weir) not in (address, "")


def test_a_name_that_leads_elsewhere_each_time_drives_nobody_away(named, tidy):
    """As reader endpoints do: one address at a time, another each time."""
    pair, lead, start = named
    lead("127.0.0.2")
    weir = start("standby")
    assert where(weir) == "127.0.0.2"
    idle = tidy(weir.raw("web-idle"))
    third = pair.standby_of(pair.a, listen_addresses="127.0.0.3", port=pair.a.port)
    for turn in range(10):
        lead(f"127.0.0.{3 - turn % 2}")
        never(lambda: is_elsewhere(weir, "127.0.0.2"), 0.5)
        assert idle.ok("select inet_server_addr()") == [["127.0.0.2"]]
    assert tidy(weir.raw("web-new")).ok("select inet_server_addr()") == [["127.0.0.2"]]
    assert weir.metric("pgweir_upstream_switches_total") == 0
    lead("127.0.0.3")
    # Trouble of the monitor's session alone is none of the server's.
    end_monitor(pair.b)
    never(lambda: where(weir) == "127.0.0.3" and weir.metric("pgweir_upstream_switches_total") == 1, 2)
    assert idle.ok("select 1") == [["1"]]
    # It is followed when the server is gone.
    pair.b.crash()
    eventually(lambda: weir.metric("pgweir_upstream_switches_total") == 1 and where(weir) == "127.0.0.3")
    assert tidy(weir.raw("web-after")).ok("select inet_server_addr()") == [["127.0.0.3"]]
    assert third.process is not None


def test_a_name_moved_to_one_that_was_promoted_is_followed_though_the_old_one_lives(named, tidy):
    pair, lead, start = named
    lead("127.0.0.1")
    weir = start("read-write")
    idle = tidy(weir.raw("web-idle"))
    assert idle.ok("select inet_server_addr()") == [["127.0.0.1"]]
    # To its standby, as it is: nothing to go to.
    lead("127.0.0.2")
    never(lambda: is_elsewhere(weir, "127.0.0.1"), 1.5)
    assert idle.ok("select 1") == [["1"]]
    pair.b.promote()
    assert idle.error()["C"] == "57P01"
    assert tidy(weir.raw("web-new")).ok("select inet_server_addr()") == [["127.0.0.2"]]
    # There is no way back.
    lead("127.0.0.1")
    never(lambda: is_elsewhere(weir, "127.0.0.2"), 1.5)
    assert weir.metric("pgweir_upstream_switches_total") == 1
