"""script/try-compose: base images, `docker-compose build`, `up`, the checks of running.py, `down -v`. Runs in namespaces of its own."""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

from compose import Compose
from engine import Engine
from report import Report
from running import Running

from harness import docs  # noqa: E402 - running has made it known

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGES = ROOT / "script/deploy/images"
SERVICES = "pgweir-trial/services"
HEALTHY_S = 240


def main():
    """The exit status."""
    options = argparse.ArgumentParser()
    options.add_argument("--compile", action="store_true")
    options.add_argument("--keep", action="store_true")
    options = options.parse_args()
    binary = pathlib.Path(os.environ.get("PGWEIR_BINARY") or ROOT / "target/release/pgweir")
    if not options.compile and not binary.exists():
        print(f"{binary} is not built: cargo build --release, or script/try-compose --compile", file=sys.stderr)
        return 2
    report, compose, engine = Report(), Compose(ROOT), Engine()
    try:
        tell("base images, made here", bases(engine, compose, binary, options.compile))
        tell("docker-compose build", build(engine, options.compile))
        running = Running(engine, compose)
        tell("docker-compose up: all healthy", up(engine, running))
        for name, check in running.checks():
            report.check(name, check)
        report.check("docker-compose down -v leaves nothing", down(engine))
        if options.keep:
            print(f"kept: DOCKER_HOST={engine.host}", flush=True)
            subprocess.run(["bash"], env=engine.env, cwd=ROOT)
    except Exception as error:  # noqa: BLE001 - told, with what the services said
        print(f"FAIL  {error}")
        print(engine.compose("logs", "--no-color", "--tail", "20", check=False).stdout[-8000:])
        return 1
    finally:
        engine.close()
    return report.end()


def tell(what, lines):
    """Runs a step and prints what it has to say, with the time it took."""
    started = time.monotonic()
    lines = list(lines)
    print(f"step  {what} ({time.monotonic() - started:.0f} s)", flush=True)
    for line in lines:
        print("      " + line, flush=True)


def bases(engine, compose, binary, compiled):
    """Images under the names that the compose file and the Dockerfile use; what stands for what."""
    engine.docker("import", str(ROOT / "target/try-compose/services.tar"), SERVICES)
    names = sorted({service["image"] for service in compose.services.values()} - {"pgweir:local"})
    for name in names:
        kind = re.split(r"[:/]", name.rpartition("/")[2])[0]
        engine.docker("build", "--quiet", "--tag", name, str(IMAGES / kind))
        yield f"{name}: {said(IMAGES / kind / 'Dockerfile')}"
    rust = rust_name()
    with tempfile.TemporaryDirectory(prefix="pgweir-rust-", dir=engine.place) as place:
        context = pathlib.Path(place)
        shutil.copytree(IMAGES / "rust", context, dirs_exist_ok=True)
        if compiled:
            (context / "Dockerfile.compile").rename(context / "Dockerfile")
            toolchain(context)
        else:
            shutil.copy(binary, context / "pgweir")
        engine.docker("build", "--quiet", "--tag", rust, str(context))
        yield f"{rust}: {said(context / 'Dockerfile')}"


def said(dockerfile):
    """The comment it begins with."""
    lines = dockerfile.read_text().splitlines()
    return " ".join(line.removeprefix("# ") for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def rust_name():
    """The base image of the Dockerfile's build stage."""
    from dockerfile import stages
    return stages((ROOT / "Dockerfile").read_text())[0].image


def toolchain(context):
    """This machine's Rust, and the crates it has downloaded."""
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    shutil.copytree(sysroot, context / "toolchain", symlinks=True, ignore=shutil.ignore_patterns("doc", "share"))
    registry = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo") / "registry"
    shutil.copytree(registry, context / "registry", symlinks=True, ignore=shutil.ignore_patterns("src"))


def build(engine, compiled):
    """The Dockerfile, by the compose file: with the classic builder and, where it takes no compilation, with BuildKit, which newer
    engines have instead."""
    for kit in ("0",) if compiled else ("0", "1"):
        started = time.monotonic()
        engine.compose("build", "pgweir", timeout=1800, env={**engine.env, "DOCKER_BUILDKIT": kit})
        size = int(engine.docker("image", "inspect", "--format", "{{.Size}}", "pgweir:local").stdout)
        yield f"{'BuildKit' if kit == '1' else 'classic builder'}: pgweir:local has {size / 1e6:.1f} MB, {time.monotonic() - started:.0f} s"


def up(engine, running):
    """All there and healthy, those that end by themselves done."""
    for command in docs.commands("docs/compose.md", "docker compose up -d"):
        engine.typed(command)
    running.settled(HEALTHY_S)
    yield running.summary()


def down(engine):
    """Containers, networks, volumes."""
    for command in docs.commands("docs/compose.md", "docker compose down -v"):
        engine.typed(command)
    for what, command in {"containers": ["ps", "--all", "--quiet"], "volumes": ["volume", "ls", "--quiet"],
                          "networks": ["network", "ls", "--quiet", "--filter", "type=custom"]}.items():
        if left := engine.docker(*command).stdout.split():
            yield f"{what} are left: {left}"


if __name__ == "__main__":
    sys.exit(main())
