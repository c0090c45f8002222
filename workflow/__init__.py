"""workflow: fine-tune T5-family models from a JSON file of examples, evaluate them honestly, and use them."""

__version__ = "0.1.0"
