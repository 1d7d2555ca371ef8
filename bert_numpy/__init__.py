"""bert_numpy: BERT in NumPy, calibrated, quantized to FP8 or INT8, and evaluated.

Examples
--------
>>> import bert_numpy
>>> model = bert_numpy.load("bert-tiny-sst2")
>>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
>>> batch = tokenizer.batch(["a warm and funny film"])
>>> model.config.labels[model(**batch).logits.argmax()]
'positive'
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # not from typing, which takes longer to import than this whole module
if TYPE_CHECKING:  # imported at first use, so that a command can catch Ctrl-C before
    from bert_numpy.checkpoints.load import load
    from bert_numpy.checkpoints.quantized import save_quantized
    from bert_numpy.errors import BertNumpyError
    from bert_numpy.evaluation.embed import embed
    from bert_numpy.export.onnx import export_onnx
    from bert_numpy.model.config import BertConfig
    from bert_numpy.model.model import Model, ModelOutput
    from bert_numpy.quantization.calibration import (
        Calibration,
        calibrate,
        load_calibration,
        merge_calibrations,
        save_calibration,
    )
    from bert_numpy.quantization.convert import QuantizedModel, apply_recipe
    from bert_numpy.quantization.gptq import Gptq
    from bert_numpy.quantization.presets import PRESETS
    from bert_numpy.quantization.recipe import Operand, Recipe, SiteRecipe
    from bert_numpy.quantization.recipe_json import load_recipe, save_recipe
    from bert_numpy.quantization.tiled_attention import TiledAttention
    from bert_numpy.tasks.tokenization import Tokenizer, load_tokenizer

__all__ = [
    "PRESETS",
    "BertConfig",
    "BertNumpyError",
    "Calibration",
    "Gptq",
    "Model",
    "ModelOutput",
    "Operand",
    "QuantizedModel",
    "Recipe",
    "SiteRecipe",
    "TiledAttention",
    "Tokenizer",
    "apply_recipe",
    "calibrate",
    "embed",
    "export_onnx",
    "load",
    "load_calibration",
    "load_recipe",
    "load_tokenizer",
    "merge_calibrations",
    "save_calibration",
    "save_quantized",
    "save_recipe",
]

#: The names that each module defines.
_MODULES = {
    "quantization.calibration": (
        "Calibration",
        "calibrate",
        "load_calibration",
        "merge_calibrations",
        "save_calibration",
    ),
    "model.config": ("BertConfig",),
    "errors": ("BertNumpyError",),
    "evaluation.embed": ("embed",),
    "checkpoints.load": ("load",),
    "model.model": ("Model", "ModelOutput"),
    "export.onnx": ("export_onnx",),
    "quantization.convert": ("QuantizedModel", "apply_recipe"),
    "checkpoints.quantized": ("save_quantized",),
    "quantization.gptq": ("Gptq",),
    "quantization.presets": ("PRESETS",),
    "quantization.recipe": ("Operand", "Recipe", "SiteRecipe"),
    "quantization.recipe_json": ("load_recipe", "save_recipe"),
    "quantization.tiled_attention": ("TiledAttention",),
    "tasks.tokenization": ("Tokenizer", "load_tokenizer"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name, or a module of the package, at its first use."""
        if name in _HOMES:
            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        else:
            missing = AttributeError(f"module {__name__!r} has no attribute {name!r}")
            if name.startswith("_"):
                raise missing
            try:
                value = import_module(f"{__name__}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
                raise missing from None
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
