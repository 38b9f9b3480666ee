"""Label sets, data sets in their folders or on the Hub, augmentation, and generated scenes."""
