"""Jobs: one process tree each, run here or sent to a scheduler, from scripts that are written and shown first.

Knows nothing of what a job does.
"""
