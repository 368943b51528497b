"""Session pooling with TLS on both sides: what rests between two clients is a TLS session, and neither client can tell."""

import psycopg2
import pytest

from harness import Cluster, eventually, free_port, lane
from harness.certs import Authority, for_postgres
from harness.cluster import PASSWORD

pytestmark = pytest.mark.weir


@pytest.fixture(scope="module")
def ca():
    return Authority()


@pytest.fixture(scope="module")
def server(ca):
    return ca.issue("server", san="DNS:localhost,IP:127.0.0.1")


@pytest.fixture(scope="module", params=["TLSv1.2", "TLSv1.3"])
def cluster(template, server, request):
    made = Cluster(template=template)
    made.settings.update(for_postgres(made, server), ssl_min_protocol_version=request.param,
                         ssl_max_protocol_version=request.param)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
def make(make_weir, cluster, ca, server, tmp_path):
    def start(**keys):
        users = tmp_path / "userlist.txt"
        users.write_text(f'"u_scram" "{PASSWORD}"\n"odoo" "{PASSWORD}"\n')
        users.chmod(0o600)
        ports = {"plain": free_port(), "tls": free_port()}
        listeners = [{"address": f"127.0.0.1:{ports['plain']}"},
                     {"address": f"127.0.0.1:{ports['tls']}", "tls": "require", **server.keys()}]
        weir = make_weir(auth={"mode": "scram", "users_file": str(users)}, listen=listeners,
                         upstream={"tls": "verify-full", "ca_file": str(ca.file)},
                         lanes=[lane("web", pooling="session", default=True, quota=10, **keys)])
        weir.ports, weir.port = ports, ports["plain"]
        return weir
    return start


def visit(weir, ca, listener, sql="select ssl from pg_stat_ssl where pid = pg_backend_pid()", user="u_scram"):
    """One client, from its login to its end: pid, and what `sql` says."""
    tls = {"sslmode": "verify-full", "sslrootcert": str(ca.file), "channel_binding": "require"} if listener == "tls" else {}
    conn = psycopg2.connect(host="127.0.0.1", port=weir.ports[listener], user=user, password=PASSWORD, dbname="postgres",
                            application_name="web", **tls)
    with conn, conn.cursor() as cur:
        cur.execute(sql)
        value = cur.fetchone()[0] if cur.description else None
    pid = conn.info.backend_pid
    conn.close()
    eventually(lambda: int(weir.metric("pgweir_pooled_connections")) == 1)
    return pid, value


@pytest.mark.parametrize("check", ["30s", "0"], ids=["at once", "after a sign of life"])
def test_the_next_client_gets_the_same_tls_session(make, cluster, ca, check):
    weir, seen = make(server_check_delay=check), []

    def same():
        seen[:] = [visit(weir, ca, listener) for listener in ("tls", "plain", "tls", "tls", "plain")]
        return len({pid for pid, _ in seen}) == 1 and all(ssl for _, ssl in seen)
    # A backend that sleeps for 2 s gives no sign of life, and the client gets another.
    eventually(same) if check == "0" else same()
    first = list(seen)
    assert len({pid for pid, _ in first}) == 1 and all(ssl for _, ssl in first)
    assert first[0][0] == cluster.value("select pid from pg_stat_activity where application_name = 'web'")
    # Another user never gets it.
    conn = psycopg2.connect(host="127.0.0.1", port=weir.port, user="odoo", password=PASSWORD, dbname="postgres", application_name="web")
    assert conn.info.backend_pid != first[0][0]
    conn.close()


def test_much_in_both_directions_then_the_next(make, ca):
    """A session that has carried many records is as good as a new one."""
    weir = make()
    pid, value = visit(weir, ca, "tls", "select length(string_agg(repeat('x', 1000), '')) from generate_series(1, 20000)")
    assert value == 20_000_000
    conn = psycopg2.connect(host="127.0.0.1", port=weir.port, user="u_scram", password=PASSWORD, dbname="postgres", application_name="web")
    with conn.cursor() as cur:
        cur.execute("select repeat('y', 20000000), length(%s)", ("z" * 5_000_000,))
        text, length = cur.fetchone()
    assert (conn.info.backend_pid, len(text), length) == (pid, 20_000_000, 5_000_000)
    conn.close()


def test_a_backend_that_was_terminated_is_not_handed_out(make, cluster, ca):
    weir = make()
    pid, _ = visit(weir, ca, "tls")
    # Gone, and its socket closed; whether pgweir has looked since is its own affair.
    assert cluster.value(f"select pg_terminate_backend({pid}, 60000)")
    again, ssl = visit(weir, ca, "tls")
    assert again != pid and ssl


def test_connections_made_ahead_are_over_tls(make, cluster, ca):
    weir = make(min_pool_size=3)
    conn = psycopg2.connect(host="127.0.0.1", port=weir.port, user="u_scram", password=PASSWORD, dbname="postgres", application_name="web")
    conn.close()
    of_web = "select array[count(*) filter (where ssl), count(*)] from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'u_scram'"
    eventually(lambda: int(weir.metric("pgweir_pooled_connections")) == 3)
    assert cluster.value(of_web) == [3, 3]
