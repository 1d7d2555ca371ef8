// From the magnitudes of blocks to their scales, by npfp8's rules: npfp8/blocks/powers.py and
// npfp8/blocks/ratios.py, of which a test compares every rule. All numbers are float32.
//
// A rule makes, of the formats (and of the largest magnitude of the tensor), functions:
//   scaleCode(amax)      the code of a block's scale, from the largest magnitude of the block
//   scaled(x, scaleCode) the number that is encoded
//   blockScale(code)     the scale by which values of codes are multiplied
// and perhaps `rounding` of the elements, `tensorScale`, the number that is stored for the tensor,
// and `nan`, the codes of what is not a number before it is encoded: where the scale is NaN, and elsewhere.

import { decode, encode } from "./codec.js";

const f = Math.fround;

/** floor(log2 x) of a positive float64; exact. */
export function exponentOf(x) {
  if (x < 2 ** -1022) return exponentOf(x * 2 ** 60) - 60;
  const bits = new DataView(new ArrayBuffer(8));
  bits.setFloat64(0, x);
  return ((bits.getUint16(0) >> 4) & 0x7ff) - 1023;
}

/** Exponents of blocks, from the largest magnitude, which is positive, and the elements' format. */
const EXPONENTS = {
  floor: (a, { max }) => exponentOf(a) - exponentOf(max),
  rceil: (a, { max }) => exponentOf(a) - exponentOf(max) + (significand(a) > significand(max) ? 1 : 0),
  ceil: (a, { max }) => exponentOf(a) - exponentOf(max) + (significand(a) > 1 ? 1 : 0),
  trunc: (a, { max }) => exponentOf(a) - exponentOf(max) - (significand(a) < significand(max) ? 1 : 0),
  even: (a, element) => rounded(a, element, mantissaBits(element)),
  compressedTensors: (a, element) => rounded(a, element, element.name === "E2M3" ? 3 : 1),
};

/** A positive number by its power of two: from 1 up to 2; exact. */
function significand(x) {
  return x / 2 ** exponentOf(x);
}

/** The exponent after half a unit of the last of some mantissa bits was added, without emax. */
function rounded(a, { max }, bits) {
  return exponentOf(a) - exponentOf(max) + (significand(a) + 2 ** (-bits - 1) >= 2 ? 1 : 0);
}

function mantissaBits(element) {
  return element.kind === "float" ? element.mantissa_bits : exponentOf(element.max_code);
}

function powers(exponent, { rounding = "nearest" } = {}) {
  return (element, scaleFormat) => {
    const smallest = exponentOf(scaleFormat.values[0]);
    const largest = exponentOf(scaleFormat.max);
    return {
      rounding,
      scaleCode(amax) {
        const e = amax === 0 ? smallest : exponent(amax, element);
        return Math.min(Math.max(e, smallest), largest) - smallest;
      },
      scaled: (x, code) => x / 2 ** (code + smallest),
      blockScale: (code) => scaleFormat.values[code],
    };
  };
}

/** Scales that are powers of two, by the name of the rule. */
export const POWER_RULES = {
  floor: powers(EXPONENTS.floor),
  rceil: powers(EXPONENTS.rceil),
  ceil: powers(EXPONENTS.ceil),
  even: powers(EXPONENTS.even),
  trunc: powers(EXPONENTS.trunc),
  torchao: powers(EXPONENTS.floor),
  "torchao-rceil": powers(EXPONENTS.rceil),
  "torchao-ceil": powers(EXPONENTS.ceil),
  "torchao-even": powers(EXPONENTS.even),
  "compressed-tensors": powers(EXPONENTS.compressedTensors),
  microxcaling: powers(EXPONENTS.floor, { rounding: "nearest_away" }),
  "microxcaling-even": powers(EXPONENTS.floor),
  "microxcaling-floor": powers(EXPONENTS.floor, { rounding: "toward_zero" }),
  modelopt: powers(EXPONENTS.rceil, { rounding: "nearest_toward_zero" }),
  quark: powers(EXPONENTS.even),
  "quark-floor": powers(EXPONENTS.floor),
  "quark-ceil": powers(EXPONENTS.ceil),
  vllm: powers(EXPONENTS.trunc),
  te: powers(EXPONENTS.rceil),
  triton: powers(EXPONENTS.rceil),
  "triton-floor": powers(EXPONENTS.floor),
  gfloat: powers(EXPONENTS.floor),
};

const TINY = 2 ** -126;
const LARGEST = (2 - 2 ** -23) * 2 ** 127;

/**
 * The code of the ratio of a block's scale, at least `smallest`; beyond the largest it saturates. The
 * NaN of an invalid operation has a sign on most processors.
 */
function encoded(ratio, fmt, smallest = 0) {
  return Number.isNaN(ratio) ? fmt.nan_code | fmt.sign_bit : encode(Math.max(ratio, smallest), fmt);
}

/** A reciprocal for which subnormal numbers are zeros. */
function flushedReciprocal(x) {
  const reciprocal = f(1 / (Math.abs(x) < TINY ? 0 : x));
  return Math.abs(reciprocal) < TINY ? 0 : reciprocal;
}

/** Without the sign of zero. */
const unsignedZero = (x) => x + 0;

/**
 * Scales with a mantissa (NVFP4), by the name of the rule. M and L are the largest elements and
 * scales, g is the largest magnitude of the tensor, b of a block; s is the value of a scale.
 */
export const RATIO_RULES = {
  exact({ max: M }, scales, g) {
    const t = g === 0 ? 1 : Math.max(f(g / f(M * scales.max)), TINY);
    return {
      tensorScale: t,
      scaleCode: (b) => encode(b / (M * t), scales),
      scaled: (x, code) => x / (decode(code, scales) * t || Infinity),
      blockScale: (code) => f(decode(code, scales) * t),
    };
  },
  te({ max: M }, scales, g) {
    const S = Math.min(f(f(M * scales.max) / g), LARGEST) || 1;
    const multiplier = f(S * f(1 / M));
    const factor = (s) => Math.min(f(1 / f(s * f(1 / S))), LARGEST);
    return {
      nan: [0, 0],
      tensorScale: g,
      scaleCode: (b) => encoded(f(b * multiplier), scales),
      scaled: (x, code) => unsignedZero(f(x * factor(decode(code, scales)))),
      blockScale: (code) => f(f(decode(code, scales) * g) * f(1 / f(M * scales.max))),
    };
  },
  modelopt({ max: M }, scales, g) {
    const t = f(g / f(M * scales.max));
    const blockScale = (code) => f(decode(code, scales) * t);
    return {
      nan: [7, 7],
      tensorScale: t,
      scaleCode(b) {
        const ratio = f(b / f(M * t));
        return encoded(ratio === 0 ? 1 : ratio, scales, scales.values[1]);
      },
      scaled: (x, code) => unsignedZero(f(x / blockScale(code))),
      blockScale,
    };
  },
  torchao({ max: M }, scales, g) {
    const t = f(g / f(M * scales.max));
    const smallest = 2 ** (1 - scales.bias);
    return {
      nan: [0xc, 0xb],
      tensorScale: t,
      scaleCode: (b) => encoded(f(f(b / M) / t), scales, smallest),
      scaled: (x, code) => f(x * f(f(1 / t) / decode(code, scales))),
      blockScale: (code) => f(decode(code, scales) * t),
    };
  },
  "compressed-tensors"({ max: M }, scales, g) {
    const ratio = f(f(1 / Math.max(g, TINY)) * f(M * scales.max));
    const G = Number.isFinite(ratio) ? ratio : 1;
    const blockScale = (code) => f(decode(code, scales) / G);
    return {
      nan: [0, 0],
      tensorScale: G,
      scaleCode: (b) => encoded(f(f(b / M) * G), scales) || encode(2 ** -scales.mantissa_bits, scales),
      scaled: (x, code) => unsignedZero(f(x / blockScale(code))),
      blockScale,
    };
  },
  vllm({ max: M }, scales, g) {
    const G = f(f(M * scales.max) / g);
    function factor(s) {
      return s === 0 ? 0 : flushedReciprocal(f(s * flushedReciprocal(G)));
    }
    return {
      nan: [7, 7],
      tensorScale: G,
      scaleCode: (b) => encoded(f(G * f(b * flushedReciprocal(M))), scales),
      scaled: (x, code) => f(x * factor(decode(code, scales))),
      blockScale: (code) => f(decode(code, scales) / G),
    };
  },
};
