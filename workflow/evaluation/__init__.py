"""How good a model is: generations for the eval rows, metrics with intervals, prediction files, reports.

Knows nothing of training; it is given an engine and a function for losses.
"""
