"""Settings: their types and texts (`settings`), their cascade (`cascade`) and their flags (`flags`).

Knows nothing of data, models or training; imports no torch.
"""
