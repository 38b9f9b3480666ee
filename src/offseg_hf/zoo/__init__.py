"""The families and the presets: what there is of each, once."""
