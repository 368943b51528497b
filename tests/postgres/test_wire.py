"""The wire: logins, startup in all its shapes, every kind of message, and bytes that are none."""

import io
import select
import struct
import subprocess
import time

import psycopg
import psycopg2
import psycopg2.extras
import pytest

from harness import DIRECT, ServerError, eventually
from harness import wire
from harness.cluster import PASSWORD

PASSWORD_USERS = ["u_password", "u_md5", "u_scram"]


@pytest.fixture(scope="module")
def weir(make_module_weir, cluster):
    cluster.sql("create table wire (id int, note text)", dbname="odoo")
    cluster.sql("grant all on wire to public", dbname="odoo")
    return make_module_weir()


# -- logins ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("user", ["odoo", *PASSWORD_USERS])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg3", "psql"])
def test_login(weir, user, driver):
    password = {"password": PASSWORD} if user != "odoo" else {}
    if driver == "psql":
        done = weir.psql("-c", "select current_user", user=user, **password)
        assert (done.returncode, done.stdout.strip()) == (0, user), done.stderr
        return
    connect = weir.connect if driver == "psycopg2" else weir.connect3
    conn = connect(user=user, **password)
    with conn.cursor() as cur:
        cur.execute("select current_user")
        assert cur.fetchone() == (user,)
    conn.close()


@pytest.mark.parametrize("user", PASSWORD_USERS)
def test_wrong_password_is_postgresqls_own_error(weir, user):
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        weir.connect(user=user, password="wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        weir.connect3(user=user, password="wrong")


@pytest.mark.parametrize("params, state", [({"user": "nosuch"}, "28000"), ({"dbname": "nosuch"}, "3D000"), ({"user": "u_reject"}, "28000")])
def test_refused_by_postgresql(weir, params, state):
    with weir.socket() as client, pytest.raises(ServerError) as error:
        client.startup(**params)
    assert error.value.sqlstate == state


@pytest.mark.parametrize("user", ["u_password", "u_md5"])
def test_raw_password_login(weir, user):
    with weir.socket() as client:
        client.startup(user, password=PASSWORD)
        assert client.ok("select current_user") == [[user]]


def test_unix_socket(weir):
    conn = weir.connect(unix=True)
    with conn.cursor() as cur:
        cur.execute("select 1")
        assert cur.fetchone() == (1,)
    conn.close()


def test_hang_up_at_the_password_prompt(weir):
    # psql and others connect without a password first, hang up, ask the user and come again.
    for _ in range(10):
        with weir.socket() as client:
            client.send(wire.startup_packet("u_md5", "postgres"))
            assert client.receive().tag == "R"
    conn = weir.connect(user="u_md5", password=PASSWORD)
    conn.close()


# -- identity ----------------------------------------------------------------------------------------------------

def test_real_pid(weir):
    conn2, conn3, raw = weir.connect(), weir.connect3(), weir.raw()
    with conn2.cursor() as cur:
        cur.execute("select pg_backend_pid()")
        assert cur.fetchone()[0] == conn2.get_backend_pid()
    assert conn3.execute("select pg_backend_pid()").fetchone()[0] == conn3.info.backend_pid
    assert raw.ok("select pg_backend_pid()") == [[str(raw.pid)]]
    for conn in (conn2, conn3, raw):
        conn.close()


def test_secrets_differ(weir, tidy):
    keys = {tidy(weir.raw()).key for _ in range(8)}
    assert len(keys) == 8
    assert all(len(key) == 4 and any(key) for key in keys)


def test_parameters_of_the_startup_packet_reach_postgresql(weir):
    with weir.raw(app="a name", options="-c work_mem=123kB", DateStyle="SQL, DMY") as client:
        assert client.ok("select current_setting('work_mem'), current_setting('application_name')") == [["123kB", "a name"]]
        assert client.params["DateStyle"] == "SQL, DMY"
        assert client.params["application_name"] == "a name"
        assert {"server_version", "client_encoding", "standard_conforming_strings"} <= set(client.params)


def test_database_defaults_to_the_user(weir):
    with weir.socket() as client:
        body = b"user\0odoo\0\0"
        client.send(struct.pack("!IHH", len(body) + 8, 3, 0) + body)
        client.login()
        assert client.ok("select current_database()") == [["odoo"]]


# -- versions and encryption requests ----------------------------------------------------------------------------

def test_protocol_3_2(weir, cluster):
    with weir.raw(protocol=(3, 2)) as client:
        if client.negotiated is not None:
            minor = struct.unpack_from("!I", client.negotiated)[0] & 0xFFFF
            assert minor == 0
            assert len(client.key) == 4
        else:
            assert int(cluster.value("show server_version_num")) >= 180000, "NegotiateProtocolVersion is missing"
            assert 4 <= len(client.key) <= 256
        assert client.ok("select pg_backend_pid()") == [[str(client.pid)]]


def test_unknown_protocol_options_are_negotiated_away(weir):
    with weir.raw(**{"_pq_.nosuch": "1"}) as client:
        assert client.negotiated is not None and b"_pq_.nosuch\0" in client.negotiated
        assert client.ok("select 1") == [["1"]]


@pytest.mark.parametrize("word", ["nope", "o", "", "truer", "Database"])
def test_replication_that_is_no_boolean_is_refused(weir, word):
    with weir.socket() as client:
        client.send(wire.startup_packet("odoo", "postgres", replication=word))
        assert client.error()["C"] == ("22023" if DIRECT else "08P01")


@pytest.mark.parametrize("protocol", [(2, 0), (4, 0), (1, 0)])
def test_other_protocols_are_refused(weir, protocol):
    with weir.socket() as client:
        client.send(wire.startup_packet("odoo", "postgres", protocol=protocol))
        try:
            assert client.read_exact(1) == b"E"  # what follows has the old protocol's shape
        except EOFError:
            pass
        assert client.at_eof(30)


# PostgreSQL built with GSSAPI accepts a GSSENCRequest where no key table exists; pgweir declines.
GSSENC = pytest.param(wire.GSSENC_REQUEST, marks=pytest.mark.weir, id="gssenc")
SSL = pytest.param(wire.SSL_REQUEST, id="ssl")


@pytest.mark.parametrize("requests", [
    pytest.param([wire.SSL_REQUEST], id="ssl"),
    pytest.param([wire.GSSENC_REQUEST], marks=pytest.mark.weir, id="gssenc"),
    pytest.param([wire.SSL_REQUEST, wire.GSSENC_REQUEST], marks=pytest.mark.weir, id="ssl gssenc"),
    pytest.param([wire.GSSENC_REQUEST, wire.SSL_REQUEST], marks=pytest.mark.weir, id="gssenc ssl"),
])
def test_encryption_requests_are_declined(weir, requests):
    with weir.socket() as client:
        for request in requests:
            client.send(request)
            assert client.read_exact(1) == b"N"
        client.startup()
        assert client.ok("select 1") == [["1"]]


@pytest.mark.parametrize("request_", [SSL, GSSENC])
def test_each_encryption_request_comes_once_at_most(weir, request_):
    with weir.socket() as client:
        client.send(request_)
        assert client.read_exact(1) == b"N"
        client.send(request_)
        try:
            assert client.read_exact(1) == b"E"
        except EOFError:
            pass
        assert client.at_eof(30)


@pytest.mark.parametrize("request_", [SSL, GSSENC])
def test_bytes_stuffed_behind_an_encryption_request(weir, request_):
    with weir.socket() as client:
        client.send(request_, wire.startup_packet("odoo", "postgres"))
        data = b""
        try:
            while chunk := client.sock.recv(4096):
                data += chunk
        except ConnectionResetError:
            pass
        assert data.lstrip(b"N")[:1] in (b"", b"E"), data
        assert b"R\0\0\0" not in data


# -- startup that never becomes one ------------------------------------------------------------------------------

@pytest.mark.parametrize("junk", [
    struct.pack("!II", 20_000, 196608), struct.pack("!II", 0x7FFFFFFF, 196608), struct.pack("!II", 3, 196608),
    struct.pack("!II", 0, 0), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    struct.pack("!IHH", 9, 3, 0) + b"u", struct.pack("!IHH", 14, 3, 0) + b"user\0a", struct.pack("!III", 12, 80877102, 1),
], ids=["oversized", "huge", "tiny", "zero", "http", "tls", "unterminated", "cut", "short cancel"])
def test_junk_instead_of_a_startup_packet(weir, junk):
    with weir.socket() as client:
        client.send(junk, b"\0" * 16)
        assert client.at_eof(30)
    with weir.raw() as client:
        assert client.ok("select 1") == [["1"]]


def test_early_hang_ups_leave_nothing_behind(weir, cluster):
    # What is opened once, with the first that comes to a thread, is no leak.
    hang_up_early(weir, cluster)
    fds = None if DIRECT else weir.fds()
    hang_up_early(weir, cluster)
    if not DIRECT:
        eventually(lambda: weir.fds() <= fds + 10, what="no descriptor left")


def hang_up_early(weir, cluster):
    """Eighty clients that are gone before they are in, and nothing of them is left."""
    full = wire.startup_packet("odoo", "postgres", app="early")
    for i in range(60):
        client = weir.socket()
        client.send(full[:i % (len(full) + 1)])
        if i % 3 == 0:
            client.reset()
        elif i % 3 == 1:
            client.half_close()
            client.close()
        else:
            client.close()
    for _ in range(20):
        client = weir.socket()
        client.send(full)
        client.reset()
    eventually(lambda: cluster.count("early") == 0, what="no backend left")
    if not DIRECT:
        eventually(weir.drained, what="no slot left")


@pytest.mark.weir
def test_startup_timeout(make_weir):
    weir = make_weir(limits={"startup_timeout": "1s"})
    began = time.monotonic()
    with weir.socket() as silent, weir.socket() as half:
        half.send(wire.startup_packet("odoo", "postgres")[:20])
        for client in (silent, half):
            try:
                assert client.error()["C"] == "08P01"
            except EOFError:
                pass
            assert client.at_eof(25)
    assert 0.5 < time.monotonic() - began < 25


# -- relaying ----------------------------------------------------------------------------------------------------

def test_one_byte_at_a_time(weir):
    with weir.socket() as client:
        for byte in wire.startup_packet("odoo", "postgres"):
            client.send(bytes([byte]))
        client.login()
        for byte in wire.query("select 'split'") + wire.extended("select 'me'"):
            client.send(bytes([byte]))
        assert [m.values for m in client.until("Z") if m.tag == "D"] == [["split"]]
        assert [m.values for m in client.until("Z") if m.tag == "D"] == [["me"]]


def test_startup_and_queries_in_one_write(weir):
    with weir.socket() as client:
        client.send(wire.startup_packet("odoo", "postgres"), *[wire.query(f"select {i}") for i in range(50)])
        client.login()
        for i in range(50):
            assert [m.values for m in client.until("Z") if m.tag == "D"] == [[str(i)]]


def test_a_thousand_queries_in_one_write(weir):
    with weir.raw() as client:
        client.send(*[wire.query(f"select {i}") if i % 2 else wire.extended(f"select {i}") for i in range(1000)])
        for i in range(1000):
            assert [m.values for m in client.until("Z") if m.tag == "D"] == [[str(i)]]


def test_extended_protocol(weir):
    with weir.raw() as client:
        assert wire.states(client.ask(wire.parse("select $1::int + 1", "plus"), wire.describe("S", "plus"), wire.SYNC)) == [("Z", "I")]
        for i in range(3):
            seen = client.ask(wire.bind("", "plus", [i]), wire.execute(), wire.SYNC)
            assert [m.values for m in seen if m.tag == "D"] == [[str(i + 1)]]
        seen = client.ask(wire.parse("select generate_series(1, 5)"), wire.bind("p"), wire.execute("p", 2), wire.execute("p", 2),
                          wire.execute("p", 2), wire.SYNC)
        assert [m.tag for m in seen if m.tag in "DsC"] == ["D", "D", "s", "D", "D", "s", "D", "C"]
        client.send(wire.parse("select 7"), wire.bind(), wire.execute(), wire.FLUSH)
        assert client.until("C")[-1].text == "SELECT 1"
        seen = client.ask(wire.parse("select 1/0"), wire.bind(), wire.execute(), wire.extended("select 'skipped'"))
        assert wire.states(seen) == [("E", "22012"), ("Z", "I")]
        assert wire.states(client.ask(wire.close("S", "plus"), wire.SYNC)) == [("Z", "I")]


def test_empty_and_multiple_statements(weir):
    with weir.raw() as client:
        assert [m.tag for m in client.query("")] == ["I", "Z"]
        assert wire.states(client.query("begin; select 1; commit; select 2")) == [
            ("C", "BEGIN"), ("C", "SELECT 1"), ("C", "COMMIT"), ("C", "SELECT 1"), ("Z", "I")]


def test_function_call(weir):
    with weir.raw() as client:
        (oid,) = client.ok("select 'int4pl'::regproc::oid")[0]
        args = b"".join(struct.pack("!I", len(a)) + a for a in (b"2", b"40"))
        seen = client.ask(wire.packet("F", struct.pack("!IHH", int(oid), 0, 2) + args + struct.pack("!H", 0)))
        assert [m.tag for m in seen] == ["V", "Z"]
        assert seen[0].body == struct.pack("!I", 2) + b"42"
        seen = client.ask(wire.packet("F", struct.pack("!IHHH", 4_000_000, 0, 0, 0)))
        assert wire.states(seen)[0][0] == "E" and client.status == "I"


def test_errors_and_notices_pass_untouched(weir):
    with weir.raw() as client:
        seen = client.query("do $$ begin raise notice 'n%', repeat('x', 20000) using hint = 'h'; raise exception using"
                            " errcode = 'ZZ123', message = 'mine', detail = 'd', constraint = 'c'; end $$")
        notice = next(m for m in seen if m.tag == "N").fields
        error = next(m for m in seen if m.tag == "E").fields
        assert notice["M"] == "n" + "x" * 20000 and notice["H"] == "h"
        assert (error["C"], error["M"], error["D"], error["n"]) == ("ZZ123", "mine", "d", "c")


def test_parameter_status(weir):
    conn = weir.connect(autocommit=True)
    with conn.cursor() as cur:
        cur.execute("set client_encoding to 'LATIN1'")
        assert conn.info.parameter_status("client_encoding") == "LATIN1"
        cur.execute("select %s", ("é",))
        assert cur.fetchone() == ("é",)
    conn.close()


def test_server_side_cursor(weir):
    conn = weir.connect()
    with conn.cursor("named") as cur:
        cur.itersize = 100
        cur.execute("select generate_series(1, 5000)")
        assert sum(row[0] for row in cur) == 5000 * 5001 // 2
    conn.close()


def test_prepared_statements_psycopg3(weir):
    conn = weir.connect3()
    for i in range(30):
        assert conn.execute("select %s::int * 2", (i,), prepare=True).fetchone() == (2 * i,)
    conn.close()


def test_pipeline_psycopg3(weir):
    conn = weir.connect3(autocommit=True)
    with conn.pipeline():
        cursors = [conn.execute("select %s::int", (i,)) for i in range(300)]
        assert [c.fetchone()[0] for c in cursors] == list(range(300))
    with pytest.raises(psycopg.errors.DivisionByZero):
        with conn.pipeline():
            conn.execute("select 1")
            conn.execute("select 1/0")
            conn.execute("select 2")
    assert conn.execute("select 3").fetchone() == (3,)
    conn.close()


def test_listen_notify_reaches_an_idle_client(weir):
    listener, speaker = weir.connect(autocommit=True), weir.connect(autocommit=True)
    listener.cursor().execute("listen bell")
    for i in range(5):
        speaker.cursor().execute("select pg_notify('bell', %s)", (str(i),))
        deadline = time.monotonic() + 60
        while not listener.notifies:
            assert select.select([listener], [], [], max(0, deadline - time.monotonic()))[0], "no notification"
            listener.poll()
        assert [n.payload for n in listener.notifies] == [str(i)]
        listener.notifies.clear()
    listener.close()
    speaker.close()


def test_listen_notify_psycopg3(weir):
    listener, speaker = weir.connect3(autocommit=True), weir.connect3(autocommit=True)
    listener.execute("listen bell3")
    speaker.execute("notify bell3, 'ding'")
    assert [n.payload for n in listener.notifies(timeout=60, stop_after=1)] == ["ding"]
    listener.close()
    speaker.close()


def test_disconnect_with_terminate_behind_a_request_commits(weir, cluster):
    # An orderly goodbye: the statement runs to its end although nobody waits for the reply.
    client = weir.raw(dbname="odoo", app="goodbye")
    client.send(wire.query("insert into wire select 77, pg_sleep(0.5)::text"), wire.TERMINATE)
    client.close()
    eventually(lambda: cluster.value("select count(*) from wire where id = 77", dbname="odoo") == 1, what="the row")
    eventually(lambda: cluster.count("goodbye") == 0, what="the backend's end")


def test_half_close_while_idle(weir, cluster):
    client = weir.raw(app="halfclose")
    client.half_close()
    assert client.at_eof(30)
    eventually(lambda: cluster.count("halfclose") == 0, what="the backend's end")


# -- COPY --------------------------------------------------------------------------------------------------------

def test_copy_psycopg2(weir):
    conn = weir.connect(dbname="odoo")
    with conn.cursor() as cur:
        cur.copy_expert("copy wire from stdin", io.StringIO("".join(f"{i}\tnote {i}\n" for i in range(20000))))
        out = io.StringIO()
        cur.copy_expert("copy (select id, note from wire where note like 'note %' order by id) to stdout", out)
        assert out.getvalue() == "".join(f"{i}\tnote {i}\n" for i in range(20000))
        with pytest.raises(psycopg2.errors.InvalidTextRepresentation):
            cur.copy_expert("copy wire from stdin", io.StringIO("x\tbad\n" * 5000))
    conn.rollback()
    with conn.cursor() as cur:
        cur.execute("select 1")
    conn.close()


def test_copy_psycopg3(weir):
    conn = weir.connect3(dbname="odoo")
    with conn.cursor() as cur:
        with cur.copy("copy wire from stdin") as copy:
            for i in range(1000):
                copy.write_row((i, "three"))
        with cur.copy("copy (select id from wire where note = 'three') to stdout") as copy:
            assert sum(1 for _ in copy.rows()) == 1000
        with pytest.raises(psycopg.errors.QueryCanceled):
            with cur.copy("copy wire from stdin") as copy:
                copy.write_row((1, "x"))
                raise psycopg.errors.QueryCanceled("given up")
    conn.close()


def test_copy_fail_and_syncs_inside_copy(weir):
    with weir.raw(dbname="odoo") as client:
        client.send(wire.query("copy wire from stdin"))
        assert client.receive().tag == "G"
        client.send(wire.packet("d", b"1\tx\n"), wire.packet("f", b"changed my mind\0"))
        assert wire.states(client.until("Z")) == [("E", "57014"), ("Z", "I")]
        # Flush and Sync are ignored inside COPY: they must not be counted as requests.
        client.send(wire.parse("copy wire from stdin"), wire.bind(), wire.execute(), wire.SYNC, wire.FLUSH, wire.SYNC)
        assert client.until("G")
        client.send(wire.packet("d", b"1\tsynced\n"), wire.COPY_DONE, wire.SYNC)
        assert wire.states(client.until("Z")) == [("C", "COPY 1"), ("Z", "I")]
        assert client.quiet()
        assert client.ok("select count(*) from wire where note = 'synced'") == [["1"]]


# -- replication -------------------------------------------------------------------------------------------------

def test_replication_commands(weir):
    done = subprocess.run([str(weir.cluster.bin / "psql"), "-XAt", f"host=127.0.0.1 port={weir.port} user=repl dbname=odoo replication=database",
                           "-c", "IDENTIFY_SYSTEM"], text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("|odoo")


def test_logical_replication_stream(weir, cluster):
    slot = "weir_slot"
    cluster.sql("select pg_create_logical_replication_slot(%s, 'test_decoding')", slot, dbname="odoo")
    conn = psycopg2.connect(**weir.dsn(user="repl", dbname="odoo", app="walsender"), connection_factory=psycopg2.extras.LogicalReplicationConnection)
    try:
        cur = conn.cursor()
        cur.start_replication(slot_name=slot, decode=True)
        cluster.sql("insert into wire values (4242, 'streamed')", dbname="odoo")

        def row():
            message = cur.read_message()
            return message and "4242" in message.payload
        eventually(row, what="the decoded row")
    finally:
        conn.close()
        eventually(lambda: not cluster.value("select active from pg_replication_slots where slot_name = %s", slot), what="the walsender's end")
        cluster.sql("select pg_drop_replication_slot(%s)", slot)


# -- malformed messages ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("junk", [b"Q\0\0\0\0", b"Q\0\0\0\3", b"\xff\0\0\0\4", b"z\0\0\0\4", b"Q\xff\xff\xff\xff" + b"x" * 64,
                                  b"GET / HTTP/1.1\r\n\r\n"], ids=["length 0", "length 3", "type 255", "type z", "huge", "http"])
def test_malformed_message_ends_the_session(weir, cluster, junk):
    client = weir.raw(app="malformed")
    client.send(junk)
    try:
        fields = client.error()
        assert fields["C"] == "08P01" and fields["S"] == "FATAL"
    except EOFError:
        pass
    assert client.at_eof(30)
    eventually(lambda: cluster.count("malformed") == 0, what="the backend's end")


def test_message_cut_by_the_end(weir, cluster):
    client = weir.raw(app="cut")
    client.send(b"Q\0\0\0\x20select")
    client.close()
    eventually(lambda: cluster.count("cut") == 0, what="the backend's end")


def test_nothing_left_at_the_end(weir, cluster):
    eventually(lambda: cluster.count() == (0 if DIRECT else 1), what="only the monitor's backend")
    if not DIRECT:
        eventually(weir.drained, what="no slot left")
        assert weir.admin("SHOW USAGE")
        assert "panicked" not in weir.log()
