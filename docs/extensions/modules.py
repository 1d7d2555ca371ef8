"""The directive ``module-reference``: a module's public names, with a table of them at the top."""

import re
import sys
from importlib import import_module
from inspect import getdoc, isroutine, signature

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective


def comment(package: str, name: str) -> list[str]:
    """Return the ``#:`` comment of a constant, from the module of the package that assigns it."""
    for place in [place for place in sys.modules if place.split(".")[0] == package]:
        try:
            docs = ModuleAnalyzer.for_module(place).find_attr_docs()
        except ExtensionError:
            continue
        if ("", name) in docs:
            return docs["", name]
    return []


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring, or its first paragraph if it has none."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s", paragraph)[0].rstrip(":")


class ModuleReference(SphinxDirective):
    """Document the names in ``__all__`` of a module, or those that the content lists."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Write the table and autodoc's directives, and parse them."""
        place = self.arguments[0]
        module = import_module(place)
        table = [".. list-table::", "   :class: names", ""]
        entries = []
        for name in " ".join(self.content).split() or module.__all__:
            thing = getattr(module, name)
            full = f"{place}.{name}"
            if isinstance(thing, type) or isroutine(thing):
                kind = "function" if isroutine(thing) else "class"
                if kind == "class" and issubclass(thing, BaseException):
                    kind = "exception"
                text = getdoc(thing) or ""
                options = [] if kind == "function" else ["   :members:"]
                entries += [f".. auto{kind}:: {full}", *options, ""]
            else:
                lines = comment(place.split(".")[0], name)
                text = "\n".join(lines)
                entries += [f".. py:data:: {name}", "", *(f"   {line}" for line in lines), ""]
            table += [f"   * - :py:obj:`{name} <{full}>`", f"     - {first_sentence(text)}"]
        head = [f".. py:currentmodule:: {place}", ""]
        return self.parse_text_to_nodes("\n".join([*head, *table, "", *entries]))


class Annotation(str):
    """An annotation as the source has it, which a signature shows without quotes."""

    __repr__ = str.__str__


def written_signature(
    app: Sphinx, what: str, name: str, thing: object, options: object, arguments: str, result: str
) -> tuple[str, str] | None:
    """Return a signature with the names of types that the source has, not what they stand for."""
    if what not in {"function", "method", "class"} or arguments is None:
        return None
    found = signature(thing)
    kept = list(found.parameters.values())
    if what == "method" and kept and kept[0].name in {"self", "cls"}:
        kept = kept[1:]
    shown = [
        one.replace(annotation=Annotation(written)) if isinstance(written, str) else one
        for one in kept
        for written in [getattr(one.annotation, "__forward_arg__", one.annotation)]
    ]
    text = str(found.replace(parameters=shown, return_annotation=found.empty))
    back = "" if what == "class" or found.return_annotation is found.empty else result
    if isinstance(found.return_annotation, str) and what != "class":
        back = found.return_annotation
    return text, back


def is_skipped(
    app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object
) -> bool | None:
    """Leave a named tuple's fields to its docstring."""
    return True if (getdoc(thing) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("module-reference", ModuleReference)
    app.connect("autodoc-skip-member", is_skipped)
    app.connect("autodoc-process-signature", written_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
