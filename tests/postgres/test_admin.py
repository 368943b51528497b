"""The admin port: console for psql and both drivers, HTTP beside it, and every word of the contract."""

import json
import re
import socket
import subprocess
import urllib.request

import psycopg
import psycopg2
import pytest

from harness import RawClient, background, eventually, lane
from harness import wire

pytestmark = pytest.mark.weir

LANES = ("lane state priority quota reserve slots idle active idle_in_transaction waiting max_wait_ms admitted shed refused resets"
         " paused_by reason").split()
CLIENTS = ("id lane rule application user database address pid process state transaction_ms idle_in_transaction_ms wait_ms"
           " last_statement").split()
USAGE = ("max_connections usable connections active idle idle_in_transaction percent percent_of_max own_slots bypass"
         " sampled_ms_ago").split()
METRICS = ("pgweir_usage_percent pgweir_lane_slots pgweir_lane_quota pgweir_lane_waiting pgweir_lane_state pgweir_refusals_total"
           " pgweir_resets_total pgweir_idle_in_transaction pgweir_upstream_too_many_clients_total pgweir_transactions_total"
           " pgweir_wait_seconds pgweir_transaction_seconds pgweir_query_seconds").split()
SHOWS = ("LANES APPLICATIONS CLIENTS SESSIONS LEAKS USAGE HEADROOM TIMELINE CONFIG VERSION HELP STATS STATS_TOTALS POOLS DATABASES LISTS"
         " SERVERS").split()


@pytest.fixture(scope="module")
def weir(make_module_weir):
    return make_module_weir(lanes=[lane("web", quota=5, reserve=1, priority=0), lane("cron", freeze=True), lane("other", default=True, quota=20)],
                            applications=[{"match": "odoo-*", "name": "odoo", "quota": 9}])


def admin_psql(weir, *args, password=None, dbname="pgweir"):
    env = {**weir.libpq_env(), "PGPORT": str(weir.admin_port), "PGUSER": "admin", "PGDATABASE": dbname,
           "PGPASSWORD": weir.password if password is None else password}
    return subprocess.run([str(weir.cluster.bin / "psql"), "-X", *args], env=env, text=True, capture_output=True, timeout=30)


def columns(weir, sql, dbname="pgweir"):
    conn = weir.admin_connection(dbname)
    with conn.cursor() as cur:
        cur.execute(sql)
        names = [c.name for c in cur.description]
        cur.fetchall()
    conn.close()
    return names


# -- console -----------------------------------------------------------------------------------------------------

def test_columns(weir, tidy):
    tidy(weir.raw("web"))
    assert columns(weir, "SHOW LANES") == LANES
    assert columns(weir, "SHOW USAGE") == USAGE
    shown = columns(weir, "SHOW CLIENTS")
    assert [c for c in CLIENTS if c not in shown] == []


@pytest.mark.parametrize("what", SHOWS)
def test_show_in_psql(weir, what):
    for text in (f"SHOW {what}", f"show {what.lower()};", f"  Show  {what.title()} ;"):
        done = admin_psql(weir, "-At", "-c", text)
        assert done.returncode == 0, done.stderr


def test_psql_interactively(weir):
    done = subprocess.run([str(weir.cluster.bin / "psql"), "-X"], input="show lanes;\n\\conninfo\nshow version;\n\\q\n", text=True, timeout=30,
                          capture_output=True, env={**weir.libpq_env(), "PGPORT": str(weir.admin_port), "PGUSER": "admin",
                                                    "PGDATABASE": "pgweir", "PGPASSWORD": weir.password})
    assert done.returncode == 0 and "web" in done.stdout and "pgweir" in done.stdout, done.stderr


def test_psycopg2_in_its_default_mode(weir):
    conn = psycopg2.connect(host="127.0.0.1", port=weir.admin_port, user="admin", dbname="pgweir", password=weir.password)
    with conn.cursor() as cur:
        cur.execute("SHOW LANES")
        assert len(cur.fetchall()) == 3
    conn.commit()
    conn.close()


def test_psycopg2_session_set_up(weir):
    # What exporters do before their first question.
    conn = weir.admin_connection(options="-c extra_float_digits=3")
    conn.set_client_encoding("UTF8")
    assert conn.encoding == "UTF8"
    assert conn.info.parameter_status("server_version")
    conn.close()


@pytest.mark.parametrize("autocommit", [True, False])
def test_psycopg3(weir, autocommit):
    conn = psycopg.connect(host="127.0.0.1", port=weir.admin_port, user="admin", dbname="pgweir", password=weir.password, autocommit=autocommit)
    assert len(conn.execute("SHOW LANES").fetchall()) == 3
    assert len(conn.execute("SHOW LANES", prepare=True).fetchall()) == 3
    with pytest.raises(psycopg.Error):
        conn.execute("SHOW NONSENSE")
    if not autocommit:
        conn.rollback()
    assert conn.execute("SHOW USAGE").fetchone() is not None
    conn.close()


def test_extended_protocol_in_pieces(weir):
    conn = psycopg.connect(host="127.0.0.1", port=weir.admin_port, user="admin", dbname="pgweir", password=weir.password, autocommit=True)
    with conn.pipeline():
        cursors = [conn.execute("SHOW LANES") for _ in range(5)]
        assert [len(c.fetchall()) for c in cursors] == [3] * 5
    with psycopg.Cursor(conn) as cur:
        cur.execute("SHOW LANES", binary=True)
        assert cur.fetchone() is not None
    conn.close()


@pytest.mark.parametrize("password", ["", "wrong", "x" * 5000])
def test_wrong_password(weir, password):
    with pytest.raises(psycopg2.OperationalError):
        weir.admin_connection(password=password)
    done = admin_psql(weir, "-c", "SHOW LANES", password=password or "-")
    assert done.returncode == 2 and "password authentication failed" in done.stderr


def test_unknown_user(weir):
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(host="127.0.0.1", port=weir.admin_port, user="nobody", dbname="pgweir", password=weir.password)


def test_database_names(weir):
    for name in ("pgweir", "pgbouncer"):
        assert admin_psql(weir, "-At", "-c", "SHOW VERSION", dbname=name).returncode == 0
    assert columns(weir, "SHOW LANES", "pgbouncer") == LANES


@pytest.mark.parametrize("sql", ["SELECT * FROM lanes", "SHOW", "PAUSE odoo", "PAUSE LANE", "RESUME LANE web OVER 'soon'", "KILL CLIENT x", "KILL CLIENT 999999999",
                                 "RESET CLIENT 999999999", "CANCEL CLIENT 999999999", "SET LANE web quota = -1", "SET LANE web quota = x",
                                 "SET LANE web priority = 1", "FREEZE FOR", "NOTE", "NOTE 'unterminated", "DROP LANE web", "TERMINATE PID 2147483647"])
def test_wrong_commands_are_refused_and_the_session_goes_on(weir, sql):
    conn = weir.admin_connection()
    cur = conn.cursor()
    with pytest.raises(psycopg2.Error) as error:
        cur.execute(sql)
    assert str(error.value).strip()
    cur.execute("SHOW LANES")
    assert cur.fetchall()
    conn.close()


def test_several_commands_in_one_string(weir):
    done = admin_psql(weir, "-At", "-c", "NOTE 'a; b'; SHOW VERSION")
    assert done.returncode == 0, done.stderr
    assert weir.timeline_has("a; b")


def test_show_clients_and_usage_follow(weir, tidy):
    client = tidy(weir.raw("odoo-77", dbname="odoo"))
    client.ok("select 'a secret', 42")
    row = eventually(lambda: (row := weir.client("odoo-77"))["state"] == "idle" and row)
    assert row["pid"] == client.pid and row["user"] == row["database"] == "odoo" and row["lane"] == "other"
    assert str(client.sock.getsockname()[1]) in str(row["address"]) and "127.0.0.1" in str(row["address"])
    assert "select" in row["last_statement"] and "secret" not in row["last_statement"] and "42" not in row["last_statement"]
    client.ok("begin")
    row = eventually(lambda: weir.client("odoo-77")["state"] == "idle_in_transaction" and weir.client("odoo-77"))
    assert row["transaction_ms"] >= 0
    eventually(lambda: weir.client("odoo-77")["idle_in_transaction_ms"] > 100)
    client.send(wire.query("select pg_sleep(600)"))
    eventually(lambda: weir.client("odoo-77")["state"] == "active")
    # Clients of tests before are on their way out.
    eventually(lambda: weir.lane("other")["slots"] == 1)

    def attributed():
        (session,) = [r for r in weir.admin("SHOW SESSIONS") if str(r["pid"]) == str(client.pid)] or [None]
        return session and session["lane"] == "other" and str(session["id"]) == str(row["id"])
    eventually(attributed, what="a session of this client's")
    client.cancel()
    assert wire.states(client.until("Z")) == [("E", "57014"), ("Z", "E")]


def test_log_literals(make_weir):
    weir = make_weir(log_literals=True)
    with weir.raw("x") as client:
        client.ok("select 'shown'")
        assert "shown" in weir.client("x")["last_statement"]


def test_show_config_has_no_secret(weir):
    assert weir.password not in json.dumps(weir.admin("SHOW CONFIG"), default=str)
    assert len(weir.admin("SHOW CONFIG")) > 20


def test_show_help_names_every_command(weir):
    text = json.dumps(weir.admin("SHOW HELP"), default=str).upper()
    for word in ("SHOW LANES", "FREEZE", "PAUSE LANE", "RESUME LANE", "RESUME ALL", "DRAIN LANE", "CANCEL CLIENT", "RESET CLIENT", "KILL CLIENT",
                 "CANCEL PID", "TERMINATE PID", "NOTE", "SET LANE", "RELOAD", "SHUTDOWN"):
        assert word in text or word.split()[0] in text, word


def test_kill_client(weir, cluster):
    client = weir.raw("victim")
    client.ok("begin")
    weir.admin(f"KILL CLIENT {weir.client('victim')['id']}")
    assert client.error()["C"] == "57P01" and client.at_eof(30)
    eventually(lambda: cluster.count("victim") == 0 and not weir.clients("victim"))
    busy = weir.raw("victim")
    busy.send(wire.query("select pg_sleep(600)"))
    eventually(lambda: cluster.activity("victim", "wait_event = 'PgSleep'"))
    weir.admin(f"KILL CLIENT {weir.client('victim')['id']}")
    assert busy.at_eof(30)
    eventually(lambda: cluster.count("victim") == 0)
    assert weir.timeline_has("kill")


def test_cancel_and_terminate_pid_of_a_session_that_bypasses(weir, cluster):
    conn = cluster.direct(user="batch", app="bypass")
    pid = conn.get_backend_pid()
    running = background(conn.cursor().execute, "select pg_sleep(600)")
    eventually(lambda: cluster.activity("bypass", "wait_event = 'PgSleep'"))
    eventually(lambda: any(str(r["pid"]) == str(pid) and r["via"] == "bypass" for r in weir.admin("SHOW SESSIONS")))
    weir.admin(f"CANCEL PID {pid}")
    with pytest.raises(psycopg2.errors.QueryCanceled):
        running.result(60)
    weir.admin(f"TERMINATE PID {pid}")
    eventually(lambda: cluster.count("bypass") == 0)


def test_timeline_says_who_when_and_how_full(weir):
    weir.admin("NOTE 'it''s 3 a.m.'")
    rows = weir.admin("SHOW TIMELINE")
    row = [r for r in rows if "it's 3 a.m." in json.dumps(r, default=str)][0]
    assert "admin" in json.dumps(row, default=str)
    assert re.search(r"\d{4}-\d\d-\d\d|\d{10}", json.dumps(row, default=str))


def test_many_consoles_at_once(weir):
    answers = [background(weir.admin, "SHOW LANES") for _ in range(30)]
    assert all(len(a.result(60)) == 3 for a in answers)


def test_ugly_bytes_on_the_admin_port(weir):
    for junk in (b"", b"\0", b"\0\0\0\4", b"\xff" * 100, b"G", b"GET", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000, b"GET /" + b"a" * 100_000,
                 b"\x16\x03\x01", wire.startup_packet("admin", "pgweir") + b"Q\0\0\0\4", b"BREW /pot HTTP/1.1\r\n\r\n"):
        client = RawClient(weir.admin_port)
        try:
            client.send(junk)
            client.half_close()
            client.at_eof(10)
        except OSError:
            pass
        client.close()
    assert weir.http("/healthz")[0] == 200
    assert weir.lanes()


# -- HTTP --------------------------------------------------------------------------------------------------------

def test_metrics(weir, tidy):
    client = tidy(weir.raw("web"))
    client.ok("select 1")
    status, text = weir.http("/metrics")
    assert status == 200
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)", text, re.M))
    for name in METRICS:
        assert any(t == name or t + "_total" == name for t in types), f"{name} is missing"
    for name in ("pgweir_wait_seconds", "pgweir_transaction_seconds", "pgweir_query_seconds"):
        assert types[name] == "histogram"
        assert re.search(rf'^{name}_bucket{{.*lane="web".*le="\+Inf"', text, re.M), name
    assert weir.metric("pgweir_lane_quota", lane="web") == 5
    eventually(lambda: weir.metric("pgweir_lane_slots", lane="web") == 1)
    assert weir.metric("pgweir_lane_state", lane="web", state="open") == 1
    assert weir.metric("pgweir_lane_state", lane="web", state="paused") == 0
    assert 0 < weir.metric("pgweir_usage_percent") < 100
    eventually(lambda: weir.metric("pgweir_transactions_total", lane="web") >= 1)
    bad = [line for line in text.splitlines() if line and not re.match(r'^(#.*|[a-z_:]+(\{[^}]*\})? \S+( \S+)?)$', line)]
    assert bad == []


def test_metrics_count_ends(weir, tidy):
    client = tidy(weir.raw("cron"))
    before = weir.metric("pgweir_transactions_total", lane="cron")
    client.ok("begin; select 1; commit")
    client.ok("begin")
    client.ok("rollback")
    eventually(lambda: weir.metric("pgweir_transactions_total", lane="cron") >= before + 2)


def test_health_and_ready_are_open(weir):
    assert weir.http("/healthz")[0] == 200
    assert weir.http("/readyz")[0] == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{weir.admin_port}/metrics", timeout=5) as reply:
        assert reply.headers["Content-Type"].startswith(("text/plain", "application/openmetrics-text"))


def test_other_paths_and_methods(weir):
    assert weir.http("/nosuch")[0] in (401, 404)
    assert weir.http("/metrics", method="POST", data=b"x")[0] in (401, 404, 405)
    assert weir.http("/metrics", method="DELETE")[0] in (401, 404, 405)


def test_keep_alive(weir):
    with socket.create_connection(("127.0.0.1", weir.admin_port), timeout=10) as sock:
        for _ in range(3):
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"\r\n\r\nok\n"):
                answer += (more := sock.recv(4096))
                assert more, answer
            assert answer.startswith(b"HTTP/1.1 200")


def test_http_in_small_pieces(weir):
    with socket.create_connection(("127.0.0.1", weir.admin_port), timeout=10) as sock:
        for byte in b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n":
            sock.sendall(bytes([byte]))
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")


def test_console_in_small_pieces(weir):
    client = RawClient(weir.admin_port)
    for byte in wire.SSL_REQUEST:
        client.send(bytes([byte]))
    assert client.read_exact(1) in (b"N", b"S")
    for byte in wire.startup_packet("admin", "pgweir"):
        client.send(bytes([byte]))
    assert client.receive().tag == "R"
    client.close()
