"""Everything streams: a gigabyte, or a row of 256 MB, needs no more memory than a small query."""

import os
import time

import pytest

from harness import DIRECT, background, eventually
from harness import wire

# A gigabyte takes seconds; on a machine with much else to do, minutes.
pytestmark = pytest.mark.timeout(300)

MEGABYTES = int(os.environ.get("PGWEIR_STREAM_MB", "1024"))
ROOM_KB = 24 * 1024


@pytest.fixture(scope="module")
def cluster_settings():
    return {"shared_buffers": "128MB"}


@pytest.fixture(scope="module")
def weir(make_module_weir, cluster):
    cluster.sql("create table sink (t text)")
    cluster.sql("grant all on sink to public")
    return make_module_weir()


@pytest.fixture
def flat(weir):
    """Asserts that pgweir's memory stays where it was."""
    if DIRECT:
        yield
        return
    weir.raw().ok("select 1")
    weir.reset_peak()
    before = weir.rss()
    yield
    peak = weir.memory_kb("VmHWM")
    assert peak - before < ROOM_KB, f"pgweir grew from {before} kB to {peak} kB"


class Count:
    """A file that only counts."""

    def __init__(self):
        self.size = 0

    def write(self, data):
        self.size += len(data)


class Lines:
    """A file of `size` bytes in lines of a hundred."""

    def __init__(self, size):
        self.left = size
        self.block = (b"x" * 99 + b"\n") * 5000

    def read(self, n=-1):
        block = self.block[:min(self.left, len(self.block))]
        self.left -= len(block)
        return block


def test_copy_out(weir, flat):
    conn = weir.connect()
    sink = Count()
    with conn.cursor() as cur:
        cur.copy_expert(f"copy (select repeat('x', 1023) from generate_series(1, {MEGABYTES * 1024})) to stdout", sink)
    assert sink.size == MEGABYTES << 20
    conn.close()


def test_copy_in(weir, flat):
    conn = weir.connect()
    with conn.cursor() as cur:
        cur.copy_expert("copy sink from stdin where t = 'nothing of this'", Lines((MEGABYTES << 20) // 500000 * 500000), size=500000)
    conn.close()


def test_a_row_of_256_mb(weir, flat):
    with weir.raw(timeout=60) as client:
        client.send(wire.query("select repeat('x', 256 * 1024 * 1024)"))
        messages = client.until("Z")
        assert sum(len(m.body) for m in messages if m.tag == "D") == (256 << 20) + 6


def test_a_statement_of_64_mb(weir, flat):
    size = 64 << 20
    with weir.raw(timeout=60) as client:
        assert client.ok(f"select length('{'x' * size}')") == [[str(size)]]
        seen = client.ask(wire.parse("select length($1)"), wire.bind("", "", ["y" * size]), wire.execute(), wire.SYNC)
        assert [m.values for m in seen if m.tag == "D"] == [[str(size)]]


def test_a_slow_reader_is_waited_for(weir, flat, cluster):
    """Back-pressure reaches PostgreSQL; a neighbour does not feel it."""
    slow = weir.socket(rcvbuf=4096, timeout=60)
    slow.startup(app="slow")
    slow.send(wire.query("select repeat('x', 10000) from generate_series(1, 5000)"))
    eventually(lambda: cluster.activity("slow", "wait_event = 'ClientWrite'"))
    with weir.raw() as neighbour:
        began = time.monotonic()
        for i in range(200):
            assert neighbour.ok(f"select {i}") == [[str(i)]]
        assert time.monotonic() - began < 50
    assert cluster.activity("slow", "wait_event = 'ClientWrite'")
    slow.sock.setsockopt(1, 8, 1 << 20)  # SOL_SOCKET, SO_RCVBUF
    assert sum(1 for m in slow.until("Z") if m.tag == "D") == 5000
    slow.close()


def test_a_slow_writer_is_waited_for(weir, flat):
    with weir.raw() as client:
        message = wire.query(f"select '{'x' * 3000}'")
        for at in range(0, len(message), 500):
            client.send(message[at:at + 500])
            time.sleep(0.02)
        assert [m.tag for m in client.until("Z")] == ["T", "D", "C", "Z"]


def test_both_directions_full(weir, flat):
    """A client that sends many requests before it reads any reply must not bring the link to a stop for ever."""
    count = 3000
    with weir.raw(timeout=60) as client:
        sending = background(client.send, *[wire.query(f"select {i}, repeat('y', 2000), '{'z' * 1000}'") for i in range(count)])
        time.sleep(0.5)
        for i in range(count):
            rows = [m.values for m in client.until("Z") if m.tag == "D"]
            assert rows[0][0] == str(i)
        sending.result(60)
