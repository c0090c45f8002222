"""Generation and raw label scores from a loaded model, for evaluation, batch jobs and the server alike.

Knows nothing of data files, runs or HTTP.
"""
