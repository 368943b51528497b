"""db_replica_host: Odoo 18 and later read from a standby over read-only cursors. The standby has connections of its own, and so a pgweir of
its own; it streams from its primary through the primary's pgweir."""

import shutil
import subprocess

import psycopg2
import pytest

from harness import Cluster, Weir, eventually, odoo_actors as odoo
from harness.cluster import as_server_user
from harness.odoo_actors import shipped

pytestmark = pytest.mark.weir

# The times of leaks, where that is what it is about: elsewhere nobody may be taken for one.
FASTER = 300


@pytest.fixture(scope="module")
def primary(cluster, make_module_weir):
    """Odoo's database, and the pgweir in front of it."""
    odoo.tables(cluster)
    return shipped(make_module_weir, "odoo.toml")


@pytest.fixture(scope="module")
def standby(primary, template):
    """A copy made by pg_basebackup through pgweir, which follows the primary through pgweir."""
    cluster = Cluster(template=template)
    shutil.rmtree(cluster.data)
    copy = [cluster.bin / "pg_basebackup", "-D", cluster.data, "-R", "-X", "stream", "-c", "fast",
            "-d", f"host=127.0.0.1 port={primary.port} user=repl application_name=standby"]
    try:
        done = subprocess.run(as_server_user(copy), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/", timeout=80)
        assert done.returncode == 0, done.stdout
        yield cluster.start()
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def at_standby(standby):
    """Starts pgweirs in front of the standby."""
    made = []

    def make(start=True, **config):
        made.append(Weir(standby, **config))
        return made[-1].start() if start else made[-1]

    yield make
    for weir in made:
        weir.close()


@pytest.fixture(scope="module")
def replica(at_standby):
    """The standby's pgweir."""
    return shipped(at_standby, "odoo.toml")


def cursor(weir, readonly):
    """A connection as Odoo's pools make them: REPEATABLE READ, and READ ONLY for the replica's."""
    conn = weir.connect("odoo-1000", dbname="odoo")
    conn.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_REPEATABLE_READ)
    conn.set_session(readonly=readonly)
    return conn


def rows(conn, sql):
    """What a statement brings; the transaction stays open."""
    with conn.cursor() as cur:
        cur.execute(sql)
        return cur.fetchall() if cur.description else None


def test_the_standby_streams_in_the_primarys_lane_for_replication(primary, standby):
    streams = eventually(lambda: [row for row in primary.clients("standby") if row["lane"] == "replication"], what="the standby's stream")
    assert len(streams) == 1
    assert primary.usage()["own_slots"] == 0, "walsenders are another pool"
    assert standby.value("select pg_is_in_recovery()") is True


def test_each_server_has_its_own_users_and_figures(primary, replica, tidy):
    reading, writing = tidy(cursor(replica, True)), tidy(cursor(primary, False))
    assert rows(reading, odoo.SIGNALING) and rows(writing, odoo.SIGNALING)
    row = replica.client("odoo-1000")
    assert row["lane"] == "web" and row["state"] == "idle_in_transaction"
    eventually(lambda: replica.lane("web")["slots"] == primary.lane("web")["slots"] == 1)
    eventually(lambda: replica.usage()["max_connections"] == primary.usage()["max_connections"], what="the standby's monitor")
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        rows(reading, "update res_partner set name = name")
    reading.rollback()
    rows(writing, "update res_partner set name = 'changed' where id = 1")
    writing.commit()

    def arrived():
        found = rows(reading, "select name from res_partner where id = 1")
        reading.rollback()
        return found == [("changed",)]
    eventually(arrived, what="replication")


def test_a_leak_on_the_standby_is_rolled_back_there(at_standby, tidy):
    """It blocks nobody, but its snapshot holds replay or vacuum up: after `cap` it goes."""
    replica = shipped(at_standby, "odoo.toml", FASTER)
    leak = tidy(cursor(replica, True))
    rows(leak, "select count(*) from res_partner")
    eventually(lambda: replica.lane("web")["resets"] == 1, what="a reset after cap")
    with pytest.raises(psycopg2.errors.SerializationFailure):
        rows(leak, "select 1")
    leak.rollback()
    assert rows(leak, "select 1") == [(1,)]


def test_who_finds_the_standby_full_goes_on_at_the_primary(primary, replica, tidy):
    """Odoo asks the standby again only after 20 minutes: so its lane should hold rather than refuse, and a refusal fails no request."""
    replica.admin("PAUSE LANE web REJECT REASON 'the standby is rebuilt'")
    try:
        with pytest.raises(psycopg2.OperationalError, match="pgweir: "):
            cursor(replica, True)
        assert rows(tidy(cursor(primary, False)), "select count(*) from res_partner") == [(200,)]
    finally:
        replica.admin("RESUME LANE web")
