"""What runs and studies came to: tables, comparisons, leaderboard files, and results of several places brought together.

Knows nothing of training or jobs: everything is read from the files that runs and studies leave.
"""
