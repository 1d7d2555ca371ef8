"""Recipes: what is quantized, into which formats, with which scales. Frozen, and JSON."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.errors import BertNumpyError, read_json, writing
from bert_numpy.quantization.observers import OBSERVERS
from bert_numpy.quantization.site_patterns import fits_attention
from npfp8 import E4M3FN, E5M2, INT8, UINT8, Format
from npfp8.files import replaced_file
from npfp8.formats import FORMATS
from npfp8.products import ACCUMULATIONS, ACCUMULATORS

__all__ = [
    "PRESETS",
    "Operand",
    "Recipe",
    "SiteRecipe",
    "load_recipe",
    "preset",
    "recipe_json",
    "recipe_object",
    "recipe_of",
    "save_recipe",
]

#: The largest threshold, which becomes a float32.
_LARGEST = float(np.finfo(np.float32).max)

GRANULARITIES = ("tensor", "channel", "token", "block")

#: Elements of a block at most: an index of every machine holds their number.
MAX_BLOCK = 2**31 - 1


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value in a message: short, whatever a file has in its place."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes
        return f"{type(value).__name__} that is too long to show"


@dataclass(frozen=True)
class Operand:
    """How one operand of a product is quantized.

    Attributes
    ----------
    fmt : FloatFormat or IntFormat, optional
        None leaves the operand in the recipe's arithmetic. UINT8 is used with a
        zero point, the others symmetrically.
    granularity : {"tensor", "channel", "token", "block"}
        Who has a scale: the tensor; each output channel (weights only); each
        token (the left operand's rows; Q, K and P, not V, whose tokens are
        summed over); or each run of ``block`` elements along the sum.
    dynamic : bool
        Whether the scales of an activation come from itself and not from the
        calibration. Per token and per block they always do. Per tensor they
        cannot: they would depend on the batch.
    observer : str
        Of static scales; see :mod:`bert_numpy.quantization.observers`. A weight's scales
        are from the absolute maximum unless they are per tensor.
    percentile : float
        For the observer "percentile".
    power_of_two : bool
        Whether scales are rounded up to powers of two (as in Perez et al.,
        *Training and inference of large language models using 8-bit floating
        point*, arXiv 2309.17224).
    block : int
    """

    fmt: Format | None = None
    granularity: str = "tensor"
    dynamic: bool = False
    observer: str = "absmax"
    percentile: float = 99.99
    power_of_two: bool = False
    block: int = 128

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                raise BertNumpyError(
                    f"operand: {name}: expected {expected}, found {_shown(getattr(self, name))}"
                )

        check("fmt", self.fmt is None or isinstance(self.fmt, Format), "a format or None")
        for name, choices in (("granularity", GRANULARITIES), ("observer", tuple(OBSERVERS))):
            check(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        for name in ("dynamic", "power_of_two"):
            check(name, isinstance(getattr(self, name), bool), "True or False")
        check("percentile", _is_number(self.percentile) and 0 < self.percentile <= 100, "0..100")
        block = self.block if isinstance(self.block, Integral) else 0
        check("block", not isinstance(block, bool) and block > 0, "at least 1")
        check("block", block <= MAX_BLOCK, f"at most {MAX_BLOCK}")
        runtime = self.granularity in ("token", "block")
        if self.fmt is not None and self.dynamic != runtime:
            check(
                "dynamic",
                False,
                "True for scales per token and per block, which no calibration can know"
                if runtime
                else "False for one scale per tensor, which would depend on the batch",
            )
        if self.fmt is not None and self.fmt.has_zero_point:
            check("power_of_two", not self.power_of_two, "False for a format with a zero point")


@dataclass(frozen=True)
class SiteRecipe:
    """How one product is quantized.

    Attributes
    ----------
    a, b : Operand
        The left operand (activations, Q, or the attention weights P) and the
        right one (weights, K^T, or V).
    outlier_threshold : float, optional
        Outliers of ``a``, whose magnitude is beyond it, are left out of the
        quantized product and multiplied in the recipe's arithmetic with the
        dequantized weights; after LLM.int8() (Dettmers et al., arXiv 2208.07339).
    outliers : {"element", "column"}
        Which elements leave with an outlier: none, or, as in LLM.int8(), the
        whole column (feature) of the input. An input is here one sequence, over
        the tokens that are not masked, so that no result depends on the batch.
        In the paper the weights of these columns are kept in 16 bits; here, as in
        the inference of its authors' library, they are the dequantized codes.
    migration : float, optional
        SmoothQuant's alpha (Xiao et al., arXiv 2211.10438): column j of ``a`` is
        divided, and row j of the weights multiplied, by
        ``max|a_j|^alpha / max|b_j|^(1 - alpha)``. Linear layers only.
    smoothing : {"power_of_two", "paper"}
        How these factors are made: for each layer from its own weights, and
        rounded to powers of two, so that neither side is rounded by them; or as
        in the paper: query, key and value, which have one input, share the
        factors made from the largest weights of all three, and nothing is rounded.
    """

    a: Operand = Operand()
    b: Operand = Operand()
    outlier_threshold: float | None = None
    migration: float | None = None
    outliers: str = "element"
    smoothing: str = "power_of_two"

    def __post_init__(self) -> None:
        if self.a.granularity == "channel":
            raise BertNumpyError(
                "operand a: granularity: expected no 'channel', which weights have"
            )
        for name, choices, other in (
            ("outliers", ("element", "column"), "outlier_threshold"),
            ("smoothing", ("power_of_two", "paper"), "migration"),
        ):
            found = getattr(self, name)
            if found not in choices:
                raise BertNumpyError(
                    f"{name}: expected {' or '.join(map(repr, choices))}, found {_shown(found)}"
                )
            if found != choices[0] and getattr(self, other) is None:
                raise BertNumpyError(f"{name} {found!r}: expected {other} with it, found none")
        threshold = self.outlier_threshold
        if threshold is not None and not (
            _is_number(threshold) and 0 < threshold <= _LARGEST and np.float32(threshold)
        ):
            raise BertNumpyError(
                f"outlier_threshold: expected more than 0 and finite, found {_shown(threshold)}"
            )
        if self.migration is not None:
            if not (_is_number(self.migration) and 0 <= self.migration <= 1):
                raise BertNumpyError(f"migration: expected 0..1, found {_shown(self.migration)}")
            if self.a.observer != "absmax":
                raise BertNumpyError(
                    f"migration: expected the observer 'absmax', found {self.a.observer!r}: of "
                    "divided columns only the largest magnitudes are known"
                )
        along = [x for x in (self.a, self.b) if x.fmt is not None and x.dynamic]
        if len({(x.granularity, x.granularity == "block" and x.block) for x in along}) > 1:
            found = " and ".join(f"{x.granularity!r} ({x.block})" for x in along)
            raise BertNumpyError(
                "a, b: scales that vary along the sum, or are one along it, must do so alike: "
                f"expected the same granularity and block of both, found {found}"
            )

    @property
    def quantizes(self) -> bool:
        """Whether an operand is quantized."""
        return self.a.fmt is not None or self.b.fmt is not None


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    By default only the encoder is: linear layers by ``linear``, Q K^T by
    ``scores`` and P V by ``context`` (FP8-BERT, section 3).

    Attributes
    ----------
    name : str
    linear, scores, context : SiteRecipe
        The default quantizes nothing.
    overrides : tuple of (str, SiteRecipe)
        Exceptions by the site's name, a pattern with ``*`` and ``?``; the last
        that fits holds. ``SiteRecipe()`` leaves a site unquantized. The only
        way to quantize the pooler and the head, for instance with
        ``("pooler.dense", recipe.linear)``.
    arithmetic : str
        The precision of everything else: "bfloat16" or "float32".
    accumulate : str
        How the products of a quantized site are added up, one of
        :data:`npfp8.ACCUMULATIONS`; see :func:`npfp8.matmul`.
    """

    name: str
    linear: SiteRecipe = SiteRecipe()
    scores: SiteRecipe = SiteRecipe()
    context: SiteRecipe = SiteRecipe()
    overrides: tuple[tuple[str, SiteRecipe], ...] = ()
    arithmetic: str = "bfloat16"
    accumulate: str = "exact"

    def __post_init__(self) -> None:
        for name, choices in (
            ("arithmetic", ("bfloat16", "float32")),
            ("accumulate", ACCUMULATIONS),
        ):
            if getattr(self, name) not in choices:
                raise BertNumpyError(
                    f"recipe {self.name}: {name}: expected {' or '.join(map(repr, choices))}, "
                    f"found {getattr(self, name)!r}"
                )
        for name in ("scores", "context"):
            self._check_attention(name, getattr(self, name))

    def _check_attention(self, place: str, site: SiteRecipe) -> None:
        """Refuse what a product of two activations cannot have."""
        if site.migration is not None or site.outlier_threshold is not None:
            raise BertNumpyError(
                f"recipe {self.name}: {place}: migration and outlier_threshold are for "
                "products with weights"
            )
        if site.b.granularity == "channel":
            raise BertNumpyError(
                f"recipe {self.name}: {place}: granularity 'channel' is for weights"
            )
        if place.endswith("context") and site.b.granularity == "token":
            raise BertNumpyError(
                f"recipe {self.name}: {place}: V cannot have a scale per token: the sum over "
                "tokens does not factor; expected 'tensor' or 'block'"
            )

    def site(self, site: str) -> SiteRecipe:
        """How the product at ``site`` is quantized."""
        found = SiteRecipe()
        if site.startswith("encoder."):
            kind = site.rpartition(".")[2]
            found = {"scores": self.scores, "context": self.context}.get(kind, self.linear)
        for pattern, override in self.overrides:
            if fnmatchcase(site, pattern):
                found = override
        return found

    @property
    def calibrated(self) -> bool:
        """Whether some scale of an activation may come from a calibration."""

        def static(operand: Operand) -> bool:
            return operand.fmt is not None and not operand.dynamic

        sites = [self.linear, self.scores, self.context, *(site for _, site in self.overrides)]
        products = [self.scores, self.context]
        products += [site for pattern, site in self.overrides if fits_attention(pattern)]
        return any(
            static(site.a) or (site.migration is not None and site.quantizes) for site in sites
        ) or any(static(site.b) for site in products)

    def check_overrides(self, sites: Iterable[str]) -> None:
        """Raise :class:`BertNumpyError` if an override fits no site, or one that cannot have it."""
        names = list(sites)
        for pattern, site in self.overrides:
            fitting = [name for name in names if fnmatchcase(name, pattern)]
            for name in fitting:
                if name.endswith((".scores", ".context")):
                    self._check_attention(name, site)
            if not fitting:
                raise BertNumpyError(
                    f"recipe {self.name}: override {pattern!r}: expected to fit a site, "
                    f"such as {names[0]}"
                )

    def check_accumulation(self, sites: Iterable[str]) -> None:
        """Raise :class:`BertNumpyError` if a site's product is not one that is so accumulated."""
        accumulator = ACCUMULATORS[self.accumulate]
        for name in sites:
            how = self.site(name)
            if how.a.fmt is None or how.b.fmt is None:
                continue  # no product of codes
            try:
                accumulator.check(how.a.fmt, how.b.fmt)
            except ValueError as error:
                raise BertNumpyError(f"recipe {self.name}: {name}:{error}") from None
            for side, operand in (("a", how.a), ("b", how.b)):
                if operand.dynamic and not accumulator.scales_along_k:
                    raise BertNumpyError(
                        f"recipe {self.name}: {name}:{side}: accumulate {self.accumulate!r}: "
                        "expected one scale per tensor or channel, "
                        f"found granularity {operand.granularity!r}"
                    )

    def skipping(self, *patterns: str) -> Recipe:
        """The recipe with the sites of some patterns left unquantized."""
        skipped = tuple((pattern, SiteRecipe()) for pattern in patterns)
        return replace(self, overrides=self.overrides + skipped)


def _paper(name: str, fmt: Format, **operand: Any) -> Recipe:
    """Every product of the encoder in one format, one scale per tensor."""
    both = Operand(fmt, **operand)
    site = SiteRecipe(both, both)
    return Recipe(name, site, site, site)


def _with_weights(recipe: Recipe, **weights: Any) -> Recipe:
    return replace(recipe, linear=replace(recipe.linear, b=replace(recipe.linear.b, **weights)))


def _per_token(name: str, fmt: Format) -> Recipe:
    """Scales for each token, from itself; per output channel for weights, per tensor for V."""
    token = Operand(fmt, "token", dynamic=True)
    return Recipe(
        name,
        SiteRecipe(token, Operand(fmt, "channel")),
        SiteRecipe(token, token),
        SiteRecipe(token, Operand(fmt)),
    )


def _per_block(name: str, fmt: Format) -> Recipe:
    block = Operand(fmt, "block", dynamic=True)
    return Recipe(
        name, SiteRecipe(block, block), SiteRecipe(block, block), SiteRecipe(block, block)
    )


def _migrated(recipe: Recipe, smoothing: str = "power_of_two") -> Recipe:
    """SmoothQuant's migration where its authors apply it: at the layers that LayerNorm feeds.

    Xiao et al., *SmoothQuant* (arXiv 2211.10438), section 4: not at the outputs
    of the attention and of the feed-forward network.
    """
    return replace(
        recipe,
        linear=replace(recipe.linear, migration=0.5, smoothing=smoothing),
        overrides=(*recipe.overrides, ("*.output.dense", recipe.linear)),
    )


def _presets() -> dict[str, Recipe]:
    int8, e4m3, e5m2 = _paper("int8", INT8), _paper("e4m3", E4M3FN), _paper("e5m2", E5M2)
    channels = replace(int8.linear, b=Operand(INT8, "channel"))
    asymmetric = SiteRecipe(Operand(UINT8), Operand(INT8))
    token = _per_token("int8-token", INT8)
    outliers = replace(token.linear, outlier_threshold=6.0)
    mixed = SiteRecipe(Operand(E5M2), Operand(E4M3FN))
    recipes = (
        Recipe("fp32", arithmetic="float32"),
        Recipe("bf16"),
        int8,
        e4m3,
        e5m2,
        replace(int8, name="int8-channel", linear=channels),
        replace(
            int8, name="int8-asymmetric", linear=asymmetric, scores=int8.scores, context=asymmetric
        ),
        _paper("int8-percentile", INT8, observer="percentile"),
        _paper("int8-mse", INT8, observer="mse"),
        _with_weights(_paper("int8-entropy", INT8, observer="entropy"), observer="absmax"),
        token,
        replace(token, name="int8-outliers", linear=outliers),
        replace(token, name="int8-outliers-columns", linear=replace(outliers, outliers="column")),
        _migrated(replace(int8, name="int8-smooth", linear=channels)),
        _migrated(replace(int8, name="int8-smooth-paper"), smoothing="paper"),
        _with_weights(replace(e4m3, name="e4m3-channel"), granularity="channel"),
        _per_token("e4m3-token", E4M3FN),
        _per_block("e4m3-block", E4M3FN),
        _paper("e4m3-pow2", E4M3FN, power_of_two=True),
        _paper("e4m3-mse", E4M3FN, observer="mse"),
        _migrated(replace(e4m3, name="e4m3-smooth")),
        Recipe("e4m3-weights", SiteRecipe(b=Operand(E4M3FN))),
        Recipe("mixed", mixed, mixed, mixed),
    )
    return {recipe.name: recipe for recipe in recipes}


#: The named recipes. The first five are the paper's comparison, from the reference down.
PRESETS = _presets()


def preset(name: str) -> Recipe:
    """Look a recipe up by its name, or read it from a file that ends in ``.json``.

    Raises
    ------
    BertNumpyError
        If there is none of the name, or the file is not a recipe.
    """
    if name.endswith(".json"):
        return load_recipe(name)
    if name not in PRESETS:
        raise BertNumpyError(f"format: expected one of {', '.join(PRESETS)}, found {name!r}")
    return PRESETS[name]


def recipe_json(recipe: Recipe) -> str:
    """A recipe as JSON text, every setting named."""
    return json.dumps(recipe_object(recipe), indent=1)


def recipe_object(recipe: Recipe) -> dict[str, Any]:
    """A recipe as a JSON object, every setting named."""
    values: dict[str, Any] = _plain(recipe)
    return values


def recipe_of(values: Any) -> Recipe:
    """A recipe from a JSON object; what is not given has its default.

    Raises
    ------
    BertNumpyError
        If a key is unknown, of another type or of a value that cannot be.
    """
    recipe: Recipe = _build(Recipe, values, "recipe")
    return recipe


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe as JSON, whole or not at all.

    Raises
    ------
    BertNumpyError
        If the file cannot be written.
    """
    text = recipe_json(recipe) + "\n"
    with writing(path), replaced_file(Path(path)) as file:
        file.write(text.encode())


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from JSON; what is not given has its default.

    Raises
    ------
    BertNumpyError
        If the file is missing or no JSON, or a key is unknown, of another type
        or of a value that cannot be.
    """
    try:
        return recipe_of(read_json(Path(path)))
    except BertNumpyError as error:
        text = str(error)
        raise BertNumpyError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _plain(value: Any) -> Any:
    """A recipe, or a part of one, as JSON has it: formats by their names."""
    if isinstance(value, (Recipe, SiteRecipe, Operand)):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Format) else value


def _build(kind: type, values: Any, place: str) -> Any:
    """A dataclass of ``kind`` from a JSON object; each value checked against the default's type."""
    if not isinstance(values, Mapping):
        raise BertNumpyError(f"{place}: expected a JSON object, found {_shown(values)}")
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise BertNumpyError(
            f"{place}: key {unknown[0]!r}: expected one of {', '.join(sorted(known))}"
        )
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{place}: key {key!r}"
        if key in ("linear", "scores", "context"):
            arguments[key] = _build(SiteRecipe, value, where)
        elif key in ("a", "b"):
            arguments[key] = _build(Operand, value, where)
        elif key == "overrides":
            if not isinstance(value, list):
                raise BertNumpyError(f"{where}: expected a list, found {_shown(value)}")
            arguments[key] = tuple(_override(item, where) for item in value)
        elif key == "fmt":
            if value is not None and not (isinstance(value, str) and value in FORMATS):
                raise BertNumpyError(
                    f"{where}: expected null or one of {', '.join(FORMATS)}, found {_shown(value)}"
                )
            arguments[key] = None if value is None else FORMATS[value]
        else:
            expected = _TYPES[key]
            if type(value) not in expected:
                names = " or ".join(item.__name__ for item in expected)
                raise BertNumpyError(f"{where}: expected {names}, found {_shown(value)}")
            arguments[key] = value
    try:
        return kind(**arguments)
    except TypeError:
        raise BertNumpyError(f"{place}: key 'name': expected a string, but missing") from None


def _override(item: Any, where: str) -> tuple[str, SiteRecipe]:
    if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)):
        raise BertNumpyError(f"{where}: expected [pattern, site] pairs, found {_shown(item)}")
    return item[0], _build(SiteRecipe, item[1], f"{where} {item[0]!r}")


_NONE = type(None)
_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "arithmetic": (str,),
    "accumulate": (str,),
    "granularity": (str,),
    "observer": (str,),
    "outliers": (str,),
    "smoothing": (str,),
    "dynamic": (bool,),
    "power_of_two": (bool,),
    "block": (int,),
    "percentile": (int, float),
    "outlier_threshold": (int, float, _NONE),
    "migration": (int, float, _NONE),
}
