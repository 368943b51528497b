"""A pgweir process with a configuration of its own."""

import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request

import psycopg
import psycopg2
import psycopg2.extras
import pytest

from . import certs, wire
from .util import eventually, free_port
from .wire import RawClient

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("PGWEIR_BINARY") or ROOT / "target" / "release" / "pgweir")
# The suite without pgweir: what a client sees of PostgreSQL itself. It checks the suite, not the product.
DIRECT = os.environ.get("PGWEIR_DIRECT") == "1"


def lane(name, match=None, **more):
    """A lane; by default it takes the applications whose names begin with its own."""
    out = {"name": name, "quota": 10, **more}
    if match is None and not more.get("default"):
        match = [{"application": f"{name}*"}]
    if match:
        out["match"] = match
    return out


DEFAULT_LANES = [lane("other", default=True, quota=40, priority=9)]


def toml_value(value):
    """A value in TOML, tables inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    return json.dumps(str(value))


def toml(config):
    """A configuration in TOML: scalars first, then tables and arrays of tables."""
    tables = {k: v for k, v in config.items() if isinstance(v, dict)}
    arrays = {k: v for k, v in config.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    out = [f"{k} = {toml_value(v)}" for k, v in config.items() if k not in tables and k not in arrays]
    for name, table in tables.items():
        out += ["", f"[{name}]"] + [f"{k} = {toml_value(v)}" for k, v in table.items()]
    for name, rows in arrays.items():
        for row in rows:
            out += ["", f"[[{name}]]"] + [f"{k} = {toml_value(v)}" for k, v in row.items()]
    return "\n".join(out) + "\n"


class Weir:
    """A pgweir in front of `cluster`. Sections given as keywords are merged over the defaults."""

    def __init__(self, cluster, lanes=None, applications=(), listen=None, prefix=(), env=None, **sections):
        self.cluster = cluster
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-"))
        self.base.chmod(0o755)
        self.config_file = self.base / "pgweir.toml"
        self.state = self.base / "state"
        self.log_file = self.base / "pgweir.log"
        self.port = cluster.port if DIRECT else free_port()
        self.admin_port = free_port()
        self.unix_dir = str(cluster.sockets) if DIRECT else str(self.base)
        self.prefix = list(prefix)
        self.env = env or {}
        self.process = None
        self.binary = BINARY
        self.config = {
            "mode": sections.pop("mode", "enforce"),
            "listen": listen or [{"address": f"127.0.0.1:{self.port}"}, {"address": f"unix:{self.unix_dir}"}],
            "admin": {"address": f"127.0.0.1:{self.admin_port}", "user": "admin", **sections.pop("admin", {})},
            "upstream": {"address": f"127.0.0.1:{cluster.port}", "tls": "disable", "headroom": 1,
                         **sections.pop("upstream", {})},
            "monitor": {"user": "pgweir", "database": "postgres", "interval": "200ms", "stale_after": "5s",
                        **sections.pop("monitor", {})},
            "limits": sections.pop("limits", {}),
            "state": {"directory": str(self.state)},
            "application": list(applications),
            "lane": lanes or DEFAULT_LANES,
            **sections,
        }
        if wire.TLS in ("client", "both"):
            for part in [*self.config["listen"], self.config["admin"]]:
                if not part["address"].startswith("unix:"):
                    part.setdefault("tls", "allow")
                    part.update(certs.suite().keys())
        if wire.TLS in ("upstream", "both"):
            self.config["upstream"]["tls"] = "require"
        if self.config["monitor"].get("user") is None:
            del self.config["monitor"]

    # -- life ----------------------------------------------------------------------------------------------------

    def write(self, **changes):
        """Writes the configuration file, with top-level keys replaced."""
        self.config.update(changes)
        self.config_file.write_text(toml({k: v for k, v in self.config.items() if v not in ({}, [])}))

    def start(self, wait=True):
        """Starts the process and, by default, waits until /readyz says so."""
        if DIRECT:
            return self
        self.write()
        env = {**os.environ, "RUST_BACKTRACE": "1", **self.env}
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen([*self.prefix, str(self.binary), "run", "--config", str(self.config_file)],
                                            stdout=log, stderr=log, env=env, cwd=self.base)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout=60):
        """Waits for /readyz to answer 200."""
        def ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"pgweir ended with {self.process.returncode}:\n{self.log()[-4000:]}")
            return self.http("/readyz")[0] == 200
        eventually(ready, timeout=timeout, what="pgweir ready")
        return self

    def stop(self, timeout=30):
        """SIGTERM, twice if the first takes too long; the exit status."""
        if not self.process:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(20)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait(20)
        return self.process.returncode

    def kill9(self):
        """SIGKILL."""
        self.process.kill()
        self.process.wait(30)

    def signal(self, number):
        """Sends a signal."""
        self.process.send_signal(number)

    def reload(self):
        """Writes the configuration, sends SIGHUP, and waits until pgweir has applied or refused it."""
        self.write()
        before = self._reloads()
        self.signal(signal.SIGHUP)
        eventually(lambda: self._reloads() > before, what="the configuration is read again")

    def _reloads(self):
        """How many were logged, of both kinds."""
        return len(re.findall(r"\bevent\W{1,3}reload", self.log()))

    def close(self):
        """Ends the process at once and removes its files."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        shutil.rmtree(self.base, ignore_errors=True)

    # -- clients -------------------------------------------------------------------------------------------------

    def dsn(self, app="web", user="odoo", dbname="postgres", unix=False, **more):
        """Connection parameters of libpq."""
        return {"host": self.unix_dir if unix else "127.0.0.1", "port": self.port_of(unix), "user": user, "dbname": dbname,
                "application_name": app, "connect_timeout": 60, **more}

    def port_of(self, unix):
        """The port of the TCP or the Unix listener; the latter is read from the socket's name."""
        if not unix or DIRECT:
            return self.port
        (path,) = pathlib.Path(self.unix_dir).glob(".s.PGSQL.*[0-9]")
        return int(path.name.rpartition(".")[2])

    def connect(self, app="web", autocommit=False, **more):
        """A psycopg2 connection through pgweir."""
        conn = psycopg2.connect(**self.dsn(app, **more))
        conn.autocommit = autocommit
        return conn

    def connect3(self, app="web", autocommit=False, **more):
        """A psycopg 3 connection through pgweir."""
        return psycopg.connect(autocommit=autocommit, **self.dsn(app, **more))

    def raw(self, app="raw", user="odoo", dbname="postgres", timeout=30, **more):
        """A raw client, logged in."""
        client = RawClient(self.port, timeout=timeout)
        client.startup(user, dbname, app=app, **more)
        return client

    def socket(self, **more):
        """A raw client that has sent nothing yet."""
        return RawClient(self.port, **more)

    def libpq_env(self, app="psql", user="odoo", dbname="postgres", password=None, unix=False):
        """Environment for psql, pgbench and their like."""
        return {**os.environ, "PGHOST": self.unix_dir if unix else "127.0.0.1", "PGPORT": str(self.port_of(unix)), "PGUSER": user,
                "PGDATABASE": dbname, "PGAPPNAME": app, "PGCONNECT_TIMEOUT": "60", "PGSSLMODE": "prefer",
                "PGPASSFILE": "/nonexistent", **({"PGPASSWORD": password} if password else {})}

    def psql(self, *args, timeout=60, **more):
        """Runs psql; the completed process with its text."""
        return subprocess.run([str(self.cluster.bin / "psql"), "-XAtq", *args], env=self.libpq_env(**more), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout)

    # -- operator ------------------------------------------------------------------------------------------------

    def need(self):
        """Skips the test when there is no pgweir in this run."""
        if DIRECT:
            pytest.skip("needs pgweir itself")

    @property
    def password(self):
        """The generated admin password."""
        return (self.state / "admin.password").read_text().strip()

    def admin_connection(self, dbname="pgweir", password=None, **more):
        """A psycopg2 connection to the console."""
        self.need()
        conn = psycopg2.connect(host="127.0.0.1", port=self.admin_port, user="admin", dbname=dbname,
                                password=self.password if password is None else password, connect_timeout=30, **more)
        conn.autocommit = True
        return conn

    def admin(self, sql):
        """Runs a console command; rows as dicts, or the notices where there are none."""
        conn = self.admin_connection()
        try:
            with conn.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cur:
                cur.execute(sql)
                return [dict(r) for r in cur.fetchall()] if cur.description else [n.strip() for n in conn.notices]
        finally:
            conn.close()

    def lanes(self):
        """SHOW LANES by lane, figures as numbers."""
        return {row["lane"]: {k: number(v) for k, v in row.items()} for row in self.admin("SHOW LANES")}

    def lane(self, name):
        """One row of SHOW LANES."""
        return self.lanes()[name]

    def clients(self, app=None):
        """SHOW CLIENTS, figures as numbers, perhaps of one application only."""
        rows = [{k: number(v) for k, v in row.items()} for row in self.admin("SHOW CLIENTS")]
        return [row for row in rows if app is None or row["application"] == app]

    def client(self, app):
        """The one client of that application."""
        rows = eventually(lambda: self.clients(app), what=f"a client {app}")
        assert len(rows) == 1, rows
        return rows[0]

    def usage(self):
        """SHOW USAGE."""
        return {k: number(v) for k, v in self.admin("SHOW USAGE")[0].items()}

    def is_sampled(self, within_ms=2000):
        """Whether the monitor has looked at PostgreSQL in the last moments."""
        age = self.usage()["sampled_ms_ago"]
        return age is not None and age < within_ms

    def timeline(self):
        """SHOW TIMELINE as one line of text per entry."""
        return [" ".join("" if v is None else str(v) for v in row.values()) for row in self.admin("SHOW TIMELINE")]

    def timeline_has(self, *words):
        """The entries in which all the words occur, in either case."""
        return [line for line in self.timeline() if all(w.lower() in line.lower() for w in words)]

    def drained(self):
        """Whether no lane has a slot and nobody waits; AssertionError with those that do."""
        busy = {name: row for name, row in self.lanes().items() if row["slots"] or row["waiting"]}
        assert not busy, f"{busy}; clients: {self.clients()}"
        return True

    def http(self, path, method="GET", data=None):
        """(status, body); (0, "") when nobody answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin_port}{path}", method=method, data=data)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            return 0, ""

    def metric(self, name, **labels):
        """The sum of the samples of a metric that carry these labels."""
        self.need()
        total = 0.0
        for line in self.http("/metrics")[1].splitlines():
            head, _, value = line.rpartition(" ")
            if head.split("{")[0] == name and all(f'{k}="{v}"' in head for k, v in labels.items()):
                total += float(value)
        return total

    def cli(self, *args, timeout=60, config=True, env=None):
        """Runs a command of the CLI; the completed process with its text."""
        self.need()
        argv = [str(self.binary), *args] + (["--config", str(self.config_file)] if config else [])
        return subprocess.run(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout,
                              env={**os.environ, **(env or {})}, cwd=self.base)

    # -- process -------------------------------------------------------------------------------------------------

    @property
    def pid(self):
        """pgweir's pid, also behind a prefix that execs it."""
        self.need()
        return self.process.pid

    def memory_kb(self, key="VmRSS"):
        """VmRSS, or VmHWM for its peak, in kB."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1])
        raise AssertionError(f"no {key}")

    def reset_peak(self):
        """Makes VmHWM start anew from VmRSS."""
        pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def rss(self):
        """Resident memory in kB."""
        return self.memory_kb()

    def fds(self):
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu_seconds(self):
        """CPU time used so far."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def log(self):
        """What the process wrote."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


def number(value):
    """A figure as a number, anything else as it is."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    return value
