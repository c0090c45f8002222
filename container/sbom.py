"""What an image holds, as CycloneDX 1.6 JSON on stdout: Debian's packages and Python's distributions, with versions and licences.

Knows nothing of the product. Runs within the image's build: `python3 sbom.py NAME VERSION > FILE`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from urllib.parse import quote


def main() -> None:
    """Prints the bill of materials."""
    name, version = sys.argv[1:]
    components = sorted([*debian(), *python()], key=lambda component: component["bom-ref"])
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": name, "name": name, "version": version}},
        "components": components,
    }
    json.dump(document, sys.stdout, indent=1)


def debian() -> list[dict[str, object]]:
    """Debian's packages; none where the base image is another system's."""
    try:
        form = "${Package}\t${Version}\t${Architecture}\n"
        done = subprocess.run(["dpkg-query", "-W", "-f", form], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [
        component(name, version, f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}")
        for name, version, architecture in rows
    ]


def python() -> list[dict[str, object]]:
    """The distributions of this interpreter, each once."""
    found = {distribution.metadata["Name"].lower().replace("_", "-"): distribution for distribution in distributions()}
    return [
        {
            **component(name, distribution.version, f"pkg:pypi/{quote(name)}@{quote(distribution.version)}"),
            **licences(distribution),
        }
        for name, distribution in found.items()
    ]


def component(name: str, version: str, purl: str) -> dict[str, object]:
    """One part, by its package URL."""
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def licences(distribution: Distribution) -> dict[str, object]:
    """What the distribution says of its licence, where that is short enough to be a name."""
    text = distribution.metadata.get("License-Expression") or distribution.metadata.get("License") or ""
    return {"licenses": [{"license": {"name": text}}]} if 0 < len(text) < 80 and "\n" not in text else {}


if __name__ == "__main__":
    main()
