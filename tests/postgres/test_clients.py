"""Clients of others, each over every way to come in: pgjdbc, node-postgres, psycopg 3, psql and tokio-postgres see through pgweir what
they see without it.

psycopg2 and openssl have their places in other tests. The programs are in tests/clients, and examples/tokio_client.rs; script/setup
fetches what they need, and script/test builds the last: what is missing is a failure.
"""

import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile

import pytest

from harness import Cluster, background, free_port, lane
from harness.certs import Authority, for_postgres, run
from harness.cluster import PASSWORD, bindir
from harness.weir import ROOT

pytestmark = pytest.mark.weir

CLIENTS = ROOT / "tests" / "clients"
JAR = CLIENTS / "jdbc" / "postgresql.jar"
TOKIO = ROOT / "target" / "debug" / "examples" / "tokio_client"
ANSWER_S = 250

# By name: how pgweir authenticates, TLS to PostgreSQL, and the lane's pooling. None is PostgreSQL itself: it says what is to be seen.
SERVERS = {
    "postgresql": None,
    "pass-through": {},
    "pass-through-tls": {"upstream": "verify-full"},
    "own": {"auth": "scram"},
    "pooled": {"auth": "scram", "pooling": "session"},
}
TLS = ["plain", "require", "verify-full", "direct", "certificate"]
# The password's way: SCRAM without channel binding, as the driver likes it, with it, and md5.
AUTH = {"scram": "disable", "scram-default": "prefer", "scram-plus": "require", "md5": "disable"}
USERS = {"scram": "u_scram", "scram-default": "u_scram", "scram-plus": "u_scram", "md5": "u_md5"}

COMMON = {
    "wrong": "28P01", "pid": "true", "simple": "1 zwei, null größe €", "transaction": "0 2", "error": "22012 42P01 25P02 1", "cancel": "57014 1",
    "prepared": "2 größe €! 0001ff, 3 null 0002ff, 4 größe €! 0003ff", "notify": "pgweir_clients größe € true 1",
    "copy": "1000 true 22P02 1000", "big": "true", "after": "1 2",
}
# Nothing but psql's \gdesc prepares.
TYPED = {step: seen for step, seen in COMMON.items() if step != "prepared"}
# It tells nobody the pid that it cancels by.
BLIND = {step: seen for step, seen in COMMON.items() if step != "pid"}
SEEN = {
    "pgjdbc": {**COMMON, "extended": COMMON["simple"], "batch": "1000 499500", "cursor": "500500", "timeout": "57014 1", "large": "100000"},
    "node-postgres": {**COMMON, "pipeline": "4900 22012"},
    "psycopg": {**COMMON, "pipeline": "4950 22012", "cursor": "500500"},
    "psql": {**TYPED, "described": "n integer, t text", "cursor": "500500", "reconnect": "true"},
    "tokio-postgres": {**BLIND, "pipeline": "4900 22012", "cursor": "500500"},
}
# They keep the SQLSTATE of a login to themselves, and cannot choose their address.
LIBPQ = {"psycopg", "psql"}


def offers(client, tls):
    """Whether the client knows this way. psql begins with TLS at once from 17 on."""
    return (client, tls) != ("psql", "direct")


def modes():
    """Every combination that driver and server offer."""
    made = []
    for server, tls, auth, client in itertools.product(SERVERS, TLS, AUTH, SEEN):
        offers_binding = tls != "plain" and server != "pass-through"
        if auth == "scram-plus" and not offers_binding:
            continue
        # A driver's liking differs from the two others in what it says, not in what is encrypted; node-postgres likes no binding.
        if auth == "scram-default" and (tls != "verify-full" or client == "node-postgres"):
            continue
        # PostgreSQL begins with TLS at once from 17 on.
        if server == "postgresql" and tls == "direct" or not offers(client, tls):
            continue
        made.append(pytest.param(client, server, tls, auth, id=f"{client}-{server}-{tls}-{auth}"))
    return made


class Program:
    """A client program that stays, so that a mode costs no start of a JVM."""

    def __init__(self, name, argv):
        self.name, self.argv = name, argv
        self.errors = tempfile.TemporaryFile("w+")
        self.process = None

    def play(self, mode):
        """What each step saw. A program that died, or was killed because it did not answer, is started anew."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
                                            encoding="utf-8", env={**os.environ, "NODE_NO_WARNINGS": "1"})
        job = background(self._exchange, "\t".join(f"{k}={v}" for k, v in mode.items()))
        try:
            return job.result(ANSWER_S)
        except Exception as error:
            self.close()
            self.errors.seek(0)
            raise AssertionError(f"{self.name}: {error!r}; it wrote {self.errors.read()[-4000:]!r}") from error

    def _exchange(self, line):
        print(line, file=self.process.stdin, flush=True)
        seen = {}
        for answer in self.process.stdout:
            if answer == ".\n":
                return seen
            step, _, text = answer.rstrip("\n").partition("\t")
            seen[step] = text
        raise EOFError(f"it ended with {self.process.wait(60)}, after {seen}")

    def close(self):
        """Ends it at once."""
        if self.process:
            self.process.kill()
            self.process.wait(60)


@pytest.fixture(scope="module")
def programs():
    """All clients, not yet started."""
    for tool in ("java", "javac", "node"):
        assert shutil.which(tool), f"{tool} is missing: script/setup test"
    for path in (JAR, CLIENTS / "node" / "node_modules" / "pg"):
        assert path.exists(), f"{path} is missing: script/setup test"
    assert TOKIO.exists(), f"{TOKIO} is not built: cargo build --example {TOKIO.name}"
    made = {"pgjdbc": Program("pgjdbc", ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", str(JAR), str(CLIENTS / "jdbc" / "Client.java")]),
            "node-postgres": Program("node-postgres", ["node", str(CLIENTS / "node" / "client.mjs")]),
            "psycopg": Program("psycopg", [sys.executable, str(CLIENTS / "psycopg" / "client.py")]),
            "psql": Program("psql", [sys.executable, str(CLIENTS / "psql" / "client.py"), str(bindir() / "psql")]),
            "tokio-postgres": Program("tokio-postgres", [str(TOKIO)])}
    yield made
    for program in made.values():
        program.close()


# -- both sides --------------------------------------------------------------------------------------------------

class Certificates:
    """The authority, one certificate for PostgreSQL and for listeners, another for a listener, one for each user."""

    def __init__(self):
        self.ca = Authority()
        names = "DNS:localhost,IP:127.0.0.1"
        self.server, self.other = self.ca.issue("server", san=names), self.ca.issue("other", san=names)
        self.users = {user: self.ca.issue(user) for user in set(USERS.values())}
        for pair in self.users.values():
            # pgjdbc reads keys in PKCS #8, DER.
            run("pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in", pair.key, "-out", pair.key.with_suffix(".pk8"))


@pytest.fixture(scope="module")
def certs():
    return Certificates()


@pytest.fixture(scope="module")
def cluster(template, certs):
    """With TLS, and with passwords for every address of this host."""
    made = Cluster(template=template)
    made.settings.update(for_postgres(made, certs.server))
    authority = made.base / "ca.pem"
    authority.write_bytes(certs.ca.file.read_bytes())
    made.settings["ssl_ca_file"] = str(authority)
    hba = (made.data / "pg_hba.conf").read_text()
    made._write(made.data / "pg_hba.conf", hba.replace("127.0.0.1/32", "127.0.0.0/8"))
    try:
        yield made.start()
    finally:
        made.close()


def listeners(pair, ca):
    """(ports by way of TLS, [[listen]]s): three listeners, of which one has no TLS and the others nothing else."""
    plain, tls, mutual = free_port(), free_port(), free_port()
    ports = {way: {"plain": plain, "certificate": mutual}.get(way, tls) for way in TLS}
    return ports, [{"address": f"127.0.0.1:{plain}"}, {"address": f"127.0.0.1:{tls}", "tls": "require", **pair.keys()},
                   {"address": f"127.0.0.1:{mutual}", "tls": "require", **pair.keys(ca.file)}]


@pytest.fixture(scope="module")
def ports(make_module_weir, cluster, certs, tmp_path_factory):
    """A function: the port of a server for a way of TLS; with `pair` its listeners show that certificate. Each pgweir starts when it is
    first asked for."""
    users = tmp_path_factory.mktemp("users") / "users"
    users.write_text("".join(f'"{row["rolname"]}" "{row["rolpassword"]}"\n' for row in cluster.sql(
        "select rolname, rolpassword from pg_authid where rolname in ('u_scram', 'u_md5')")))
    users.chmod(0o600)
    made = {}

    def port(server, tls, pair=certs.server):
        if SERVERS[server] is None:
            return cluster.port
        if (server, pair) not in made:
            made[server, pair] = start(make_module_weir, certs, pair, users, **SERVERS[server])
        return made[server, pair][tls]
    return port


def start(make, certs, pair, users, auth="passthrough", upstream="disable", pooling="none"):
    """A pgweir with all listeners; their ports."""
    found, listen = listeners(pair, certs.ca)
    own = {"auth": {"mode": auth, "users_file": str(users)}} if auth == "scram" else {}
    make(listen=listen, upstream={"tls": upstream, **({"ca_file": str(certs.ca.file)} if upstream == "verify-full" else {})},
         lanes=[lane("other", default=True, quota=40, pooling=pooling)], **own)
    return found


# -- what a driver is told ---------------------------------------------------------------------------------------

SOURCES = (f"127.0.{high}.{low}" for high in range(1, 255) for low in range(1, 255))


def settings(client, port, tls, auth, certs):
    """The driver's own words for a mode."""
    return {"port": port, "user": USERS[auth], "password": PASSWORD, **WORDS[client](tls, AUTH[auth], certs.ca.file, certs.users[USERS[auth]])}


def pgjdbc(tls, binding, ca, pair):
    mode = {"plain": {"sslmode": "disable"}, "require": {"sslmode": "require"}}.get(tls, {"sslmode": "verify-full", "sslrootcert": ca})
    if tls == "certificate":
        mode |= {"sslcert": pair.certificate, "sslkey": pair.key.with_suffix(".pk8")}
    # Each mode comes from an address of its own: failed logins of one are not held against the next.
    return {**mode, **({"sslNegotiation": "direct"} if tls == "direct" else {}), "channelBinding": binding, "localSocketAddress": next(SOURCES)}


def node(tls, binding, ca, pair):
    mode = {"plain": {}, "require": {"tls": "yes"}}.get(tls, {"tls": "yes", "verify": "yes", "ca": ca})
    if tls == "certificate":
        mode |= {"certificate": pair.certificate, "key": pair.key}
    # It binds where it is told to and the server offers it, and asks for no more.
    return {**mode, **({"sslnegotiation": "direct"} if tls == "direct" else {}), **({"enableChannelBinding": "yes"} if binding == "require" else {}),
            "source": next(SOURCES)}


def libpq(tls, binding, ca, pair):
    mode = {"plain": {"sslmode": "disable"}, "require": {"sslmode": "require"}}.get(tls, {"sslmode": "verify-full", "sslrootcert": ca})
    if tls == "certificate":
        mode |= {"sslcert": pair.certificate, "sslkey": pair.key}
    return {**mode, **({"sslnegotiation": "direct"} if tls == "direct" else {}), "channel_binding": binding, "dbname": "postgres",
            "host": "127.0.0.1", **({"guess": "yes"} if guesses(tls, binding) else {})}


def guesses(tls, binding):
    """libpq cannot choose its address, so it tries few wrong passwords: after many pgweir would be long in answering."""
    return (tls, binding) == ("verify-full", "disable")


def tokio(tls, binding, ca, pair):
    mode = {"plain": {"sslmode": "disable"}}.get(tls, {"sslmode": "require"})
    if tls not in ("plain", "require"):
        mode |= {"ca": ca}
    if tls == "certificate":
        mode |= {"certificate": pair.certificate, "key": pair.key}
    return {**mode, **({"sslnegotiation": "direct"} if tls == "direct" else {}), "channel_binding": binding, "source": next(SOURCES)}


WORDS = {"pgjdbc": pgjdbc, "node-postgres": node, "psycopg": libpq, "psql": libpq, "tokio-postgres": tokio}


def expected(client, tls, auth):
    """What each step must see."""
    mechanism = {"scram-plus": "SCRAM-SHA-256-PLUS", "md5": "none"}.get(auth, "SCRAM-SHA-256")
    encrypted = {"encrypted": str(tls != "plain").lower()}
    more = {"node-postgres": {**encrypted, "login": mechanism}, **dict.fromkeys(LIBPQ, encrypted)}.get(client, {})
    tried = client not in LIBPQ or guesses(tls, AUTH[auth])
    return {step: seen for step, seen in {**SEEN[client], **more}.items() if tried or step != "wrong"}


@pytest.mark.parametrize("client, server, tls, auth", modes())
def test_a_driver_sees_postgresql(programs, ports, certs, client, server, tls, auth):
    seen = programs[client].play(settings(client, ports(server, tls), tls, auth, certs))
    assert seen == expected(client, tls, auth)


# -- what a mode's name promises ---------------------------------------------------------------------------------

FIRST = {"plain": b"\0", "require": b"\0", "direct": b"\x16"}


@pytest.mark.parametrize("client, tls, first", [(client, tls, first) for client in SEEN for tls, first in FIRST.items() if offers(client, tls)])
def test_direct_begins_with_tls(programs, certs, client, tls, first):
    """A handshake record or the length of a packet: the first byte tells whether the modes are what they are called."""
    seen = []

    def listen(server):
        while True:
            with server.accept()[0] as peer:
                seen.append(peer.recv(1))

    with socket.create_server(("127.0.0.1", 0)) as server:
        background(listen, server)
        answer = programs[client].play(settings(client, server.getsockname()[1], tls, "scram", certs))
        server.shutdown(socket.SHUT_RDWR)
    assert set(seen) == {first} and set(answer) - {"wrong"} == {"connect"}, (seen, answer)


@pytest.mark.parametrize("client", SEEN)
def test_a_binding_that_does_not_reach_through(programs, ports, certs, client):
    """Pass-through with TLS on both sides and two certificates; the same without the binding logs in."""
    port = ports("pass-through-tls", "verify-full", certs.other)
    refused = programs[client].play(settings(client, port, "verify-full", "scram-plus", certs))
    assert client in LIBPQ or (refused["wrong"], refused["connect"][:5]) == ("28000", "28000"), refused
    assert "pgweir: SCRAM's channel binding does not reach through" in refused["connect"]
    assert programs[client].play(settings(client, port, "verify-full", "md5", certs)) == expected(client, "verify-full", "md5")


@pytest.mark.parametrize("client", SEEN)
def test_a_certificate_of_another_user(programs, ports, certs, client):
    mode = settings(client, ports("own", "certificate"), "certificate", "scram", certs)
    refused = programs[client].play({**mode, "user": "u_md5"})
    assert client in LIBPQ or (refused["wrong"], refused["connect"][:5]) == ("28000", "28000"), refused
    assert "the client's certificate does not name the user" in refused["connect"]
