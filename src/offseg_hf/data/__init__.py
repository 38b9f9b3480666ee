"""Label sets, generated scenes, and (to come) data sets and transforms."""
