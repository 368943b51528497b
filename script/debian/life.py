"""A package's life on a Debian machine: installed, configured, started, reloaded, upgraded, socket-activated, removed, purged. Each
function yields its problems; they build on each other. What docs/install.md has people type is run as it stands there."""

import contextlib
import json
import os
import re
import select
import time

from harness import docs
from harness.util import eventually

ODOO_CONF = """\
[options]
db_host = 127.0.0.1
db_port = 5432
db_user = odoo
db_password = the-odoo-password
workers = 4
max_cron_threads = 1
"""
# Debian's psql is a script that starts this one.
PSQL = "/usr/lib/postgresql/15/bin/psql"
SOCKET = "host=/run/pgweir port=6432 user=odoo dbname=odoo"
TCP = "host=127.0.0.1 port=6432 user=odoo dbname=odoo"
# What `systemd-analyze security` gives the unit, and a little; 10 is no sandbox at all.
EXPOSURE_MAX = 1.9


def psql(where, sql="select 1", title="psql"):
    """A client that is called `title`."""
    return f"PGPASSWORD=the-odoo-password exec -a {json.dumps(title)} {PSQL} -XAtqc {json.dumps(sql)} {json.dumps(where)}"


def state(machine, unit="pgweir.service"):
    """What systemd says of a unit."""
    return machine.run(f"systemctl is-active {unit}; systemctl is-enabled {unit}").stdout.split()


def mode(machine, path):
    """Rights and owners, as in "640 root:pgweir"."""
    return machine.must(f"stat -c '%a %U:%G' {path}")


def installed(machine, deb):
    """By apt, with what it depends on; nothing runs, and what is there is closed."""
    (install,) = docs.commands("docs/install.md", "apt install *")
    machine.put(deb, f"/root/{install.rpartition('/')[2]}")
    # Nobody is there to say yes.
    machine.path("/root/apt.conf").write_text('APT::Get::Assume-Yes "true"; APT::Install-Recommends "false";\n')
    before = set(machine.must("find / -xdev -path /proc -prune -o -print").splitlines())
    machine.must(f"cd /root && export APT_CONFIG=/root/apt.conf && {install}")
    machine.files = set(machine.must("find / -xdev -path /proc -prune -o -print").splitlines()) - before
    for unit in ("pgweir.service", "pgweir.socket", "pgweir-drill.timer", "pgweir-drill.service"):
        found = state(machine, unit)
        if found[0] != "inactive" or found[1] not in ("disabled", "static"):
            yield f"{unit} is {found} after the installation"
    account = machine.must("getent passwd pgweir")
    if not account.endswith(":/var/lib/pgweir:/usr/sbin/nologin"):
        yield f"account: {account}"
    for path, wanted in {"/etc/pgweir": "750 root:pgweir", "/etc/pgweir/pgweir.toml": "640 root:pgweir", "/usr/bin/pgweir": "755 root:root"}.items():
        if mode(machine, path) != wanted:
            yield f"{path} is {mode(machine, path)}, not {wanted}"
    said = machine.must("pgweir check", user="pgweir")
    if not said.endswith("/etc/pgweir/pgweir.toml: ok"):
        yield f"check of the shipped configuration: {said}"
    if machine.run("cat /etc/pgweir/pgweir.toml", user="nobody").returncode == 0:
        yield "anybody may read the configuration"
    done = machine.run("systemd-analyze verify /lib/systemd/system/pgweir*")
    if done.returncode != 0 or "pgweir" in done.stdout + done.stderr:
        yield f"systemd-analyze verify: {done.stdout}{done.stderr}"
    if machine.must("dpkg --verify pgweir"):
        yield f"dpkg --verify: {machine.must('dpkg --verify pgweir')}"


def completed(machine):
    """Each shell completes a command and an option."""
    bash = ". /usr/share/bash-completion/bash_completion; _completion_loader pgweir; COMP_WORDS=(pgweir {}); COMP_CWORD=1; " \
           "complete -p pgweir | sed 's/.*-F \\([^ ]*\\).*/\\1/' > /tmp/f; $(cat /tmp/f) pgweir {} pgweir; echo \"${{COMPREPLY[@]}}\""
    for name, script in {
        "bash": bash.format("fre", "fre"),
        "fish": "fish -c \"complete -C 'pgweir fre'\"",
        "zsh": "zsh -fc 'autoload -Uz compinit && compinit -u && print -r -- $_comps[pgweir] && autoload +X _pgweir && "
               "functions _pgweir_commands _pgweir'",
    }.items():
        done = machine.run(script)
        wanted = "_pgweir" if name == "zsh" else "freeze"
        if wanted not in done.stdout:
            yield f"{name}: {done.returncode} {done.stdout[-500:]}{done.stderr[-500:]}"
    if "freeze" not in machine.must("zcat -f /usr/share/zsh/vendor-completions/_pgweir*"):
        yield "zsh: no freeze"
    # Without the package's files, each by the page's command in that shell.
    (bash,) = docs.commands("docs/install.md", "source <(pgweir completions bash)")
    (zsh,) = docs.commands("docs/install.md", "pgweir completions zsh *")
    (fish,) = docs.commands("docs/install.md", "pgweir completions fish *")
    if "_pgweir" not in machine.must(f"{bash}; complete -p pgweir"):
        yield f"{bash}: no completion"
    machine.must("mkdir -p /root/zsh /root/.config/fish/completions")
    loaded = "autoload -Uz compinit && compinit -u && autoload +X _pgweir && print -r -- $functions_source[_pgweir]"
    if (found := machine.must("zsh -f", given=f"fpath=(/root/zsh $fpath)\n{zsh}\n{loaded}\n")) != "/root/zsh/_pgweir":
        yield f"{zsh}: zsh takes {found}"
    if "freeze" not in machine.must("fish", given=f"{fish}\ncomplete -e pgweir\nsource ~/.config/fish/completions/pgweir.fish\ncomplete -C 'pgweir fre'\n"):
        yield f"{fish}: no completion"


def configured(machine):
    """`pgweir init` over the shipped file, as root: the service may read what it wrote, and nobody else."""
    machine.must("useradd --system --create-home odoo")
    machine.must("psql -Xqv ON_ERROR_STOP=1", user="postgres",
                 given="create role odoo login createdb password 'the-odoo-password'; create database odoo owner odoo;")
    machine.path("/etc/odoo").mkdir()
    machine.path("/etc/odoo/odoo.conf").write_text(ODOO_CONF)
    (init,), (check,) = docs.commands("docs/install.md", "pgweir init *"), docs.commands("docs/install.md", "pgweir check")
    said = machine.must(init)
    machine.must("psql -Xqv ON_ERROR_STOP=1", user="postgres", given="\n".join(line for line in said.splitlines() if line.endswith(";")))
    for file in ("pgweir.toml", "monitor.password"):
        if mode(machine, f"/etc/pgweir/{file}") != "640 root:pgweir":
            yield f"{file} is {mode(machine, '/etc/pgweir/' + file)}"
    for user in ("root", "pgweir"):
        done = machine.run(check, user=user)
        if done.stdout.strip() != "/etc/pgweir/pgweir.toml: ok":
            yield f"check by {user}: {done.stdout}{done.stderr}"


def rehearsed(machine):
    """The weekly drill is waited for, as docs/drill.md says."""
    (enable,) = docs.commands("docs/drill.md", "systemctl enable --now pgweir-drill.timer")
    machine.must(enable)
    if (found := state(machine, "pgweir-drill.timer")) != ["active", "enabled"] or "Wed" not in machine.must("systemctl list-timers --no-pager pgweir-drill.timer"):
        yield f"pgweir-drill.timer is {found}"
    (block,) = (part for part in docs.parts(docs.ROOT / "docs/drill.md") if isinstance(part, docs.Block) and "PGWEIR_DRILL_TARGET" in part.lines[0])
    service = machine.must("systemctl cat pgweir-drill.service")
    if missing := [line for line in block.lines if line.partition("=")[0] not in service]:
        yield f"pgweir-drill.service knows nothing of {missing}"
    machine.must("systemctl disable --now pgweir-drill.timer")


def told(machine, command, *words):
    """Whether a command prints all of these words, now or soon: journald and systemd hear of things after those who say them."""
    with contextlib.suppress(AssertionError):
        return eventually(lambda: all(word in said for word in words) if (said := machine.must(command)) else False, timeout=30)
    return False


def lane_of(machine, where, title, number):
    """Where a client of Odoo's account lands whose process is called `title`; its application_name says only that it is Odoo, and which:
    one that has just ended may be listed still."""
    with session(machine, f"{where} application_name=odoo-{number}", title) as held:
        held.ask("select 1")
        return [row["lane"] for row in rows_of(json.loads(machine.must("pgweir clients --json"))) if row["application"] == f"odoo-{number}"]


def started(machine):
    """Ready when systemctl returns, in its sandbox; what it needs to see of other users' processes, it sees."""
    for command in docs.commands("docs/install.md", "systemctl enable --now pgweir"):
        machine.must(command)
    if state(machine) != ["active", "enabled"]:
        yield f"pgweir.service is {state(machine)}"
    for command in docs.commands("docs/install.md", "systemctl status *"):
        # Its words for systemd come after it is ready.
        if not told(machine, command, "active (running)", "mode observe, running"):
            yield f"{command}: {machine.must(command)}"
    for number, where in enumerate((SOCKET, TCP), 4711):
        if (found := lane_of(machine, where, "odoo: WorkerCron", number)) != ["cron"]:
            yield f"a cron worker over {where.split()[0]} is in {found}, not cron"
    with contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(session(machine, SOCKET, "odoo: WorkerHTTP")).ask("select 1")
        rows = machine.must("pgweir headroom")
        if not re.search(r"private_per_backend .* measured", rows):
            yield f"headroom measures nothing: {rows}"
    exposure = machine.must("systemd-analyze security --no-pager pgweir.service | tail -1")
    figure = re.search(r"([\d.]+) ", exposure)
    if not figure or float(figure[1]) > EXPOSURE_MAX:
        yield f"systemd-analyze security: {exposure}"
    files = machine.must("find /var/lib/pgweir /run/pgweir -not -user pgweir")
    if files or mode(machine, "/var/lib/pgweir") != "750 pgweir:pgweir":
        yield f"/var/lib/pgweir is {mode(machine, '/var/lib/pgweir')}; not its own: {files}"
    if found := machine.must("find / -xdev -user pgweir -not -path '/var/lib/pgweir*' -not -path '/proc/*'"):
        yield f"it writes to {found}"
    if not told(machine, "journalctl --no-pager -u pgweir", "listening"):
        yield "the journal has nothing of it"


# It says who it is as Odoo does, and stays.
ODOO_STAND_IN = """#!/bin/sh
PGAPPNAME=$(echo "$ODOO_PGAPPNAME" | sed "s/{pid}/$$/") PGPASSWORD=the-odoo-password
export PGAPPNAME PGPASSWORD
printf '%%s\\n' "$@" > "$HOME/arguments"
exec psql -Xqc "select pg_sleep(600)" "%s"
"""


def served(machine):
    """The services of docs/odoo.md, installed as that page says, each in its lane. Odoo's program is a stand-in."""
    machine.path("/usr/bin/odoo").write_text(ODOO_STAND_IN % SOCKET)
    machine.must("chmod 755 /usr/bin/odoo")
    for command in docs.commands("docs/odoo.md", "install -m 644 deploy/odoo/*") + docs.commands("docs/odoo.md", "systemctl daemon-reload *"):
        machine.must(f"cd /usr/share/doc/pgweir && {command}")
    wanted, found = ["imports", "reports"], []

    def are_there():
        rows = rows_of(json.loads(machine.must("pgweir clients --json")))
        found[:] = sorted(row["lane"] for row in rows if re.fullmatch(r"odoo-(imports|reports)-\d+", row["application"]))
        return found == wanted

    try:
        eventually(are_there, timeout=60, interval=0.2)
    except AssertionError:
        yield f"the services are in {found}, not {wanted}: {machine.must('systemctl status --no-pager odoo-lane@reports || true')}"
    arguments = machine.path("/home/odoo/arguments").read_text().split("\n")
    if arguments[0] != "--config=/etc/odoo/odoo.conf" or "--workers=2" not in arguments:
        yield f"Odoo is started with {arguments}"
    machine.must("systemctl disable --now odoo-lane@reports odoo-lane@imports && rm -r /etc/odoo /usr/bin/odoo /etc/systemd/system/odoo-lane@.service")


def rows_of(answer):
    """The rows of a list, whatever encloses them."""
    return answer if isinstance(answer, list) else next(value for value in answer.values() if isinstance(value, list))


def reloaded(machine):
    """systemctl reload applies a changed file, and refuses a wrong one without harm."""
    file = machine.path("/etc/pgweir/pgweir.toml")
    good = file.read_text()

    def quota():
        return next(row["quota"] for row in rows_of(json.loads(machine.must("pgweir lanes --json"))) if row["name" if "name" in row else "lane"] == "other")

    with session(machine, SOCKET, "psql") as held:
        pid = held.ask("select pg_backend_pid()")
        before = int(quota())
        head, other, tail = good.partition('name = "other"')
        file.write_text(head + other + re.sub(r"quota = \d+", f"quota = {before + 1}", tail, count=1))
        machine.must("systemctl reload pgweir")
        if int(quota()) != before + 1:
            yield f"quota is {quota()} after the reload, not {before + 1}"
        file.write_text(good + '\nmode = "sometimes"\n')
        done = machine.run("systemctl reload pgweir")
        if done.returncode == 0 or state(machine)[0] != "active" or int(quota()) != before + 1:
            yield f"a wrong file: {done.returncode}, {state(machine)}, quota {quota()}"
        file.write_text(good)
        machine.must("systemctl kill -s HUP --kill-who=main pgweir")
        eventually(lambda: int(quota()) == before, timeout=60, what="SIGHUP applied")
        if held.ask("select pg_backend_pid()") != pid:
            yield "a reload cut a session"


def upgraded(machine, deb):
    """A newer package while clients are connected: nobody is cut, nothing restarts; the administrator's configuration stays."""
    machine.put(deb, "/root/newer.deb")
    mine = machine.path("/etc/pgweir/pgweir.toml").read_text()
    main = machine.must("systemctl show -p MainPID --value pgweir")
    with session(machine, SOCKET, "odoo: WorkerHTTP") as held:
        held.ask("begin")
        pid = held.ask("select pg_backend_pid()")
        said = machine.must("apt-get install -qy -o Dpkg::Options::=--force-confold /root/newer.deb")
        if held.ask("select pg_backend_pid()") != pid:
            yield "the upgrade cut a session"
        held.ask("commit")
    if machine.must("systemctl show -p MainPID --value pgweir") != main or state(machine) != ["active", "enabled"]:
        yield f"the upgrade restarted it: {state(machine)}"
    if "goes on running" not in said:
        yield f"nobody is told that the old program runs: {said}"
    if machine.path("/etc/pgweir/pgweir.toml").read_text() != mine:
        yield "the upgrade replaced the configuration"
    if "shipped by a newer package" not in machine.path("/etc/pgweir/pgweir.toml.dpkg-dist").read_text():
        yield "the newer shipped configuration is not beside it"
    if mode(machine, "/etc/pgweir/pgweir.toml") != "640 root:pgweir":
        yield f"the configuration is {mode(machine, '/etc/pgweir/pgweir.toml')} now"
    machine.must("systemctl restart pgweir")
    if machine.must("systemctl show -p MainPID --value pgweir") == main:
        yield "restart did not restart it"
    machine.must(psql(SOCKET), user="odoo")
    if machine.must("dpkg-query -W -f '${Version}' pgweir") == machine.version:
        yield "the version is the old one"


def killed(machine):
    """systemd starts it again."""
    main = machine.must("systemctl show -p MainPID --value pgweir")
    machine.must("systemctl kill -s KILL --kill-who=main pgweir")

    def is_back():
        now = machine.must("systemctl show -p MainPID --value pgweir")
        return now not in ("0", main) and state(machine)[0] == "active"

    try:
        eventually(is_back, timeout=90, what="pgweir is back")
    except AssertionError as error:
        yield error
    machine.must(psql(SOCKET), user="odoo")


def socket_activated(machine):
    """systemd listens: the first client starts pgweir, and nobody is refused while it restarts."""
    for command in docs.commands("docs/install.md", "systemctl disable --now pgweir.service") + docs.commands("docs/install.md", "systemctl enable --now pgweir.socket"):
        machine.must(command)
    if state(machine)[0] != "inactive" or state(machine, "pgweir.socket") != ["active", "enabled"]:
        yield f"before: {state(machine)}, {state(machine, 'pgweir.socket')}"
    for where in (SOCKET, TCP):
        machine.must(psql(where), user="odoo")
    if state(machine)[0] != "active":
        yield "a client did not start it"
    if machine.must("stat -c '%a %U' /run/pgweir/.s.PGSQL.6432") != "777 pgweir":
        yield f"the socket is {machine.must('stat -c %a:%U /run/pgweir/.s.PGSQL.6432')}"
    machine.must("systemctl reset-failed pgweir.service")
    # Clients come all the time while it restarts three times, once with a transaction to wait for.
    script = "; ".join(f"{PSQL} -XAtqc 'select 1' {json.dumps(where)} || echo refused" for where in (SOCKET, TCP))
    clients = machine.start(f"export PGPASSWORD=the-odoo-password; for n in $(seq 60); do {script}; sleep 0.05; done", user="odoo")
    with session(machine, SOCKET, "odoo: WorkerHTTP") as held:
        held.ask("begin")
        restart = machine.start("systemctl restart pgweir")
        time.sleep(1)
        if restart.poll() is not None:
            yield "the restart did not wait for a transaction"
        held.ask("commit")
        restart.wait(180)
    for _ in range(2):
        machine.must("systemctl restart pgweir")
    out, _ = clients.communicate(timeout=600)
    # Who is inside, and not in a transaction, is seen off as at any restart: one at most, as they come one by one. Whoever comes is served.
    lost, seen_off = 120 - out.split("\n").count("1"), out.count("is being drained")
    if lost > 3 or lost != seen_off:
        said = "\n".join(line for line in out.splitlines() if line != "1")
        yield f"{lost} of 120 clients had no answer, {seen_off} were seen off: {said[-1500:]}"
    machine.must("systemctl stop pgweir && test -S /run/pgweir/.s.PGSQL.6432")
    # A socket that no listener is configured for would let clients wait for ever.
    machine.path("/etc/systemd/system/pgweir.socket.d").mkdir()
    machine.path("/etc/systemd/system/pgweir.socket.d/more.conf").write_text("[Socket]\nListenStream=127.0.0.1:6999\n")
    # systemd starts a unit five times in ten seconds, and then says only that; a fast machine has come so far.
    machine.must("systemctl daemon-reload && systemctl restart pgweir.socket && systemctl reset-failed pgweir.service")
    done = machine.run("systemctl start pgweir")
    journal = "journalctl --no-pager -u pgweir -n 30"
    if done.returncode == 0 or not told(machine, journal, "127.0.0.1:6999, and no [[listen]] has this address"):
        yield f"a socket too many: {done.returncode} {machine.must(journal)[-600:]}"
    machine.must("rm -r /etc/systemd/system/pgweir.socket.d; systemctl daemon-reload; systemctl reset-failed; systemctl restart pgweir.socket")
    for command in docs.commands("docs/install.md", "systemctl start pgweir.service"):
        machine.must(command)
    machine.must(psql(SOCKET), user="odoo")


def removed(machine):
    """It is stopped, and configuration and state stay."""
    machine.must("apt-get remove -qy pgweir")
    if "active" in (state(machine)[0], state(machine, "pgweir.socket")[0]):
        yield f"still there: {state(machine)}, {state(machine, 'pgweir.socket')}"
    if machine.run("pgrep -x pgweir").returncode == 0:
        yield "it still runs"
    for path in ("/etc/pgweir/pgweir.toml", "/etc/pgweir/monitor.password", "/var/lib/pgweir/admin.password"):
        machine.must(f"test -f {path}")
    if machine.run("test -e /usr/bin/pgweir").returncode == 0:
        yield "the program is there"


def came_back(machine, deb):
    """Installed again, it is as it was."""
    machine.put(deb, "/root/newer.deb")
    machine.must("apt-get install -qy -o Dpkg::Options::=--force-confold /root/newer.deb")
    if "enabled" not in state(machine, "pgweir.socket") or mode(machine, "/etc/pgweir/pgweir.toml") != "640 root:pgweir":
        yield f"{state(machine, 'pgweir.socket')}, {mode(machine, '/etc/pgweir/pgweir.toml')}"
    machine.must("systemctl start pgweir")
    machine.must(psql(SOCKET), user="odoo")


def purged(machine):
    """Nothing is left but the account."""
    machine.must("apt-get purge -qy pgweir")
    left = {path for path in machine.must("find / -xdev -path /proc -prune -o -print").splitlines()
            # Besides the copies that were installed from, only the index of man pages that have been read.
            if "pgweir" in path and not path.startswith(("/root/", "/var/cache/man/"))}
    if left:
        yield f"left behind: {sorted(left)}"
    if found := machine.must("find / -xdev -user pgweir -not -path '/proc/*'"):
        yield f"still pgweir's: {found}"
    if "pgweir" in machine.must("systemctl list-unit-files --no-pager; dpkg -l"):
        yield "systemd or dpkg still knows it"
    if machine.run("getent passwd pgweir").returncode != 0:
        yield "the account is gone: its number may become another's"
    if "pgweir" in machine.must("systemctl --failed --no-pager"):
        yield machine.must("systemctl --failed --no-pager")


class session:  # noqa: N801 - used like a function
    """A psql that stays."""

    def __init__(self, machine, where, title):
        self.process = machine.start(f"PGPASSWORD=the-odoo-password exec -a {json.dumps(title)} {PSQL} -XAtqn {json.dumps(where)}", user="odoo")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except Exception:  # noqa: BLE001
            self.process.kill()

    def ask(self, sql, timeout=120):
        """The answer's first line; an empty one for a command."""
        self.process.stdin.write(f"{sql};\n\\echo ----\n")
        self.process.stdin.flush()
        said, deadline, out = b"", time.monotonic() + timeout, self.process.stdout.fileno()
        while not said.endswith(b"----\n"):
            ready, _, _ = select.select([out], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{sql}: no answer within {timeout} s: {said}"
            piece = os.read(out, 65536)
            assert piece, f"{sql}: psql ended: {said}"
            said += piece
        return said.decode().splitlines()[0].removesuffix("----")
