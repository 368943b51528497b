"""`pgweir init`: from an odoo.conf to a pgweir that runs in observe mode in front of the PostgreSQL it names."""

import configparser
import json
import os
import pathlib
import random
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time

import psycopg2
import pytest

from harness import eventually, free_port
from harness.util import is_free
from harness.weir import BINARY, ROOT

pytestmark = pytest.mark.weir

CONFS = ROOT / "tests" / "odoo-conf"
SECRETS = ("the-master-password", "the-odoo-password")
FILES = ("one-host", "many-workers", "multi-tenant", "threaded")


@pytest.fixture
def tmp_path():
    """pytest's own has no room for the name of a socket in it, and pytest shuts it to other accounts whenever it is started anew."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-init-")).resolve()
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def free_pair():
    """A free port whose next one, the admin's, is free as well: above those that `free_port` gives away, below those of outgoing connections."""
    for _ in range(1000):
        first = random.randrange(30_000, 32_700, 2)
        if all(map(is_free, (first, first + 1))):
            return first
    raise RuntimeError("no free ports")


@pytest.fixture(scope="module")
def postgres(cluster):
    """The module's cluster as a new user has it: passwords over TCP, and no role for pgweir."""
    cluster.sql("reassign owned by pgweir to postgres; drop owned by pgweir; drop role pgweir")
    cluster.sql(f"alter role odoo password '{SECRETS[1]}'")
    hba = cluster.data / "pg_hba.conf"
    strict = "".join(f"host all {role} 127.0.0.1/32 scram-sha-256\n" for role in ("odoo", "pgweir"))
    hba.write_text(strict + hba.read_text())
    cluster.sql("select pg_reload_conf()")

    def asks():
        try:
            cluster.direct(user="odoo", tcp=True).close()
        except psycopg2.OperationalError as error:
            return "password" in str(error)
    eventually(asks, what="PostgreSQL asks for a password")
    return cluster


def pgweir(*args, cwd, timeout=60, env=None):
    return subprocess.run([str(BINARY), *map(str, args)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout,
                          cwd=cwd, env={**os.environ, **(env or {})})


def psql(cluster, sql):
    """Runs a script as a superuser would, stopping at the first error."""
    return subprocess.run([str(cluster.bin / "psql"), "-X", "-v", "ON_ERROR_STOP=1", "-h", str(cluster.sockets), "-p", str(cluster.port),
                           "-U", "postgres", "-d", "postgres"], input=sql, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)


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
    conf, port = odoo_conf(tmp_path, postgres), free_pair()
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
        process.wait(60)
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
    done = pgweir("init", "--odoo-conf", CONFS / f"{name}.conf", "--upstream", "none", "--directory", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # Whatever listens at PostgreSQL's own port of this host.
    config = tmp_path / "pgweir.toml"
    text, count = re.subn(r'(?m)^(\[upstream\]\naddress = )"[^"]*"', rf'\1"127.0.0.1:{free_port()}"', config.read_text())
    assert count == 1
    config.write_text(text)
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


@pytest.fixture
def running(postgres, tmp_path):
    """A pgweir in front of the module's cluster, as `init --directory` sets it up: its directory, odoo.conf and port."""
    home, port = tmp_path / "first", free_pair()
    home.mkdir()
    conf = odoo_conf(home, postgres)
    done = pgweir("init", "--odoo-conf", conf, "--listen", f"127.0.0.1:{port}", "--directory", "data", cwd=home)
    assert done.returncode == 0 and psql(postgres, block(done.stdout, "\n1. ", "\n2. ")).returncode == 0, done.stderr
    with open(home / "log", "wb") as log:
        process = subprocess.Popen([str(BINARY), "run"], cwd=home, stdout=log, stderr=log)
    eventually(lambda: "monitor ok" in pgweir("status", cwd=home).stdout, what="pgweir up")
    yield home, conf, port
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def test_a_pgweir_on_another_port_is_not_taken_for_postgresql(postgres, running, tmp_path):
    home, conf, port = running
    led = tmp_path / "led.conf"
    for host in ("127.0.0.1", home / "data" / "run"):
        led.write_text(conf.read_text().replace("db_host = 127.0.0.1", f"db_host = {host}").replace(f"db_port = {postgres.port}", f"db_port = {port}"))
        done = pgweir("init", "--odoo-conf", led, cwd=tmp_path)
        assert done.returncode == 1 and re.match(rf"{led}:\d+: db_host and db_port \({port}\) lead to a pgweir already", done.stderr), done.stderr
        # It says where PostgreSQL is, so that the next command can be copied.
        assert f"--upstream 127.0.0.1:{postgres.port}, as it says of itself" in done.stderr, done.stderr
    done = pgweir("init", "--odoo-conf", led, "--upstream", f"127.0.0.1:{port}", cwd=tmp_path)
    assert done.returncode == 1 and f"--upstream 127.0.0.1:{port} is a pgweir, not PostgreSQL" in done.stderr, done.stderr
    assert f"name PostgreSQL itself: 127.0.0.1:{postgres.port}" in done.stderr and not (tmp_path / "pgweir.toml").exists()
    no_secrets(done.stdout, done.stderr)
    # In the first one's own place nobody is asked who listens: its port says so.
    done = pgweir("init", "--odoo-conf", led, "--listen", f"127.0.0.1:{port}", cwd=tmp_path)
    assert done.returncode == 1 and f"--upstream 127.0.0.1:{postgres.port}" in done.stderr, done.stderr


def test_beside_a_pgweir_that_runs_its_monitor_is_no_other(postgres, running, tmp_path):
    home, conf, _ = running
    told = json.loads(pgweir("init", "--odoo-conf", conf, "--json", cwd=tmp_path).stdout)
    assert {"user": "pgweir", "application": "pgweir monitor", "count": 1} in told["limits"]["connected"], told["limits"]
    others = [figure["how"] for figure in told["plan"]["figures"] if figure["name"] == "others"]
    assert not any("pgweir" in how for how in others), others
    assert any("a pgweir runs already" in warning and "monitor.password" in warning for warning in told["warnings"]), told["warnings"]
    # Its own configuration can be written over: the password in use stays.
    again = pgweir("init", "--odoo-conf", conf, "--force", "--directory", "data", cwd=home)
    assert again.returncode == 0 and "a pgweir runs already" in again.stdout, again.stderr
    assert psql(postgres, block(again.stdout, "\n1. ", "\n2. ")).returncode == 0
    assert "not checked" not in pgweir("check", cwd=home).stdout


def test_no_line_names_its_address_or_cause_twice(tmp_path):
    conf, port = tmp_path / "odoo.conf", free_port()
    conf.write_text(f"[options]\ndb_host = 127.0.0.1\ndb_port = {port}\ndb_user = odoo\ndb_password = x\n")
    done = pgweir("init", "--odoo-conf", conf, "--directory", "data", "--listen", f"127.0.0.1:{free_pair()}", cwd=tmp_path)
    checked = pgweir("check", cwd=tmp_path)
    asked = pgweir("status", cwd=tmp_path)
    assert "Was it, with this configuration?" in asked.stderr, asked.stderr
    for text in (done.stdout, checked.stdout, asked.stderr):
        for line in filter(lambda line: "(os error" in line, text.splitlines()):
            assert line.count("(os error") == 1 and line.count(f"127.0.0.1:{port}") <= 1, line
    assert "Connection refused" in done.stdout + checked.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="another account is needed")
def test_check_finds_what_cannot_be_written(tmp_path):
    """As the account that runs it: root may write everywhere."""
    home = tmp_path / "home"
    home.mkdir()
    for above in (tmp_path, *tmp_path.parents):
        if above != above.parent and not os.stat(above).st_mode & 0o001:
            os.chmod(above, os.stat(above).st_mode | 0o011)
    program = home / "pgweir"
    program.write_bytes(BINARY.read_bytes())
    program.chmod(0o755)
    conf = home / "odoo.conf"
    conf.write_text("[options]\ndb_user = odoo\ndb_password = x\n")
    assert pgweir("init", "--odoo-conf", conf, "--upstream", "none", "--directory", "data", "--listen", f"127.0.0.1:{free_port()}",
                  cwd=home).returncode == 0
    for file in ("pgweir.toml", "monitor.password"):
        os.chown(home / file, 65534, -1)

    def as_nobody(*args):
        return subprocess.run([str(program), *args], cwd=home, text=True, capture_output=True, timeout=60, user=65534, group=65534, extra_groups=[])

    def problems():
        told = json.loads(as_nobody("check", "--json").stdout)
        assert told["ok"] is (not told["problems"]), told
        return told["problems"]
    state, run = home / "data" / "state", home / "data" / "run"
    said = problems()
    assert [line.split(":")[0] for line in said] == ["state.directory", "listen[1].address"], said
    assert f"{state} cannot be made by nobody (uid 65534), as whom this was checked: {home}: Permission denied" in said[0], said
    assert f"install -d -o nobody {state}" in said[0], said
    refused = as_nobody("run")
    assert refused.returncode == 1 and refused.stderr.count("Permission denied") == 1, refused.stderr
    # The first run was root's.
    for place in (state, run):
        place.mkdir(parents=True)
    said = problems()
    assert f"{state} cannot be written by nobody" in said[0] and f"chown nobody {state} as root" in said[0], said
    assert "sudo -u root pgweir check" in said[0], said
    refused = as_nobody("run")
    assert refused.returncode == 1 and refused.stderr.count("Permission denied") == 1, refused.stderr
    for place in (state, run):
        os.chown(place, 65534, -1)
    (state / "timeline.jsonl").touch(0o640)
    said = problems()
    assert len(said) == 1 and f"{state}/timeline.jsonl cannot be written by nobody" in said[0], said
    os.chown(state / "timeline.jsonl", 65534, -1)
    assert problems() == []


def test_a_server_that_does_not_answer_is_assumed_to_be_ordinary(postgres, tmp_path):
    """The URL may carry a password; it is in no message."""
    conf = odoo_conf(tmp_path, postgres)
    started = time.monotonic()
    url = f"postgres://odoo:{SECRETS[1]}@127.0.0.1:{free_port()}/postgres"
    done = pgweir("init", "--odoo-conf", conf, "--upstream", url, cwd=tmp_path)
    assert done.returncode == 0 and "PostgreSQL was not asked" in done.stdout and time.monotonic() - started < 40
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
