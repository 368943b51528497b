"""Shedding: usage is read from PostgreSQL, with two thresholds, a dwell, and a rule for the blind."""

import datetime

import psycopg2
import pytest

from harness import ServerError, background, eventually, holds, lane
from test_lanes import queue_one, refused

pytestmark = [pytest.mark.weir, pytest.mark.usefixtures("nobody_is_left")]

MAX = 40


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": MAX}


@pytest.fixture
def make_weir(make_weir):
    """One whose monitor may sleep for a while without a lane being shed for that."""
    return lambda **more: make_weir(**{**more, "monitor": {"stale_after": "60s", **more.get("monitor", {})}})


@pytest.fixture
def fill(cluster):
    """Opens or closes direct connections until there are `n`."""
    conns = []

    def to(n):
        while len(conns) > n:
            conns.pop().close()
        while len(conns) < n:
            conns.append(cluster.direct(user="batch", app="bypass"))
        eventually(lambda: cluster.count("bypass") == n)

    yield to
    to(0)


def lanes(**cron):
    return [lane("web", quota=30, priority=0, reserve=2),
            lane("cron", quota=20, priority=5, **{"shed_above": 75, "shed_below": 65, "shed_dwell": "500ms", "wait_timeout": "5m", **cron}),
            lane("reports", quota=20, priority=6, shed_above=75, shed_below=65, shed_dwell="500ms", on_shed="reject"),
            lane("other", default=True, quota=10)]


def state(weir, name):
    return weir.lane(name)["state"]


def test_direct_connections_shed_cron_and_not_web(make_weir, fill, tidy):
    weir = make_weir(lanes=lanes())
    usable = weir.usage()["usable"]
    established = tidy(weir.raw("cron-old"))
    assert state(weir, "cron") == "open"
    fill(int(usable * 0.8))
    eventually(lambda: state(weir, "cron") == state(weir, "reports") == "shedding", what="shedding")
    # The sample that began the shedding may have seen a part of them.
    usage = eventually(lambda: found if (found := weir.usage())["bypass"] >= int(usable * 0.8) else None, what="all of them seen")
    assert usage["percent"] >= 75

    waiting, login = queue_one(weir, "cron-new")
    tidy(waiting)
    eventually(lambda: weir.lane("cron")["waiting"] == 1)
    fields = refused(weir, "reports")
    assert "nearly full" in fields["M"]
    assert weir.metric("pgweir_refusals_total", lane="reports", reason="shed") == 1
    assert state(weir, "web") == "open"
    tidy(weir.raw("web"))
    assert established.ok("select 1") == [["1"]], "new links only"

    # Between the thresholds: it stays as it is.
    fill(int(usable * 0.70) - 3)
    eventually(lambda: 65 <= weir.usage()["percent"] < 75)
    holds(lambda: state(weir, "cron") == "shedding" and not login.done(), 1.5)

    fill(int(usable * 0.4))
    eventually(lambda: state(weir, "cron") == state(weir, "reports") == "open", what="recovery")
    login.result(30)
    tidy(weir.raw("reports"))

    # And up to between the thresholds again: still open.
    fill(int(usable * 0.70) - 5)
    eventually(lambda: 65 <= weir.usage()["percent"] < 75)
    holds(lambda: state(weir, "cron") == "open", 1)
    assert weir.timeline_has("shed", "cron") and weir.timeline_has("unshed", "cron")


def test_dwell(make_weir, fill):
    weir = make_weir(lanes=lanes(shed_dwell="4s"))
    fill(30)
    eventually(lambda: state(weir, "cron") == "shedding")
    fill(2)
    eventually(lambda: state(weir, "cron") == state(weir, "reports") == "open")
    # By pgweir's own clock: whoever looks may come late.
    at = {(row["event"], row["lane"]): datetime.datetime.fromisoformat(row["at"].replace("Z", "+00:00")).timestamp()
          for row in weir.admin("SHOW TIMELINE") if row["event"] in ("shed", "unshed")}
    assert at["unshed", "cron"] - at["shed", "cron"] >= 3.9, at
    assert at["unshed", "reports"] - at["shed", "reports"] >= 0.4, at
    assert at["unshed", "reports"] < at["unshed", "cron"] or at["unshed", "reports"] - at["shed", "reports"] >= 3.9, at


def test_a_burst_between_samples_does_not_overshoot(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes(), monitor={"interval": "10m", "stale_after": "1h"})
    usable = weir.usage()["usable"]
    waiting = [queue_one(weir, "cron") for _ in range(20)]
    waiting += [queue_one(weir, "web") for _ in range(12)]
    for client, _ in waiting:
        tidy(client)
    eventually(lambda: state(weir, "cron") == "shedding", what="own slots count at once")
    before = weir.lane("cron")["slots"]
    late, login = queue_one(weir, "cron")
    tidy(late)
    holds(lambda: not login.done(), 0.5)
    assert weir.lane("cron")["slots"] <= before
    assert cluster.count() <= usable


def test_wait_timeout_of_a_shed_lane(make_weir, fill):
    weir = make_weir(lanes=lanes(wait_timeout="1s"))
    fill(32)
    eventually(lambda: state(weir, "cron") == "shedding")
    refused(weir, "cron")
    assert weir.metric("pgweir_refusals_total", lane="cron", reason="shed") == 1


def test_a_blind_monitor_sheds_lanes_with_a_threshold_only(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes(), monitor={"interval": "200ms", "stale_after": "1s"})
    try:
        cluster.sql("alter role pgweir nologin")
        cluster.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'pgweir'")
        eventually(lambda: state(weir, "cron") == "shedding", what="shedding without data")
        assert state(weir, "web") == "open"
        tidy(weir.raw("web"))
        refused(weir, "reports")
        assert weir.metric("pgweir_refusals_total", lane="reports", reason="monitor_stale") == 1
    finally:
        cluster.sql("alter role pgweir login")
    eventually(lambda: state(weir, "cron") == "open", timeout=60, what="recovery")
    assert weir.timeline_has("monitor_stale") and weir.timeline_has("monitor_ok")


def test_a_monitor_that_sees_only_itself_is_an_error(make_weir, fill):
    fill(30)
    weir = make_weir(lanes=lanes(), monitor={"user": "weak_monitor", "stale_after": "1s"}, wait=False)
    eventually(lambda: "pg_read_all_stats" in weir.log() or "pg_monitor" in weir.log(), what="a word about the missing right")
    eventually(lambda: state(weir, "cron") == "shedding", what="no low reading")


def test_usage_counts_own_slots_and_bypass_once(make_weir, cluster, fill, tidy):
    weir = make_weir()
    fill(7)
    for _ in range(5):
        tidy(weir.raw("web"))
    # The monitor's own backend is bypass.
    eventually(lambda: (weir.usage()["own_slots"], weir.usage()["bypass"]) == (5, 8))
    usage = weir.usage()
    assert usage["connections"] == 13 and usage["max_connections"] == MAX
    assert abs(usage["percent"] - 100 * 13 / usage["usable"]) < 0.6
    assert abs(usage["percent_of_max"] - 100 * 13 / MAX) < 0.6
    holds(lambda: weir.usage()["connections"] == 13, 1)
    # Whoever asks PostgreSQL is one more while he does.
    assert cluster.count() == 13
    assert usage["usable"] == MAX - int(cluster.value("show superuser_reserved_connections"))


def test_observe_sheds_on_paper_only(make_weir, fill, tidy):
    weir = make_weir(mode="observe", lanes=lanes())
    fill(30)
    eventually(lambda: weir.timeline_has("shed", "cron"), what="the decision on record")
    tidy(weir.raw("cron"))
    tidy(weir.raw("reports"))
    # In words that leave no doubt that nobody was stopped.
    assert weir.timeline_has("shed", "cron", "would shed: usage "), weir.timeline()
    row = weir.lane("cron")
    assert (row["state"], row["reason"].split(" usage")[0]) == ("shedding", "would shed:"), row
    assert "would be shed: " in weir.cli("status").stdout.splitlines()[0]


def test_psycopg2_held_by_shedding_simply_takes_longer(make_weir, fill):
    weir = make_weir(lanes=lanes())
    fill(32)
    eventually(lambda: state(weir, "cron") == "shedding")
    connecting = background(weir.connect, "cron")
    eventually(lambda: weir.lane("cron")["waiting"] == 1)
    fill(3)
    conn = connecting.result(40)
    assert isinstance(conn, psycopg2.extensions.connection)
    conn.close()


def test_batch_gives_back_at_the_end_of_its_transactions_what_strangers_took_of_a_reserve(make_weir, cluster, fill, tidy):
    cron = {"shed_above": 75, "shed_below": 65, "shed_dwell": "500ms", "reclaim_idle_after": "1h"}
    weir = make_weir(lanes=lanes(**cron))
    works, listens = tidy(weir.raw("cron-works")), tidy(weir.raw("cron-listens"))
    listens.ok("listen something")
    works.ok("begin")
    works.ok("select 1")
    # Everything that pgweir may have is taken but for a slot less than web's reserve wants.
    budget = weir.usage()["usable"] - int(next(r["value"] for r in weir.admin("SHOW CONFIG") if r["key"] == "upstream.headroom"))
    # Beside our own two, and the monitor's own.
    strangers = int(budget) - 2 - 1
    fill(strangers)
    eventually(lambda: (weir.usage()["own_slots"], weir.usage()["bypass"]) == (2, strangers + 1), what="all of them seen, and nobody else")
    client, login = queue_one(weir, "web")
    tidy(client)
    holds(lambda: not login.done(), 1, what="waiting: a transaction is never touched")
    assert works.ok("select 1") == [["1"]]
    works.ok("commit")
    login.result(40)
    with pytest.raises((ServerError, ConnectionError, EOFError)):
        works.ok("select 1")
    assert listens.ok("select 1") == [["1"]], "whoever listens is left alone"
    eventually(lambda: weir.timeline_has("reclaim", "cron"))
