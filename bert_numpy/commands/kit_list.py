"""The commands ``bert-numpy golden list`` and ``info``, which describe a kit."""

from __future__ import annotations

import argparse
import hashlib
from typing import Any

from bert_numpy.checkpoints.hub import EMBEDDED, kit_folder
from bert_numpy.commands.options import AddCommand
from bert_numpy.commands.parser import Parser, one_of
from bert_numpy.commands.report import Outcome, columns, counted, print_lines, titled
from bert_numpy.errors import BertNumpyError
from bert_numpy.kit.manifest import LEVELS, MANIFEST, Kit, open_kit
from npfp8.names import suggestion

__all__ = ["add_kit", "add_kit_list_commands", "add_operation", "chosen_operations"]


def add_kit(parser: Parser) -> None:
    """Add the argument that names a kit."""
    parser.add_argument(
        "kit",
        metavar="KIT",
        values="model",
        help=f"a kit's folder, or {EMBEDDED} for the kit that comes with the package",
    )


def add_operation(parser: Parser, description: str) -> None:
    """Add the option that chooses operations of a kit."""
    parser.add_argument(
        "--operation", action="append", metavar="NAME", section="input", help=description
    )


def chosen_operations(kit: Kit, arguments: argparse.Namespace) -> list[str]:
    """Return the operations that were asked for, each once; raise unless the kit has them."""
    known = list(dict.fromkeys(tensor.operation for tensor in kit.tensors.values()))
    for operation in arguments.operation or ():
        if not operation:
            raise BertNumpyError("--operation: expected a value, found an empty one")
        if operation not in known:
            raise BertNumpyError(
                f"--operation: expected an operation of the kit: {', '.join(known)}; found "
                f"{operation!r}{suggestion(operation, known)}"
            )
    return list(dict.fromkeys(arguments.operation or ()))


def add_kit_list_commands(command: AddCommand) -> None:
    """Add the commands."""
    tensors = command(
        "list",
        _list,
        "List the tensors that a backend computes for a kit.",
        EMBEDDED,
        f"{EMBEDDED} --operation sum --level operator",
    )
    add_kit(tensors)
    add_operation(
        tensors, "only tensors of this operation, repeated for several; 'given' lists the inputs"
    )
    tensors.add_argument(
        "--level",
        action="append",
        type=one_of(LEVELS),
        choices=LEVELS,
        metavar="LEVEL",
        section="input",
        help=f"only tensors of this level, repeated for several: {', '.join(LEVELS)}",
    )
    add_kit(command("info", _info, "Describe a kit.", EMBEDDED, "kit --json -"))


def _list(arguments: argparse.Namespace) -> Outcome:
    kit = open_kit(arguments.kit)
    operations = chosen_operations(kit, arguments)
    levels = arguments.level or LEVELS
    entries = [
        _entry(kit, name)
        for name, tensor in kit.tensors.items()
        if tensor.level in levels
        and (tensor.operation in operations if operations else tensor.operation != "given")
    ]
    rows = [
        [
            entry["name"],
            entry["operation"],
            ", ".join(f"{role} {_shape(shape)}" for role, shape in entry["inputs"].items()),
            f"{entry['fmt'] or entry['kind']} {_shape(entry['shape'])}",
        ]
        for entry in entries
    ]
    lines = columns([["tensor", "operation", "inputs", "result"], *rows])
    total = f"{counted(len(entries), 'tensor')} of {len(kit.tensors):,}"
    return Outcome(
        {"kit": str(arguments.kit), "tensors": entries}, lambda: print_lines(*lines, total)
    )


def _entry(kit: Kit, name: str) -> dict[str, Any]:
    """Describe a tensor: the shapes are those that the operation sees."""
    tensor = kit.tensors[name]
    return {
        "name": name,
        "level": tensor.level,
        "operation": tensor.operation,
        "inputs": {role: list(x.shape) for role, x in kit.inputs(name).items()},
        "attributes": dict(tensor.attributes),
        "kind": tensor.kind,
        "fmt": tensor.fmt,
        "shape": list(kit.arrays[name].shape),
    }


def _shape(shape: list[int]) -> str:
    """Write a shape: "8x256", or "scalar".

    >>> _shape([8, 256]), _shape([])
    ('8x256', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def _info(arguments: argparse.Namespace) -> Outcome:
    kit = open_kit(arguments.kit)
    folder = kit_folder(arguments.kit)
    levels: dict[str, dict[str, int]] = {}
    for (level, operation), names in kit.operations().items():
        levels.setdefault(level, {})[operation] = len(names)
    computed = sum(sum(counts.values()) for counts in levels.values())
    header = kit.header
    model, recipe = header.get("model"), header.get("recipe")
    inputs = {
        name.rpartition("/")[0]: int(x.shape[-1])
        for name, x in kit.arrays.items()
        if name.endswith("/input_ids")
    }
    report: dict[str, Any] = {
        "kit": str(arguments.kit),
        "folder": str(folder),
        "model": model,
        "recipe": recipe,
        "scales": header.get("scales"),
        "tensors": len(kit.tensors),
        "computed": computed,
        "given": len(kit.tensors) - computed,
        "levels": levels,
        "elements": sum(x.size for x in kit.arrays.values()),
        "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        "inputs": inputs,
        "sha256": hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
    }
    rows = [("kit", str(arguments.kit)), ("folder", report["folder"])]
    if isinstance(model, dict):
        rows.append(("model", str(model.get("name"))))
    if isinstance(recipe, dict):
        rows.append(("recipe", str(recipe.get("name"))))
    if inputs:
        lengths = ", ".join(f"{name} of {count} tokens" for name, count in inputs.items())
        rows.append(("inputs", lengths))
    if report["scales"]:
        rows.append(("scales", str(report["scales"])))
    rows.append(
        ("tensors", f"{len(kit.tensors):,}: {computed:,} computed, {report['given']:,} given")
    )
    for level, counts in levels.items():
        parts = ", ".join(f"{operation} {count}" for operation, count in counts.items())
        rows.append((level, f"{sum(counts.values())}: {parts}"))
    rows.append(("size", f"{report['elements']:,} elements, {report['bytes']:,} bytes"))
    rows.append(("SHA-256", f"{report['sha256']} of {MANIFEST}"))
    whole = ("kit", "folder", "SHA-256")
    return Outcome(report, lambda: print_lines(*titled(rows, whole=whole)))
