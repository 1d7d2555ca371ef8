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

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all of this
if TYPE_CHECKING:  # imported when they are asked for, so that a command can catch Ctrl-C before
    from bert_numpy.calibration import (
        Calibration,
        calibrate,
        load_calibration,
        merge_calibrations,
        save_calibration,
    )
    from bert_numpy.config import BertConfig
    from bert_numpy.errors import BertNumpyError
    from bert_numpy.loading import load
    from bert_numpy.model import Model, ModelOutput
    from bert_numpy.onnx_export import export_onnx
    from bert_numpy.quantization import QuantizedModel, apply_recipe
    from bert_numpy.quantized_checkpoint import save_quantized
    from bert_numpy.recipe import PRESETS, Operand, Recipe, SiteRecipe, load_recipe, save_recipe
    from bert_numpy.tokenization import Tokenizer, load_tokenizer

__all__ = [
    "PRESETS",
    "BertConfig",
    "BertNumpyError",
    "Calibration",
    "Model",
    "ModelOutput",
    "Operand",
    "QuantizedModel",
    "Recipe",
    "SiteRecipe",
    "Tokenizer",
    "apply_recipe",
    "calibrate",
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

#: The module of each of them.
_MODULES = {
    "calibration": (
        "Calibration",
        "calibrate",
        "load_calibration",
        "merge_calibrations",
        "save_calibration",
    ),
    "config": ("BertConfig",),
    "errors": ("BertNumpyError",),
    "loading": ("load",),
    "model": ("Model", "ModelOutput"),
    "onnx_export": ("export_onnx",),
    "quantization": ("QuantizedModel", "apply_recipe"),
    "quantized_checkpoint": ("save_quantized",),
    "recipe": ("PRESETS", "Operand", "Recipe", "SiteRecipe", "load_recipe", "save_recipe"),
    "tokenization": ("Tokenizer", "load_tokenizer"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """A public name, or a module of the package, at its first use."""
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
