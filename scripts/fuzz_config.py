"""Change settings of small checkpoints, and load them with transformers and this package.

    python scripts/fuzz_config.py [--cases N] [--seed S] [--first NUMBER] [--verbose]

Each case is a folder that transformers wrote, with a random model of one architecture and
head. One or two keys of its ``config.json``, or of the settings of a sentence-transformers
folder, are added, removed, renamed or contradicted. The outcomes may be:

    equal     every output that both compute agrees within 1e-4 of its largest number, and so
              do the names of the labels
    refused   one error of this project that names a key (or file) that was changed
    alone     transformers does not load the folder, or only with newly initialized weights

A difference, another exception, an error that does not name the cause, and a refusal of a
key that has no effect are failures. If transformers has two ways to load a folder, by its
``model_type`` and by the class in ``architectures``, the results must equal both. A case
depends only on the seed and its number, and is repeated with ``--first NUMBER --cases 1``.
The script needs torch and transformers; without sentence-transformers its folders are skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import load_file, save_file

import bert_numpy
from bert_numpy.tasks.glue import TASKS, label_order

#: The tolerance relative to an output's largest number.
TOLERANCE = 1e-4

WORDS = 40
LENGTH = 11
ABSENT = "(absent)"
NAN = float("nan")

Rng = random.Random
Raw = dict[str, Any]

#: The names of transformers' configurations, with their keys for the sizes.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
KINDS = {
    "Bert": SIZES,
    "DistilBert": ("dim", "n_layers", "n_heads", "hidden_dim"),
    "Roberta": SIZES,
    "XLMRoberta": SIZES,
    "Camembert": SIZES,
    "Electra": SIZES,
    "Albert": SIZES,
    "MPNet": SIZES,
}
HEADS = (
    "Model",
    "ForSequenceClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
    "ForTokenClassification",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForPreTraining",
)

#: Keys of config.json and the values they are set to. These must not be refused, as they do
#: not change the results.
NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "use_cache": (True, False),
    "chunk_size_feed_forward": (0,),
    "output_hidden_states": (True, False),
    "output_attentions": (False, ABSENT),
    "return_dict": (True,),
    "torchscript": (False,),
    "initializer_range": (0.5, 1e-9),
    "hidden_dropout_prob": (0.0, 0.9),
    "attention_probs_dropout_prob": (0.0, 0.9),
    "classifier_dropout": (None, 0.5),
    "classifier_dropout_prob": (0.9,),
    "dropout": (0.9,),
    "attention_dropout": (0.9,),
    "qa_dropout": (0.9,),
    "seq_classif_dropout": (0.9,),
    "summary_last_dropout": (0.9,),
    "layerdrop": (0.5,),
    "sinusoidal_pos_embds": (True, False),
    "tie_weights_": (True, False),
    "torch_dtype": ("float32", "float16", "bfloat16", ABSENT),
    "dtype": ("float32", "float16", "bfloat16"),
    "gradient_checkpointing": (True, False),
    "transformers_version": ("4.1.0", "99.0.0", ABSENT),
    "finetuning_task": ("mnli", "sst-2"),
    "_name_or_path": ("roberta-base", ""),
    "directionality": ("bidi",),
    "pooler_fc_size": (768,),
    "head_dim": (3,),
    "problem_type": (None, "single_label_classification", "multi_label_classification"),
    "custom_pipelines": ({"x": {"impl": "x.X", "type": "text"}},),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "architectures": (ABSENT, None, []),
    "bos_token_id": (None, 0, 7),
    "eos_token_id": (None, 2, 7),
    "sep_token_id": (3,),
    "num_labels": (None, ABSENT),
    "position_embedding_type": ("absolute", ABSENT),
    "is_decoder": (False, ABSENT),
    "add_cross_attention": (False, ABSENT),
    "is_encoder_decoder": (False, ABSENT),
    "auto_map": ({}, None),
    "layer_norm_epsilon": (0.5,),
    "hidden_activation": ("relu",),
    "inner_group_num": (1,),
    "sentence_transformers": ({"activation_fn": "torch.nn.modules.activation.Sigmoid"},),
    "sbert_ce_default_activation_function": ("torch.nn.modules.linear.Identity",),
    "max_length": (3,),
    "num_beams": (4,),
}
MAY_BE_REFUSED: dict[str, tuple[Any, ...]] = {
    "hidden_act": (
        *("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "gelu_fast", "gelu_python"),
        *("gelu_accurate", "gelu_10", "quick_gelu", "swish", "mish", "tanh", "sigmoid", "linear"),
        *("relu6", "relu2", "leaky_relu", "laplace", "prelu", "GELU", "", None, 3, ABSENT),
    ),
    "activation": ("gelu", "gelu_new", "relu", "silu", "swish", "tanh", "x", None, ABSENT),
    "position_embedding_type": ("relative_key", "relative_key_query", "rotary", "", None),
    "is_decoder": (True, None, 1, "false", "true"),
    "add_cross_attention": (True, None, "false"),
    "is_encoder_decoder": (True, None),
    "is_causal": (True,),
    "tie_encoder_decoder": (True,),
    "tie_word_embeddings": (True, False, None, "false", 0),
    "pruned_heads": ({"0": [0]}, {"0": []}, {"1": [1]}),
    "problem_type": ("regression", "ranking", 3, ""),
    "layer_norm_eps": (1e-5, 1e-3, 0.5, 2.0, -1.0, 0, 1, "1e-5", None, NAN, True, ABSENT),
    "summary_type": ("first", "last", "mean", "cls_index", "attn", None, ABSENT),
    "summary_use_proj": (True, False, None, ABSENT),
    "summary_activation": ("gelu", "tanh", "relu", None, "", ABSENT),
    "summary_proj_to_labels": (True, False, ABSENT),
    "type_vocab_size": (0, 1, 2, 3, -1, None, 2.0, "2", ABSENT),
    "pad_token_id": (0, 1, 2, 5, WORDS - 1, WORDS, -1, None, 1.0, "1", True, [1], ABSENT),
    "max_position_embeddings": (1, 2, 20, 40, 64, None, 32.0, ABSENT),
    "vocab_size": (WORDS - 1, WORDS + 1, 30522, 40.0, "40", None, ABSENT),
    "embedding_size": (8, 16, 128, None, ABSENT),
    "num_hidden_groups": (1, 2, 3, 0, -1, 1.0, "1", True, None, ABSENT),
    "relative_attention_num_buckets": (32, 33, 31, 64, 0, 32.0, True, None, ABSENT),
    "inner_group_num": (1, 2, 0, None, ABSENT),
    "hidden_size": (8, 16, 32, 16.0, "16", None, ABSENT),
    "num_hidden_layers": (0, 1, 2, 3, 1.0, "1", True, None, ABSENT),
    "num_attention_heads": (1, 2, 3, 4, 8, 2.0, 0, -2, None, ABSENT),
    "intermediate_size": (24, 40, 24.0, None, ABSENT),
    "dim": (8, 16, 32, 16.0, None, ABSENT),
    "n_layers": (0, 1, 2, 3, 1.0, ABSENT),
    "n_heads": (1, 2, 4, 3, 2.0, ABSENT),
    "hidden_dim": (24, 40, 24.0, ABSENT),
    "num_labels": (1, 2, 3, 5, 0, -1, 2.0, "2", True),
    "return_dict": (False,),
    "torchscript": (True,),
    "chunk_size_feed_forward": (4, None),
    "auto_map": ({"AutoModel": "modeling.X"}, {"AutoConfig": "configuration.X"}),
    "configuration_files": (["config.json"], ["config.4.0.0.json"]),
    "transformers_weights": ("model.safetensors", "other.safetensors"),
    "per_layer_config": ({"0": {"intermediate_size": 40}}, {"0": {"num_attention_heads": 1}}),
    "attn_implementation": ("eager", "sdpa"),
    "model_type": (
        *("bert", "distilbert", "roberta", "xlm-roberta", "camembert", "electra", "albert"),
        "mpnet",
        *(
            "mobilebert",
            "xlm-roberta-xl",
            "bert-generation",
            "BERT",
            "",
            None,
            1,
            ["bert"],
            ABSENT,
            ABSENT,
        ),
    ),
}

#: Keys whose refusal may name something else: a size also shows in the shapes of tensors.
RELATED = {
    "model_type": ("model_type", "architectures", "key '"),
    "architectures": ("model_type", "architectures", "but missing", "by config.json"),
    "pad_token_id": ("pad_token_id", "max_position_embeddings"),
    **dict.fromkeys(
        ("id2label", "label2id", "num_labels"),
        ("id2label", "label2id", "num_labels", "tensor 'classifier"),
    ),
    **dict.fromkeys(
        (*SIZES, *KINDS["DistilBert"], "embedding_size", "vocab_size", "type_vocab_size"),
        ("by config.json", "missing", "num_hidden_groups"),
    ),
    "num_hidden_groups": ("by config.json", "missing"),
    "relative_attention_num_buckets": ("by config.json",),
    "max_position_embeddings": ("by config.json",),
    "tie_word_embeddings": ("tensor 'cls.predictions", "tensor 'lm_head", "tensor 'vocab_proj"),
}
RELATED["tie_word_embeddings"] += ("tensor 'generator_lm_head", "tensor 'predictions.decoder")
RELATED["stored decoder"] = ("tie_word_embeddings",)

#: Names for the class of a checkpoint; ``{kind}`` is its own family.
CLASSES = (
    *("{kind}" + head for head in HEADS),
    *("{kind}LMHeadModel", "{kind}ForCausalLM", "{kind}ForX", "{kind}PreTrainedModel"),
    *("BertModel", "RobertaModel", "DistilBertModel", "ElectraModel", "XLMRobertaModel"),
    *("RobertaForMaskedLM", "CamembertForSequenceClassification", "BertForMaskedLM"),
    *(
        "AlbertModel",
        "MPNetModel",
        "MobileBertModel",
        "RobertaPreLayerNormModel",
        "BertGenerationEncoder",
        "HF_ColBERT",
    ),
    *("MyBertForSequenceClassification", "T5ForConditionalGeneration", "", "For", "Model"),
)

#: Values of id2label: a tuple has the names in their order; other values are used unchanged.
LABELS: tuple[Any, ...] = (
    *(("negative", "positive"), ("b", "a"), ("x",), ("a", "b", "c"), ("same", "same")),
    *((0, 1), (1, 0), (None, "x"), (True, False), (0.0, 1.0), (["x"], "y"), ("", "x")),
    *(("a\nb", "c"), tuple(f"L{i}" for i in range(12))),
    *({"0": "a", "2": "b"}, {"1": "a", "2": "b"}, {"00": "a", "1": "b"}, {" 0": "a", "1": "b"}),
    *({"1": "b", "0": "a"}, {"a": 0, "b": 1}, {}, [], ["a", "b"], "ab", None, ABSENT),
)
NUMBERS: tuple[Any, ...] = (
    *({"negative": 0, "positive": 1}, {"negative": 1, "positive": 0}, {"LABEL_0": 0, "LABEL_1": 1}),
    *({"LABEL_0": 1, "LABEL_1": 0}, {"negative": 0}, {"negative": "0"}, {"negative": False}),
    *({"other": 0}, {"negative": 7}, {}, [], None, ABSENT),
)

#: Names of a head's outputs, a GLUE task, and the class of each output; None if it is unknown.
ORDERS: tuple[tuple[tuple[str, ...], str, tuple[int, ...] | None], ...] = (
    (("negative", "positive"), "sst2", (0, 1)),
    (("POSITIVE", "NEGATIVE"), "sst2", (1, 0)),
    ((" Positive", "negative "), "sst2", (1, 0)),
    (("LABEL_0", "LABEL_1"), "sst2", (0, 1)),
    (("1", "0"), "sst2", (1, 0)),
    (("LABEL_1", "LABEL_0"), "sst2", None),
    (("pos", "neg"), "sst2", None),
    (("positive", "neg"), "sst2", None),
    (("1 star", "5 stars"), "sst2", None),
    (("not equivalent", "equivalent"), "mrpc", (0, 1)),
    (("Equivalent", "Not-Equivalent"), "mrpc", (1, 0)),
    (("paraphrase", "other"), "mrpc", None),
    (("acceptable", "unacceptable"), "cola", (1, 0)),
    (("not_duplicate", "duplicate"), "qqp", (0, 1)),
    (("not_entailment", "entailment"), "rte", (1, 0)),
    (("not_entailment", "entailment"), "wnli", (0, 1)),
    (("entailment", "not entailment"), "qnli", (0, 1)),
    (("contradiction", "entailment", "neutral"), "mnli", (2, 0, 1)),
    (("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), "mnli-mm", (2, 1, 0)),
    (("LABEL_0", "LABEL_1", "LABEL_2"), "mnli", (0, 1, 2)),
    (("2", "1", "0"), "mnli", (2, 1, 0)),
    (("c", "e", "n"), "mnli", None),
    (("score",), "stsb", (0,)),
)

TRANSFORMER = "sentence_transformers.models.Transformer"
POOLING = "sentence_transformers.models.Pooling"
NORMALIZE = "sentence_transformers.models.Normalize"
DENSE = "sentence_transformers.models.Dense"
TORCH = "torch.nn.modules.activation"

#: Settings of a sentence-transformers folder: file, key, values.
SENTENCES: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("1_Pooling/config.json", "pooling_mode_cls_token", (True, False, ABSENT, 1, "true")),
    ("1_Pooling/config.json", "pooling_mode_mean_tokens", (True, False, ABSENT, 1, 0)),
    ("1_Pooling/config.json", "pooling_mode_max_tokens", (True, False, ABSENT, 1)),
    ("1_Pooling/config.json", "pooling_mode_mean_sqrt_len_tokens", (True, False, ABSENT)),
    ("1_Pooling/config.json", "pooling_mode_weightedmean_tokens", (True, False, 1)),
    ("1_Pooling/config.json", "pooling_mode_lasttoken", (True, False)),
    ("1_Pooling/config.json", "pooling_mode", ("mean", "cls", "max", "MEAN", "x", None)),
    ("1_Pooling/config.json", "pooling_mode", (["max"], ["lasttoken", "cls"], [], ["x"])),
    ("1_Pooling/config.json", "include_prompt", (True, False)),
    ("1_Pooling/config.json", "word_embedding_dimension", (8, 16, 32, ABSENT)),
    ("1_Pooling/config.json", "pooling_mode_median", (True,)),
    ("2_Dense/config.json", "in_features", (8, "24", ABSENT)),
    ("2_Dense/config.json", "out_features", (9, 0, ABSENT)),
    ("2_Dense/config.json", "bias", (False, 1, ABSENT)),
    ("2_Dense/config.json", "activation_function", (f"{TORCH}.Sigmoid", f"{TORCH}.Softmax")),
    ("2_Dense/config.json", "activation_function", ("torch.nn.ReLU", "x.Tanh", None, ABSENT)),
    ("2_Dense/config.json", "use_residual", (False, True, None)),
    ("2_Dense/config.json", "module_input_name", ("sentence_embedding", "token_embeddings")),
    ("2_Dense/config.json", "module_output_name", ("sentence_embedding", "x", None)),
    ("sentence_bert_config.json", "transformer_task", ("feature-extraction", "fill-mask", None)),
    ("sentence_bert_config.json", "module_output_name", ("token_embeddings", "x", None)),
    ("sentence_bert_config.json", "model_args", ({}, {"attn_implementation": "eager"})),
    ("sentence_bert_config.json", "config_args", ({}, {"hidden_act": "relu"})),
    ("config_sentence_transformers.json", "default_prompt_name", (None, "query", "q", "none", 3)),
    ("config_sentence_transformers.json", "prompts", ({}, {"q": "a b "}, {"q": ""}, [], None)),
    ("config_sentence_transformers.json", "similarity_fn_name", ("cosine", "dot", None)),
    ("config_sentence_transformers.json", "truncate_dim", (None, 4)),
    ("config_sentence_transformers.json", "model_type", ("SentenceTransformer", "SparseEncoder")),
)

#: Lists of modules, with the type, the path and the name of each.
MODULES: tuple[tuple[tuple[str, str, str], ...], ...] = (
    ((TRANSFORMER, "", "0"), (POOLING, "1_Pooling", "1"), (NORMALIZE, "2_Normalize", "2")),
    ((TRANSFORMER, "", "0"), (POOLING, "1_Pooling", "1")),
    ((TRANSFORMER, "", "a"), (POOLING, "1_Pooling", "b"), (NORMALIZE, "2_Normalize", "c")),
    ((TRANSFORMER, "", "0"), (POOLING, "1_Pooling", "1"), (DENSE, "2_Dense", "2")),
    (
        (TRANSFORMER, "", "0"),
        (POOLING, "1_Pooling", "1"),
        (DENSE, "2_Dense", "2"),
        (NORMALIZE, "3_Normalize", "3"),
    ),
    ((TRANSFORMER, "", "0"), (POOLING, "1_Pooling", "0")),
    ((TRANSFORMER, "", "0"), (DENSE, "2_Dense", "1"), (POOLING, "1_Pooling", "2")),
    ((TRANSFORMER, "", "0"),),
    ((TRANSFORMER, "", "0"), (NORMALIZE, "2_Normalize", "1"), (POOLING, "1_Pooling", "2")),
    ((TRANSFORMER, "", "0"), (POOLING, "1_Pooling", "1"), (POOLING, "1_Pooling", "2")),
    ((TRANSFORMER, "", "0"), (POOLING, "1_Pooling", "1"), ("torch.nn.Identity", "2", "2")),
    (("transformers.Transformer", "", "0"), (POOLING, "1_Pooling", "1")),
    (
        (TRANSFORMER, "", "0"),
        (POOLING, "1_Pooling", "1"),
        (NORMALIZE, "2", "2"),
        (NORMALIZE, "", "3"),
    ),
)

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnop"]
TEXTS = ["a b c", "d e f g h i", "p", "o n m l k j i h g"]


@dataclass(frozen=True)
class Case:
    """A changed folder, with the changed keys, of which a refusal must name one."""

    folder: Path
    keys: tuple[str, ...]
    names: tuple[str, ...]
    harmless: bool
    sentences: bool = False


class Peers:
    """transformers and torch, imported once and silent."""

    def __init__(self) -> None:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        os.environ |= {"TRANSFORMERS_VERBOSITY": "critical", "TOKENIZERS_PARALLELISM": "false"}
        import torch  # noqa: PLC0415
        import transformers  # noqa: PLC0415

        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        transformers.logging.set_verbosity(60)
        transformers.logging.disable_progress_bar()
        self.torch, self.transformers = torch, transformers

    def write_bases(self, folder: Path, seed: int) -> dict[tuple[str, str], Path]:
        """Write random models of every architecture and head, of random sizes."""
        found = {}
        for kind, names in KINDS.items():
            for head in HEADS:
                if not hasattr(self.transformers, kind + head):
                    continue
                rng = Rng(f"{seed} {kind} {head}")
                sizes = (rng.choice((16, 32)), rng.choice((1, 2)), rng.choice((2, 4)), 24)
                options = dict(zip(names, sizes, strict=True))
                options |= {"vocab_size": WORDS, "max_position_embeddings": 32}
                if kind in ("Electra", "Albert"):
                    options["embedding_size"] = rng.choice((8, sizes[0]))
                if kind == "Albert":  # its layers share their parameters
                    layers = rng.choice((1, 2, 3, 5))
                    groups = rng.choice((1, min(layers, 2)))
                    options |= {"num_hidden_layers": layers, "num_hidden_groups": groups}
                if kind in ("XLMRoberta", "Camembert"):
                    options |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
                if head in ("ForSequenceClassification", "ForTokenClassification"):
                    options["num_labels"] = rng.choice((2, 2, 3))
                config = getattr(self.transformers, f"{kind}Config")(**options)
                self.torch.manual_seed(rng.getrandbits(32))
                model = getattr(self.transformers, kind + head)(config)
                for parameter in model.parameters():  # make them as large as trained ones
                    parameter.data += 0.3 * self.torch.randn(parameter.shape)
                model.save_pretrained(folder / f"{kind}{head}")
                found[kind, head] = folder / f"{kind}{head}"
        return found

    def classes(self, raw: Raw) -> Iterator[Any]:
        """Yield the classes with which transformers loads a folder: automatic, and by name."""
        listed = raw.get("architectures")
        name = listed[0] if isinstance(listed, list) and listed else None
        name = name if isinstance(name, str) else ""
        auto = f"AutoModelFor{name.partition('For')[2]}" if "For" in name else "AutoModel"
        if "model_type" in raw:
            yield getattr(self.transformers, auto, self.transformers.AutoModel)
        elif not name:
            yield self.transformers.BertModel
        named = getattr(self.transformers, name, None) if name else None
        if named is not None and hasattr(named, "from_pretrained"):
            yield named

    def outputs(self, known: Any, folder: Path, batch: dict[str, Any]) -> dict[str, Any] | None:
        """Compute a model's outputs and labels by a class of transformers; None if it cannot."""
        torch = self.torch
        try:
            model, info = known.from_pretrained(
                folder, output_loading_info=True, dtype=torch.float32
            )
            model = model.eval().to(torch.float32)
            made_up = [key for key in info["missing_keys"] if "pooler" not in key]
            if made_up or info["mismatched_keys"]:
                return None
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            if "DistilBert" in type(model).__name__:
                tensors.pop("token_type_ids", None)
            with torch.no_grad():
                output = model(**tensors, output_hidden_states=True, return_dict=True)
        except Exception:  # any error means that it does not load or run this folder
            return None
        found = {key: value.numpy() for key, value in output.items() if hasattr(value, "numpy")}
        found["last_hidden_state"] = output.hidden_states[-1].numpy()
        if info["missing_keys"]:
            found.pop("pooler_output", None)
        found["labels"] = [str(name) for _, name in sorted(model.config.id2label.items())]
        return found

    def embeddings(self, folder: Path) -> Any:
        """Compute the embeddings of :data:`TEXTS`; None if sentence-transformers cannot."""
        import sentence_transformers  # noqa: PLC0415

        try:
            model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
            return model.encode(TEXTS, show_progress_bar=False)
        except Exception:  # any error means that it does not load or run this folder
            return None


def edit(path: Path, change: Callable[[Raw], None]) -> Raw:
    raw: Raw = json.loads(path.read_text()) if path.is_file() else {}
    change(raw)
    path.write_text(json.dumps(raw))
    return raw


def put(raw: Raw, key: str, value: Any) -> None:
    if value is ABSENT:
        raw.pop(key, None)
    else:
        raw[key] = value


def change_config(raw: Raw, kind: str, rng: Rng) -> tuple[str, bool]:
    """Change one key in place. Return it, and whether its change must be accepted."""
    what = rng.random()
    if what < 0.3:
        key = rng.choice(list(NO_EFFECT))
        put(raw, key, rng.choice(NO_EFFECT[key]))
        return key, True
    if what < 0.75:
        key = rng.choice([*MAY_BE_REFUSED, "hidden_act", "model_type", "pad_token_id"])
        put(raw, key, rng.choice(MAY_BE_REFUSED[key]))
        return key, False
    if what < 0.83:
        name = rng.choice(CLASSES).format(kind=kind)
        names = rng.choice(([name], [name], [name], [name, name], [name, "BertModel"], name))
        put(raw, "architectures", names)
        return "architectures", False
    if what < 0.91:
        labels = rng.choice(LABELS)
        if isinstance(labels, tuple):
            labels = {str(i): label for i, label in enumerate(labels)}
            if rng.random() < 0.5:
                put(raw, "label2id", {str(label): int(i) for i, label in labels.items()})
        put(raw, "id2label", labels)
        return "id2label", False
    if what < 0.95:
        put(raw, "id2label", rng.choice(({"0": "negative", "1": "positive"}, ABSENT)))
        put(raw, "label2id", rng.choice(NUMBERS))
        return "label2id", False
    # A size gets the name of another architecture for it: it is moved, doubled or contradicted.
    ours, theirs = rng.choice(list(zip(KINDS["Bert"], KINDS["DistilBert"], strict=True)))
    old, new = (theirs, ours) if kind == "DistilBert" else (ours, theirs)
    raw[new] = rng.choice((raw.get(old), 16, 24, 2, 1))
    if rng.random() < 0.4:
        raw.pop(old, None)
    return rng.choice((old, new)) if old == new else f"{old}/{new}", False


def store_decoder(path: Path, rng: Rng) -> None:
    """Store the decoder beside the word embeddings, with the same numbers or others."""
    tensors = load_file(path)
    words = next(key for key in tensors if key.endswith("word_embeddings.weight"))
    names = {"bert": "cls.predictions.decoder", "distilbert": "vocab_projector"}
    names |= {"electra": "generator_lm_head", "albert": "predictions.decoder"}
    name = names.get(words.partition(".")[0], "lm_head.decoder")
    other = np.random.default_rng(rng.getrandbits(32)).normal(0, 0.3, tensors[words].shape)
    same = rng.random() < 0.5
    tensors[f"{name}.weight"] = tensors[words].copy() if same else other.astype(np.float32)
    save_file(tensors, path, {"format": "pt"})


def change_sentences(folder: Path, rng: Rng) -> tuple[str, ...]:
    """Write a sentence-transformers folder's settings, with one or two of them changed."""
    switches = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    mode = rng.choice(switches[:2])
    pooling: Raw = {f"pooling_mode_{name}": name == mode for name in switches}
    size = json.loads((folder / "config.json").read_text())[
        "dim" if "Distil" in folder.name else "hidden_size"
    ]
    pooling["word_embedding_dimension"] = size
    for name in ("1_Pooling", "2_Dense", "2_Normalize", "3_Normalize"):
        (folder / name).mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    dense = {"in_features": size, "out_features": 5, "bias": True}
    dense |= {"activation_function": f"{TORCH}.Tanh"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
    generator = np.random.default_rng(rng.randrange(1 << 30))
    shapes = {"linear.weight": (5, size), "linear.bias": (5,)}
    tensors = {name: generator.normal(0, 0.3, x).astype(np.float32) for name, x in shapes.items()}
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
    modules, keys = rng.choice(MODULES[:5]), []
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        if rng.random() < 0.2:
            modules = rng.choice(MODULES)
            keys.append("modules.json")
        else:
            file, key, values = rng.choice(SENTENCES)
            value = rng.choice(values)
            edit(folder / file, lambda raw, key=key, value=value: put(raw, key, value))
            keys.append(key)
            if key == "default_prompt_name" and rng.random() < 0.7:
                prompts = {"q": "a b ", "none": ""}
                edit(folder / file, lambda raw, prompts=prompts: put(raw, "prompts", prompts))
    listed = [
        {"idx": i, "name": name, "path": path, "type": kind}
        for i, (kind, path, name) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    tokenizers.BertWordPieceTokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    special = {
        f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")
    }
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    return tuple(keys)


def make(number: int, seed: int, bases: dict[tuple[str, str], Path], work: Path, st: bool) -> Case:
    rng = Rng(f"{seed} {number}")
    folder = work / f"case{number}"
    if st and number % 6 == 5:
        kind = rng.choice(("Bert", "DistilBert", "Electra"))
        head = "Model" if rng.random() < 0.9 else "ForSequenceClassification"
        folder = folder.with_name(f"{folder.name}{'Distil' * (kind == 'DistilBert')}")
        shutil.copytree(bases[kind, head], folder)
        keys = change_sentences(folder, rng)
        names = (*keys, *("modules.json" for _ in (1,) if head != "Model"))
        if any(key.startswith("pooling_mode") for key in keys):
            names += ("pooling_mode", "the poolings", "in_features")
        if {"in_features", "out_features", "bias"} & set(keys):
            names += ("tensor 'linear.", "in_features")
        if "default_prompt_name" in keys or "prompts" in keys:
            names += ("prompt",)
        label = "no change" if head == "Model" else "a classifier"
        return Case(folder, keys or (label,), names, not keys and head == "Model", True)
    kind, head = list(bases)[number % len(bases)]
    shutil.copytree(bases[kind, head], folder)
    keys, harmless = [], True

    def change(raw: Raw) -> None:
        nonlocal harmless
        for _ in range(rng.choice((1, 1, 1, 2))):
            key, without_effect = change_config(raw, kind, rng)
            keys.append(key)
            harmless = harmless and without_effect

    edit(folder / "config.json", change)
    if head in ("ForMaskedLM", "ForPreTraining") and rng.random() < 0.2:
        store_decoder(folder / "model.safetensors", rng)
        keys.append("stored decoder")
        harmless = False
    names = [name for key in keys for name in (*key.split("/"), *RELATED.get(key, ()))]
    names += [name for key in keys if "/" in key for name in ("by config.json", "missing")]
    return Case(folder, tuple(keys), tuple(names), harmless)


def inputs(case: Case, config: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Make a batch with padding, with several texts per example if the head chooses one."""
    shape: tuple[int, ...] = (3, LENGTH)
    ids = rng.integers(6, WORDS - 1, shape)
    mask = np.ones(shape, np.int64)
    mask[1, 7:] = mask[2, 3:] = 0
    pad = config.pad_token_id
    ids[mask == 0] = pad
    batch = {"input_ids": ids, "attention_mask": mask}
    if config.type_vocab_size > 1:
        batch["token_type_ids"] = rng.integers(0, 2, shape)
    if config.head.name == "multiple choice":
        batch = {name: array.reshape(1, *shape) for name, array in batch.items()}
    return batch


def difference(ours: Any, theirs: Any, mask: Any) -> float:
    """Return the largest difference where the mask is 1, over transformers' largest number."""
    if ours.shape != theirs.shape:
        return float("inf")
    if ours.shape[:2] == mask.shape[-2:]:
        tokens = mask.reshape(mask.shape[-2:]) == 1
        ours, theirs = ours[tokens], theirs[tokens]
    scale = float(np.abs(theirs).max()) or 1.0
    return float(np.abs(ours.astype(np.float64) - theirs).max()) / scale


def check(case: Case, peers: Peers) -> tuple[str, str]:
    """Return the outcome of a case, and what is wrong with it (an empty text for nothing)."""
    try:
        model = bert_numpy.load(case.folder)
        tokenizer = bert_numpy.load_tokenizer(case.folder) if case.sentences else None
    except bert_numpy.BertNumpyError as error:
        refusal = str(error)
    else:
        if case.sentences:
            return check_sentences(case, peers, model, tokenizer)
        return check_outputs(case, peers, model)
    if len(refusal.splitlines()) != 1 or str(case.folder) not in refusal:
        return "refused", f"not one line that names the file: {refusal}"
    if case.harmless:
        return "refused", f"a key without effect: {refusal}"
    text = refusal.replace(str(case.folder), "")
    if not any(name in text for name in case.names):
        return "refused", f"names none of {', '.join(case.names)}: {refusal}"
    return "refused", ""


def check_outputs(case: Case, peers: Peers, model: Any) -> tuple[str, str]:
    raw = json.loads((case.folder / "config.json").read_text())
    batch = inputs(case, model.config, np.random.default_rng(0))
    ours = vars(model(**batch))
    hidden = ours["last_hidden_state"]
    mask = batch["attention_mask"]
    compared = 0
    for known in peers.classes(raw):
        theirs = peers.outputs(known, case.folder, batch)
        if theirs is None:
            continue
        compared += 1
        if list(model.config.labels) != theirs.pop("labels"):
            return "equal", f"other labels than {known.__name__}: {model.config.labels}"
        for name, array in theirs.items():
            if ours.get(name) is None:
                continue  # this package has only the bare encoder of such a class
            found = ours[name]
            if name == "last_hidden_state":
                found = hidden.reshape(array.shape)
            if (far := difference(found, array, mask)) > TOLERANCE or np.isnan(far):
                return "equal", f"{name} is {far:.2e} from that of {known.__name__}"
        missing = set(theirs) & {"logits", "start_logits", "prediction_logits"}
        if model.config.head.name.startswith("none") and missing and known_head(raw):
            return "equal", f"no {', '.join(missing)}, as {known.__name__} has"
    return ("equal" if compared else "alone"), ""


def known_head(raw: Raw) -> bool:
    name = (raw.get("architectures") or [""])[0]
    return name.endswith(HEADS[1:6])


def check_sentences(case: Case, peers: Peers, model: Any, tokenizer: Any) -> tuple[str, str]:
    theirs = peers.embeddings(case.folder)
    ours = model(**tokenizer.batch(TEXTS)).sentence_embedding
    if theirs is None:
        return "alone", ""
    if ours is None:
        return "equal", "no sentence embedding"
    far = difference(ours, theirs, np.zeros(0))
    return "equal", "" if far <= TOLERANCE else f"embeddings are {far:.2e} from theirs"


def check_orders() -> Iterator[str]:
    """Yield the errors in the order of labels, by the table of :data:`ORDERS`."""
    for names, task, expected in ORDERS:
        try:
            found = tuple(label_order(names, TASKS[task]).tolist())
        except bert_numpy.BertNumpyError as error:
            found = None
            if not all(word.strip() in str(error) for word in (*names, *TASKS[task].labels)):
                yield f"{task} {names}: the labels found and expected are not named: {error}"
        if found != expected:
            yield f"{task} {names}: expected {expected}, found {found}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every case")
    arguments = parser.parse_args(argv)
    peers = Peers()
    st = importlib.util.find_spec("sentence_transformers") is not None
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    total: Counter[str] = Counter()
    failures = list(check_orders())
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        work = Path(name)
        bases = peers.write_bases(work, arguments.seed)
        for number in range(arguments.first, arguments.first + arguments.cases):
            case = make(number, arguments.seed, bases, work, st)
            try:
                outcome, wrong = check(case, peers)
            except Exception as error:  # errors of any kind are searched for
                outcome, wrong = "equal", f"{type(error).__name__}: {error}"
            if wrong:
                outcome = "wrong"
                failures.append(f"case {number} ({', '.join(case.keys)}): {wrong}")
            if wrong or arguments.verbose:
                print(f"{number} {outcome} {', '.join(case.keys)} {wrong}", flush=True)
            total[outcome] += 1
            for key in case.keys:
                counts[key][outcome] += 1
            shutil.rmtree(case.folder)
    columns = ("equal", "refused", "alone", "wrong")
    print(f"{'key':40}", *(f"{column:>8}" for column in columns))
    for key, found in (*sorted(counts.items()), ("folders", total)):
        print(f"{key:40}", *(f"{found[column]:8}" for column in columns))
    if not st:
        print("sentence-transformers is not installed: its folders were left out")
    for failure in failures:
        print(f"FAIL {failure}")
    versions = f"transformers {peers.transformers.__version__}, seed {arguments.seed}"
    print(f"{arguments.cases} folders, {len(ORDERS)} label sets, {versions}: {len(failures)} fail")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
