"""Files, texts and errors: what is not about segmentation."""
