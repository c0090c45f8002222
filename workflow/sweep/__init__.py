"""Many runs from one file: points (`points`), their studies (`study`), what drives them (`driver`); sweeps, suites, ablations.

Knows nothing of how a run works: runs are processes of their own, and everything about them is read from their files.
"""
