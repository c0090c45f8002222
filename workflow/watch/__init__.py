"""What keeps an eye on a run beside its main thread: signals that ask it to stop, and the other ranks' signs of life.

Knows nothing of models, data or training.
"""
