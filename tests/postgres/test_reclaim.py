"""Idle links of many databases share a small quota: the oldest idle one makes room, and no request fails."""

import threading
import time

import psycopg2
import pytest

from harness import eventually, lane, never
from test_lanes import queue_one

pytestmark = [pytest.mark.weir, pytest.mark.usefixtures("nobody_is_left")]

DATABASES = 30
QUOTA = 20
RECLAIM_S = 0.1


@pytest.fixture(scope="module", autouse=True)
def databases(cluster):
    for i in range(DATABASES):
        cluster.sql(f"create database d{i} template template0 owner odoo")
    return [f"d{i}" for i in range(DATABASES)]


def lanes(**more):
    return [lane("web", **{"quota": QUOTA, "wait_timeout": "60s", "reclaim_idle_after": f"{int(1000 * RECLAIM_S)}ms", **more}),
            lane("other", default=True)]


class Pool:
    """A pool as Odoo's: keeps every link, checks with DISCARD ALL on borrowing, and replaces a dead one unseen."""

    def __init__(self, weir):
        self.weir = weir
        self.idle = {}
        self.replaced = 0
        self.lock = threading.Lock()

    def request(self, database):
        with self.lock:
            conn = self.idle.pop(database, None)
        while (conn := conn or self.weir.connect("web", dbname=database)) and not self.transaction(conn, database):
            conn.close()
            conn = None
        with self.lock:
            old = self.idle.pop(database, None)
            self.idle[database] = conn
        if old:
            old.close()

    def transaction(self, conn, database):
        """Whether the link is still there for one."""
        try:
            conn.autocommit = True
            asked = time.monotonic()
            conn.cursor().execute("DISCARD ALL")
            conn.autocommit = False
        except psycopg2.OperationalError:
            self.replaced += 1
            return False
        try:
            with conn.cursor() as cur:
                cur.execute("select current_database()")
                assert cur.fetchone() == (database,)
            conn.commit()
            return True
        except psycopg2.OperationalError:
            # Odoo would fail here. It has a minute; who sleeps over his tenth of a second sits idle and may be closed.
            if time.monotonic() - asked < RECLAIM_S:
                raise
            return False

    def close(self):
        for conn in self.idle.values():
            conn.close()


def test_thirty_databases_on_twenty_slots(make_weir, cluster, databases, tidy):
    weir = make_weir(lanes=lanes())
    pool = tidy(Pool(weir))
    sampler = cluster.sampler("web")
    failures, done = [], [0]

    def user(offset):
        for turn in range(3):
            for i in range(DATABASES):
                try:
                    pool.request(databases[(i * 7 + offset * 11 + turn) % DATABASES])
                    done[0] += 1
                except (psycopg2.Error, AssertionError) as error:
                    failures.append(repr(error))

    users = [threading.Thread(target=user, args=(n,), daemon=True) for n in range(4)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join(80)
    assert not failures, failures[:3]
    assert done[0] == 4 * 3 * DATABASES
    assert pool.replaced > 0, "nothing had to be reclaimed: no test"
    assert sampler.stop().maximum <= QUOTA


def sampled(weir):
    """Waits until the monitor has looked: the second sample that comes from now on was asked for behind the first."""
    for _ in range(2):
        now = time.monotonic()
        eventually(lambda: time.monotonic() - weir.usage()["sampled_ms_ago"] / 1000 > now)


def test_who_is_never_reclaimed(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes(quota=4, wait_timeout="60s"))
    listening, locking, inside, idle = (tidy(weir.raw(f"web{i}")) for i in range(4))
    listening.ok("listen something")
    locking.ok("select pg_advisory_lock(42)")
    inside.ok("begin")
    idle.ok("select 1")
    sampled(weir)
    first, login = queue_one(weir, "web-first")
    tidy(first)
    login.result(30)
    assert idle.error()["C"] == "57P01" and idle.at_eof()
    first.ok("begin")
    second, login2 = queue_one(weir, "web-second")
    never(login2.done, 1.5)
    for client in (listening, locking, inside, first):
        assert client.ok("select 1") == [["1"]]
    second.close()


def test_the_oldest_goes_first_and_only_when_somebody_waits(make_weir, tidy):
    weir = make_weir(lanes=lanes(quota=3))
    clients = []
    for i in range(3):
        clients.append(tidy(weir.raw(f"web{i}")))
        clients[-1].ok("select 1")
        time.sleep(0.05)
    never(lambda: weir.lane("web")["slots"] != 3, 1, what="a link closed although nobody waits")
    clients[0].ok("select 1")  # now 1 is the oldest
    tidy(weir.raw("web3"))
    assert clients[1].error()["C"] == "57P01"
    assert clients[0].ok("select 1") and clients[2].ok("select 1")


def test_a_better_lane_takes_idle_links_of_a_worse_one(make_weir, tidy):
    weir = make_weir(applications=[{"match": "*", "name": "all", "quota": 3}],
                     lanes=[lane("web", quota=3, priority=0, wait_timeout="60s"),
                            lane("batch", quota=3, priority=5, reclaim_idle_after="100ms", wait_timeout="60s"), lane("other", default=True, quota=1)])
    batch = [tidy(weir.raw("batch")) for _ in range(3)]
    for client in batch:
        client.ok("select 1")
    tidy(weir.raw("web"))
    eventually(lambda: weir.lane("batch")["slots"] == 2)
