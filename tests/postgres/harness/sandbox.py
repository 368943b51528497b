"""Where a page's commands run as they stand: directories, ports and programs that mean what the page means."""

import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile

from . import odoo
from .util import free_port
from .weir import BINARY, ROOT

PASSWORD = "the-password-of-odoo-and-the-monitor"

# systemd has no place in a test. What `systemctl` does to a unit is done to the real pgweir, and to a stand-in for Odoo.
SYSTEMCTL = r"""#!/bin/bash
verb=$1; shift
[ "$1" = --now ] && shift && [ "$verb" = enable ] && verb=start
pid() { cat "$BASE/$1.pid" 2>/dev/null; }
# A zombie has no command line.
alive() { [ -n "$(pid "$1")" ] && [ -n "$(tr '\0' ' ' 2>/dev/null < "/proc/$(pid "$1")/cmdline")" ]; }
start() {
    alive "$1" && return 0
    case $1 in
    pgweir*) suffix=${1#pgweir}
        setsid "$PGWEIR_REAL" run --config "$BASE/etc/pgweir$suffix/pgweir.toml" >> "$BASE/$1.log" 2>&1 & ;;
    odoo) setsid "$PYTHON" "$ODOO" "$BASE/etc/odoo/odoo.conf" >> "$BASE/$1.log" 2>&1 & ;;
    *) echo "systemctl: unit $1?" >&2; exit 5 ;;
    esac
    echo $! > "$BASE/$1.pid"; echo $! >> "$BASE/pids"
    [ "$1" = odoo ] && return 0
    # Type=notify: it is back when pgweir listens, and, for the page's sake, has seen PostgreSQL.
    port=$(sed -n '/^\[admin\]/,/^\[/s/^address = ".*:\([0-9]*\)".*/\1/p' "$BASE/etc/pgweir${1#pgweir}/pgweir.toml")
    for _ in $(seq 1200); do
        curl -so /dev/null --noproxy '*' -w '%{http_code}' "http://127.0.0.1:$port/readyz" | grep -q 200 && return 0
        alive "$1" || { cat "$BASE/$1.log" >&2; exit 1; }
        sleep 0.05
    done
    exit 1
}
stop() {
    alive "$1" || return 0
    kill -TERM "$(pid "$1")"
    for _ in $(seq 4000); do alive "$1" || return 0; sleep 0.02; done
    exit 1
}
case $verb in
daemon-reload) exit 0 ;;
start | stop | restart | reload | is-active | enable | disable) [ $# -gt 0 ] || exit 5 ;;
*) echo "systemctl: $verb?" >&2; exit 5 ;;
esac
for unit in "$@"; do
    unit=${unit%.service}
    case $verb in
    start) start "$unit" ;;
    stop) stop "$unit" ;;
    restart) stop "$unit"; start "$unit" ;;
    reload) kill -HUP "$(pid "$unit")" ;;
    is-active) alive "$unit" && echo active || { echo inactive; exit 3; } ;;
    esac
done
"""

# The account is the test's own; -u postgres gets the superuser's way into PostgreSQL.
SUDO = r"""#!/bin/bash
while [ $# -gt 0 ]; do
    case $1 in
    -u) [ "$2" = postgres ] && export PGHOST=$PG_SOCKETS PGUSER=postgres PGDATABASE=postgres; shift 2 ;;
    -*) shift ;;
    *) break ;;
    esac
done
exec "$@"
"""

# Accounts of an installation are not here.
CHOWN = r"""#!/bin/bash
shift; ls -- "$@" > /dev/null
"""

# Where it looks for its file, and what init writes, are the places of an installation; here they are elsewhere.
PGWEIR = r"""#!/bin/bash
installed=$BASE/etc/pgweir/pgweir.toml
case " $* " in
*" --config"* | *" -c "* | *" --admin"* | " init "*) ;;
*) [ -e pgweir.toml ] || [ ! -e "$installed" ] || set -- "$@" --config "$installed" ;;
esac
[ "$1" = init ] || exec "$PGWEIR_REAL" "$@"
"$PGWEIR_REAL" "$@"; status=$?
file=pgweir.toml
while [ $# -gt 0 ]; do
    case $1 in -o | --output) file=$2 ;; --output=*) file=${1#*=} ;; esac
    shift
done
[ $status = 0 ] && sed -i -f "$BASE/places.sed" "$file"
exit $status
"""


class Sandbox:
    """Directories, ports and programs of one page. `real` and `doc` translate between what the page says and what is."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-docs-"))
        self.base.chmod(0o755)
        self.port, self.admin_port = free_port(), free_port()
        self.places = {
            "127.0.0.1:6432": f"127.0.0.1:{self.port}", "127.0.0.1:6433": f"127.0.0.1:{self.admin_port}",
            "127.0.0.1:5432": f"127.0.0.1:{cluster.port}",
        }
        for place in ("/etc/pgweir", "/etc/odoo", "/var/lib/pgweir", "/run/pgweir"):
            self.places[place] = f"{self.base}{place}"
            (self.base / place.lstrip("/")).mkdir(parents=True)
        # A socket's number is a port, too.
        self.places["unix:/run/pgweir"] = f"unix:{self.base}/run/pgweir:{self.port}"
        self.ports = {"5432": cluster.port, "6432": self.port, "6433": self.admin_port}
        self.words = {}
        self.home = self.base / "home"
        self.home.mkdir()
        self.groups, self.closers = [], []
        self._programs()
        self._state()

    def _programs(self):
        tools = self.base / "bin"
        tools.mkdir()
        for name, text in {"systemctl": SYSTEMCTL, "sudo": SUDO, "chown": CHOWN, "pgweir": PGWEIR}.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.refresh()

    def refresh(self):
        """Tells the programs of places that were added."""
        # In two steps: what one place becomes may look like another.
        ordered = list(enumerate(sorted(self.places.items(), key=lambda kv: -len(kv[0]))))
        lines = [f"s#{re.escape(doc)}#@@{n}@@#g" for n, (doc, _) in ordered] + [f"s#@@{n}@@#{real}#g" for n, (_, real) in ordered]
        (self.base / "places.sed").write_text("\n".join(lines) + "\n")

    def _state(self):
        self.env = {
            "PATH": f"{self.base / 'bin'}:{self.cluster.bin}:{os.environ['PATH']}", "HOME": str(self.home), "BASE": str(self.base),
            "PGWEIR_REAL": str(BINARY.resolve()), "PYTHON": sys.executable, "ODOO": odoo.__file__, "PG_SOCKETS": str(self.cluster.sockets),
            "PGPORT": str(self.cluster.port), "PGCONNECT_TIMEOUT": "20", "PGPASSFILE": "/nonexistent", "PSQLRC": "/nonexistent", "LC_ALL": "C.UTF-8", "TZ": "UTC",
            "TERM": "dumb", "PAGER": "cat", "no_proxy": "*",
        }
        (self.base / "state").write_text("")
        (self.base / "cwd").write_text(str(self.home))

    # -- translation ---------------------------------------------------------------------------------------------

    def real(self, text):
        """What a page says, with this sandbox's places."""
        places = sorted(self.places, key=len, reverse=True)
        text = re.sub("|".join(map(re.escape, places)), lambda found: self.places[found[0]], text)
        for doc, real in self.ports.items():
            text = re.sub(rf"(?P<before>-p |port |port=|port = |[:=,]){doc}\b", rf"\g<before>{real}", text)
        for doc, real in self.words.items():
            text = text.replace(doc, real)
        return text

    def doc(self, text):
        """What was printed, in the page's words."""
        for doc, real in sorted(self.places.items(), key=lambda kv: -len(kv[1])):
            text = text.replace(real, doc)
        for doc, real in self.ports.items():
            text = re.sub(rf"\b{real}\b", doc, text)
        return text.replace(str(self.home), "~")

    # -- commands ------------------------------------------------------------------------------------------------

    def run(self, command, stdin="", timeout=200):
        """Runs a command as the page has it; its exit status and what it printed, both streams, in the page's words."""
        script = self.base / "script"
        script.write_text(
            f"set -a\n. {self.base}/state\ncd \"$(cat {self.base}/cwd)\"\nset +a\n{{ set -a\n{self.real(command)}\n}}\n"
            f"status=$?\nexport -p > {self.base}/state\npwd > {self.base}/cwd\nexit $status\n")
        out = self.base / "out"
        # A file, not a pipe: what is left in the background would hold a pipe open.
        with open(out, "wb") as sink:
            process = subprocess.Popen(["bash", str(script)], stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.STDOUT, env=self.env,
                                       start_new_session=True)
        if "&" in command:
            self.groups.append(process.pid)
        try:
            process.communicate(self.real(stdin).encode(), timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{command!r} does not end within {timeout} s: {out.read_text(errors='replace')}")
        return process.returncode, self.doc(out.read_text(errors="replace"))

    def must(self, command):
        """Runs a command that has to succeed; what it printed."""
        status, text = self.run(command)
        assert status == 0, f"{command}: {text}"
        return text

    # -- scenery -------------------------------------------------------------------------------------------------

    def configure(self, text, place="etc/pgweir"):
        """Puts a configuration where an installation has it, with the monitor's password."""
        directory = self.base / place
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "pgweir.toml").write_text(self.real(text))
        password = directory / "monitor.password"
        password.write_text(PASSWORD + "\n")
        password.chmod(0o600)

    def checkout(self):
        """What of the repository pages mention: its configuration files (with this sandbox's places) and the program, in the page's directory."""
        shutil.copytree(ROOT / "config", self.home / "config")
        for path in (self.home / "config").glob("*.toml"):
            path.write_text(self.real(path.read_text()))
        (self.home / "target" / "release").mkdir(parents=True)
        (self.home / "target" / "release" / "pgweir").symlink_to(self.base / "bin" / "pgweir")

    def odoo_conf(self, **more):
        """An odoo.conf that leads straight to PostgreSQL."""
        settings = {"admin_passwd": "x", "db_host": "127.0.0.1", "db_port": self.cluster.port, "db_user": "odoo", "db_password": PASSWORD,
                    "db_name": "odoo", "workers": 2, "max_cron_threads": 1, **more}
        (self.base / "etc/odoo/odoo.conf").write_text("[options]\n" + "".join(f"{k} = {v}\n" for k, v in settings.items()))

    def cast(self, roles):
        """Starts processes that play Odoo's (see harness.odoo), through pgweir; returns when all that need not wait are there."""
        where = {"host": str(self.base / "run/pgweir"), "port": str(self.port), "user": "odoo"}
        path = self.base / f"cast{len(self.closers)}.json"
        path.write_text(json.dumps([{**role, "where": {**where, **role.get("where", {})}} for role in roles]))
        process = subprocess.Popen([sys.executable, odoo.__file__, "--cast", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.keep(Cast(process))
        there, _, _ = select.select([process.stdout], [], [], 120)
        assert there and process.stdout.readline() == "ready\n", f"the cast is not all there: {self.run('pgweir clients')[1]}"

    def keep(self, thing):
        """Closes it at the end."""
        self.closers.append(thing)
        return thing

    def log(self, unit="pgweir"):
        """What a unit has written."""
        path = self.base / f"{unit}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self):
        """Ends everything that was started, and removes the files."""
        pids = (self.base / "pids").read_text().split() if (self.base / "pids").exists() else []
        for pid in map(int, pids):
            if str(self.base) in cmdline(pid):
                os.kill(pid, signal.SIGKILL)
        for group in self.groups:
            try:
                os.killpg(group, signal.SIGKILL)
            except OSError:
                pass
        for thing in reversed(self.closers):
            try:
                thing.close()
            except Exception:  # noqa: BLE001 - the page may have ended it
                pass
        shutil.rmtree(self.base, ignore_errors=True)


class Cast:
    """Processes of a cast."""

    def __init__(self, process):
        self.process = process

    def close(self):
        """Ends them."""
        self.process.terminate()
        self.process.wait(60)


def cmdline(pid):
    """The command line of a process, empty when it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
