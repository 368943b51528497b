"""The documentation as it is run: pages, their blocks and commands, and outputs that are compared by their shape."""

import dataclasses
import fnmatch
import functools
import os
import re
import subprocess
import tomllib

from .weir import ROOT

# Blocks that are commands, and those that are none. A block of another language, or of none, is a fault of the page.
COMMANDS = ("sh", "console", "sql")
OTHERS = ("toml", "yaml", "text", "ini", "json", "nginx", "html", "markdown")
# "1": what differs is written into the page; "all": every output, so that the figures of a page are of one run.
UPDATE = os.environ.get("DOCS_UPDATE")

FENCE = re.compile(r"^( *)```+(\S*)\s*$")
SCENE = re.compile(r"^\s*<!-- scene: ([a-z0-9 _-]+) -->\s*$")
STATUS = re.compile(r"#.*exit status (\d+)")


@dataclasses.dataclass
class Scene:
    """A stage direction: what happens before the next command, which a reader does not see."""
    name: str
    line: int


@dataclasses.dataclass
class Command:
    """One command of a page; `output` is None where the page shows none. Lines count from 1."""
    text: str
    lang: str
    line: int
    output: list | None = None
    output_line: int = 0
    indent: str = ""

    @property
    def status(self):
        """The exit status the page promises."""
        found = STATUS.search(self.text)
        return int(found[1]) if found else 0


@dataclasses.dataclass
class Block:
    """A fenced block."""
    lang: str
    line: int
    indent: str
    lines: list


def pages():
    """Every page, README.md first."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def parts(path):
    """Scenes and blocks of a page, in their order."""
    found, block = [], None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if block is not None:
            if fence and not fence[2]:
                found.append(block)
                block = None
            else:
                block.lines.append(line.removeprefix(block.indent))
        elif fence:
            block = Block(fence[2], number, fence[1], [])
        elif scene := SCENE.match(line):
            found.append(Scene(scene[1], number))
    assert block is None, f"{path.name}:{block.line}: the block is not closed"
    return found


def script(path):
    """Scenes and commands of a page, in their order."""
    for part in parts(path):
        if isinstance(part, Scene):
            yield part
        elif part.lang == "console":
            yield from session(part)
        elif part.lang == "sh":
            yield from lines_of(part)
        elif part.lang == "sql":
            yield Command("\n".join(part.lines), "sql", part.line + 1)


def commands(page, glob="*"):
    """The texts of `steps`, comments left out."""
    return [uncommented(step.text) for step in steps(page, glob)]


def steps(page, glob="*"):
    """Commands of a page of the repository that are like `glob` (their comments left out), for what runs them elsewhere."""
    found = [part for part in script(ROOT / page) if isinstance(part, Command) and fnmatch.fnmatchcase(uncommented(part.text), glob)]
    assert found, f"{page} has no command like {glob!r}"
    return found


def uncommented(text):
    """A command without the comment behind it."""
    return re.sub(r"\s+# .*", "", text)


def session(block):
    """Commands of a console block: `$ ` begins one, `> ` goes on with it, everything else is what it prints."""
    command = None
    for number, line in enumerate(block.lines, block.line + 1):
        if line.startswith("$ "):
            if command:
                yield command
            command = Command(line[2:], "console", number, [], number + 1, block.indent)
        elif command and not command.output and line.startswith("> "):
            command.text += "\n" + line[2:]
            command.output_line = number + 1
        else:
            assert command, f"line {number}: a console block begins with a command"
            command.output.append(line)
    if command:
        yield command


def lines_of(block):
    """Commands of a sh block: as many lines each as bash needs."""
    held, at = [], 0
    for number, line in enumerate(block.lines, block.line + 1):
        if not held:
            at = number
        held.append(line)
        text = "\n".join(held)
        if not text.strip() or (not line.endswith("\\") and complete(text)):
            if text.strip() and not all(row.lstrip().startswith("#") for row in held):
                yield Command(text, "sh", at)
            held = []
    assert not held, f"line {at}: no whole command: {held}"


@functools.cache
def complete(text):
    """Whether bash would not wait for more."""
    done = subprocess.run(["bash", "-n"], input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=10)
    return done.returncode == 0 and "here-document" not in done.stdout


# -- who else runs a command -------------------------------------------------------------------------------------

@dataclasses.dataclass
class Elsewhere:
    """Commands that no page's run can run, and what runs them instead."""
    page: str
    command: str
    by: str
    why: str


def elsewhere():
    """The list of them."""
    with open(ROOT / "tests" / "postgres" / "docs_elsewhere.toml", "rb") as file:
        return [Elsewhere(**row) for row in tomllib.load(file)["command"]]


def found_elsewhere(rows, page, text):
    """The row that speaks for a command, if any."""
    return next((row for row in rows if fnmatch.fnmatch(page, row.page) and fnmatch.fnmatchcase(uncommented(text), row.command)), None)


# -- outputs by their shape --------------------------------------------------------------------------------------

TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d(?::\d\d)?)?")
# In a line of the timeline: known or not.
USAGE = re.compile(r"<time> +(?:-|\d+\.\d %)(?= )")
WHO = re.compile(r"pgweir cli \([\w-]+\)")
NUMBER = re.compile(r"(?<![A-Za-z_])-?\d+(?:[.,]\d+)*")
SPAN = re.compile(r"#\s?(?:ms|s|min|h|d)\b(?: #\s?(?:ms|s|min|h|d)\b)*")
BAR = re.compile(r"[█▉▊▋▌▍▎▏░]+")
RULE = re.compile(r"-{3,}")


def shape(line):
    """A line without its figures, times and widths."""
    line = USAGE.sub("<time> <usage>", WHO.sub("pgweir cli", TIME.sub("<time>", line)))
    line = NUMBER.sub("#", line)
    line = SPAN.sub("<span>", line)
    line = RULE.sub("---", BAR.sub("<bar>", line))
    return " ".join(line.split())


def line_fits(pattern, line):
    """Whether a line of a page, with `…` for any text, is a line that was printed; of both the shape."""
    return re.fullmatch(".*".join(re.escape(piece.strip()) for piece in pattern.split("…")), line) is not None


def differs(shown, real):
    """None if what a page shows is what was printed, else the line of the page that is not. A line `…` stands for any lines, `…` in a
    line for any text."""
    shown = [shape(line) for line in shown if line.strip()]
    real = [shape(line) for line in real if line.strip()]
    if shown == ["…"] and real:
        return "nothing of what it prints is shown"

    # Positions of the real output that all lines up to here can have led to.
    reached, furthest = {0}, 0
    for at, pattern in enumerate(shown):
        if pattern == "…":
            reached = set(range(min(reached), len(real) + 1))
        else:
            reached = {n + 1 for n in reached if n < len(real) and line_fits(pattern, real[n])}
        if not reached:
            return f"{pattern!r} is not printed (there or at all)"
        furthest = at
    if len(real) not in reached:
        return f"more is printed than the page shows, behind {shown[furthest] if shown else 'nothing'!r}"
    return None


def filled(shown, real):
    """What a page shows, with the figures, times and widths of what was printed, where that fits; `…` stays."""
    if not shown:
        return []
    line, rest = shown[0], shown[1:]
    if line.strip() == "…":
        at = next(n for n in range(len(real) + 1) if differs(rest, real[n:]) is None) if rest else len(real)
        return [line, *filled(rest, real[at:])]
    if not line.strip():
        return [line, *filled(rest, real)]
    while not real[0].strip():
        real = real[1:]
    return [renewed(line, real[0]) if "…" in line else real[0], *filled(rest, real[1:])]


def renewed(line, real):
    """A line with `…` in it, the rest of it as it was printed; as it stands where that cannot be told."""
    def pattern(piece):
        """Of words and figures; blanks may be more."""
        words = (re.sub(r"\d+(?:[.,]\d+)*", lambda _: r"\d+(?:[.,]\d+)*", re.escape(word).replace(r"\.", ".")) for word in piece.split(" ") if word)
        return r" *" + r" +".join(words) + r" *"

    found = re.fullmatch("(?:.*?)".join(f"({pattern(piece)})" for piece in line.split("…")), real)
    return "…".join(found.groups()) if found else line


def fault(step, text, updates):
    """None if the command printed what its page shows, else what is wrong; where pages are updated, that is put into them."""
    real = text.rstrip("\n").splitlines()
    found = differs(step.output, real) if step.output is not None else None
    if found and UPDATE:
        updates.put(step, real)
        return None
    if UPDATE == "all" and step.output:
        updates.put(step, filled(step.output, real))
    return found and f"{found}\n-- printed:\n{text}-- the page:\n" + "\n".join(step.output)


class Updates:
    """Outputs of a page that are to be replaced by real ones."""

    def __init__(self, path):
        self.path = path
        self.all = []

    def put(self, command, real):
        """Remembers what was printed."""
        self.all.append((command, real))

    def write(self):
        """Writes the page anew, from its end to its beginning, so that lines keep their numbers."""
        lines = self.path.read_text().splitlines()
        for command, real in sorted(self.all, key=lambda pair: -pair[0].output_line):
            at = command.output_line - 1
            lines[at:at + len(command.output)] = [(command.indent + line).rstrip() for line in real]
        self.path.write_text("\n".join(lines) + "\n")
