from offseg_hf.zoo.presets import PRESETS
from tests.cli.running import offseg


def test_presets():
    result = offseg("presets", COLUMNS="80")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    rows = {words[0]: words for words in map(str.split, lines) if words and words[0] in PRESETS}
    assert list(rows) == list(PRESETS)
    assert rows["offseg-b-cityscapes"][1:] == "80.5 12.88 M 147.6 19 2048x1024 in 1024/768".split()
    assert rows["segnext-t-offset-ade"][-1] == "2048x512"
    table = lines[: next(place for place, line in enumerate(lines) if line.startswith("mIoU: "))]
    assert max(map(len, table)) <= 80, "wider than a terminal"
