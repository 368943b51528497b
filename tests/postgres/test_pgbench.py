"""pgbench in all three query modes, reconnecting too, with no error at all."""

import os
import re
import subprocess

import pytest

from harness import DIRECT, eventually, lane

SECONDS = os.environ.get("PGWEIR_PGBENCH_SECONDS", "3")


@pytest.fixture(scope="module")
def weir(make_module_weir, cluster):
    cluster.sql("create database bench owner odoo")
    env = {**os.environ, "PGHOST": str(cluster.sockets), "PGPORT": str(cluster.port), "PGUSER": "odoo", "PGDATABASE": "bench"}
    subprocess.run([str(cluster.bin / "pgbench"), "-i", "-q", "-s", "2"], env=env, check=True, capture_output=True, timeout=120)
    return make_module_weir(lanes=[lane("bench", match=[{"database": "bench"}], quota=20, priority=1), lane("other", default=True, quota=5)])


# One script is enough over the Unix socket.
@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
@pytest.mark.parametrize("script, unix", [(["-S"], False), ([], False), (["-S", "-C"], False), (["-S"], True)],
                         ids=["select", "tpcb", "reconnect", "select-unix"])
def test_pgbench(weir, mode, script, unix):
    done = subprocess.run([str(weir.cluster.bin / "pgbench"), "-n", "-M", mode, "-c", "8", "-j", "2", "-T", SECONDS, *script],
                          env=weir.libpq_env("pgbench", dbname="bench", unix=unix), text=True, capture_output=True, timeout=80)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr.lower() and "abort" not in done.stderr.lower(), done.stderr
    assert "number of failed transactions: 0 " in done.stdout, done.stdout
    assert int(re.search(r"actually processed: (\d+)", done.stdout)[1]) > 20, done.stdout


def test_nothing_left_at_the_end(weir, cluster):
    eventually(lambda: cluster.count() == (0 if DIRECT else 1), what="only the monitor's backend")
    if not DIRECT:
        eventually(weir.drained)
        assert weir.metric("pgweir_refusals_total") == 0
        assert weir.metric("pgweir_transactions_total", lane="bench") > 100
