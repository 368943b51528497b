"""How many more backends memory would bear, and who holds what: SHOW HEADROOM, SESSIONS and LEAKS."""

import json
import os

import pytest

from harness import eventually, lane

pytestmark = pytest.mark.weir


@pytest.fixture(scope="module")
def weir(make_module_weir):
    return make_module_weir(lanes=[lane("web", quota=10, match=[{"application": "web*", "process": "*"}, {"application": "web*"}],
                                        idle_in_transaction={"warn": "100ms", "action": "none"}),
                                   lane("other", default=True, quota=20)])


def sheet(weir):
    return {row["item"]: row for row in weir.admin("SHOW HEADROOM")}


def test_memory_is_measured_where_the_host_is_shared(weir, tidy):
    if os.geteuid() != 0:
        pytest.skip("another user's backends cannot be measured")
    for n in range(4):
        conn = tidy(weir.connect(f"web-{n}"))
        conn.cursor().execute("select count(*) from pg_class")
        conn.commit()
    rows = eventually(lambda: (s := sheet(weir)) and s["private_per_backend"]["basis"] == "measured" and s, what="four backends measured")
    assert 0.3 < float(rows["private_per_backend"]["value"].removesuffix(" MB").removesuffix(" kB")) < 1000
    assert rows["max_connections"]["value"] == str(weir.cluster.max_connections)
    assert rows["shared_buffers"]["value"] == "64.0 MB" and rows["work_mem"]["value"] == "4.0 MB"
    assert rows["memory_available"]["basis"] == "measured" and int(rows["bears"]["value"]) >= 0
    assert {row["basis"] for row in rows.values()} <= {"measured", "setting", "assumed", "counted", "reckoned"}
    assert all(row["note"] for row in rows.values())


def test_the_command_prints_the_same_and_ends_with_the_verdict(weir):
    done = weir.cli("headroom")
    assert done.returncode == 0 and "max_connections" in done.stdout.splitlines()[-1], done.stdout + done.stderr
    rows = json.loads(weir.cli("headroom", "--json").stdout)
    assert rows[-1]["item"] == "verdict" and rows[-1]["value"].isdigit()


def test_without_a_monitor_nothing_is_recommended(make_weir):
    weir = make_weir(monitor={"user": None})
    verdict = weir.admin("SHOW HEADROOM")[-1]
    assert (verdict["item"], verdict["value"]) == ("verdict", "unknown") and "do not raise max_connections" in verdict["note"]


def test_sessions_are_attributed_to_their_real_clients(weir, tidy):
    ours, beside = tidy(weir.connect("web-s")), tidy(weir.cluster.direct(app="beside", tcp=True))

    def both():
        rows = {row["pid"]: row for row in weir.admin("SHOW SESSIONS")}
        found = rows.get(ours.info.backend_pid), rows.get(beside.info.backend_pid)
        return all(found) and found[0]["via"] == "pgweir" and found
    one, other = eventually(both, what="both, in one sample")
    client = weir.client("web-s")
    assert (one["via"], one["lane"], one["application"], one["id"]) == ("pgweir", "web", "web-s", client["id"])
    assert one["address"] == client["address"] and one["address"].startswith("127.0.0.1:")
    assert one["process"] == client["process"] and one["process"].startswith(f"{os.getpid()} ")
    assert (other["via"], other["lane"], other["process"], other["id"]) == ("bypass", "", "", None)


def test_leaks_tell_what_they_hold_and_whom_they_block(weir, tidy, cluster):
    cluster.sql("create table if not exists held (id int primary key, n int); truncate held; insert into held values (1, 0); grant all on held to public")
    holder, waiter = tidy(weir.connect("web-h")), tidy(weir.raw("web-w"))
    holder.cursor().execute("update held set n = 1 where id = 1")
    waiter.send(b"Q" + (4 + len(b"update held set n = 2 where id = 1\0")).to_bytes(4, "big") + b"update held set n = 2 where id = 1\0")

    def leak():
        row = next((row for row in weir.admin("SHOW LEAKS") if row["pid"] == holder.info.backend_pid), None)
        assert row and row["blocks"] == str(weir.client("web-w")["pid"])
        assert "RowExclusiveLock" in row["locks"] and "transactionid ExclusiveLock 1" in row["locks"]
        return True
    eventually(leak)
    holder.rollback()


# -- application_name upstream -------------------------------------------------------------------------------------

@pytest.fixture
def tagging(make_weir):
    return make_weir(lanes=[lane("web", quota=10), lane("other", default=True, quota=20)], upstream={"tag_application_name": True})


def upstream_name(cluster, pid):
    return cluster.value("select application_name from pg_stat_activity where pid = %s", pid)


def test_postgresql_sees_the_address_and_the_client_its_own_name(tagging, tidy, cluster):
    conn = tidy(tagging.connect("web-7", autocommit=True))
    name = lambda: upstream_name(cluster, conn.info.backend_pid)  # noqa: E731
    assert name() == "web-7 @127.0.0.1"
    assert conn.info.parameter_status("application_name") == "web-7"
    cur = conn.cursor()
    cur.execute("set application_name = 'web-later'")
    assert (name(), conn.info.parameter_status("application_name")) == ("web-later", "web-later")
    assert eventually(lambda: tagging.clients("web-later"))
    cur.execute("reset application_name")
    assert (name(), conn.info.parameter_status("application_name")) == ("web-7 @127.0.0.1", "web-7")
    cur.execute("set application_name = 'x'")
    cur.execute("discard all")
    assert (name(), conn.info.parameter_status("application_name")) == ("web-7 @127.0.0.1", "web-7")
    assert tagging.client("web-7")["lane"] == "web"


def test_a_long_name_gives_way(tagging, tidy, cluster):
    conn = tidy(tagging.connect("web-" + "x" * 70))
    shown = upstream_name(cluster, conn.info.backend_pid)
    assert len(shown) == 63 and shown.endswith("x @127.0.0.1")
    assert conn.info.parameter_status("application_name") == ("web-" + "x" * 70)[:63]


def test_who_names_itself_by_options_or_comes_by_a_unix_socket(tagging, tidy, cluster):
    local = tidy(tagging.connect("web-u", unix=True))
    assert upstream_name(cluster, local.info.backend_pid) == "web-u @unix"
    assert local.info.parameter_status("application_name") == "web-u"
    named = tidy(tagging.connect("", options="-c application_name=batch"))
    assert upstream_name(cluster, named.info.backend_pid) == "batch"
