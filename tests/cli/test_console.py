"""What all commands share, in this process."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from typer.testing import CliRunner

from offseg_hf.cli.console import command, stdout


def invoke(function, *arguments: str, **settings):
    """The outcome of a command that does what `function` does."""
    commands = typer.Typer(pretty_exceptions_enable=False)
    commands.callback()(lambda: None)
    command(commands)(function)
    return CliRunner().invoke(commands, [function.__name__, *arguments], env={"COLUMNS": "80"}, **settings)


def test_reasons_are_told_whole():
    """Also those of several lines, and those that no one has foreseen."""
    errors = {
        "a: 1\nb: 2": ValueError("a: 1\nb: 2"),
        "RuntimeError: first second (OFFSEG_DEBUG=1 shows where)": RuntimeError("first\n  second"),
        "KeyError: 'stage5' (OFFSEG_DEBUG=1 shows where)": KeyError("stage5"),
        "AssertionError: AssertionError (OFFSEG_DEBUG=1 shows where)": AssertionError(),
        "ValueError: ValueError (OFFSEG_DEBUG=1 shows where)": ValueError(),
    }
    for expected, error in errors.items():

        def fail(raised=error) -> None:
            raise raised

        def failing() -> None:
            fail()

        result = invoke(failing)
        assert (result.exit_code, result.stderr) == (1, f"error: {expected}\n")


def test_tables_in_a_pipe_are_whole():
    """Whatever COLUMNS says: nobody sees where such a line ends."""

    def show() -> None:
        table = Table("class", "value")
        table.add_row("a name of a class that is longer than a terminal is wide " * 3, "of the same length " * 5)
        stdout.print(table)

    text = invoke(show).stdout
    assert "…" not in text and "a name of a class that is longer than a terminal is wide " * 3 in text


def test_a_tilde_is_home_wherever_it_stands(tmp_path, monkeypatch):
    """No shell makes that of `--output=~/x`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []

    def take(
        source: str,
        rest: Annotated[list[str], typer.Argument()],
        output: Annotated[Path, typer.Option()],
        name: Annotated[str, typer.Option()] = "a~b",
    ) -> None:
        seen.extend([source, *rest, output, name])

    result = invoke(take, "~/photos", "~/a.jpg", "b.jpg", "--output=~/out")
    assert result.exit_code == 0, result.stderr
    assert seen == [f"{tmp_path}/photos", f"{tmp_path}/a.jpg", "b.jpg", tmp_path / "out", "a~b"]
