"""The named recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike, fspath
from types import MappingProxyType
from typing import Any

from bert_numpy.errors import BertNumpyError
from bert_numpy.quantization.gptq import Gptq
from bert_numpy.quantization.recipe import AnyFormat, Operand, Recipe, SiteRecipe
from bert_numpy.quantization.recipe_json import load_recipe
from bert_numpy.quantization.tiled_attention import TiledAttention
from npfp8 import (
    E4M3FN,
    E5M2,
    INT4,
    INT8,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    UINT4,
    UINT8,
)
from npfp8.arguments import loaded
from npfp8.names import match, suggestion

__all__ = ["PRESETS", "as_recipe", "preset", "w4a16"]


def _alike(name: str, fmt: AnyFormat, **operand: Any) -> Recipe:
    """Quantize both operands of every product of the encoder in the same way."""
    both = Operand(fmt, **operand)
    site = SiteRecipe(both, both)
    return Recipe(name, site, site, site)


def _with_weights(recipe: Recipe, **weights: Any) -> Recipe:
    return replace(recipe, linear=replace(recipe.linear, b=replace(recipe.linear.b, **weights)))


def _per_token(name: str, fmt: AnyFormat) -> Recipe:
    """Scale activations per token, weights per output channel, and V per tensor."""
    token = Operand(fmt, "token")
    return Recipe(
        name,
        SiteRecipe(token, Operand(fmt, "channel")),
        SiteRecipe(token, token),
        SiteRecipe(token, Operand(fmt)),
    )


def _migrated(recipe: Recipe, smoothing: str = "power_of_two") -> Recipe:
    """Apply SmoothQuant's migration where its authors do: at the layers that LayerNorm feeds.

    Source: Xiao et al., *SmoothQuant* (arXiv 2211.10438), section 4. The output layers
    of the attention and of the feed-forward network are left out.
    """
    return replace(
        recipe,
        linear=replace(recipe.linear, migration=0.5, smoothing=smoothing),
        overrides=(*recipe.overrides, ("*.output.dense", recipe.linear)),
    )


def _weights(name: str, fmt: AnyFormat) -> Recipe:
    """Quantize the encoder's weights alone."""
    return Recipe(name, SiteRecipe(b=Operand(fmt)))


def w4a16(block: int | None = 128, *, asymmetric: bool = False, gptq: Gptq | None = None) -> Recipe:
    """Make a recipe of weights in INT4 and activations in bfloat16, by its settings.

    Source: Kurtic et al., *"Give Me BF16 or Give Me Death"?* (arXiv 2411.02355), which has
    groups of 128, symmetric, by GPTQ.

    Parameters
    ----------
    block : int, optional
        The number of inputs of an output that share a scale; None for all of them.
    asymmetric : bool
        Whether each group has a zero point (UINT4), too.
    gptq : Gptq, optional
        How GPTQ rounds the weights; None rounds them to nearest.

    Examples
    --------
    >>> from bert_numpy.quantization.presets import w4a16
    >>> w4a16(64, asymmetric=True)
    <Recipe w4a16-g64-asym: linear - x UINT4; rest bfloat16>
    """
    size = "-channel" if block is None else "" if block == 128 else f"-g{block}"
    scales: dict[str, Any] = {"granularity": "channel"} if block is None else {
        "granularity": "block", "block": block
    }  # fmt: skip
    weights = Operand(UINT4 if asymmetric else INT4, **scales)
    stored = gptq is not None and gptq.order == "stored"
    rounded = f"{'-gptq' * (gptq is not None)}{'-stored' * stored}"
    name = f"w4a16{size}{'-asym' * asymmetric}{rounded}"
    return Recipe(name, SiteRecipe(b=weights, gptq=gptq))


def _linear_and_attention(name: str, linear: AnyFormat, attention: AnyFormat) -> Recipe:
    """Quantize linear layers in one format, and attention in another."""
    return replace(_alike(name, attention), linear=_alike(name, linear).linear)


def _presets() -> Mapping[str, Recipe]:
    int8, e4m3, e5m2 = _alike("int8", INT8), _alike("e4m3", E4M3FN), _alike("e5m2", E5M2)
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
        _alike("int8-percentile", INT8, observer="percentile"),
        _alike("int8-mse", INT8, observer="mse"),
        _with_weights(_alike("int8-entropy", INT8, observer="entropy"), observer="absmax"),
        token,
        replace(token, name="int8-outliers", linear=outliers),
        replace(token, name="int8-outliers-columns", linear=replace(outliers, outliers="column")),
        _migrated(replace(int8, name="int8-smooth", linear=channels)),
        _migrated(replace(int8, name="int8-smooth-paper"), smoothing="paper"),
        _with_weights(replace(e4m3, name="e4m3-channel"), granularity="channel"),
        _per_token("e4m3-token", E4M3FN),
        _alike("e4m3-block", E4M3FN, granularity="block"),
        _alike("e4m3-pow2", E4M3FN, power_of_two=True),
        _alike("e4m3-mse", E4M3FN, observer="mse"),
        _migrated(replace(e4m3, name="e4m3-smooth")),
        _weights("e4m3-weights", E4M3FN),
        Recipe("mixed", mixed, mixed, mixed),
        _alike("mxfp8", MXFP8_E4M3),
        _alike("mxfp8-e5m2", MXFP8_E5M2),
        _alike("mxfp6", MXFP6_E2M3),
        _alike("mxfp6-e3m2", MXFP6_E3M2),
        _alike("mxfp4", MXFP4),
        _alike("nvfp4", NVFP4),
        _alike("mxint8", MXINT8),
        _weights("mxfp4-weights", MXFP4),
        _weights("nvfp4-weights", NVFP4),
        w4a16(),
        w4a16(64),
        w4a16(32),
        w4a16(None),
        w4a16(asymmetric=True),
        w4a16(gptq=Gptq()),
        w4a16(asymmetric=True, gptq=Gptq()),
        _linear_and_attention("mxfp4-mixed", MXFP4, E4M3FN),
        _linear_and_attention("nvfp4-mixed", NVFP4, E4M3FN),
        replace(e4m3, name="e4m3-flash", attention=TiledAttention()),
    )
    return MappingProxyType({recipe.name: recipe for recipe in recipes})


#: The named recipes. The first five are the paper's comparison, beginning with the reference.
PRESETS = _presets()


def preset(name: str, argument: str = "format") -> Recipe:
    """Look up a recipe by its name, or read it from a file whose name ends in ``.json``.

    Parameters
    ----------
    name : str
        A key of :data:`PRESETS` in any case, or a path.
    argument : str
        The name of the argument or option, for the error.

    Raises
    ------
    BertNumpyError
        If no recipe has the name, or the file is not a recipe.

    Examples
    --------
    >>> from bert_numpy.quantization.presets import preset
    >>> preset("E4M3")  # doctest: +NORMALIZE_WHITESPACE
    <Recipe e4m3: linear E4M3FN x E4M3FN, scores E4M3FN x E4M3FN, context E4M3FN x E4M3FN;
    rest bfloat16>
    """
    if name.endswith(".json"):
        return load_recipe(name)
    found = match(name, PRESETS)
    if found is None:
        raise BertNumpyError(
            f"{argument}: expected one of {', '.join(PRESETS)}, found {name!r}"
            f"{suggestion(name, PRESETS)}"
        )
    return PRESETS[found]


def as_recipe(recipe: Recipe | str | PathLike[str], argument: str = "recipe") -> Recipe:
    """Return a recipe that is given as such, by its name, or as a JSON file.

    Every function that takes a recipe looks it up here.

    Parameters
    ----------
    recipe : Recipe, str or path
        A name is a key of :data:`PRESETS`, in any case; a path ends in ``.json``.
    argument : str
        The name of the argument, for the error.

    Raises
    ------
    TypeError
        If it is none of these.
    BertNumpyError
        If no recipe has the name (the message suggests the nearest), or the file is not a recipe.

    Examples
    --------
    >>> from bert_numpy.quantization.presets import as_recipe
    >>> as_recipe("INT8").name
    'int8'
    """
    return loaded(
        argument,
        recipe,
        Recipe,
        lambda name: preset(fspath(name), argument),
        "a recipe, its name, or a JSON file",
    )
