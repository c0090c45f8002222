"""One function a command: its arguments, checked, then its recipe.

Knows nothing of how a recipe does its work; heavy imports stand inside the functions.
"""
