"""README as an index of packages shows it, without the files beside it: its links lead to the repository.

The address is `Source` of `project.urls`. While there is none, a link's text is left, and of a picture what it shows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|mailto:)([^)]+)\)")
_RELEASE = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?")


class ReadmeHook(MetadataHookInterface):
    """Makes the description of the package."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set ``readme``."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source", "")
        text = described(text, source, metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def described(readme: str, source: str, version: str) -> str:
    """Make links absolute: to the files of the release's tag, or of the newest commit."""
    commit = f"v{version}" if _RELEASE.fullmatch(version) else "HEAD"

    def lead(link: re.Match[str]) -> str:
        picture, text, path = link.groups()
        if not source:
            return text
        kind = "raw" if picture else "blob"
        return f"{picture}[{text}]({source.rstrip('/')}/{kind}/{commit}/{path})"

    return _RELATIVE.sub(lead, readme)
