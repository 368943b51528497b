"""Checks of what pgweir is deployed with, as far as they go without a registry: see script/check-deploy."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "postgres"))

import files  # noqa: E402
import live  # noqa: E402
from compose import Compose  # noqa: E402
from image import Image  # noqa: E402
from report import Report  # noqa: E402


def main():
    """The exit status."""
    binary = pathlib.Path(os.environ.get("PGWEIR_BINARY") or ROOT / "target" / "release" / "pgweir")
    if not binary.exists():
        print(f"{binary} is not built: cargo build --release", file=sys.stderr)
        return 2
    report = Report()
    compose, image = Compose(ROOT), Image(ROOT, binary)
    for name, check in [*compose.checks(), *image.checks(compose), *files.checks(ROOT, binary)]:
        report.check(name, check)
    report.check("compose: make-secrets.sh", live.secrets(compose, image))
    report.check("compose, played here: roles, pgweir in its image's tree, Odoo's logins and lanes, stop", live.played(compose, image))
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
