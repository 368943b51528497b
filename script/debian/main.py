"""Checks of the Debian package, on a Debian machine that boots: see script/check-package."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "postgres"))
sys.path.insert(1, str(ROOT / "script" / "deploy"))

import life  # noqa: E402
from machine import Machine  # noqa: E402
from package import Package, place  # noqa: E402
from report import Report, Skip  # noqa: E402

KINDS = ["deb", "profiled-deb"]


def skipped(why):
    """A check that cannot be made."""
    raise why
    yield  # noqa: unreachable - makes this a generator


def on_a_machine(report, package):
    """The package's life, step by step: a step that fails may take later ones with it."""
    with Machine() as machine:
        newer = package.newer()
        machine.version = package.version
        for name, step in [
            ("apt install: nothing started, nothing open", life.installed(machine, package.deb)),
            ("completions in bash, fish and zsh", life.completed(machine)),
            ("pgweir init over the shipped file", life.configured(machine)),
            ("systemctl enable --now: ready, sandboxed, sees what it needs of other users' processes", life.started(machine)),
            ("the weekly drill's timer", life.rehearsed(machine)),
            ("services for reports and imports: each in its lane", life.served(machine)),
            ("systemctl reload, and SIGHUP", life.reloaded(machine)),
            ("upgrade with a client in a transaction; the configuration stays", life.upgraded(machine, newer)),
            ("kill -9: back by itself", life.killed(machine)),
            ("socket activation: nobody refused over restarts", life.socket_activated(machine)),
            ("apt remove: configuration and state stay", life.removed(machine)),
            ("installed again: as it was", life.came_back(machine, newer)),
            ("apt purge: nothing stays but the account", life.purged(machine)),
        ]:
            report.check(f"Debian: {name}", step)


def main():
    """The exit status."""
    kind = sys.argv[1] if len(sys.argv) > 1 else KINDS[0]
    if kind not in KINDS:
        print(f"script/check-package: {' or '.join(KINDS)}", file=sys.stderr)
        return 2
    report = Report()
    package = Package(ROOT, place(ROOT), kind)
    report.check(f"package: script/package {kind}", package.built())
    report.check("package: contents, man pages", package.contents())
    report.check("package: the pages' links", package.linked())
    report.check("package: lintian", package.judged())
    try:
        package.need()
        on_a_machine(report, package)
    except Skip as why:
        report.check("Debian: install, start, reload, upgrade, remove, purge", skipped(why))
    return report.end("package")


if __name__ == "__main__":
    sys.exit(main())
