"""The one place where parts become a run: settings in, a run folder or predictions out.

Knows what each part is for, and nothing of how it works: `task` (model, data, header), `train`, `predict`.
"""
