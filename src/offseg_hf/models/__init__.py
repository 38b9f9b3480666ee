"""The models, their configurations and image processors: the one room whose files go to the Hub."""
