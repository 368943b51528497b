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
        copy = pathlib.Path(place) / file.name
        copy.write_text(text)
        done = subprocess.run([str(binary), "check", "--config", str(copy)], capture_output=True, text=True, timeout=60)
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
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, timeout=60)
        # What it says of other units of this machine is not ours.
        complaints = [line for line in (done.stdout + done.stderr).splitlines() if "pgweir" in line]
        if complaints or done.returncode != 0:
            yield "\n".join(complaints) or done.stderr
