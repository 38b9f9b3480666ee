"""Offset learning for models that exist."""
