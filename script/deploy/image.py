"""Dockerfile: the build stage in its own context, the final stage's files in a throw-away root directory."""

import os
import pathlib
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import tomllib

import dockerfile
from tree import Tree, libraries

# The C library's and the compiler's: whatever else the program asked for would be a surprise.
LIBRARIES = re.compile(r"linux-vdso\.so\.1|lib(c|m|pthread|dl|rt)\.so\.\d|libgcc_s\.so\.1|ld-linux.*\.so\.\d")
BUILD = "cargo build --release --locked --bin pgweir"
LAYOUT = "sh deploy/docker/make-image.sh target/release/pgweir /image && install -d -m 0750 /state/pgweir"
RECORDED = {"USER", "WORKDIR", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
SIZE_MAX = 30_000_000


class Image:
    """The parsed file."""

    def __init__(self, root, binary):
        self.root, self.binary = root, binary
        self.build, self.final = dockerfile.stages((root / "Dockerfile").read_text())

    def checks(self, compose):
        """Names and checks."""
        return [
            ("image: a Rust that is new enough, and nothing below the program", self.bases()),
            ("image: the build stage compiles from its context alone", self.context()),
            ("image: its build command is the locked release build", self.command()),
            ("image: the binary needs the C library only", self.linked()),
            ("image: user, ports, state and health check agree with the compose file", self.declared(compose)),
            ("image: the final stage's files", self.steps()),
        ]

    def user(self):
        """UID:GID."""
        return self.final.last("USER").text

    def state(self):
        """The volume."""
        return self.final.last("VOLUME").text

    def health(self):
        """The health check's command."""
        return dockerfile.Instruction("CMD", self.final.last("HEALTHCHECK").text.partition("CMD ")[2]).argv()

    def start(self):
        """What a container runs."""
        return self.final.last("ENTRYPOINT").argv() + self.final.last("CMD").argv()

    def bases(self):
        """Its libraries come from the stage that built it, so they fit."""
        rust = re.fullmatch(r"rust:([\d.]+)-slim-(\w+)", self.build.image)
        if not rust or self.final.image != "scratch":
            yield f"{self.build.image} builds for {self.final.image}"
        least = tomllib.loads((self.root / "Cargo.toml").read_text())["package"]["rust-version"]
        if rust and [int(n) for n in rust[1].split(".")] < [int(n) for n in least.split(".")]:
            yield f"Cargo.toml wants Rust {least}"

    def context(self):
        """Every COPY has its source, and cargo finds everything in what .dockerignore lets in."""
        place = self.root / "target/check-deploy/context"
        dockerfile.make_context(self.root, place)
        for instruction in self.build.all("COPY"):
            stage, sources, *_ = dockerfile.copy_words(instruction)
            for source in sources:
                if stage or not (place / source).exists():
                    yield f"COPY {instruction.text}: {source} is not in the context"
        # No code is made: script/test compiles the same sources by the same command.
        done = subprocess.run(["cargo", "check", "--quiet", "--locked", "--bin", "pgweir"], cwd=place, capture_output=True, text=True,
                              env={**os.environ, "CARGO_TARGET_DIR": str(self.root / "target")})
        if done.returncode != 0:
            yield done.stderr[-2000:]

    def command(self):
        """Text, and whether it yields what the final stage copies."""
        runs = [instruction.text for instruction in self.build.all("RUN")]
        if runs != [BUILD, LAYOUT]:
            yield f"RUN is {runs}, not {[BUILD, LAYOUT]}"
            return
        done = subprocess.run(shlex.split(BUILD), cwd=self.root, capture_output=True, text=True)
        if done.returncode != 0:
            yield done.stderr[-2000:]
        elif not (self.root / "target/release/pgweir").is_file():
            yield "it builds no target/release/pgweir"

    def linked(self):
        """ldd."""
        for name, file in libraries(self.binary).items():
            if not LIBRARIES.fullmatch(name):
                yield f"{name} is asked for"
            elif file is None:
                yield f"{name} is missing here"

    def declared(self, compose):
        """The same figures in three files."""
        user = self.user()
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user):
            yield f"USER {user}: must be numbers, and not root's"
        if f"pgweir={user} " not in (self.root / "deploy/docker/make-secrets.sh").read_text():
            yield f"make-secrets.sh gives pgweir's secrets to somebody else than {user}"
        if self.state() != compose.weir["state"]["directory"]:
            yield f"VOLUME {self.state()} is not the state directory"
        ports = {listen["address"].rpartition(":")[2] for listen in [*compose.weir["listen"], compose.weir["admin"]]}
        if ports != set(self.final.last("EXPOSE").text.split()):
            yield f"EXPOSE is not {sorted(ports)}"
        if ["CMD", *self.health()] != compose.services["pgweir"]["healthcheck"]["test"]:
            yield f"the image is asked by {self.health()}, the service otherwise"
        if self.start() != ["pgweir", "run"]:
            yield f"it starts {self.start()}"

    def make(self, tree):
        """Puts the final stage's files into `tree`: the layout's script run here, and what is copied from it, with its owner."""
        with tempfile.TemporaryDirectory(prefix="pgweir-layout-") as place:
            stage = pathlib.Path(place)
            script = self.root / "deploy/docker/make-image.sh"
            subprocess.run(["sh", str(script), str(self.binary), str(stage / "image")], check=True, capture_output=True, cwd=self.root)
            (stage / "state/pgweir").mkdir(parents=True)
            (stage / "state/pgweir").chmod(0o750)
            for instruction in self.final.instructions:
                assert instruction.word in RECORDED | {"COPY"}, f"{instruction.word}: teach this check"
                if instruction.word == "COPY":
                    self.copy(instruction, stage, tree)

    def copy(self, instruction, stage, tree):
        """One COPY of a directory's content."""
        name, sources, destination, owner = dockerfile.copy_words(instruction)
        assert name == self.build.name and len(sources) == 1 and sources[0].endswith("/"), f"COPY {instruction.text}: teach this check"
        uid, gid = (int(number) for number in (owner or "0:0").split(":"))
        source = stage / sources[0].strip("/")
        shutil.copytree(source, tree.path(destination), dirs_exist_ok=True, symlinks=True)
        for path in source.rglob("*"):
            os.chown(tree.path(destination) / path.relative_to(source), uid, gid, follow_symlinks=False)

    def steps(self):
        """They run, and leave the user nothing to write to but the volume."""
        with Tree(bare=True) as tree:
            before = {path for path in tree.root.rglob("*")}
            self.make(tree)
            uid, gid = (int(number) for number in self.user().split(":"))
            owner = tree.path(self.state()).stat()
            if (owner.st_uid, owner.st_gid, stat.S_IMODE(owner.st_mode)) != (uid, gid, 0o750):
                yield f"{self.state()} is {owner.st_uid}:{owner.st_gid} {stat.S_IMODE(owner.st_mode):o}"
            for path in set(tree.root.rglob("*")) - before:
                what = path.lstat()
                writable = what.st_uid == uid or (what.st_gid == gid and what.st_mode & stat.S_IWGRP) or what.st_mode & stat.S_IWOTH
                if writable and not stat.S_ISLNK(what.st_mode) and path != tree.path(self.state()):
                    yield f"its user may write to /{path.relative_to(tree.root)}"
                if what.st_mode & (stat.S_ISUID | stat.S_ISGID):
                    yield f"/{path.relative_to(tree.root)} changes its user"
            line = next((l for l in tree.path("etc/passwd").read_text().splitlines() if f":{uid}:{gid}:" in l), "")
            if not line.startswith("pgweir:") or not line.endswith("/nologin"):
                yield f"/etc/passwd says {line!r}"
            size = sum(path.stat().st_size for path in tree.root.rglob("*") if path.is_file() and not path.is_symlink())
            if size > SIZE_MAX:
                yield f"it has {size / 1e6:.1f} MB"
            done = tree.run(["pgweir", "--version"], user=self.user())
            if done.returncode != 0 or not done.stdout.startswith("pgweir "):
                yield f"pgweir --version in the image: {done.stdout}"
