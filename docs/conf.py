"""The documentation site: ``sphinx-build --fail-on-warning docs build/site``."""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "extensions")]

import npfp8  # noqa: E402


def repository() -> str | None:
    """Return the repository's address: the variable DOCS_REPOSITORY, or else git's ``origin``.

    A folder, or no remote at all, gives none: the pages then have no link.
    """
    address = os.environ.get("DOCS_REPOSITORY")
    if address is None:
        command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return None
        address = done.stdout.strip()
    address = re.sub(r"^git@([^:/]+):", r"https://\1/", address)
    return address.removesuffix(".git") if re.match(r"https?://", address) else None


project = "FP8-BERT in NumPy"
author = "the FP8-BERT in NumPy authors"
version = release = npfp8.__version__
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
    "modules",
    "copied",
    "page_names",
]
exclude_patterns = ["byte/**", "data/**", "extensions/**", "**/.ipynb_checkpoints"]
default_role = "py:obj"

# Markdown
myst_enable_extensions = ["attrs_block", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # a notebook's outputs are committed, and compared by a test
nb_merge_streams = True

# Reference
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"

# Pages
html_theme = "pydata_sphinx_theme"
html_title = project
html_favicon = "byte/favicon.svg"
html_static_path = ["site.css", "site.js"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_search_scorer = str(HERE / "scorer.js")
html_math_renderer = "mathml"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"
html_theme_options = {
    "logo": {"text": project},
    "header_links_before_dropdown": 9,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher", "navbar-icon-links"],
    "footer_start": [],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if address := repository():
    html_theme_options["icon_links"] = [
        {"name": "Repository", "url": address, "icon": "fa-solid fa-code-branch"}
    ]
html_context = {"default_mode": "auto"}
# Pages without a section of their own need no sidebar.
ALONE = ("index", "quick-start", "results", "performance", "faq", "glossary", "genindex", "search")
html_sidebars = {page: [] for page in ALONE}
