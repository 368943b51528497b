"""The compose file's services played on this machine: passwords made by make-secrets.sh, a throw-away PostgreSQL with the roles of
create-roles.sh, pgweir started as in its image, and clients that log in as Odoo's services do."""

import contextlib
import os
import re
import stat
import subprocess

import psycopg2
import psycopg2.extras

from harness.cluster import Cluster
from harness.util import eventually, free_port
from tree import Tree

SCRIPT_PROGRAMS = ["sh", "cat", "od", "tr", "chown", "chmod", "mv", "id"]
ODOO_UID = 101
POSTGRES_UID = 999
GRAFANA_UID = 472


def secrets(compose, image):
    """Runs make-secrets.sh twice: every file that somebody names is there, for its reader only, and stays."""
    with Tree(*SCRIPT_PROGRAMS) as tree:
        first = make_secrets(tree, compose)
        pgweir = int(image.user().partition(":")[0])
        for volume, uid in {"postgres": POSTGRES_UID, "pgweir": pgweir, "odoo": ODOO_UID, "grafana": GRAFANA_UID}.items():
            for path in [tree.path(f"secrets/{volume}"), *tree.path(f"secrets/{volume}").iterdir()]:
                what = path.stat()
                wanted = 0o700 if path.is_dir() else 0o400
                if (what.st_uid, stat.S_IMODE(what.st_mode)) != (uid, wanted):
                    yield f"{path.relative_to(tree.root)} is {what.st_uid}'s, mode {stat.S_IMODE(what.st_mode):o}"
        for named in named_secrets(compose) - set(first):
            yield f"{'/'.join(named)} is read and never made"
        if odoo_line(first[("postgres", "odoo")]) != first[("odoo", "pgpass")] or first[("postgres", "monitor")] != first[("pgweir", "monitor")]:
            yield "a password that two services need differs"
        if len({text.rpartition(":")[2] for text in first.values()}) != 5 or min(map(len, first.values())) < 40:
            yield "passwords are short, or the same"
        if make_secrets(tree, compose) != first:
            yield "a second start makes other passwords"
        # An older deployment, or a start that was interrupted: what is there stays, what is missing comes.
        for volume, name in (("odoo", "pgpass"), ("pgweir", "monitor")):
            tree.path(f"secrets/{volume}/{name}").unlink()
        if make_secrets(tree, compose) != first:
            yield "what was missing is made anew, and not from what is there"


def odoo_line(password):
    """libpq's password file, for pgweir."""
    return f"pgweir:6432:*:odoo:{password}"


def make_secrets(tree, compose):
    """Runs the script; (volume, file) → password."""
    if not tree.path("make-secrets.sh").exists():
        passwd = tree.path("etc/passwd")
        passwd.write_text(passwd.read_text() + f"odoo:x:{ODOO_UID}:{ODOO_UID}::/:/bin/sh\n")
        tree.write("make-secrets.sh", (compose.root / "deploy/docker/make-secrets.sh").read_text())
        for inside, (source, _) in compose.mounts("secrets").items():
            if not source.startswith("."):
                tree.path(inside).mkdir(parents=True)
    done = tree.run(["/bin/sh", "/make-secrets.sh"])
    assert done.returncode == 0, done.stdout
    return {(path.parent.name, path.name): path.read_text().strip() for path in tree.path("secrets").glob("*/*")}


def named_secrets(compose):
    """(volume, file) of every password that the compose file, the roles' script or pgweir's configuration reads."""
    paths = [(name, value) for name in compose.services for key, value in compose.env(name).items() if key.endswith(("PASSWORD_FILE", "PASSWORD__FILE", "PGPASSFILE"))]
    paths += [("pgweir", compose.weir[section]["password_file"]) for section in ("monitor", "admin")]
    roles = (compose.root / "deploy/docker/create-roles.sh").read_text()
    paths += [("postgres", path) for path in re.findall(r"/run/secrets-postgres/\w+", roles)]
    return {compose.secret(*pair) for pair in paths}


def played(compose, image):
    """Everything together."""
    with contextlib.ExitStack() as stack:
        passwords = make_secrets(stack.enter_context(Tree(*SCRIPT_PROGRAMS)), compose)
        cluster = Cluster(max_connections=compose.max_connections())
        stack.callback(cluster.close)
        hba = cluster.data / "pg_hba.conf"
        hba.write_text("host all odoo,pgweir 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
        cluster.start()
        create_roles(compose, cluster, passwords)
        tree = stack.enter_context(Tree(bare=True))
        image.make(tree)
        port, admin_port = configure(tree, compose, image, cluster, passwords)
        done = tree.run(["pgweir", "check"], user=image.user())
        if done.returncode != 0 or "was not reached" in done.stdout:
            yield f"pgweir check, in its image, beside PostgreSQL: {done.stdout}"
        weir = stack.enter_context(running(tree, image))
        eventually(lambda: alive(weir) and tree.run(image.health(), user=image.user()).returncode == 0, timeout=120, what="its health check")
        yield from clients(compose, cluster.base, port, admin_port, passwords)
        weir.terminate()
        if (status := weir.wait(120)) != 0:
            yield f"after SIGTERM its exit status is {status}: {weir.stdout.read()}"


def create_roles(compose, cluster, passwords):
    """create-roles.sh, as the image of PostgreSQL runs it."""
    script = (compose.root / "deploy/docker/create-roles.sh").read_text()
    place = cluster.base / "secrets"
    place.mkdir()
    for (volume, name), password in passwords.items():
        if volume == "postgres":
            (place / name).write_text(password + "\n")
    env = {**os.environ, "PGHOST": str(cluster.sockets), "PGPORT": str(cluster.port)}
    done = subprocess.run(["sh", "-c", script.replace("/run/secrets-postgres", str(place))], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cluster.sql("create database odoo owner odoo")


def configure(tree, compose, image, cluster, passwords):
    """The shipped configuration with addresses of this machine; the ports of listener and console."""
    uid = int(image.user().partition(":")[0])
    port, admin_port = free_port(), free_port()
    addresses = {compose.weir["listen"][0]["address"]: f"127.0.0.1:{port}", compose.weir["admin"]["address"]: f"127.0.0.1:{admin_port}",
                 compose.weir["upstream"]["address"]: f"127.0.0.1:{cluster.port}"}
    text = compose.weir_file.read_text()
    for old, new in addresses.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    tree.write("etc/pgweir/pgweir.toml", text)
    for section in ("monitor", "admin"):
        file = compose.weir[section]["password_file"]
        tree.write(file, passwords[compose.secret("pgweir", file)] + "\n", owner=uid, mode=0o400)
    return port, admin_port


@contextlib.contextmanager
def running(tree, image):
    """What a container runs, as its user."""
    process = subprocess.Popen(tree.command(image.start(), image.user()), env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def alive(process):
    """True, or an error with what it said."""
    if process.poll() is not None:
        raise RuntimeError(f"pgweir ended: {process.stdout.read()[-2000:]}")
    return True


def clients(compose, place, port, admin_port, passwords):
    """Odoo's services log in with the password made, land in their lanes, and cron's health check sees its link."""
    def connect(application, database):
        return psycopg2.connect(host="127.0.0.1", port=port, user="odoo", dbname=database, passfile=file, application_name=application)

    def cron_is_well():
        text = compose.services["cron"]["healthcheck"]["test"][1].replace("-h pgweir -p 6432", f"-h 127.0.0.1 -p {port}")
        env = {**os.environ, **compose.env("cron"), "PGPASSFILE": str(file)}
        return subprocess.run(["sh", "-c", text], env=env, capture_output=True).returncode == 0

    file = place / "pgpass"
    file.write_text(passwords[("odoo", "pgpass")].replace("pgweir:6432", f"127.0.0.1:{port}") + "\n")
    file.chmod(0o600)
    if cron_is_well():
        yield "cron is called healthy while nobody listens"
    with contextlib.ExitStack() as stack:
        wanted = set()
        for name in ("init", "web", "cron"):
            application = compose.env(name)["PGAPPNAME"]
            for database in ("odoo", "postgres"):
                stack.enter_context(contextlib.closing(connect(application, database)))
                wanted.add((application, database, compose.lane(application, "odoo", database)))
        if not cron_is_well():
            yield "cron is called unhealthy while it is connected"
        console = psycopg2.connect(host="127.0.0.1", port=admin_port, user="admin", dbname="pgweir", password=passwords[("pgweir", "admin")])
        console.autocommit = True
        cursor = console.cursor(cursor_factory=psycopg2.extras.RealDictCursor)
        found = set()

        def as_wanted():
            # The health check's own link takes a moment to be gone.
            cursor.execute("SHOW CLIENTS")
            found.clear()
            found.update((row["application"], row["database"], row["lane"]) for row in cursor.fetchall())
            return found == wanted

        try:
            eventually(as_wanted, timeout=60, what="Odoo's links in their lanes")
        except AssertionError:
            yield f"links are {sorted(found)}, not {sorted(wanted)}"
        console.close()
