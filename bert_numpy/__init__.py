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
