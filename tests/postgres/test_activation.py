"""Listeners that the service manager has opened: taken over, kept open over a restart, refused where nobody would accept."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from harness import background, eventually, free_port
from harness import wire
from harness.weir import BINARY

pytestmark = pytest.mark.weir

# What systemd does before it starts a service: sockets from 3 on, and whom they are for.
HAND_OVER = """
import fcntl, os, sys
fds, argv = sys.argv[1].split(","), sys.argv[2:]
# Out of the way first, then down to 3.
for n, fd in enumerate([fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds]):
    os.dup2(fd, 3 + n)
os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=str(os.getpid()))
os.execv(argv[0], argv)
"""


def start(weir, *sockets):
    """Starts pgweir with these sockets."""
    weir.write()
    fds = [sock.fileno() for sock in sockets]
    argv = [sys.executable, "-c", HAND_OVER, ",".join(map(str, fds)), str(BINARY), "run", "--config", str(weir.config_file)]
    with open(weir.log_file, "ab") as log:
        weir.process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=weir.base, pass_fds=fds)


@pytest.fixture
def listeners(make_weir):
    """A pgweir that is not started, and the sockets for its listeners."""
    weir = make_weir(start=False)
    tcp = socket.create_server(("127.0.0.1", weir.port))
    unix = socket.socket(socket.AF_UNIX)
    path = f"{weir.unix_dir}/.s.PGSQL.6432"
    unix.bind(path)
    unix.listen(64)
    os.chmod(path, 0o777)
    with tcp, unix:
        yield weir, tcp, unix, path


def test_sockets_are_taken_over_and_outlive_the_process(listeners):
    weir, tcp, unix, path = listeners
    start(weir, tcp, unix)
    weir.wait_ready()
    for more in ({}, {"unix": True}):
        with weir.connect("web", **more) as link, link.cursor() as cursor:
            cursor.execute("select 1")
    assert weir.log().count("inherited=true") == 2
    inode = os.stat(path).st_ino
    assert weir.stop() == 0
    assert os.stat(path).st_ino == inode, "the file is the service manager's"
    # Nobody is there, and nobody is refused.
    waiting = [background(weir.connect, "web", **more) for more in ({}, {"unix": True})]
    start(weir, tcp, unix)
    for link in waiting:
        link.result(90).close()


def test_while_it_drains_newcomers_wait_for_the_next(listeners):
    weir, tcp, unix, _ = listeners
    start(weir, tcp, unix)
    weir.wait_ready()
    inside = weir.connect("web")
    cursor = inside.cursor()
    cursor.execute("select 1")
    first = weir.process
    first.send_signal(signal.SIGTERM)
    eventually(lambda: "draining" in weir.log() or None, what="the drain")
    newcomer = background(weir.connect, "web")
    inside.commit()
    assert first.wait(60) == 0
    assert not newcomer.done()
    start(weir, tcp, unix)
    newcomer.result(90).close()


def test_whoever_comes_while_the_doors_are_handed_on_is_answered(listeners):
    """By the one or by the other. Accepted and not yet let in, or let in and with nothing asked yet: nobody is told that pgweir ends."""
    weir, tcp, unix, _ = listeners

    def answered(client):
        client.login()
        assert [m.tag for m in client.until("Z", "E")] == ["T", "D", "C", "Z"]
        client.close()

    start(weir, tcp, unix)
    for _ in range(5):
        weir.wait_ready()
        first = weir.process
        # What comes now and the signal are met at once when it goes on; no more than may log in at once.
        first.send_signal(signal.SIGSTOP)
        clients = [weir.socket(timeout=90, tls=False) for _ in range(10)]
        for client in clients:
            client.send(wire.startup_packet("odoo", "postgres", app="web") + wire.query("select 'answered'"))
        first.send_signal(signal.SIGTERM)
        answers = [background(answered, client) for client in clients]
        first.send_signal(signal.SIGCONT)
        assert first.wait(60) == 0
        start(weir, tcp, unix)
        for answer in answers:
            answer.result(90)


def test_a_socket_that_no_listener_has_is_refused(listeners):
    weir, tcp, unix, _ = listeners
    with socket.create_server(("127.0.0.1", free_port())) as other:
        port = other.getsockname()[1]
        start(weir, tcp, unix, other)
        assert weir.process.wait(60) == 1
    assert f"127.0.0.1:{port}, and no [[listen]] has this address" in weir.log()


@pytest.fixture
def dual(make_weir):
    """What `ListenStream=PORT` makes: a socket of both families."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this host has no IPv6")
    weir = make_weir(start=False)
    with socket.create_server(("::", weir.port), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        yield weir, sock


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1"])
def test_a_socket_of_both_families_in_place_of_an_ipv4_one_is_refused_with_a_hint(dual, address):
    weir, sock = dual
    weir.config["listen"] = [{"address": f"{address}:{weir.port}"}]
    start(weir, sock)
    assert weir.process.wait(60) == 1
    assert f"listens on [::]:{weir.port}, IPv4 included" in weir.log() and f"ListenStream={address}:{weir.port} in pgweir.socket" in weir.log()


def test_a_socket_of_both_families_is_taken_over_and_ipv4_clients_are_seen_as_such(dual):
    weir, sock = dual
    weir.config["listen"] = [{"address": f"[::]:{weir.port}"}]
    start(weir, sock)
    weir.wait_ready()
    assert "inherited=true" in weir.log()
    with weir.connect("web") as link, link.cursor() as cursor:
        cursor.execute("select 1")
        assert weir.client("web")["address"].startswith("127.0.0.1:")


def test_sockets_meant_for_another_process_are_left_alone(make_weir):
    weir = make_weir(env={"LISTEN_FDS": "1", "LISTEN_PID": "1"})
    with weir.connect("web") as link, link.cursor() as cursor:
        cursor.execute("select 1")
    assert "inherited=true" not in weir.log()
