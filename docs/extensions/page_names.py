"""Index entries for the names of pages: a search for "hopper" or "kit" finds that page first."""

from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class PageName(SphinxTransform):
    """Enter a guide's page into the index under its file's name."""

    default_priority = 840  # before SphinxDomains, which collects the entries

    def apply(self) -> None:
        """Add the entry, except on the home page and on pages in folders."""
        name = self.env.current_document.docname
        if "/" not in name and name != self.config.root_doc:
            entry = ("single", name.replace("-", " "), "", "main", None)
            self.document.insert(0, addnodes.index(entries=[entry]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_transform(PageName)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
