"""Tries a static pgweir: it needs no library, checks a configuration, and carries a session. Usage: static.py PROGRAM"""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "postgres"))
PROGRAM = pathlib.Path(sys.argv[1]).resolve()
os.environ["PGWEIR_BINARY"] = str(PROGRAM)

from harness import Weir  # noqa: E402
from harness.cluster import template  # noqa: E402


def out(*argv):
    """What a program prints, wherever."""
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.stdout + done.stderr


def main():
    libraries, kind = out("ldd", str(PROGRAM)), out("file", "-b", str(PROGRAM))
    assert "statically linked" in libraries or "not a dynamic executable" in libraries, libraries
    assert "static-pie linked" in kind or "statically linked" in kind, kind
    cluster = template()
    try:
        cluster.start()
        # By name: the resolver is what a static program may lack.
        weir = Weir(cluster, upstream={"address": f"localhost:{cluster.port}"})
        try:
            weir.write()
            done = weir.cli("check")
            assert done.returncode == 0, done.stdout + done.stderr
            weir.start()
            with weir.connect("web") as link, link.cursor() as cursor:
                cursor.execute("select generate_series(1, 1000)")
                assert len(cursor.fetchall()) == 1000
        finally:
            weir.close()
    finally:
        cluster.close()
    print(f"{PROGRAM.name}: {kind.split(',')[0]}, {'static-pie' if 'static-pie' in kind else 'static'}, "
          f"{PROGRAM.stat().st_size / 1e6:.1f} MB; check and a session: ok", file=sys.stderr)


if __name__ == "__main__":
    main()
