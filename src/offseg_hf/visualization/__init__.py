"""Pictures of label maps, over their photo or alone, and of the curves of trainings."""

from offseg_hf.visualization.label_maps import (
    Palette,
    class_shares,
    draw_frame,
    draw_legend,
    draw_overlay,
    label_image,
    palette_for,
)
from offseg_hf.visualization.plots import draw_plots, training_plots
from offseg_hf.visualization.style import BACKGROUND, FAINT_TEXT, TEXT


__all__ = [
    "BACKGROUND",
    "FAINT_TEXT",
    "TEXT",
    "Palette",
    "class_shares",
    "draw_frame",
    "draw_legend",
    "draw_overlay",
    "draw_plots",
    "label_image",
    "palette_for",
    "training_plots",
]
