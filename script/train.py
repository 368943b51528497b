"""The work by whose profile `script/profiled` optimises pgweir: logins of every kind, transactions, COPY, TLS, a full lane with its queue, Odoo's
own lanes and rules with Odoo-shaped statements, listeners and cancels, an incident of `pgweir drill`; beside each of them what operators and
Prometheus ask. Every part runs on a pgweir of its own, which is ended in order: an instrumented program writes its profile then. Passwords are
kept with one round of derivation, or the clients' deriving would leave few logins. Prints how many pgweirs have worked."""

import argparse
import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benches"))

import churn  # noqa: E402
import tls  # noqa: E402
from measure import load, targets  # noqa: E402
from harness import Weir, certs, lane, rehearsal  # noqa: E402
from harness.cluster import PASSWORD  # noqa: E402

CLIENTS = 8
LISTENERS = 4
POLL_SECONDS = 0.5
# Of what takes seconds.
SECONDS_MAX = 300
PATHS = ["/metrics", "/healthz", "/api/v1/status", "/api/v1/lanes"]
TABLES = ["CLIENTS", "LANES", "STATUS"]
# As Odoo writes them: long, quoted, many rows, one transaction a request.
REQUEST = f"""\\set aid :client_id * 10000 + random(1, 9000)
begin isolation level repeatable read;
select {", ".join(f'"pg_class"."{name}"' for name in "oid relname relkind relpages reltuples relowner relhasindex relnatts".split())}
from "pg_class" left join "pg_namespace" "pg_class__ns" on ("pg_class"."relnamespace" = "pg_class__ns"."oid")
where (("pg_class"."relkind" in ('r', 'i')) and ("pg_class"."relpages" >= 0)) order by "pg_class"."relname" desc, "pg_class"."oid" limit 80;
select "pgbench_accounts"."aid", "pgbench_accounts"."bid", "pgbench_accounts"."abalance", "pgbench_accounts"."filler" from "pgbench_accounts"
where "pgbench_accounts"."aid" in ({", ".join(f":aid + {step}" for step in range(40))});
update "pgbench_accounts" set "abalance" = "abalance" + 1, "filler" = 'written' where "aid" in (:aid);
commit;
"""
PIPELINE = "\\startpipeline\n" + "select 1;\n" * 10 + "\\endpipeline\n"
NOTIFY = "select pg_notify('imbus', '[\"bus.bus\"]');\n"


class PooledTls(churn.Pooled):
    """With TLS to its clients, and so with channel binding."""

    name = "pgweir, pooled, TLS"

    def __init__(self, cluster, auth):
        super().__init__(cluster, auth)
        self.weir.config["listen"] = [{"address": f"127.0.0.1:{self.port}", "tls": "require", **tls.PAIR.keys()}]


class Crowded(targets.Pgweir):
    """One connection, for which two clients wait in turn: a thread of pgbench that waits with one client would starve its others."""

    name = "pgweir, a full lane"

    def __init__(self, cluster):
        super().__init__(cluster)
        self.weir.config["lane"] = [lane("bench", default=True, quota=1, priority=1, wait_timeout="60s")]


class Odoo(targets.Target):
    """As a file of config/ has it."""

    def __init__(self, cluster, config, **more):
        super().__init__(cluster)
        self.name = f"pgweir, config/{config}"
        self.weir = Weir(cluster, **rehearsal.odoo_config(config=config, **more))

    def start(self):
        self.weir.start()
        return self

    def close(self):
        self.weir.close()


class Training:
    """The parts: each a pgweir, and what it has to do."""

    def __init__(self, args, directory):
        self.args, self.directory, self.worked = args, directory, 0
        self.scripts = {}
        for name, text in [("request", REQUEST), ("pipeline", PIPELINE), ("notify", NOTIFY)]:
            self.scripts[name] = directory / f"{name}.sql"
            self.scripts[name].write_text(text)

    @contextlib.contextmanager
    def working(self, target):
        """A pgweir that is asked all the while; at the end it exits by itself."""
        print(target.name, file=sys.stderr, flush=True)
        ended, failed = threading.Event(), []
        with contextlib.closing(target):
            target.weir.env.pop("RUST_LOG", None)
            target.start()
            asking = threading.Thread(target=self.ask, args=(target.weir, ended, failed))
            asking.start()
            try:
                yield target.weir
            finally:
                ended.set()
                asking.join(SECONDS_MAX)
                if asking.is_alive():
                    target.weir.kill9()
            target.weir.signal(signal.SIGTERM)
            status = target.weir.process.wait(SECONDS_MAX)
            if failed or status != 0:
                raise RuntimeError(f"{target.name} ended with {status}: {target.weir.log()[-2000:]}") from (failed or [None])[0]
        self.worked += 1

    @staticmethod
    def ask(weir, ended, failed):
        """What operators and Prometheus ask, until `ended`."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            while True:
                for table in TABLES:
                    weir.admin(f"SHOW {table}")
                for path in PATHS:
                    url = f"http://127.0.0.1:{weir.admin_port}{path}"
                    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {weir.password}"})
                    with opener.open(request, timeout=30) as reply:
                        reply.read()
                if ended.wait(POLL_SECONDS):
                    return
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            failed.append(error)

    def run(self, weir, argv, **login):
        """A client program that must succeed."""
        env = weir.libpq_env(**{"app": "bench", "dbname": "bench", **login})
        done = subprocess.run([str(arg) for arg in argv], env=env, text=True, capture_output=True, timeout=SECONDS_MAX)
        if done.returncode != 0 or "error" in done.stderr.lower():
            raise RuntimeError(f"{argv}: {done.stderr[-2000:]}")

    def pgbench(self, weir, *options, clients=CLIENTS, **login):
        """For so many seconds."""
        self.run(weir, [weir.cluster.bin / "pgbench", "-n", "-c", clients, "-j", min(clients, 2), *load.length(self.args.seconds), *options], **login)

    def logins(self, weir, **login):
        """Connections that live for one statement."""
        self.pgbench(weir, "-C", "-S", **login)
        self.pgbench(weir, "-C", "-f", self.scripts["notify"], **login)

    def transactions(self, weir, **login):
        """In each protocol, from one client and from some; reading, writing, and rows in both directions."""
        for mode in load.MODES:
            for clients in (1, CLIENTS):
                self.pgbench(weir, "-S", "-M", mode, clients=clients, **login)
        self.pgbench(weir, "-M", "extended", "-f", self.scripts["pipeline"], **login)
        self.pgbench(weir, "-M", "extended", "-b", "tpcb-like", **login)
        self.pgbench(weir, "-f", self.scripts["request"], **login)
        self.run(weir, [weir.cluster.bin / "pgbench", "-i", "-q", "-s", "1"], **login)
        for rows in load.ROWS:
            self.run(weir, ["psql", "-XAtq", "-c", load.copy(rows, self.args.copy_mb)[0]], **login)

    def plain(self):
        """Lanes of its own making."""
        cluster = churn.prepare(iterations=1)
        with contextlib.closing(cluster):
            cluster.stop()
            cluster.settings.update(certs.for_postgres(cluster, tls.PAIR))
            cluster.start()
            for kind, auth in [(churn.PassThrough, "trust"), (churn.PassThrough, "scram"), (churn.Pooled, "md5"), (churn.Pooled, "scram"),
                               (PooledTls, "scram")]:
                with self.working(kind(cluster, auth)) as weir:
                    login = {"user": churn.USERS[auth], "password": PASSWORD}
                    self.logins(weir, **login)
                    self.pgbench(weir, "-S", **login)
            with self.working(Crowded(cluster)) as weir:
                self.pgbench(weir, "-C", "-S", clients=2)
            # Who owns the tables can make them anew.
            for table in ("accounts", "branches", "history", "tellers"):
                cluster.sql(f"alter table pgbench_{table} owner to odoo", dbname="bench")
            for kind in (targets.Pgweir, tls.Pgweir, tls.PgweirBoth):
                with self.working(kind(cluster)) as weir:
                    self.transactions(weir)
                    self.logins(weir)

    def odoo(self):
        """The shipped lanes and rules, over their Unix socket; then an incident."""
        cluster = rehearsal.staging()
        with contextlib.closing(cluster):
            cluster.sql(f"alter role odoo password '{churn.verifier(PASSWORD, 1)}'")
            cluster.sql("create database bench owner odoo")
            login = {"app": "odoo-4711", "password": PASSWORD, "unix": True}
            for config in ("odoo.toml", "odoo-pooled.toml"):
                with self.working(Odoo(cluster, config, processes=True)) as weir:
                    self.run(weir, [cluster.bin / "pgbench", "-i", "-q", "-s", "1"], **login)
                    self.pgbench(weir, "-f", self.scripts["request"], **login)
                    self.pgbench(weir, "-S", clients=1, **login)
                    self.logins(weir, **login)
                    with contextlib.ExitStack() as listening:
                        for number in range(LISTENERS):
                            link = listening.enter_context(contextlib.closing(
                                weir.connect(f"odoo-{number}", autocommit=True, password=PASSWORD, unix=True)))
                            link.cursor().execute("listen imbus")
                            link.cancel()
                        self.pgbench(weir, "-C", "-f", self.scripts["notify"], **{**login, "dbname": "postgres"})
            with self.working(Odoo(cluster, "odoo-pooled.toml")) as weir:
                # The drill itself, of the same program, is not what is to be fast.
                argv, env = rehearsal.drill("runbook", cluster, "--duration", f"{self.args.drill}s", "--drain", "2s", "--skip-direct",
                                            "--json", "--report", self.directory / "report.html", weir=weir, env={"LLVM_PROFILE_FILE": "/dev/null"})
                done = subprocess.run(argv, env=env, text=True, capture_output=True, timeout=SECONDS_MAX)
                # 1: an expectation did not hold, as may be beside counters and where it is this short.
                if done.returncode not in (0, 1) or json.loads(done.stdout)["runs"][-1]["lanes"]["web"]["ok"] == 0:
                    raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stderr[-2000:]}")


def main():
    """Works."""
    parser = argparse.ArgumentParser(prog="script/train.py", description=__doc__)
    parser.add_argument("--seconds", type=int, default=2, help="of each run of pgbench (default %(default)s); 0 is a trial: some transactions each")
    parser.add_argument("--copy-mb", type=int, default=100, help="of each COPY (default %(default)s)")
    parser.add_argument("--drill", type=int, default=20, help="seconds of the incident (default %(default)s)")
    with tempfile.TemporaryDirectory() as directory:
        training = Training(parser.parse_args(), pathlib.Path(directory))
        training.plain()
        training.odoo()
    print(training.worked)


if __name__ == "__main__":
    main()
