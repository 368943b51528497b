"""Connections that live for one statement, as Odoo opens them: direct, PgBouncer (session mode), pgweir as a pass-through and pgweir with
session pooling, side by side, on a throw-away PostgreSQL. Each round starts every target anew, warms it up, and runs each load twice on all
of them: in an order drawn anew, and back in the reverse, so that a machine that slows down meanwhile slows all of them. For each: connections
per second, PostgreSQL's own CPU time per connection (postmaster and all its children, those that ended included) and the proxy's. Prints a
Markdown table of medians.

pgweir pools only where it authenticates clients itself, so there is no pooled figure where nobody is asked for a password."""

import argparse
import base64
import collections
import contextlib
import functools
import hashlib
import hmac
import os
import pathlib
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import measure  # noqa: E402,F401 - finds the harness
from measure import load, process, targets  # noqa: E402
from measure.report import interval, spread  # noqa: E402
from harness import Cluster, eventually, lane  # noqa: E402
from harness.cluster import PASSWORD, ROLES  # noqa: E402
from harness.weir import BINARY, ROOT  # noqa: E402

USERS = {"trust": "odoo", "md5": "u_md5", "scram": "u_scram"}
LOADS = {"-S -C": ("-S",), "NOTIFY -C": ("-f", "{notify}")}
# Some connections of each client.
WARM_UP = argparse.Namespace(clients=8, seconds=0)
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(prog="benches/churn.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each of two runs; 0 is a trial: some transactions each")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--auth", default=",".join(USERS), help="methods, with commas between")
    parser.add_argument("--only", help=f"targets, with commas between: {', '.join(kind.__name__ for kind in TARGETS)}; all but the last by default")
    parser.add_argument("--iterations", type=int, help="of SCRAM's key derivation, which each new connection of pgbench repeats; PostgreSQL's own "
                        "4096 by default. With 1 the client has next to nothing to derive, and what is measured is the poolers")
    args = parser.parse_args()
    if args.iterations is not None and args.iterations < 1:
        parser.error("--iterations: 1 or more")
    args.only = args.only.split(",") if args.only else [kind.__name__ for kind in TARGETS if kind is not Profiled]
    for unknown in set(args.only) - {kind.__name__ for kind in TARGETS}:
        parser.error(f"--only {unknown}: there is no such target")
    return args


def postgres_ns(cluster):
    """CPU time of PostgreSQL so far: the postmaster, what it has reaped, and its children that live."""
    main = cluster.process.pid
    fields = pathlib.Path(f"/proc/{main}/stat").read_text().rpartition(")")[2].split()
    total = process.cpu_ns(main) + (int(fields[13]) + int(fields[14])) * TICK_NS
    for children in pathlib.Path(f"/proc/{main}/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                total += process.cpu_ns(child)
    return total


class PgBouncer(targets.PgBouncer):
    """PgBouncer in session mode, asking for passwords."""

    def __init__(self, cluster, auth):
        super().__init__(cluster)
        self.auth = auth

    def argv(self, program):
        argv = super().argv(program)
        kind = {"scram": "scram-sha-256"}.get(self.auth, self.auth)
        ini = self.base / "ini"
        ini.write_text(ini.read_text().replace("auth_type = trust", f"auth_type = {kind}"))
        write_users(self.base / "users", self.cluster, self.auth)
        return argv


class PassThrough(targets.Pgweir):
    """pgweir as it is by default."""

    name = "pgweir, pass-through"

    def __init__(self, cluster, auth):
        super().__init__(cluster)


class Pooled(targets.Pgweir):
    """pgweir with session pooling."""

    name = "pgweir, pooled"

    def __init__(self, cluster, auth):
        super().__init__(cluster)
        users = self.weir.base / "userlist.txt"
        write_users(users, cluster, auth)
        quota = cluster.max_connections
        self.weir.config["auth"] = {"mode": "scram", "users_file": str(users)}
        self.weir.config["lane"] = [lane("bench", default=True, quota=quota, priority=1, pooling="session")]


class Profiled(Pooled):
    """The same, by the program of script/profiled, which builds it where it is not there yet. Measured where `--only` names it."""

    name = "pgweir, pooled, by a profile"

    def __init__(self, cluster, auth):
        super().__init__(cluster, auth)
        self.weir.binary = built_by_a_profile()


@functools.cache
def built_by_a_profile():
    """Its path; it says itself what it lacks."""
    done = subprocess.run([ROOT / "script" / "profiled"], stdout=subprocess.PIPE, text=True)
    return done.stdout.strip() if done.returncode == 0 else sys.exit(done.returncode)


class Direct(targets.Target):
    """PostgreSQL itself."""

    def __init__(self, cluster, auth):
        super().__init__(cluster)


def write_users(path, cluster, auth):
    """A users file with what PostgreSQL itself has: never a plain password, whose keys would be derived anew."""
    user = USERS[auth]
    secret = cluster.value("select coalesce(rolpassword, '') from pg_authid where rolname = %s", user)
    path.write_text(f'"{user}" "{secret}"\n')
    path.chmod(0o644 if isinstance(path, pathlib.Path) and path.name == "users" else 0o600)


TARGETS = [Direct, PgBouncer, PassThrough, Pooled, Profiled]


def once(target, auth, script, args, notify):
    """One run of pgbench."""
    argv = [target.cluster.bin / "pgbench", "-n", "-C", *(part.format(notify=notify) for part in script), "-c", args.clients,
            "-j", min(args.clients, 2), *load.length(args.seconds)]
    env = {**os.environ, "PGHOST": "127.0.0.1", "PGPORT": str(target.port), "PGUSER": USERS[auth], "PGDATABASE": "bench",
           "PGSSLMODE": "disable", "PGGSSENCMODE": "disable", "PGAPPNAME": "bench", "PGPASSWORD": PASSWORD}
    postgres, proxy = postgres_ns(target.cluster), target.cpu_ns()
    done = subprocess.run([str(a) for a in argv], env=env, text=True, capture_output=True)
    if done.returncode != 0 or "error" in done.stderr.lower():
        raise RuntimeError(f"{target.name}, {auth}: {done.stderr[-2000:]}")
    proxy = target.cpu_ns() - proxy
    # What is still ending belongs to the run.
    eventually(lambda: target.cluster.value("select count(*) from pg_stat_activity where state = 'active'") <= 1)
    postgres = postgres_ns(target.cluster) - postgres
    count = int(re.search(r"actually processed: (\d+)", done.stdout)[1])
    per_second = float(re.search(r"tps = ([\d.]+)", done.stdout)[1])
    return {"per_second": per_second, "postgres_us": postgres / count / 1000, "proxy_us": proxy / count / 1000}


def verifier(password, iterations):
    """What PostgreSQL keeps of an ASCII password after `SET scram_iterations` (RFC 5802, section 3)."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client, server = (hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key"))
    salt, stored, server = (base64.b64encode(part).decode() for part in (salt, hashlib.sha256(client).digest(), server))
    return f"SCRAM-SHA-256${iterations}:{salt}${stored}:{server}"


def prepare(iterations=None):
    """A PostgreSQL with pgbench's tables."""
    cluster = Cluster(max_connections=100, shared_buffers="256MB", log_min_messages="fatal", log_checkpoints="off").start()
    for statement in ROLES.strip().rstrip(";").split(";\n"):
        cluster.sql(statement)
    cluster.sql("create database bench owner odoo")
    # The statements above were each a session of its own.
    cluster.sql(f"set password_encryption = 'md5'; alter role u_md5 password '{PASSWORD}'")
    if iterations is not None:
        cluster.sql(f"alter role {USERS['scram']} password '{verifier(PASSWORD, iterations)}'")
    env = {**os.environ, "PGHOST": str(cluster.sockets), "PGPORT": str(cluster.port), "PGUSER": "postgres", "PGDATABASE": "bench"}
    subprocess.run([str(cluster.bin / "pgbench"), "-i", "-q", "-s", "1"], env=env, check=True, capture_output=True)
    cluster.sql("grant select on all tables in schema public to public", dbname="bench")
    cluster.sql("vacuum analyze", dbname="bench")
    return cluster


def measure_all(args, cluster, notify):
    """Every combination in every round, on processes of that round; {(auth, load, target): [figures]}."""
    results = collections.defaultdict(list)
    for number in range(args.rounds):
        draw = random.Random(number)
        for auth in args.auth.split(","):
            kinds = [kind for kind in TARGETS if kind.__name__ in args.only and not (auth == "trust" and issubclass(kind, Pooled))]
            with contextlib.ExitStack() as closing:
                started = []
                for kind in kinds:
                    started.append(kind(cluster, auth).start())
                    closing.callback(started[-1].close)
                for name, script in LOADS.items():
                    print(f"round {number + 1}: {auth}: {name}", file=sys.stderr, flush=True)
                    for target in started:
                        once(target, auth, script, WARM_UP, notify)
                    order = draw.sample(started, len(started))
                    runs = [(target, once(target, auth, script, args, notify)) for target in [*order, *reversed(order)]]
                    for target in started:
                        twice = [figures for of, figures in runs if of is target]
                        figures = {key: statistics.mean(run[key] for run in twice) for key in twice[0]}
                        results[auth, name, target.name].append(figures)
                        print(f"  {target.name}: {figures['per_second']:.1f}/s, {figures['proxy_us']:.1f} µs", file=sys.stderr, flush=True)
    return results


def table(results):
    """Medians; the CPU of PostgreSQL also as a share of a direct connection's."""
    median = lambda rows, key: statistics.median(row[key] for row in rows)  # noqa: E731
    lines = ["| clients are asked | load | target | connections/s | PostgreSQL CPU µs each | of direct | proxy CPU µs each |",
             "| --- | --- | --- | ---: | ---: | ---: | ---: |"]
    for (auth, load, name), rows in sorted(results.items(), key=order):
        cpu = median(rows, "postgres_us")
        direct = results.get((auth, load, "direct"))
        share = f"{cpu / median(direct, 'postgres_us'):.2f}" if direct else ""
        proxy = "–" if name == "direct" else f"{median(rows, 'proxy_us'):.0f}"
        lines.append(f"| {auth} | {load} | {name} | {median(rows, 'per_second'):,.0f} | {cpu:,.0f} | {share} | {proxy} |")
    return "\n".join(lines)


def ratios(results):
    """Connections per second and proxy CPU, pooled by PgBouncer of the same round: medians, in brackets quartiles, and where the medians lie."""
    lines = []
    for (auth, load, name), rows in sorted(results.items(), key=order):
        base = results.get((auth, load, "PgBouncer"))
        if not name.startswith(Pooled.name) or not base:
            continue
        of = lambda key: [a[key] / b[key] for a, b in zip(rows, base)]  # noqa: E731,B023 - used up in this turn
        line = f"{auth}, {load}: {name} / PgBouncer {spread(of('per_second'), 3)} connections/s, {spread(of('proxy_us'))} proxy CPU"
        if len(rows) >= 8:
            (low, high), (least, most) = interval(of("per_second")), interval(of("proxy_us"))
            line += f"; with 95 % the medians lie in {low:.3f}–{high:.3f} and {least:.2f}–{most:.2f}"
        lines.append(line)
    return "\n".join(lines)


def order(item):
    """As they are defined."""
    auth, load, name = item[0]
    names = ["direct", "PgBouncer", PassThrough.name, Pooled.name, Profiled.name]
    return list(USERS).index(auth), list(LOADS).index(load), names.index(name)


def main():
    """Measures and prints."""
    args = arguments()
    if not BINARY.exists():
        sys.exit(f"{BINARY} is not built: cargo build --release")
    if Profiled.__name__ in args.only and args.auth != "trust":
        built_by_a_profile()
    with tempfile.TemporaryDirectory() as directory:
        notify = pathlib.Path(directory) / "notify.sql"
        notify.write_text("NOTIFY imbus, 'bus.bus';\n")
        cluster = prepare(args.iterations)
        try:
            results = measure_all(args, cluster, notify)
        finally:
            cluster.close()
    print(f"`{shlex.join(['benches/churn.py', *sys.argv[1:]])}`\n")
    print(f"{table(results)}\n\n{ratios(results)}")
    version = subprocess.run(["/usr/sbin/pgbouncer", "-V"], capture_output=True, text=True).stdout.splitlines()[0]
    print(f"\n{args.rounds} rounds of twice {args.seconds} s, {args.clients} clients, {os.cpu_count()} cores, {version}, "
          f"load average {os.getloadavg()[1]:.1f}")


if __name__ == "__main__":
    main()
