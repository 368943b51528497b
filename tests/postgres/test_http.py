"""HTTP on the admin port: routes, roles, who may ask, bounds, events; and docs/api.md against the running server."""

import base64
import contextlib
import datetime
import http.client
import json
import re
import socket
import ssl
import statistics
import time

import psycopg2
import pytest
from harness import certs
from harness.util import background, eventually
from harness.weir import ROOT, lane

pytestmark = pytest.mark.weir

LEAK = {"warn": "100ms", "action": "none"}
READS = "lanes applications clients sessions leaks usage status timeline exit incidents history policy peaks".split()


@pytest.fixture(scope="module")
def weir(make_module_weir, tmp_path_factory):
    secrets = tmp_path_factory.mktemp("secrets")
    (secrets / "viewer").write_text("look\n")
    (secrets / "viewer").chmod(0o600)
    return make_module_weir(
        lanes=[lane("web", quota=5, reserve=1, priority=0, idle_in_transaction=LEAK), lane("cron", freeze=True),
               lane("safe", protected=True), lane("other", default=True, quota=20)],
        applications=[{"match": "web*", "name": "webs", "quota": 9}],
        admin={"user": [{"name": "admin", "role": "operator"},
                        {"name": "viewer", "password_file": str(secrets / "viewer"), "role": "viewer"}],
               "hosts": ["weir.example"]})


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def ask(weir, method, path, body=None, headers=None, auth="admin", timeout=15, connection=None):
    """(status, headers, decoded body). `auth`: admin, viewer, bearer, or None."""
    conn = connection or http.client.HTTPConnection("127.0.0.1", weir.admin_port, timeout=timeout)
    sent = {"admin": lambda: basic("admin", weir.password), "viewer": lambda: basic("viewer", "look"),
            "bearer": lambda: {"Authorization": f"Bearer {weir.password}"}, None: dict}[auth]()
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        sent["Content-Type"] = "application/json"
    sent.update(headers or {})
    conn.request(method, path, body=body, headers=sent)
    reply = conn.getresponse()
    text = reply.read().decode()
    if connection is None:
        conn.close()
    is_json = reply.headers.get("Content-Type", "").startswith("application/json")
    return reply.status, reply.headers, json.loads(text) if is_json and text else text


def get(weir, what, **more):
    status, _, found = ask(weir, "GET", f"/api/v1/{what}", **more)
    assert status == 200, found
    return found


def last_seq(weir):
    return get(weir, "timeline")[-1]["seq"]


# -- the same as the console -------------------------------------------------------------------------------------

def test_every_table_is_the_consoles(weir, tidy):
    tidy(weir.raw("web1")).ok("select 1")
    for name in ("lanes", "applications", "clients", "leaks", "timeline", "incidents"):
        def same():
            shown, found = weir.admin(f"SHOW {name}"), get(weir, name)
            assert [set(row) for row in found] == [set(row) for row in shown], name
            assert [{k: v for k, v in row.items() if not k.endswith("_ms")} for row in found] == \
                [{k: v for k, v in row.items() if not k.endswith("_ms")} for row in shown], name
            return True
        # Something may happen between the two questions, but not each time.
        eventually(same, what=name)
    assert set(get(weir, "usage")) == set(weir.admin("SHOW USAGE")[0])
    # What was measured goes on between the two questions.
    criteria = lambda rows: [(set(row), row["criterion"], row["wanted"]) for row in rows]  # noqa: E731
    assert criteria(get(weir, "exit")) == criteria(weir.admin("SHOW EXIT"))


def test_commands_do_what_the_console_does(weir, tidy):
    status, _, found = ask(weir, "POST", "/api/v1/freeze", {"reason": "sale\non", "for": "30 min"})
    assert status == 200 and "cron" in found["message"], found
    row = weir.lane("cron")
    assert row["state"] == "paused" and "admin" in row["paused_by"] and "sale on" in row["reason"]
    assert weir.timeline_has("freeze", "admin (http)", "sale on")
    status, _, found = ask(weir, "POST", "/api/v1/lanes/cron/resume", {"reason": "sale over"}, headers={"User-Agent": "curl/8"})
    assert status == 200 and "resumed" in found["message"]
    assert weir.lane("cron")["state"] == "open" and weir.timeline_has("note", "admin (curl)", "resume of lane cron: sale over")
    assert ask(weir, "POST", "/api/v1/lanes/cron/pause", {"on": "reject", "for": "5m", "reason": "x"})[0] == 200
    with pytest.raises(Exception, match="pgweir: the lane is paused"):
        weir.connect("cron")
    status, _, found = ask(weir, "POST", "/api/v1/lanes/cron/resume", {"over": "200ms"})
    assert status == 200, found
    eventually(lambda: weir.lane("cron")["state"] == "open")
    client = tidy(weir.raw("web2"))
    client.ok("begin")
    number = weir.client("web2")["id"]
    status, _, found = ask(weir, "POST", f"/api/v1/clients/{number}/reset", {"reason": "blocks checkout"}, auth="bearer")
    assert status == 200 and "rolled back" in found["message"], found
    assert ask(weir, "POST", f"/api/v1/clients/{number}/reset")[0] == 409
    assert ask(weir, "POST", f"/api/v1/clients/{number}/kill", {})[0] == 200
    eventually(lambda: not weir.clients("web2"))
    other = tidy(weir.raw("web3"))
    other.ok("select 1")
    assert ask(weir, "POST", "/api/v1/lanes/web/drain", {"reason": "moving"})[0] == 200
    eventually(lambda: not weir.clients("web3"))


# -- who may ask -------------------------------------------------------------------------------------------------

def test_no_password_and_wrong_ones(weir):
    for method, path in [*(("GET", f"/api/v1/{name}") for name in READS), ("GET", "/api/v1/events"), ("GET", "/"), ("GET", "/page/main.js"), ("GET", "/api/v1/nosuch"),
                         ("POST", "/api/v1/freeze"), ("OPTIONS", "/api/v1/freeze")]:
        status, headers, _ = ask(weir, method, path, auth=None)
        assert status == 401 and headers["WWW-Authenticate"].startswith("Basic"), (method, path)
    wrong = [basic("admin", "wrong"), basic("nobody", weir.password), basic("viewer", weir.password), basic("admin", "look"), basic("admin", ""),
             {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}, {"Authorization": "Negotiate x"}, {"Authorization": "Basic %%%"}]
    began = time.monotonic()
    tries = [background(ask, weir, "GET", "/api/v1/lanes", headers=headers, auth=None) for headers in wrong]
    assert [attempt.result(30)[0] for attempt in tries] == [401] * len(wrong)
    assert time.monotonic() - began >= 1, "a wrong password is answered late"
    assert ask(weir, "GET", "/api/v1/lanes", auth="bearer")[0] == 200
    assert weir.password not in weir.log()


def test_guesses_are_bounded_even_if_nobody_waits_for_the_answer(make_weir):
    weir = make_weir()
    known = http.client.HTTPConnection("127.0.0.1", weir.admin_port, timeout=10)
    assert ask(weir, "GET", "/api/v1/lanes", connection=known)[0] == 200
    began = time.monotonic()
    for n in range(300):
        with socket.create_connection(("127.0.0.1", weir.admin_port)) as sock:
            sock.sendall(b"GET /api/v1/lanes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer guess\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
        if n % 50 == 49:
            assert ask(weir, "GET", "/api/v1/lanes", connection=known)[0] == 200, "who is known is heard"
    heard = weir.log().count("wrong password")
    # Sixteen a second, for as long as it took.
    assert heard <= 64 + 16 * (time.monotonic() - began), heard
    assert weir.http("/healthz")[0] == 200

    def heard_again():
        try:
            return ask(weir, "GET", "/api/v1/lanes")[0] == 200
        except OSError:
            return False
    eventually(heard_again)


def test_roles(weir):
    for name in READS:
        assert ask(weir, "GET", f"/api/v1/{name}", auth="viewer")[0] == 200, name
    before = weir.lanes()["cron"]["state"]
    for path in ("freeze", "lanes/cron/pause", "lanes/cron/resume", "lanes/cron/drain", "clients/1/reset", "clients/1/kill", "nosuch"):
        status, _, found = ask(weir, "POST", f"/api/v1/{path}", {}, auth="viewer")
        assert status == 403 and "look, not change" in found["error"], path
    assert ask(weir, "DELETE", "/api/v1/lanes", auth="viewer")[0] == 403
    assert weir.lanes()["cron"]["state"] == before


def test_foreign_hosts(weir):
    """DNS rebinding: a foreign name that points here."""
    for host in ("evil.example", "evil.example:6433", "127.0.0.1.evil.example", "localhost.evil.example", "weir.example.evil", "[", ""):
        for auth in ("admin", None):
            assert ask(weir, "GET", "/api/v1/lanes", headers={"Host": host}, auth=auth)[0] == 403, host
        assert ask(weir, "POST", "/api/v1/freeze", {}, headers={"Host": host})[0] == 403, host
        assert ask(weir, "GET", "/", headers={"Host": host})[0] == 403, host
    for host in ("127.0.0.1", f"localhost:{weir.admin_port}", "[::1]:9", "10.1.2.3:80", "WEIR.example", "weir.example:6433"):
        assert ask(weir, "GET", "/api/v1/lanes", headers={"Host": host})[0] == 200, host
    # Monitoring is asked under any name.
    for path in ("/metrics", "/healthz", "/readyz"):
        assert ask(weir, "GET", path, headers={"Host": "pgweir.internal"}, auth=None)[0] == 200
    # In the request line as well.
    with socket.create_connection(("127.0.0.1", weir.admin_port)) as sock:
        sock.sendall(f"GET http://evil.example/api/v1/lanes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {weir.password}\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 403")
    assert weir.lane("cron")["state"] == "open"


def test_hosts_follow_a_reload(make_weir):
    weir = make_weir()
    named = {"Host": "new.example:6433"}
    assert ask(weir, "GET", "/api/v1/lanes", headers=named)[0] == 403
    weir.config["admin"]["hosts"] = ["new.example"]
    weir.reload()
    eventually(lambda: ask(weir, "GET", "/api/v1/lanes", headers=named)[0] == 200)
    assert [row for row in weir.admin("SHOW CONFIG") if row["key"] == "admin.hosts" and "new.example" in row["value"]]


def test_foreign_origins(weir):
    ours = f"http://127.0.0.1:{weir.admin_port}"
    for origin in ("http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", "file://", ""):
        for method, path in (("POST", "/api/v1/freeze"), ("GET", "/api/v1/lanes"), ("GET", "/api/v1/events"), ("GET", "/metrics")):
            assert ask(weir, method, path, headers={"Origin": origin})[0] == 403, (origin, path)
    for site in ("cross-site", "same-site"):
        assert ask(weir, "POST", "/api/v1/freeze", headers={"Sec-Fetch-Site": site})[0] == 403
        assert ask(weir, "GET", "/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"})[0] == 200
    status, headers, _ = ask(weir, "GET", "/api/v1/lanes", headers={"Origin": ours, "Sec-Fetch-Site": "same-origin"})
    assert status == 200
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert weir.lane("cron")["state"] == "open"


def test_every_answer_is_fenced(weir):
    for path, auth in (("/", "admin"), ("/api/v1/lanes", "admin"), ("/api/v1/lanes", None), ("/healthz", None), ("/nosuch", "admin")):
        _, headers, _ = ask(weir, "GET", path, auth=auth)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"


# -- what is not understood --------------------------------------------------------------------------------------

def test_unknown_things(weir):
    for method, path, want in [
            ("GET", "/api/v1/nosuch", 404), ("GET", "/api/v1/lanes/web", 404), ("GET", "/api/v1/", 404), ("POST", "/api/v1/lanes/nosuch/pause", 404),
            ("POST", "/api/v1/lanes/nosuch/resume", 404), ("POST", "/api/v1/lanes/nosuch/drain", 404), ("POST", "/api/v1/lanes/%22/pause", 404),
            ("POST", "/api/v1/clients/999999/kill", 404), ("POST", "/api/v1/clients/999999/reset", 404), ("POST", "/api/v1/clients/x/kill", 404),
            ("POST", "/api/v1/clients/-1/kill", 404), ("POST", "/api/v1/clients/99999999999999999999/kill", 404),
            ("POST", "/api/v1/lanes", 405), ("GET", "/api/v1/freeze", 405), ("DELETE", "/api/v1/lanes/web/pause", 405),
            ("GET", "/api/v1/lanes?x=1", 400), ("GET", "/api/v1/timeline?after=x", 400), ("GET", "/api/v1/events?since=1", 400),
            ("POST", "/api/v1/freeze?for=5m", 400)]:
        status, _, found = ask(weir, method, path)
        assert status == want and found["error"] and "hint" in found, (method, path, status, found)
    assert "the nearest is: cron" in ask(weir, "POST", "/api/v1/lanes/crn/pause")[2]["hint"]


def test_bodies_that_are_none(weir):
    as_json = {"Content-Type": "application/json"}
    for body in (b"{", b"[]", b'["x"]', b"null", b'"x"', b"{} {}", b'{"reason": 1}', b'{"reason": "x", "reason": "y"}', b'{"Reason": "x"}', b'{"over": "5m"}',
                 b'{"on": "hold"}', b'{"for": "soon"}', b'{"for": "0s"}', b'{"for": 300}', b'{"for": "400 d"}', b"\xff", b'{"reason": "\xff"}',
                 json.dumps({"reason": "x" * 1001}).encode(), b"[" * 5000):
        status, _, found = ask(weir, "POST", "/api/v1/freeze", body, headers=as_json)
        assert status == 400 and found["error"], (body, status, found)
    assert ask(weir, "POST", "/api/v1/lanes/cron/pause", {"on": "maybe"})[0] == 400
    assert ask(weir, "POST", "/api/v1/lanes/cron/resume", {"for": "5m"})[0] == 400
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"):
        assert ask(weir, "POST", "/api/v1/freeze", b"{}", headers={"Content-Type": kind})[0] == 415
    assert weir.lane("cron")["state"] == "open"


def test_bodies_that_are_too_large(weir):
    as_json = {"Content-Type": "application/json"}
    for size in (8193, 200_000):
        assert ask(weir, "POST", "/api/v1/freeze", b" " * size, headers=as_json)[0] == 413
    with socket.create_connection(("127.0.0.1", weir.admin_port), timeout=15) as sock:
        sock.sendall(f"POST /api/v1/freeze HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {weir.password}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(100):
                sock.sendall(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        except OSError:
            pass
        assert b" 413 " in sock.recv(4096)
    assert weir.lane("cron")["state"] == "open"


@pytest.mark.timeout(60)
def test_slow_clients_are_left(weir):
    """A body that does not come, and a head that does not, cost 10 s and nobody else."""
    slow = [socket.create_connection(("127.0.0.1", weir.admin_port), timeout=30) for _ in range(2)]
    slow[0].sendall(f"POST /api/v1/freeze HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {weir.password}\r\nContent-Length: 10\r\n\r\n{{".encode())
    slow[1].sendall(b"GET /api/v1/lanes HTTP/1.1\r\nHost: local")
    assert get(weir, "lanes")
    assert b" 408 " in slow[0].recv(4096)
    assert slow[1].recv(4096)[:12] in (b"", b"HTTP/1.1 408")
    for sock in slow:
        sock.close()


def test_silence_does_not_shut_the_port(weir):
    """128 connections that say nothing, or begin to and stop."""
    def soon():
        held = [socket.create_connection(("127.0.0.1", weir.admin_port), timeout=10) for _ in range(128)]
        for n, sock in enumerate(held):
            # Those that gave way already hear nothing more.
            with contextlib.suppress(OSError):
                sock.sendall([b"", b"G", b"\0\0\0\x54", b"GET /healthz HTTP/1.1\r\n"][n % 4])
        began = time.monotonic()
        assert weir.http("/healthz") == (200, "ok\n")
        assert weir.lanes() and get(weir, "lanes")
        took = time.monotonic() - began
        for sock in held:
            sock.close()
        return took < 5
    # Where they had to be waited out it were ten seconds, each time.
    eventually(soon, timeout=60, what="an answer before their time is up")


def test_keep_alive(weir):
    conn = http.client.HTTPConnection("127.0.0.1", weir.admin_port, timeout=10)
    conn.connect()
    sock = conn.sock
    for path, want in (("/api/v1/lanes", 200), ("/api/v1/nosuch", 404), ("/healthz", 200), ("/api/v1/clients", 200)):
        assert ask(weir, "GET", path, connection=conn)[0] == want
    assert ask(weir, "POST", "/api/v1/lanes/cron/resume", {}, connection=conn)[0] == 200
    assert conn.sock is sock, "one connection served them all"
    conn.close()


def test_rates_are_bounded(make_weir):
    weir = make_weir()
    auth = f"Authorization: {basic('admin', weir.password)['Authorization']}\r\n"
    # All at once: at a hundred a second it would take the slowest of machines to answer each of them. The last one is a question.
    asked = 2000
    requests = f"POST /api/v1/lanes/other/resume HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n" * asked
    requests += f"GET /api/v1/lanes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{auth}\r\n"
    with socket.create_connection(("127.0.0.1", weir.admin_port), timeout=60) as sock:
        sending = background(sock.sendall, requests.encode())
        answers = b"".join(iter(lambda: sock.recv(1 << 16), b""))
        sending.result(60)
    seen = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]
    assert len(seen) == asked + 1 and set(seen[:-1]) == {200, 429}
    assert seen[-1] == 200, "reads have a rate of their own"


def test_over_tls(make_weir):
    made = certs.suite()
    weir = make_weir(admin={"tls": "require", **made.keys()}, start=False)
    weir.start(wait=False)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def lanes():
        conn = http.client.HTTPSConnection("127.0.0.1", weir.admin_port, context=context, timeout=10)
        try:
            return ask(weir, "GET", "/api/v1/lanes", connection=conn)
        except OSError:
            return None
        finally:
            conn.close()
    status, _, found = eventually(lanes)
    assert status == 200 and found[0]["lane"] == "other"
    conn = http.client.HTTPSConnection("127.0.0.1", weir.admin_port, context=context, timeout=10)
    origin = {"Origin": f"https://127.0.0.1:{weir.admin_port}"}
    assert ask(weir, "POST", "/api/v1/lanes/other/pause", {"reason": "x"}, headers=origin, connection=conn)[0] == 200
    assert weir.lane("other")["state"] == "paused"
    stream = follow(weir, context=context)
    assert stream.next("snapshot")["lanes"][0]["state"] == "paused"
    stream.close()
    assert ask(weir, "GET", "/api/v1/lanes")[0] == 403, "not without TLS"


# -- events ------------------------------------------------------------------------------------------------------

class Events:
    """A stream of server-sent events."""

    def __init__(self, weir, path="/api/v1/events", context=None, auth=None, **headers):
        self.sock = socket.create_connection(("127.0.0.1", weir.admin_port), timeout=15)
        if context:
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        sent = {"Host": "localhost", **(auth or basic("admin", weir.password)), "Accept": "text/event-stream", **headers}
        self.sock.sendall((f"GET {path} HTTP/1.0\r\n" + "".join(f"{k}: {v}\r\n" for k, v in sent.items()) + "\r\n").encode())
        self.file = self.sock.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        self.headers = {}
        while line := self.file.readline().decode().strip():
            name, _, value = line.partition(": ")
            self.headers[name.lower()] = value
        self.id = None

    def any(self):
        """(event, id, data) of the next event."""
        event, number, data = None, None, []
        while True:
            line = self.file.readline().decode()
            if not line:
                raise EOFError
            line = line.rstrip("\n")
            if not line and event:
                self.id = number or self.id
                return event, number, json.loads("\n".join(data))
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                event = value
            elif name == "id":
                number = value
            elif name == "data":
                data.append(value)

    def next(self, wanted):
        """The data of the next event of a kind."""
        while True:
            event, _, data = self.any()
            if event == wanted:
                return data

    def close(self):
        self.file.close()
        self.sock.close()


def follow(weir, *args, **more):
    """A stream. Those of a test before may be given back only now."""
    def opened():
        stream = Events(weir, *args, **more)
        if stream.status == 503:
            stream.close()
            return None
        assert stream.status == 200
        return stream
    return eventually(opened, what="a place for a stream")


def test_snapshots_come_every_second_and_after_what_happens(weir, tidy):
    stream = tidy(follow(weir))
    assert stream.status == 200 and stream.headers["content-type"] == "text/event-stream" and stream.headers["cache-control"] in ("no-store", "no-cache")
    first = stream.next("snapshot")
    assert [row["lane"] for row in first["lanes"]] == ["web", "cron", "safe", "other"]
    # By pgweir's clock: what is read late was not sent late.
    sent = [datetime.datetime.fromisoformat(stream.next("snapshot")["at"]).timestamp() for _ in range(6)]
    gaps = [later - earlier for earlier, later in zip(sent, sent[1:])]
    assert 0.8 < statistics.median(gaps) < 3, gaps

    def at_once(act):
        # Just behind a snapshot: the next one is a second away.
        stream.next("snapshot")
        began = time.monotonic()
        assert ask(weir, "POST", f"/api/v1/lanes/cron/{act}", {"reason": "look"})[0] == 200
        assert stream.next("timeline")["event"] == act
        return time.monotonic() - began < 0.5
    assert any(at_once("pause") or at_once("resume") for _ in range(5)), "at once, where the machine does not stand still each time"
    ask(weir, "POST", "/api/v1/lanes/cron/pause", {"reason": "look"})
    eventually(lambda: [row for row in stream.next("snapshot")["lanes"] if row["lane"] == "cron" and row["state"] == "paused"])
    ask(weir, "POST", "/api/v1/lanes/cron/resume")


def test_a_stream_goes_on_where_it_ended(weir, tidy):
    stream = tidy(follow(weir))
    weir.admin("NOTE 'one'")
    assert stream.next("timeline")["text"] == "one"
    seen = stream.id
    stream.close()
    for text in ("two", "three"):
        weir.admin(f"NOTE '{text}'")
    for headers, path in (({"Last-Event-ID": seen}, ""), ({}, f"?after={seen}"), ({"Last-Event-ID": seen}, "?after=0")):
        again = tidy(follow(weir, "/api/v1/events" + path, **headers))
        wanted = get(weir, f"timeline?after={seen}")
        assert [entry["text"] for entry in wanted if entry["event"] == "note"] == ["two", "three"]
        found = [again.next("timeline") for _ in wanted]
        # None is missing and none comes twice, whatever else pgweir has put on record.
        assert found == wanted and again.id == str(found[-1]["seq"]), (headers, path)
        assert [entry["seq"] for entry in found] == list(range(int(seen) + 1, int(seen) + 1 + len(found)))
    # A number of another life of the timeline: all of this one is new. What is no number is none.
    again = tidy(follow(weir, **{"Last-Event-ID": "99999999"}))
    assert again.next("timeline")["seq"] == get(weir, "timeline")[0]["seq"]
    again = tidy(follow(weir, **{"Last-Event-ID": "x"}))
    weir.admin("NOTE 'four'")
    assert again.next("timeline")["text"] == "four"


def test_streams_are_bounded_and_given_back(weir, tidy):
    streams = [tidy(follow(weir)) for _ in range(16)]
    assert tidy(Events(weir)).status == 503
    assert get(weir, "lanes") and weir.lanes(), "others are served"
    for stream in streams:
        stream.next("snapshot")
        stream.close()
    tidy(follow(weir))


def test_a_viewer_may_follow(weir, tidy):
    assert tidy(follow(weir, auth=basic("viewer", "look"))).next("snapshot")["usage"]


def test_a_slow_reader_costs_no_memory(weir, tidy):
    """Nothing is queued for who does not read: neither for snapshots nor for the timeline."""
    lazy = [tidy(follow(weir)) for _ in range(8)]
    before = weir.memory_kb()
    with weir.admin_connection() as conn, conn.cursor() as cur:
        # Many at once: who reads nothing for half a minute is left.
        for n in range(0, 1500, 50):
            cur.execute("; ".join(f"NOTE '{number} {'x' * 900}'" for number in range(n, n + 50)))
    assert weir.memory_kb() - before < 40_000
    assert weir.http("/healthz")[0] == 200
    # It reads on, misses what is kept no longer, and sees that it does.
    numbers = [lazy[0].next("timeline")["seq"] for _ in range(200)]
    assert numbers == sorted(set(numbers))


# -- the documentation -------------------------------------------------------------------------------------------

def documented():
    """Fields with their types by heading of docs/api.md; the last table under a heading."""
    out, heading = {}, None
    for line in (ROOT / "docs" / "api.md").read_text().splitlines():
        if line.startswith("#"):
            found = re.match(r"### GET /api/v1/(\w+)|#### ([\w.]+)$", line)
            heading = found and (found[1] or found[2])
        row = re.match(r"\| `([\w.]+)` \| ((?:string|boolean|integer|number|object|array)(?: or null)?) \|", line)
        if heading and row:
            out.setdefault(heading, {})[row[1]] = row[2]
    return out


def check(where, found, fields):
    known = {k: v for k, v in found.items() if not k.startswith("lookups_failed.")}
    assert list(known) and set(known) == set(fields), where
    types = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "object": dict, "array": list}
    for name, value in known.items():
        kind, _, null = fields[name].partition(" or ")
        is_kind = isinstance(value, types[kind]) and isinstance(value, bool) == (kind == "boolean")
        assert (value is None and null) or is_kind, (where, name, value)


def test_the_documentation_is_what_is_served(weir, cluster, tidy):
    client = tidy(weir.raw("web9"))
    client.ok("begin; select 1")
    beside = tidy(psycopg2.connect(host="127.0.0.1", port=cluster.port, user="odoo", dbname="postgres"))
    beside.cursor().execute("select 1")
    eventually(lambda: get(weir, "leaks") and len(get(weir, "sessions")) > 1)
    docs = documented()
    assert set(docs) >= set(READS) | {"events"}
    for name in READS:
        found = get(weir, name)
        for row in found if isinstance(found, list) else [found]:
            check(name, row, docs[name])
    for row in get(weir, "policy")["lanes"]:
        check("policy.lanes", row, docs["policy.lanes"])
    snapshot = tidy(follow(weir)).next("snapshot")
    check("events", snapshot, docs["events"])
    for name in ("status", "usage", "lanes", "applications", "leaks"):
        part = snapshot[name]
        for row in part if isinstance(part, list) else [part]:
            check(f"events.{name}", row, docs[name])


def test_every_documented_route_is_there(weir):
    text = (ROOT / "docs" / "api.md").read_text()
    for method, path in set(re.findall(r"`?(GET|POST) (/api/v1/[\w/]+)", text)):
        path = path.replace("NAME", "nosuch").replace("ID", "999999")
        if path.endswith("/events"):
            follow(weir).close()
            continue
        status, _, found = ask(weir, method, path)
        if path.endswith("freeze"):
            ask(weir, "POST", "/api/v1/lanes/cron/resume")
        assert status == 200 or "there is no lane" in found["error"] or "there is no client" in found["error"], (method, path, status)
