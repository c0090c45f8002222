"""Checkpoints and tokenizers: loading, saving, label words, and models made from scratch.

Knows nothing of data files or training.
"""
