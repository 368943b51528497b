"""Authentication of pgweir's own: users file and auth query to clients, stored secrets and keys to PostgreSQL."""

import base64
import hashlib
import hmac
import os
import signal
import struct
import time

import psycopg2
import pytest

from harness import background, eventually, lane
from harness import wire

pytestmark = pytest.mark.weir

# pgweir forgives an address one failed login in this time.
FORGIVE_S = 2
PASSWORDS = {"a_plain": "pl4in-Pass", "a_md5": "md5-Pass", "a_scram": "scr4m-Pass", "a_trust": "tru5t-Pass", "a_clear": "cle4r-Pass"}

HBA = """\
local   all          all                         trust
host    all          a_trust     127.0.0.1/32    trust
host    all          a_clear     127.0.0.1/32    password
host    all          a_md5       127.0.0.1/32    md5
host    all          a_plain,a_scram,q_one,q_gone,q_old  127.0.0.1/32  scram-sha-256
host    all          all         127.0.0.1/32    trust
"""

QUERY = "select usename, passwd from weir_auth.secret_of($1)"

SETUP = """
create schema if not exists weir_auth;
create or replace function weir_auth.secret_of(name text) returns table (usename name, passwd text)
  language sql security definer set search_path = pg_catalog
  as $$ select rolname, case when rolvaliduntil < now() then null else rolpassword end from pg_authid
        where rolname = $1 and rolcanlogin and not rolsuper $$;
revoke all on function weir_auth.secret_of(text) from public;
grant usage on schema weir_auth to pgweir;
grant execute on function weir_auth.secret_of(text) to pgweir;
"""


@pytest.fixture(scope="module", autouse=True)
def roles(cluster):
    for name, password in PASSWORDS.items():
        encryption = "md5" if name == "a_md5" else "scram-sha-256"
        cluster.sql(f"set password_encryption = '{encryption}'; create role {name} login password '{password}'")
    cluster.sql(SETUP)
    cluster._write(cluster.data / "pg_hba.conf", HBA)
    cluster.sql("select pg_reload_conf()")


def secret(cluster, user):
    return cluster.value("select rolpassword from pg_authid where rolname = %s", user)


class Users:
    """A users file beside the configuration."""

    def __init__(self, path):
        self.path = path

    def write(self, mode=0o600, **users):
        quote = lambda text: '"' + text.replace('"', '""') + '"'  # noqa: E731
        self.path.write_text("; users\n" + "".join(f"{quote(n)} {quote(s)}\n" for n, s in users.items()))
        self.path.chmod(mode)
        return self


@pytest.fixture
def scram(make_weir, tmp_path):
    """A pgweir that authenticates by a users file, by a query, or both."""
    def make(users=None, query=None, start=True, **sections):
        auth = {"mode": "scram"}
        file = Users(tmp_path / "userlist.txt")
        if users is not None:
            file.write(**users)
            auth["users_file"] = str(file.path)
        if query:
            auth["query"] = query
        sections.setdefault("lanes", [lane("other", default=True, quota=20)])
        weir = make_weir(auth=auth, start=start, **sections)
        weir.users = file
        return weir
    return make


def log_in(weir, user, password, **more):
    conn = weir.connect("auth", user=user, password=password, **more)
    try:
        with conn.cursor() as cur:
            cur.execute("select current_user::text, pg_backend_pid()")
            who, pid = cur.fetchone()
        assert pid == conn.info.backend_pid
        return who
    finally:
        conn.close()


def refused(weir, user, password, **more):
    with pytest.raises(psycopg2.OperationalError) as error:
        weir.connect("auth", user=user, password=password, **more)
    return str(error.value)


# -- users file --------------------------------------------------------------------------------------------------

def test_each_kind_of_secret_opens_client_and_upstream(scram, cluster):
    weir = scram({"a_plain": PASSWORDS["a_plain"], "a_md5": secret(cluster, "a_md5"), "a_scram": secret(cluster, "a_scram"),
                  "a_trust": secret(cluster, "a_trust"), "a_clear": PASSWORDS["a_clear"]})
    for user, password in PASSWORDS.items():
        assert log_in(weir, user, password) == user
        assert log_in(weir, user, password, unix=True) == user
        with weir.connect3("auth", user=user, password=password) as conn:
            assert conn.execute("select current_user::text").fetchone() == (user,)
        done = weir.psql("-c", "select current_user", user=user, password=password)
        assert (done.stdout.strip(), done.stderr) == (user, "")
        assert "password authentication failed" in refused(weir, user, "wrong")
    # A clear password opens md5 at PostgreSQL as well.
    weir.users.write(a_md5=PASSWORDS["a_md5"])
    assert "reloaded" in str(weir.admin("RELOAD"))
    assert log_in(weir, "a_md5", PASSWORDS["a_md5"]) == "a_md5"
    eventually(weir.drained)


def test_no_clear_password_need_be_known_anywhere(scram, cluster):
    """Key pass-through: the verifier is PostgreSQL's own, the key comes from the client."""
    weir = scram({"a_scram": secret(cluster, "a_scram")})
    for _ in range(3):
        assert log_in(weir, "a_scram", PASSWORDS["a_scram"]) == "a_scram"
    # Another verifier of the same password: right for the client, of no use to PostgreSQL.
    weir.users.write(a_scram=verifier(PASSWORDS["a_scram"]))
    weir.admin("RELOAD")
    said = refused(weir, "a_scram", PASSWORDS["a_scram"])
    assert "pgweir could not log in upstream" in said and "the verifier kept here is not the one PostgreSQL has" in said
    eventually(lambda: 'could not log in upstream as "a_scram"' in weir.log())


def verifier(password, iterations=4096):
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    sign = lambda key, text: hmac.new(key, text, hashlib.sha256).digest()  # noqa: E731
    b64 = lambda raw: base64.b64encode(raw).decode()  # noqa: E731
    stored = hashlib.sha256(sign(salted, b"Client Key")).digest()
    return f"SCRAM-SHA-256${iterations}:{b64(salt)}${b64(stored)}:{b64(sign(salted, b'Server Key'))}"


def test_what_postgresql_asks_and_is_not_known_is_told(scram, cluster):
    weir = scram({"a_plain": "md5" + hashlib.md5(b"pl4in-Passa_plain").hexdigest(), "a_clear": secret(cluster, "a_clear"),
                  "a_md5": verifier(PASSWORDS["a_md5"]), "a_scram": "stale-Password", "nobody": "x"})
    assert "only an md5 secret is known" in refused(weir, "a_plain", PASSWORDS["a_plain"])
    assert "asks for the password itself" in refused(weir, "a_clear", PASSWORDS["a_clear"])
    assert "asks for md5, and only a SCRAM verifier" in refused(weir, "a_md5", PASSWORDS["a_md5"])
    assert "PostgreSQL said 28P01" in refused(weir, "a_scram", "stale-Password")
    eventually(lambda: weir.metric("pgweir_refusals_total", reason="upstream_login") == 4)
    eventually(weir.drained)


def test_reload_takes_a_changed_file_whole_or_not_at_all(scram):
    weir = scram({"a_plain": PASSWORDS["a_plain"]})
    assert "authentication failed" in refused(weir, "a_trust", "x")
    weir.users.write(a_trust="new")
    weir.signal(signal.SIGHUP)
    eventually(lambda: log_in_or_not(weir, "a_trust", "new"))
    assert "authentication failed" in refused(weir, "a_plain", PASSWORDS["a_plain"])
    weir.users.path.write_text('"a_trust" "other"\n"a_trust" "hunter2"\n')
    with pytest.raises(psycopg2.Error) as error:
        weir.admin("RELOAD")
    assert "userlist.txt:2: user \"a_trust\" is on line 1 already" in str(error.value) and "hunter2" not in str(error.value)
    assert log_in(weir, "a_trust", "new") == "a_trust"
    # Back to pass-through, and a session of before goes on.
    held = weir.connect("held", user="a_trust", password="new", autocommit=True)
    weir.config["auth"] = {"mode": "passthrough"}
    weir.reload()
    eventually(lambda: log_in_or_not(weir, "a_plain", PASSWORDS["a_plain"]))
    with held.cursor() as cur:
        cur.execute("select 1")
    held.close()


def log_in_or_not(weir, user, password):
    try:
        return log_in(weir, user, password)
    except psycopg2.OperationalError:
        return None


def test_check_names_what_is_wrong_with_the_file(scram):
    weir = scram({"a": "b"}, start=False)
    weir.write()

    def check():
        done = weir.cli("check")
        return done.returncode, done.stdout + done.stderr

    weir.users.write(mode=0o640, a="hunter2")
    status, text = check()
    assert status == 1 and "is open to others than its owner; run `chmod 600` on it" in text
    weir.users.write(a="md5" + "0a" * 16, b="")
    status, text = check()
    assert status == 0 and 'userlist.txt:2: user "a" has an md5 secret' in text and 'user "b" has no password' in text
    weir.users.path.write_text("a hunter2\n")
    status, text = check()
    assert status == 1 and "userlist.txt:1: is no user" in text and "hunter2" not in text
    weir.users.path.unlink()
    status, text = check()
    assert status == 1 and "No such file" in text


# -- auth query --------------------------------------------------------------------------------------------------

def test_the_auth_query_follows_postgresql(scram, cluster):
    cluster.sql("create role q_one login password 'one'; create role q_gone login password 'gone'; create role q_old login password 'old'"
                " valid until '2001-01-01'; create role q_nopass login")
    weir = scram({"a_trust": "filed"}, QUERY)
    assert log_in(weir, "a_trust", "filed") == "a_trust"
    assert log_in(weir, "q_one", "one") == "q_one"
    for user in ("q_old", "q_nopass", "nobody", "postgres"):
        assert "password authentication failed" in refused(weir, user, "old")
    # A changed password is good at the next try: the failure of the first makes pgweir ask again.
    cluster.sql("alter role q_one password 'two'")
    assert "password authentication failed" in refused(weir, "q_one", "two")
    assert log_in(weir, "q_one", "two") == "q_one"
    assert "password authentication failed" in refused(weir, "q_one", "one")
    # The old password while the old verifier is still remembered: PostgreSQL has the last word.
    assert log_in(weir, "q_one", "two") == "q_one"
    cluster.sql("alter role q_one password 'three'")
    assert "could not log in upstream" in refused(weir, "q_one", "two")
    assert "password authentication failed" in refused(weir, "q_one", "two")
    assert log_in(weir, "q_one", "three") == "q_one"
    # A dropped user.
    assert log_in(weir, "q_gone", "gone") == "q_gone"
    cluster.sql("drop role q_gone")
    assert "FATAL" in refused(weir, "q_gone", "gone")
    assert "password authentication failed" in refused(weir, "q_gone", "gone")


def test_a_clients_search_path_is_not_the_auth_querys(scram, cluster):
    cluster.sql("create schema evil; create table evil.pg_shadow (usename name, passwd text); insert into evil.pg_shadow values"
                " ('q_evil', 'known'); grant usage on schema evil to public; grant select on evil.pg_shadow to public;"
                " alter role pgweir set search_path = evil, public; create role q_evil login; grant select on pg_catalog.pg_shadow to pgweir")
    try:
        weir = scram(query="select usename, passwd from pg_shadow where usename = $1")
        assert "password authentication failed" in refused(weir, "q_evil", "known", options="-c search_path=evil")
    finally:
        cluster.sql("alter role pgweir reset search_path; revoke select on pg_catalog.pg_shadow from pgweir")


def test_a_query_that_fails_is_the_operators_affair(scram, cluster):
    weir = scram(query="select usename, passwd from pg_shadow where usename = $1")
    said = refused(weir, "a_scram", "x")
    assert "users cannot be looked up at the moment" in said and "permission denied" not in said
    eventually(lambda: "permission denied" in weir.log())
    eventually(lambda: weir.metric("pgweir_refusals_total", reason="auth_query") == 1)


# -- guessing ----------------------------------------------------------------------------------------------------

def exchange(weir, user, password="wrong"):
    """A SCRAM login by hand: the server's messages, random parts blanked, and from when to when its last answer was waited for."""
    with weir.socket() as client:
        client.send(wire.startup_packet(user, "postgres"))
        seen = [client.receive()]
        first = b"n,,n=,r=abcdefgh"
        client.send(wire.packet("p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first))
        seen.append(client.receive())
        server_first = seen[-1].body[4:].decode()
        nonce, salt, count = (part[2:] for part in server_first.split(","))
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(count))
        key = hmac.new(salted, b"Client Key", hashlib.sha256).digest()
        final = f"c=biws,r={nonce}"
        said = f"n=,r=abcdefgh,{server_first},{final}".encode()
        signature = hmac.new(hashlib.sha256(key).digest(), said, hashlib.sha256).digest()
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature))).decode()
        began = time.monotonic()
        client.send(wire.packet("p", f"{final},p={proof}".encode()))
        seen.append(client.receive())
        ended = time.monotonic()
        closed = client.at_eof()
        blank = server_first.replace(nonce, "N" * len(nonce)).replace(salt, "S" * len(salt))
        return salt, (began, ended), [seen[0], blank, seen[2].tag, seen[2].body.replace(user.encode(), b"U"), closed]


def test_an_unknown_user_looks_like_a_wrong_password(scram, cluster):
    weir = scram({"a_scram": secret(cluster, "a_scram"), "a_plain": PASSWORDS["a_plain"]}, QUERY)
    cluster.sql("create role q_seen login password 'seen'")
    looks, times, salts = [], [], {}
    for user in ("a_scram", "a_plain", "q_seen", "nobody", "a_ghost"):
        salt, wait, look = exchange(weir, user)
        looks.append(look)
        times.append(wait)
        salts[user] = salt
    assert all(look == looks[0] for look in looks), looks
    # The same salt at each try, whoever it is.
    for user, salt in salts.items():
        assert exchange(weir, user)[0] == salt
    assert len(set(salts.values())) == len(salts)
    # Each failure of the address doubles the pause, whoever is named; one is forgiven every two seconds.
    first = times[0][0]
    for n, (began, ended) in enumerate(times):
        held = max(0, n - int((ended - first) / FORGIVE_S))
        assert ended - began >= 0.1 * 2 ** min(held, 4) - 0.01, times


def test_too_many_failures_are_not_heard_and_forgiven_in_time(scram, cluster):
    # Who has logged in once is never shut out: each try below is another user's.
    fresh = [f"t_{n}" for n in range(9)]
    cluster.sql("".join(f"create role {user} login;" for user in fresh))
    weir = scram({"a_trust": "right", "odoo": "neighbour", **dict.fromkeys(fresh, "right")}, limits={"startup_timeout": "60s"})
    assert log_in(weir, "odoo", "neighbour") == "odoo"
    began = time.monotonic()
    jobs = [background(refused, weir, "a_trust", "wrong") for _ in range(40)]
    answers = [job.result(90) for job in jobs]
    heard = [text for text in answers if "password authentication failed" in text]
    assert 30 <= len(heard) <= 30 + (time.monotonic() - began) // FORGIVE_S + 1, len(heard)
    assert all("too many logins from this address failed" in text for text in answers if text not in heard)

    def is_shut_out():
        """Whether the right password is not heard. A failure may have been forgiven just now, so others fail at the same time."""
        jobs = [background(refused, weir, "a_trust", "wrong") for _ in range(5)]
        tried = background(login_or_words, weir, fresh.pop(), "right")
        answers.extend(job.result(90) for job in jobs)
        if not isinstance(said := tried.result(90), str):
            return False
        answers.append(said)
        return "too many logins" in said
    eventually(is_shut_out, timeout=120)
    # Who logged in from here before is not shut out by it.
    assert log_in(weir, "odoo", "neighbour") == "odoo"
    # Nobody is refused at a Unix socket for what others do.
    assert log_in(weir, "a_trust", "right", unix=True) == "a_trust"
    eventually(lambda: log_in_or_not(weir, "a_trust", "right"), timeout=60)
    eventually(weir.drained)
    heard = [text for text in answers if "password authentication failed" in text]
    eventually(lambda: weir.metric("pgweir_refusals_total", reason="password") == len(heard))
    eventually(lambda: weir.metric("pgweir_refusals_total", reason="login_throttled") >= len(answers) - len(heard))


def login_or_words(weir, user, password):
    """What a login is refused with; True if it is not."""
    try:
        return log_in(weir, user, password) == user
    except psycopg2.OperationalError as error:
        return str(error)


def test_nobody_at_an_address_shuts_out_who_works_there(scram):
    weir = scram({"odoo": "right", "ghost": "x"}, limits={"startup_timeout": "60s"})
    assert log_in(weir, "odoo", "right") == "odoo"
    jobs = [background(refused, weir, "odoo", "wrong") for _ in range(33)]
    answers = [job.result(90) for job in jobs]
    assert any("password authentication failed" in text for text in answers)
    # Under its own name, at its own address.
    assert log_in(weir, "odoo", "right") == "odoo"
    # While the address is locked everybody is asked, and told the same.
    jobs = [background(refused, weir, "nobody", "wrong") for _ in range(33)]
    [job.result(90) for job in jobs]
    looks = []
    for user in ("nobody", "ghost"):
        with weir.socket() as client:
            client.send(wire.startup_packet(user, "postgres"))
            looks.append(client.receive().tag)
    assert looks == ["R", "R"]


def test_names_write_no_lines_into_the_log(make_weir):
    weir = make_weir(lanes=[lane("other", default=True, quota=1, wait_timeout="100ms")])
    forged = "x\n2026-01-01T00:00:00Z ERROR forged\x1b[2J"
    with weir.raw(forged), weir.socket() as client:
        client.send(wire.startup_packet("odoo", "postgres", forged))
        assert client.error()["C"] == "53300"
    eventually(lambda: "reason=\"lane_full\"" in weir.log() and "forged" in weir.log())
    assert "\x1b[2J" not in weir.log()
    assert not [line for line in weir.log().splitlines() if line.startswith("2026-01-01T00:00:00Z")]


def test_a_login_holds_no_slot_and_has_a_bound(scram, cluster):
    weir = scram({"a_trust": "right"}, lanes=[lane("other", default=True, quota=1)], limits={"startup_timeout": "8s"})
    silent = [weir.socket() for _ in range(5)]
    for client in silent:
        client.send(wire.startup_packet("a_trust", "postgres"))
        assert client.receive().tag == "R"
    assert weir.lane("other")["slots"] == 0
    assert log_in(weir, "a_trust", "right") == "a_trust"
    for client in silent:
        assert client.error()["M"] == "pgweir: the login took too long"
        client.close()


def test_bytes_that_are_no_answer(scram):
    weir = scram({"a_trust": "right"})
    for junk in (wire.query("select 1"), wire.packet("p", b"x"), wire.packet("p", b"PLAIN\0\0\0\0\0"), b"p\0\0\0\0", b"p\x7f\xff\xff\xff",
                 wire.packet("p", b"SCRAM-SHA-256-PLUS\0" + struct.pack("!I", 20) + b"p=tls-unique,,n=,r=x")):
        with weir.socket() as client:
            client.send(wire.startup_packet("a_trust", "postgres"))
            client.receive()
            client.send(junk)
            assert client.error()["C"] == "08P01"
    with weir.socket() as client:
        client.send(wire.startup_packet("", "postgres"))
        assert client.error()["C"] in ("28000", "08P01")
    assert log_in(weir, "a_trust", "right") == "a_trust"


def test_a_newer_protocol_is_answered_before_the_password_is_asked(scram):
    weir = scram({"u_md5_here": "md5" + hashlib.md5(b"pwodoo").hexdigest(), "odoo": "md5" + hashlib.md5(b"pwodoo").hexdigest()})
    with weir.socket() as client:
        seen = client.startup("odoo", password="pw", protocol=(3, 2), **{"_pq_.what": "on"})
        assert [m.tag for m in seen][:2] == ["v", "R"]
        assert client.negotiated == struct.pack("!II", 3 << 16, 1) + b"_pq_.what\0"
        assert len(client.key) == 4 and client.ok("select 1") == [["1"]]


# -- the rest of a link's life -----------------------------------------------------------------------------------

def test_cancel_leak_and_pause(scram, cluster):
    leaks = {"reset": "300ms", "when": "always"}
    weir = scram({"a_scram": secret(cluster, "a_scram")},
                 lanes=[lane("other", default=True, quota=5, freeze=True, idle_in_transaction=leaks)])
    conn = weir.connect("life", user="a_scram", password=PASSWORDS["a_scram"], autocommit=True)
    cur = conn.cursor()
    running = background(cur.execute, "select pg_sleep(60)")
    eventually(lambda: cluster.activity("life", "wait_event = 'PgSleep'"))
    conn.cancel()
    with pytest.raises(psycopg2.errors.QueryCanceled):
        running.result(30)
    assert weir.lane("other")["resets"] == 0
    # In one message: it is judged as soon as it idles.
    cur.execute("begin; select 1")
    eventually(lambda: weir.lane("other")["resets"] == 1)
    with pytest.raises(psycopg2.Error) as error:
        cur.execute("select 1")
    assert error.value.pgcode == "40001"
    cur.execute("rollback")
    weir.admin("FREEZE")
    held = background(log_in, weir, "a_scram", PASSWORDS["a_scram"])
    eventually(lambda: weir.lane("other")["waiting"] == 1)
    weir.admin("RESUME ALL")
    assert held.result(30) == "a_scram"
    conn.close()


def test_a_client_waits_for_a_full_or_absent_postgresql_after_its_login(scram, cluster):
    weir = scram({"a_scram": secret(cluster, "a_scram")}, lanes=[lane("other", default=True, quota=1, wait_timeout="60s")])
    first = weir.connect("first", user="a_scram", password=PASSWORDS["a_scram"])
    waiting = background(log_in, weir, "a_scram", PASSWORDS["a_scram"])
    eventually(lambda: weir.lane("other")["waiting"] == 1)
    first.close()
    assert waiting.result(60) == "a_scram"
    cluster.stop()
    waiting = background(log_in, weir, "a_scram", PASSWORDS["a_scram"])
    eventually(lambda: weir.lane("other")["waiting"] == 1)
    cluster.start()
    assert waiting.result(60) == "a_scram"


def test_who_is_known_by_query_can_wait_for_an_absent_postgresql(scram, cluster):
    weir = scram(query=QUERY)
    assert log_in(weir, "a_scram", PASSWORDS["a_scram"]) == "a_scram"
    cluster.stop()
    waiting = background(log_in, weir, "a_scram", PASSWORDS["a_scram"])
    eventually(lambda: weir.lane("other")["waiting"] == 1)
    stranger = background(refused, weir, "a_md5", PASSWORDS["a_md5"])
    assert "users cannot be looked up" in stranger.result(60)
    cluster.start()
    assert waiting.result(60) == "a_scram"


# -- secrets -----------------------------------------------------------------------------------------------------

class KeyRing:
    """Every secret of a SCRAM verifier and its password, in the forms in which somebody might print it."""

    def __init__(self):
        self.words = set()

    def password(self, text):
        self.words.add(text)
        return text

    def bytes(self, raw):
        self.words |= {raw.hex(), base64.b64encode(raw).decode(), ", ".join(map(str, raw))}

    def verifier(self, text, password):
        """The keys inside a verifier, and those that the password gives with its salt."""
        head, keys = text.split("$")[1:]
        count, salt = head.split(":")
        for key in keys.split(":"):
            self.bytes(base64.b64decode(key))
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(count))
        self.bytes(salted)
        self.bytes(hmac.new(salted, b"Client Key", hashlib.sha256).digest())
        return text

    def md5(self, text):
        self.words |= {text, text[3:]}
        return text

    def found_in(self, text):
        return sorted(word for word in self.words if word.lower() in text.lower())


def test_no_secret_appears_anywhere_at_trace(scram, cluster, tmp_path):
    ring = KeyRing()
    for password in (*PASSWORDS.values(), "s3cret-guess", "m0nitor-Pass", "0perator-Pass", "stale-Password-9", "qu3ry-Pass"):
        ring.password(password)
    cluster.sql("drop role if exists q_trace; create role q_trace login password 'qu3ry-Pass'")
    cluster.sql("alter role pgweir password 'm0nitor-Pass'")
    stored = {user: secret(cluster, user) for user in (*PASSWORDS, "q_trace")}
    for user, text in stored.items():
        ring.md5(text) if text.startswith("md5") else ring.verifier(text, PASSWORDS.get(user, "qu3ry-Pass"))
    files = {"monitor": "m0nitor-Pass", "admin": "0perator-Pass"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    weir = scram({"a_plain": PASSWORDS["a_plain"], "a_md5": stored["a_md5"], "a_scram": stored["a_scram"], "a_clear": PASSWORDS["a_clear"],
                  "a_trust": "stale-Password-9", "odoo": ring.verifier(verifier("stale-Password-9"), "stale-Password-9")},
                 QUERY, env={"RUST_LOG": "trace"}, log_literals=True, admin={"password_file": str(tmp_path / "admin")},
                 monitor={"password_file": str(tmp_path / "monitor")})
    weir.state.mkdir(exist_ok=True)
    (weir.state / "admin.password").write_text("0perator-Pass\n")
    said = []
    for user in ("a_plain", "a_md5", "a_scram", "a_clear"):
        log_in(weir, user, PASSWORDS[user])
    log_in(weir, "q_trace", "qu3ry-Pass")
    log_in(weir, "a_trust", "stale-Password-9", unix=True)
    held = weir.connect("held", user="a_plain", password=PASSWORDS["a_plain"])
    for user in ("a_plain", "a_md5", "a_scram", "q_trace", "nobody"):
        said.append(refused(weir, user, "s3cret-guess"))
    # What PostgreSQL does not take, what pgweir cannot give, and messages that are none.
    weir.users.write(a_plain="stale-Password-9", a_scram=ring.verifier(verifier("stale-Password-9"), "stale-Password-9"),
                     a_clear=stored["a_clear"], a_md5=ring.verifier(verifier(PASSWORDS["a_md5"]), PASSWORDS["a_md5"]))
    said += weir.admin("RELOAD")
    said += [refused(weir, user, "stale-Password-9") for user in ("a_plain", "a_scram")]
    said += [refused(weir, user, PASSWORDS[user]) for user in ("a_clear", "a_md5")]
    with weir.socket() as client:
        client.send(wire.startup_packet("a_plain", "postgres"))
        client.receive()
        client.send(wire.packet("p", b"stale-Password-9\0"))
        said.append(str(client.error()))
    weir.users.path.write_text('"a_plain" "stale-Password-9\n')
    with pytest.raises(psycopg2.Error) as error:
        weir.admin("RELOAD")
    said.append(str(error.value))
    with pytest.raises(psycopg2.Error) as error:
        weir.admin_connection(password="s3cret-guess")
    said.append(str(error.value))
    for what in ("CONFIG", "CLIENTS", "LANES", "STATUS", "TIMELINE", "APPLICATIONS", "USAGE", "LEAKS", "REASONS", "VERSION", "HELP"):
        try:
            said.append(str(weir.admin(f"SHOW {what}")))
        except psycopg2.Error as error:
            said.append(str(error))
    assert "auth.mode" in str(said) and "scram" in str(said)
    said += [weir.http("/metrics")[1], weir.cli("check").stdout, weir.cli("check").stderr]
    held.close()
    weir.stop()
    said.append(weir.log())
    assert "TRACE" in weir.log() or "DEBUG" in weir.log()
    said += [path.read_text(errors="replace") for path in weir.state.rglob("*") if path.is_file() and path.name != "admin.password"]
    text = "\n".join(said)
    assert ring.found_in(text) == []


def test_the_process_leaves_no_core_dump(scram):
    weir = scram({"a": "b"}, prefix=["prlimit", "--core=unlimited"])
    assert "Max core file size        0                    0" in open(f"/proc/{weir.pid}/limits").read()
    weir.signal(signal.SIGABRT)
    assert weir.process.wait(60) == -signal.SIGABRT
    assert not list(weir.base.glob("core*"))
