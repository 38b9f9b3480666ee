"""Training: recipes, optimizer and schedule."""
