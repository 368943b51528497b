"""Rehearsals with `pgweir drill`: a staging PostgreSQL, pgweir as a file of config/ has it, PgBouncer beside it, and hands on the server."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import tomllib

from .cluster import PASSWORD, ROLES, Cluster, as_server_user, server_user
from .util import eventually, free_port
from .weir import BINARY, ROOT

MAX_CONNECTIONS = 100
# The shipped scenarios take a reset of 5 s; config/odoo.toml's minute would make a drill of many.
LEAKS = {"warn": "2s", "reset": "5s", "when": "harm", "cap": "10m", "action": "rollback"}
# PgBouncer has no total across databases: these sum to the 94 that pgweir may use as well.
POOLS = {"odoo": 80, "postgres": 14}


def odoo_config(leaks=None, config="odoo.toml", processes=False, **lanes):
    """The sections of a file of config/ that do not name this machine, web's leak rule replaced; LANE={key: value} changes a lane. Without
    rules on `process` unless asked for: they would tell that all clients of a drill on this machine are one process, whose transactions are
    never held."""
    given = tomllib.loads((ROOT / "config" / config).read_text())
    for lane in given["lane"]:
        if lane["name"] == "web":
            lane["idle_in_transaction"] = leaks or LEAKS
        lane["match"] = [rule for rule in lane.get("match", []) if processes or "process" not in rule]
        lane.update(lanes.get(lane["name"], {}))
    return {"lanes": given["lane"], "applications": given["application"], "upstream": {"headroom": given["upstream"]["headroom"]},
            "monitor": {"interval": given["monitor"].get("interval", "1s")}, **({"auth": given["auth"]} if "auth" in given else {})}


def staging(max_connections=MAX_CONNECTIONS, **settings):
    """A started cluster that says it is staging."""
    cluster = Cluster(max_connections=max_connections, **settings).start()
    conn = cluster.direct(app="suite")
    for statement in [*ROLES.strip().rstrip(";").split(";\n"), f"alter role odoo password '{PASSWORD}'",
                      "comment on database odoo is 'staging: a rehearsal'"]:
        conn.cursor().execute(statement)
    conn.cursor().execute(secret_of())
    conn.close()
    return cluster


def secret_of():
    """The function for the auth query, as docs/configuration.md gives it; for the monitor's database."""
    told = (ROOT / "docs" / "configuration.md").read_text()
    return re.search(r"```sql\n(\s*create schema pgweir;.*?)```", told, re.DOTALL)[1]


class PgBouncer:
    """The distribution's PgBouncer in session mode."""

    def __init__(self, cluster):
        self.cluster, self.port, self.process = cluster, free_port(), None
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-bouncer-"))
        self.base.chmod(0o755)

    def start(self):
        """Starts it and waits until it lets in; itself."""
        databases = "".join(f"{name} = host=127.0.0.1 port={self.cluster.port} pool_size={size}\n" for name, size in POOLS.items())
        (self.base / "users").write_text('"odoo" ""\n')
        (self.base / "ini").write_text(
            f"[databases]\n{databases}[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {self.base / 'users'}\npool_mode = session\nmax_client_conn = 1000\n"
            "log_connections = 0\nlog_disconnections = 0\n")
        if server_user():
            shutil.chown(self.base, server_user().pw_uid, server_user().pw_gid)
        program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        with open(self.base / "log", "wb") as log:
            self.process = subprocess.Popen(as_server_user([program, "-q", self.base / "ini"], die_with_parent=True),
                                            stdout=log, stderr=log, cwd="/", start_new_session=True)
        eventually(self._listens, what="PgBouncer")
        return self

    def _listens(self):
        assert self.process.poll() is None, (self.base / "log").read_text()[-2000:]
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self):
        """Ends it at once."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        shutil.rmtree(self.base, ignore_errors=True)


class Hands:
    """What no client can do to PostgreSQL: `commands` are the environment that `upstream-restart` and `slow-upstream` want. The slow one
    makes each commit take 20 ms more, which needs fsync and synchronous_commit."""

    SETTINGS = {"fsync": "on", "synchronous_commit": "on"}

    def __init__(self, cluster):
        self.cluster = cluster
        self.asked = cluster.base / "restart"
        self.restarts = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        psql = f"{cluster.bin}/psql -XAtqh {cluster.sockets} -p {cluster.port} -U postgres"
        delay = f"{psql} -c 'alter system set commit_siblings = 0' -c 'alter system set commit_delay = {{}}' -c 'select pg_reload_conf()' >&2"
        self.commands = {"DRILL_RESTART": f"touch {self.asked}; while [ -e {self.asked} ]; do sleep 0.05; done",
                         "DRILL_SLOW": delay.format(20_000), "DRILL_FAST": delay.format(0)}

    def _watch(self):
        while not self._over.wait(0.05):
            if self.asked.exists():
                self.cluster.restart()
                self.restarts += 1
                self.asked.unlink()

    def close(self):
        """Nobody answers any more."""
        self._over.set()
        self._thread.join(30)


def drill(scenario, cluster, *args, weir=None, bouncer=None, env=None, user="odoo"):
    """The command line and the environment of a drill against this cluster, through what is given."""
    argv = [BINARY, "drill", scenario, "--target", f"postgres://{user}:{PASSWORD}@127.0.0.1:{cluster.port}/odoo"]
    env = {**os.environ, **(env or {})}
    if weir:
        argv += ["--through", f"pgweir=127.0.0.1:{weir.port}", "--admin", f"127.0.0.1:{weir.admin_port}", "--console-of", "pgweir",
                 "--judge", "pgweir"]
        env["PGWEIR_PASSWORD"] = weir.password
    if bouncer:
        # Last: it keeps its connections for ten minutes, and who came next would find PostgreSQL full.
        argv += ["--through", f"PgBouncer=127.0.0.1:{bouncer.port}"]
    return [str(arg) for arg in (*argv, *args)], env
