"""The pause switch: FREEZE, PAUSE, RESUME with and without a ramp, DRAIN; what is held and what never is."""

import re
import subprocess
import sys
import time

import psycopg2
import pytest

from harness import background, eventually, holds, lane
from harness import wire
from test_lanes import queue_one, refused

pytestmark = [pytest.mark.weir, pytest.mark.usefixtures("nobody_is_left")]


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 40}


@pytest.fixture
def make_weir(make_weir):
    """One whose monitor may sleep for a while without a lane being shed for that."""
    return lambda **more: make_weir(**{**more, "monitor": {"stale_after": "60s", **more.get("monitor", {})}})


@pytest.fixture(scope="module", autouse=True)
def ir_cron(cluster):
    cluster.sql("create table ir_cron (id int primary key, note text); insert into ir_cron values (1), (2);"
                "grant all on ir_cron to public", dbname="odoo")


def lanes(**cron):
    return [lane("admin", match=[{"user": "postgres"}], protected=True, quota=3),
            lane("cron", match=[{"application": "cron*"}, {"statement": "*from ir_cron*"}], quota=10, priority=5, freeze=True,
                 **{"shed_above": 75, "shed_below": 65, "wait_timeout": "1s", **cron}),
            lane("reports", quota=10, priority=6, freeze=True, on_pause="reject"),
            lane("web", quota=20, priority=0), lane("other", default=True, quota=10)]


def held(weir, app):
    return [row for row in weir.clients(app) if row["state"] == "held"]


def test_freeze_holds_new_transactions_and_lets_running_ones_finish(make_weir, tidy):
    weir = make_weir(lanes=lanes())
    running, idle, web = tidy(weir.raw("cron-running")), tidy(weir.raw("cron-idle")), tidy(weir.raw("web"))
    running.ok("begin")
    running.ok("select 1")
    weir.admin("FREEZE REASON 'rehearsal'")
    row = weir.lane("cron")
    assert row["state"] == "paused" and "admin" in str(row["paused_by"]) and "rehearsal" in str(row["reason"])
    assert weir.lane("reports")["state"] == "paused" and weir.lane("web")["state"] == "open"
    for i in range(5):
        assert running.ok(f"select {i}") == [[str(i)]], "inside its transaction nobody is paused"
    running.ok("commit")
    for client in (running, idle):
        client.send(wire.query("select 'later'"))
    eventually(lambda: held(weir, "cron-running") and held(weir, "cron-idle"))
    connect, login = queue_one(weir, "cron-new")
    tidy(connect)
    eventually(lambda: weir.lane("cron")["waiting"] == 3)
    assert web.ok("select 1") == [["1"]]
    tidy(weir.raw("web2")).ok("select 1")
    holds(lambda: weir.lane("cron")["waiting"] == 3, 2, what="held beyond wait_timeout")
    weir.admin("RESUME ALL")
    for client in (running, idle):
        assert [m.values for m in client.until("Z") if m.tag == "D"] == [["later"]]
    login.result(30)
    assert weir.timeline_has("freeze", "rehearsal") and weir.timeline_has("resume")


def test_freeze_survives_kill_9(make_weir, tidy):
    weir = make_weir(lanes=lanes())
    weir.admin("FREEZE REASON 'the incident'")
    weir.kill9()
    weir.start()
    row = weir.lane("cron")
    assert row["state"] == "paused" and "the incident" in str(row["reason"])
    client, login = queue_one(weir, "cron")
    tidy(client)
    holds(lambda: not login.done(), 1)
    weir.admin("RESUME LANE cron")
    login.result(30)
    weir.kill9()
    weir.start()
    assert weir.lane("cron")["state"] == "open" and weir.lane("reports")["state"] == "paused"


def test_freeze_for_a_while(make_weir, tidy):
    weir = make_weir(lanes=lanes())
    client = tidy(weir.raw("cron"))
    began = time.monotonic()
    weir.admin("FREEZE FOR '1500 ms'")
    assert client.ok("select 1") == [["1"]]
    assert time.monotonic() - began >= 1.5
    eventually(lambda: weir.lane("cron")["state"] == "open")


def test_freeze_spares_protected_lanes(make_weir, tidy):
    weir = make_weir(lanes=lanes())
    weir.admin("FREEZE")
    assert tidy(weir.raw("x", user="postgres")).ok("select 1") == [["1"]]
    assert weir.lane("admin")["state"] == "open"


def test_freeze_says_what_it_cannot_reach(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes())
    tidy(cluster.direct(user="batch", app="bypass"))
    eventually(lambda: weir.usage()["bypass"] >= 2)
    said = " ".join(str(line) for line in weir.admin("FREEZE"))
    assert re.search(r"bypass|direct|not.*through", said, re.I), said


def test_pause_with_reject(make_weir, tidy):
    weir = make_weir(lanes=lanes())
    inside = tidy(weir.raw("reports-in"))
    inside.ok("begin")
    established = tidy(weir.raw("reports-out"))
    weir.admin("PAUSE LANE reports")
    refused(weir, "reports", state="57P03")
    assert inside.ok("select 1") == [["1"]]
    established.send(wire.query("select 1"))
    assert established.error()["C"] == "57P03"
    weir.admin("PAUSE LANE web REJECT FOR '1 h'")
    refused(weir, "web", state="57P03")
    weir.admin("PAUSE LANE web REJECT FOR '500 ms'")
    eventually(lambda: weir.lane("web")["state"] == "open")
    tidy(weir.raw("web"))


def test_pause_hold_overrides_the_lanes_reject(make_weir, tidy):
    weir = make_weir(lanes=lanes())
    weir.admin("PAUSE LANE reports HOLD REASON 'closing the books'")
    connecting = background(weir.connect, "reports")
    eventually(lambda: weir.lane("reports")["waiting"] == 1)
    weir.admin("RESUME LANE reports")
    tidy(connecting.result(30))


def test_pause_hold_timeout(make_weir, tidy):
    weir = make_weir(lanes=lanes(pause_hold_timeout="1s"))
    client = tidy(weir.raw("cron"))
    weir.admin("PAUSE LANE cron")
    refused(weir, "cron", state="57P03")
    client.send(wire.query("select 1"))
    assert client.error()["C"] == "57P03"


def test_what_is_never_held(make_weir, cluster):
    weir = make_weir(lanes=lanes())
    client = weir.raw("cron")
    client.ok("select 1")
    weir.admin("FREEZE")
    for sql in ("ROLLBACK", "ABORT", "DISCARD ALL", "RESET ALL", "UNLISTEN *", " rollback ; ", "/* odoo */ DISCARD ALL"):
        assert client.query(sql)[-1].text == "I", sql
    assert wire.states(client.ask(wire.SYNC)) == [("Z", "I")]
    assert wire.states(client.ask(wire.close("S", "nosuch"), wire.FLUSH, wire.SYNC)) == [("Z", "I")]
    client.send(wire.TERMINATE)
    assert client.at_eof(30)
    eventually(lambda: cluster.count("cron") == 0)


@pytest.mark.parametrize("what", ["query", "extended", "function call", "multi"])
def test_what_is_held(make_weir, tidy, what):
    weir = make_weir(lanes=lanes())
    client = tidy(weir.raw("cron"))
    (oid,) = client.ok("select 'pg_backend_pid'::regproc::oid")[0]
    parts = {"query": [wire.query("select 1")], "extended": [wire.extended("select 1")],
             "function call": [wire.packet("F", int(oid).to_bytes(4, "big") + b"\0\0\0\0\0\0")],
             "multi": [wire.query("rollback; select 1")]}[what]
    weir.admin("PAUSE LANE cron")
    client.send(*parts)
    eventually(lambda: held(weir, "cron"))
    assert client.quiet(0.5)
    weir.admin("RESUME LANE cron")
    assert client.until("Z")[-1].text == "I"


def test_hang_up_while_held(make_weir, cluster):
    weir = make_weir(lanes=lanes())
    clients = [weir.raw("cron") for _ in range(3)]
    weir.admin("FREEZE")
    for client in clients:
        client.send(wire.query("select 1"), wire.query("select 2"))
    eventually(lambda: len(held(weir, "cron")) == 3)
    clients[0].close()
    clients[1].reset()
    clients[2].half_close()
    eventually(lambda: weir.lane("cron")["slots"] == 0)
    eventually(lambda: cluster.count("cron") == 0)


def test_drivers_held_by_a_pause_simply_wait(make_weir, tidy):
    weir = make_weir(lanes=lanes())
    two, three = tidy(weir.connect("cron2")), tidy(weir.connect3("cron3"))
    weir.admin("FREEZE")
    pending = [background(two.cursor().execute, "select 1"), background(three.execute, "select %s::int", (1,))]
    eventually(lambda: weir.lane("cron")["waiting"] == 2)
    weir.admin("RESUME ALL")
    for future in pending:
        future.result(30)


# -- resume over -------------------------------------------------------------------------------------------------

def test_resume_over_ramps(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes(wait_timeout="60s"))
    weir.admin("FREEZE")
    waiting = [queue_one(weir, "cron") for _ in range(10)]
    for client, _ in waiting:
        tidy(client)
    eventually(lambda: weir.lane("cron")["waiting"] == 10)
    began, seen = time.monotonic(), []
    weir.admin("RESUME LANE cron OVER '4 s'")
    # PostgreSQL is asked first: what it has may not be more than a quota that has only grown since.
    while True:
        real = cluster.count("cron")
        row = weir.lane("cron")
        if row["state"] == "open":
            break
        assert row["state"] == "ramping" and time.monotonic() - began < 60, row
        seen.append((row["quota"], row["slots"], real))
        time.sleep(0.1)
    assert time.monotonic() - began >= 4, "each step takes its time"
    assert [q for q, _, _ in seen] == sorted(q for q, _, _ in seen), "the quota only grows"
    assert all(slots <= quota and real <= quota for quota, slots, real in seen), seen
    for _, login in waiting:
        login.result(30)
    assert weir.lane("cron")["quota"] == 10
    # Whoever looks may miss some of the steps; the timeline does not.
    steps = [row["text"] for row in weir.admin("SHOW TIMELINE") if row["event"] == "ramp" and row["lane"] == "cron"]
    assert steps == [f"step {n} of 10: {n} of 10" for n in range(2, 11)] + ["open"], steps


def test_a_ramp_pauses_again_on_regrowth(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes())
    weir.admin("FREEZE")
    weir.admin("RESUME LANE cron OVER '10 min'")
    assert weir.lane("cron")["state"] == "ramping"
    for _ in range(30):
        tidy(cluster.direct(user="batch", app="bypass"))
    row = eventually(lambda: weir.lane("cron")["state"] == "paused" and weir.lane("cron"), what="paused again")
    assert "ramp" in str(row["paused_by"])
    assert weir.timeline_has("ramp", "cron")


def test_resume_all_over(make_weir):
    weir = make_weir(lanes=lanes())
    weir.admin("FREEZE")
    weir.admin("RESUME ALL OVER '2 s'")
    eventually(lambda: all(row["state"] == "open" for row in weir.lanes().values()), timeout=60)


# -- links that change lanes, and locks --------------------------------------------------------------------------

def test_a_pooled_link_that_served_cron_serves_a_user_next(make_weir, tidy):
    weir = make_weir(lanes=lanes())
    link = tidy(weir.raw("web", dbname="odoo"))
    link.ok("begin")
    link.ok("select id from ir_cron where id = 1 for no key update skip locked")
    assert weir.client("web")["lane"] == "cron"
    weir.admin("FREEZE")
    link.ok("select 1")
    link.ok("commit")
    assert link.ok("select 'a user'") == [["a user"]]
    assert weir.client("web")["lane"] == "web"
    link.send(wire.query("select * from ir_cron"))
    eventually(lambda: held(weir, "web"), what="cron's statement held")
    assert link.quiet(0.5)
    weir.admin("RESUME ALL")
    link.until("Z")


@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
def test_a_frozen_cron_jobs_second_link_does_not_keep_the_row_locked(make_weir, cluster, tidy, unix):
    # One process: the cron cursor holds the row in a transaction, the job works on a second link and must get through.
    weir = make_weir(lanes=lanes())
    worker = subprocess.Popen(
        [sys.executable, "-c", """if True:
            import sys, psycopg2
            dsn = sys.argv[1]
            cron, job = psycopg2.connect(dsn), psycopg2.connect(dsn)
            cron.cursor().execute("select id from ir_cron where id = 2 for no key update skip locked")
            print("locked", flush=True)
            sys.stdin.readline()
            job.cursor().execute("update ir_cron set note = 'worked' where id = 1")
            job.commit()
            job.cursor().execute("select 1")
            job.commit()
            cron.cursor().execute("update ir_cron set note = 'done' where id = 2")
            cron.commit()
            print("done", flush=True)
            sys.stdin.readline()
            cron.cursor().execute("select 'the next job'")
            print("next", flush=True)
        """, psycopg2.extensions.make_dsn(**weir.dsn("cron-worker", dbname="odoo", unix=unix))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout.readline() == "locked\n"
        weir.admin("FREEZE")
        worker.stdin.write("\n")
        worker.stdin.flush()
        line = background(worker.stdout.readline)
        assert line.result(30) == "done\n"
        assert cluster.value("select note from ir_cron where id = 2", dbname="odoo") == "done"
        worker.stdin.write("\n")
        worker.stdin.flush()
        line = background(worker.stdout.readline)
        eventually(lambda: held(weir, "cron-worker"), what="the next job held")
        assert not line.done()
        weir.admin("RESUME ALL")
        assert line.result(30) == "next\n"
    finally:
        worker.kill()
        worker.wait(30)


# -- drain -------------------------------------------------------------------------------------------------------

def test_drain_lane(make_weir, tidy):
    weir = make_weir(lanes=lanes())
    idle, busy, web = tidy(weir.raw("cron-idle")), tidy(weir.raw("cron-busy")), tidy(weir.raw("web"))
    busy.ok("begin")
    weir.admin("DRAIN LANE cron")
    assert idle.error()["C"] == "57P01" and idle.at_eof()
    assert busy.ok("select 1") == [["1"]]
    assert busy.query("commit")[-1].text == "I"
    assert busy.error()["C"] == "57P01" and busy.at_eof()
    assert web.ok("select 1") == [["1"]]
    eventually(lambda: weir.lane("cron")["slots"] == 0)


def test_unknown_lane(make_weir):
    weir = make_weir(lanes=lanes())
    for command in ("PAUSE LANE nosuch", "RESUME LANE nosuch", "DRAIN LANE nosuch", "SET LANE nosuch quota = 1"):
        with pytest.raises(psycopg2.Error, match="nosuch"):
            weir.admin(command)
