"""How the documentation is built: ``make docs``.

The pages are Markdown that is to be read in the repository as well. So links that lead out of ``docs/`` are
as they have to be there, and are turned here: to the pages that stand for those files, or into plain text.
"""

import re
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent

project = "Flask-Pika"
author = "The Flask-Pika authors"
copyright = author  # noqa: A001 - Sphinx's name for it
release = metadata.version("Flask-Pika")
version = ".".join(release.split(".")[:2])

extensions = ["myst_parser", "pallets_sphinx_themes", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
smartquotes = False
#: Pages that a run of something makes: the index has them where they are there.
_MADE = ("benchmarks", "reliability")

myst_heading_anchors = 4
myst_ref_domains = ["std", "py"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

# Nothing is asked of other sites at a build, so what is theirs has no link.
nitpick_ignore_regex = [
    ("py:.*", r"(pika|flask|werkzeug|blinker|concurrent|logging|collections|contextlib)\..*"),
    ("py:class", "Flask|Blueprint|BasicProperties|BlockingConnection"),
]

html_theme = "flask"
html_title = f"Flask-Pika {release}"
html_static_path = ["_static"]
html_css_files = ["flask-pika.css"]
html_show_sourcelink = False
html_sidebars = {"**": ["localtoc.html", "relations.html", "searchbox.html"]}

#: Files elsewhere that have a page here. In the repository, that page is a link to the file, and no more.
_PAGES = {
    "changelog": HERE.parent / "CHANGELOG.md",
    "contributing": HERE.parent / "CONTRIBUTING.md",
    "example-orders": HERE.parent / "examples" / "orders" / "README.md",
    "index": HERE.parent / "README.md",
}


def _read(_app, page, source):
    """Take the file that a page is about, and turn the links that lead out of ``docs/``."""
    file = HERE / f"{page}.md"
    if page in _PAGES and page != "index":
        file = _PAGES[page]
        source[0] = file.read_text()
    for made in _MADE if page == "index" else ():
        if not (HERE / f"{made}.md").exists():
            source[0] = source[0].replace(f"\n{made}\n", "\n")
    source[0] = re.sub(r"\[([^\]\n]*)\]\(([^)\s]+)\)", lambda link: _turned(link, file), source[0])


def _turned(link, file):
    text, (target, _, place) = link[1], link[2].partition("#")
    if not target or ":" in target:
        return link[0]
    path = (file.parent / target).resolve()
    if not path.exists():
        raise ValueError(f"{file.name} links to {target}, which does not exist")
    for page, stands_for in _PAGES.items():
        if path in (stands_for, stands_for.parent) and path != HERE.parent:
            path = HERE / f"{page}.md"
    if path.is_relative_to(HERE):
        return f"[{text}]({path.relative_to(HERE)}{'#' * bool(place)}{place})"
    name = f"`{path.relative_to(HERE.parent)}`"
    return name if text.strip("`") == path.name else f"{text} ({name})"


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _read)
    # Their own files may be as they were, and what they stand for another.
    app.connect("env-get-outdated", lambda *_: list(_PAGES))
