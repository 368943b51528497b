"""Where a suite runs: a fresh cluster, reached directly or through a proxy in front of it."""

import os
import pathlib
import shutil
import subprocess
import tempfile

from harness import cluster as clusters
from harness.cluster import Cluster, as_server_user, server_user
from harness.util import eventually, free_port
from harness.weir import Weir, lane

# What PostgreSQL's own make installcheck would find, but for durability; logical decoding and 2PC are asked for by the drivers' tests.
SETTINGS = {"listen_addresses": "127.0.0.1", "fsync": "off", "max_prepared_transactions": "10", "log_line_prefix": "%m [%p] %a ",
            "unix_socket_permissions": "0777"}
MAX_CONNECTIONS = 100
# The same over either kind of socket: pgweir connects over the Unix one.
HBA = """\
local all         all              trust
local replication all              trust
host  all         all 127.0.0.1/32 trust
host  replication all 127.0.0.1/32 trust
"""


class Direct:
    """PostgreSQL itself."""

    name = "direct"

    def __init__(self, cluster):
        self.cluster = cluster
        self.port = cluster.port
        self.unix_dir = str(cluster.sockets)
        self.unix_port = cluster.port

    def check(self):
        """Raises where the proxy died or did what it must not during a run; what it says of itself."""
        return ""

    def log(self):
        """The proxy's log."""
        return ""

    def close(self):
        """Ends the proxy."""


class ThroughWeir(Direct):
    """pgweir with one roomy lane that resets nobody; monitor on."""

    name = "pgweir"

    def __init__(self, cluster):
        super().__init__(cluster)
        self.weir = Weir(
            cluster,
            lanes=[lane("suite", default=True, quota=90, wait_timeout="60s", idle_in_transaction={"action": "none"})],
            upstream={"address": f"unix:{cluster.sockets}:{cluster.port}", "headroom": 1},
            monitor={"address": f"127.0.0.1:{cluster.port}", "interval": "1s"},
            limits={"max_logins": 1000},
            auth={"allow_trust": True},
        )
        try:
            self.weir.start()
        except BaseException:
            self.weir.close()
            raise
        self.port = self.weir.port
        self.unix_dir = self.weir.unix_dir
        self.unix_port = self.weir.port_of(unix=True)

    def check(self):
        assert self.weir.process.poll() is None, "pgweir died:\n" + self.log()[-4000:]
        names = {"links": "wait_seconds_count", "transactions": "transactions_total", "refused": "refusals_total", "panics": "panics_total"}
        said = {what: int(self.weir.metric(f"pgweir_{name}")) for what, name in names.items()}
        assert said["links"] > 0 and said["panics"] == 0, said
        return ", ".join(f"{value} {what}" for what, value in said.items())

    def log(self):
        return self.weir.log()

    def close(self):
        self.weir.stop()
        self.weir.close()


class ThroughBouncer(Direct):
    """PgBouncer, session pooling, for comparison."""

    name = "pgbouncer"

    def __init__(self, cluster):
        super().__init__(cluster)
        program = shutil.which("pgbouncer", path="/usr/sbin:" + os.environ.get("PATH", ""))
        assert program, "apt-get install pgbouncer"
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        self.base.chmod(0o777)
        self.port = self.unix_port = free_port()
        self.unix_dir = str(self.base)
        config = self.base / "pgbouncer.ini"
        config.write_text(f"""\
[databases]
* = host={cluster.sockets} port={cluster.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir = {self.base}
auth_type = trust
auth_file = {self.base}/users
pool_mode = session
default_pool_size = 90
max_client_conn = 200
ignore_startup_parameters = extra_float_digits,options
""")
        (self.base / "users").write_text('"postgres" ""\n')
        self.log_file = open(self.base / "log", "ab")
        self.process = subprocess.Popen(as_server_user([program, str(config)], die_with_parent=True), stdout=self.log_file,
                                        stderr=self.log_file, cwd="/")
        eventually(lambda: (self.base / f".s.PGSQL.{self.port}").exists(), what="PgBouncer ready")

    def check(self):
        assert self.process.poll() is None, "PgBouncer died:\n" + self.log()[-4000:]
        return ""

    def log(self):
        return (self.base / "log").read_text(errors="replace")

    def close(self):
        self.process.terminate()
        self.process.wait(10)
        self.log_file.close()
        shutil.rmtree(self.base, ignore_errors=True)


PLACES = {place.name: place for place in (Direct, ThroughWeir, ThroughBouncer)}


class Place:
    """A context: a fresh cluster with the suite's settings and database, and what is in front of it."""

    def __init__(self, kind, database, **settings):
        self.kind, self.database, self.settings = kind, database, settings

    def __enter__(self):
        saved = clusters.SETTINGS, clusters.HBA
        clusters.SETTINGS, clusters.HBA = dict(SETTINGS), HBA
        try:
            self.cluster = Cluster(max_connections=MAX_CONNECTIONS, **self.settings)
        finally:
            clusters.SETTINGS, clusters.HBA = saved
        try:
            self.cluster.start()
            self.cluster.sql("create role pgweir login")
            self.cluster.sql("grant pg_monitor to pgweir")
            self.cluster.sql(f"create database {self.database} template template0")
            self.place = PLACES[self.kind](self.cluster)
        except BaseException:
            self.cluster.close()
            raise
        return self.place

    def __exit__(self, *_):
        self.place.close()
        self.cluster.close()


def scratch():
    """A directory that PostgreSQL's account may write to as well."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-conformance-"))
    path.chmod(0o755)
    give(path)
    return path


def give(path):
    """Makes the server's account the owner of everything under `path`."""
    user = server_user()
    if user is None:
        return
    os.chown(path, user.pw_uid, user.pw_gid)
    for root, directories, files in os.walk(path):
        for name in directories + files:
            os.chown(os.path.join(root, name), user.pw_uid, user.pw_gid, follow_symlinks=False)
