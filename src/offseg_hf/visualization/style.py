"""Colors of paper, ink and lines, and how charts look."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


BACKGROUND = (255, 255, 255)
TEXT = (32, 33, 36)
FAINT_TEXT = (95, 99, 104)
LINE = (154, 160, 166)

DPI = 100  # of charts, whose sizes are given in pixels
# Fonts for the scripts that matplotlib's own has no letters of, as systems have them.
OTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "WenQuanYi Zen Hei"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS"),
)


@contextmanager
def chart_style() -> Iterator[None]:
    """Make the charts of matplotlib in this block look alike, whatever someone's own settings are."""
    import matplotlib as mpl
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    ink, faint, line = ("#{:02x}{:02x}{:02x}".format(*color) for color in (TEXT, FAINT_TEXT, LINE))
    settings: dict[Any, Any] = {
        "font.family": ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)],
        "font.size": 9,
        "text.color": ink,
        "axes.edgecolor": line,
        "axes.labelcolor": faint,
        "xtick.color": faint,
        "ytick.color": faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": line,
        "grid.alpha": 0.3,
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "text.parse_math": False,  # a $ in a name is a $
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield
