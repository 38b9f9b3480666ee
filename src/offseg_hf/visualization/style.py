"""Colours of paper, ink and lines."""

BACKGROUND = (255, 255, 255)
TEXT = (32, 33, 36)
FAINT_TEXT = (95, 99, 104)
LINE = (154, 160, 166)
FAINT_LINE = (232, 234, 237)
