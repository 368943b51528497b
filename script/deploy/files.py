"""The shipped configurations and the systemd unit."""

import pathlib
import re
import shutil
import subprocess
import tempfile

from report import Skip


def checks(root, binary):
    """Names and checks."""
    configurations = [*sorted((root / "config").glob("*.toml")), *sorted((root / "deploy").rglob("*.toml"))]
    return [(f"pgweir check {file.relative_to(root)}", configuration(file, binary)) for file in configurations] + [
        ("systemd takes deploy/systemd/pgweir.service", unit(root, binary)),
        ("systemd takes deploy/odoo/odoo-lane@.service", odoo_unit(root)),
        ("deploy/odoo: a service for each upstream of deploy/nginx, on ports of its own", odoo_services(root)),
    ]


def configuration(file, binary):
    """No error, with password files that exist; that PostgreSQL is not there is a warning."""
    with tempfile.TemporaryDirectory(prefix="pgweir-check-") as place:
        password = pathlib.Path(place) / "password"
        password.write_text("secret\n")
        password.chmod(0o600)
        text = re.sub(r'^(\s*password_file\s*=\s*)".*?"', rf'\1"{password}"', file.read_text(), flags=re.M)
        # Nobody's, so that no PostgreSQL of this machine is asked.
        text = re.sub(r'^(\[upstream\].*\naddress\s*=\s*)".*?"', r'\1"127.0.0.1:1"', text, count=1, flags=re.M)
        # Directories that whoever runs this can write.
        text = text.replace('"/var/lib/pgweir"', f'"{place}/state"').replace('"unix:/run/pgweir"', f'"unix:{place}/run"')
        copy = pathlib.Path(place) / file.name
        copy.write_text(text)
        done = subprocess.run([str(binary), "check", "--config", str(copy)], capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            yield done.stdout + done.stderr
        elif "127.0.0.1:1:" not in done.stdout + done.stderr:
            yield f"PostgreSQL was not looked for: {done.stdout}{done.stderr}"


def unit(root, binary):
    """systemd-analyze verify: unknown keys, bad values, a program that is not there."""
    if not shutil.which("systemd-analyze"):
        raise Skip("there is no systemd-analyze here")
    text = (root / "deploy/systemd/pgweir.service").read_text()
    if text.count("/usr/bin/pgweir ") != 2:
        yield "ExecStart and ExecReload do not both run /usr/bin/pgweir"
    with tempfile.TemporaryDirectory(prefix="pgweir-unit-") as place:
        file = pathlib.Path(place) / "pgweir.service"
        file.write_text(text.replace("/usr/bin/pgweir ", f"{binary} "))
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, timeout=300)
        # What it says of other units of this machine is not ours.
        complaints = [line for line in (done.stdout + done.stderr).splitlines() if "pgweir" in line]
        if complaints or done.returncode != 0:
            yield "\n".join(complaints) or done.stderr


def odoo_unit(root):
    """The same of the unit of Odoo's further services, with a program that is there."""
    if not shutil.which("systemd-analyze"):
        raise Skip("there is no systemd-analyze here")
    with tempfile.TemporaryDirectory(prefix="pgweir-unit-") as place:
        file = pathlib.Path(place) / "odoo-lane@.service"
        file.write_text((root / "deploy/odoo/odoo-lane@.service").read_text().replace("/usr/bin/odoo ", "/usr/bin/env "))
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, timeout=300)
        complaints = [line for line in (done.stdout + done.stderr).splitlines() if "odoo-lane" in line]
        if complaints or done.returncode != 0:
            yield "\n".join(complaints) or done.stderr


def odoo_services(root):
    """What nginx leads to listens there; no port is anybody else's."""
    upstreams = dict(re.findall(r"upstream odoo_(\w+) +\{ server 127\.0\.0\.1:(\d+);", (root / "deploy/nginx/odoo-upstreams.conf").read_text()))
    ports = [upstreams["web"], upstreams["live"]]
    for file in sorted((root / "deploy/odoo").glob("lane-*.env")):
        name, options = file.stem.removeprefix("lane-"), file.read_text()
        found = re.findall(r"--(?:http|gevent)-port=(\d+)", options)
        if name != "cron" and (len(found) != 2 or found[0] != upstreams.get(name)):
            yield f"{file.name} listens on {found}, nginx leads to {upstreams.get(name)}"
        if "--no-http" not in options and "--max-cron-threads=0" not in options:
            yield f"{file.name} runs cron jobs under its own name"
        ports += found
    if len(set(ports)) != len(ports):
        yield f"ports twice: {sorted(ports)}"
