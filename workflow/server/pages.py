"""Pages that load nothing from anywhere and run no script but their own; their browser sees to it.

Knows nothing of what the pages show.
"""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.responses import HTMLResponse

INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def html_response(page: str) -> HTMLResponse:
    """The response with a page."""
    headers = {
        "content-security-policy": content_policy(page),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return HTMLResponse(page, headers=headers)


def content_policy(page: str) -> str:
    """The policy under which the page's own scripts and styles work, and nothing that were slipped into it."""
    found: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in INLINE.findall(page):
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        found[kind].append(f"'sha256-{base64.b64encode(digest).decode('ascii')}'")
    return POLICY.format(**{kind: " ".join(hashes) or "'none'" for kind, hashes in found.items()})
