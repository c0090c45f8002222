"""From a data name to padded micro-batches: sources, examples, checks, features, plan, packing.

Knows nothing of models' weights, ranks' communication or training.
"""
