"""Recipes: the products to quantize, the formats and the kinds of scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import Any

import numpy as np

from bert_numpy.engines.site import Site
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.sites import site_named
from bert_numpy.quantization.gptq import Gptq
from bert_numpy.quantization.observers import OBSERVERS
from bert_numpy.quantization.shown import shown
from bert_numpy.quantization.site_patterns import fits_attention
from bert_numpy.quantization.tiled_attention import TiledAttention
from npfp8 import BLOCK_FORMATS, BlockFormat, FloatFormat, Format
from npfp8.arguments import require, require_iterable, wrong_type
from npfp8.blocks import PowerRule
from npfp8.blocks.exponents import check_party
from npfp8.blocks.formats import with_rule
from npfp8.formats import FORMATS, as_format
from npfp8.names import match, suggestion
from npfp8.products import ACCUMULATORS

__all__ = [
    "BFLOAT16_ACCUMULATORS",
    "AnyFormat",
    "Operand",
    "Recipe",
    "SiteRecipe",
    "format_named",
]

#: A format of codes, whose scales the operand describes, or one that states its scales itself.
AnyFormat = Format | BlockFormat

#: The largest outlier threshold: it is converted to float32.
_LARGEST = float(np.finfo(np.float32).max)

#: The accumulators of products that are not of codes.
BFLOAT16_ACCUMULATORS = tuple(x.name for x in ACCUMULATORS.values() if "bfloat16" in x.floats)

GRANULARITIES = ("tensor", "channel", "token", "block")

#: The largest block: its number of elements fits into an index on every machine.
MAX_BLOCK = 2**31 - 1


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _constructor(value: Operand | SiteRecipe) -> str:
    """Return the call that makes a record, with the arguments that are not the defaults."""
    plain = type(value)()
    given = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Operand):
        del given["dynamic"]  # it follows from the rest
        if value.block_format is not None:
            del given["granularity"], given["block"]
    given = {name: x for name, x in given.items() if x != getattr(plain, name)}
    shown_fields = (
        f"{name}={(str(x) if isinstance(x, AnyFormat) else x)!r}" for name, x in given.items()
    )
    return f"{type(value).__name__}({', '.join(shown_fields)})"


def format_named(name: str, argument: str = "fmt") -> AnyFormat:
    """Look up a format, or a block format, by its name in any case.

    Raises
    ------
    ValueError
        If no format has the name (the message suggests the nearest), or two have.
    """
    blocks = match(name, BLOCK_FORMATS)
    if blocks is not None:
        return BLOCK_FORMATS[blocks]
    if match(name, FORMATS) is None:
        names = (*FORMATS, *BLOCK_FORMATS)
        raise ValueError(
            f"{argument}: expected a format ({', '.join(names)}), found {shown(name)}"
            f"{suggestion(name, names)}"
        )
    return as_format(name, argument)


def _known(value: Any, choices: tuple[str, ...]) -> str | None:
    """Return the one of some names that a value is, in upper or lower case."""
    return match(value, choices) if isinstance(value, str) else None


def _is_override(pair: Any) -> bool:
    """Return whether a value is a pattern with its recipe."""
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], SiteRecipe)
    )


@dataclass(frozen=True, repr=False)
class Operand:
    """The quantization of one operand of a product.

    Attributes
    ----------
    fmt : FloatFormat, IntFormat or BlockFormat, optional
        None leaves the operand in the recipe's arithmetic. UINT8 is used with a
        zero point, the others symmetrically. A block format (MX, NVFP4) states its scales
        itself: the granularity is "block" and ``block`` the format's. Blocks run along
        the sum, separately for each sequence. If the format has a scale per tensor, an
        activation's is computed from the calibration's absolute maximum, a weight's from
        the weight.
    granularity : {"tensor", "channel", "token", "block"}
        One scale per tensor, per output channel (weights only), per token (the rows of
        the left operand; Q, K and P, but not V, whose tokens are summed over), or per
        run of ``block`` elements along the sum. If it is not given, it is "tensor", or "block" for
        a block format.
    dynamic : bool
        True if the scales of an activation are computed from itself, not from the
        calibration. This follows from the granularity and need not be given: scales per
        token and per block are always dynamic; scales per tensor never are, as they would
        depend on the batch.
    observer : str
        The observer for static scales; see :mod:`bert_numpy.quantization.observers`. Scales
        of weights come from the absolute maximum unless they are per tensor.
    percentile : float
        The percentile for the observer "percentile".
    power_of_two : bool
        True if scales are rounded up to powers of two (as in Perez et al.,
        *Training and inference of large language models using 8-bit floating
        point*, arXiv 2309.17224).
    block : int
        The number of elements per scale, for the granularity "block". If it is not given, it is
        128.
    rule : str, optional
        Block formats only: the rule by which scales and codes follow from numbers, a key of
        :data:`npfp8.POWER_RULES` or :data:`npfp8.RATIO_RULES`. None is the format's own. The
        rule becomes part of ``fmt``.

    Examples
    --------
    >>> from bert_numpy import Operand
    >>> Operand("e4m3fn", "token")
    Operand(fmt='E4M3FN', granularity='token')
    >>> Operand("INT8").is_static
    True
    >>> operand = Operand("mxfp4")
    >>> operand, operand.granularity, operand.block
    (Operand(fmt='MXFP4'), 'block', 32)
    """

    fmt: AnyFormat | None = None
    # Those that are None have a value from __post_init__ on: None is not given, which a block
    # format has to tell from a value that contradicts it.
    granularity: str = None  # type: ignore[assignment]
    dynamic: bool = None  # type: ignore[assignment]
    observer: str = "absmax"
    percentile: float = 99.99
    power_of_two: bool = False
    block: int = None  # type: ignore[assignment]
    rule: str | None = None

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                raise BertNumpyError(
                    f"operand: {name}: expected {expected}, found {shown(getattr(self, name))}"
                )

        if isinstance(self.fmt, str):
            try:
                object.__setattr__(self, "fmt", format_named(self.fmt))
            except ValueError as error:
                raise BertNumpyError(f"operand: {error}") from None
        check(
            "fmt",
            self.fmt is None or isinstance(self.fmt, AnyFormat),
            "a format, its name, or None",
        )
        fmt = self.block_format
        for name, default in (
            ("granularity", "tensor" if fmt is None else "block"),
            ("block", 128 if fmt is None else fmt.block),
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for name, choices in (("granularity", GRANULARITIES), ("observer", tuple(OBSERVERS))):
            known = _known(getattr(self, name), choices)
            check(name, known is not None, f"one of {', '.join(choices)}")
            object.__setattr__(self, name, known)
        self._take_block_format(check)
        runtime = self.granularity in ("token", "block")
        if self.dynamic is None:
            object.__setattr__(self, "dynamic", self.fmt is not None and runtime)
        for name in ("dynamic", "power_of_two"):
            check(name, isinstance(getattr(self, name), bool), "True or False")
        check("percentile", _is_number(self.percentile) and 0 < self.percentile <= 100, "0..100")
        block = self.block if isinstance(self.block, Integral) else 0
        check("block", not isinstance(block, bool) and block > 0, "at least 1")
        check("block", block <= MAX_BLOCK, f"at most {MAX_BLOCK}")
        if self.fmt is not None and self.dynamic != runtime:
            check(
                "dynamic",
                False,
                "True for scales per token and per block, which no calibration can know"
                if runtime
                else "False for one scale per tensor, which would depend on the batch",
            )
        if self.element is not None and self.element.has_zero_point:
            check("power_of_two", not self.power_of_two, "False for a format with a zero point")

    def _take_block_format(self, check: Callable[[str, bool, str], None]) -> None:
        """Set the fields that follow from a block format, and refuse what contradicts it."""
        fmt = self.block_format
        if fmt is None:
            check("rule", self.rule is None, "None without a block format")
            return
        set_field = object.__setattr__
        if self.rule is not None:
            try:
                fmt = with_rule(fmt, self.rule)
            except (TypeError, ValueError) as error:
                raise BertNumpyError(f"operand: {error}") from None
            set_field(self, "fmt", fmt)
        if isinstance(fmt.how, PowerRule):
            try:
                check_party(fmt.how, fmt.element, fmt.scale_format)
            except ValueError as error:
                raise BertNumpyError(f"operand: {error}") from None
        known = BLOCK_FORMATS.get(fmt.name)
        own = known is not None and with_rule(known, fmt.rule) == fmt and known.rule != fmt.rule
        set_field(self, "rule", fmt.rule if own else None)
        by_rule = f"for {fmt}, whose scales follow from absolute maxima by its rule"
        check("granularity", self.granularity == "block", f"'block' for {fmt}")
        check("block", self.block == fmt.block, f"{fmt.block} for {fmt}")
        check("observer", self.observer == "absmax", f"'absmax' {by_rule}")
        percentile = type(self).percentile
        check("percentile", self.percentile == percentile, f"{percentile} {by_rule}")
        check("power_of_two", self.power_of_two is False, f"False {by_rule}")

    def __repr__(self) -> str:
        return _constructor(self)

    @property
    def block_format(self) -> BlockFormat | None:
        """The format, with its rule, if it is a block format."""
        return self.fmt if isinstance(self.fmt, BlockFormat) else None

    @property
    def element(self) -> Format | None:
        """The format of the codes."""
        return self.fmt.element if isinstance(self.fmt, BlockFormat) else self.fmt

    @property
    def is_static(self) -> bool:
        """True if a scale is fixed before the run: per tensor, also of a block format."""
        of_tensor = self.block_format is not None and self.block_format.tensor_scale
        return self.fmt is not None and (of_tensor or not self.dynamic)


@dataclass(frozen=True, repr=False)
class SiteRecipe:
    """The quantization of one product.

    Attributes
    ----------
    a, b : Operand
        The left operand (activations, Q, or the attention weights P) and the
        right one (weights, K^T, or V).
    outlier_threshold : float, optional
        Elements of ``a`` with a larger magnitude are outliers. They are left out of the
        quantized product and multiplied in the recipe's arithmetic with the
        dequantized weights, as in LLM.int8() (Dettmers et al., arXiv 2208.07339).
    outliers : {"element", "column"}
        The elements that are left out with an outlier: "element" leaves out nothing else,
        "column" the whole column (feature) of the input, as in LLM.int8(). Here an input is
        one sequence without its masked tokens, so that no result depends on the batch.
        In the paper the weights of these columns are kept in 16 bits; here, as in
        the inference of its authors' library, they are the dequantized codes.
    migration : float, optional
        SmoothQuant's alpha (Xiao et al., arXiv 2211.10438): column j of ``a`` is
        divided, and row j of the weights multiplied, by
        ``max|a_j|^alpha / max|b_j|^(1 - alpha)``. It is for linear layers only.
    smoothing : {"power_of_two", "paper"}
        The rule for these factors. With "power_of_two" each layer's factors come from its
        own weights and are rounded to powers of two, so that applying them rounds nothing.
        With "paper", query, key and value, which have one input, share the
        factors from the largest weights of all three, and the factors are not rounded.
    gptq : Gptq, optional
        The weights are rounded by GPTQ, which needs a calibration with Hessians, so that the
        layer's outputs change least; see :mod:`bert_numpy.quantization.gptq`. None rounds each
        weight to the nearest value. It is for linear layers only.

    Examples
    --------
    >>> from bert_numpy import Operand, SiteRecipe
    >>> SiteRecipe(Operand("INT8"), Operand("INT8", "channel"), migration=0.5)
    SiteRecipe(a=Operand(fmt='INT8'), b=Operand(fmt='INT8', granularity='channel'), migration=0.5)
    """

    a: Operand = Operand()
    b: Operand = Operand()
    outlier_threshold: float | None = None
    migration: float | None = None
    outliers: str = "element"
    smoothing: str = "power_of_two"
    gptq: Gptq | None = None

    def __post_init__(self) -> None:
        for side in ("a", "b"):
            require(side, getattr(self, side), Operand, "an Operand")
        if self.a.granularity == "channel":
            raise BertNumpyError(
                "operand a: granularity: expected no 'channel', which weights have"
            )
        for name, choices, other in (
            ("outliers", ("element", "column"), "outlier_threshold"),
            ("smoothing", ("power_of_two", "paper"), "migration"),
        ):
            found = _known(getattr(self, name), choices)
            if found is None:
                raise BertNumpyError(
                    f"{name}: expected {' or '.join(map(repr, choices))}, "
                    f"found {shown(getattr(self, name))}"
                )
            object.__setattr__(self, name, found)
            if found != choices[0] and getattr(self, other) is None:
                raise BertNumpyError(f"{name} {found!r}: expected {other} with it, found none")
        threshold = self.outlier_threshold
        if threshold is not None and not (
            _is_number(threshold) and 0 < threshold <= _LARGEST and np.float32(threshold)
        ):
            raise BertNumpyError(
                f"outlier_threshold: expected more than 0 and finite, found {shown(threshold)}"
            )
        if self.migration is not None:
            if not (_is_number(self.migration) and 0 <= self.migration <= 1):
                raise BertNumpyError(f"migration: expected 0..1, found {shown(self.migration)}")
            if self.a.observer != "absmax":
                raise BertNumpyError(
                    f"migration: expected the observer 'absmax', found {self.a.observer!r}: of "
                    "divided columns only the largest magnitudes are known"
                )
        self._check_gptq()
        along = [x for x in (self.a, self.b) if isinstance(x.fmt, Format) and x.dynamic]
        if len({(x.granularity, x.granularity == "block" and x.block) for x in along}) > 1:
            found = " and ".join(f"{x.granularity!r} ({x.block})" for x in along)
            raise BertNumpyError(
                "a and b: per-token and per-block scales must match: expected both per token, "
                f"or both per block of the same size, found {found}"
            )

    def _check_gptq(self) -> None:
        """Refuse GPTQ for weights that it cannot round."""
        require("gptq", self.gptq, (Gptq, type(None)), "a Gptq")
        if self.gptq is None:
            return
        if not isinstance(self.b.fmt, Format):
            raise BertNumpyError(
                f"gptq: expected b in a format without blocks of its own, found {self.b.fmt}"
            )
        if self.b.observer != "absmax":
            raise BertNumpyError(
                f"gptq: expected the observer 'absmax' of b, found {self.b.observer!r}"
            )

    def __repr__(self) -> str:
        return _constructor(self)

    @property
    def quantizes(self) -> bool:
        """True if at least one operand is quantized."""
        return self.a.fmt is not None or self.b.fmt is not None


@dataclass(frozen=True, repr=False)
class Recipe:
    """The quantization of a model.

    By default only the encoder is quantized: linear layers by ``linear``, Q K^T by
    ``scores`` and P V by ``context`` (FP8-BERT, section 3).

    Attributes
    ----------
    name : str
    linear, scores, context : SiteRecipe
        The default quantizes nothing.
    overrides : tuple of (str, SiteRecipe)
        Exceptions by site name, given as a pattern with ``*`` and ``?``; the last
        match applies. ``SiteRecipe()`` leaves a site unquantized. Only an override
        can quantize the pooler and the head, for instance
        ``("pooler.dense", recipe.linear)``.
    arithmetic : str
        The precision of everything else: "bfloat16" or "float32".
    accumulate : str
        The accumulator of the products of codes, a key of
        :data:`npfp8.ACCUMULATORS`; see :func:`npfp8.matmul`.
    accumulate_rest : str, optional
        The accumulator of all other products, one that takes bfloat16: their operands are
        rounded to bfloat16, and multiplied by :func:`npfp8.matmul_16bit`. None multiplies
        them as they are: exactly in golden mode, otherwise in float32 by a BLAS.
    attention : TiledAttention, optional
        Attention as fused kernels compute it: over tiles of keys, with an online softmax; see
        :mod:`bert_numpy.quantization.tiled_attention`. Both products of every layer must be
        of float formats with one scale per tensor. The attention weights have no scale, so
        the format is all that is used of ``context.a``. None computes both
        products whole, with a softmax between them.

    Examples
    --------
    >>> from bert_numpy import Operand, Recipe, SiteRecipe
    >>> both = Operand("E4M3FN")
    >>> Recipe("linear-only", SiteRecipe(both, both))
    <Recipe linear-only: linear E4M3FN x E4M3FN; rest bfloat16>
    """

    name: str
    linear: SiteRecipe = SiteRecipe()
    scores: SiteRecipe = SiteRecipe()
    context: SiteRecipe = SiteRecipe()
    overrides: tuple[tuple[str, SiteRecipe], ...] = ()
    arithmetic: str = "bfloat16"
    accumulate: str = "exact"
    accumulate_rest: str | None = None
    attention: TiledAttention | None = None

    def __post_init__(self) -> None:
        require("name", self.name, str, "a str")
        for name in ("linear", "scores", "context"):
            require(name, getattr(self, name), SiteRecipe, "a SiteRecipe")
        if isinstance(self.overrides, list):
            object.__setattr__(self, "overrides", tuple(self.overrides))
        if not isinstance(self.overrides, tuple) or not all(map(_is_override, self.overrides)):
            raise wrong_type("overrides", "a tuple of (pattern, SiteRecipe) pairs", self.overrides)
        for name, choices in (
            ("arithmetic", ("bfloat16", "float32")),
            ("accumulate", tuple(ACCUMULATORS)),
        ):
            known = _known(getattr(self, name), choices)
            if known is not None:
                object.__setattr__(self, name, known)
            else:
                raise BertNumpyError(
                    f"recipe {self.name}: {name}: expected {' or '.join(map(repr, choices))}, "
                    f"found {getattr(self, name)!r}"
                )
        self._check_rest()
        for kind in ("scores", "context"):
            self._check_attention(kind, kind, getattr(self, kind))
        require("attention", self.attention, (TiledAttention, type(None)), "a TiledAttention")
        overridden = any(fits_attention(pattern) for pattern, _ in self.overrides)
        if self.attention is not None and not overridden:
            for kind in ("scores", "context"):
                self._check_tiles(kind, kind, getattr(self, kind))

    def __repr__(self) -> str:
        kinds = [
            f"{kind} {site.a.fmt or '-'} x {site.b.fmt or '-'}" + (" by GPTQ" if site.gptq else "")
            for kind in ("linear", "scores", "context")
            if (site := getattr(self, kind)).quantizes
        ]
        notes = [", ".join(kinds) or "nothing quantized"]
        if self.overrides:
            notes.append(f"{len(self.overrides)} override{'s' * (len(self.overrides) > 1)}")
        notes.append(f"rest {self.arithmetic}")
        if self.accumulate != "exact":
            notes.append(f"accumulate {self.accumulate}")
        if self.accumulate_rest is not None:
            notes.append(f"accumulate_rest {self.accumulate_rest}")
        if self.attention is not None:
            notes.append(f"attention in tiles of {self.attention.keys} keys")
        return f"<Recipe {self.name}: {'; '.join(notes)}>"

    def _check_rest(self) -> None:
        """Refuse an accumulator that does not take bfloat16, or another arithmetic."""
        if self.accumulate_rest is None:
            return
        known = _known(self.accumulate_rest, BFLOAT16_ACCUMULATORS)
        if known is None:
            expected = " or ".join(map(repr, BFLOAT16_ACCUMULATORS))
            raise BertNumpyError(
                f"recipe {self.name}: accumulate_rest: expected None or {expected}, "
                f"found {shown(self.accumulate_rest)}"
            )
        object.__setattr__(self, "accumulate_rest", known)
        if self.arithmetic != "bfloat16":
            raise BertNumpyError(
                f"recipe {self.name}: accumulate_rest {known!r}: expected the arithmetic "
                f"'bfloat16' with it, found {self.arithmetic!r}"
            )

    def _check_attention(self, place: str, kind: str, site: SiteRecipe) -> None:
        """Refuse settings that a product of two activations cannot have."""
        if site.migration is not None or site.outlier_threshold is not None:
            raise BertNumpyError(
                f"recipe {self.name}: {place}: migration and outlier_threshold are for "
                "products with weights"
            )
        if site.gptq is not None:
            raise BertNumpyError(f"recipe {self.name}: {place}: gptq is for products with weights")
        if site.b.granularity == "channel":
            raise BertNumpyError(
                f"recipe {self.name}: {place}: granularity 'channel' is for weights"
            )
        if kind == "context" and site.b.granularity == "token":
            raise BertNumpyError(
                f"recipe {self.name}: {place}: V cannot have a scale per token: the sum over "
                "tokens does not factor; expected 'tensor' or 'block'"
            )

    def _check_tiles(self, place: str, kind: str, site: SiteRecipe) -> None:
        """Refuse a product that attention in tiles cannot compute."""
        assert self.attention is not None
        for side, operand in (("a", site.a), ("b", site.b)):
            if not isinstance(operand.fmt, FloatFormat) or operand.granularity != "tensor":
                found = operand.fmt and f"{operand.fmt} with a scale per {operand.granularity}"
                raise BertNumpyError(
                    f"recipe {self.name}: attention: {place}:{side}: expected a float format with "
                    f"one scale per tensor, found {found}"
                )
        fmt, largest = site.a.fmt, 2**self.attention.offset
        assert isinstance(fmt, FloatFormat)
        if kind == "context" and largest > fmt.max:
            raise BertNumpyError(
                f"recipe {self.name}: attention: offset: expected weights of at most {fmt.max:g}, "
                f"the largest value of {fmt}, found 2^{self.attention.offset}"
            )

    def site(self, site: Site | str) -> SiteRecipe:
        """Return the recipe of the product at a site, or at the site of a name.

        Examples
        --------
        >>> from bert_numpy import PRESETS
        >>> PRESETS["e4m3-channel"].site("encoder.layer.0.output.dense").b
        Operand(fmt='E4M3FN', granularity='channel')
        """
        require("site", site, (str, Site), "a site or its name")
        place = site_named(site) if isinstance(site, str) else site
        by_kind = {"linear": self.linear, "scores": self.scores, "context": self.context}
        found = by_kind.get(place.kind, SiteRecipe())
        for pattern, override in self.overrides:
            if fnmatchcase(place.name, pattern):
                found = override
        return found

    @property
    def calibrated(self) -> bool:
        """True if the scale of an activation may come from a calibration."""
        sites = [self.linear, self.scores, self.context, *(site for _, site in self.overrides)]
        products = [self.scores, self.context]
        products += [site for pattern, site in self.overrides if fits_attention(pattern)]
        return (
            self.by_gptq
            or any(
                site.a.is_static or (site.migration is not None and site.quantizes)
                for site in sites
            )
            or any(site.b.is_static for site in products)
        )

    @property
    def by_gptq(self) -> bool:
        """True if weights may be rounded by GPTQ, which takes a calibration with Hessians."""
        sites = [self.linear, *(site for _, site in self.overrides)]
        return any(site.gptq is not None for site in sites)

    def check_overrides(self, sites: Sequence[Site]) -> None:
        """Raise :class:`BertNumpyError` if an override fits no site, or an unsuitable one.

        With ``attention``, an override is unsuitable if a product cannot be computed in tiles.

        Examples
        --------
        >>> import bert_numpy
        >>> from bert_numpy.model.sites import sites_of
        >>> sites = sites_of(bert_numpy.load("bert-tiny-sst2"))
        >>> bert_numpy.PRESETS["e4m3"].skipping("*.query").check_overrides(sites)
        >>> recipe = bert_numpy.PRESETS["e4m3"].skipping("*.queries")
        >>> recipe.check_overrides(sites)  # doctest: +NORMALIZE_WHITESPACE
        Traceback (most recent call last):
        ...
        bert_numpy.errors.BertNumpyError: recipe e4m3: override '*.queries': expected to fit a site,
        such as encoder.layer.0.attention.self.query
        """
        require("sites", sites, Sequence, "a list of sites")
        for pattern, override in self.overrides:
            fitting = [site for site in sites if fnmatchcase(site.name, pattern)]
            for site in fitting:
                if site.is_attention:
                    self._check_attention(site.name, site.kind, override)
            if not fitting:
                raise BertNumpyError(
                    f"recipe {self.name}: override {pattern!r}: expected to fit a site, "
                    f"such as {sites[0].name}"
                )
        if self.attention is not None:
            for site in sites:
                if site.is_attention:
                    self._check_tiles(site.name, site.kind, self.site(site))

    def check_accumulation(self, sites: Iterable[str]) -> None:
        """Raise :class:`BertNumpyError` if the accumulator cannot take a site's product.

        Examples
        --------
        >>> from dataclasses import replace
        >>> from bert_numpy import PRESETS
        >>> recipe = replace(PRESETS["int8"], accumulate="hopper")
        >>> names = ["encoder.layer.0.output.dense"]
        >>> recipe.check_accumulation(names)  # doctest: +NORMALIZE_WHITESPACE
        Traceback (most recent call last):
        ...
        bert_numpy.errors.BertNumpyError: recipe int8: encoder.layer.0.output.dense:a: accumulate
        'hopper': expected E4M3FN or E5M2, found INT8
        """
        require_iterable("sites", sites, "names of sites")
        accumulator = ACCUMULATORS[self.accumulate]
        for name in sites:
            how = self.site(name)
            if how.a.element is None or how.b.element is None:
                continue  # no product of codes
            # Only some take the scales of blocks into their sums: these need the whole format.
            formats = [x.element if accumulator.block is None else x.fmt for x in (how.a, how.b)]
            try:
                accumulator.check(*formats)  # type: ignore[arg-type]  # neither is None
            except ValueError as error:
                rest = self.accumulate in BFLOAT16_ACCUMULATORS
                hint = "; for products that are not of codes, name it in accumulate_rest" * rest
                raise BertNumpyError(f"recipe {self.name}: {name}:{error}{hint}") from None
            lengths = {x.granularity == "block" and x.block for x in (how.a, how.b) if x.dynamic}
            if len(lengths) > 1 and accumulator.kind not in ("exact", "blas"):
                raise BertNumpyError(
                    f"recipe {self.name}: {name}: accumulate {self.accumulate!r}: expected both "
                    f"operands in blocks of one length, found {how.a} and {how.b}"
                )
            for side, operand in (("a", how.a), ("b", how.b)):
                if operand.dynamic and not accumulator.scales_along_k:
                    raise BertNumpyError(
                        f"recipe {self.name}: {name}:{side}: accumulate {self.accumulate!r}: "
                        "expected one scale per tensor or channel, "
                        f"found granularity {operand.granularity!r}"
                    )

    def skipping(self, *patterns: str) -> Recipe:
        """Return the recipe with the sites that fit any of the patterns left unquantized.

        Examples
        --------
        >>> from bert_numpy import PRESETS
        >>> recipe = PRESETS["e4m3"].skipping("encoder.layer.0.*")
        >>> recipe.site("encoder.layer.0.output.dense").quantizes
        False
        """
        for pattern in patterns:
            require("patterns", pattern, str, "patterns of type str")
        skipped = tuple((pattern, SiteRecipe()) for pattern in patterns)
        return replace(self, overrides=self.overrides + skipped)
