"""Reads a Dockerfile and a .dockerignore: as much of the format as ours uses, and an error for the rest."""

import dataclasses
import json
import re
import shlex
import shutil


@dataclasses.dataclass
class Instruction:
    """One instruction, its continued lines joined."""

    word: str
    text: str

    def argv(self):
        """Of the exec form, the words; otherwise a shell's."""
        text = self.text.strip()
        return json.loads(text) if text.startswith("[") else ["/bin/sh", "-c", text]


@dataclasses.dataclass
class Stage:
    """What follows a FROM."""

    image: str
    name: str
    instructions: list

    def all(self, word):
        """The instructions of that word, in order."""
        return [i for i in self.instructions if i.word == word]

    def last(self, word):
        """The one that counts, or none."""
        return (self.all(word) or [None])[-1]


def instructions(text):
    """Comments gone, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield Instruction(word.upper(), rest.strip())


def stages(text):
    """The stages in order, with the ARGs before the first FROM put in."""
    arguments, out = {}, []
    for instruction in instructions(text):
        if instruction.word == "FROM":
            image, *rest = instruction.text.split()
            image = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], image)
            out.append(Stage(image, rest[1] if len(rest) == 2 and rest[0].upper() == "AS" else "", []))
        elif out:
            out[-1].instructions.append(instruction)
        elif instruction.word == "ARG":
            name, _, value = instruction.text.partition("=")
            arguments[name] = value
        else:
            raise ValueError(f"{instruction.word} before FROM")
    return out


def copy_words(instruction):
    """Of a COPY: the stage it copies from (or none), its sources, its destination, its owner (or none)."""
    words = shlex.split(instruction.text)
    options = [word for word in words if word.startswith("--")]
    *sources, destination = [word for word in words if not word.startswith("--")]
    known = dict(option.removeprefix("--").split("=", 1) for option in options)
    if unknown := set(known) - {"from", "chown"}:
        raise ValueError(f"COPY --{unknown.pop()}: not known to this check")
    return known.get("from"), sources, destination, known.get("chown")


def admitted(root):
    """Paths that .dockerignore lets into the build context. Only the form `*`, then `!PATH` is known."""
    lines = [line.strip() for line in (root / ".dockerignore").read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines[:1] != ["*"] or not all(re.fullmatch(r"![\w./-]+", line) for line in lines[1:]):
        raise ValueError(".dockerignore: not of the form `*`, then `!PATH`: teach this check")
    return [line[1:] for line in lines[1:]]


def make_context(root, place):
    """Copies what the build sees to `place`; modification times are kept, so that cargo knows what it knows."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name in admitted(root):
        source = root / name
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place / name)
        else:
            shutil.copy2(source, place / name)
