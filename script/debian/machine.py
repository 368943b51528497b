"""A Debian machine that boots: a tree made once by debootstrap, a throw-away layer over it, systemd as PID 1 in namespaces of its own,
and no network but its loopback."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

from harness.util import eventually
from report import Skip

SUITE = "bookworm"
PACKAGES = ["systemd", "systemd-sysv", "dbus", "postgresql", "procps", "bash-completion", "fish", "zsh"]
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "pgweir-package"
BOOT = pathlib.Path(__file__).with_name("boot")


def base():
    """The tree, made if there is none yet."""
    if os.geteuid() != 0:
        raise Skip("a Debian tree takes root")
    if not shutil.which("debootstrap"):
        raise Skip("there is no debootstrap here")
    name = hashlib.sha256(" ".join([SUITE, *PACKAGES]).encode()).hexdigest()[:12]
    tree = CACHE / f"{SUITE}-{name}"
    if tree.is_dir():
        return tree
    CACHE.mkdir(parents=True, exist_ok=True)
    making = pathlib.Path(tempfile.mkdtemp(prefix="making-", dir=CACHE))
    making.chmod(0o755)
    try:
        log = CACHE / "debootstrap.log"
        with log.open("wb") as out:
            # Recommended packages are left out.
            done = subprocess.run(["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(making)],
                                  stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            said = log.read_text(errors="replace").splitlines()[-2:]
            raise Skip(f"debootstrap cannot make a Debian tree here: {' | '.join(said)}")
        shutil.rmtree(making / "var/cache/apt/archives", ignore_errors=True)
        with contextlib.suppress(FileExistsError, OSError):
            making.rename(tree)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return tree


def unified():
    """Where the unified hierarchy of control groups is mounted."""
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            return pathlib.Path(before.split()[4])
    raise Skip("no cgroup2 hierarchy is mounted here: systemd has nowhere to put its units")


class Machine:
    """The booted machine. It is gone when the `with` ends."""

    def __init__(self):
        self.tree, groups = base(), unified()
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-debian-"))
        self.group = groups / self.place.name
        self.process = self.pid = None

    def __enter__(self):
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def _boot(self):
        try:
            self.group.mkdir()
        except OSError as error:
            raise Skip(f"no control group can be made here: {error}") from error
        log = (self.place / "boot.log").open("wb")
        # Nothing of it outlives us.
        argv = ["setpriv", "--pdeathsig", "KILL", "bash", str(BOOT), str(self.tree), str(self.place), str(self.group)]
        self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)

        def child():
            if self.process.poll() is not None:
                raise Skip(f"namespaces are forbidden here, or an overlay is: {self.log()}")
            children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            return (self.place / "ready").exists() and children

        self.pid = int(eventually(child, timeout=120, what="namespaces")[0])

        def has_booted():
            if self.process.poll() is not None:
                raise RuntimeError(f"systemd ended: {self.log()}")
            state = self.run("systemctl is-system-running").stdout.strip()
            return state in ("running", "degraded") and state

        try:
            self.state = eventually(has_booted, timeout=300, interval=0.2, what="systemd has booted")
        except (AssertionError, RuntimeError, OSError) as error:
            # Nothing of pgweir's is in there yet.
            raise Skip(f"systemd does not boot here: {error}") from error

    def log(self):
        """What the boot said."""
        return (self.place / "boot.log").read_text(errors="replace")[-2000:].strip()

    def close(self):
        """Ends it and removes what it wrote."""
        if self.process and self.process.poll() is None:
            # The namespaces' first process: with it the kernel ends all the others.
            if self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(10)
        if self.group.is_dir():
            self._remove_group()
        shutil.rmtree(self.place, ignore_errors=True)

    def _remove_group(self):
        def gone():
            for group in sorted(self.group.rglob("*"), key=lambda path: len(path.parts), reverse=True):
                if group.is_dir():
                    with contextlib.suppress(OSError):
                        group.rmdir()
            with contextlib.suppress(OSError):
                self.group.rmdir()
            return not self.group.exists()

        with contextlib.suppress(AssertionError):
            eventually(gone, timeout=30)

    def command(self, script, user=None):
        """The command line that runs a shell script inside."""
        inside = ["/bin/bash", "-c", script]
        if user:
            inside = ["/sbin/runuser", "-u", user, "--", *inside]
        return ["nsenter", "--target", str(self.pid), "--all", "--root", "/usr/bin/env", "-i", "-C", "/", "HOME=/root", "TERM=dumb",
                "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *inside]

    def run(self, script, user=None, timeout=600, given=None):
        """Runs a shell script inside; the finished process."""
        return subprocess.run(self.command(script, user), input=given or "", capture_output=True, text=True, timeout=timeout)

    def must(self, script, user=None, timeout=600, given=None):
        """The same, which has to succeed; what it printed."""
        done = self.run(script, user, timeout, given)
        assert done.returncode == 0, f"{script}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def start(self, script, user=None):
        """Starts a shell script inside, with pipes."""
        return subprocess.Popen(self.command(script, user), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def path(self, inside):
        """Where a file of the inside is outside."""
        return pathlib.Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    def put(self, file, inside):
        """Copies a file in."""
        shutil.copy(file, self.path(inside))
