"""PostgreSQL restarts, is down, is full: clients wait where that is possible, and get a clear error where it is not."""

import time

import psycopg2
import pytest

from harness import ServerError, background, eventually, lane, never
from harness import wire
from harness.cluster import PASSWORD
from test_lanes import queue_one, refused

pytestmark = pytest.mark.weir


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 30}


@pytest.fixture(autouse=True)
def running(cluster):
    yield
    if cluster.process is None or cluster.process.poll() is not None:
        cluster.start()
    eventually(lambda: cluster.count("bypass") == 0)


def lanes(**web):
    return [lane("web", quota=20, priority=0, **{"wait_timeout": "120s", **web}),
            lane("cron", quota=20, priority=5, shed_above=75, shed_below=65, shed_dwell="200ms"), lane("other", default=True, quota=10)]


# It has looked once, and looks again when the test is over.
UNAWARE = {"interval": "60s", "stale_after": "300s"}


def saturate(cluster, tidy):
    """Takes every slot that is not reserved for superusers, past pgweir."""
    taken = []
    while True:
        try:
            taken.append(tidy(cluster.direct(user="batch", app="bypass")))
        except psycopg2.OperationalError as error:
            assert "too many" in str(error) or "reserved" in str(error), error
            return taken


def test_restart(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes())
    old = tidy(weir.raw("web-old"))
    cluster.stop()
    fields = old.error()
    assert fields["C"] == "57P01" and not fields["M"].startswith("pgweir: "), "PostgreSQL's own goodbye passes"
    assert old.at_eof()
    waiting = [background(weir.connect, "web") for _ in range(5)]
    eventually(lambda: weir.lane("web")["waiting"] == 5, what="clients wait while PostgreSQL is down")
    cluster.start()
    for future in waiting:
        conn = tidy(future.result(60))
        conn.cursor().execute("select 1")
    eventually(lambda: weir.lane("web")["slots"] == 5)
    eventually(lambda: weir.timeline_has("upstream_down") and weir.timeline_has("upstream_up"))
    eventually(lambda: weir.usage()["own_slots"] == 5 and weir.is_sampled(3000), what="the monitor is back")


def test_down(make_weir, cluster):
    weir = make_weir(lanes=lanes(wait_timeout="1s"))
    cluster.stop()
    began = time.monotonic()
    refused(weir, state="57P03")
    assert 0.7 < time.monotonic() - began < 40
    eventually(lambda: weir.metric("pgweir_refusals_total", lane="web", reason="upstream_down") == 1)
    eventually(lambda: weir.http("/healthz")[0] == 200 and weir.http("/readyz")[0] == 503)
    assert weir.lanes()


def test_no_herd_while_down(make_weir, cluster, tidy):
    """Many clients wait, few dial: the back-off is the upstream's, not each client's."""
    weir = make_weir(lanes=lanes())
    cluster.stop()
    waiting = [queue_one(weir, "web") for _ in range(15)]
    for client, _ in waiting:
        tidy(client)
    eventually(lambda: weir.lane("web")["waiting"] >= 14)
    began, cpu = time.monotonic(), weir.cpu_seconds()
    never(lambda: any(login.done() for _, login in waiting), 2)
    assert (weir.cpu_seconds() - cpu) / (time.monotonic() - began) < 0.3, "waiting must not spin"
    cluster.start()
    for _, login in waiting:
        login.result(60)


def test_crash(make_weir, cluster):
    weir = make_weir(lanes=lanes())
    clients = [weir.raw("web") for _ in range(5)]
    cluster.stop(9)
    for client in clients:
        assert client.at_eof(30)
    eventually(lambda: weir.lane("web")["slots"] == 0)
    cluster.start()
    assert weir.raw("web").ok("select 1") == [["1"]]


def test_start_before_postgresql(make_weir, cluster):
    cluster.stop()
    weir = make_weir(lanes=lanes(), wait=False)
    connecting = background(lambda: eventually(lambda: weir.raw("web", timeout=120)))
    eventually(lambda: weir.http("/healthz")[0] == 200)
    assert weir.http("/readyz")[0] == 503
    cluster.start()
    try:
        assert connecting.result(80).ok("select 1") == [["1"]]
    except ConnectionRefusedError:
        pass  # it came before the listener did
    weir.wait_ready()
    assert weir.raw("web").ok("select 1") == [["1"]]


def test_saturated_by_others_seen_by_the_monitor(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes())
    taken = saturate(cluster, tidy)
    eventually(lambda: weir.usage()["percent"] >= 95)
    web, login = queue_one(weir, "web")
    tidy(web)
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    never(login.done, 1)
    for conn in taken:
        conn.close()
    login.result(60)
    assert web.ok("select 1") == [["1"]]


def test_saturated_between_samples(make_weir, cluster, tidy):
    """53300 from PostgreSQL itself: the client waits, the shed lanes shed at once, and it is on the timeline."""
    weir = make_weir(lanes=lanes(), monitor={"interval": "20s", "stale_after": "120s"})
    taken = saturate(cluster, tidy)
    waiting = [queue_one(weir, "web") for _ in range(5)]
    for client, _ in waiting:
        tidy(client)
    eventually(lambda: weir.metric("pgweir_upstream_too_many_clients_total") >= 1, what="a 53300 seen")
    eventually(lambda: weir.lane("cron")["state"] == "shedding")
    never(lambda: any(login.done() for _, login in waiting), 1)
    assert weir.timeline_has("too_many_clients")
    for conn in taken:
        conn.close()
    for client, login in waiting:
        login.result(60)
        assert client.ok("select 1") == [["1"]]
    eventually(lambda: weir.lane("cron")["state"] == "open", timeout=60)


def test_saturated_after_the_password(make_weir, cluster, tidy):
    """A client that has answered an authentication request cannot be asked again: it gets the error."""
    weir = make_weir(lanes=lanes(), monitor=UNAWARE)
    saturate(cluster, tidy)
    with weir.socket(timeout=80) as client, pytest.raises(ServerError) as error:
        client.startup("u_md5", password=PASSWORD, app="web")
    assert error.value.sqlstate == "53300" and error.value.severity == "FATAL"
    eventually(lambda: weir.lane("web")["slots"] == 0)


def test_wait_timeout_while_saturated(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes(wait_timeout="1s"), monitor=UNAWARE)
    saturate(cluster, tidy)
    fields = refused(weir)
    assert "PostgreSQL" in fields["M"]


def test_terminated_backend(make_weir, cluster):
    weir = make_weir(lanes=lanes())
    client = weir.raw("web")
    cluster.sql("select pg_terminate_backend(%s)", client.pid)
    assert client.error()["C"] == "57P01" and client.at_eof()
    eventually(lambda: weir.lane("web")["slots"] == 0)


def test_errors_at_login_release_the_slot(make_weir):
    weir = make_weir(lanes=lanes())
    for _ in range(10):
        with weir.socket() as client, pytest.raises(ServerError):
            client.startup(dbname="nosuch", app="web")
        with weir.socket() as client:
            client.send(wire.startup_packet("u_md5", "postgres", app="web"))
            client.receive()
    eventually(weir.drained)
    assert weir.usage()["own_slots"] == 0
