"""A storm of everything at once: pgweir's counts against PostgreSQL's own, and no drift at the end."""

import os
import random
import threading
import time

import psycopg2
import pytest

from harness import ServerError, eventually, lane
from harness import wire
from harness.cluster import PASSWORD

pytestmark = pytest.mark.weir

SECONDS = float(os.environ.get("PGWEIR_STORM_SECONDS", "20"))
QUOTAS = {"web": 15, "cron": 6, "batch": 8}


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 60}


def lanes():
    leaks = {"warn": "50ms", "reset": "150ms", "when": "always", "action": "rollback"}
    return [lane("web", quota=QUOTAS["web"], reserve=5, priority=0, wait_timeout="5s", idle_in_transaction=leaks, reclaim_idle_after="50ms"),
            lane("cron", quota=QUOTAS["cron"], priority=4, freeze=True, wait_timeout="3s", idle_in_transaction={**leaks, "action": "disconnect"},
                 shed_above=70, shed_below=50, shed_dwell="200ms"),
            lane("batch", quota=QUOTAS["batch"], priority=8, wait_timeout="500ms", max_waiting=5, connect_rate=30, on_shed="reject",
                 shed_above=75, shed_below=60, shed_dwell="200ms"),
            lane("other", default=True, quota=5)]


class Actor:
    """One client at a time, each living and dying in a way of its own."""

    def __init__(self, weir, name, seed, stop):
        self.weir, self.name, self.stop = weir, name, stop
        self.random = random.Random(seed)
        self.lives = 0
        self.crossed = []

    def run(self):
        while not self.stop.is_set():
            try:
                self.live()
            except (ServerError, psycopg2.Error, OSError, EOFError, AssertionError) as error:
                if "crossed" in str(error):
                    self.crossed.append(str(error))
            self.lives += 1

    def live(self):
        kind = self.random.choice(["short", "short", "short", "pause at login", "kill active", "cancel", "leak", "hang up", "password", "idle", "limit", "stall"])
        if kind == "password":
            conn = self.weir.connect(self.name, user="u_scram", password=self.random.choice([PASSWORD, "wrong"]))
            conn.close()
            return
        client = self.weir.socket(timeout=8)
        try:
            self.play(kind, client)
        finally:
            client.reset() if self.random.random() < 0.5 else client.close()

    def play(self, kind, client):
        rnd = self.random
        if kind == "hang up":
            packet = wire.startup_packet("odoo", "postgres", app=self.name)
            client.send(packet[:rnd.randint(0, len(packet))])
            return
        user = {"pause at login": "u_md5", "limit": "limited"}.get(kind, "odoo")
        if kind == "pause at login":
            client.send(wire.startup_packet(user, "postgres", app=self.name))
            client.receive()
            self.stop.wait(rnd.random() * 0.3)
            return
        client.startup(user, app=self.name)
        if kind in ("short", "limit"):
            for i in range(rnd.randint(1, 10)):
                tag = rnd.randint(0, 1 << 30)
                got = client.ok(f"select {tag}")
                assert got == [[str(tag)]], f"crossed {got} {tag}"
            client.send(wire.TERMINATE)
        elif kind == "kill active":
            client.send(wire.query("select pg_sleep(30)"))
            self.stop.wait(rnd.random() * 0.1)
        elif kind == "cancel":
            client.send(wire.query("select pg_sleep(5)"))
            self.stop.wait(0.02)
            client.cancel(wait=rnd.random() < 0.5)
            client.until("Z")
        elif kind == "leak":
            client.ok("begin")
            self.stop.wait(rnd.random() * 0.6)
            client.query("select 1")
            client.query("rollback")
        elif kind == "idle":
            self.stop.wait(rnd.random() * 0.5)
        elif kind == "stall":
            client.send(wire.extended("select 1", sync=False), wire.FLUSH)
            client.until("C")
            self.stop.wait(rnd.random() * 0.4)


def operator(weir, stop, seed):
    """Freezes, resumes, sets quotas, kills and resets, all the time."""
    rnd = random.Random(seed)
    while not stop.wait(rnd.random() * 0.4):
        try:
            ids = [row["id"] for row in weir.clients()] or [0]
            weir.admin(rnd.choice(["FREEZE", "RESUME ALL", "RESUME ALL", "RESUME LANE cron OVER '1 s'", "PAUSE LANE batch REJECT FOR '200 ms'",
                                   f"SET LANE web quota = {rnd.randint(5, 15)}", f"KILL CLIENT {rnd.choice(ids)}", f"RESET CLIENT {rnd.choice(ids)}",
                                   f"CANCEL CLIENT {rnd.choice(ids)}", "RELOAD", "DRAIN LANE batch"]))
        except psycopg2.Error:
            pass


def bypass(cluster, stop, seed):
    """Direct connections swing usage over the thresholds and back."""
    rnd = random.Random(seed)
    held = []
    while not stop.wait(rnd.random() * 0.5):
        if rnd.random() < 0.5 and len(held) < 25:
            for _ in range(rnd.randint(1, 6)):
                try:
                    held.append(cluster.direct(user="batch", app="bypass"))
                except psycopg2.OperationalError:
                    break
        else:
            for conn in held[:rnd.randint(1, 12)]:
                conn.close()
                held.remove(conn)
    for conn in held:
        conn.close()


@pytest.mark.timeout(SECONDS + 120)
def test_counts_agree_through_a_storm(make_weir, cluster):
    weir = make_weir(lanes=lanes(), limits={"max_resets_per_minute": 100_000})
    fds, stop = weir.fds(), threading.Event()
    seed = int(os.environ.get("PGWEIR_STORM_SEED", "0")) or random.randrange(1 << 30)
    print("PGWEIR_STORM_SEED =", seed)
    actors = [Actor(weir, name, seed + i, stop) for i, name in enumerate(["web"] * 14 + ["cron"] * 8 + ["batch"] * 10)]
    threads = [threading.Thread(target=a.run, daemon=True) for a in actors]
    threads += [threading.Thread(target=operator, args=(weir, stop, seed), daemon=True),
                threading.Thread(target=bypass, args=(cluster, stop, seed), daemon=True)]
    sampler = cluster.sampler()
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.2)
        assert weir.process.poll() is None, "pgweir died"
        for name, row in weir.lanes().items():
            assert row["slots"] >= 0 and row["waiting"] >= 0, (name, row)
    stop.set()
    for thread in threads:
        thread.join(30)
    sampler.stop()
    assert sum(a.lives for a in actors) > 50
    assert not [c for a in actors for c in a.crossed]
    for name, quota in QUOTAS.items():
        assert sampler.by_app.get(name, 0) <= quota, f"{name}: {sampler.by_app}"
    weir.admin("RESUME ALL")
    eventually(lambda: cluster.count() == 1, timeout=30, what="no backend but the monitor's")
    eventually(weir.drained, timeout=30, what="no slot counted")
    eventually(lambda: (weir.usage()["own_slots"], weir.usage()["connections"]) == (0, 1), timeout=10)
    eventually(lambda: weir.clients() == [], timeout=10)
    eventually(lambda: weir.fds() <= fds + 4, timeout=20, what="no descriptor leaked")
    assert "panicked" not in weir.log()
    for name in QUOTAS:
        weir.raw(name).close()
