"""The usual mistakes of FP8 encoders, each planted in an otherwise correct encoder.

They were found in the field: in serving kernels (early saturation, ties rounded away
from zero), vector units of processors (NaN instead of clamping, an ignored rounding
mode) and libraries (double rounding through bfloat16). A good test catches each of
them. If one of them reproduces all codes of an implementation, it is the likely cause.

There is one list: :func:`npfp8.testing.check_encoder`, :mod:`npfp8.vectors` and the kits of
``bert_numpy`` all name what is in it. A module makes each kind of mistake from the right
encoder (:mod:`npfp8.mistakes.rules`), and :mod:`npfp8.mistakes.encoders` lists them.
:mod:`npfp8.mistakes.fitted` has those whose parameter is read off the codes found,
:mod:`npfp8.mistakes.decoders` those of decoders. :mod:`npfp8.mistakes.explanation` finds the one
that explains what an implementation makes.
"""

from npfp8.mistakes.encoders import encoder_mistakes
from npfp8.mistakes.explanation import (
    Explanation,
    best_explanation,
    differing,
    explain_codes,
    likely_mistake,
)
from npfp8.mistakes.fitted import FittedEncoder, fitted_mistakes
from npfp8.mistakes.formats import CONFUSED, NAN_BIASED
from npfp8.mistakes.overflow import clamped_codes
from npfp8.mistakes.rules import Encoder

__all__ = [
    "CONFUSED",
    "NAN_BIASED",
    "Encoder",
    "Explanation",
    "FittedEncoder",
    "best_explanation",
    "clamped_codes",
    "differing",
    "encoder_mistakes",
    "explain_codes",
    "fitted_mistakes",
    "likely_mistake",
]
