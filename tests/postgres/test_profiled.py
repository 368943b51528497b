"""script/profiled: the work it counts is done by a real pgweir; its steps are looked at in a tree of their own, where the compiler is one that
notes how it was called."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from harness.weir import BINARY, ROOT

pytestmark = [pytest.mark.weir, pytest.mark.timeout(600)]

HOST = "somewhere"
LIBRARY = f"sysroot/lib/rustlib/{HOST}"
TOOL = f"{LIBRARY}/bin/llvm-profdata"
COUNTER = f"{LIBRARY}/lib/libprofiler_builtins-0123.rlib"
TREE = ["Cargo.toml", "Cargo.lock", "src/main.rs", "config/odoo.toml", "third_party/README.md", "benches/churn.py", "tests/postgres/harness/weir.py",
        "script/train.py"]
PROGRAMS = {
    "bin/rustc": f"""case $* in
        -vV) printf 'host: {HOST}\\nLLVM version: 99.1.2\\n' ;;
        *sysroot*) echo "$TREE/sysroot" ;;
    esac""",
    # The program it builds is the flags it was built with.
    "bin/cargo": f"""for word; do place=$word; done
        flags=$(printf '%s' "$CARGO_ENCODED_RUSTFLAGS" | tr '\\037' '|')
        echo "cargo $flags" >> "$TREE/calls"
        mkdir -p "$place/{HOST}/release"
        echo "$flags" > "$place/{HOST}/release/pgweir"
        chmod +x "$place/{HOST}/release/pgweir" """,
    "bin/rustup": """echo "rustup $*" >> "$TREE/calls"; exit 1""",
    "script/setup": ":",
    # Three pgweirs work, each of which counts, unless the test has it otherwise; a trial counts nothing.
    ".venv/bin/python": """echo "work of $(cat "$PGWEIR_BINARY"): $*" >> "$TREE/calls"
        case $* in *--seconds*) step=trial ;; *) step=work ;; esac
        [ ! -e "$TREE/$step-fails" ] || exit 1
        [ ! -e "$TREE/$step-changes" ] || echo >> "$TREE/src/main.rs"
        [ -z "$LLVM_PROFILE_FILE" ] || for pid in 1 2 3; do
            file=$(echo "$LLVM_PROFILE_FILE" | sed "s/%p/$pid/")
            mkdir -p "${file%/*}"
            [ -e "$TREE/one-is-silent" ] && [ $pid = 3 ] || touch "$file"
        done
        echo 3""",
    TOOL: """echo "merge $(ls "$4" | tr '\\n' ' ')" >> "$TREE/calls"; echo counts > "$3" """,
}
MERGED = "merge 1.profraw 2.profraw 3.profraw "
STEPS = 5


class Tree:
    """What script/profiled looks at, and how it called others."""

    def __init__(self, place):
        # Paths may hold blanks.
        self.place = place / "a tree"
        self.calls, self.built = self.place / "calls", self.place / "target" / "profiled" / "pgweir"
        for name in [*TREE, COUNTER]:
            self.put(name, name)
        for name, text in PROGRAMS.items():
            self.put(name, f"#!/bin/sh\n{text}\n").chmod(0o755)
        shutil.copy(ROOT / "script" / "profiled", self.place / "script")

    def put(self, name, text=""):
        """A file; its path."""
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, **env):
        """The finished script, and what it called."""
        self.calls.write_text("")
        given = {key: value for key, value in os.environ.items() if key not in ("RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS")}
        env = {**given, "TREE": str(self.place), "PATH": f"{self.place / 'bin'}:/usr/bin:/bin", **env}
        done = subprocess.run([self.place / "script" / "profiled"], env=env, capture_output=True, text=True, timeout=60)
        return done, self.calls.read_text().splitlines()


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_what_it_counts_is_worked(tmp_path):
    """As a trial. The loads fail where a query does, where the console or the API does not answer, or where a pgweir does not exit by itself."""
    argv = [sys.executable, ROOT / "script" / "train.py", "--seconds", "0", "--copy-mb", "5", "--drill", "3"]
    working = subprocess.Popen(argv, cwd=tmp_path, env={**os.environ, "PGWEIR_BINARY": str(BINARY.resolve())}, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, err = working.communicate(timeout=400)
    except BaseException:
        # With all it has started.
        os.killpg(working.pid, signal.SIGKILL)
        working.wait()
        raise
    assert working.returncode == 0, err
    assert int(out) == len(err.splitlines()) == 12, err


def test_a_build_that_counts_then_one_that_knows(tree):
    done, calls = tree.run()
    assert done.returncode == 0, done.stderr
    place = tree.place / "target" / "profiled"
    counts, knows = f"-Cprofile-generate={place}/raw", f"-Cprofile-use={place}/counts.profdata"
    assert calls == [f"cargo {counts}", f"work of {counts}: script/train.py", MERGED, f"cargo {knows}",
                     f"work of {knows}: script/train.py --seconds 0 --copy-mb 5 --drill 3"]
    assert done.stdout == f"{place}/pgweir\n" and tree.built.read_text() == f"{knows}\n"


def test_flags_of_one_s_own_stay(tree):
    _, calls = tree.run(RUSTFLAGS=" -Ctarget-cpu=x  -g ")
    assert [call for call in calls if call.startswith("cargo -Ctarget-cpu=x|-g|-Cprofile-")] == [calls[0], calls[3]]
    done, calls = tree.run(CARGO_ENCODED_RUSTFLAGS="-a\037-b c")
    assert done.returncode == 0 and len(calls) == STEPS and calls[0].startswith("cargo -a|-b c|-Cprofile-generate="), calls


def test_nothing_is_built_where_nothing_has_changed(tree):
    first, _ = tree.run()
    again, calls = tree.run()
    assert (again.returncode, again.stdout, calls) == (0, first.stdout, [])


@pytest.mark.parametrize("changed", [*TREE, "bin/rustc"])
def test_a_change_builds_anew(changed, tree):
    tree.run()
    path = tree.place / changed
    path.write_text(path.read_text().replace("99.1.2", "99.1.3") + "\n")
    done, calls = tree.run()
    assert done.returncode == 0 and len(calls) == STEPS, (done.stderr, calls)


@pytest.mark.parametrize("event, steps", [("work-fails", 2), ("one-is-silent", 2), ("trial-fails", STEPS), ("trial-changes", STEPS)])
def test_what_goes_wrong_leaves_nothing_that_passes_for_done(event, steps, tree):
    """`trial-changes`: somebody edits the sources while it builds. What an earlier run has built is of other sources."""
    tree.run()
    tree.put("src/main.rs", "changed")
    tree.put(event)
    done, calls = tree.run()
    assert (done.returncode, done.stdout, len(calls)) == (1, "", steps), done.stderr
    assert not tree.built.exists()
    (tree.place / event).unlink()
    done, calls = tree.run()
    assert done.returncode == 0 and len(calls) == STEPS


def test_llvm_s_tools_must_be_of_the_compiler_s_version(tree):
    (tree.place / TOOL).unlink()
    tree.put("bin/llvm-profdata", "#!/bin/sh\necho '  LLVM version 98.7.0'\n").chmod(0o755)
    done, calls = tree.run()
    assert (done.returncode, done.stdout, calls) == (3, "", ["rustup component add llvm-tools"])
    assert "no llvm-profdata of this compiler's LLVM" in done.stderr
    own = f"#!/bin/sh\n[ $1 = merge ] || {{ echo 'Debian LLVM version 99.7.0'; exit; }}\n{PROGRAMS[TOOL]}\n"
    tree.put("bin/llvm-profdata-99", own).chmod(0o755)
    done, calls = tree.run()
    assert done.returncode == 0 and MERGED in calls


def test_the_compiler_must_be_able_to_count(tree):
    (tree.place / COUNTER).unlink()
    done, calls = tree.run()
    assert (done.returncode, done.stdout, calls) == (3, "", []) and "no library that counts" in done.stderr


# -- script/package, which ships it ------------------------------------------------------------------------------

PROGRAM = "#!/bin/sh\necho completions\n"
SHIPPING = {
    "script/profiled": f"""[ $BUILT = 0 ] || exit $BUILT
        mkdir -p target/profiled && printf '{PROGRAM}' > target/profiled/pgweir && chmod +x target/profiled/pgweir && echo target/profiled/pgweir""",
    "bin/cargo": f"""echo "cargo $*" >> "$TREE/calls"
        case $1 in
            build) mkdir -p target/release && printf '{PROGRAM}' > target/release/pgweir && chmod +x target/release/pgweir ;;
            deb) echo "$CARGO_TARGET_DIR/debian/pgweir.deb" ;;
        esac""",
    "cache/pgweir-package/cargo-deb-3.8.0/bin/cargo-deb": ":",
}


@pytest.fixture
def shop(tree):
    """A tree in which script/package builds packages, and where no static program can be had."""
    for name, text in SHIPPING.items():
        tree.put(name, f"#!/bin/sh\n{text}\n").chmod(0o755)
    tree.put("Cargo.toml", 'version = "7.8.9"\n')
    shutil.copy(ROOT / "script" / "package", tree.place / "script")
    return tree


def shipped(shop, built, *args):
    """The finished script where script/profiled ends with status `built`, and how it called cargo-deb and the build."""
    shop.calls.write_text("")
    env = {**os.environ, "TREE": str(shop.place), "PATH": f"{shop.place / 'bin'}:/usr/bin:/bin", "BUILT": str(built),
           "XDG_CACHE_HOME": str(shop.place / "cache")}
    done = subprocess.run([shop.place / "script" / "package", *args], env=env, capture_output=True, text=True, timeout=60)
    return done, [call for call in shop.calls.read_text().splitlines() if call.startswith(("cargo build", "cargo deb"))]


def test_what_is_shipped_is_built_by_a_profile(shop):
    done, calls = shipped(shop, 0)
    assert (done.returncode, done.stdout) == (0, "target/profiled/package/debian/pgweir.deb\n"), done.stderr
    assert len(calls) == 1 and calls[0].startswith("cargo deb") and calls[0].endswith("--strip --deb-version 7.8.9-1+profiled"), calls


def test_where_there_is_no_profile_the_package_has_the_plain_program(shop):
    done, calls = shipped(shop, 3)
    assert (done.returncode, done.stdout) == (0, "target/debian/pgweir.deb\n"), done.stderr
    assert [call.split()[1] for call in calls] == ["build", "deb"] and "profiled" not in calls[1]


@pytest.mark.parametrize("args", [(), ("profiled-deb",)])
def test_a_build_by_a_profile_that_fails_ships_nothing(args, shop):
    done, calls = shipped(shop, 1, *args)
    assert (done.returncode, done.stdout, calls) == (1, "", [])


def test_the_plain_package_needs_no_profile(shop):
    done, calls = shipped(shop, 1, "deb", "--deb-version", "7.8.9-2")
    assert (done.returncode, done.stdout) == (0, "target/debian/pgweir.deb\n"), done.stderr
    assert calls[1].endswith("--strip --deb-version 7.8.9-2"), calls
