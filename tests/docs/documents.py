"""The documents of the repository, and what is in them: blocks of code, links, headings."""

import re
import shlex
from pathlib import Path


ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# The template of model cards is none: tests/hub/test_cards.py has the cards.
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *PAGES,
    *sorted((ROOT / "model_cards" / "results").rglob("*.md")),
    ROOT / "tests" / "parity" / "README.md",
]
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
END = ";"


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def blocks(document: Path, language: str) -> list[str]:
    return [code for kind, code in FENCED.findall(document.read_text(encoding="utf-8")) if kind == language]


def prose(document: Path) -> str:
    return FENCED.sub("", document.read_text(encoding="utf-8"))


def command_lines(document: Path) -> list[list[str]]:
    """The words of each command of the bash blocks, without variables before it and without where its output goes."""
    found = []
    for block in blocks(document, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(re.sub(r" >+ \S+", "", line), comments=True), END]:
                if word not in ("|", "&&", END):
                    words.append(word)
                    continue
                while words and re.match(r"[A-Z_]+=", words[0]):
                    del words[0]
                if words:
                    found.append(words)
                words = []
    return found


def inline_commands(document: Path) -> list[list[str]]:
    """The words of what stands between backticks and begins with the name of our command."""
    return [shlex.split(" ".join(code.split())) for code in re.findall(r"`(offseg [^`]+)`", prose(document))]


def links(document: Path) -> list[str]:
    text = re.sub(r"`[^`]*`", "", prose(document))
    return re.findall(r"\]\(([^()\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, flags=re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """What links to a part of a document end with, as GitHub and the site (mkdocs.yml) both make it of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
