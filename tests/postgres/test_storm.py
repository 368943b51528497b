"""A storm of everything at once: pgweir's counts against PostgreSQL's own, and no drift at the end."""

import os
import random
import time

import pytest

from harness import eventually, lane
from harness.actors import Actor, Crowd, bypass, operator

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


@pytest.mark.timeout(SECONDS + 240)
def test_counts_agree_through_a_storm(make_weir, cluster):
    weir = make_weir(lanes=lanes(), limits={"max_resets_per_minute": 100_000})
    fds, crowd = weir.fds(), Crowd()
    seed = int(os.environ.get("PGWEIR_STORM_SEED", "0")) or random.randrange(1 << 30)
    print("PGWEIR_STORM_SEED =", seed)
    actors = [Actor(weir, name, seed + i, crowd.stop) for i, name in enumerate(["web"] * 14 + ["cron"] * 8 + ["batch"] * 10)]
    sampler = cluster.sampler()
    for actor in actors:
        crowd.add(actor.run)
    crowd.add(operator, weir, crowd.stop, seed)
    crowd.add(bypass, cluster, crowd.stop, seed)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.2)
        assert weir.process.poll() is None, "pgweir died"
        for name, row in weir.lanes().items():
            assert row["slots"] >= 0 and row["waiting"] >= 0, (name, row)
    crowd.end(timeout=60)
    sampler.stop()
    assert sum(a.lives for a in actors) > 50
    assert not [c for a in actors for c in a.crossed]
    for name, quota in QUOTAS.items():
        assert sampler.by_app.get(name, 0) <= quota, f"{name}: {sampler.by_app}"
    weir.admin("RESUME ALL")
    eventually(lambda: cluster.count() == 1, timeout=60, what="no backend but the monitor's")
    eventually(weir.drained, timeout=30, what="no slot counted")
    eventually(lambda: (weir.usage()["own_slots"], weir.usage()["connections"]) == (0, 1), timeout=30)
    eventually(lambda: weir.clients() == [], timeout=30)
    eventually(lambda: weir.fds() <= fds + 4, timeout=30, what="no descriptor leaked")
    assert "panicked" not in weir.log()
    # Shed for the bypass of the last moment, a lane is so for its dwell.
    eventually(lambda: all(row["state"] == "open" for row in weir.lanes().values()), timeout=30, what="all lanes open")
    for name in QUOTAS:
        weir.raw(name).close()
