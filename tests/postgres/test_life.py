"""Start, reload, drain, death and return."""

import json
import os
import signal
import socket
import stat
import struct
import tempfile
import threading
import time

import psycopg2
import pytest

from harness import RawClient, ServerError, background, eventually, holds, lane
from harness import wire
from harness.cluster import PASSWORD

pytestmark = pytest.mark.weir


@pytest.fixture(scope="module", autouse=True)
def table(cluster):
    cluster.sql("create table life (id int); grant all on life to public")


def lanes(**web):
    return [lane("web", **{"quota": 10, "wait_timeout": "1s", **web}), lane("cron", freeze=True), lane("other", default=True)]


# -- end ---------------------------------------------------------------------------------------------------------

def test_sigterm_drains(make_weir, cluster):
    weir = make_weir(lanes=lanes(quota=2, wait_timeout="60s"))
    idle, busy = weir.raw("web"), weir.raw("web")
    busy.ok("begin")
    busy.ok("insert into life values (1)")
    waiting = weir.socket()
    waiting.send(wire.startup_packet("odoo", "postgres", app="web"))
    eventually(lambda: weir.lane("web")["waiting"] == 1)
    weir.signal(signal.SIGTERM)
    assert idle.error()["C"] == "57P01" and idle.at_eof()
    assert waiting.error()["C"] == "57P03" and waiting.at_eof()
    assert busy.ok("select 'still'") == [["still"]]
    assert wire.states(busy.query("commit")) == [("C", "COMMIT"), ("Z", "I")]
    assert busy.error()["C"] == "57P01" and busy.at_eof()
    assert weir.process.wait(60) == 0
    assert cluster.value("select count(*) from life where id = 1") == 1
    eventually(lambda: cluster.count() == 0)


def test_a_drain_tells_clients_that_read_slowly(make_weir, cluster):
    weir = make_weir(lanes=lanes(), limits={"drain_timeout": "5m"})
    client = weir.socket(rcvbuf=65536)
    client.startup("odoo", "postgres", app="web")
    client.send(wire.query("select repeat('x', 8000) from generate_series(1, 750)"))
    # PostgreSQL is done with it, or has filled all that lies between them where this host's buffers are smaller; the client has taken
    # nothing yet.
    stuck = "wait_event = 'ClientWrite' and now() - query_start > interval '10 s'"
    eventually(lambda: cluster.activity("web", f"(state = 'idle' or {stuck})"), timeout=40)
    weir.signal(signal.SIGTERM)
    tags = []
    while not tags or tags[-1] != "E":
        tags.append(client.receive().tag)
        time.sleep(0.001)
    assert tags.count("D") == 750 and tags[-3:] == ["C", "Z", "E"]
    assert client.at_eof()
    assert weir.process.wait(60) == 0


def test_drain_has_an_end(make_weir, cluster):
    weir = make_weir(lanes=lanes(), limits={"drain_timeout": "1s"})
    busy = weir.raw("web")
    busy.ok("begin")
    weir.signal(signal.SIGTERM)
    assert busy.error()["C"] == "57P01" and busy.at_eof()
    assert weir.process.wait(60) == 0
    eventually(lambda: cluster.count() == 0)


def test_a_second_sigterm_ends_at_once(make_weir, cluster):
    weir = make_weir(lanes=lanes(), limits={"drain_timeout": "10m"})
    busy = weir.raw("web")
    busy.ok("begin")
    weir.signal(signal.SIGTERM)
    # Two signals that are sent before the first is seen are one.
    eventually(lambda: "draining" in weir.log(), what="the drain")
    holds(lambda: weir.process.poll() is None, 0.5)
    weir.signal(signal.SIGTERM)
    weir.process.wait(20)
    assert busy.at_eof()
    eventually(lambda: cluster.count() == 0)


def test_shutdown_command(make_weir):
    weir = make_weir(lanes=lanes())
    idle = weir.raw("web")
    try:
        weir.admin("SHUTDOWN")
    except psycopg2.OperationalError:
        pass
    assert idle.error()["C"] == "57P01"
    assert weir.process.wait(60) == 0


def test_kill_9_leaves_no_transaction_behind(make_weir, cluster):
    weir = make_weir(lanes=lanes())
    client = weir.raw("web")
    client.ok("begin")
    client.ok("insert into life values (2)")
    weir.kill9()
    assert client.at_eof()
    eventually(lambda: cluster.count() == 0)
    assert cluster.value("select count(*) from life where id = 2") == 0


def test_kill_9_under_load_and_back_within_ten_seconds(make_weir, cluster):
    weir = make_weir(lanes=lanes(wait_timeout="30s"))
    stop, good, lock, took = threading.Event(), [0], threading.Lock(), []

    def worker():
        while not stop.is_set():
            try:
                conn = weir.connect("web")
                for _ in range(20):
                    conn.cursor().execute("select pg_sleep(0.002)")
                    conn.commit()
                    with lock:
                        good[0] += 1
                conn.close()
            except psycopg2.Error:
                time.sleep(0.05)

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(12)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            eventually(lambda: good[0] > 50, what="load")
            weir.kill9()
            weir.start(wait=False)
            began, good[0] = time.monotonic(), 0
            eventually(lambda: good[0] > 50, timeout=60, what="clients working again")
            took.append(time.monotonic() - began)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    # A pause of pgweir's own would be in both; one of this machine is in one.
    assert min(took) < 10, took
    eventually(weir.drained)
    eventually(lambda: cluster.count() == 1)


def test_restart_on_the_same_socket_path(make_weir):
    weir = make_weir(lanes=lanes())
    weir.kill9()
    weir.start()
    conn = weir.connect("web", unix=True)
    conn.close()
    assert weir.stop() == 0
    assert not [p for p in os.listdir(weir.unix_dir) if p.startswith(".s.PGSQL")], "the socket is removed at an orderly end"


def test_a_second_process_on_the_same_ports_is_refused_clearly(make_weir):
    weir = make_weir(lanes=lanes())
    done = weir.cli("run", timeout=60)
    assert done.returncode not in (0, 101)
    assert str(weir.port) in done.stderr + done.stdout
    assert weir.raw("web").ok("select 1") == [["1"]], "the first one is unharmed"


# -- reload ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["sighup", "console", "cli"])
def test_reload(make_weir, how):
    weir = make_weir(lanes=lanes(quota=1))
    client = weir.raw("web")
    client.ok("begin")
    weir.write(lane=[*lanes(quota=7), lane("brandnew")])
    if how == "sighup":
        weir.signal(signal.SIGHUP)
    elif how == "console":
        weir.admin("RELOAD")
    else:
        assert weir.cli("reload").returncode == 0
    eventually(lambda: weir.lane("web")["quota"] == 7)
    assert "brandnew" in weir.lanes() and weir.raw("brandnew").ok("select 1") == [["1"]]
    assert client.ok("select 1") == [["1"]] and client.ok("commit") is not None
    assert weir.lane("web")["slots"] == 1
    eventually(lambda: weir.timeline_has("reload"))


def test_a_removed_lane_keeps_its_links(make_weir):
    weir = make_weir(lanes=[*lanes(), lane("extra")])
    client = weir.raw("extra")
    weir.write(lane=lanes())
    weir.admin("RELOAD")
    assert client.ok("select 1") == [["1"]]
    client.close()
    eventually(weir.drained)


def test_a_wrong_reload_is_refused_whole(make_weir):
    weir = make_weir(lanes=lanes(quota=3))
    client = weir.raw("web")
    weir.write(lane=[*lanes(quota=9), lane("broken", quota=1, reserve=5)], nonsense=1)
    with pytest.raises(psycopg2.Error) as error:
        weir.admin("RELOAD")
    assert "nonsense" in str(error.value) or "reserve" in str(error.value)
    before = weir.log().count("nonsense")
    weir.signal(signal.SIGHUP)
    eventually(lambda: weir.log().count("nonsense") > before)
    assert weir.lane("web")["quota"] == 3 and "broken" not in weir.lanes()
    assert client.ok("select 1") == [["1"]]
    done = weir.cli("reload")
    assert done.returncode == 1 and "nonsense" in done.stderr + done.stdout
    assert weir.http("/readyz")[0] == 200


def test_set_quota_lasts_until_the_next_reload(make_weir):
    weir = make_weir(lanes=lanes(quota=5))
    weir.admin("SET LANE web quota = 2")
    assert weir.lane("web")["quota"] == 2
    weir.admin("RELOAD")
    assert weir.lane("web")["quota"] == 5


# -- limits of the machine ---------------------------------------------------------------------------------------

def test_out_of_descriptors(make_weir):
    # Each worker takes some, and there is one for each core.
    weir = make_weir(lanes=lanes(), limits={"workers": 2}, prefix=["prlimit", "--nofile=60:60"])
    crowd = []
    for _ in range(120):
        try:
            crowd.append(RawClient(weir.port, timeout=5))
        except OSError:
            break
    began, cpu = time.monotonic(), weir.cpu_seconds()
    time.sleep(1.5)
    assert weir.process.poll() is None
    assert (weir.cpu_seconds() - cpu) / (time.monotonic() - began) < 0.5, "EMFILE must not spin"
    for client in crowd:
        client.close()
    client = eventually(lambda: attempt(weir), timeout=60)
    assert client.ok("select 1") == [["1"]]
    client.close()


def attempt(weir):
    try:
        return weir.raw("web", timeout=20)
    except (OSError, EOFError, ServerError):
        return None


def test_raises_its_file_limit(make_weir):
    weir = make_weir(prefix=["prlimit", "--nofile=256:4096"])
    for line in open(f"/proc/{weir.pid}/limits"):
        if line.startswith("Max open files"):
            assert line.split()[3] == "4096"


def test_a_crowd_of_idle_clients(make_weir, tidy):
    weir = make_weir(lanes=[lane("web", quota=5, wait_timeout="5m", max_waiting=2000), lane("other", default=True)])
    for _ in range(600):
        client = tidy(weir.socket())
        client.send(wire.startup_packet("odoo", "postgres", app="web"))
    eventually(lambda: weir.lane("web")["waiting"] == 595)
    assert weir.rss() < 200 * 1024


# -- state and secrets -------------------------------------------------------------------------------------------

def test_the_admin_password_is_generated_once_and_private(make_weir):
    weir = make_weir()
    path = weir.state / "admin.password"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = weir.password
    assert len(first) >= 16
    weir.kill9()
    weir.start()
    assert weir.password == first
    assert first not in weir.log()


def test_no_password_in_the_log(make_weir):
    weir = make_weir(env={"RUST_LOG": "trace"})
    for user in ("u_password", "u_md5", "u_scram"):
        weir.connect("web", user=user, password=PASSWORD).close()
        with pytest.raises(psycopg2.OperationalError):
            weir.connect("web", user=user, password="another-" + PASSWORD[::-1])
    weir.admin("SHOW CONFIG")
    for secret in (PASSWORD, PASSWORD[::-1], weir.password):
        assert secret not in weir.log()


def whole_lines(text):
    """Lines of a file that is being written: the last one may not be all there."""
    return [line for line in text[:text.rfind("\n") + 1].splitlines() if line.strip()]


def test_the_timeline_file(make_weir):
    weir = make_weir(lanes=lanes())
    weir.admin("NOTE 'kept for later'")
    weir.admin("FREEZE REASON 'x'")
    text = eventually(lambda: (weir.state / "timeline.jsonl").exists() and "freeze" in (weir.state / "timeline.jsonl").read_text()
                      and (weir.state / "timeline.jsonl").read_text())
    # Others may be under way.
    entries = [json.loads(line) for line in whole_lines(text)]
    assert any("kept for later" in json.dumps(e) for e in entries)
    seqs = [e["seq"] for e in entries]
    assert seqs == sorted(set(seqs))
    weir.kill9()
    with open(weir.state / "timeline.jsonl", "a") as f:
        f.write('{"seq": 99, "torn')
    weir.start()
    weir.admin("NOTE 'after a torn line'")
    assert weir.timeline_has("after a torn line")


def test_a_damaged_state_directory_is_a_clear_error(make_weir):
    weir = make_weir(start=False)
    weir.state.mkdir()
    weir.config["state"] = {"directory": str(weir.state / "file" / "beneath")}
    (weir.state / "file").write_text("")
    weir.write()
    done = weir.cli("run", timeout=60)
    assert done.returncode not in (0, 101) and "beneath" in done.stderr + done.stdout


def test_sd_notify(make_weir):
    # No path of pytest's: a socket's may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pgweir-notify-") as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{place}/notify")
        sock.settimeout(60)
        weir = make_weir(env={"NOTIFY_SOCKET": f"{place}/notify"})
        assert b"READY=1" in sock.recv(4096)
        weir.signal(signal.SIGTERM)
        said = b""
        while b"STOPPING=1" not in said:
            said += sock.recv(4096)


def test_json_log(make_weir):
    weir = make_weir(lanes=lanes(quota=1, wait_timeout="100ms"), log_format="json")
    holder = weir.raw("web")
    with pytest.raises(ServerError):
        weir.raw("web")
    holder.close()
    lines = eventually(lambda: [line for line in whole_lines(weir.log()) if "lane_full" in line])
    assert all(isinstance(json.loads(line), dict) for line in whole_lines(weir.log()))
    assert "web" in lines[0]


def test_dead_peer_options_are_set_on_both_sides(make_weir):
    """TCP keepalive timers, as the kernel shows them, on the client's and on PostgreSQL's side."""
    weir = make_weir()
    client = weir.raw("web")

    def timers(port_hex):
        found = []
        for line in open("/proc/net/tcp"):
            fields = line.split()
            if len(fields) > 5 and fields[3] == "01" and port_hex in (fields[1][-4:], fields[2][-4:]):
                found.append((fields[1], fields[2], fields[5].split(":")[0]))
        return found

    def are_set():
        # What was sent and is not acknowledged yet has another timer.
        ours = [t for t in timers(f"{weir.port:04X}") if t[0].endswith(f":{weir.port:04X}")]
        upstream = [t for t in timers(f"{weir.cluster.port:04X}") if t[1].endswith(f":{weir.cluster.port:04X}")]
        assert ours and all(kind == "02" for _, _, kind in ours), ours
        assert upstream and any(kind == "02" for _, _, kind in upstream), upstream
        return True
    eventually(are_set)
    client.close()


def test_rst_storm(make_weir):
    weir = make_weir()
    fds = weir.fds()
    for i in range(300):
        sock = socket.create_connection(("127.0.0.1", weir.port))
        if i % 2:
            sock.sendall(wire.SSL_REQUEST)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    eventually(lambda: weir.fds() <= fds + 2)
    assert weir.raw("web").ok("select 1") == [["1"]]


def test_version(make_weir):
    weir = make_weir(start=False)
    done = weir.cli("--version", config=False)
    assert done.returncode == 0 and "pgweir" in done.stdout 


def test_waiting_clients_do_not_block_the_console(make_weir, tidy):
    weir = make_weir(lanes=[lane("web", quota=1, wait_timeout="60s"), lane("other", default=True)])
    tidy(weir.raw("web"))
    for _ in range(50):
        client = tidy(weir.socket())
        client.send(wire.startup_packet("odoo", "postgres", app="web"))
    eventually(lambda: weir.lane("web")["waiting"] == 50)
    assert background(weir.admin, "SHOW CLIENTS").result(40)
