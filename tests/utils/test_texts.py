"""Names and texts from outside, and as messages show them."""

import os
from pathlib import Path

import pytest
from PIL import UnidentifiedImageError

from offseg_hf.utils.texts import expand, is_utf8, printable, read_text, reading_error


def test_expand(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(expand(path)) for path in ("~/a", Path("~/a"), "a/~", "~nobody0/a")] == [
        "/home/me/a",
        "/home/me/a",
        "a/~",
        "~nobody0/a",  # of a user that does not exist
    ]


def test_printable():
    name = os.fsdecode("é".encode() + b"\xe9")
    assert printable(name) == r"é\xe9" and not is_utf8(name) and is_utf8("é")
    assert printable("a\nb\tc\ud800") == r"a\nb\tc\ud800"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_read_text(tmp_path, encoding):
    (tmp_path / "list.txt").write_bytes("é\r\n".encode(encoding))
    assert read_text(tmp_path / "list.txt") == "é\r\n"


def test_text_of_no_encoding(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xe9")
    assert read_text(tmp_path / "list.txt", "surrogateescape") == os.fsdecode(b"\xe9")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "list.txt")


@pytest.mark.parametrize(
    "error, text",
    [
        (UnidentifiedImageError("cannot identify <_io.BytesIO at 0x7f>"), "no picture, or of a format that Pillow"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "No such file or directory"),
        (OSError("image file is truncated\n(3 bytes)"), "image file is truncated (3 bytes)"),
        (SyntaxError("broken PNG file"), "SyntaxError: broken PNG file"),
        (ValueError(), "ValueError: "),
    ],
)
def test_reading_error(error, text):
    assert reading_error(error).startswith(text)
