"""Names and texts as they come from outside (`~`, bytes that are no UTF-8, any editor), and as messages show them."""

import codecs
import os
from pathlib import Path


LISTED_LINES = 12


def expand(path: str | os.PathLike) -> Path:
    """Return a path with `~` as the home folder, which shells leave as it is in `key=~/data`."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises RuntimeError for a user that does not exist


def is_utf8(name: str) -> bool:
    """Return whether a name, as the operating system gives it to Python, is text: Arrow's tables take nothing else."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Return a text, such as one with names of files, in one line that any terminal shows."""
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def one_line(error: BaseException) -> str:
    """Return all that an error says, in one line; the beginning of a list without end, its type if it says nothing."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:LISTED_LINES]) or type(error).__name__
    return text if len(lines) <= LISTED_LINES else f"{text} ... and {len(lines) - LISTED_LINES} lines more"


def _escape(character: str) -> str:
    byte = ord(character) - 0xDC00  # as Python keeps a byte of a name that is no UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()


def read_text(path: Path, errors: str = "strict") -> str:
    """Return the text in a file: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Args:
        path: The file.
        errors: What becomes of bytes that are neither, as for `bytes.decode`; "surrogateescape" makes of them what the
            operating system makes of such names of files.
    """
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes it
        return raw.decode("utf-16", errors="strict" if errors == "strict" else "replace")
    return raw.removeprefix(codecs.BOM_UTF8).decode(errors=errors)


def reading_error(error: Exception) -> str:
    """Return why a file is no picture that can be read, in one line, without the file's name."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its text is the address of a buffer
        return "no picture, or of a format that Pillow does not know"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text if text and isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"
