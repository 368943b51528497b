"""Lanes: classification, quotas, queues, and who gets the next slot."""

import collections
import subprocess
import threading
import time

import psycopg2
import pytest

from harness import RawClient, ServerError, background, eventually, holds, lane
from harness import wire
from harness.cluster import PASSWORD

pytestmark = [pytest.mark.weir, pytest.mark.usefixtures("nobody_is_left")]

OTHER = lane("other", default=True, quota=40, priority=9)


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 40}


def queue_one(weir, app, user="odoo", dbname="postgres"):
    """A client that has asked and not been answered; how it ends is a Future."""
    client = weir.socket(timeout=60)
    client.send(wire.startup_packet(user, dbname, app=app))
    return client, background(client.login, user)


def refused(weir, app="web", state="53300", **more):
    """Connects and expects a refusal; its fields."""
    with weir.socket(timeout=60) as client, pytest.raises(ServerError) as error:
        client.startup(app=app, **more)
    fields = error.value.fields
    assert (fields["S"], fields["C"]) == ("FATAL", state), fields
    assert fields["M"].startswith("pgweir: "), fields
    assert fields.get("D"), f"no figures: {fields}"
    return fields


# -- the purpose of it all ---------------------------------------------------------------------------------------

def test_200_batch_connects_leave_web_unharmed(make_weir, cluster, tidy):
    weir = make_weir(lanes=[lane("batch", quota=10, priority=8, wait_timeout="5m", max_waiting=500),
                            lane("web", quota=20, reserve=10, priority=0, wait_timeout="5m"), OTHER])
    usable = 40 - int(cluster.value("show superuser_reserved_connections"))
    sampler = cluster.sampler()
    done, failures, waits = collections.Counter(), [], []
    lock, stop = threading.Lock(), threading.Event()
    # Batch works until the suite says so: however fast or slow, the quota is used up and all the others wait.
    gate = tidy(cluster.direct(app="suite"))
    gate.cursor().execute("select pg_advisory_lock(200)")

    def batch():
        try:
            conn = weir.connect("batch", user="batch", autocommit=True, connect_timeout=0)
            conn.cursor().execute("select pg_advisory_lock_shared(200), pg_sleep(0.02)")
            conn.close()
            with lock:
                done["batch"] += 1
        except psycopg2.Error as error:
            with lock:
                failures.append(("batch", str(error)))

    def web():
        while not stop.is_set():
            began = time.monotonic()
            try:
                conn = weir.connect("web")
                conn.cursor().execute("select 1")
                conn.commit()
                conn.close()
                with lock:
                    done["web"] += 1
                    waits.append(time.monotonic() - began)
            except psycopg2.Error as error:
                with lock:
                    failures.append(("web", str(error)))
            time.sleep(0.01)

    webs = [threading.Thread(target=web, daemon=True) for _ in range(3)]
    batches = [threading.Thread(target=batch, daemon=True) for _ in range(200)]
    for thread in webs + batches:
        thread.start()
    eventually(lambda: (row := weir.lane("batch"))["slots"] == 10 and row["waiting"] == 190, timeout=60, what="all of them came")
    eventually(lambda: cluster.count("batch") == 10, what="the quota is used")
    before = done["web"]
    eventually(lambda: done["web"] > before + 100 or failures, timeout=60, what="web works while batch waits")
    assert done["batch"] == 0
    gate.close()
    for thread in batches:
        thread.join(60)
    stop.set()
    for thread in webs:
        thread.join(20)
    sampler.stop()
    assert not failures, failures[:5]
    assert done["batch"] == 200, done
    assert sampler.by_app["batch"] == 10, sampler.by_app
    assert sampler.maximum <= usable - 1, sampler.by_app
    waits.sort()
    assert waits[len(waits) * 95 // 100] < 5.0, f"web's p95 is {waits[len(waits) * 95 // 100]:.3f} s"
    eventually(weir.drained)


def test_all_slots_stay_below_the_budget(make_weir, cluster):
    weir = make_weir(upstream={"headroom": 5}, lanes=[lane("a", quota=30, wait_timeout="5m"), lane("b", quota=30, wait_timeout="5m"), OTHER])
    usable = 40 - int(cluster.value("show superuser_reserved_connections"))
    sampler = cluster.sampler()
    # Those who bypass pgweir: its monitor's own backend, and the sampler.
    eventually(lambda: weir.usage()["bypass"] == 2)
    waiting = [queue_one(weir, "ab"[i % 2]) for i in range(60)]

    def inside():
        return sum(login.done() and login.exception() is None for _, login in waiting)
    eventually(lambda: inside() == usable - 5 - 2, what="the budget used up")
    holds(lambda: inside() == usable - 5 - 2, 1)
    assert weir.usage()["own_slots"] == usable - 7
    for client, _ in waiting:
        client.close()
    eventually(weir.drained)
    # All but the sampler.
    assert sampler.stop().maximum <= usable - 5 - 1


# -- limits ------------------------------------------------------------------------------------------------------

def test_lane_quota_and_wait_timeout(make_weir, tidy):
    weir = make_weir(lanes=[lane("web", quota=2, wait_timeout="1s"), OTHER])
    tidy(weir.raw("web")), tidy(weir.raw("web"))
    began = time.monotonic()
    fields = refused(weir)
    assert 0.7 < time.monotonic() - began < 15
    assert "quota" in fields["M"] and "2" in fields["D"] and fields.get("H")
    with pytest.raises(psycopg2.OperationalError, match="pgweir: "):
        weir.connect("web")
    weir.raw("other").close()
    row = weir.lane("web")
    assert (row["slots"], row["quota"], row["waiting"], row["refused"], row["admitted"]) == (2, 2, 0, 2, 2)
    assert weir.metric("pgweir_refusals_total", lane="web", reason="lane_full") == 2


@pytest.mark.parametrize("limit, first, second", [
    ("per_user", {"user": "odoo"}, {"user": "batch"}),
    ("per_database", {"dbname": "odoo"}, {"dbname": "postgres"}),
    ("per_application", {"app": "web-a"}, {"app": "web-b"}),
    ("per_address", {}, None),
])
def test_limits_inside_a_lane(make_weir, tidy, limit, first, second):
    weir = make_weir(lanes=[lane("web", quota=10, wait_timeout="500ms", **{limit: 1}), OTHER])
    holder = tidy(weir.raw(**{"app": "web", **first}))
    reason = {"per_user": "user_limit", "per_database": "database_limit", "per_application": "application_limit",
              "per_address": "address_limit"}[limit]
    refused(weir, **{"app": "web", **first})
    assert weir.metric("pgweir_refusals_total", lane="web", reason=reason) == 1
    if second is not None:
        tidy(weir.raw(**{"app": "web", **second}))
    holder.close()
    eventually(lambda: weir.lane("web")["slots"] == int(second is not None), what="its slot is free")
    tidy(weir.raw(**{"app": "web", **first}))


def test_one_stopped_by_its_own_limit_does_not_stop_the_next(make_weir, tidy):
    weir = make_weir(lanes=[lane("web", quota=10, per_user=1, wait_timeout="5m"), OTHER])
    tidy(weir.raw("web", user="odoo"))
    client, login = queue_one(weir, "web", user="odoo")
    tidy(client)
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    tidy(weir.raw("web", user="batch"))
    assert not login.done()


def test_a_process_more_waits_until_those_inside_fit_with_all_they_may_need(make_weir, tidy):
    """Over TCP a process is known by its address and application_name."""
    weir = make_weir(lanes=[lane("web", quota=4, links_per_process=3, wait_timeout="5m"), OTHER])
    first = tidy(weir.raw("web-1"))
    client, login = queue_one(weir, "web-2")
    tidy(client)
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    tidy(weir.raw("web-1"))
    tidy(weir.raw("web-1"))
    assert weir.lane("web")["slots"] == 3 and not login.done()
    first.close()
    login.result(30)


def test_application_quota_over_lanes(make_weir, tidy):
    weir = make_weir(applications=[{"match": "odoo-*", "name": "odoo", "quota": 3}],
                     lanes=[lane("web", match=[{"application": "odoo-1*"}], wait_timeout="500ms"),
                            lane("cron", match=[{"application": "odoo-2*"}], wait_timeout="500ms"), OTHER])
    for app in ("odoo-11", "odoo-12", "odoo-21"):
        tidy(weir.raw(app))
    refused(weir, "odoo-22")
    rows = {r["application"]: r for r in weir.admin("SHOW APPLICATIONS")}
    assert int(rows["odoo"]["slots"]) == 3
    assert weir.metric("pgweir_refusals_total", lane="cron", reason="application_full") == 1


def test_reserve_is_always_available(make_weir, tidy):
    weir = make_weir(applications=[{"match": "*", "name": "all", "quota": 6}],
                     lanes=[lane("web", quota=6, reserve=3, wait_timeout="60s"), lane("batch", quota=6, wait_timeout="500ms"),
                            lane("other", default=True, quota=1)])
    for _ in range(3):
        tidy(weir.raw("batch"))
    refused(weir, "batch")
    for _ in range(3):
        tidy(weir.raw("web"))


def test_max_clients(make_weir, tidy):
    weir = make_weir(limits={"max_clients": 3})
    for _ in range(3):
        tidy(weir.raw())
    assert "too many clients" in refused(weir, "web")["M"]
    assert weir.admin("SHOW LANES"), "the console must stay reachable"


# -- queue -------------------------------------------------------------------------------------------------------

def test_first_come_first_served(make_weir, tidy):
    weir = make_weir(lanes=[lane("web", quota=1, wait_timeout="60s"), OTHER])
    holder = weir.raw("web")
    waiting = []
    for i in range(6):
        waiting.append(queue_one(weir, "web"))
        tidy(waiting[-1][0])
        eventually(lambda: weir.lane("web")["waiting"] == i + 1)
    assert weir.lane("web")["max_wait_ms"] >= 0
    holder.send(wire.TERMINATE)
    holder.close()
    for i, (client, login) in enumerate(waiting):
        login.result(30)
        assert not any(later.done() for _, later in waiting[i + 1:])
        client.close()


def test_max_waiting(make_weir, tidy):
    weir = make_weir(lanes=[lane("web", quota=1, wait_timeout="60s", max_waiting=2), OTHER])
    tidy(weir.raw("web"))
    for _ in range(2):
        tidy(queue_one(weir, "web")[0])
    eventually(lambda: weir.lane("web")["waiting"] == 2)
    began = time.monotonic()
    assert "waiting" in refused(weir)["M"]
    assert time.monotonic() - began < 30, "at once, not after wait_timeout"
    assert weir.metric("pgweir_refusals_total", lane="web", reason="queue_full") == 1


@pytest.mark.parametrize("how", ["fin", "rst", "unread bytes"])
def test_hang_up_in_the_queue(make_weir, cluster, tidy, how):
    weir = make_weir(lanes=[lane("web", quota=1, wait_timeout="60s"), OTHER])
    holder = tidy(weir.raw("web-holder"))
    gone = weir.socket()
    gone.send(wire.startup_packet("odoo", "postgres", app="web-gone"))
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    stays, login = queue_one(weir, "web-stays")
    tidy(stays)
    eventually(lambda: weir.lane("web")["waiting"] == 2)
    if how == "unread bytes":
        gone.send(wire.query("select 1") * 500)
    gone.half_close() if how == "fin" else gone.reset()
    eventually(lambda: weir.lane("web")["waiting"] == 1, timeout=30, what="the queue noticing the hang-up, long before wait_timeout")
    holder.close()
    login.result(30)
    assert stays.ok("select 1") == [["1"]]
    assert cluster.count("web-gone") == 0


def test_a_better_lane_goes_first(make_weir, tidy):
    weir = make_weir(applications=[{"match": "*", "name": "all", "quota": 1}],
                     lanes=[lane("cron", priority=5, wait_timeout="60s"), lane("web", priority=0, wait_timeout="60s"), OTHER])
    holder = tidy(weir.raw("cron"))
    cron, cron_login = queue_one(weir, "cron")
    eventually(lambda: weir.lane("cron")["waiting"] == 1)
    web, web_login = queue_one(weir, "web")
    tidy(cron), tidy(web)
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    holder.close()
    web_login.result(30)
    assert not cron_login.done()
    web.close()
    cron_login.result(30)


def test_connect_rate(make_weir, cluster, tidy):
    weir = make_weir(lanes=[lane("web", quota=25, connect_rate=5, wait_timeout="60s"), OTHER])
    began = time.monotonic()
    for _ in range(20):
        tidy(queue_one(weir, "web")[0])
    # PostgreSQL is asked first: whatever is slow, there are never more than a second's worth at once and five for each second since.
    real, took = 0, 0
    while real < 20:
        real, took = cluster.count("web"), time.monotonic() - began
        assert real <= 5 + 5 * took and took < 60, (real, took)
        time.sleep(0.02)
    assert took > 2.9, "fifteen of them take three seconds"


def test_set_quota_lower_admits_nobody_until_below(make_weir, tidy):
    weir = make_weir(lanes=[lane("web", quota=4, wait_timeout="5m"), OTHER])
    held = [tidy(weir.raw("web")) for _ in range(4)]
    weir.admin("SET LANE web quota = 2")
    assert weir.lane("web")["quota"] == 2 and weir.lane("web")["state"] == "over"
    client, login = queue_one(weir, "web")
    tidy(client)
    for i in range(2):
        held[i].close()
        eventually(lambda: weir.lane("web")["slots"] == 3 - i)
        assert held[3].ok("select 1"), "those inside stay"
    holds(lambda: not login.done(), 0.5)
    assert weir.lane("web")["state"] == "open"
    held[2].close()
    login.result(30)


# -- logins ------------------------------------------------------------------------------------------------------

def test_four_logins_stalled_in_scram_do_not_starve_a_lane(make_weir, cluster, tidy):
    weir = make_weir(limits={"startup_timeout": "8s"}, lanes=[lane("web", quota=12, wait_timeout="60s"), OTHER])
    stalled = []
    for _ in range(4):
        client = tidy(weir.socket())
        client.send(wire.startup_packet("u_scram", "postgres", app="web-stalled"))
        stalled.append(client)
    eventually(lambda: cluster.backends_in_login(), what="stalled logins reach PostgreSQL")
    logins = [background(weir.connect, "web", user="u_scram", password=PASSWORD) for _ in range(8)]
    # A quarter of the quota, whoever they are.
    holds(lambda: len(cluster.backends_in_login()) <= 3, 1)
    for login in logins:
        tidy(login.result(60))
    for client in stalled:
        assert client.at_eof(30), "the stalled login must be ended"
    eventually(lambda: weir.lane("web")["slots"] == 8)


def test_wait_in_the_queue_is_no_login_time(make_weir, tidy):
    weir = make_weir(limits={"startup_timeout": "5s"}, lanes=[lane("web", quota=1, wait_timeout="5m"), OTHER])
    holder = tidy(weir.raw("web"))
    client, login = queue_one(weir, "web")
    tidy(client)
    eventually(lambda: weir.lane("web")["max_wait_ms"] > 6000)
    holder.close()
    login.result(30)


def test_a_role_at_its_own_connection_limit_sheds_nobody(make_weir, tidy):
    weir = make_weir(lanes=[lane("web", quota=10, shed_above=75, shed_below=65, wait_timeout="60s"), OTHER], monitor={"stale_after": "60s"})
    tidy(weir.raw("web", user="limited"))
    began = time.monotonic()
    with weir.socket() as client, pytest.raises(ServerError) as error:
        client.startup(user="limited", app="web")
    assert error.value.sqlstate == "53300" and not error.value.fields["M"].startswith("pgweir: ")
    assert time.monotonic() - began < 30, "at once, not after wait_timeout"
    assert weir.lane("web")["state"] == "open"
    assert float(weir.usage()["percent"]) < 50
    assert weir.metric("pgweir_upstream_too_many_clients_total") == 0
    tidy(weir.raw("web"))


def test_a_database_at_its_own_limit_sheds_nobody(make_weir, cluster, tidy):
    cluster.sql("create database small connection limit 0")
    weir = make_weir(lanes=[lane("web", quota=10, shed_above=75, shed_below=65, wait_timeout="60s"), OTHER], monitor={"stale_after": "60s"})
    with weir.socket() as client, pytest.raises(ServerError) as error:
        client.startup(dbname="small", app="web")
    assert error.value.sqlstate == "53300" and not error.value.fields["M"].startswith("pgweir: ")
    assert weir.lane("web")["state"] == "open" and float(weir.usage()["percent"]) < 50


# -- classification ----------------------------------------------------------------------------------------------

def lane_of(weir, app):
    return weir.client(app)["lane"]


def test_rules_are_tried_in_order(make_weir, tidy):
    weir = make_weir(lanes=[lane("admin", match=[{"user": "postgres"}], protected=True, quota=3),
                            lane("byboth", match=[{"user": "odoo", "database": "odoo"}]),
                            lane("byaddress", match=[{"address": "127.0.0.0/8", "application": "net*"}]),
                            lane("byapp", match=[{"application": "odoo-?"}, {"application": "x*y"}]), OTHER])
    cases = [("a", {"user": "postgres"}, "admin"), ("b", {"dbname": "odoo"}, "byboth"), ("net1", {}, "byaddress"),
             ("odoo-1", {}, "byapp"), ("odoo-12", {}, "other"), ("x.y", {}, "byapp"), ("psql", {}, "other")]
    for app, how, expected in cases:
        tidy(weir.raw(app, **how))
        assert lane_of(weir, app) == expected, app
    rules = {row["application"]: row["rule"] for row in weir.clients()}
    assert "net" in rules["net1"] and rules["psql"] == "default"


def test_listener_rules(make_weir, tidy, cluster):
    from harness import free_port
    first, second, third = free_port(), free_port(), free_port()
    weir = make_weir(listen=[{"address": f"127.0.0.1:{first}"}, {"address": f"127.0.0.1:{second}"},
                             {"address": f"127.0.0.1:{third}", "lane": "bound"}],
                     lanes=[lane("listener", match=[{"listener": f"127.0.0.1:{second}"}]),
                            lane("bound", match=[{"application": "never"}]), OTHER])
    for port, app, expected in ((first, "one", "other"), (second, "two", "listener"), (third, "three", "bound")):
        client = tidy(RawClient(port))
        client.startup(app=app)
        assert lane_of(weir, app) == expected


def test_replication_rule(make_weir, cluster):
    weir = make_weir(lanes=[lane("replication", match=[{"replication": True}], protected=True, quota=2), OTHER])
    walsender = subprocess.Popen([str(cluster.bin / "psql"), "-XAt", f"host=127.0.0.1 port={weir.port} user=repl dbname=odoo"
                                  " replication=database application_name=walsender"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        assert lane_of(weir, "walsender") == "replication"
        assert weir.lane("replication")["slots"] == 1
        assert weir.usage()["own_slots"] == 0, "replication links are another pool"
    finally:
        walsender.communicate(timeout=30)


def test_what_postgresql_takes_for_false_is_no_replication(make_weir, tidy):
    weir = make_weir(lanes=[lane("replication", match=[{"replication": True}], protected=True, quota=2), OTHER])
    for n, word in enumerate(["fals", "F", "n", "of", "0"]):
        client = tidy(weir.raw(f"no-{n}", replication=word))
        assert client.ok("select 1") == [["1"]]
        assert lane_of(weir, f"no-{n}") == "other", word
    assert weir.usage()["own_slots"] == 5


@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
def test_process_rule(make_weir, cluster, unix):
    weir = make_weir(lanes=[lane("cron", match=[{"process": "odoo: WorkerCron*"}]),
                            lane("web", match=[{"process": "odoo: WorkerHTTP*"}]), OTHER])
    for title, app, expected in (("odoo: WorkerCron 836 odoo17", "p1", "cron"), ("odoo: WorkerHTTP 824", "p2", "web"),
                                 ("psql", "p3", "other")):
        worker = subprocess.Popen(["bash", "-c", f"exec -a '{title}' {cluster.bin / 'psql'} -XAt"], stdin=subprocess.PIPE,
                                  stdout=subprocess.DEVNULL, env=weir.libpq_env(app, unix=unix))
        try:
            row = weir.client(app)
            assert row["lane"] == expected, row
            assert str(worker.pid) in str(row["process"]) and title in row["process"]
        finally:
            worker.communicate(timeout=30)


def test_listen_moves_a_link_for_as_long_as_it_listens(make_weir, tidy):
    weir = make_weir(lanes=[lane("live", match=[{"statement": "listen imbus"}], quota=1), lane("web"), OTHER])
    first, second = tidy(weir.raw("web1")), tidy(weir.raw("web2"))
    for client, app in ((first, "web1"), (second, "web2")):
        client.ok("LISTEN   imbus")
        client.ok("select 1")
        assert lane_of(weir, app) == "live"
    assert weir.lane("live")["slots"] == 2 and weir.lane("live")["state"] == "over", "a move never waits"
    for client, app in ((first, "web1"), (second, "web2")):
        client.ok("discard all")
        client.ok("select 1")
        assert lane_of(weir, app) == "web"


def test_another_statement_moves_a_link_for_its_transaction(make_weir, tidy):
    weir = make_weir(lanes=[lane("cron", match=[{"statement": "*from ir_cron*"}]), lane("web"), OTHER])
    client = tidy(weir.raw("web1"))
    client.ok("begin")
    client.query("select * from ir_cron")
    assert lane_of(weir, "web1") == "cron"
    client.query("rollback")
    client.ok("select 1")
    assert lane_of(weir, "web1") == "web"
    client.query("select * from ir_cron")
    client.ok("begin")
    assert lane_of(weir, "web1") == "web"


def test_application_name_reclassifies_at_a_transaction_boundary(make_weir, tidy):
    weir = make_weir(lanes=[lane("special", match=[{"application": "special*"}], protected=True), lane("cron"), lane("web"), OTHER])
    client = tidy(weir.raw("web1"))
    client.ok("begin")
    client.ok("set application_name = 'cron1'")
    client.ok("select 1")
    assert weir.clients()[0]["lane"] == "web"
    client.ok("commit")
    client.ok("select 1")
    assert weir.clients()[0]["lane"] == "cron"
    client.ok("set application_name = 'special1'")
    client.ok("select 1")
    assert weir.clients()[0]["lane"] != "special", "nobody talks himself into a protected lane"


def test_applications_are_normalised(make_weir, tidy):
    weir = make_weir(applications=[{"match": "odoo-*", "name": "odoo", "quota": 9}])
    for app in ("odoo-1", "odoo-22", "psql"):
        tidy(weir.raw(app))
    rows = {r["application"]: int(r["slots"]) for r in weir.admin("SHOW APPLICATIONS")}
    assert rows["odoo"] == 2 and rows["psql"] == 1


# -- observe -----------------------------------------------------------------------------------------------------

def test_observe_records_and_refuses_nobody(make_weir, tidy):
    weir = make_weir(mode="observe", lanes=[lane("web", quota=2, wait_timeout="500ms"), OTHER])
    for _ in range(5):
        assert tidy(weir.raw("web")).ok("select 1") == [["1"]]
    assert weir.lane("web")["slots"] == 5
    assert weir.metric("pgweir_refusals_total", lane="web", reason="lane_full") >= 1 \
        or weir.lane("web")["state"] == "over"
