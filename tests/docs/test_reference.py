"""The reference has every public name, and every command."""

import re

import typer

import offseg_hf
from offseg_hf.cli import app
from tests.docs.documents import ROOT


def test_every_public_name_is_there():
    """`make docs` fails where a name has nothing to show."""
    page = (ROOT / "docs" / "reference.md").read_text()
    names = re.findall(r"^::: offseg_hf\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(names) == sorted(offseg_hf.__all__)


def test_every_command_is_there():
    page = (ROOT / "docs" / "commands.md").read_text()
    names = re.findall(r"^\| `offseg ([\w ]+)`", page, flags=re.MULTILINE)
    assert sorted(names) == sorted(names_of(typer.main.get_command(app)))


def names_of(group: typer.core.TyperGroup, before: str = "") -> list[str]:
    """Of all commands of a group, those of its groups included."""
    names = []
    for name in group.list_commands(typer.Context(group)):
        command = group.commands[name]
        names += names_of(command, f"{before}{name} ") if hasattr(command, "commands") else [before + name]
    return names
