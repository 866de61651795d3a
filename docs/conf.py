"""Settings of the documentation site, which `scripts/docs` builds.

The pages are Markdown and link to each other, so that they can be read without the site. The lists in index.md are the
site's navigation.
"""

import importlib.metadata
import re

from sphinx.application import Sphinx

project = "vaebench"
release = importlib.metadata.version("vaebench")
copyright = "2026, the vaebench developers"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["notebooks", "results/notes"]  # index.md may link to them: they are files to download
nitpicky = True

myst_heading_anchors = 6
highlight_language = "none"
html_theme = "furo"
html_title = f"vaebench {release}"
html_copy_source = False
html_theme_options = {"footer_icons": []}


def add_navigation(app: Sphinx, page: str, text: list[str]) -> None:
    """Append to index.md a hidden table of contents for each section, with the section's links to pages."""
    if page != "index":
        return
    for section in text[0].split("\n## ")[1:]:
        links = re.findall(r"^- \[(.+?)\]\((.+?)\.md\)", section, re.MULTILINE)
        entries = "\n".join(f"{words} <{target}>" for words, target in links)
        text[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {section.splitlines()[0]}\n\n{entries}\n```\n"


def setup(app: Sphinx) -> None:
    """Connect the functions above to the build."""
    app.connect("source-read", add_navigation)
