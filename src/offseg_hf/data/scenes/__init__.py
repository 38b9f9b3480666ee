"""Generated street scenes with exact label maps: data without any download."""
