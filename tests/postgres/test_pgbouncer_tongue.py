"""PgBouncer's tongue on the console: held against a real PgBouncer's, and spoken with Debian's exporter, unmodified."""

import os
import shutil
import subprocess
import urllib.request

import psycopg2
import psycopg2.extras
import pytest

from harness import docs, eventually, free_port, lane
from harness import cluster as clusters
from harness import certs, wire
from harness.weir import ROOT

pytestmark = pytest.mark.weir

SHOWS = "VERSION STATS STATS_TOTALS POOLS DATABASES LISTS CONFIG CLIENTS SERVERS".split()
EXPORTER = shutil.which("prometheus-pgbouncer-exporter")
PGBOUNCER = shutil.which("pgbouncer") or ("/usr/sbin/pgbouncer" if os.path.exists("/usr/sbin/pgbouncer") else None)


@pytest.fixture(scope="module")
def weir(make_module_weir):
    return make_module_weir(lanes=[lane("admin", protected=True, quota=3), lane("web", quota=5, reserve=1, priority=0), lane("cron", freeze=True),
                                   lane("other", default=True, quota=20)])


@pytest.fixture(autouse=True)
def thawed(weir):
    yield
    weir.admin("RESUME")
    weir.admin("SET LANE web quota = 5")
    # The next test counts its own clients.
    eventually(weir.drained)
    eventually(lambda: not weir.clients())


@pytest.fixture(scope="module")
def bouncer(cluster, tmp_path_factory):
    if PGBOUNCER is None:
        pytest.skip("PgBouncer is not installed: script/setup test")
    base, port = cluster.base / "pgbouncer", free_port()
    base.mkdir()
    (base / "users.txt").write_text('"odoo" ""\n')
    (base / "pgbouncer.ini").write_text(
        f"[databases]\nodoo = host=127.0.0.1 port={cluster.port}\n"
        f"by_socket = host={cluster.sockets} port={cluster.port} dbname=odoo\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"unix_socket_dir =\nauth_type = trust\nauth_file = {base}/users.txt\nadmin_users = odoo\n")
    with open(base / "log", "wb") as log:
        process = subprocess.Popen(clusters.as_server_user([PGBOUNCER, base / "pgbouncer.ini"], die_with_parent=True), stdout=log, stderr=log)

    def console():
        assert process.poll() is None, (base / "log").read_text()
        try:
            conn = psycopg2.connect(host="127.0.0.1", port=port, user="odoo", dbname="pgbouncer")
        except psycopg2.OperationalError as error:
            raise AssertionError(error) from error
        conn.autocommit = True
        return conn
    console = eventually(console, what="PgBouncer")
    yield console
    console.close()
    process.terminate()
    process.wait(60)


def columns(conn, what):
    with conn.cursor() as cur:
        cur.execute(f"SHOW {what}")
        return [(c.name, c.type_code) for c in cur.description]


def rows(weir, what, dbname="pgbouncer"):
    conn = weir.admin_connection(dbname)
    try:
        with conn.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cur:
            cur.execute(f"SHOW {what}")
            return [dict(row) for row in cur.fetchall()]
    finally:
        conn.close()


def stats(weir, database="odoo", what="STATS"):
    return next(row for row in rows(weir, what) if row["database"] == database)


# -- names and types ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("what", SHOWS)
def test_columns_are_those_of_a_real_pgbouncer(weir, bouncer, what):
    theirs = columns(bouncer, what)
    for dbname in ("pgbouncer", "pgweir"):
        conn = weir.admin_connection(dbname)
        ours = columns(conn, what)
        conn.close()
        assert ours[:len(theirs)] == theirs
        assert len({name for name, _ in ours}) == len(ours)


def test_lists_are_those_of_a_real_pgbouncer(weir, bouncer):
    with bouncer.cursor() as cur:
        cur.execute("SHOW LISTS")
        theirs = [name for name, _ in cur.fetchall()]
    assert [row["list"] for row in rows(weir, "LISTS")] == theirs


def test_commands_have_its_tags(weir, bouncer):
    conn = weir.admin_connection("pgbouncer")
    for one in (bouncer, conn):
        with one.cursor() as cur:
            for command in ("PAUSE", "RESUME", "RELOAD"):
                cur.execute(f"{command};")
                assert cur.statusmessage == command
    conn.close()


# -- figures -----------------------------------------------------------------------------------------------------

def test_figures_are_counted_by_database(weir, tidy):
    conn = tidy(weir.connect("web", dbname="odoo"))
    before = stats(weir)

    def beside():
        # Averages are of the time that goes by.
        row = next((row for row in rows(weir, "STATS") if row["database"] == "postgres"), {})
        return {key: value for key, value in row.items() if not key.startswith("avg_")}
    other = beside()
    cur = conn.cursor()
    for _ in range(3):
        cur.execute("select repeat('x', 10000), pg_sleep(0.02)")
        cur.execute("select 1")
        conn.commit()

    def counted():
        after = stats(weir)
        more = {key: after[key] - before[key] for key in after if key.startswith("total_")}
        # BEGIN, two statements and COMMIT.
        assert (more["total_xact_count"], more["total_query_count"], more["total_requests"]) == (3, 12, 12)
        assert more["total_sent"] > 30_000 > more["total_received"] > 100
        assert 60_000 <= more["total_query_time"] <= more["total_xact_time"] < 60_000_000
        return after
    after = eventually(counted)
    assert beside() == other
    conn.close()
    # What was counted stays when the client has gone.
    eventually(lambda: not weir.clients("web"))
    assert stats(weir)["total_sent"] == after["total_sent"]
    totals = stats(weir, what="STATS_TOTALS")
    assert (totals["query_count"], totals["bytes_sent"]) == (after["total_query_count"], after["total_sent"])


def test_pools_and_servers_show_who_has_what(weir, tidy):
    idle, busy = tidy(weir.connect("web", dbname="odoo")), tidy(weir.connect("web-2", dbname="odoo"))
    busy.cursor().execute("select 1")

    def counted():
        (pool,) = (row for row in rows(weir, "POOLS") if row["database"] == "odoo" and row["user"] == "odoo")
        assert (pool["cl_active"], pool["cl_waiting"], pool["sv_active"], pool["idle_in_transaction"]) == (2, 0, 2, 1)
        return True
    eventually(counted)
    pids = {conn.info.backend_pid for conn in (idle, busy)}
    servers = {row["remote_pid"]: row for row in rows(weir, "SERVERS") if row["remote_pid"] in pids}
    assert servers.keys() == pids
    clients = {row["ptr"]: row for row in rows(weir, "CLIENTS")}
    for pid, server in servers.items():
        client = clients[server["link"]]
        assert client["link"] == server["ptr"] and client["pid"] == pid and client["state"] == "active"
        assert (server["type"], server["state"], server["addr"], server["port"]) == ("S", "active", "127.0.0.1", weir.cluster.port)
        assert server["application_name"] == client["application_name"]
    assert {row["state"] for row in rows(weir, "CLIENTS", "pgweir")} == {"idle", "idle_in_transaction"}
    ports = {conn.info.socket: None for conn in (idle, busy)}
    assert len(ports) == 2 and all(0 < client["port"] < 65536 and client["local_port"] == weir.port for client in clients.values())
    database = next(row for row in rows(weir, "DATABASES") if row["name"] == "odoo")
    assert (database["current_connections"], database["paused"], database["port"]) == (2, 0, weir.cluster.port)


def own_ends(cluster, pids):
    """The far end of each backend's connection, as PostgreSQL sees it."""
    conn = cluster.direct(user="postgres")
    try:
        with conn.cursor() as cur:
            cur.execute("select pid, host(client_addr), client_port from pg_stat_activity where pid = any(%s)", (list(pids),))
            return {pid: (address, port) for pid, address, port in cur.fetchall()}
    finally:
        conn.close()


def test_servers_name_pgweirs_own_end_of_the_connection(weir, tidy, cluster):
    conns = [tidy(weir.connect("web", dbname="odoo")) for _ in range(3)]
    pids = {conn.info.backend_pid for conn in conns}
    told = {row["remote_pid"]: (row["local_addr"], row["local_port"]) for row in rows(weir, "SERVERS") if row["remote_pid"] in pids}
    assert told == own_ends(cluster, pids) and len(set(told.values())) == 3


def test_ends_over_a_unix_socket_are_named_as_pgbouncer_does(make_weir, bouncer, tidy, cluster):
    # A database of PgBouncer's own that it reaches by the socket.
    theirs = tidy(psycopg2.connect(host="127.0.0.1", port=bouncer.info.port, user="odoo", dbname="by_socket"))
    theirs.cursor().execute("select 1")
    with bouncer.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cur:
        cur.execute("SHOW SERVERS")
        (expected,) = (row for row in cur.fetchall() if row["database"] == "by_socket")
    weir = make_weir(upstream={"address": f"unix:{cluster.sockets}:{cluster.port}", "headroom": 0}, monitor={"address": f"127.0.0.1:{cluster.port}"})
    conn = tidy(weir.connect("web", dbname="odoo"))
    (server,) = (row for row in rows(weir, "SERVERS") if row["remote_pid"] == conn.info.backend_pid)
    for key in ("addr", "port", "local_addr"):
        assert server[key] == expected[key], key
    assert (server["local_addr"], server["local_port"]) == ("unix", 0), "PgBouncer tells the port it listens on, where there is none"


def test_waiting_clients_are_counted_as_such(weir, tidy):
    weir.admin("SET LANE web quota = 1")
    tidy(weir.connect("web", dbname="odoo"))
    waiting = tidy(weir.socket())
    waiting.send(wire.startup_packet("odoo", "odoo", app="web"))

    def waits():
        pool = next(row for row in rows(weir, "POOLS") if row["database"] == "odoo")
        assert pool["cl_waiting"] == 1 and pool["maxwait"] * 1_000_000 + pool["maxwait_us"] > 0
        return True
    eventually(waits)
    assert "waiting" in {row["state"] for row in rows(weir, "CLIENTS")}


def test_config_has_what_its_tools_read(weir):
    config = {row["key"]: row for row in rows(weir, "CONFIG")}
    assert config["max_client_conn"]["value"] == config["limits.max_clients"]["value"] == config["max_client_conn"]["default"] == "10000"
    assert float(config["max_user_connections"]["value"]) == 0
    assert (config["limits.workers"]["changeable"], config["lane.web.quota"]["changeable"]) == ("no", "yes")
    assert (config["lane.web.reserve"]["value"], config["lane.web.reserve"]["default"]) == ("1", "0")


# -- commands ----------------------------------------------------------------------------------------------------

def test_pause_stops_every_lane_that_may_be_and_resume_opens_all(weir, tidy):
    running = tidy(weir.connect("web"))
    running.cursor().execute("select 1")
    conn = weir.admin_connection("pgbouncer")
    cur = conn.cursor()
    cur.execute("PAUSE;")
    assert "1 transactions are running" in "".join(conn.notices)
    states = {name: row["state"] for name, row in weir.lanes().items()}
    assert states == {"admin": "open", "web": "paused", "cron": "paused", "other": "paused"}
    assert {row["paused"] for row in rows(weir, "DATABASES")} == {1}
    running.cursor().execute("select 2")
    running.commit()
    cur.execute("RESUME;")
    assert {row["state"] for row in weir.lanes().values()} == {"open"}
    conn.close()


# -- exporter ----------------------------------------------------------------------------------------------------

def test_debians_exporter(weir, tidy):
    if EXPORTER is None:
        pytest.skip("prometheus-pgbouncer-exporter is not installed: script/setup test")
    conn = tidy(weir.connect("web", dbname="odoo"))
    conn.cursor().execute("select 1")
    port = free_port()
    (line,) = docs.commands("docs/pgbouncer.md", "*prometheus-pgbouncer-exporter *")
    for told, real in (("/var/lib/pgweir", weir.state), ("--pgbouncer-port 6433", f"--pgbouncer-port {weir.admin_port}")):
        assert told in line, told
        line = line.replace(told, str(real))
    with open(weir.base / "exporter.log", "wb") as log:
        process = subprocess.Popen(["bash", "-c", f"exec env {line} --host 127.0.0.1 --port {port}"], stdout=log, stderr=log)
    try:
        def scrape():
            assert process.poll() is None, (weir.base / "exporter.log").read_text()
            try:
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                return opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
            except OSError as error:
                raise AssertionError(error) from error
        text = eventually(scrape, timeout=100, what="the exporter")
    finally:
        process.terminate()
        process.wait(60)
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("pgbouncer_"))
    figure = {name: float(value) for name, value in found.items()}
    assert figure['pgbouncer_active_clients{database="odoo",user="odoo"}'] == 1
    assert figure['pgbouncer_requests_total{database="odoo"}'] >= 2
    assert figure['pgbouncer_received_bytes_total{database="odoo"}'] > 0
    assert figure['pgbouncer_pool_size{database="odoo"}'] == 38
    assert figure['pgbouncer_reserve_pool{database="odoo"}'] == 1
    assert figure["pgbouncer_used_clients"] == 1 and figure["pgbouncer_used_servers"] == 1
    assert figure["pgbouncer_free_clients"] == 9999 and figure["pgbouncer_free_servers"] > 30
    assert len([name for name in figure if "{" not in name]) == 12


def test_tls_is_told_by_its_version(make_weir, tidy):
    port = free_port()
    weir = make_weir(listen=[{"address": f"127.0.0.1:{port}", "tls": "allow", **certs.suite().keys()}])
    weir.port = port
    for app, sslmode, protocol, want in [("a", "require", "TLSv1.3", "TLSv1.3"), ("b", "require", "TLSv1.2", "TLSv1.2"), ("c", "disable", "TLSv1.2", "")]:
        tidy(weir.connect(app, sslmode=sslmode, ssl_min_protocol_version="TLSv1.2", ssl_max_protocol_version=protocol))
        assert [row["tls"] for row in rows(weir, "CLIENTS") if row["application_name"] == app] == [want]
    assert {row["tls"] for row in rows(weir, "SERVERS")} == {""}
