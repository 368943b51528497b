"""docker-compose.yml: who runs what, who reaches whom, who knows which password."""

import configparser
import fnmatch
import pathlib
import re
import shutil
import subprocess
import tomllib

import yaml

from report import Skip

SERVICES = {"secrets", "postgres", "pgweir", "init", "web", "cron", "prometheus", "grafana"}
ODOO = {"init": "other", "web": "web", "cron": "cron"}      # Odoo's services and their lanes
ONCE = {"secrets", "init"}                                  # end by themselves
LISTENS = ("web", "cron")                                   # Odoo's that stay
PUBLISHED = {"pgweir": ["127.0.0.1:6433:6433"], "web": ["127.0.0.1:8069:8069"], "grafana": ["127.0.0.1:3000:3000"]}
ODOO_CONF = "/etc/odoo/odoo.conf"
CONFIG = "/etc/pgweir/pgweir.toml"


class Compose:
    """The parsed file, with its `$$` undone."""

    def __init__(self, root):
        self.root = root
        self.file = root / "docker-compose.yml"
        self.all = yaml.safe_load(self.file.read_text().replace("$$", "$"))
        self.services = self.all["services"]
        self.weir_file = root / "deploy/docker/pgweir.toml"
        self.weir = tomllib.loads(self.weir_file.read_text())
        self.odoo = configparser.ConfigParser(interpolation=None)
        self.odoo.read(root / "deploy/docker/odoo.conf")

    def env(self, service):
        """Its environment variables."""
        return self.services[service].get("environment", {})

    def mounts(self, service):
        """Its mounts: place inside → (source, read-only)."""
        out = {}
        for mount in self.services[service].get("volumes", []):
            source, inside, *options = mount.split(":")
            out[inside] = (source, options == ["ro"])
        return out

    def lane(self, application, user, database):
        """The lane a link of these falls into by the rules that these keys decide."""
        facts = {"application": application, "user": user, "database": database}
        for lane in self.weir["lane"]:
            for rule in lane.get("match", []):
                if all(key in facts and fnmatch.fnmatchcase(facts[key], glob) for key, glob in rule.items()):
                    return lane["name"]
        return next(lane["name"] for lane in self.weir["lane"] if lane.get("default"))

    def max_connections(self):
        """What PostgreSQL is started with."""
        return int(re.search(r"max_connections=(\d+)", " ".join(self.services["postgres"]["command"]))[1])

    def checks(self):
        """Names and checks."""
        return [
            ("the compose tool takes docker-compose.yml", self.valid()),
            ("compose: the services, and when they start", self.order()),
            ("compose: every service that stays is health-checked", self.health()),
            ("compose: the database is reached through pgweir only", self.wiring()),
            ("compose: Odoo's services have their own names, and lanes", self.names()),
            ("compose: mounts exist, passwords come in files of their own reader", self.files()),
            ("compose: nobody runs with what it does not need, everybody is bounded", self.confined()),
            ("compose: Prometheus has pgweir and its rules, Grafana Prometheus and the dashboard", self.watching()),
            ("compose: the lanes fit PostgreSQL's connections", self.numbers()),
            ("compose: the scripts it mounts are valid shell", self.scripts()),
        ]

    def valid(self):
        """What Compose itself says."""
        tool = compose_tool()
        done = subprocess.run([*tool, "-f", str(self.file), "config", "-q"], cwd=self.root, capture_output=True, text=True)
        if done.returncode != 0 or "warn" in done.stderr.lower():
            yield done.stderr or done.stdout or f"exit status {done.returncode}"

    def order(self):
        """Each starts when what it needs is there."""
        if set(self.services) != SERVICES:
            yield f"services are {sorted(self.services)}"
        wanted = {"secrets": {}, "postgres": {"secrets": "completed_successfully"}, "pgweir": {"postgres": "healthy"},
                  "init": {"pgweir": "healthy"}, "web": {"pgweir": "healthy", "init": "completed_successfully"}}
        wanted |= {"cron": wanted["web"], "prometheus": {"pgweir": "started"}, "grafana": {"secrets": "completed_successfully", "prometheus": "started"}}
        for name, needs in wanted.items():
            has = {k: v["condition"].removeprefix("service_") for k, v in self.services[name].get("depends_on", {}).items()}
            if has != needs:
                yield f"{name} depends on {has}, not {needs}"
        for name, service in self.services.items():
            if service.get("restart") != ("no" if name in ONCE else "unless-stopped"):
                yield f"{name}: restart is {service.get('restart')!r}"

    def health(self):
        """Each says how it is, by what it is for."""
        programs = {"postgres": "pg_isready", "pgweir": "pgweir status", "web": "/web/health", "cron": "psql",
                    "prometheus": "promtool check healthy", "grafana": "/api/health"}
        for name in sorted(SERVICES - ONCE):
            check = self.services[name].get("healthcheck", {})
            if missing := {"test", "interval", "timeout", "retries", "start_period"} - set(check):
                yield f"{name}: no healthcheck {sorted(missing)}"
            elif check["test"][0] not in ("CMD", "CMD-SHELL") or programs[name] not in " ".join(check["test"]):
                yield f"{name}: is not asked by {programs[name]!r}"

    def wiring(self):
        """Networks, addresses and published ports."""
        networks = {"postgres": ["database"], "pgweir": ["database", "application", "monitoring"], "prometheus": ["monitoring"],
                    "grafana": ["monitoring", "front"], **{name: ["application"] for name in ODOO}}
        for name, wanted in networks.items():
            if self.services[name].get("networks") != wanted:
                yield f"{name} is on {self.services[name].get('networks')}, not {wanted}"
        for name in ("database", "monitoring"):
            if not self.all["networks"][name].get("internal"):
                yield f"the network `{name}` has a way out"
        ports = [listen["address"].rpartition(":")[2] for listen in self.weir["listen"]]
        options = self.odoo["options"]
        if options["db_host"] != "pgweir" or options["db_port"] not in ports or options["db_user"] != "odoo" or options["db_name"] != "odoo":
            yield f"odoo.conf: {dict(options)}, but pgweir listens on {ports}"
        for name in ODOO:
            if self.mounts(name).get(ODOO_CONF) != ("./deploy/docker/odoo.conf", True) or self.services[name]["entrypoint"][0] == "/entrypoint.sh":
                yield f"{name} does not start from odoo.conf"
        if self.weir["upstream"]["address"] != "postgres:5432":
            yield f"pgweir's upstream is {self.weir['upstream']['address']}"
        if (published := {name: service["ports"] for name, service in self.services.items() if "ports" in service}) != PUBLISHED:
            yield f"published: {published}"

    def names(self):
        """PGAPPNAME tells the lane."""
        names = {name: self.env(name).get("PGAPPNAME", "") for name in ODOO}
        if len(set(names.values())) != len(names) or not all(names.values()):
            yield f"PGAPPNAME is {names}"
        for name, wanted in ODOO.items():
            if (lane := self.lane(names[name], "odoo", "odoo")) != wanted:
                yield f"{name} ({names[name]}) falls into lane {lane}, not {wanted}"
        if (lane := self.lane(names["web"], "odoo", "postgres")) != "notify":
            yield f"web's links to `postgres` fall into lane {lane}"
        threads = {name: re.findall(r"--max-cron-threads=(\d+)", " ".join(self.services[name]["command"])) for name in LISTENS}
        if threads["web"] != ["0"] or threads["cron"] in ([], ["0"]):
            yield f"cron threads are {threads}"
        if "--workers=0" in self.services["cron"]["command"]:
            yield "cron has threads, which end for good when a connection is refused"

    def files(self):
        """What is mounted exists; secrets reach who reads them, read-only, and no environment holds one."""
        used = set()
        for name in self.services:
            for inside, (source, read_only) in self.mounts(name).items():
                used.add(source)
                if source.startswith("."):
                    if not (self.root / source).is_file():
                        yield f"{name}: {source} is missing"
                elif source not in self.all["volumes"]:
                    yield f"{name}: volume {source} is not declared"
                if name != "secrets" and (source.startswith((".", "secrets-")) and not read_only):
                    yield f"{name}: {inside} is writable"
                reader = "odoo" if name in ODOO else name
                if name != "secrets" and source.startswith("secrets-") and source != f"secrets-{reader}":
                    yield f"{name} reads {source}"
            for key, value in self.env(name).items():
                if ("PASSWORD" in key or key == "PGPASSFILE") and (not key.endswith("FILE") or not self.secret(name, value)):
                    yield f"{name}: {key} is no file of a mounted secret"
        if unused := set(self.all["volumes"]) - used:
            yield f"volumes {sorted(unused)} are not used"
        for section in ("monitor", "admin"):
            if not self.secret("pgweir", self.weir[section]["password_file"]):
                yield f"[{section}] password_file is not mounted"
        if "db_password" in self.odoo["options"]:
            yield "odoo.conf has a password"

    def secret(self, service, path):
        """The volume's name and the file's, where `path` lies in a volume of secrets of that service."""
        place = pathlib.PurePosixPath(path)
        source = self.mounts(service).get(str(place.parent), ("", False))[0]
        return (source.removeprefix("secrets-"), place.name) if source.startswith("secrets-") else None

    def confined(self):
        """Read-only root, no capability, bounds; and pgweir's two places."""
        for name, service in self.services.items():
            if not service.get("read_only") or service.get("cap_drop") != ["ALL"] or service.get("privileged"):
                yield f"{name}: read_only and cap_drop [ALL] are not both set"
            if "cap_add" in service and name != "secrets":
                yield f"{name}: has capabilities"
            if "no-new-privileges:true" not in service.get("security_opt", []) or service.get("user") == "root" and name not in ONCE:
                yield f"{name}: may gain privileges"
            if not {"mem_limit", "pids_limit"} <= set(service) or "max-size" not in service.get("logging", {}).get("options", {}):
                yield f"{name}: memory, processes or log have no bound"
        weir = self.services["pgweir"]
        if weir.get("build") != ".":
            yield f"is built from {weir.get('build')}"
        if self.mounts("pgweir").get(CONFIG) != ("./" + str(self.weir_file.relative_to(self.root)), True):
            yield f"{CONFIG} is not deploy/docker/pgweir.toml"
        if self.weir["state"]["directory"] not in self.mounts("pgweir"):
            yield "the state directory is no volume"
        if weir["ulimits"]["nofile"] < 3 * self.weir["limits"]["max_clients"]:
            yield "nofile is too small for max_clients"

    def watching(self):
        """The chain from /metrics to the dashboard."""
        scrape = yaml.safe_load((self.root / "deploy/docker/prometheus.yml").read_text())
        port = self.weir["admin"]["address"].rpartition(":")[2]
        if [(job["job_name"], job["static_configs"]) for job in scrape["scrape_configs"]] != [("pgweir", [{"targets": [f"pgweir:{port}"]}])]:
            yield f"Prometheus scrapes {scrape['scrape_configs']}"
        for rules in scrape["rule_files"]:
            if self.mounts("prometheus").get(rules) != ("./config/prometheus/alerts.yml", True):
                yield f"{rules} is not config/prometheus/alerts.yml"
        if shutil.which("promtool"):
            done = subprocess.run(["promtool", "check", "config", "--syntax-only", str(self.root / "deploy/docker/prometheus.yml")],
                                  capture_output=True, text=True)
            if done.returncode != 0:
                yield done.stdout + done.stderr
        source = yaml.safe_load((self.root / "deploy/docker/grafana/datasource.yml").read_text())["datasources"]
        if [(s["type"], s["url"]) for s in source] != [("prometheus", "http://prometheus:9090")]:
            yield f"Grafana's data sources are {source}"
        folder = yaml.safe_load((self.root / "deploy/docker/grafana/dashboards.yml").read_text())["providers"][0]["options"]["path"]
        if self.mounts("grafana").get(f"{folder}/pgweir.json") != ("./config/grafana/pgweir.json", True):
            yield f"{folder} has no dashboard"
        if self.env("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] != f"{folder}/pgweir.json":
            yield "Grafana's home is another dashboard"

    def numbers(self):
        """Reserves, headroom and the links Odoo may open."""
        usable = self.max_connections() - 3    # superuser_reserved_connections
        budget = usable - self.weir["upstream"]["headroom"]
        reserves = sum(lane.get("reserve", 0) for lane in self.weir["lane"])
        if reserves > budget:
            yield f"reserves {reserves} are above the budget {budget}"
        if too_big := [lane["name"] for lane in self.weir["lane"] if lane["quota"] > budget]:
            yield f"the quotas of {too_big} are above the budget {budget}"

    def scripts(self):
        """Syntax."""
        for script in sorted((self.root / "deploy/docker").glob("*.sh")):
            done = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True)
            if done.returncode != 0:
                yield done.stderr
            if "set -eu" not in script.read_text():
                yield f"{script.name}: goes on after an error"


def compose_tool():
    """docker-compose, or the plugin of docker."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    raise Skip("there is no docker-compose here")
