"""From a photo to its label map, with a loaded model."""
