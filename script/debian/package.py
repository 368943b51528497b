"""The package itself: built, looked into, judged by lintian, and repacked as a newer version."""

import os
import pathlib
import re
import shutil
import subprocess

from report import Skip

WANTED = {
    "etc/pgweir/pgweir.toml", "lib/systemd/system/pgweir.service", "lib/systemd/system/pgweir.socket",
    "lib/systemd/system/pgweir-drill.service", "lib/systemd/system/pgweir-drill.timer", "usr/bin/pgweir", "usr/lib/sysusers.d/pgweir.conf",
    "usr/share/bash-completion/completions/pgweir", "usr/share/fish/vendor_completions.d/pgweir.fish",
    "usr/share/zsh/vendor-completions/_pgweir", "usr/share/man/man1/pgweir.1.gz", "usr/share/man/man1/pgweir-freeze.1.gz",
    "usr/share/doc/pgweir/copyright", "usr/share/doc/pgweir/README.md", "usr/share/doc/pgweir/docs/install.md",
    "usr/share/doc/pgweir/config/odoo.toml", "usr/share/doc/pgweir/deploy/odoo/odoo-lane@.service",
    "usr/share/doc/pgweir/deploy/nginx/odoo-locations.conf", "usr/share/doc/pgweir/deploy/keepalived/keepalived.conf",
}

# A link in Markdown that leads to a file: what stands before its anchor.
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(?:#[^)\s]*)?\)")


def run(*argv, **more):
    """A program of this machine; the finished process."""
    return subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, **more)


class Package:
    """The .deb, once `built` has made it."""

    def __init__(self, root, place, kind):
        self.root, self.place, self.kind = root, place, kind
        self.deb = None

    def built(self):
        """By script/package."""
        done = run(self.root / "script/package", self.kind, "--output", self.place / "pgweir.deb")
        if done.returncode != 0:
            yield (done.stdout + done.stderr)[-3000:]
            return
        self.deb = self.place / "pgweir.deb"
        self.tree = self.place / "tree"
        assert run("dpkg-deb", "-R", self.deb, self.tree).returncode == 0

    def need(self):
        """Skips what cannot be looked at."""
        if self.deb is None:
            raise Skip("there is no package")

    def contents(self):
        """What has to be there, and nothing that nobody would look for."""
        self.need()
        files = {str(path.relative_to(self.tree)) for path in self.tree.rglob("*") if path.is_file()}
        for missing in sorted(file for file in WANTED if file not in files and "usr/" + file not in files):
            yield f"{missing} is not in the package"
        for path in sorted(self.tree.rglob("*")):
            if path.is_file() and "DEBIAN" not in path.parts and path.stat().st_mode & 0o022:
                yield f"{path.relative_to(self.tree)} may be written by others"
        conffiles = (self.tree / "DEBIAN/conffiles").read_text().split()
        if conffiles != ["/etc/pgweir/pgweir.toml"]:
            yield f"conffiles: {conffiles}"
        # pgweir writes no log file, and bounds the timeline by itself.
        if any("logrotate" in file for file in files):
            yield "it rotates logs that nobody writes"
        for page in self.tree.glob("usr/share/man/man1/*"):
            done = run("man", "--warnings", "-l", page, env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANROFFSEQ": ""}) \
                if shutil.which("man") else None
            if done and (done.returncode != 0 or done.stderr):
                yield f"{page.name}: {done.stderr}"
        commands = set(re.findall(r"^  ([a-z]+) ", run(self.tree / "usr/bin/pgweir", "--help").stdout, re.M)) - {"help"}
        pages = {page.name.removeprefix("pgweir-").partition(".")[0] for page in self.tree.glob("usr/share/man/man1/pgweir-*")}
        if not commands or commands != pages:
            yield f"commands without a page, or pages without a command: {commands ^ pages}"

    def linked(self):
        """The pages' links within the repository lead to files of the package."""
        self.need()
        pages = [*(self.tree / "usr/share/doc/pgweir").rglob("*.md")]
        links = [(page, target) for page in pages for target in LINK.findall(page.read_text())]
        if len(links) < len(pages):
            yield f"{len(links)} links in {len(pages)} pages"
        for page, target in links:
            if not (page.parent / target).exists():
                yield f"{page.relative_to(self.tree)}: {target} is not in the package"

    def judged(self):
        """No error or warning of lintian's but those overridden with a reason."""
        self.need()
        if not shutil.which("lintian"):
            raise Skip("there is no lintian here")
        done = run("lintian", "--allow-root", "--info", "--tag-display-limit", "0", "--fail-on", "error,warning", self.deb)
        if done.returncode != 0 or done.stdout.strip():
            yield done.stdout + done.stderr

    def newer(self):
        """The same with a higher version and another shipped configuration."""
        self.need()
        tree = self.place / "newer"
        shutil.copytree(self.tree, tree, symlinks=True)
        control = tree / "DEBIAN/control"
        self.version = re.search(r"^Version: (.*)$", control.read_text(), re.M)[1]
        control.write_text(re.sub(r"^(Version: .*)$", r"\1+newer1", control.read_text(), flags=re.M))
        shipped = tree / "etc/pgweir/pgweir.toml"
        shipped.write_text(shipped.read_text() + "\n# shipped by a newer package\n")
        sums = run("sh", "-c", "find etc usr lib -type f 2>/dev/null | sort | xargs md5sum", cwd=tree).stdout
        (tree / "DEBIAN/md5sums").write_text(sums)
        deb = self.place / "newer.deb"
        done = run("dpkg-deb", "--root-owner-group", "-Zgzip", "-b", tree, deb)
        assert done.returncode == 0, done.stderr
        return deb


def place(root):
    """Where packages are made; emptied first."""
    out = pathlib.Path(root) / "target/check-package"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out
