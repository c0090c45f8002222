"""The training loop and what it stands on: objective, optimizer, backend (DeepSpeed), checkpoints.

Knows nothing of evaluation or of where data comes from; `recipe` joins the two.
"""
