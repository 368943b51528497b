"""A throw-away root directory with a few of this system's programs, to run an image's steps in by chroot."""

import os
import pathlib
import re
import shutil
import stat
import subprocess
import tempfile

from report import Skip

# Debian's base image is laid out like this.
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n",
    "etc/gshadow": "root:*::\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/hosts": "127.0.0.1 localhost\n",
}
DEVICES = {"null": (1, 3), "urandom": (1, 9)}


def libraries(program):
    """The shared libraries a program needs: name → file, or none where it is missing."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True)
    if "not a dynamic executable" in done.stderr + done.stdout or "statically linked" in done.stdout:
        return {}
    assert done.returncode == 0, done.stderr
    out = {}
    for line in done.stdout.splitlines():
        if found := re.match(r"\s*(\S+) => (/\S+|not found)", line):
            out[found[1]] = None if found[2] == "not found" else pathlib.Path(found[2])
        elif found := re.match(r"\s*(/\S+) \(", line):
            out[found[1].rpartition("/")[2]] = pathlib.Path(found[1])
    return out


class Tree:
    """The directory, laid out as Debian's or `bare`, as Docker makes one for an image of nothing. It goes when the `with` ends."""

    def __init__(self, *programs, bare=False):
        if os.geteuid() != 0:
            raise Skip("chroot needs root")
        if not shutil.which("chroot"):
            raise Skip("there is no chroot here")
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-image-"))
        self.root.chmod(0o755)
        try:
            self._devices()
            if bare:
                self.write("etc/hosts", FILES["etc/hosts"])
            else:
                self._fill(programs)
        except BaseException:
            self.close()
            raise

    def _devices(self):
        for name, number in DEVICES.items():
            self.path("dev").mkdir(exist_ok=True)
            try:
                os.mknod(self.path(f"dev/{name}"), stat.S_IFCHR | 0o666, os.makedev(*number))
                self.path(f"dev/{name}").open("rb").close()
            except PermissionError as error:
                raise Skip("device files cannot be made here") from error

    def _fill(self, programs):
        for link, target in LINKS.items():
            (self.root / target).mkdir(parents=True)
            (self.root / link).symlink_to(target)
        for name, text in FILES.items():
            self.write(name, text)
        shutil.copy2("/etc/login.defs", self.root / "etc")
        self.path("tmp").mkdir(mode=0o1777)
        for name in programs:
            found = shutil.which(name)
            if not found:
                raise Skip(f"there is no {name} here")
            self.add(found, found)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Removes it."""
        shutil.rmtree(self.root, ignore_errors=True)

    def path(self, inside):
        """Where a path of the inside is outside."""
        return self.root / str(inside).lstrip("/")

    def write(self, inside, text, owner=None, mode=0o644):
        """Puts a file there."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        if owner is not None:
            os.chown(path, owner, owner)

    def add(self, program, inside):
        """Copies a program with the libraries it needs."""
        for file in libraries(program).values():
            assert file, f"{program}: a library is missing"
            self._copy(file, file)
        self._copy(program, inside)

    def _copy(self, source, inside):
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)

    def command(self, argv, user=None):
        """The command line that runs `argv` inside, as `user` ("UID:GID")."""
        return [shutil.which("chroot"), *([f"--userspec={user}", "--groups="] if user else []), str(self.root), *argv]

    def run(self, argv, user=None, env=None, timeout=300):
        """Runs it; the finished process, its output as text."""
        return subprocess.run(self.command(argv, user), env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **(env or {})},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
