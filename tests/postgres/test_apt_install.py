"""script/apt-install starts no service: under a directory that stands for Debian's root, with a fake apt-get that looks around."""

import os
import signal
import subprocess

import pytest

from harness import eventually
from harness.weir import ROOT

POLICY = "usr/sbin/policy-rc.d"
WANTS = "etc/systemd/system/multi-user.target.wants"
PROGRAMS = {
    "id": "echo 0",
    # What a maintainer script would be answered, at each call; then as the test says.
    "apt-get": """code=0; "$PGWEIR_APT_ROOT/usr/sbin/policy-rc.d" nginx start || code=$?
                  echo "$code $*" >> "$PGWEIR_APT_ROOT/calls"
                  [ "$1" = update ] || eval "$INSTALL" """,
    "systemctl": """echo "$*" >> "$PGWEIR_APT_ROOT/systemctl" """,
}


class Debian:
    """The root, and the programs that come first in PATH."""

    def __init__(self, place):
        self.root = place / "root"
        for folder in ("usr/sbin", WANTS, "run/systemd/system"):
            (self.root / folder).mkdir(parents=True)
        (self.root / WANTS / "ssh.service").touch()
        self.policy = self.root / POLICY
        (place / "bin").mkdir()
        for name, text in PROGRAMS.items():
            (place / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (place / "bin" / name).chmod(0o755)
        self.path = f"{place / 'bin'}:{os.environ['PATH']}"

    def start(self, install):
        """script/apt-install of one package; `install` is what apt-get does when it installs."""
        return subprocess.Popen([ROOT / "script" / "apt-install", "nginx"], stdout=subprocess.DEVNULL,
                                env={**os.environ, "PATH": self.path, "PGWEIR_APT_ROOT": str(self.root), "INSTALL": install})

    def said(self, name):
        """The lines a fake has written."""
        path = self.root / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def debian(tmp_path):
    return Debian(tmp_path)


@pytest.mark.parametrize("status", [0, 100])
def test_nothing_is_started_while_apt_get_runs_and_the_policy_is_gone_afterwards(debian, status):
    assert debian.start(f"exit {status}").wait(90) == status
    assert debian.said("calls") == ["101 update -q", "101 install -qy --no-install-recommends nginx"]
    assert not debian.policy.exists()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_policy_to_the_apt_get_that_goes_on(debian, sent):
    os.mkfifo(debian.root / "go")
    process = debian.start('read line < "$PGWEIR_APT_ROOT/go"; test -e "$PGWEIR_APT_ROOT/usr/sbin/policy-rc.d" && echo there > "$PGWEIR_APT_ROOT/late"')
    eventually(lambda: len(debian.said("calls")) == 2)
    process.send_signal(sent)
    (debian.root / "go").write_text("now\n")
    assert process.wait(90) == 128 + sent
    assert debian.said("late") == ["there"]
    assert not debian.policy.exists()


def test_a_policy_that_was_there_is_obeyed_and_stays(debian):
    debian.policy.write_text("#!/bin/sh\nexit 104\n")
    debian.policy.chmod(0o755)
    assert debian.start("true").wait(90) == 0
    assert [line.split()[0] for line in debian.said("calls")] == ["104", "104"]
    assert debian.policy.read_text() == "#!/bin/sh\nexit 104\n"


@pytest.mark.parametrize("status", [0, 100])
def test_what_the_packages_enabled_is_disabled_and_nothing_else(debian, status):
    enable = f'touch "$PGWEIR_APT_ROOT/{WANTS}/nginx.service" "$PGWEIR_APT_ROOT/{WANTS}/haproxy.service"; exit {status}'
    assert debian.start(enable).wait(90) == status
    assert debian.said("systemctl") == ["--quiet disable haproxy.service nginx.service"]


def test_where_no_systemd_runs_none_is_asked(debian):
    (debian.root / "run/systemd/system").rmdir()
    assert debian.start(f'touch "$PGWEIR_APT_ROOT/{WANTS}/nginx.service"').wait(90) == 0
    assert debian.said("systemctl") == []


def test_every_script_installs_by_it():
    """apt-get as such is called in trees that are no running machine, and to download."""
    texts = {path: path.read_text() for folder in ("script", "benches") for path in (ROOT / folder).iterdir() if path.is_file()}
    calls = {str(path.relative_to(ROOT)) for path, text in texts.items() if "apt-get install" in text}
    assert calls == {"script/apt-install"}
    assert sum("script/apt-install " in text for text in texts.values()) > 4
