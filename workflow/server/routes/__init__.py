"""The routes, one module a family of clients.

Knows nothing of engines: each route turns a body into what is wanted, and results into its own shape of answer.
"""
