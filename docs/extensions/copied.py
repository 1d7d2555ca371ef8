"""Parts of the site that are made elsewhere: the notebooks, and the page of a byte."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.transforms import SphinxTransform


def copy_notebooks(app: Sphinx, config: Config) -> None:
    """Copy the repository's notebooks into the source, with links that hold there."""
    target = Path(app.srcdir) / "notebooks"
    target.mkdir(exist_ok=True)
    texts = {
        notebook.name: re.sub(r"\]\(\.\./docs/", "](../", notebook.read_text(encoding="utf-8"))
        for notebook in sorted((Path(app.srcdir).parent / "notebooks").glob("*.ipynb"))
    }
    for old in target.glob("*.ipynb"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        path = target / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


class FigureTexts(SphinxTransform):
    """Describe a notebook's figure, for screen readers, by the text below that says what to see."""

    default_priority = 840

    def apply(self) -> None:
        """Go through the page from its end, so that a figure meets the text below it."""
        text = ""
        for node in reversed(list(self.document.findall())):
            if isinstance(node, nodes.paragraph) and node.astext().startswith("What to see. "):
                text = " ".join(node.astext().removeprefix("What to see. ").split())
            elif isinstance(node, nodes.image) and not node.get("alt"):
                node["alt"] = text


def copy_byte(app: Sphinx, exception: Exception | None) -> None:
    """Copy the static page ``byte/`` as it is, with the archive of the packages that it proves."""
    source, target = Path(app.srcdir) / "byte", Path(app.outdir) / "byte"
    if exception is None and app.builder.format == "html" and (source / "index.html").exists():
        shutil.copytree(source, target, dirs_exist_ok=True)
        script = Path(app.srcdir).parent / "scripts" / "make_byte_page.py"
        subprocess.run([sys.executable, script, "--archive", "--folder", target], check=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Copy the notebooks before the pages are looked for, and the page at the end."""
    app.connect("config-inited", copy_notebooks)
    app.add_transform(FigureTexts)
    app.connect("build-finished", copy_byte)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
