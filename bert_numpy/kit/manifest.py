"""A kit's files: ``manifest.json``, which explains each tensor, and ``tensors.safetensors``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_numpy.checkpoints.hub import EMBEDDED, kit_folder
from bert_numpy.errors import BertNumpyError, key_error, read_json, reading, shown, writing
from bert_numpy.kit.block_operations import rules_in_words
from bert_numpy.kit.checks import check_entry
from bert_numpy.kit.operations import OPERATIONS, RULES
from npfp8.arguments import loaded, path_of, require, require_function, require_iterable
from npfp8.arrays import Array
from npfp8.bfloat16 import from_bits, to_bits
from npfp8.files import created_folder, replaced_file
from npfp8.formats import FORMATS, FloatFormat, Format
from npfp8.names import suggestion
from npfp8.storage import Bfloat16Array, Fp8Array, load_file, save_file

__all__ = [
    "FORMAT",
    "LEVELS",
    "MANIFEST",
    "PROFILES",
    "TENSORS",
    "Case",
    "Kit",
    "Reference",
    "Tensor",
    "apply_view",
    "manifest_of",
    "open_kit",
    "sha256",
    "write_kit",
]


#: The manifest's format and its version.
FORMAT = "bert-numpy kit 1"

#: The levels of a kit, from the smallest part to the whole.
LEVELS = ("codec", "operator", "layer", "model")

#: The tolerances of a comparison.
PROFILES = ("bit-exact", "accumulate-order", "statistical")

#: The kinds of a tensor's elements.
KINDS = ("bfloat16", "float32", "codes", "bytes", "integers")

MANIFEST, TENSORS = "manifest.json", "tensors.safetensors"


class Reference(NamedTuple):
    """A tensor that is an input of an operation, and the view of it.

    Examples
    --------
    >>> from bert_numpy.kit import open_kit
    >>> open_kit().tensors["codec/E4M3FN/values"].inputs["codes"]
    Reference(tensor='codec/E4M3FN/codes', view='')
    """

    tensor: str
    view: str = ""


@dataclass(frozen=True)
class Tensor:
    """The description of a kit's tensor: its operation and its elements.

    Attributes
    ----------
    name : str
        A path, ``LEVEL/CASE/SITE/WHAT``.
    level : str
        One of :data:`LEVELS`.
    operation : str
        A key of :data:`bert_numpy.kit.operations.RULES`.
    inputs : mapping of str to Reference
        The operation's inputs by role.
    attributes : mapping
        The operation's attributes.
    kind : str
        One of :data:`KINDS`. bfloat16 numbers are float32 arrays in memory.
    fmt : str
        The format of codes; "" for numbers.

    Examples
    --------
    >>> from bert_numpy.kit import open_kit
    >>> tensor = open_kit().tensors["codec/E4M3FN/values"]
    >>> tensor.level, tensor.operation, tensor.kind
    ('codec', 'decode', 'float32')
    """

    name: str
    level: str
    operation: str
    inputs: Mapping[str, Reference] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "float32"
    fmt: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Kit:
    """Golden tensors in the order of the data flow, and their values.

    Attributes
    ----------
    header : mapping
        The manifest without its tensors: model, recipe, arithmetic.
    tensors : mapping of str to Tensor
        The tensors by name, each after its inputs.
    arrays : mapping of str to ndarray
        The values: float32 (for bfloat16, too), codes (uint8, int8), or int64.

    Examples
    --------
    >>> from bert_numpy.kit import open_kit
    >>> kit = open_kit()
    >>> sorted({tensor.level for tensor in kit.tensors.values()})
    ['codec', 'layer', 'model', 'operator']
    """

    header: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    arrays: Mapping[str, Array] = field(repr=False)

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for (level, _), names in self.operations().items():
            counts[level] = counts.get(level, 0) + len(names)
        items = (self.header.get("model"), self.header.get("recipe"))
        origins = [shown(str(item["name"]))[:40] for item in items if isinstance(item, Mapping)]
        origin = f" of {', '.join(origins)}" if origins else ""
        levels = ", ".join(f"{level} {count}" for level, count in counts.items())
        return f"<Kit{origin}: {len(self.tensors)} tensors, computed: {levels or 'none'}>"

    def operations(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """List the names of the computed tensors by level and operation.

        Levels are in their order, and operations in that of the data flow.

        Examples
        --------
        >>> from bert_numpy.kit import open_kit
        >>> kit = open_kit()
        >>> [pair for pair in kit.operations() if pair[0] == "codec"]
        [('codec', 'decode'), ('codec', 'encode')]
        """
        found: dict[tuple[str, str], list[str]] = {}
        for name, tensor in self.tensors.items():
            if tensor.operation != "given":
                found.setdefault((tensor.level, tensor.operation), []).append(name)
        order = sorted(found, key=lambda pair: LEVELS.index(pair[0]))
        return {pair: tuple(found[pair]) for pair in order}

    def inputs(self, name: str, values: Callable[[str], Array] | None = None) -> dict[str, Array]:
        """Return the inputs of a tensor's operation by role, in their views.

        Examples
        --------
        >>> from bert_numpy.kit import open_kit
        >>> kit = open_kit()
        >>> {role: x.shape for role, x in kit.inputs("codec/E4M3FN/values").items()}
        {'codes': (256,)}
        """
        self._require_tensor("name", name)
        require_function("values", values, "a function from names to arrays", optional=True)
        value = values or self.arrays.__getitem__
        return {
            role: apply_view(value(reference.tensor), reference.view)
            for role, reference in self.tensors[name].inputs.items()
        }

    def sources(self, names: Iterable[str], known: Callable[[str], bool]) -> set[str]:
        """Find everything that some tensors are computed from, back to known tensors (excluded).

        Examples
        --------
        >>> from bert_numpy.kit import open_kit
        >>> kit = open_kit()
        >>> kit.sources(["codec/E4M3FN/values"], known=lambda name: False)
        {'codec/E4M3FN/codes'}
        """
        require_iterable("names", names, "names of tensors")
        require_function("known", known, "a function of a name")
        found: set[str] = set()
        waiting = list(names)
        for name in waiting:
            self._require_tensor("names", name)
        while waiting:  # not by recursion: a model's data flow is deeper than Python's stack
            for source, _ in self.tensors[waiting.pop()].inputs.values():
                if source not in found and not known(source):
                    found.add(source)
                    waiting.append(source)
        return found

    def cases(self, operation: str | None = None, level: str | None = None) -> Iterator[Case]:
        """Yield the tensors to compute, each with its inputs and the expected result.

        Parameters
        ----------
        operation : str, optional
            Only tensors that this operation makes; by default those of all operations.
        level : str, optional
            Only tensors of this level.

        Raises
        ------
        BertNumpyError
            If there is no such operation, or no such level.

        Examples
        --------
        >>> from bert_numpy.kit import open_kit
        >>> kit = open_kit()
        >>> next(kit.cases("decode", "codec"))
        <Case codec/E4M3FN/values: codes (256,) -> (256,)>
        >>> len(list(kit.cases("decode", "codec")))
        15
        """
        for argument, value, known in (
            ("operation", operation, ("given", *OPERATIONS)),
            ("level", level, LEVELS),
        ):
            require(argument, value, (str, type(None)), f"the name of one of many {argument}s")
            if value is not None and value not in known:
                raise BertNumpyError(
                    f"{argument}: expected one of {', '.join(known)}, found {value!r}"
                    f"{suggestion(value, known)}"
                )
        return (
            self.case(name)
            for name, tensor in self.tensors.items()
            if (tensor.operation == operation if operation else tensor.operation != "given")
            and level in (None, tensor.level)
        )

    def case(self, name: str) -> Case:
        """Return one tensor with its inputs and the expected result.

        Examples
        --------
        >>> from bert_numpy.kit import open_kit
        >>> open_kit().case("codec/E4M3FN/values").operation
        'decode'
        """
        inputs, tensor = self.inputs(name), self.tensors[name]
        return Case(
            name, inputs, tensor.attributes, self.arrays[name], tensor.operation, tensor.level
        )

    def _require_tensor(self, argument: str, name: object) -> None:
        require(argument, name, str, "the name of a tensor")
        if name not in self.tensors:
            nearest = suggestion(str(name), self.tensors)
            raise BertNumpyError(
                f"{argument}: expected the name of a tensor of the kit, found {name!r}{nearest}"
            )


class Case(NamedTuple):
    """One tensor to compute: its name, its operation's inputs and attributes, and the result.

    ``operation`` and ``level`` are the tensor's.

    Examples
    --------
    >>> from bert_numpy.kit import open_kit
    >>> case = next(open_kit().cases("decode"))
    >>> case.name, case.expected.shape
    ('codec/E4M3FN/values', (256,))
    """

    name: str
    inputs: dict[str, Array]
    attributes: Mapping[str, Any]
    expected: Array
    operation: str = ""
    level: str = ""

    def __repr__(self) -> str:
        inputs = ", ".join(f"{role} {x.shape}" for role, x in self.inputs.items())
        return f"<Case {self.name}: {inputs} -> {self.expected.shape}>"


def apply_view(x: Array, view: str) -> Array:
    """Apply a view to an array; see ``docs/kit.md``.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.kit.manifest import apply_view
    >>> apply_view(np.ones((2, 3)), "transposed").shape
    (3, 2)
    """
    require("x", x, np.ndarray, "an array")
    require("view", view, str, "the name of a view")
    name, _, number = view.partition(":")
    if name not in VIEWS:
        raise BertNumpyError(f"view: expected one of {', '.join(VIEWS[1:])} or '', found {view!r}")
    if name == "":
        return x
    if name == "transposed":
        return x.swapaxes(-1, -2) if x.ndim > 1 else x
    if name == "first_row":
        return x[:1]
    if name in ("columns", "rows"):
        start, stop = map(int, number.split(":"))
        axis = -1 if name == "columns" else -2
        if not 0 <= start < stop <= x.shape[axis]:
            raise ValueError(f"no {name} {start} to {stop}")
        return x[..., start:stop] if name == "columns" else x[..., start:stop, :]
    if name == "merge_heads":
        return x[0].swapaxes(0, 1).reshape(x.shape[2], -1)
    heads = x.reshape(1, x.shape[0], int(number), -1).swapaxes(1, 2)
    return heads.swapaxes(-1, -2) if name == "split_heads_transposed" else heads


VIEWS = (
    "",
    "transposed",
    "first_row",
    "merge_heads",
    "split_heads",
    "split_heads_transposed",
    "columns",
    "rows",
)


def sha256(tensor: Tensor, x: Array) -> str:
    """Hash a tensor's bytes as stored: row by row, little-endian, bfloat16 in two bytes.

    Examples
    --------
    >>> from bert_numpy.kit.manifest import open_kit, sha256
    >>> kit = open_kit()
    >>> name = "codec/E4M3FN/values"
    >>> len(sha256(kit.tensors[name], kit.arrays[name]))
    64
    """
    require("tensor", tensor, Tensor, "a tensor of a kit")
    require("x", x, np.ndarray, "an array")
    stored = to_bits(x) if tensor.kind == "bfloat16" else x
    return hashlib.sha256(stored.astype(stored.dtype.newbyteorder("<")).tobytes()).hexdigest()


def manifest_of(kit: Kit) -> dict[str, Any]:
    """Make the manifest as a JSON object.

    Examples
    --------
    >>> from bert_numpy.kit.manifest import manifest_of, open_kit
    >>> manifest_of(open_kit())["format"]
    'bert-numpy kit 1'
    """
    require("kit", kit, Kit, "a kit, as open_kit returns it")
    used = sorted({tensor.operation for tensor in kit.tensors.values()})
    entries = []
    for name, tensor in kit.tensors.items():
        entry: dict[str, Any] = {
            "name": name,
            "level": tensor.level,
            "operation": tensor.operation,
            "inputs": {
                role: [*reference] if reference.view else reference.tensor
                for role, reference in tensor.inputs.items()
            },
            "attributes": dict(tensor.attributes),
            "kind": tensor.kind,
            "fmt": tensor.fmt,
            "shape": list(kit.arrays[name].shape),
            "sha256": sha256(tensor, kit.arrays[name]),
        }
        entries.append({key: value for key, value in entry.items() if value not in ({}, "")})
    return {
        "format": FORMAT,
        **kit.header,
        "operations": {name: dict(zip(("rule", "see"), RULES[name], strict=True)) for name in used},
        **rules_in_words(tensor.attributes for tensor in kit.tensors.values()),
        "tensors": entries,
    }


def write_kit(kit: Kit, folder: str | Path) -> None:
    """Write a kit to a new folder, atomically; the same kit gives the same bytes.

    Raises
    ------
    BertNumpyError
        If the folder exists and is not empty, or cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> from bert_numpy.kit.manifest import open_kit, write_kit
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_kit(open_kit(), os.path.join(folder, "kit"))
    ...     sorted(os.listdir(os.path.join(folder, "kit")))
    ['manifest.json', 'tensors.safetensors']
    """
    require("kit", kit, Kit, "a kit, as open_kit returns it")
    folder = path_of("folder", folder)
    stored: dict[str, Any] = {}
    for name, tensor in kit.tensors.items():
        x = kit.arrays[name]
        fmt = FORMATS.get(tensor.fmt)
        if tensor.kind == "bfloat16":
            stored[name] = Bfloat16Array(to_bits(x))
        elif isinstance(fmt, FloatFormat) and str(fmt) in ("E4M3FN", "E5M2", "E8M0FNU"):
            stored[name] = Fp8Array(x, fmt)
        else:
            stored[name] = x
    # One line per tensor: it is readable, and a diff shows what changed.
    manifest = manifest_of(kit)
    entries = ",\n".join(json.dumps(entry) for entry in manifest.pop("tensors"))
    head = json.dumps(manifest, indent=1)[:-2]
    text = f'{head},\n "tensors": [\n{entries}\n ]\n}}\n'
    with writing(folder), created_folder(folder) as temporary:
        save_file(stored, temporary / TENSORS)
        with replaced_file(temporary / MANIFEST) as file:
            file.write(text.encode())


def as_kit(kit: Kit | str | Path, argument: str = "kit") -> Kit:
    """Return a kit that is given as such, or by the folder or name that :func:`open_kit` takes.

    Raises
    ------
    TypeError
        If it is neither.
    BertNumpyError
        As :func:`open_kit`.

    Examples
    --------
    >>> from bert_numpy.kit.manifest import as_kit, open_kit
    >>> kit = open_kit()
    >>> as_kit(kit) is kit
    True
    """
    return loaded(argument, kit, Kit, open_kit, "a kit, or its folder or name")


def open_kit(folder: str | Path = EMBEDDED) -> Kit:
    """Read a kit, and check all of it against its manifest.

    Parameters
    ----------
    folder : str or Path
        A kit's folder; ``bert-tiny-sst2``, the default, is the kit that comes with
        the package, unless there is a folder of that name.

    Raises
    ------
    BertNumpyError
        If a file is missing or damaged, or the manifest does not follow
        ``docs/kit.md``. The message names the tensor and the key.

    Examples
    --------
    >>> from bert_numpy.kit import open_kit
    >>> kit = open_kit()
    >>> float(kit.arrays["codec/E4M3FN/values"][0x7E])
    448.0
    """
    require("folder", folder, (str, Path), "the folder of a kit, or its name")
    path = kit_folder(folder)
    file = path / MANIFEST
    if not path.is_dir():
        hint = suggestion(str(folder), [EMBEDDED])
        raise BertNumpyError(f"{folder}: expected a kit's folder, found no such folder{hint}")
    manifest = read_json(file)
    if manifest.get("format") != FORMAT:
        raise BertNumpyError(
            f"{file}: key 'format': expected {FORMAT!r}, found {manifest.get('format')!r}"
        )
    entries = manifest.get("tensors")
    if not isinstance(entries, list) or not entries:
        raise BertNumpyError(f"{file}: key 'tensors': expected a list of tensors")
    with reading(path / TENSORS):
        stored = load_file(path / TENSORS)
    tensors: dict[str, Tensor] = {}
    arrays: dict[str, Array] = {}
    for number, entry in enumerate(entries):
        tensor = _tensor(entry, f"{file}: tensor {number}", tensors)
        place = f"{file}: tensor {tensor.name!r}"
        if tensor.name not in stored:
            raise BertNumpyError(f"{place}: expected it in {TENSORS}, found none")
        x = _in_memory(tensor, stored.pop(tensor.name), place)
        if list(x.shape) != entry["shape"]:
            raise BertNumpyError(f"{place}: expected shape {entry['shape']}, found {list(x.shape)}")
        if (found := sha256(tensor, x)) != entry["sha256"]:
            raise BertNumpyError(f"{place}: expected SHA-256 {entry['sha256']}, found {found}")
        inputs = {
            role: (tensors[name].kind, tensors[name].fmt, shape)
            for (role, (name, _)), shape in zip(
                tensor.inputs.items(), _viewed_shapes(tensor, arrays, place), strict=True
            )
        }
        result = (tensor.kind, tensor.fmt, x.shape)
        check_entry(tensor.operation, tensor.attributes, inputs, result, place)
        tensors[tensor.name], arrays[tensor.name] = tensor, x
    if stored:
        raise BertNumpyError(f"{file}: tensor {min(stored)!r}: expected an entry, found none")
    header = {key: value for key, value in manifest.items() if key not in _DERIVED}
    return Kit(header, tensors, arrays)


#: The keys of the manifest that follow from the rest.
_DERIVED = ("format", "operations", "rules", "layouts", "tensors")

_ENTRY: dict[str, tuple[type, bool]] = {
    "name": (str, True),
    "level": (str, True),
    "operation": (str, True),
    "inputs": (dict, False),
    "attributes": (dict, False),
    "kind": (str, True),
    "fmt": (str, False),
    "shape": (list, True),
    "sha256": (str, True),
}


def _tensor(entry: Any, place: str, before: Mapping[str, Tensor]) -> Tensor:
    """Parse and check an entry of the manifest."""
    if not isinstance(entry, dict):
        raise BertNumpyError(f"{place}: expected a JSON object, found {entry!r}")
    if unknown := sorted(set(entry) - set(_ENTRY)):
        raise BertNumpyError(f"{place}: key {unknown[0]!r}: expected one of {', '.join(_ENTRY)}")
    for key, (kind, needed) in _ENTRY.items():
        if not isinstance(entry.get(key, None if needed else kind()), kind):
            raise BertNumpyError(
                f"{place}: key {key!r}: expected {kind.__name__}, found {entry.get(key)!r}"
            )

    def choice(key: str, known: Any, default: str | None = None) -> str:
        value = entry.get(key, default)
        if not isinstance(value, str) or value not in known:
            raise key_error(place, key, f"one of {', '.join(known)}", value)
        return value

    inputs = {}
    for role, given in entry.get("inputs", {}).items():
        parts = [given] if isinstance(given, str) else given
        if (
            not isinstance(parts, list)
            or len(parts) not in (1, 2)
            or not all(isinstance(part, str) for part in parts)
        ):
            raise BertNumpyError(f"{place}: input {role!r}: expected a name, or one and a view")
        reference = Reference(*parts)
        if reference.tensor not in before:
            raise BertNumpyError(
                f"{place}: input {role!r}: expected a tensor before it, found {reference.tensor!r}"
            )
        if reference.view.partition(":")[0] not in VIEWS:
            raise BertNumpyError(
                f"{place}: input {role!r}: expected a view of {', '.join(VIEWS[1:])}, "
                f"found {reference.view!r}"
            )
        inputs[role] = reference
    if entry["name"] in before:
        raise key_error(place, "name", "a new one", entry["name"])
    if entry.get("fmt") and entry["kind"] != "codes":
        raise key_error(place, "fmt", f"none for {entry['kind']}", entry["fmt"])
    return Tensor(
        entry["name"],
        choice("level", LEVELS),
        choice("operation", ("given", *OPERATIONS)),
        inputs,
        entry.get("attributes", {}),
        choice("kind", KINDS),
        choice("fmt", ("", *FORMATS), ""),
    )


def _viewed_shapes(
    tensor: Tensor, arrays: Mapping[str, Array], place: str
) -> Iterator[tuple[int, ...]]:
    """Yield the shape of each input's view; a view that does not fit is refused."""
    for role, (name, view) in tensor.inputs.items():
        try:
            yield apply_view(arrays[name], view).shape
        except (ValueError, IndexError, OverflowError):
            raise BertNumpyError(
                f"{place}: input {role!r}: expected a view of shape {arrays[name].shape}, "
                f"found {view!r}"
            ) from None


def _in_memory(tensor: Tensor, stored: Array | Fp8Array, place: str) -> Array:
    """Convert a stored tensor to its form in memory, checking its dtype against its kind."""
    x = stored.codes if isinstance(stored, Fp8Array) else stored
    fmt: Format | None = FORMATS.get(tensor.fmt)
    expected = {
        "bfloat16": np.dtype(np.uint16),
        "float32": np.dtype(np.float32),
        "codes": np.dtype(np.uint8) if fmt is None else fmt.code_dtype,
        "bytes": np.dtype(np.uint8),
        "integers": np.dtype(np.int64),
    }[tensor.kind]
    if x.dtype != expected or (isinstance(stored, Fp8Array) and stored.fmt != fmt):
        raise BertNumpyError(f"{place}: expected {expected}, found {x.dtype}")
    if tensor.kind == "codes" and isinstance(fmt, FloatFormat):
        largest = int(x.max(initial=0))
        if largest >= fmt.values.size:
            raise BertNumpyError(
                f"{place}: expected codes below {fmt.values.size}, found {largest}"
            )
    return from_bits(x) if tensor.kind == "bfloat16" else x
