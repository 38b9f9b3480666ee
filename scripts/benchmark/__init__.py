"""A package, as other packages bring modules of this name."""
