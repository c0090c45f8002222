"""Runs under the mount as an HTTP service.

Knows nothing of training. Modules are imported where they are used, so that `workflow serve -h` loads no torch.
"""
