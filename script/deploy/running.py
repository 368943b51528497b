"""What is looked at while docker-compose.yml runs: see trial.py. A check yields its problems."""

import base64
import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

from compose import LISTENS, ODOO, ONCE
from engine import PROJECT

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "postgres"))
from harness import docs  # noqa: E402

WAIT_S = 120
# Beyond a health check's interval, below the lanes' wait_timeout.
AWAY_S = 15


class Running:
    """The services of one `up`."""

    def __init__(self, engine, compose):
        self.engine, self.compose = engine, compose

    # --- asking

    def inspected(self):
        """service → docker inspect of its container."""
        ids = self.engine.docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").stdout.split()
        found = json.loads(self.engine.docker("inspect", *ids).stdout) if ids else []
        return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}

    def inspect(self, service):
        """Of one."""
        return self.inspected()[service]

    def states(self):
        """service → what Docker says of it: healthy, starting, unhealthy, running, exited 0 …"""
        out = dict.fromkeys(self.compose.services, "absent")
        for name, container in self.inspected().items():
            state = container["State"]
            out[name] = state["Status"] if state["Status"] != "exited" else f"exited {state['ExitCode']}"
            if state["Status"] == "running" and "Health" in state:
                out[name] = state["Health"]["Status"]
        return out

    def wanted(self):
        """The same when all is well."""
        return {name: "exited 0" if name in ONCE else "healthy" for name in self.compose.services}

    def settled(self, seconds=WAIT_S):
        """Waits until all is well."""
        until(lambda: self.states() == self.wanted(), seconds, lambda: f"services are {self.states()}")

    def summary(self):
        """One line."""
        return ", ".join(f"{name} {state}" for name, state in self.states().items())

    def run(self, service, *command, check=True):
        """What a command in that service's container prints."""
        return self.exec(service, *command, check=check).stdout

    def exec(self, service, *command, check=True):
        """The finished process of a command in that service's container."""
        return self.engine.docker("exec", self.inspect(service)["Id"], *command, check=check)

    def sql(self, statement):
        """Rows of a statement by PostgreSQL's superuser, over its socket."""
        out = self.run("postgres", "psql", "-U", "postgres", "-AtF", "|", "-c", statement)
        return [tuple(line.split("|")) for line in out.splitlines()]

    def weir(self, *command):
        """What `pgweir … --json` says in its own container."""
        return json.loads(self.run("pgweir", "pgweir", *command, "--json"))

    def secret(self, service, name):
        """A password."""
        return (self.volume(f"secrets-{service}") / name).read_text().strip()

    def volume(self, name):
        """Where a volume is on this machine."""
        return pathlib.Path(self.engine.docker("volume", "inspect", "--format", "{{.Mountpoint}}", f"{PROJECT}_{name}").stdout.strip())

    def pid(self, service):
        """Of its first process."""
        return self.inspect(service)["State"]["Pid"]

    # --- the checks

    def checks(self):
        """Names and checks, in an order in which later ones disturb more."""
        return [
            ("all services run confined: read-only root, no capability, no new privileges, not root, bounded memory", self.confined()),
            ("pgweir's image has its program and libraries, and nothing else", self.contents()),
            ("passwords are in files of their readers, and in no environment and on no command line", self.hidden()),
            ("only what must be is published, on loopback", self.published()),
            ("PostgreSQL sees pgweir's address only; Odoo cannot reach it past pgweir", self.only_way()),
            ("Odoo answers through pgweir, and its services are in their lanes", self.lanes()),
            ("Prometheus scrapes pgweir and has every shipped rule; none fires", self.prometheus()),
            ("Grafana's stand-in finds data source and dashboard, and every panel's query means something", self.grafana()),
            ("the commands of docs/compose.md do what it says", self.page()),
            ("a freeze holds over a restart of the service pgweir", self.frozen()),
            ("pgweir killed: started again by itself, Odoo's services recover", self.killed()),
            ("pgweir hanging: `pgweir status` decides, unhealthy and healthy again", self.hanging()),
            ("PostgreSQL restarted: pgweir stays healthy, Odoo's services recover", self.restarted()),
            ("a second `up` changes nothing", self.again()),
        ]

    def confined(self):
        """From the kernel, not from the file."""
        for name in sorted(set(self.compose.services) - ONCE):
            found = self.inspect(name)
            status = dict(line.split(":\t", 1) for line in process(found["State"]["Pid"], "status").splitlines() if ":\t" in line)
            if "0" in status["Uid"].split():
                yield f"{name} runs as root: {status['Uid']}"
            for key, value in {"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"}.items():
                if status[key] != value:
                    yield f"{name}: {key} is {status[key]}"
            root = next(line for line in process(found["State"]["Pid"], "mounts").splitlines() if line.split()[1] == "/")
            if "ro" not in root.split()[3].split(","):
                yield f"{name}: its root is mounted {root.split()[3]}"
            if not found["HostConfig"]["Memory"] or not found["HostConfig"]["PidsLimit"]:
                yield f"{name}: memory or processes have no bound"
        user = process(self.pid("pgweir"), "status")
        if "Uid:\t10001\t10001\t10001\t10001" not in user:
            yield "pgweir is not 10001"

    def contents(self):
        """Its files, as Docker exports them."""
        made = {".dockerenv", "dev/console", "etc/pgweir/pgweir.toml", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"}
        wanted = {"usr/local/bin/pgweir", "etc/passwd", "etc/group", "etc/nsswitch.conf"}
        container = self.inspect("pgweir")["Id"]
        command = f"docker export {container} | tar -t"
        listed = self.engine.shell(command).splitlines()
        files = {name for name in listed if not name.endswith("/")} - made
        others = {name for name in files - wanted if not ("lib" in name and (".so." in name))}
        if not wanted <= files or others:
            yield f"it has {sorted(others)}, it lacks {sorted(wanted - files)}"

    def hidden(self):
        """Owners and modes; then every process and every container's definition is searched."""
        readers = {"postgres": 999, "pgweir": 10001, "grafana": 472}
        passwords = set()
        for name in ("postgres", "pgweir", "odoo", "grafana"):
            folder = self.volume(f"secrets-{name}")
            uid = readers.get(name) or int(self.run("web", "id", "-u").strip())
            for path in [folder, *folder.iterdir()]:
                what = path.stat()
                if what.st_uid != uid or what.st_mode & 0o077:
                    yield f"secrets-{name}/{path.name}: {what.st_uid}'s, mode {what.st_mode & 0o777:o}"
                if path.is_file():
                    passwords.add(path.read_text().strip().rpartition(":")[2])
        if len(passwords) != 5 or min(map(len, passwords)) < 40:
            yield f"{len(passwords)} passwords"
        places = {f"{name}'s definition": json.dumps(self.inspect(name)) for name in self.compose.services}
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            for file in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    # Its own interpreter knows them by now, in memory only.
                    places[f"{file} of {process(folder.name, 'comm').strip()}"] = (folder / file).read_bytes().decode(errors="replace")
        for where, text in places.items():
            if any(password in text for password in passwords):
                yield f"a password is in the {where}"

    def published(self):
        """From Docker, and asked."""
        found = {}
        for name in self.compose.services:
            for port, bindings in (self.inspect(name)["NetworkSettings"]["Ports"] or {}).items():
                for binding in bindings or []:
                    found[(name, port.partition("/")[0])] = binding["HostIp"]
        wanted = {("pgweir", "6433"): "127.0.0.1", ("web", "8069"): "127.0.0.1", ("grafana", "3000"): "127.0.0.1"}
        if found != wanted:
            yield f"published: {found}"
        for (name, port), path in zip(wanted, ("/healthz", "/web/health", "/api/health"), strict=True):
            if (status := ask(f"http://127.0.0.1:{port}{path}")[0]) != 200:
                yield f"{name} answers {status} on its published port"

    def addresses(self, service):
        """network → address."""
        networks = self.inspect(service)["NetworkSettings"]["Networks"]
        return {name.removeprefix(PROJECT + "_"): network["IPAddress"] for name, network in networks.items()}

    def only_way(self):
        """Sessions over TCP, and attempts by name and by address."""
        rows = self.sql("select distinct client_addr from pg_stat_activity where backend_type = 'client backend' and client_addr is not null")
        if rows != [(self.addresses("pgweir")["database"],)]:
            yield f"PostgreSQL has clients from {rows}"
        address = self.addresses("postgres")["database"]
        for name in (*LISTENS, "grafana"):
            for target in ("postgres:5432", f"{address}:5432", "pgweir:6432"):
                done = self.exec(name, "curl", "--silent", "--max-time", "3", f"http://{target}", check=False)
                # 6: no such name; 7, 28: not reached. PostgreSQL and pgweir both hang up on HTTP at once, which is something else.
                if (done.returncode in (6, 7, 28)) != (target != "pgweir:6432"):
                    yield f"{name} asks {target}: exit status {done.returncode}"

    def lanes(self):
        """Pages are asked for first, so that there is traffic."""
        for path in ("/web/health", "/web/login"):
            status, body = ask(f"http://127.0.0.1:8069{path}")
            if status != 200:
                yield f"Odoo's {path}: {status}: {body[:300]}"
        clients = self.weir("clients")
        found = {(c["application"], c["database"], c["lane"]) for c in clients if c["application"].startswith("odoo-")}
        for application, database, lane in found:
            if lane != self.compose.lane(application, "odoo", database):
                yield f"{application} at {database} is in lane {lane}"
        # Links come and go; what a lane has let in stays counted.
        admitted = {lane["lane"]: lane["admitted"] for lane in self.weir("lanes")}
        if missing := [lane for lane in (*ODOO.values(), "notify") if not admitted[lane]]:
            yield f"nobody was ever let into {missing}: {sorted(found)}"

    def prometheus(self):
        """Asked from Grafana's container, by the name Grafana uses."""
        def api(path):
            return json.loads(self.run("grafana", "curl", "--silent", "--fail", f"http://prometheus:9090/api/v1/{path}"))["data"]

        until(lambda: [t["health"] for t in api("targets")["activeTargets"]] == ["up"], 60, lambda: f"targets are {api('targets')}")
        target = api("targets")["activeTargets"][0]
        if target["labels"]["job"] != "pgweir" or target["scrapeUrl"] != "http://pgweir:6433/metrics":
            yield f"the target is {target['labels']}, {target['scrapeUrl']}"
        shipped = [rule["alert"] for group in yaml.safe_load((self.compose.root / "config/prometheus/alerts.yml").read_text())["groups"]
                   for rule in group["rules"]]

        def rules():
            return [rule for group in api("rules")["groups"] for rule in group["rules"]]

        until(lambda: all(rule["health"] == "ok" for rule in rules()), 60, lambda: f"rules are {rules()}")
        if sorted(rule["name"] for rule in rules()) != sorted(shipped):
            yield f"rules are {[rule['name'] for rule in rules()]}"
        if firing := [rule["name"] for rule in rules() if rule["state"] == "firing"]:
            yield f"{firing} fire"

    def grafana(self):
        """With the password made, as admin."""
        def api(path):
            status, body = ask(f"http://127.0.0.1:3000/api/{path}", ("admin", self.secret("grafana", "admin")))
            return status, json.loads(body)

        if ask("http://127.0.0.1:3000/api/datasources")[0] != 401:
            yield "it needs no password"
        sources = api("datasources")[1]
        if [(s["uid"], s["type"], s["url"]) for s in sources] != [("prometheus", "prometheus", "http://prometheus:9090")]:
            yield f"data sources are {sources}"
        status, found = api("dashboards/uid/pgweir")
        if status != 200:
            yield f"the dashboard: {status}"
            return
        asked = known = 0
        for panel in found["dashboard"]["panels"]:
            for target in panel.get("targets", []):
                text = target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h").replace("$instance", ".*").replace("$lane", ".*")
                status, answer = api("datasources/proxy/uid/prometheus/api/v1/query?" + urllib.parse.urlencode({"query": text}))
                asked += 1
                known += bool(status == 200 and answer["data"]["result"])
                if status != 200 or answer["status"] != "success":
                    yield f"{panel['title']}: {answer}"
        if asked < 10 or known < asked * 2 // 3:
            yield f"of {asked} queries {known} have an answer"

    def page(self):
        """Those that are no check's own: bringing all up, and down."""
        for command in docs.commands("docs/compose.md", "docker compose exec pgweir *"):
            if "pgweir 0." not in (said := self.engine.typed(command).stdout):
                yield f"{command}: {said}"
        for command in docs.commands("docs/compose.md", "docker compose run --rm --entrypoint cat secrets *"):
            if self.engine.typed(command).stdout.strip() != self.secret(*command.split("/")[-2:]):
                yield f"{command}: another password is shown"
        lane = self.compose.lane("odoo-shell", "odoo", "odoo")
        (shell,) = docs.commands("docs/compose.md", "docker compose run --rm -e PGAPPNAME=odoo-shell *")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            typed = pool.submit(self.engine.typed, shell, input="env.cr.execute('select pg_sleep(10)')\n")
            until(lambda: ("odoo-shell", lane) in {(c["application"], c["lane"]) for c in self.weir("clients")} or typed.done(), 60,
                  lambda: f"{shell}: {self.weir('clients')}")
            if typed.done():
                yield f"{shell}: {typed.result().stderr}"
        for command in docs.commands("docs/compose.md", "docker compose run --rm -e PGAPPNAME=odoo-upgrade *"):
            self.engine.typed(command)
        for command in docs.commands("docs/compose.md", "docker compose up -d postgres && *"):
            self.engine.typed(command)
            until(lambda: "reload" in self.run("pgweir", "pgweir", "timeline", "--last", "20"), 10, lambda: "no reload in the timeline")
        for command in docs.commands("docs/compose.md", "docker compose build pgweir && *"):
            self.engine.typed(command, timeout=1800)
        self.settled()

    def frozen(self):
        """Paused lanes are kept in the volume."""
        def paused():
            return {lane["lane"] for lane in self.weir("lanes") if lane["state"] == "paused"}

        self.run("pgweir", "pgweir", "freeze", "--reason", "trial")
        if "cron" not in paused():
            yield f"a freeze pauses {paused()}"
        self.engine.compose("restart", "pgweir")
        self.settled_service("pgweir")
        if "cron" not in paused():
            yield f"after a restart {paused()} are paused"
        if ask("http://127.0.0.1:8069/web/login", patience=30)[0] != 200:
            yield "users are not served during a freeze"
        self.run("pgweir", "pgweir", "resume", "all")
        self.settled()

    def settled_service(self, name, seconds=WAIT_S):
        """Waits for one service."""
        until(lambda: self.states()[name] == self.wanted()[name], seconds, lambda: f"{name} is {self.states()[name]}")

    def killed(self):
        """By a signal from outside, as the kernel would when memory is out: Docker sees a crash, not a stop."""
        before = self.inspect("pgweir")
        links = self.listening()
        os.kill(before["State"]["Pid"], signal.SIGKILL)
        started = time.monotonic()
        status, _ = ask("http://127.0.0.1:8069/web/login", patience=60)
        served = time.monotonic() - started
        if status != 200:
            yield f"Odoo answers {status} a minute after"
        until(lambda: self.listening() >= links, 60, lambda: f"cron has {self.listening()} of {links} links")
        listening = time.monotonic() - started
        self.settled()
        after = self.inspect("pgweir")
        if after["RestartCount"] <= before["RestartCount"]:
            yield "Docker did not start it again"
        # Odoo's cron ends when its first process is refused a connection, and is started again; its web service must live on.
        if self.inspect("web")["RestartCount"]:
            yield "web was restarted"
        print(f"      Odoo's next page after {served:.1f} s, cron listens again after {listening:.1f} s", flush=True)

    def listening(self):
        """Links of cron to `postgres`."""
        return int(self.sql("select count(*) from pg_stat_activity where application_name like 'odoo-cron%' and datname = 'postgres'")[0][0])

    def hanging(self):
        """Stopped, it answers nobody."""
        pid = self.pid("pgweir")
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        try:
            until(lambda: self.states()["pgweir"] == "unhealthy", 90, lambda: f"stopped, it is {self.states()['pgweir']}")
        finally:
            os.kill(pid, signal.SIGCONT)
        noticed, started = time.monotonic() - started, time.monotonic()
        self.settled_service("pgweir")
        yield from ()
        print(f"      unhealthy after {noticed:.0f} s, healthy {time.monotonic() - started:.0f} s after it goes on", flush=True)
        self.settled()

    def restarted(self):
        """A page asked for while it is away is served when it is back; pgweir's own health does not depend on PostgreSQL's."""
        self.engine.compose("stop", "postgres")
        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            page = pool.submit(ask, "http://127.0.0.1:8069/web/login", timeout=60)
            seen = set()
            while time.monotonic() < started + AWAY_S:
                seen.add(self.states()["pgweir"])
                time.sleep(0.5)
            if page.done():
                yield f"without PostgreSQL, Odoo answers {page.result()[0]}"
            self.engine.compose("start", "postgres")
            status, _ = page.result()
        if seen != {"healthy"}:
            yield f"without PostgreSQL, pgweir is {sorted(seen)}"
        if status != 200:
            yield f"the page asked for meanwhile: {status}"
        print(f"      PostgreSQL away for {AWAY_S} s; the page asked for meanwhile: {status} after {time.monotonic() - started:.1f} s", flush=True)
        self.settled()

    def again(self):
        """Containers and passwords stay."""
        def state():
            kept = {name: self.inspect(name)["Id"] for name in self.compose.services}
            return kept, {path.name: path.read_text() for path in self.volume("secrets-postgres").iterdir()}

        before = state()
        self.engine.compose("up", "--detach", "--no-build")
        self.settled()
        if state() != before:
            yield "containers or passwords are others"


def process(pid, file):
    """A file of /proc."""
    return pathlib.Path(f"/proc/{pid}/{file}").read_text()


def ask(url, login=None, patience=0, timeout=30):
    """Status and body of a GET; with patience, again until 200 or the seconds are over."""
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(":".join(login).encode()).decode())
    end = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                status, body = answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read().decode(errors="replace")
        except OSError as error:
            status, body = 0, str(error)
        if status == 200 or time.monotonic() >= end:
            return status, body
        time.sleep(0.5)


def until(met, seconds, otherwise):
    """Waits, bounded."""
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end:
            raise AssertionError(otherwise())
        time.sleep(0.5)
