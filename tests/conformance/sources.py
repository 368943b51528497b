"""Where the suites come from: downloaded once into a cache outside the repository, never committed."""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

from harness.cluster import bindir

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "pgweir-conformance"
PSYCOPG2 = "2.9.13"
PSYCOPG = "3.3.4"


class Unavailable(Exception):
    """A suite's source, or a program needed to build it, is not to be had here."""


def run(argv, cwd=None, log=None):
    """Runs a step of the preparation; Unavailable with the end of what it printed where it fails."""
    done = subprocess.run([str(a) for a in argv], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if log:
        log.write_text(done.stdout)
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(map(str, argv[:4]))} …: " + done.stdout.strip()[-600:])
    return done.stdout


def server_version():
    """Debian's version of the installed server's package, and its major version."""
    major = bindir().parent.name
    package = f"postgresql-{major}"
    version = run(["dpkg-query", "-W", "-f", "${Version}", package]).strip()
    return package, version


def apt_options():
    """apt reads its own sources.list: deb-src of what the system has as deb. Nothing under /etc or /var is written."""
    base = CACHE / "apt"
    for directory in (base / "lists/partial", base / "cache/archives/partial"):
        directory.mkdir(parents=True, exist_ok=True)
    one_line, stanzas = [], []
    etc = pathlib.Path("/etc/apt")
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        text = path.read_text() if path.is_file() else ""
        if "debian" not in text:
            continue
        if path.suffix == ".sources":
            stanzas.append("\n".join("Types: deb-src" if line.startswith("Types:") else line for line in text.splitlines()))
        else:
            one_line += ["deb-src" + line[3:] for line in text.splitlines() if line.startswith("deb ")]
    parts = base / "parts"
    parts.mkdir(exist_ok=True)
    (parts / "conformance.list").write_text("\n".join(one_line) + "\n")
    (parts / "conformance.sources").write_text("\n\n".join(stanzas) + "\n")
    return ["-o", "Dir::Etc::SourceList=/dev/null", "-o", f"Dir::Etc::SourceParts={parts}", "-o", f"Dir::State::Lists={base / 'lists'}",
            "-o", f"Dir::Cache={base / 'cache'}", *(["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else [])]


def postgresql():
    """PostgreSQL's source tree of exactly the installed server's version, its test programs built."""
    package, version = server_version()
    tree = CACHE / f"{package}_{version}"
    if (tree / "built").exists():
        return tree
    for program in ("apt-get", "dpkg-source", "make", "gcc", "perl"):
        if not shutil.which(program):
            raise Unavailable(f"{program} is missing: apt-get install dpkg-dev build-essential perl")
    shutil.rmtree(tree, ignore_errors=True)
    download = CACHE / "download"
    download.mkdir(parents=True, exist_ok=True)
    options = apt_options()
    run(["apt-get", *options, "-q", "update"])
    run(["apt-get", *options, "-q", "source", "--download-only", f"{package}={version}"], cwd=download)
    (dsc,) = download.glob(f"{package}_{version}.dsc")
    run(["dpkg-source", "--no-check", "-x", dsc, tree])
    # Their object code meets the server only through its C interface, which the defaults of configure share with Debian's build.
    run(["./configure", "--quiet", "--without-readline", "--without-zlib", "CFLAGS=-O1 -w"], cwd=tree, log=tree / "configure.log")
    for directory in ("src/test/regress", "src/test/modules/libpq_pipeline"):
        run(["make", "-s", "-j2", "-C", directory, "all"], cwd=tree, log=tree / "make.log")
    (tree / "built").touch()
    return tree


def psycopg2_tests():
    """psycopg2's sdist, which contains its tests."""
    tree = CACHE / f"psycopg2-{PSYCOPG2}"
    if not (tree / "tests").exists():
        download = CACHE / "download"
        download.mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps", f"psycopg2=={PSYCOPG2}"], cwd=download)
        with tarfile.open(download / f"psycopg2-{PSYCOPG2}.tar.gz") as sdist:
            sdist.extractall(CACHE, filter="data")
    return tree


def psycopg_tests(given):
    """psycopg 3's tests. No sdist contains them, so the tree is brought along: `given`, or the cache's psycopg-VERSION."""
    tree = pathlib.Path(given) if given else CACHE / f"psycopg-{PSYCOPG}"
    if not (tree / "tests" / "fix_db.py").exists():
        raise Unavailable(f"psycopg's sdists have no tests: put a checkout of tag {PSYCOPG} at {tree}, or name one with --psycopg-tests")
    return tree


def python():
    """The interpreter of the environment in which the drivers' tests run."""
    wanted = HERE / "requirements.txt"
    stamp_text = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()
    venv = CACHE / "venv"
    stamp = venv / "stamp"
    if not stamp.exists() or stamp.read_text() != stamp_text:
        shutil.rmtree(venv, ignore_errors=True)
        run([sys.executable, "-m", "venv", venv])
        run([venv / "bin/pip", "install", "-q", "--disable-pip-version-check", "-r", wanted])
        stamp.write_text(stamp_text)
    return venv / "bin/python"
