"""The names and differences of BERT's relatives: data, no code.

Everything behind :func:`bert_numpy.load` uses one encoder, BERT's, and one set of
names, those of transformers' ``BertModel``. A model type is described by
the keys of its ``config.json``, the names of its tensors, and the few differences
of its forward pass.

Sources: the papers (BERT 1810.04805, DistilBERT 1910.01108, RoBERTa 1907.11692,
XLM-R 1911.02116, CamemBERT 1911.03894, ELECTRA 2003.10555, ALBERT 1909.11942, all
arXiv; MPNet 2004.09297), and the checkpoints as transformers writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from npfp8.arguments import choice

__all__ = [
    "ARCHITECTURES",
    "ENCODER",
    "HEADS",
    "SENTENCE_EMBEDDINGS",
    "Architecture",
    "Head",
    "family_of",
]

#: Pairs of a canonical name and the checkpoint's name; ``*`` is the number of a layer.
Names = tuple[tuple[str, str], ...]

_LAYER = re.compile(r"(?<=^encoder\.layer\.)\d+")

#: The pattern of transformers' class names: the model family, then the task.
_CLASS = re.compile(r"(\w+?)(?:For(\w+)|Model|LMHeadModel|PreTrainedModel|Encoder|Decoder)")


@dataclass(frozen=True)
class Head:
    """A head: the layers after the encoder that compute a task's outputs.

    Attributes
    ----------
    name : str
        The key of the head's function in :mod:`bert_numpy.model.heads`.
    pooler : bool, optional
        True if the head reads the pooler's output; None if the pooler is computed
        whenever the checkpoint has one.
    has_choices : bool
        True if an example is several texts, of which one is chosen: (examples, choices, length).
    """

    name: str
    pooler: bool | None = False
    has_choices: bool = False


#: Heads by the part after "For" in the name of the class that wrote a checkpoint.
HEADS = {
    "SequenceClassification": Head("sequence classification", pooler=True),
    "MultipleChoice": Head("multiple choice", pooler=True, has_choices=True),
    "NextSentencePrediction": Head("next sentence prediction", pooler=True),
    "PreTraining": Head("pre-training", pooler=True),
    "MaskedLM": Head("masked language modelling"),
    "TokenClassification": Head("token classification"),
    "QuestionAnswering": Head("question answering"),
}

ENCODER = Head("none: a bare encoder", pooler=None)
SENTENCE_EMBEDDINGS = Head("sentence embeddings")
_REPLACED_TOKENS = Head("replaced token detection")
_SENTENCE_ORDER = Head("sentence order pre-training", pooler=True)


@dataclass(frozen=True)
class Architecture:
    """The differences between a model type and BERT.

    Attributes
    ----------
    class_name : str
        The family name in transformers' classes: ``{class_name}ForMaskedLM`` and so on.
    prefix : str
        The prefix of the encoder's tensor names in the checkpoint of a model with a head.
    keys : mapping of str to str
        The keys of ``config.json`` that have other names than BERT's, by BERT's names.
    aliases : tuple of str
        The keys among these that transformers also reads under BERT's name
        (``attribute_map`` of its configuration).
    fixed : mapping of str to Any
        Values for keys that this model type's config does not have.
    defaults : mapping of str to Any
        Defaults for optional keys, where they differ from BERT's.
    expected : mapping of str to mapping
        Keys with their only supported values, by the name of a head, or "" for all heads.
    names : Names
        The names of its tensors, where they differ from BERT's. If a parameter can have
        several names, the first one in the checkpoint is taken; transformers writes
        the last one.
    head_names : mapping of str to Names
        The names for one head only, by its name; they come before ``names``.
    heads : mapping of str to Head
        Overrides, for classes whose head differs from BERT's class of the same name.
    pooler_activation : str
        The activation of the layer between the first token's hidden state and a classifier.
    prediction_activation : str, optional
        The activation of the layer before a masked language model's decoder; None if it
        is the encoder's.
    counts_positions : bool
        True if only non-padding tokens are numbered, starting at ``pad_token_id + 1``
        (RoBERTa); False if all positions are numbered from 0.
    mask_token : str
    shares_layers : bool
        True if the layers of a group share their parameters (``num_hidden_groups``).
    projects_embeddings : bool
        True if embeddings are projected even when they are as wide as hidden states.
    """

    class_name: str
    prefix: str
    keys: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    names: Names = ()
    head_names: Mapping[str, Names] = field(default_factory=dict)
    heads: Mapping[str, Head] = field(default_factory=dict)
    pooler_activation: str = "tanh"
    prediction_activation: str | None = None
    counts_positions: bool = False
    mask_token: str = "[MASK]"
    shares_layers: bool = False
    projects_embeddings: bool = False

    def head(self, architecture: str) -> Head:
        """Return the head in the checkpoints of the class ``architecture``; by default none."""
        found = _CLASS.fullmatch(architecture)
        task = found[2] if found else None
        return self.heads.get(task or "") or HEADS.get(task or "", ENCODER)

    def reads(self, architecture: str) -> bool:
        """Check that a checkpoint of the class ``architecture`` can have this description.

        It cannot if the class name belongs to another family with a different forward
        pass: ``RobertaModel`` is no BERT, but RoBERTa, XLM-R and CamemBERT are one
        architecture. A name without a family is always accepted.
        """
        family = family_of(architecture)
        others = [other for other in ARCHITECTURES.values() if other.class_name == family]
        return family is None or self in [replace(o, class_name=self.class_name) for o in others]

    def class_of(self, head: str) -> str:
        """Name the class with a given head; sentence embeddings have a folder and no class."""
        if head == SENTENCE_EMBEDDINGS.name:
            return f"model for {head} (a sentence-transformers folder, with modules.json)"
        if head == ENCODER.name:
            return f"{self.class_name}Model"
        tasks = {other.name: task for task, other in (HEADS | dict(self.heads)).items()}
        return f"{self.class_name}For{tasks[choice('name', head, tasks)]}"

    def stored_names(self, name: str, head: Head) -> Iterator[str]:
        """Yield the possible names of a parameter in a checkpoint, without the encoder's prefix."""
        number = _LAYER.search(name)
        pattern = _LAYER.sub("*", name)
        found = False
        for ours, theirs in (*self.head_names.get(head.name, ()), *self.names):
            if pattern.startswith(f"{ours}."):
                found = True
                stored = theirs + pattern[len(ours) :]
                yield stored.replace("*", number[0]) if number else stored
            elif pattern == ours:
                found = True
                yield theirs
        if not found:
            yield name


def family_of(architecture: str) -> str | None:
    """Return the model family in the name of a transformers class; None for any other name.

    Examples
    --------
    >>> family_of("DistilBertForMaskedLM"), family_of("BertLMHeadModel"), family_of("ColBERT")
    ('DistilBert', 'Bert', None)
    """
    found = _CLASS.fullmatch(architecture)
    return found[1] if found else None


_CLASSIFIER: Names = (("pooler.dense", "classifier.dense"), ("classifier", "classifier.out_proj"))

_LM_HEAD: Names = (
    ("cls.predictions.transform.dense", "lm_head.dense"),
    ("cls.predictions.transform.LayerNorm", "lm_head.layer_norm"),
    ("cls.predictions.decoder", "lm_head.decoder"),
    ("cls.predictions.decoder.bias", "lm_head.bias"),
)

_ALBERT_LAYER = "encoder.albert_layer_groups.*.albert_layers.0"

_ROBERTA: dict[str, Any] = {
    "prefix": "roberta.",
    "defaults": {"pad_token_id": 1},
    "names": _LM_HEAD,
    "head_names": {"sequence classification": _CLASSIFIER},
    "prediction_activation": "gelu",
    "counts_positions": True,
    "mask_token": "<mask>",
}

#: By ``model_type`` in ``config.json``.
ARCHITECTURES = {
    "bert": Architecture(
        "Bert",
        "bert.",
        names=(
            ("cls.predictions.decoder", "cls.predictions.decoder"),
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ),
    ),
    "distilbert": Architecture(
        "DistilBert",
        "distilbert.",
        keys={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        aliases=("hidden_size", "num_hidden_layers", "num_attention_heads"),
        fixed={"type_vocab_size": 0, "layer_norm_eps": 1e-12},
        names=(
            ("encoder.layer.*.attention.self.query", "transformer.layer.*.attention.q_lin"),
            ("encoder.layer.*.attention.self.key", "transformer.layer.*.attention.k_lin"),
            ("encoder.layer.*.attention.self.value", "transformer.layer.*.attention.v_lin"),
            ("encoder.layer.*.attention.output.dense", "transformer.layer.*.attention.out_lin"),
            ("encoder.layer.*.attention.output.LayerNorm", "transformer.layer.*.sa_layer_norm"),
            ("encoder.layer.*.intermediate.dense", "transformer.layer.*.ffn.lin1"),
            ("encoder.layer.*.output.dense", "transformer.layer.*.ffn.lin2"),
            ("encoder.layer.*.output.LayerNorm", "transformer.layer.*.output_layer_norm"),
            ("pooler.dense", "pre_classifier"),
            ("cls.predictions.transform.dense", "vocab_transform"),
            ("cls.predictions.transform.LayerNorm", "vocab_layer_norm"),
            ("cls.predictions.decoder", "vocab_projector"),
        ),
        pooler_activation="relu",
    ),
    "roberta": Architecture("Roberta", **_ROBERTA),
    "xlm-roberta": Architecture("XLMRoberta", **_ROBERTA),
    "camembert": Architecture("Camembert", **_ROBERTA),
    "electra": Architecture(
        "Electra",
        "electra.",
        defaults={"embedding_size": 128},
        expected={
            "multiple choice": {
                "summary_type": "first",
                "summary_use_proj": True,
                "summary_activation": "gelu",
                "summary_proj_to_labels": False,
            }
        },
        names=(
            ("cls.predictions.transform.dense", "generator_predictions.dense"),
            ("cls.predictions.transform.LayerNorm", "generator_predictions.LayerNorm"),
            ("cls.predictions.decoder", "generator_lm_head"),
        ),
        head_names={
            "sequence classification": _CLASSIFIER,
            "multiple choice": (("pooler.dense", "sequence_summary.summary"),),
        },
        heads={"PreTraining": _REPLACED_TOKENS},
        pooler_activation="gelu",
        prediction_activation="gelu",
    ),
    "albert": Architecture(
        "Albert",
        "albert.",
        defaults={"embedding_size": 128, "hidden_act": "gelu_new", "num_hidden_groups": 1},
        expected={"": {"inner_group_num": 1}},
        names=(
            ("embeddings_project", "encoder.embedding_hidden_mapping_in"),
            ("encoder.layer.*.attention.self.query", f"{_ALBERT_LAYER}.attention.query"),
            ("encoder.layer.*.attention.self.key", f"{_ALBERT_LAYER}.attention.key"),
            ("encoder.layer.*.attention.self.value", f"{_ALBERT_LAYER}.attention.value"),
            ("encoder.layer.*.attention.output.dense", f"{_ALBERT_LAYER}.attention.dense"),
            ("encoder.layer.*.attention.output.LayerNorm", f"{_ALBERT_LAYER}.attention.LayerNorm"),
            ("encoder.layer.*.intermediate.dense", f"{_ALBERT_LAYER}.ffn"),
            ("encoder.layer.*.output.dense", f"{_ALBERT_LAYER}.ffn_output"),
            ("encoder.layer.*.output.LayerNorm", f"{_ALBERT_LAYER}.full_layer_layer_norm"),
            ("pooler.dense", "pooler"),
            ("cls.predictions.transform.dense", "predictions.dense"),
            ("cls.predictions.transform.LayerNorm", "predictions.LayerNorm"),
            ("cls.predictions.decoder", "predictions.decoder"),
            ("cls.predictions.decoder.bias", "predictions.bias"),
            ("cls.sop_classifier", "sop_classifier.classifier"),
        ),
        heads={"PreTraining": _SENTENCE_ORDER},
        shares_layers=True,
        projects_embeddings=True,
    ),
    "mpnet": Architecture(
        "MPNet",
        "mpnet.",
        # Positions are counted over the tokens other than 1, whatever id the file gives.
        fixed={"type_vocab_size": 0, "pad_token_id": 1},
        defaults={"relative_attention_num_buckets": 32},
        names=(
            ("encoder.layer.*.attention.self.query", "encoder.layer.*.attention.attn.q"),
            ("encoder.layer.*.attention.self.key", "encoder.layer.*.attention.attn.k"),
            ("encoder.layer.*.attention.self.value", "encoder.layer.*.attention.attn.v"),
            ("encoder.layer.*.attention.output.dense", "encoder.layer.*.attention.attn.o"),
            ("encoder.layer.*.attention.output.LayerNorm", "encoder.layer.*.attention.LayerNorm"),
            *_LM_HEAD,
        ),
        head_names={"sequence classification": _CLASSIFIER},
        prediction_activation="gelu",
        counts_positions=True,
        mask_token="<mask>",
    ),
}
