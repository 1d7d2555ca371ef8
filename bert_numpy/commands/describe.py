"""Describe a model and its recipe in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bert_numpy.commands.report import counted
from bert_numpy.model.config import BertConfig, Pooling
from bert_numpy.quantization.recipe import Operand, Recipe, SiteRecipe

__all__ = ["describe_config", "describe_recipe", "label_names"]

#: The ways to make one vector of a text's tokens, by the names that config files use.
_POOLINGS = {
    "cls": "the first token",
    "mean": "the mean of the tokens",
    "mean_sqrt_len_tokens": "the sum of the tokens over the square root of their number",
    "weightedmean": "the mean of the tokens, weighted by position",
    "max": "the largest value of each feature",
    "lasttoken": "the last token",
}

#: The heads whose outputs have labels.
_LABELLED = ("sequence classification", "token classification")


def describe_config(config: BertConfig) -> Iterator[tuple[str, str]]:
    """Describe a model's encoder, inputs, head, labels and pooling: pairs of a title and a text."""
    yield "architecture", config.stated_architecture
    yield from _encoder(config)
    types = config.type_vocab_size
    yield (
        "input",
        f"at most {config.max_length:,} tokens, vocabulary of {config.vocab_size:,}"
        + f", {counted(types, 'token type')}" * (types > 0),
    )
    yield "head", config.head.name
    if config.head.name in _LABELLED:
        yield "labels", _labels(config)
    if config.pooling is not None:
        yield "pooling", _pooling(config.pooling)


def describe_recipe(recipe: Recipe | None) -> Iterator[tuple[str, str]]:
    """Describe how a checkpoint is quantized: pairs of a title and a text."""
    if recipe is None:
        yield "quantization", "none: the weights are floating-point numbers"
        return
    rest = f"everything else in {recipe.arithmetic}"
    yield "quantization", f"recipe {recipe.name}, stored in the checkpoint; {rest}"
    for title, site, names in (
        ("linear layers", recipe.linear, ("inputs", "weights")),
        ("Q K^T", recipe.scores, ("Q", "K")),
        ("P V", recipe.context, ("P", "V")),
    ):
        yield f"  {title}", _site(site, names)
    if recipe.overrides:
        yield "  exceptions", ", ".join(pattern for pattern, _ in recipe.overrides)
    if recipe.linear.quantizes or recipe.scores.quantizes or recipe.context.quantizes:
        yield "  sums", recipe.accumulate
    if recipe.accumulate_rest is not None:
        yield "  other sums", recipe.accumulate_rest
    if (tiles := recipe.attention) is not None:
        text = f"tiles of {tiles.keys} keys, weights times 2^{tiles.offset}"
        yield "  attention", f"{text}, row sums of {tiles.row_sum} weights"


def label_names(config: BertConfig) -> dict[str, str]:
    """Name each label as people read it: placeholders become classes or scores with numbers."""
    labels = config.labels
    if not _are_placeholders(labels):
        return {label: label for label in labels}
    word = "score" if _gives_scores(config) else "class"
    alone = word == "score" and len(labels) == 1
    return {label: word if alone else label.replace("LABEL_", f"{word} ") for label in labels}


def _are_placeholders(labels: Sequence[str]) -> bool:
    """Check for LABEL_0 and so on, which transformers writes where nobody named the labels."""
    return all(re.fullmatch(r"LABEL_\d+", label) for label in labels)


def _gives_scores(config: BertConfig) -> bool:
    problem = config.problem_type
    return problem == "regression" or (problem is None and len(config.labels) == 1)


def _encoder(config: BertConfig) -> Iterator[tuple[str, str]]:
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    yield (
        "encoder",
        f"{config.model_type}, {counted(layers, 'layer')} of width "
        f"{config.hidden_size:,}, {counted(heads, 'attention head')}",
    )
    yield "feed-forward", f"width {config.intermediate_size:,}, {config.hidden_act}"
    if config.embedding_size != config.hidden_size:
        yield "embeddings", f"width {config.embedding_size:,}, projected to the encoder's"
    if groups := config.num_hidden_groups:
        yield "sharing", f"{counted(groups, 'set')} of parameters for all layers"
    if buckets := config.relative_attention_num_buckets:
        yield "positions", f"absolute, and relative in {buckets} buckets"


def _labels(config: BertConfig) -> str:
    """Name the labels, or count those that nobody named."""
    labels, is_unnamed = config.labels, _are_placeholders(config.labels)
    if _gives_scores(config):
        count = "one score" if len(labels) == 1 else f"{len(labels)} scores"
        return count if is_unnamed else f"{count}: {', '.join(labels)}"
    is_several = config.problem_type == "multi_label_classification"
    several = " (several may apply)" if is_several else ""
    if is_unnamed:
        last = len(labels) - 1
        return f"{len(labels)} classes, 0 to {last}, which config.json does not name{several}"
    return f"{', '.join(labels)}{several}"


def _pooling(pooling: Pooling) -> str:
    parts = [" and ".join(_POOLINGS.get(mode, mode) for mode in pooling.modes)]
    if pooling.normalize:
        parts.append("divided by its norm")
    for dense in pooling.dense:
        parts.append(
            f"a linear layer to {dense.outputs:,} features"
            + f" ({dense.activation})" * (dense.activation is not None)
        )
        if dense.normalize:
            parts.append("divided by its norm")
    return ", then ".join(parts)


def _site(site: SiteRecipe, names: tuple[str, str]) -> str:
    if not site.quantizes:
        return "not quantized"
    parts = [
        f"{name} {_operand(operand)}" for name, operand in zip(names, (site.a, site.b), strict=True)
    ]
    if site.outlier_threshold is not None:
        parts.append(f"outliers beyond {site.outlier_threshold:g} left out by {site.outliers}")
    if site.migration is not None:
        parts.append(f"SmoothQuant's migration with alpha {site.migration:g}")
    if site.gptq is not None:
        parts.append("rounded by GPTQ")
    return ", ".join(parts)


def _operand(operand: Operand) -> str:
    if operand.fmt is None:
        return "not quantized"
    size = f" of {operand.block}" if operand.granularity == "block" else ""
    rule = "" if operand.rule is None else f" by the rule {operand.rule}"
    return f"in {operand.fmt.name} per {operand.granularity}{size}{rule}"
