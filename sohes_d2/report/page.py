"""Html template of a report: one self-contained file with its style and script."""

from __future__ import annotations

import base64
import hashlib
import html
from importlib.resources import files
from string import Template

# In loading order; they share one scope.
SCRIPTS = (
    "runs.js",
    "contour.js",
    "forest.js",
    "filters.js",
    "stage.js",
    "thumbnails.js",
    "tree.js",
    "gallery.js",
    "dialogs.js",
    "download.js",
    "app.js",
)
_DATA_MARK = "<!-- data -->"


def page_parts(title: str) -> tuple[str, str]:
    """Return the parts of the page before and after its data, which consists of :func:`data_element` strings.

    The content security policy allows only this style and script, by their checksums: no network and no other script,
    even if a name from a file were interpreted as markup.
    """
    style = _asset("style.css")
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"
    for name, text, closing in (("style.css", style, "</style"), ("scripts", script, "</script")):
        if closing in text.lower():
            raise ValueError(f"{name} holds {closing!r}, which would end its element")
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {_checksum(style)}",
            f"script-src {_checksum(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    page = Template(_asset("page.html")).substitute(policy=policy, title=html.escape(title), style=style, script=script)
    before, _, after = page.partition(_DATA_MARK)
    return before, after


def data_element(element_id: str, content: str) -> str:
    """An element with json from :func:`packing.embed_json`, which browsers do not execute."""
    return f'<script type="application/json" id="{element_id}">{content}</script>\n'


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _checksum(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
