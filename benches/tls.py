"""TLS to clients, with PgBouncer (session mode) and pgweir side by side, the same certificate, in short interleaved runs on a throw-away
PostgreSQL: CPU per prepared transaction and per GB of COPY, logins a second, and memory per idle TLS client. `python benches/tls.py`, from
the environment that benches/compare makes. Prints a Markdown table of medians."""

import argparse
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from measure import fake, load, targets  # noqa: E402
from measure.process import resident_bytes  # noqa: E402
from compare import prepare  # noqa: E402
from harness import certs, wire  # noqa: E402

PAIR = certs.suite()


class PgBouncer(targets.PgBouncer):
    """With TLS to its clients."""

    name = "PgBouncer"
    upstream = False

    def argv(self, program):
        out = super().argv(program)
        for source, name in [(PAIR.certificate, "cert.pem"), (PAIR.key, "key.pem")]:
            (self.base / name).write_bytes(source.read_bytes())
            (self.base / name).chmod(0o644)
        with open(self.base / "ini", "a") as ini:
            ini.write(f"client_tls_sslmode = require\nclient_tls_cert_file = {self.base}/cert.pem\nclient_tls_key_file = {self.base}/key.pem\n")
            ini.write("server_tls_sslmode = require\n" if self.upstream else "")
        return out


class Pgweir(targets.Pgweir):
    """With TLS to its clients."""

    name = "pgweir"
    upstream = False

    def __init__(self, cluster, monitored=True):
        super().__init__(cluster, monitored)
        self.weir.config["listen"] = [{"address": f"127.0.0.1:{self.port}", "tls": "require", **PAIR.keys()}]
        self.weir.config["upstream"]["tls"] = "require" if self.upstream else "disable"


class PgBouncerBoth(PgBouncer):
    """With TLS on both sides."""

    name = "PgBouncer, both sides"
    upstream = True


class PgweirBoth(Pgweir):
    """With TLS on both sides."""

    name = "pgweir, both sides"
    upstream = True


class Plain(targets.Pgweir):
    """Without."""

    name = "pgweir, no TLS"


def with_tls(target, run, *args, **more):
    """A load with TLS wherever the target has it."""
    load.libpq_env = lambda port, env=load.libpq_env: {**env(port), "PGSSLMODE": "prefer"}
    return run(target, *args, **more)


def memory(kind, count):
    """Resident bytes per idle TLS client after one query, before a fake PostgreSQL without TLS."""
    cluster = fake.FakeCluster().start()
    target = kind(cluster, **({"monitored": False} if hasattr(kind, "workers") else {})).start()
    clients = []

    def login():
        client = wire.RawClient(target.port, tls=True)
        client.startup("odoo", "bench")
        client.ok("select 1")
        return client
    try:
        for _ in range(20):
            login().close()
        time.sleep(1)
        empty = resident_bytes(target.pid)
        while len(clients) < count:
            clients.append(login())
        time.sleep(1)
        return (resident_bytes(target.pid) - empty) / count
    finally:
        for client in clients:
            client.close()
        target.close()
        cluster.close()


def figure(value):
    """In three digits, or whole."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="benches/tls.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each pgbench run (default %(default)s); 0 is a trial: some transactions each")
    parser.add_argument("--copy-mb", type=int, default=300, help="of each COPY (default %(default)s)")
    parser.add_argument("--idle", type=int, default=1000, help="clients whose memory is measured (default %(default)s)")
    parser.add_argument("--only", default="prepared,copy,churn,memory", help="of these, with commas between (default all)")
    args = parser.parse_args()
    only = args.only.split(",")
    fake.raise_file_limit()
    figures = {}

    def note(kind, what, value):
        figures.setdefault(what, {}).setdefault(kind.name, []).append(value)
    kinds = [PgBouncer, Pgweir, PgBouncerBoth, PgweirBoth, Plain]
    if set(only) - {"memory"}:
        cluster = prepare()
        cluster.stop()
        cluster.settings.update(certs.for_postgres(cluster, PAIR))
        cluster.start()
        live = [kind(cluster).start() for kind in kinds]
        try:
            for number in range(args.rounds):
                for target in live[number % len(live):] + live[:number % len(live)]:
                    print(f"round {number + 1}: {target.name}", file=sys.stderr, flush=True)
                    if "prepared" in only:
                        done = with_tls(target, load.pgbench, "prepared", 8, args.seconds)
                        note(target, "-S prepared, 8 clients: CPU µs each", done["cpu_us"])
                        note(target, "-S prepared, 8 clients: per second", done["tps"])
                    if "copy" in only:
                        done = with_tls(target, load.copy_out, "8 kB", args.copy_mb)
                        note(target, "COPY out, 8 kB rows: CPU s per GB", done["cpu_s_gb"])
                        note(target, "COPY out, 8 kB rows: GB/s", done["gb_s"])
                    if "churn" in only:
                        done = with_tls(target, load.pgbench, "simple", 8, args.seconds, reconnect=True, latency=False)
                        note(target, "-S -C, 8 clients: CPU µs each", done["cpu_us"])
                        note(target, "-S -C, 8 clients: per second", done["tps"])
        finally:
            for target in live:
                target.close()
            cluster.close()
    if "memory" in only:
        for kind in (PgBouncer, Pgweir):
            note(kind, f"bytes per idle client, after a query ({args.idle:,})", memory(kind, args.idle))
    names = [kind.name for kind in kinds]
    print("| | " + " | ".join(names) + " |\n| --- |" + " ---: |" * len(names))
    for what, by_name in figures.items():
        cells = [figure(statistics.median(by_name[name])) if name in by_name else "" for name in names]
        print(f"| {what} | " + " | ".join(cells) + " |")
    print(f"\nmedians of {args.rounds} rounds; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
