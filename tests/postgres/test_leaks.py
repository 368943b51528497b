"""Leaks: who is reset, who is spared, and what a client is told about a transaction that is gone."""

import contextlib
import itertools
import re
import threading
import time

import psycopg
import psycopg2
import pytest

from harness import ServerError, Weir, background, eventually, lane, never
from harness import wire

pytestmark = pytest.mark.weir

GONE = ("E", "40001")


@pytest.fixture(scope="module")
def cluster_settings():
    return {"max_connections": 60}


@pytest.fixture(scope="module", autouse=True)
def table(cluster):
    cluster.sql("create table leak (id int, who text); create table hot (id int primary key, n int);"
                "insert into hot select g, 0 from generate_series(1, 50) g; grant all on leak, hot to public", dbname="odoo")


@pytest.fixture(autouse=True)
def empty(table, cluster):
    yield
    cluster.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'odoo' and pid <> pg_backend_pid()")
    eventually(lambda: cluster.activity(where="datname = 'odoo'") == [])
    cluster.sql("truncate leak; update hot set n = 0", dbname="odoo")


def policy(**more):
    return {"warn": "200ms", "reset": "400ms", "when": "always", "action": "rollback", **more}


def lanes(**more):
    """`leak*` is reset for its idleness, `harm*` when it harms, `cron*` is disconnected, `none*` is watched."""
    return [lane("admin", match=[{"user": "postgres"}], protected=True, idle_in_transaction=policy()),
            lane("leak", quota=20, idle_in_transaction=policy(**more)),
            lane("harm", quota=20, idle_in_transaction=policy(when="harm", cap="1h")),
            lane("cron", quota=20, idle_in_transaction=policy(action="disconnect", when="always")),
            lane("none", quota=20, idle_in_transaction={"warn": "200ms", "action": "none"}),
            lane("other", default=True, quota=20)]


@pytest.fixture
def weir(make_weir):
    return make_weir(lanes=lanes(), limits={"max_resets_per_minute": 10_000})


def rows(cluster):
    return sorted(int(r["id"]) for r in cluster.sql("select id from leak", dbname="odoo"))


def backend(cluster, app):
    found = cluster.activity(app)
    return found[0] if found else None


def rolled_back(cluster, app):
    """Whether the backend has no xid, no snapshot, no lock on a row, and a failed transaction."""
    row = backend(cluster, app)
    return row and row["state"] == "idle in transaction (aborted)" and row["backend_xid"] is None and row["backend_xmin"] is None


def leak(weir, cluster, app="leak", before=(), statement="insert into leak values (1, 'leaker')"):
    """A raw client whose transaction was rolled back while it idled."""
    client = weir.raw(app, dbname="odoo")
    for sql in before:
        client.ok(sql)
    # In one message: between two the client would idle, and lanes that reset at once do.
    client.ok(f"begin isolation level repeatable read; {statement}")
    eventually(lambda: rolled_back(cluster, app), what="the reset")
    return client


def harmed(weir, cluster, number=1, app="harm"):
    """A transaction that holds a row until somebody wants it; that it is reset only then gives the test all the time it needs before."""
    eventually(lambda: (row := backend(cluster, app)) and row["state"] == "idle in transaction", what="the transaction idles")
    return block(weir, number).result(60)


# -- who is reset ------------------------------------------------------------------------------------------------

def block(weir, number, app="other"):
    """Another client that wants the row; how it went is a Future."""
    def update():
        conn = weir.connect(app, dbname="odoo", autocommit=True)
        try:
            conn.cursor().execute("update hot set n = n + 10 where id = %s", (number,))
        finally:
            conn.close()
    return background(update)


def test_a_leak_that_blocks_somebody_psycopg2(weir, cluster):
    leaker = weir.connect("harm", dbname="odoo")
    cur = leaker.cursor()
    cur.execute("insert into leak values (1, 'two')")
    cur.execute("update hot set n = 1 where id = 1")
    never(lambda: rolled_back(cluster, "harm"), 1.5, what="a reset without harm")
    block(weir, 1).result(60)
    for _ in range(3):
        with pytest.raises(psycopg2.errors.SerializationFailure, match="pgweir: "):
            cur.execute("select 1")
    with pytest.raises(psycopg2.errors.SerializationFailure, match="pgweir: "):
        leaker.commit()
    cur.execute("select n from hot where id = 1")
    assert cur.fetchone() == (10,)
    leaker.commit()
    assert rows(cluster) == []
    eventually(lambda: weir.lane("harm")["resets"] == 1)
    eventually(lambda: weir.metric("pgweir_resets_total", lane="harm", action="rollback") == 1)
    eventually(lambda: weir.timeline_has(" reset ", "harm"))
    leaker.close()


def test_a_leak_that_blocks_somebody_psycopg3(weir, cluster):
    leaker = weir.connect3("harm", dbname="odoo")
    leaker.execute("update hot set n = %s where id = 2", (1,))
    block(weir, 2).result(60)
    for _ in range(3):
        with pytest.raises(psycopg.errors.SerializationFailure):
            leaker.execute("select %s::int", (1,))
    with pytest.raises(psycopg.errors.SerializationFailure):
        leaker.commit()
    leaker.rollback()
    assert leaker.execute("select n from hot where id = 2").fetchone() == (10,)
    leaker.close()


DRIVERS = pytest.mark.parametrize("connect, errors", [(Weir.connect, psycopg2.errors), (Weir.connect3, psycopg.errors)], ids=["psycopg2", "psycopg3"])


@DRIVERS
def test_rollback_ends_it(weir, cluster, connect, errors):
    conn = connect(weir, "harm", dbname="odoo")
    cur = conn.cursor()
    cur.execute("insert into leak values (2, 'x')")
    cur.execute("update hot set n = 1 where id = 1")
    harmed(weir, cluster)
    with pytest.raises(errors.SerializationFailure):
        cur.execute("insert into leak values (3, 'x')")
    conn.rollback()
    cur.execute("insert into leak values (4, 'x')")
    conn.commit()
    conn.close()
    assert rows(cluster) == [4]


@DRIVERS
def test_commit_without_another_statement(weir, cluster, connect, errors):
    conn = connect(weir, "harm", dbname="odoo")
    conn.cursor().execute("insert into leak values (2, 'x')")
    conn.cursor().execute("update hot set n = 1 where id = 1")
    harmed(weir, cluster)
    with pytest.raises(errors.SerializationFailure):
        conn.commit()
    conn.rollback()
    conn.close()
    assert rows(cluster) == []


def test_pipeline_psycopg3(weir, cluster):
    conn = weir.connect3("harm", dbname="odoo", autocommit=True)
    wrong = (psycopg.errors.SerializationFailure, psycopg.errors.PipelineAborted)
    # Where an answer comes early the block is left early, and what was sent behind it is answered when the pipeline is left.
    with contextlib.suppress(*wrong), conn.pipeline() as pipe:
        conn.execute("begin")
        conn.execute("insert into leak values (%s, 'pipe')", (1,))
        conn.execute("update hot set n = 1 where id = %s", (1,))
        pipe.sync()
        harmed(weir, cluster)
        select = conn.cursor()
        with pytest.raises(wrong):
            select.execute("select %s::int", (1,))
            conn.execute("commit")
            conn.execute("insert into leak values (%s, 'after commit')", (2,))
            pipe.sync()
            select.fetchone()
    assert conn.info.transaction_status in (psycopg.pq.TransactionStatus.INERROR, psycopg.pq.TransactionStatus.IDLE)
    conn.execute("rollback")
    conn.execute("insert into leak values (5, 'later')")
    assert rows(cluster) == [5]
    conn.close()


def test_the_cap_resets_without_harm(make_weir, cluster):
    weir = make_weir(lanes=[lane("harm", idle_in_transaction=policy(when="harm", cap="1s")), lane("other", default=True)])
    leak(weir, cluster, "harm").close()


def test_a_full_lane_with_others_waiting_is_harm(make_weir, cluster, tidy):
    weir = make_weir(lanes=[lane("harm", quota=1, wait_timeout="30s", idle_in_transaction=policy(when="harm", cap="1h")),
                            lane("other", default=True)])
    client = tidy(weir.raw("harm", dbname="odoo"))
    client.ok("begin")
    client.ok("insert into leak values (1, 'x')")
    never(lambda: rolled_back(cluster, "harm"), 1)
    waiting = tidy(weir.socket())
    waiting.send(wire.startup_packet("odoo", "odoo", app="harm2"))
    eventually(lambda: rolled_back(cluster, "harm"))


def test_usage_above_shed_below_is_harm(make_weir, cluster, tidy):
    weir = make_weir(lanes=[lane("harm", idle_in_transaction=policy(when="harm", cap="1h"), shed_above=60, shed_below=30),
                            lane("other", default=True)])
    client = tidy(weir.raw("harm", dbname="odoo"))
    client.ok("begin")
    client.ok("insert into leak values (1, 'x')")
    never(lambda: rolled_back(cluster, "harm"), 1)
    for _ in range(22):
        tidy(cluster.direct(user="batch", app="bypass"))
    eventually(lambda: rolled_back(cluster, "harm"))


def test_a_piece_of_a_message_keeps_no_leak_alive(weir, cluster):
    client = weir.raw("leak", dbname="odoo")
    client.ok("begin; insert into leak values (1, 'leaker')")
    whole = wire.query("select 1")
    client.send(whole[:3])
    eventually(lambda: rolled_back(cluster, "leak"), what="the reset")
    client.send(whole[3:])
    assert client.error()["C"] == "40001"
    assert client.until("Z")[-1].body == b"E"
    assert wire.states(client.query("rollback")) == [("C", "ROLLBACK"), ("Z", "I")]
    assert rows(cluster) == []


def test_action_disconnect(weir, cluster):
    client = weir.raw("cron", dbname="odoo")
    client.ok("begin; insert into leak values (1, 'x')")
    fields = client.error()
    assert (fields["S"], fields["C"]) == ("FATAL", "25P03") and client.at_eof()
    eventually(lambda: backend(cluster, "cron") is None)
    eventually(lambda: weir.lane("cron")["slots"] == 0)
    eventually(lambda: weir.metric("pgweir_resets_total", lane="cron", action="disconnect") == 1)


def test_action_none_and_protected_are_watched_only(weir, cluster, tidy):
    watched, admin = tidy(weir.raw("none", dbname="odoo")), tidy(weir.raw("psql", user="postgres", dbname="odoo"))
    for client in (watched, admin):
        client.ok("begin")
        client.ok("insert into leak values (1, 'x')")
    eventually(lambda: weir.timeline_has("leak_warn", "none"))
    never(lambda: rolled_back(cluster, "none") or rolled_back(cluster, "psql"), 1.5)
    for client in (watched, admin):
        client.ok("commit")
    assert rows(cluster) == [1, 1]
    assert weir.lane("none")["resets"] == weir.lane("admin")["resets"] == 0


def test_exempt_statements(make_weir, cluster, tidy):
    rule = policy(when="harm", cap="1h", exempt=["*from hot*for no key update skip locked*"])
    weir = make_weir(lanes=[lane("harm", quota=20, idle_in_transaction=rule), lane("other", default=True)])
    client = tidy(weir.raw("harm", dbname="odoo"))
    client.ok("begin")
    client.ok("SELECT id\n  FROM hot WHERE id = 3 FOR NO KEY UPDATE SKIP LOCKED")
    waiting = block(weir, 3)
    eventually(lambda: cluster.activity("other", "wait_event_type = 'Lock'"), what="somebody is harmed")
    never(lambda: rolled_back(cluster, "harm"), 2)
    client.ok("select 1")
    eventually(lambda: rolled_back(cluster, "harm"), what="the reset once the last statement is another")
    waiting.result(60)


def test_a_session_without_idle_timeout_is_watched_only(weir, cluster, tidy):
    client = tidy(weir.raw("leak", dbname="odoo"))
    client.ok("set idle_in_transaction_session_timeout = 0")
    client.ok("begin")
    client.ok("insert into leak values (1, 'x')")
    never(lambda: rolled_back(cluster, "leak"), 1.5)
    client.ok("commit")


def test_observe_touches_nothing(make_weir, cluster, tidy):
    weir = make_weir(mode="observe", lanes=lanes())
    client, cron = tidy(weir.raw("leak", dbname="odoo")), tidy(weir.raw("cron", dbname="odoo"))
    for one in (client, cron):
        one.ok("begin")
        one.ok("insert into leak values (1, 'x')")
    eventually(lambda: weir.timeline_has("leak") and (weir.timeline_has("observe") or weir.timeline_has("would")), what="the decision on record")
    never(lambda: rolled_back(cluster, "leak") or not backend(cluster, "cron"), 1)
    for one in (client, cron):
        one.ok("commit")
    assert rows(cluster) == [1, 1]


def test_disconnect_after_a_silent_rollback(make_weir, cluster):
    weir = make_weir(lanes=lanes(disconnect_after="1s"))
    client = weir.raw("leak", dbname="odoo", timeout=60)
    client.ok("begin; insert into leak values (1, 'leaker')")
    assert client.error()["C"] == "25P03" and client.at_eof()
    eventually(lambda: backend(cluster, "leak") is None)
    # By pgweir's own record: who looks at PostgreSQL meanwhile may come too late.
    eventually(lambda: [weir.metric("pgweir_resets_total", lane="leak", action=action) for action in ("rollback", "disconnect")] == [1, 1])


def test_max_resets_per_minute(make_weir, cluster, tidy):
    weir = make_weir(lanes=lanes(), limits={"max_resets_per_minute": 2})
    for i in range(4):
        client = tidy(weir.raw(f"leak{i}", dbname="odoo"))
        client.ok("begin; insert into leak values (1, 'x')")
    eventually(lambda: weir.lane("leak")["resets"] == 2)
    eventually(lambda: weir.timeline_has("reset_limit"), what="the third and the fourth are judged")
    never(lambda: weir.lane("leak")["resets"] > 2, 1.5)
    eventually(lambda: len(cluster.activity("leak%", "state = 'idle in transaction'")) == 2)


def test_own_sqlstate(make_weir, cluster):
    weir = make_weir(lanes=lanes(sqlstate="40P01"))
    client = leak(weir, cluster)
    assert wire.states(client.query("select 1")) == [("E", "40P01"), ("Z", "E")]
    client.close()


def test_reset_again_soon_after_gets_25p03(weir, cluster):
    # The retry, by the same client process with the same statement, leaks again: 40001 would make it repeat for ever.
    client = leak(weir, cluster)
    assert wire.states(client.query("select 1")) == [GONE, ("Z", "E")]
    client.ok("rollback")
    client.ok("begin isolation level repeatable read; insert into leak values (2, 'again')")
    eventually(lambda: rolled_back(cluster, "leak"))
    assert wire.states(client.query("select 1")) == [("E", "25P03"), ("Z", "E")]
    assert wire.states(client.query("commit")) == [("E", "25P03"), ("Z", "I")]
    client.close()


def test_show_leaks(weir, cluster, tidy):
    client = tidy(weir.raw("none", dbname="odoo"))
    client.ok("begin")
    client.ok("update hot set n = 2 where id = 4 and 'secret literal' <> ''")
    waiting = block(weir, 4)
    bypass = tidy(cluster.direct(user="batch", dbname="odoo", app="bypass", autocommit=False))
    bypass.cursor().execute("select 1")

    def ours():
        found = [r for r in weir.admin("SHOW LEAKS") if r["application"] == "none"]
        return found and re.search(r"\d", str(found[0].get("blocks"))) and found[0]
    row = eventually(ours, what="the leak and whom it blocks")
    assert "update hot" in row["last_statement"] and "secret" not in row["last_statement"]
    assert weir.lane("none")["idle_in_transaction"] == 1
    assert weir.metric("pgweir_idle_in_transaction", lane="none") == 1
    client.ok("rollback")
    waiting.result(60)


# -- what the client is told ------------------------------------------------------------------------------------

def test_the_error_has_all_its_parts(weir, cluster):
    client = leak(weir, cluster)
    seen = client.query("select 1")
    fields = seen[0].fields
    assert (fields["S"], fields["V"], fields["C"]) == ("ERROR", "ERROR", "40001")
    assert fields["M"].startswith("pgweir: ")
    client.close()


def test_nothing_is_sent_unasked(weir, cluster):
    client = leak(weir, cluster)
    assert client.quiet(1)
    client.close()


COMMITS = ["COMMIT", "commit;", " COMMIT WORK ", "END", "end transaction", "/* c */ COMMIT -- x", "-- x\ncommit", "COMMIT AND CHAIN",
           "COMMIT AND NO CHAIN", "PREPARE TRANSACTION 'leak'", "COMMIT; SELECT 1", "COMMIT; INSERT INTO leak VALUES (9, 'x')",
           "END; BEGIN; INSERT INTO leak VALUES (9, 'x'); COMMIT"]


# The extended protocol takes one statement only.
@pytest.mark.parametrize("extended, sql", [(False, sql) for sql in COMMITS] + [(True, sql) for sql in COMMITS if ";" not in sql.rstrip("; ")])
def test_commit_never_succeeds_silently(weir, cluster, sql, extended):
    client = leak(weir, cluster)
    seen = wire.states(client.ask(wire.extended(sql) if extended else wire.query(sql)))
    assert seen == [GONE, ("Z", "I")], seen
    assert client.ok("select 1") == [["1"]]
    client.close()
    assert rows(cluster) == []
    assert cluster.sql("select * from pg_prepared_xacts") == []


@pytest.mark.parametrize("sql", ["select 1; COMMIT; INSERT INTO leak VALUES (9, 'x')", "INSERT INTO leak VALUES (9, 'x'); COMMIT",
                                 "savepoint s; COMMIT", "insert into leak values (9, 'x')", "select 1", "", "syntax error", "begin",
                                 "ROLLBACK TO SAVEPOINT s", "ROLLBACK TO s", "rollback transaction to s", "RELEASE SAVEPOINT s", "RELEASE s", "savepoint t",
                                 "set local work_mem = '1MB'", "copy leak from stdin", "declare c cursor for select 1", "deallocate all",
                                 "listen x", "/* rollback */ select 1", "abortx", "do $$ begin commit; end $$"])
def test_every_other_statement_fails_until_rollback(weir, cluster, sql):
    client = leak(weir, cluster, statement="insert into leak values (1, 'x'); savepoint s; select 1")
    seen = wire.states(client.query(sql))
    if sql:
        assert seen[0] == GONE and seen[-1][0] == "Z", seen
        assert not any(kind == "C" for kind, _ in seen), seen
    else:
        assert seen == [("Z", "E")]
    if seen[-1] == ("Z", "E"):
        assert wire.states(client.query("select 2")) == [GONE, ("Z", "E")]
        assert wire.states(client.query("ROLLBACK TO SAVEPOINT s")) == [GONE, ("Z", "E")]
        assert wire.states(client.query("ROLLBACK")) == [("C", "ROLLBACK"), ("Z", "I")]
    client.ok("insert into leak values (5, 'x')")
    client.close()
    assert rows(cluster) == [5]


@pytest.mark.parametrize("sql", ["ROLLBACK", "rollback;", "ABORT", "Abort Transaction", " /* x */ rollback work", "ROLLBACK AND NO CHAIN"])
@pytest.mark.parametrize("extended", [False, True], ids=["simple", "extended"])
def test_rollback_is_a_rollback(weir, cluster, sql, extended):
    client = leak(weir, cluster)
    assert wire.states(client.ask(wire.extended(sql) if extended else wire.query(sql))) == [("C", "ROLLBACK"), ("Z", "I")]
    assert wire.states(client.query("select 1/0")) == [("E", "22012"), ("Z", "I")], "its own errors are its own again"
    client.ok("begin; insert into leak values (6, 'x'); commit")
    client.close()
    assert rows(cluster) == [6]


def test_rollback_and_chain(weir, cluster):
    # Where harm is what counts, the next transaction may take its time.
    client = weir.raw("harm", dbname="odoo")
    client.ok("begin isolation level repeatable read; insert into leak values (1, 'leaker'); update hot set n = 1 where id = 1")
    harmed(weir, cluster)
    assert wire.states(client.query("ROLLBACK AND CHAIN")) == [("C", "ROLLBACK"), ("Z", "T")]
    assert client.ok("show transaction_isolation") == [["repeatable read"]]
    client.ok("insert into leak values (7, 'chained')")
    client.ok("commit")
    client.close()
    assert rows(cluster) == [7]


def test_rollback_with_more_behind_it(weir, cluster):
    # Whatever is answered must be what happened.
    client = leak(weir, cluster)
    seen = wire.states(client.query("ROLLBACK; INSERT INTO leak VALUES (8, 'x')"))
    assert seen[-1][0] == "Z"
    inserted = ("C", "INSERT 0 1") in seen
    if seen[-1] != ("Z", "I"):
        client.query("rollback")
    client.close()
    assert rows(cluster) == ([8] if inserted else [])
    assert inserted or GONE in seen


def prepared(weir, cluster, sql):
    client = weir.raw("leak", dbname="odoo")
    client.ask(wire.parse(sql, "exit"), wire.parse("select 1", "other"), wire.SYNC)
    client.ok("begin; insert into leak values (1, 'x')")
    eventually(lambda: rolled_back(cluster, "leak"))
    return client


def test_prepared_commit(weir, cluster):
    client = prepared(weir, cluster, "COMMIT")
    assert wire.states(client.ask(wire.bind("", "other"), wire.execute(), wire.SYNC)) == [GONE, ("Z", "E")]
    assert wire.states(client.ask(wire.bind("", "exit"), wire.execute(), wire.SYNC)) == [GONE, ("Z", "I")]
    assert [m.values for m in client.ask(wire.bind("", "other"), wire.execute(), wire.SYNC) if m.tag == "D"] == [["1"]]
    client.close()
    assert rows(cluster) == []


def test_prepared_rollback(weir, cluster):
    client = prepared(weir, cluster, "ROLLBACK")
    assert wire.states(client.ask(wire.bind("", "other"), wire.execute(), wire.SYNC)) == [GONE, ("Z", "E")]
    assert wire.states(client.ask(wire.bind("", "exit"), wire.execute(), wire.SYNC)) == [("C", "ROLLBACK"), ("Z", "I")]
    client.close()


def test_sql_level_prepared_commit_is_not_a_loophole(weir, cluster):
    client = leak(weir, cluster, before=["prepare s as select 1"])
    seen = wire.states(client.query("execute s"))
    assert seen == [GONE, ("Z", "E")]
    assert wire.states(client.query("commit")) == [GONE, ("Z", "I")]
    client.close()


def test_extended_protocol_skips_to_sync(weir, cluster):
    client = leak(weir, cluster)
    seen = client.ask(wire.extended("select 1", sync=False), wire.extended("commit", sync=False),
                      wire.extended("insert into leak values (9, 'x')", sync=False), wire.SYNC)
    assert wire.states(seen) == [GONE, ("Z", "E")]
    seen = client.ask(wire.extended("commit", sync=False), wire.extended("insert into leak values (9, 'x')", sync=False), wire.SYNC)
    assert wire.states(seen) == [GONE, ("Z", "I")]
    client.close()
    assert rows(cluster) == []


def test_a_pipeline_over_several_syncs(weir, cluster):
    client = leak(weir, cluster)
    client.send(wire.extended("select 1"), wire.extended("commit"), wire.extended("insert into leak values (10, 'x')"), wire.query("select 'end'"))
    assert wire.states(client.until("Z")) == [GONE, ("Z", "E")]
    assert wire.states(client.until("Z")) == [GONE, ("Z", "I")]
    assert wire.states(client.until("Z")) == [("C", "INSERT 0 1"), ("Z", "I")]
    assert [m.values for m in client.until("Z") if m.tag == "D"] == [["end"]]
    client.close()
    assert rows(cluster) == [10]


def test_a_simple_pipeline(weir, cluster):
    client = leak(weir, cluster)
    client.send(*[wire.query(sql) for sql in ("select 1", "select 2", "rollback", "select 3", "commit")])
    expected = [[GONE, ("Z", "E")], [GONE, ("Z", "E")], [("C", "ROLLBACK"), ("Z", "I")], [("C", "SELECT 1"), ("Z", "I")], [("C", "COMMIT"), ("Z", "I")]]
    assert [wire.states(client.until("Z")) for _ in expected] == expected
    client.close()


def test_parse_close_and_sync_behave(weir, cluster):
    client = leak(weir, cluster)
    assert wire.states(client.ask(wire.SYNC)) == [("Z", "E")]
    assert [m.tag for m in client.ask(wire.close("S", "nosuch"), wire.SYNC)] == ["3", "Z"]
    assert wire.states(client.ask(wire.parse("select 1", "p"), wire.SYNC))[-1] == ("Z", "E")
    assert wire.states(client.ask(wire.packet("F", b"\0\0\0\1\0\0\0\0\0\0"))) == [GONE, ("Z", "E")]
    assert wire.states(client.query("rollback")) == [("C", "ROLLBACK"), ("Z", "I")]
    client.close()


def test_a_failed_transaction_inside_a_savepoint(weir, cluster):
    # `E` inside a savepoint still holds the row.
    client = weir.raw("harm", dbname="odoo")
    client.ok("begin; update hot set n = 5 where id = 5; savepoint s")
    assert wire.states(client.query("select 1/0")) == [("E", "22012"), ("Z", "E")]
    block(weir, 5).result(60)
    assert wire.states(client.query("ROLLBACK TO SAVEPOINT s")) == [GONE, ("Z", "E")]
    assert wire.states(client.query("select 1")) == [GONE, ("Z", "E")]
    assert wire.states(client.query("commit")) == [GONE, ("Z", "I")]
    client.close()


def test_rolled_back_client_encoding_is_told(weir, cluster):
    client = weir.raw("leak", dbname="odoo")
    client.ok("begin; set client_encoding = 'LATIN1'")
    assert client.params["client_encoding"] == "LATIN1"
    eventually(lambda: backend(cluster, "leak")["state"] == "idle in transaction (aborted)")
    assert wire.states(client.query("select 1")) == [GONE, ("Z", "E")]
    assert client.params["client_encoding"] == "UTF8"
    client.query("rollback")
    assert client.ok("show client_encoding") == [["UTF8"]]
    client.close()


def test_notifications_pass_a_reset_transaction(weir, cluster):
    client = weir.raw("leak", dbname="odoo")
    client.ok("listen bell")
    client.ok("begin; insert into leak values (1, 'x')")
    eventually(lambda: rolled_back(cluster, "leak"))
    cluster.sql("notify bell, 'ding'", dbname="odoo")
    client.send(wire.query("rollback"))
    assert client.until("A")
    client.close()


def test_session_state_survives_a_rollback(weir, cluster):
    client = leak(weir, cluster, before=["set work_mem = '123kB'", "create temp table t (id int)"])
    client.ok("rollback")
    assert client.ok("show work_mem") == [["123kB"]]
    assert client.ok("select count(*) from t") == [["0"]]
    client.close()


# -- only disconnect is possible --------------------------------------------------------------------------------

def test_a_pipeline_without_sync(weir, cluster):
    client = weir.raw("harm", dbname="odoo")
    client.send(wire.extended("update hot set n = 6 where id = 6", sync=False), wire.FLUSH)
    assert client.until("C")[-1].text == "UPDATE 1"
    block(weir, 6).result(60)
    fields = client.error()
    assert (fields["S"], fields["C"]) == ("FATAL", "25P03") and client.at_eof()
    eventually(lambda: backend(cluster, "harm") is None)


def large(first="select '"):
    """A Query too large to be judged whole, and most of it."""
    whole = wire.query(first + "x" * 200_000 + "'")
    return whole, whole[:150_000]


def test_a_query_cut_in_the_middle(weir, cluster):
    client = weir.raw("harm", dbname="odoo")
    client.ok("begin; insert into leak values (1, 'leaker'); update hot set n = 7 where id = 7")
    client.send(large()[1])
    block(weir, 7).result(60)
    fields = client.error()
    assert (fields["S"], fields["C"]) == ("FATAL", "25P03") and client.at_eof()
    eventually(lambda: backend(cluster, "harm") is None)
    assert rows(cluster) == []
    eventually(lambda: weir.lane("harm")["slots"] == 0)


def test_a_query_cut_in_the_middle_behind_one_that_runs(weir, cluster):
    """It is the running one that everybody waits for; once it is done, the client."""
    client = weir.raw("leak", dbname="odoo")
    client.send(wire.query("begin; select pg_sleep(2)"), large()[1])
    assert client.until("Z")[-1].body == b"T"
    assert client.error()["C"] == "25P03" and client.at_eof()


def test_a_query_cut_outside_a_transaction_harms_nobody(weir):
    client = weir.raw("leak", dbname="odoo")
    whole, piece = large()
    client.send(piece)
    never(lambda: weir.timeline_has("leak"), 1.2)
    client.send(whole[len(piece):])
    assert client.until("Z")[-1].body == b"I"


def test_an_open_copy(weir, cluster):
    client = weir.raw("leak", dbname="odoo")
    client.send(wire.query("begin; copy leak from stdin"), wire.packet("d", b"1\tx\n"))
    assert [message.tag for message in client.until("G")] == ["C", "G"]
    fields = client.error()
    assert (fields["S"], fields["C"]) == ("FATAL", "25P03") and client.at_eof()
    eventually(lambda: backend(cluster, "leak") is None)
    assert rows(cluster) == []


def test_what_goes_on_is_no_leak(make_weir, cluster, tidy):
    """A large query and a COPY that flow, a statement now and then, a long query: each for longer than a leak may idle, with gaps that leave
    a busy machine ten times its room."""
    weir = make_weir(lanes=[lane("leak", quota=20, idle_in_transaction=policy(warn="2s", reset="5s")), lane("other", default=True)])
    flowing, copying, talking, running = (tidy(weir.raw("leak", dbname="odoo")) for _ in range(4))
    for client in (flowing, talking, running):
        client.ok("begin")
    running.send(wire.query("select pg_sleep(7)"))
    copying.send(wire.query("begin; copy leak from stdin"))
    assert [message.tag for message in copying.until("G")] == ["C", "G"]
    whole, _ = large()
    # Seven seconds.
    steps, piece = 28, len(whole) // 28 + 1
    for step in range(steps):
        flowing.send(whole[step * piece:(step + 1) * piece])
        copying.send(wire.packet("d", f"{step}\tx\n".encode()))
        talking.ok("select 1")
        time.sleep(0.25)
    copying.send(wire.COPY_DONE)
    assert wire.states(copying.until("Z")) == [("C", f"COPY {steps}"), ("Z", "T")]
    assert wire.states(flowing.until("Z")) == [("C", "SELECT 1"), ("Z", "T")]
    assert wire.states(running.until("Z")) == [("C", "SELECT 1"), ("Z", "T")]
    for client in (flowing, copying, talking, running):
        client.ok("commit")
    assert weir.lane("leak")["resets"] == 0


# -- by command, and the race ------------------------------------------------------------------------------------

def test_reset_client_command(weir, cluster):
    client = weir.raw("none", dbname="odoo")
    client.ok("begin")
    client.ok("insert into leak values (1, 'x')")
    row = weir.client("none")
    assert row["state"] == "idle_in_transaction"
    with pytest.raises(psycopg2.Error):
        weir.admin("RESET CLIENT 99999999")
    weir.admin(f"RESET CLIENT {row['id']}")
    eventually(lambda: rolled_back(cluster, "none") or backend(cluster, "none") is None)
    client.close()


def test_reset_of_a_client_that_is_idle_outside_a_transaction_does_no_harm(weir, cluster):
    client = weir.raw("leak", dbname="odoo")
    client.ok("select 1")
    try:
        weir.admin(f"RESET CLIENT {weir.client('leak')['id']}")
    except psycopg2.Error:
        pass
    assert client.ok("select 2") == [["2"]]
    client.close()


@pytest.mark.timeout(300)
def test_a_reset_racing_with_a_client_that_speaks(make_weir, cluster):
    """RESET CLIENT as fast as the console takes it, against clients in short transactions: every reply answers its own
    statement, and what was told to be committed is there, and nothing else."""
    weir = make_weir(lanes=[lane("race", idle_in_transaction=policy(reset="1h", warn="1h", when="harm", cap="2h")), lane("other", default=True)],
                     limits={"max_resets_per_minute": 100_000})
    shots_wanted, hits_wanted, count = 3000, 20, 3
    hits = itertools.count()
    hit, stop = threading.Event(), threading.Event()

    def talk(number, extended):
        client = weir.raw(f"race{number}", dbname="odoo", timeout=60)
        ask = (lambda sql: client.ask(wire.extended(sql))) if extended else client.query
        committed, resets = [], 0
        for i in itertools.takewhile(lambda _: not stop.is_set(), range(50_000)):
            tag = number * 1_000_000 + i
            ended = False
            for sql in ("begin", f"insert into leak values ({tag}, 'race')", f"select {tag}", "commit"):
                seen = ask(sql)
                if sql.startswith("select"):
                    values = [m.values for m in seen if m.tag == "D"]
                    assert values in ([], [[str(tag)]]), f"crossed reply: {values} for {tag}"
                short = wire.states(seen)
                if short[0][0] == "E":
                    assert short[0][1] in ("40001", "25P03"), short
                    resets += 1
                    if next(hits) > hits_wanted:
                        hit.set()
                    if sql == "commit":
                        assert short[-1] == ("Z", "I"), short
                    else:
                        assert short[-1] == ("Z", "E"), short
                        assert wire.states(ask("rollback")) == [("C", "ROLLBACK"), ("Z", "I")]
                    ended = True
                    break
                expected = {"b": "BEGIN", "i": "INSERT 0 1", "s": "SELECT 1", "c": "COMMIT"}[sql[0]]
                assert short == [("C", expected), ("Z", "I" if sql == "commit" else "T")], (sql, short)
                if i % 3 == 0:
                    time.sleep(0.0005)
            if not ended:
                committed.append(tag)
        client.close()
        return committed, resets

    def shoot():
        conn = weir.admin_connection()
        cur, shots = conn.cursor(), 0
        ids = [eventually(lambda n=n: weir.clients(f"race{n}"))[0]["id"] for n in range(count)]
        # On a busy machine shots are slow, and most come late: as many more as it takes, within bounds.
        ends = time.monotonic() + 150
        while (shots < shots_wanted or not hit.is_set()) and time.monotonic() < ends:
            for one in ids:
                try:
                    cur.execute(f"RESET CLIENT {one}")
                except psycopg2.Error:
                    pass
                shots += 1
        conn.close()

    talkers = [background(talk, n, n % 2 == 1) for n in range(count)]
    shooter = background(shoot)
    try:
        shooter.result(240)
    finally:
        stop.set()
    results = [t.result(60) for t in talkers]
    committed = sorted(tag for tags, _ in results for tag in tags)
    assert rows(cluster) == committed
    resets = sum(n for _, n in results)
    assert resets > hits_wanted, f"{resets} resets: the race was never close"


def test_a_client_that_logs_in_is_never_reset(weir):
    with pytest.raises(ServerError):
        weir.raw("leak", dbname="nosuch")
    assert weir.lane("leak")["resets"] == 0
