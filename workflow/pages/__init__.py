"""Pages for people about runs: the report of one run or several, and the card of a checkpoint.

Knows nothing of training: it reads files that runs leave, and writes text.
"""
