"""The documentation site: `make docs`. Its pages are Markdown that reads as well in the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the docstrings of these sources, not of what is installed

project = "loopsafe_db"
author = "The loopsafe_db authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "changelog.d"]

html_theme = "furo"  # has its fonts, icons and search with it: nothing is fetched from another host
html_title = "loopsafe_db"
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_dark_style = "github-dark"
html_favicon = "_static/favicon.svg"
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
html_use_index = html_domain_indices = False  # the search finds more
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0f6b5c", "color-brand-content": "#0f6b5c"},
    "dark_css_variables": {"color-brand-primary": "#4fd1b8", "color-brand-content": "#4fd1b8"},
}

myst_heading_anchors = 4
copybutton_prompt_text = "$ "

default_role = "py:obj"  # `Database` in a docstring is a link
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
add_module_names = False
toc_object_entries_show_parents = "hide"

RELEASES = "<!-- towncrier release notes start -->\n"
ANCHOR = re.compile(r'^<a id="([a-z0-9-]+)"></a>$', re.MULTILINE)
SECTION = re.compile(r"^\*\*(?P<title>.+)\*\*\n\n(?P<entries>(?:- .*\n|  .*\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^- \[(?P<title>.+?)\]\((?P<page>\S+?)\.md\)", re.MULTILINE)
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?!https?:)(?P<target>[^)]+)\)")


def setup(app: Sphinx) -> None:
    """Have pages made fit for the site while they are read."""
    app.connect("source-read", read_page)
    app.connect("missing-reference", find_by_its_end)


def read_page(_: Sphinx, name: str, source: list[str]) -> None:
    """Put README and the navigation on the home page, and what comes next into the changelog."""
    if name == "index":
        source[0] = readme() + navigation(source[0])
    elif name == "explanation/decisions/index":
        source[0] += toctree("0*", ":glob:")
    elif name == "changelog":
        source[0] = source[0].replace(RELEASES, RELEASES + coming_release())
    source[0] = ANCHOR.sub(r"(\1)=", source[0])


def find_by_its_end(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element
) -> Element | None:
    """Lead `Options` in a docstring to ``loopsafe_db.options.Options``, where only one class ends so."""
    name = node["reftarget"]
    objects = env.domains.python_domain.objects
    found = [full for full in objects if full.endswith(f".{name}")]
    if node.get("refdomain") != "py" or not name[:1].isupper() or len(found) != 1:
        return None
    place = objects[found[0]]
    return make_refnode(app.builder, node["refdoc"], place.docname, place.node_id, text, found[0])


def readme() -> str:
    """README, its links as seen from docs/; of what is no page of the site only the text is left."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return LINK.sub(_seen_from_docs, text.partition("\n## More\n")[0])


def _seen_from_docs(link: re.Match[str]) -> str:
    page = link["target"].removeprefix("docs/")
    return link["text"] if page == link["target"] else f"[{link['text']}]({page})"


def navigation(index: str) -> str:
    """What docs/index.md lists is the navigation, too."""
    return "".join(
        toctree(_pages(section["entries"]), f":caption: {section['title']}")
        for section in SECTION.finditer(index)
    )


def toctree(pages: str, option: str) -> str:
    """What puts pages into the navigation, and shows nothing where it stands."""
    return f"\n\n```{{toctree}}\n:hidden:\n{option}\n\n{pages}\n```\n"


def _pages(entries: str) -> str:
    return "\n".join(
        f"{entry['title'].replace('`', '')} <{entry['page']}>" for entry in ENTRY.finditer(entries)
    )


def coming_release() -> str:
    """What towncrier makes of the fragments."""
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "Unreleased"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
