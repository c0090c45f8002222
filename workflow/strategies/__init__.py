"""Fine-tuning strategies: one file each, listed in `listing`, composed in `composed`.

A strategy may change a run's numbers; it knows nothing of ranks, ZeRO stages, files or the other strategies.
"""
