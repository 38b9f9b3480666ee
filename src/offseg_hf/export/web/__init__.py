"""A page that runs an exported model in a browser, and a folder of it for transformers.js."""
