"""`pgweir init`: from an odoo.conf to a pgweir that runs in observe mode in front of the PostgreSQL it names."""

import configparser
import json
import os
import re
import signal
import stat
import subprocess
import time

import psycopg2
import pytest

from harness import eventually, free_port
from harness.weir import BINARY, ROOT

pytestmark = pytest.mark.weir

CONFS = ROOT / "tests" / "odoo-conf"
SECRETS = ("the-master-password", "the-odoo-password")
FILES = ("one-host", "many-workers", "multi-tenant", "threaded")


@pytest.fixture(scope="module")
def postgres(cluster):
    """The module's cluster as a new user has it: passwords over TCP, and no role for pgweir."""
    cluster.sql("reassign owned by pgweir to postgres; drop owned by pgweir; drop role pgweir")
    cluster.sql(f"alter role odoo password '{SECRETS[1]}'")
    hba = cluster.data / "pg_hba.conf"
    strict = "".join(f"host all {role} 127.0.0.1/32 scram-sha-256\n" for role in ("odoo", "pgweir"))
    hba.write_text(strict + hba.read_text())
    cluster.sql("select pg_reload_conf()")
    return cluster


def pgweir(*args, cwd, timeout=30, env=None):
    return subprocess.run([str(BINARY), *map(str, args)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout,
                          cwd=cwd, env={**os.environ, **(env or {})})


def psql(cluster, sql):
    """Runs a script as a superuser would, stopping at the first error."""
    return subprocess.run([str(cluster.bin / "psql"), "-X", "-v", "ON_ERROR_STOP=1", "-h", str(cluster.sockets), "-p", str(cluster.port),
                           "-U", "postgres", "-d", "postgres"], input=sql, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30)


def block(text, begin, end):
    """The indented lines below a heading of what was printed."""
    found = text.split(begin, 1)[1].split(end, 1)[0] if end else text.split(begin, 1)[1]
    return "\n".join(line.strip() for line in found.splitlines()[1:])


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def no_secrets(*texts):
    for text in texts:
        assert not any(secret in text for secret in SECRETS), text


def odoo_conf(directory, cluster, **options):
    conf = directory / "odoo.conf"
    settings = {"admin_passwd": SECRETS[0], "db_host": "127.0.0.1", "db_port": cluster.port, "db_user": "odoo", "db_password": SECRETS[1],
                "db_name": "odoo", "workers": 2, "max_cron_threads": 1, **options}
    conf.write_text("[options]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    return conf


def changed(conf, lines):
    """Puts the printed lines into odoo.conf as an operator would, and reads it as Odoo does."""
    text = conf.read_text()
    for line in filter(None, lines.splitlines()):
        key = line.split("=")[0].strip()
        text, count = re.subn(rf"(?m)^{key}\s*=.*$", line, text)
        text = text if count else text + line + "\n"
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    return parser["options"]


def odoo_session(options, application="odoo-4711"):
    """What an HTTP worker does for a request that notifies the bus: a transaction, and inside it a second link to `postgres`."""
    where = {"host": options["db_host"], "port": options["db_port"], "user": options["db_user"], "password": options["db_password"],
             "application_name": application, "connect_timeout": 20}
    conn = psycopg2.connect(dbname=options["db_name"], **where)
    with conn.cursor() as cur:
        cur.execute("select current_user, current_database()")
        row = cur.fetchone()
        notify = psycopg2.connect(dbname="postgres", **where)
        with notify.cursor() as other:
            other.execute("notify imbus, 'x'")
        notify.commit()
        notify.close()
    conn.commit()
    return conn, row


def test_from_an_odoo_conf_to_a_running_pgweir(postgres, tmp_path, tidy):
    conf, port = odoo_conf(tmp_path, postgres), free_port()
    done = pgweir("init", "--odoo-conf", conf, "--listen", f"127.0.0.1:{port}", "--directory", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = tmp_path / "pgweir.toml"
    no_secrets(done.stdout, done.stderr, config.read_text())
    assert mode(config) == 0o600 and mode(tmp_path / "monitor.password") == 0o600
    assert (tmp_path / "monitor.password").read_text().strip() not in done.stdout + config.read_text()
    assert "PostgreSQL was not asked" not in done.stdout and f"{postgres.max_connections}  max_connections" in done.stdout

    # 1. The printed SQL, by psql, makes a monitor that check is content with.
    sql = block(done.stdout, "\n1. ", "\n2. ")
    ran = psql(postgres, sql)
    assert ran.returncode == 0, ran.stderr + sql
    checked = pgweir("check", "--json", cwd=tmp_path)
    assert json.loads(checked.stdout) == {"ok": True, "problems": [], "warnings": []}, checked.stdout

    # 2. pgweir runs with the file as it is.
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([str(BINARY), "run"], cwd=tmp_path, stdout=log, stderr=log)
    try:
        eventually(lambda: pgweir("usage", cwd=tmp_path).returncode == 0, what="pgweir up")

        # 3. The printed lines lead Odoo there.
        options = changed(conf, block(done.stdout, "\n3. ", None))
        assert options["db_host"] == str(tmp_path / "run") and options["db_port"] == str(port)
        conn, row = odoo_session(options)
        tidy(conn)
        assert row == ("odoo", "odoo")

        def lanes():
            clients = json.loads(pgweir("clients", "--json", cwd=tmp_path).stdout)
            return [(client["application"], client["lane"]) for client in clients if client["user"] == "odoo"]
        # The short link may be seen while it closes.
        eventually(lambda: lanes() == [("odoo-4711", "web")], what="the worker's link is in web")

        def sampled():
            usage = json.loads(pgweir("usage", "--json", cwd=tmp_path).stdout)
            usage = usage[0] if isinstance(usage, list) else usage
            return str(usage["max_connections"]) == str(postgres.max_connections)
        eventually(sampled, what="the monitor, logged in with the password init made")
        assert "observe" in pgweir("status", cwd=tmp_path).stdout.lower()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    no_secrets((tmp_path / "log").read_text(errors="replace"))


def test_again_with_a_role_that_exists(postgres, tmp_path):
    conf = odoo_conf(tmp_path, postgres)
    if not postgres.value("select count(*) from pg_roles where rolname = 'pgweir'"):
        postgres.sql("create role pgweir")
    done = pgweir("init", "--odoo-conf", conf, "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert told["ok"] and told["limits"]["has_monitor"], done.stdout
    assert "create role" not in told["sql"] and psql(postgres, told["sql"]).returncode == 0
    assert told["odoo_conf"] == {"db_host": "/run/pgweir", "db_port": "6432"} | (
        {"db_maxconn": "8"} if told["plan"]["worst"] > told["plan"]["budget"] else {})
    assert postgres.value("select pg_has_role('pgweir', 'pg_monitor', 'member') and rolcanlogin from pg_roles where rolname = 'pgweir'")
    no_secrets(done.stdout, done.stderr)


def test_who_is_there_already_is_reckoned_with(postgres, tmp_path, tidy):
    for n in range(5):
        tidy(postgres.direct(user="batch", app=f"bi-{n % 2}", tcp=True))
    tidy(postgres.direct(user="postgres", app="odoo-tool", tcp=True))
    done = pgweir("init", "--odoo-conf", odoo_conf(tmp_path, postgres), "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    connected = {(row["user"], row["application"]): row["count"] for row in told["limits"]["connected"]}
    assert connected[("batch", "bi-0")] == 3 and connected[("batch", "bi-1")] == 2, connected
    others = next(figure["value"] for figure in told["plan"]["figures"] if figure["name"] == "others")
    assert others >= 6 and told["plan"]["budget"] == postgres.max_connections - 3 - 3 - others


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_odoo_gets_a_file_that_passes(name, tmp_path):
    done = pgweir("init", "--odoo-conf", CONFS / f"{name}.conf", "--upstream", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checked = json.loads(pgweir("check", "--json", cwd=tmp_path).stdout)
    assert checked["ok"] and not checked["problems"], checked
    # The PostgreSQL of these files is not there: nothing else is to be said of them.
    assert all("was not reached" in warning for warning in checked["warnings"]), checked
    assert len(done.stdout.splitlines()) < 70 and "To be known:" in done.stdout
    no_secrets(done.stdout, done.stderr, (tmp_path / "pgweir.toml").read_text())


def test_a_broken_file_is_named_line_by_line_and_nothing_is_written(tmp_path):
    done = pgweir("init", "--odoo-conf", CONFS / "broken.conf", cwd=tmp_path)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    lines = [int(m) for m in re.findall(r"broken\.conf:(\d+): ", done.stderr)]
    assert lines == [5, 9], done.stderr
    no_secrets(done.stdout, done.stderr)
    told = json.loads(pgweir("init", "--odoo-conf", CONFS / "broken.conf", "--json", cwd=tmp_path).stdout)
    assert told["ok"] is False and len(told["problems"]) == 2
    missing = pgweir("init", "--odoo-conf", "nowhere.conf", cwd=tmp_path)
    assert missing.returncode == 1 and "nowhere.conf: cannot be read" in missing.stderr
    assert pgweir("init", cwd=tmp_path).returncode == 2
    wrong = pgweir("init", "--odoo-conf", CONFS / "one-host.conf", "--upstream", f"postgres://odoo:{SECRETS[1]}@db:x/y", cwd=tmp_path)
    assert wrong.returncode == 2 and "--upstream wants" in wrong.stderr
    no_secrets(wrong.stdout, wrong.stderr)


def test_what_exists_is_replaced_only_by_force(tmp_path):
    init = ("init", "--odoo-conf", CONFS / "one-host.conf", "--upstream", "none")
    mine = tmp_path / "pgweir.toml"
    mine.write_text("# mine\n")
    done = pgweir(*init, cwd=tmp_path)
    assert done.returncode == 1 and "--force" in done.stderr and mine.read_text() == "# mine\n"
    assert not (tmp_path / "monitor.password").exists()
    assert pgweir(*init, "--output", "other.toml", cwd=tmp_path).returncode == 0 and (tmp_path / "other.toml").exists()
    password = (tmp_path / "monitor.password").read_text()
    assert pgweir(*init, "--force", cwd=tmp_path).returncode == 0
    assert "observe" in mine.read_text() and mode(mine) == 0o600
    assert (tmp_path / "monitor.password").read_text() == password, "a password that PostgreSQL may know stays"


def test_an_odoo_conf_that_leads_to_pgweir_already(tmp_path):
    conf = tmp_path / "odoo.conf"
    conf.write_text("[options]\ndb_host = /run/pgweir\ndb_port = 6432\ndb_user = odoo\n")
    done = pgweir("init", "--odoo-conf", conf, cwd=tmp_path)
    assert done.returncode == 1 and "odoo.conf:3: " in done.stderr and "--upstream" in done.stderr, done.stderr


def test_a_server_that_does_not_answer_is_assumed_to_be_ordinary(postgres, tmp_path):
    """The URL may carry a password; it is in no message."""
    conf = odoo_conf(tmp_path, postgres)
    started = time.monotonic()
    url = f"postgres://odoo:{SECRETS[1]}@127.0.0.1:{free_port()}/postgres"
    done = pgweir("init", "--odoo-conf", conf, "--upstream", url, cwd=tmp_path)
    assert done.returncode == 0 and "PostgreSQL was not asked" in done.stdout and time.monotonic() - started < 15
    no_secrets(done.stdout, done.stderr)


@pytest.mark.parametrize("change, whose", [
    ("alter role odoo set idle_in_transaction_session_timeout = '30s'", "role odoo has"),
    ("alter role odoo in database odoo set idle_in_transaction_session_timeout = '30s'", "role odoo has in database odoo"),
    ("alter database odoo set idle_in_transaction_session_timeout = 30000", "database odoo has"),
])
def test_check_warns_of_a_timeout_below_the_reset(postgres, tmp_path, change, whose):
    reset = ("alter role odoo reset all; alter role odoo in database odoo reset all; alter database odoo reset all;"
             " alter role pgweir reset all")
    postgres.sql(reset)
    done = pgweir("init", "--odoo-conf", odoo_conf(tmp_path, postgres), "--json", cwd=tmp_path)
    assert psql(postgres, json.loads(done.stdout)["sql"]).returncode == 0
    warnings = lambda: json.loads(pgweir("check", "--json", cwd=tmp_path).stdout)["warnings"]  # noqa: E731
    assert warnings() == []
    try:
        postgres.sql(change)
        (warning,) = warnings()
        assert whose in warning and "less than the reset of" in warning and "web 60 s" in warning
        # What the hint says mends it.
        hint = warning.split("Hint: ")[1]
        assert psql(postgres, hint + ";").returncode == 0, hint
        assert warnings() == []
    finally:
        postgres.sql(reset)
