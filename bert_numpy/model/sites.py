"""The matrix products and the parameters of a model, found by a pass without numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from bert_numpy.engines.shape import ShapeEngine, ShapeLayout
from bert_numpy.engines.site import Site
from bert_numpy.model.config import BertConfig
from bert_numpy.model.encoder import Pass
from bert_numpy.model.heads import outputs
from bert_numpy.model.model import Model, has_pooler
from npfp8.arguments import require

__all__ = [
    "WORDS",
    "encoder_sites",
    "expected_shapes",
    "linear_sites",
    "model_sites",
    "site_named",
    "sites_of",
    "sites_of_input",
]

#: The embedding table; a masked language model's decoder may share it.
WORDS = "embeddings.word_embeddings.weight"

_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(?:.+\.)?(\w+)")


def expected_shapes(config: BertConfig, pooler: bool = True) -> Mapping[str, tuple[int, ...]]:
    """Map the canonical name of each parameter to its shape, in the order of the data flow.

    Canonical names are those of transformers' ``BertModel`` (no ``bert.``
    prefix) and of BERT's heads, for every model type. Three are not BERT's:
    ``embeddings_project`` (ELECTRA, ALBERT), ``discriminator_predictions`` (ELECTRA)
    and ``cls.sop_classifier`` (ALBERT).
    Linear weights are (out_features, in_features). ``pooler`` decides whether there
    is a pooler if the head leaves it open.
    """
    return MappingProxyType(_traced(config, pooler).parameters)


def sites_of(model: Model) -> tuple[Site, ...]:
    """List every matrix product of a model, in the order of the data flow."""
    return _sites(_traced(model.config, has_pooler(model)))


def linear_sites(config: BertConfig) -> tuple[Site, ...]:
    """List every linear layer that a model can have, including its pooler."""
    return tuple(site for site in _sites(_traced(config, True)) if not site.is_attention)


def sites_of_input(model: Model, site: Site) -> tuple[Site, ...]:
    """List the sites with the same input as ``site``: query, key and value, or itself alone."""
    products = _traced(model.config, has_pooler(model)).products
    return next(sites for sites in products if site in sites)


def model_sites(model: Model) -> list[str]:
    """List the name of every matrix product of a model, in the order of the data flow.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> from bert_numpy.model import model_sites
    >>> model_sites(model)[0], model_sites(model)[-1]
    ('encoder.layer.0.attention.self.query', 'classifier')
    """
    require("model", model, Model, "a model, as bert_numpy.load returns it")
    return [site.name for site in sites_of(model)]


def encoder_sites(config: BertConfig) -> list[str]:
    """Name every matrix product of the Transformer layers, in the order of the data flow.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> from bert_numpy.model import encoder_sites
    >>> len(encoder_sites(model.config))  # 8 per layer
    16
    """
    require("config", config, BertConfig, "a BertConfig, such as model.config")
    return [site.name for site in _sites(_traced(config, True)) if site.layer is not None]


def site_named(name: str) -> Site:
    """Derive the kind and the layer of a site from its name alone.

    Examples
    --------
    >>> site_named("encoder.layer.3.attention.scores")
    Site(name='encoder.layer.3.attention.scores', kind='scores', layer=3, outputs=0)
    """
    found = _LAYER.fullmatch(name)
    if found:
        kind = found[2] if found[2] in ("scores", "context") else "linear"
        return Site(name, kind, int(found[1]))
    return Site(name, "projection" if name == "embeddings_project" else "head")


@lru_cache(maxsize=64)
def _traced(config: BertConfig, pooler: bool) -> ShapeEngine:
    """Run a pass without numbers; the result is cached and must not be changed."""
    engine = ShapeEngine()
    run = Pass(config, engine, ShapeLayout())
    wanted = config.head.pooler
    outputs(run, pooler if wanted is None else wanted)
    return engine


def _sites(engine: ShapeEngine) -> tuple[Site, ...]:
    """List the sites, one per name where layers share their parameters."""
    found: dict[str, Site] = {}
    for site in (site for sites in engine.products for site in sites):
        found.setdefault(site.name, site)
    return tuple(found.values())
