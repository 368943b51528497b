"""TLS with clients, PostgreSQL and the admin port: who gets in, what passes, and what the ugly ones get."""

import hashlib
import http.client
import io
import itertools
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time

import psycopg
import psycopg2
import pytest

from harness import Cluster, RawClient, ServerError, Weir, background, eventually, free_port, lane
from harness import wire
from harness.certs import Authority, for_postgres
from harness.cluster import PASSWORD
from harness.weir import BINARY

pytestmark = pytest.mark.weir

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "tls.md"
ALPN = ["postgresql"]


@pytest.fixture(scope="module")
def ca():
    return Authority()


@pytest.fixture(scope="module")
def certs(ca):
    """`server` is PostgreSQL's own."""
    names = "DNS:localhost,IP:127.0.0.1"
    return {"server": ca.issue("server", san=names), "other": ca.issue("other", san=names), "rsa": ca.issue("rsa", san=names, rsa=True),
            "odoo": ca.issue("odoo"), "batch": ca.issue("batch", san="DNS:odoo.example.org,email:odoo@example.org"),
            "stranger": Authority("another authority").issue("odoo")}


@pytest.fixture(scope="module")
def cluster(template, certs):
    made = Cluster(template=template)
    made.settings.update(for_postgres(made, certs["server"]))
    made.settings["ssl_ca_file"] = made.settings["ssl_cert_file"]
    try:
        yield made.start()
    finally:
        made.close()


LISTENERS = ["plain", "same", "other", "require", "mutual"]


def listen(certs, ca):
    """One listener of each kind, by name."""
    ports = {name: free_port() for name in LISTENERS}
    tls = {"plain": {}, "same": {"tls": "allow", **certs["server"].keys()}, "other": {"tls": "allow", **certs["other"].keys()},
           "require": {"tls": "require", **certs["rsa"].keys()}, "mutual": {"tls": "allow", **certs["server"].keys(ca.file)}}
    return ports, [{"address": f"127.0.0.1:{ports[name]}", **tls[name]} for name in LISTENERS]


def build(make, certs, ca, upstream, startup_timeout="30s", **more):
    ports, listeners = listen(certs, ca)
    weir = make(listen=listeners, upstream=upstream, lanes=[
        lane("leak", quota=10, idle_in_transaction={"warn": "200ms", "reset": "400ms", "when": "always", "action": "rollback"}),
        lane("cron", quota=10, idle_in_transaction={"warn": "200ms", "reset": "400ms", "when": "always", "action": "disconnect"}),
        lane("other", default=True, quota=40)], limits={"max_resets_per_minute": 10_000, "startup_timeout": startup_timeout},
        admin={"tls": "allow", **certs["other"].keys()}, **more)
    weir.ports, weir.port = ports, ports["same"]
    return weir


@pytest.fixture(scope="module")
def weir(make_module_weir, cluster, certs, ca):
    """TLS to PostgreSQL, verified in full."""
    return build(make_module_weir, certs, ca, {"tls": "verify-full", "ca_file": str(ca.file)})


@pytest.fixture(scope="module")
def plain_weir(make_module_weir, cluster, certs, ca):
    """No TLS to PostgreSQL."""
    return build(make_module_weir, certs, ca, {"tls": "disable"})


def psql(weir, listener, sql="select 1", user="odoo", **params):
    """psql through a listener; the completed process."""
    params = {"host": "127.0.0.1", "port": weir.ports[listener], "user": user, "dbname": "postgres", "password": PASSWORD, **params}
    dsn = psycopg2.extensions.make_dsn(**params)
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PGPASSFILE": "/nonexistent"}
    return subprocess.run(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-c", sql], env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)


def context(ca=None, pair=None, alpn=ALPN, version=None):
    """A client's context; it verifies nothing without `ca`."""
    made = ssl.create_default_context(cafile=ca and str(ca.file))
    if ca is None:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if pair:
        made.load_cert_chain(str(pair.certificate), str(pair.key))
    if alpn:
        made.set_alpn_protocols(alpn)
    if version:
        made.minimum_version = made.maximum_version = version
    return made


def raw(weir, listener="same", app="raw", user="odoo", dbname="postgres", tls=None, timeout=30, rcvbuf=None):
    """A raw client over TLS, logged in."""
    client = RawClient(weir.ports[listener], tls=tls or context(), timeout=timeout, rcvbuf=rcvbuf)
    client.startup(user, dbname, app=app)
    return client


# -- the table ---------------------------------------------------------------------------------------------------

METHODS = {"trust": ("odoo", {}), "password": ("u_password", {}), "md5": ("u_md5", {}), "SCRAM": ("u_scram", {}),
           "SCRAM without binding": ("u_scram", {"channel_binding": "disable"}),
           "SCRAM with binding": ("u_scram", {"channel_binding": "require"})}


def table():
    """The page's table: (client, PostgreSQL, method) → what happens."""
    lines = PAGE.read_text().split("## Every combination")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head, body = rows[0], rows[2:]
    return {(row[0], row[1], method): cell for row in body for method, cell in zip(head[2:], row[2:])}


def test_the_table_is_complete():
    rows = set(itertools.product(["plain", "TLS"], ["plain", "TLS, same certificate", "TLS, another certificate"], METHODS))
    rows -= {row for row in rows if row[0] == "plain" and row[1] == "TLS, another certificate"}
    assert set(table()) == rows


@pytest.mark.parametrize("row", sorted(table()), ids=" / ".join)
def test_every_row_of_the_table(weir, plain_weir, row):
    client, upstream, method = row
    through = plain_weir if upstream == "plain" else weir
    listener = "other" if upstream == "TLS, another certificate" else "same"
    user, more = METHODS[method]
    done = psql(through, listener, "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()", user,
                sslmode="disable" if client == "plain" else "require", **more)
    expected = table()[row]
    if expected == "logs in":
        assert (done.returncode, done.stdout.strip()) == (0, "false" if upstream == "plain" else "true"), done
    elif expected == "`channel_binding`":
        assert done.returncode and "pgweir: SCRAM's channel binding does not reach through" in done.stderr, done
        assert "channel_binding=disable" in done.stderr, "the choices are named"
    else:
        assert expected == "the client refuses"
        assert done.returncode and "channel binding" in done.stderr and "pgweir" not in done.stderr, done


@pytest.mark.parametrize("upstream", [{"tls": "disable"}, {"tls": "require"}], ids=["plain", "tls"])
@pytest.mark.parametrize("binding", ["disable", "prefer", "require"])
def test_own_authentication_binds_to_the_listeners_certificate(make_weir, cluster, certs, tmp_path, upstream, binding):
    """[auth] mode = "scram" is one of the choices: TLS, and SCRAM's channel, end here."""
    users, port = tmp_path / "users", free_port()
    users.write_text(f'"u_scram" "{PASSWORD}"\n')
    users.chmod(0o600)
    weir = make_weir(listen=[{"address": f"127.0.0.1:{port}", "tls": "require", **certs["other"].keys()}], upstream=upstream,
                     auth={"mode": "scram", "users_file": str(users)})
    weir.ports = {"same": port}
    done = psql(weir, "same", "select 'in'", "u_scram", sslmode="require", channel_binding=binding)
    assert (done.returncode, done.stdout) == (0, "in\n"), done
    assert weir.cli("check").returncode == 0


# -- clients -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("listener", ["same", "other", "require"])
@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_psql(weir, ca, listener, mode):
    done = psql(weir, listener, "select 'passed'", sslmode=mode, sslrootcert=str(ca.file))
    assert (done.returncode, done.stdout) == (0, "passed\n"), done


def test_a_client_that_verifies_refuses_another_name(weir, ca):
    done = psql(weir, "same", host="elsewhere", hostaddr="127.0.0.1", sslmode="verify-full", sslrootcert=str(ca.file))
    assert done.returncode and "elsewhere" in done.stderr, done


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions(weir, version):
    with raw(weir, tls=context(version=version)) as client:
        assert client.sock.version() == {ssl.TLSVersion.TLSv1_2: "TLSv1.2"}.get(version, "TLSv1.3")
        assert client.ok("select 1") == [["1"]]


def test_psycopg_3(weir, ca):
    with psycopg.connect(host="localhost", port=weir.ports["same"], user="u_scram", password=PASSWORD, dbname="postgres",
                         sslmode="verify-full", sslrootcert=str(ca.file)) as conn:
        assert conn.pgconn.ssl_in_use
        assert conn.info.backend_pid == conn.execute("select pg_backend_pid()").fetchone()[0]


def test_openssl_s_client(weir, ca):
    done = subprocess.run(["openssl", "s_client", "-starttls", "postgres", "-connect", f"localhost:{weir.ports['same']}", "-CAfile",
                           str(ca.file), "-verify_return_error", "-brief"], input="", text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=30)
    assert "CONNECTION ESTABLISHED" in done.stdout and "Verification: OK" in done.stdout, done.stdout


def test_tls_is_demanded(weir):
    done = psql(weir, "require", sslmode="disable")
    assert done.returncode and "pgweir: this connection needs TLS" in done.stderr and "sslmode=require" in done.stderr, done
    with RawClient(weir.ports["require"], tls=False) as client, pytest.raises(ServerError) as refused:
        client.startup()
    assert refused.value.sqlstate == "28000"
    assert psql(weir, "require", sslmode="prefer").returncode == 0


def test_a_listener_without_tls(weir):
    with RawClient(weir.ports["plain"], tls=False) as client:
        client.send(wire.SSL_REQUEST)
        assert client.read_exact(1) == b"N"
        client.startup()
        assert client.ok("select 1") == [["1"]]
    with socket.create_connection(("127.0.0.1", weir.ports["plain"])) as sock, pytest.raises(ssl.SSLError) as refused:
        context().wrap_socket(sock)
    assert "HANDSHAKE_FAILURE" in str(refused.value).upper(), "an alert, not silence"


def test_direct_tls(weir, ca):
    with RawClient(weir.ports["same"], tls=False) as client:
        client.start_tls(context(ca), direct=True, server_hostname="localhost")
        assert client.sock.selected_alpn_protocol() == "postgresql"
        client.startup()
        assert client.ok("select 1") == [["1"]]


@pytest.mark.parametrize("alpn", [None, ["http/1.1"]])
def test_direct_tls_for_another_protocol(weir, alpn):
    with RawClient(weir.ports["same"], tls=False) as client:
        try:
            client.start_tls(context(alpn=alpn), direct=True)
        except ssl.SSLError as error:
            assert alpn and "no application protocol" in str(error)
            return
        client.send(wire.startup_packet("odoo", "postgres"))
        assert client.error()["C"] == "08P01"


# -- client certificates -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("who, user, comes_in", [
    ("odoo", "odoo", True), ("odoo", "postgres", False), ("batch", "batch", True), ("batch", "odoo@example.org", None),
    ("batch", "odoo", False)])
def test_a_certificate_names_its_user(weir, cluster, certs, ca, who, user, comes_in):
    pair = certs[who]
    done = psql(weir, "mutual", "select current_user", user, sslmode="verify-full", sslrootcert=str(ca.file),
                sslcert=str(pair.certificate), sslkey=str(pair.key))
    if comes_in:
        assert done.stdout.strip() == user, done
    elif comes_in is None:
        assert f'role "{user}" does not exist' in done.stderr, "a subject alternative name will do"
    else:
        assert done.returncode and "pgweir: the client's certificate does not name the user" in done.stderr, done


def test_psycopg_3_with_a_certificate(weir, certs, ca):
    pair = certs["odoo"]
    with psycopg.connect(host="localhost", port=weir.ports["mutual"], user="odoo", dbname="postgres", sslmode="verify-full",
                         sslrootcert=str(ca.file), sslcert=str(pair.certificate), sslkey=str(pair.key)) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("who", [None, "stranger"])
def test_no_certificate_or_a_strangers(make_weir, cluster, certs, ca, who):
    """A pgweir of its own: what it counts is of this test."""
    weir = build(make_weir, certs, ca, {"tls": "disable"})
    pair = certs[who] if who else None
    files = {"sslcert": str(pair.certificate), "sslkey": str(pair.key)} if pair else {}
    done = psql(weir, "mutual", sslmode="require", **files)
    assert done.returncode and "alert" in done.stderr, done
    eventually(lambda: weir.metric("pgweir_refusals_total", reason="tls_failed") == 1)
    psql(weir, "mutual", sslmode="require", **files)
    eventually(lambda: weir.metric("pgweir_refusals_total", reason="tls_failed") == 2)
    assert psql(weir, "mutual", sslmode="disable").returncode == 0, "tls = allow"


# -- the ugly ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("behind", [b"x", wire.startup_packet("odoo", "postgres"), b"\x16\x03\x01"])
def test_bytes_stuffed_behind_the_request(weir, behind):
    with RawClient(weir.ports["same"], tls=False) as client:
        client.send(wire.SSL_REQUEST + behind)
        assert client.error()["C"] == "08P01"
        assert client.at_eof()


def test_requests_for_encryption_inside_tls(weir):
    for request in (wire.SSL_REQUEST, wire.GSSENC_REQUEST):
        with RawClient(weir.ports["same"], tls=context()) as client:
            client.send(request)
            assert client.error()["C"] == "08P01"


def test_gss_then_tls(weir):
    with RawClient(weir.ports["same"], tls=False) as client:
        client.send(wire.GSSENC_REQUEST)
        assert client.read_exact(1) == b"N"
        client.start_tls(context())
        client.startup()
        assert client.ok("select 1") == [["1"]]


@pytest.mark.parametrize("garbage", [b"garbage" * 100, b"\x16\x03\x01\xff\xff" + b"x" * 70000, b"\x16\x03\x01\0\x05hello", b"\x15\x03\x01\0\x02\x02\x28",
                                     b"\x17\x03\x03\0\x10" + b"y" * 16])
@pytest.mark.parametrize("direct", [False, True])
def test_garbage_for_a_handshake(weir, garbage, direct):
    with RawClient(weir.ports["same"], tls=False) as client:
        if not direct:
            client.send(wire.SSL_REQUEST)
            assert client.read_exact(1) == b"S"
        try:
            client.send(garbage)
        except OSError:
            pass
        assert client.at_eof(30)
    assert weir.metric("pgweir_panics_total") == 0


def test_a_handshake_that_stalls(make_weir, cluster, certs, ca):
    weir = build(make_weir, certs, ca, {"tls": "disable"}, startup_timeout="1s")
    began = time.monotonic()
    with RawClient(weir.ports["same"], tls=False) as client:
        client.send(wire.SSL_REQUEST)
        assert client.read_exact(1) == b"S"
        assert client.at_eof(30)
        assert time.monotonic() - began >= 1, "startup_timeout is 1 s"


def test_garbage_in_an_established_session(weir, cluster):
    client = raw(weir, app="mangled")
    assert client.ok("select 1") == [["1"]]
    bare = socket.socket(fileno=os.dup(client.sock.fileno()))
    bare.sendall(b"\x17\x03\x03\0\x20" + b"z" * 32)
    with pytest.raises(ssl.SSLError, match="bad record mac"):
        client.receive()
    eventually(lambda: cluster.activity("mangled") == [])
    bare.close()
    client.close()


def test_records_in_pieces_and_many_at_once(weir):
    """Whatever the segments: the ciphertext of many requests, byte by byte and all together."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context().wrap_bio(incoming, outgoing)
    with RawClient(weir.ports["same"], tls=False) as client:
        client.send(wire.SSL_REQUEST)
        assert client.read_exact(1) == b"S"

        def pump(step):
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    client.sock.sendall(outgoing.read())
                    incoming.write(client.sock.recv(1 << 16))
        pump(tls.do_handshake)
        tls.write(wire.startup_packet("odoo", "postgres"))
        for byte in outgoing.read():
            client.sock.sendall(bytes([byte]))
        seen = b""
        while b"Z\0\0\0\x05I" not in seen:
            seen += pump(lambda: tls.read(1 << 14))
        for i in range(500):
            tls.write(wire.query(f"select {i}"))
        client.sock.sendall(outgoing.read())
        seen = b""
        while seen.count(b"Z\0\0\0\x05I") < 500:
            seen += pump(lambda: tls.read(1 << 14))
        assert b"SELECT 1" in seen


# -- links over TLS ----------------------------------------------------------------------------------------------

def test_copy_both_ways(weir, cluster):
    """50 MB in, and the same 50 MB out."""
    cluster.sql("create table bulk (n int, t text); grant all on bulk to public", dbname="odoo")
    line = "x" * 1000
    data = "".join(f"{i}\t{line}\n" for i in range(50_000)).encode()
    conn = weir.connect(dbname="odoo", sslmode="require")
    out = io.BytesIO()
    with conn.cursor() as cur:
        cur.copy_expert("copy bulk from stdin", io.BytesIO(data))
        cur.copy_expert("copy (select * from bulk order by n) to stdout", out)
    conn.close()
    assert hashlib.sha256(out.getvalue()).digest() == hashlib.sha256(data).digest()


def test_a_slow_reader_is_waited_for(weir, cluster):
    slow = raw(weir, app="slow", rcvbuf=4096, timeout=60)
    slow.send(wire.query("select i, repeat('x', 10000) from generate_series(1, 3000) i"))
    eventually(lambda: cluster.activity("slow", "wait_event = 'ClientWrite'"))
    with raw(weir) as neighbour:
        assert neighbour.ok("select 1") == [["1"]]
    rows = [m.values for m in slow.until("Z") if m.tag == "D"]
    assert [int(row[0]) for row in rows] == list(range(1, 3001)) and all(len(row[1]) == 10000 for row in rows)
    slow.close()


def test_both_directions_full(weir, cluster):
    count = 2000
    with raw(weir, app="full", rcvbuf=4096, timeout=60) as client:
        sending = background(client.send, *[wire.query(f"select {i}, repeat('y', 10000), '{'z' * 1000}'") for i in range(count)])
        eventually(lambda: cluster.activity("full", "wait_event = 'ClientWrite'"))
        for i in range(count):
            rows = [m.values for m in client.until("Z") if m.tag == "D"]
            assert rows[0][0] == str(i)
        sending.result(60)


def test_a_cancel(weir, cluster):
    """libpq 15's, plain; one over TLS; both to PostgreSQL over TLS."""
    conn = weir.connect(app="cancel", sslmode="require")
    running = background(conn.cursor().execute, "select pg_sleep(60)")
    eventually(lambda: cluster.activity("cancel", "wait_event = 'PgSleep'"))
    conn.cancel()
    with pytest.raises(psycopg2.errors.QueryCanceled):
        running.result(30)
    conn.close()
    with raw(weir, "require", app="cancel_raw") as client:
        for tls in (False, context()):
            client.send(wire.query("select pg_sleep(60)"))
            eventually(lambda: cluster.activity("cancel_raw", "wait_event = 'PgSleep'"))
            with RawClient(weir.ports["require"], tls=tls) as other:
                other.send(struct.pack("!IIi", 16, 80877102, client.pid) + client.key)
                if tls:
                    # An end without close_notify is a cancel that failed, to libpq 17 and later.
                    other.sock.suppress_ragged_eofs = False
                    assert other.sock.recv(1) == b""
                assert other.at_eof(30)
            assert wire.states(client.until("Z")) == [("E", "57014"), ("Z", "I")]


def test_a_leak_is_rolled_back(weir, cluster):
    cluster.sql("create table leak_tls (id int); grant all on leak_tls to public")
    with raw(weir, app="leak") as client:
        # In one message: it is judged as soon as it idles.
        client.ok("begin; insert into leak_tls values (1)")
        eventually(lambda: cluster.activity("leak", "state = 'idle in transaction (aborted)'"))
        assert wire.states(client.query("select 1")) == [("E", "40001"), ("Z", "E")]
        assert wire.states(client.query("commit")) == [("E", "40001"), ("Z", "I")]
        assert client.ok("select count(*) from leak_tls") == [["0"]]


def test_a_leak_is_rolled_back_though_the_client_began_a_record(weir, cluster):
    """A piece of a record puts the reset off once, and not for ever."""
    with raw(weir, app="leak_piece") as client:
        client.ok("begin; insert into leak_tls values (2)")
        bare = socket.socket(fileno=os.dup(client.sock.fileno()))
        bare.sendall(b"\x17\x03\x03\x01")
        eventually(lambda: cluster.activity("leak_piece", "state = 'idle in transaction (aborted)'"), timeout=30)
        bare.close()


def test_a_leak_is_disconnected(weir, cluster):
    with raw(weir, app="cron") as client:
        client.ok("begin")
        assert client.error()["C"] == "25P03"
        assert client.at_eof()
    eventually(lambda: cluster.activity("cron") == [])


def test_a_freeze_holds_and_a_resume_lets_go(weir):
    with raw(weir, app="held") as client:
        weir.admin("PAUSE LANE other")
        client.send(wire.query("select 'held'"))
        assert client.quiet(0.5)
        weir.admin("RESUME LANE other")
        assert [m.values for m in client.until("Z") if m.tag == "D"] == [["held"]]


def test_a_held_client_that_says_good_bye_in_tls_only(weir, cluster):
    client = raw(weir, app="bye")
    weir.admin("PAUSE LANE other")
    try:
        client.send(wire.query("select 1"))
        eventually(lambda: weir.client("bye")["state"] == "held")
        try:
            client.sock.settimeout(0.2)
            client.sock.unwrap()
        except (ssl.SSLError, OSError):
            pass
        eventually(lambda: weir.clients("bye") == [], timeout=30)
    finally:
        weir.admin("RESUME LANE other")
        client.close()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_gone_without_close_notify(weir, cluster, how):
    client = raw(weir, app="vanished")
    client.send(wire.query("select pg_sleep(60)"))
    eventually(lambda: cluster.activity("vanished", "wait_event = 'PgSleep'"))
    getattr(client, how)()
    eventually(lambda: cluster.activity("vanished") == [], timeout=30)
    eventually(lambda: weir.clients("vanished") == [])


def test_an_orderly_end_is_answered(weir, cluster):
    """Requests before a Terminate are carried out, and the end is close_notify and not a cut."""
    client = raw(weir, app="orderly")
    client.send(wire.query("select 'last words'"), wire.TERMINATE)
    seen = b""
    while chunk := client.sock.recv(1 << 16):
        seen += chunk
    assert b"last words" in seen
    client.sock.settimeout(30)
    client.sock.unwrap()
    eventually(lambda: cluster.activity("orderly") == [])
    client.close()


def test_pipelines(weir):
    with psycopg.connect(host="127.0.0.1", port=weir.ports["same"], user="odoo", dbname="postgres", sslmode="require", autocommit=True) as conn:
        with conn.pipeline():
            cursors = [conn.execute("select %s::int", (i,)) for i in range(300)]
        assert [cur.fetchone()[0] for cur in cursors] == list(range(300))


# -- certificates change -----------------------------------------------------------------------------------------

def shown(weir, listener="same"):
    """The certificate a listener shows, as DER."""
    with RawClient(weir.ports[listener], tls=context()) as client:
        return client.sock.getpeercert(binary_form=True)


def copied(pair, base, name):
    target = type(pair)(base / f"{name}.pem", base / f"{name}.key")
    for source, to in zip(pair, target):
        shutil.copy(source, to)
    target.key.chmod(0o600)
    return target


@pytest.mark.parametrize("how", ["sighup", "command", "cli"])
def test_a_renewed_certificate(make_weir, cluster, certs, ca, tmp_path, how):
    mine = copied(certs["server"], tmp_path, "mine")
    port = free_port()
    weir = make_weir(listen=[{"address": f"127.0.0.1:{port}", "tls": "allow", **mine.keys()}], admin={"tls": "require", **mine.keys()},
                     upstream={"tls": "require"}, start=False)
    weir.ports = {"same": port}
    weir.start(wait=False)
    eventually(lambda: weir.cli("status").returncode == 0)
    old = shown(weir)
    client = raw(weir)
    shutil.copy(certs["other"].certificate, mine.certificate)
    if how == "sighup":
        weir.signal(signal.SIGHUP)
        eventually(lambda: "not the key of the first certificate" in weir.log())
    else:
        done = weir.cli("reload")
        assert done.returncode == 1 and "not the key of the first certificate" in done.stderr, done
        assert re.search(r"pgweir.toml:\d+: listen\[1\].key_file", done.stderr), "with its line"
    assert shown(weir) == old, "a bad one changes nothing"
    shutil.copy(certs["other"].key, mine.key)
    mine.key.chmod(0o600)
    if how == "sighup":
        weir.signal(signal.SIGHUP)
    elif how == "command":
        weir.admin("RELOAD")
    else:
        done = weir.cli("reload")
        assert done.returncode == 0 and "renewed" in done.stderr, "the admin port still shows the old one"
    eventually(lambda: shown(weir) != old)
    assert ssl.DER_cert_to_PEM_cert(shown(weir)).strip() in mine.certificate.read_text()
    assert client.ok("select 1") == [["1"]], "who is there stays"
    # The admin port comes after the listeners.
    eventually(lambda: (done := weir.cli("status")).returncode == 0 and done.stderr == "")
    client.close()


# -- PostgreSQL --------------------------------------------------------------------------------------------------

def is_tls(weir, user="odoo"):
    """Whether PostgreSQL sees TLS."""
    conn = weir.connect(user=user, sslmode="disable", autocommit=True)
    with conn.cursor() as cur:
        cur.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
        found = cur.fetchone()[0]
    conn.close()
    return found


@pytest.mark.parametrize("mode, ca_of, works", [
    ("disable", None, False), ("prefer", None, True), ("require", None, True), ("require", "ca", True), ("verify-ca", "ca", True),
    ("verify-full", "ca", True), ("verify-full", "server", True), ("verify-ca", "stranger", None), ("require", "stranger", None)])
def test_what_is_asked_of_postgresql(make_weir, cluster, certs, ca, mode, ca_of, works):
    files = {"ca": ca.file, "server": certs["server"].certificate, "stranger": certs["stranger"].certificate}
    upstream = {"tls": mode, "connect_timeout": "20s", **({"ca_file": str(files[ca_of])} if ca_of else {})}
    weir = make_weir(upstream=upstream, monitor={"database": "odoo"}, start=False)
    weir.start(wait=works is not None)
    if works is None:
        eventually(lambda: weir.http("/readyz")[0] == 503)
        eventually(lambda: "UPSTREAM DOWN" in (said := weir.cli("status").stdout) and "TLS" in said, what="the reason")
        return
    assert is_tls(weir) is works
    eventually(lambda: cluster.sql("select ssl from pg_stat_ssl join pg_stat_activity using (pid) where datname = 'odoo' and"
                                   " application_name = 'pgweir monitor'") == [{"ssl": works}], what="the monitor asks the same")


def test_the_name_must_be_postgresqls(make_weir, ca):
    """verify-ca takes any name, verify-full the host's only; a certificate without alternative names is known by its common name."""
    for pair, host, mode, works in [
            (ca.issue("elsewhere", san="DNS:elsewhere"), "127.0.0.1", "verify-ca", True),
            (ca.issue("elsewhere2", san="DNS:elsewhere"), "127.0.0.1", "verify-full", False),
            (ca.issue("bycn", common_name="localhost"), "localhost", "verify-full", True)]:
        fake = Server(pair)
        weir = make_weir(upstream={"tls": mode, "ca_file": str(ca.file), "address": f"{host}:{fake.port}"}, monitor={"user": None}, start=False)
        weir.start(wait=False)
        eventually(lambda: weir.http("/healthz")[0] == 200)
        background(lambda: weir.connect(sslmode="disable"))
        assert fake.shaken(works), (pair, mode)
        fake.close()


class Server:
    """A server that answers SSLRequest (unless it wants TLS at once) and shakes hands, and no more."""

    def __init__(self, pair, answer=b"S", alpn=None):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if alpn:
            self.context.set_alpn_protocols(alpn)
        self.context.load_cert_chain(str(pair.certificate), str(pair.key))
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.answer, self.seen = answer, []
        self.names = []
        self.context.sni_callback = lambda sock, name, context: self.names.append(name)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                conn, _ = self.sock.accept()
            except OSError:
                return
            try:
                conn.settimeout(60)
                if self.answer:
                    assert conn.recv(8) == wire.SSL_REQUEST
                    conn.sendall(self.answer)
                if self.answer[:1] in (b"S", b""):
                    tls = self.context.wrap_socket(conn, server_side=True)
                    self.seen.append(tls.recv(1000))
            except (OSError, AssertionError) as error:
                self.seen.append(error)
            finally:
                conn.close()

    def shaken(self, works):
        eventually(lambda: self.seen)
        return isinstance(self.seen[0], bytes) and self.seen[0][4:8] == b"\0\x03\0\0" if works else isinstance(self.seen[0], OSError)

    def close(self):
        self.sock.close()


def dial(make_weir, fake, **upstream):
    """A pgweir that dials it for one client."""
    weir = make_weir(upstream={"address": f"localhost:{fake.port}", **upstream}, monitor={"user": None}, start=False).start(wait=False)
    eventually(lambda: weir.http("/healthz")[0] == 200)
    background(lambda: weir.connect(sslmode="disable"))
    return weir


@pytest.mark.parametrize("alpn, works", [(ALPN, True), (None, False)])
def test_direct_tls_to_postgresql(make_weir, certs, ca, alpn, works):
    fake = Server(certs["server"], b"", alpn)
    dial(make_weir, fake, tls="verify-full", ca_file=str(ca.file), tls_negotiation="direct")
    eventually(lambda: fake.seen)
    assert (fake.seen[0][4:8] == b"\0\x03\0\0") if works else (fake.seen[0] == b"" or isinstance(fake.seen[0], OSError))
    fake.close()


@pytest.mark.parametrize("mode, works", [("require", True), ("verify-ca", False)])
def test_a_server_certificate_of_version_1(make_weir, ca, mode, works):
    fake = Server(ca.issue(f"first-{mode}", common_name="localhost", version_1=True))
    dial(make_weir, fake, tls=mode, **({} if works else {"ca_file": str(ca.file)}))
    assert fake.shaken(works)
    fake.close()


def test_a_listeners_certificate_of_version_1_that_ends_soon(make_weir, cluster, ca):
    pair, port = ca.issue("soon", version_1=True, days=5), free_port()
    weir = make_weir(listen=[{"address": f"127.0.0.1:{port}", "tls": "allow", **pair.keys()}])
    weir.ports = {"same": port}
    assert psql(weir, "same", sslmode="require").returncode == 0
    done = weir.cli("check")
    assert done.returncode == 0 and re.search(r"warning: listen\[1\].certificate_file: the certificate ends in [45] days", done.stdout), done
    eventually(lambda: "the certificate ends in" in weir.log())


@pytest.mark.parametrize("answer, says", [(b"Sx", "behind its answer"), (b"N", "has no TLS"), (b"X", "does not answer the request")])
def test_a_server_that_answers_oddly(make_weir, cluster, certs, answer, says):
    fake = Server(certs["server"], answer)
    weir = make_weir(upstream={"tls": "require", "address": f"127.0.0.1:{fake.port}"},
                     monitor={"address": f"127.0.0.1:{fake.port}"}, start=False).start(wait=False)
    eventually(lambda: says in weir.cli("status").stdout)
    fake.close()


def test_sni(make_weir, certs, ca):
    fake = Server(certs["server"])
    weir = make_weir(upstream={"tls": "verify-full", "ca_file": str(ca.file), "address": f"localhost:{fake.port}"},
                     monitor={"user": None}, start=False).start(wait=False)
    eventually(lambda: weir.http("/healthz")[0] == 200)
    background(lambda: weir.connect(sslmode="disable"))
    eventually(lambda: fake.names == ["localhost"])
    fake.close()


def test_a_server_without_tls(make_weir, template):
    other = Cluster(template=template).start()
    try:
        weir = Weir(other, upstream={"tls": "prefer"}).start()
        assert is_tls(weir) is False
        weir.close()
    finally:
        other.close()


def test_own_certificate_for_postgresql(make_weir, template, certs, ca):
    """pg_hba's clientcert: PostgreSQL knows pgweir by its certificate."""
    other = Cluster(template=template)
    other.settings.update(for_postgres(other, certs["server"]))
    shutil.copy(ca.file, other.base / "ca.pem")
    other.settings["ssl_ca_file"] = str(other.base / "ca.pem")
    hba = "local all all trust\nhostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n"
    other._write(other.data / "pg_hba.conf", hba)
    weirs = []
    try:
        other.start()
        pair = certs["odoo"]
        weirs.append(Weir(other, upstream={"tls": "require", "certificate_file": str(pair.certificate), "key_file": str(pair.key)}).start())
        assert is_tls(weirs[0])
        weirs.append(Weir(other, upstream={"tls": "require"}, monitor={"user": None}).start(wait=False))
        eventually(lambda: weirs[1].http("/healthz")[0] == 200)
        with pytest.raises(psycopg2.OperationalError, match="certificate"):
            is_tls(weirs[1])
    finally:
        for weir in weirs:
            weir.close()
        other.close()


# -- configuration and check -------------------------------------------------------------------------------------

def test_check_names_the_choices_where_two_certificates_meet(weir, plain_weir):
    done = weir.cli("check")
    assert done.returncode == 1, done
    lines = [line for line in done.stdout.splitlines() if "is another certificate than PostgreSQL's" in line]
    assert [re.search(r"listen\[(\d)\]", line)[1] for line in lines] == ["3", "4"], done.stdout
    assert all("mode = \"scram\"" in line and "channel_binding=disable" in line for line in lines)
    done = plain_weir.cli("check")
    assert done.returncode == 0, done


def test_a_key_that_others_may_read(make_weir, cluster, certs, ca, tmp_path):
    mine = copied(certs["server"], tmp_path, "mine")
    weir = make_weir(listen=[{"address": f"127.0.0.1:{free_port()}", "tls": "allow", **mine.keys(tmp_path / "missing.pem")}],
                     upstream={"tls": "verify-ca", "ca_file": str(mine.key)}, start=False)
    weir.write()
    mine.key.chmod(0o644)
    done = weir.cli("check")
    assert done.returncode == 1
    for words in ("listen[1].key_file: ", "others may read or write the private key", "listen[1].client_ca_file: ", "missing.pem",
                  "upstream.ca_file: ", "holds no certificate"):
        assert words in done.stdout, done.stdout
    assert "PRIVATE" not in done.stdout and mine.key.read_text().splitlines()[1] not in done.stdout
    weir.process = subprocess.run([str(BINARY), "run", "--config", str(weir.config_file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, timeout=20)
    assert weir.process.returncode == 1 and "others may read" in weir.process.stdout
    weir.process = None


def test_show_config_names_files_and_no_keys(weir, certs):
    rows = {row["key"]: row["value"] for row in weir.admin("SHOW CONFIG")}
    assert rows["listen[4].tls"] == "require" and rows["listen[2].key_file"] == str(certs["server"].key)
    assert rows["upstream.tls"] == "verify-full"
    key = certs["server"].key.read_text().splitlines()[1]
    assert not any(key in str(value) for value in rows.values()) and key not in weir.log()


# -- the admin port ----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def strict(make_module_weir, cluster, certs):
    """An admin port that demands TLS."""
    weir = make_module_weir(admin={"tls": "require", **certs["other"].keys()}, start=False)
    weir.start(wait=False)
    eventually(lambda: weir.cli("status").returncode == 0)
    return weir


def test_psql_on_the_console(weir, strict, ca):
    for through in (weir, strict):
        conn = through.admin_connection(sslmode="verify-full", sslrootcert=str(ca.file))
        with conn.cursor() as cur:
            cur.execute("SHOW LANES")
            assert cur.fetchall()
        conn.close()
    with pytest.raises(psycopg2.OperationalError, match="pgweir: this connection needs TLS"):
        strict.admin_connection(sslmode="disable")
    weir.admin_connection(sslmode="disable").close()


def test_https_and_http(weir, strict, ca):
    for through in (weir, strict):
        for alpn in (None, ["http/1.1"]):
            conn = http.client.HTTPSConnection("localhost", through.admin_port, context=context(ca, alpn=alpn), timeout=30)
            conn.request("GET", "/metrics")
            reply = conn.getresponse()
            assert reply.status == 200 and b"pgweir_usage_percent" in reply.read()
            conn.close()
    assert weir.http("/healthz") == (200, "ok\n")
    status, body = strict.http("/healthz")
    assert status == 403 and "https" in body


def test_the_console_over_direct_tls(weir):
    with RawClient(weir.admin_port, tls=False) as client:
        client.start_tls(context(), direct=True)
        client.send(wire.startup_packet("admin", "pgweir"))
        assert client.receive().tag == "R"


def test_stuffed_bytes_and_garbage_at_the_admin_port(weir):
    with RawClient(weir.admin_port, tls=False) as client:
        client.send(wire.SSL_REQUEST + b"x")
        assert client.error()["C"] == "08P01"
    for garbage in (b"\x16\x03\x01\0\x05hello", b"\x16" + b"x" * 5000):
        with RawClient(weir.admin_port, tls=False) as client:
            client.send(garbage)
            assert client.at_eof(30)


def test_cli_by_address(weir, strict):
    for through in (weir, strict):
        done = through.cli("lanes", "--admin", f"127.0.0.1:{through.admin_port}", config=False, env={"PGWEIR_PASSWORD": through.password})
        assert done.returncode == 0 and "other" in done.stdout, done
