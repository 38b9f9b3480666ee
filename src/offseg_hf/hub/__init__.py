"""To the Hub: model cards, and what publishes the zoo and one's own models there."""
