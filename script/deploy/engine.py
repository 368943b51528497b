"""A Docker Engine of its own: in the namespaces this process was started in, with everything it keeps in one directory."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

PROJECT = "pgweir-trial"
CGROUP = "pgweir-trial"
START_S = 30
STOP_S = 60


class Engine:
    """Started when made; `close` ends it and removes what it kept."""

    def __init__(self):
        # A file system of a disk, as overlays want it.
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-engine-", dir=os.environ.get("TMPDIR", "/tmp")))
        self.host = f"unix://{self.place}/docker.sock"
        self.log = self.place / "dockerd.log"
        # Debian's own programs, whatever else this machine has.
        self.env = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DOCKER_HOST": self.host, "DOCKER_CONFIG": str(self.place / "config"), "COMPOSE_PROJECT_NAME": PROJECT,
                    "COMPOSE_DOCKER_CLI_BUILD": "1"}
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        (self.place / "daemon.json").write_text("{}\n")
        # oom-score-adjust: the default lowers it, which a root without CAP_SYS_RESOURCE may not.
        arguments = ["--host", self.host, "--config-file", str(self.place / "daemon.json"), "--data-root", str(self.place / "data"),
                     "--exec-root", str(self.place / "exec"), "--pidfile", str(self.place / "pid"), "--cgroup-parent", "/" + CGROUP,
                     "--oom-score-adjust", "0"]
        self.process = subprocess.Popen(["/usr/sbin/dockerd", *arguments], stdout=self.log.open("w"), stderr=subprocess.STDOUT)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self):
        until = time.monotonic() + START_S
        while subprocess.run(["/usr/bin/docker", "info"], env=self.env, capture_output=True).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"dockerd did not start: {self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def docker(self, *arguments, check=True, **options):
        """The finished process of `docker …`."""
        return self._run(["/usr/bin/docker", *arguments], check, options)

    def compose(self, *arguments, check=True, **options):
        """The finished process of `docker-compose …`."""
        return self._run(["/usr/bin/docker-compose", *arguments], check, options)

    def typed(self, text, **options):
        """The finished process of a page's command line: `docker compose` is Debian's docker-compose here, and there is no terminal."""
        text = re.sub(r"\b(run|exec) ", r"\1 -T ", text.replace("docker compose ", "/usr/bin/docker-compose "))
        return self._run(["bash", "-c", text], True, options)

    def _run(self, command, check, options):
        given = {} if "input" in options else {"stdin": subprocess.DEVNULL}
        options = {"timeout": 600, "env": self.env, **given, **options}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command[:6])}: exit status {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
        return done

    def shell(self, command):
        """What a shell's command line prints."""
        return self._run(["bash", "-o", "pipefail", "-c", command.replace("docker ", "/usr/bin/docker ", 1)], True, {}).stdout

    def close(self):
        """Ends it; containers that are left end with this process's namespace."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        self.process.kill()
        subprocess.run(["umount", "--recursive", str(self.place)], capture_output=True)
        shutil.rmtree(self.place, ignore_errors=True)
        # Containers that were not taken down have groups of their own in it.
        for top in pathlib.Path("/sys/fs/cgroup").glob("*/" + CGROUP):
            for group in sorted([top, *(path for path in top.rglob("*") if path.is_dir())], reverse=True):
                with contextlib.suppress(OSError):
                    group.rmdir()
