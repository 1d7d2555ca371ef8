// From the magnitudes of blocks to their scales, by npfp8's rules: npfp8/blocks/powers.py, parties.py
// and ratios.py, of which a test compares every rule. All numbers are float32, and finite.
//
// A rule makes, of the formats of elements and scales (and of the largest magnitude of the tensor):
//   block(amax)       from the largest magnitude of a block: `code`, that of its scale, and
//                     `scaled(x)`, the number that is encoded for x
//   blockScale(code)  the scale by which values of codes are multiplied
// and perhaps `rounding` of the elements; `zero`, the code of a number that is scaled to 0; `nan(x,
// code)`, that of a number that is scaled to NaN; `finished(code)`, what becomes of a code; and
// `tensorScale`, what is stored for the tensor.

import { decode, encode } from "./codec.js";

const f = Math.fround;

/** floor(log2 x) of a positive float64; exact. */
export function exponentOf(x) {
  if (x < 2 ** -1022) return exponentOf(x * 2 ** 60) - 60;
  const bits = new DataView(new ArrayBuffer(8));
  bits.setFloat64(0, x);
  return ((bits.getUint16(0) >> 4) & 0x7ff) - 1023;
}

/** A positive number by its power of two: from 1 up to 2; exact. */
function significand(x) {
  return x / 2 ** exponentOf(x);
}

/** The bits of a float32. */
function bitsOf(x) {
  const bits = new DataView(new ArrayBuffer(4));
  bits.setFloat32(0, x);
  return bits.getUint32(0);
}

/** The logarithm, rounded to float32: that of a number just below a power of two is the power's. */
function log2(x) {
  return f(Math.log2(x));
}

function clip(x, low, high) {
  return Math.min(Math.max(x, low), high);
}

function mantissaBits(element) {
  return element.kind === "float" ? element.mantissa_bits : exponentOf(element.max_code);
}

/** The reciprocal of E8M0's value, or what `others` has for the code. */
function reciprocal(code, others = {}) {
  return others[code] ?? (code === 255 ? NaN : 2 ** (127 - code));
}

// Powers of two. An exponent follows from the largest magnitude, which is positive, and the elements.

const EXPONENTS = {
  floor: (a, { max }) => exponentOf(a) - exponentOf(max),
  rceil: (a, { max }) => exponentOf(a) - exponentOf(max) + (significand(a) > significand(max) ? 1 : 0),
  ceil: (a, { max }) => exponentOf(a) - exponentOf(max) + (significand(a) > 1 ? 1 : 0),
  trunc: (a, { max }) => exponentOf(a) - exponentOf(max) - (significand(a) < significand(max) ? 1 : 0),
  even(a, element) {
    const up = significand(a) + 2 ** (-mantissaBits(element) - 1) >= 2;
    return exponentOf(a) - exponentOf(element.max) + (up ? 1 : 0);
  },
};

/** A rule of real arithmetic: the exponent, clipped to the range of the scales; 0 has the smallest. */
function plain(exponent) {
  return (element, scaleFormat) => {
    const smallest = exponentOf(scaleFormat.values[0]);
    const largest = exponentOf(scaleFormat.max);
    return {
      block(amax) {
        const e = amax === 0 ? smallest : clip(exponent(amax, element), smallest, largest);
        return { code: e - smallest, scaled: (x) => x / 2 ** e };
      },
      blockScale: (code) => decode(code, scaleFormat),
    };
  };
}

/** A party's rule: `found(amax, element)` gives a scale's code and the factor of the block's numbers. */
function party(found, more = () => ({})) {
  return (element, scaleFormat) => ({
    block(amax) {
      const [code, factor] = found(amax, element);
      return { code, scaled: (x) => f(x * factor) };
    },
    blockScale: (code) => decode(code, scaleFormat),
    ...more(element),
  });
}

function torchao({ half = false, up = false } = {}) {
  return party((a, element) => {
    const bits = bitsOf(a) + (half ? 2 ** (22 - mantissaBits(element)) : 0);
    const fields = (bits >>> 23) + (up && (bits & 0x7fffff) > 0 ? 1 : 0);
    const code = clip(fields - exponentOf(element.max), 0, 255);
    return [code, reciprocal(code, { 0: 2 ** 126, 255: 0 })];
  });
}

function torchaoRceil(a, { max }) {
  const code = clip(Math.ceil(log2(f(a / max))), -127, 127) + 127;
  return [code, reciprocal(code, { 0: 1 })];
}

function compressedTensors(a, element) {
  const kept = element.name === "E2M3" ? 3 : 1;
  const fields = (bitsOf(a) + 2 ** (22 - kept)) >>> 23;
  const code = fields === 255 ? 255 : fields === 0 ? 0 : clip(fields - exponentOf(element.max), 0, 255);
  return [code === 255 ? 127 : code, reciprocal(code, { 255: 0 })];
}

function microxcaling(round) {
  const rule = party((a, { max }) => {
    const exponent = Math.max(Math.floor(log2(a || 2 ** -126)) - exponentOf(max), -127);
    const code = exponent > 127 ? 255 : exponent + 127;
    return [code, reciprocal(code, { 255: 0 })];
  });
  return (element, scaleFormat) => {
    const { block, blockScale } = rule(element, scaleFormat);
    function rounded(x) {
      const magnitude = Math.abs(x);
      const least = element.kind === "float" ? Math.max(Math.floor(log2(magnitude || 1)), 1 - element.bias) : 0;
      const ulp = 2 ** (least - mantissaBits(element));
      const lifted = f(magnitude / ulp);
      const value = Math.min(round(lifted) * ulp, element.max);
      return x < 0 ? -value : value;
    }
    return {
      block(amax) {
        const { code, scaled } = block(amax);
        return { code, scaled: (x) => rounded(scaled(x)) };
      },
      blockScale,
    };
  };
}

/** Ways of microxcaling to an integer, in float32. */
const ROUNDS = {
  nearest: (x) => Math.floor(f(x + 0.5)),
  even: (x) => Math.floor(f(x + 0.5)) - (f(x - 0.5) % 2 === 0 ? 1 : 0),
  floor: Math.floor,
};

function modelopt(a, { max }) {
  const code = clip(Math.ceil(Math.max(log2(f(a / max)), -127)), -127, 127) + 127;
  return [code, reciprocal(code)];
}

const isFP8 = (element) => element.kind === "float" && element.bits === 8;

/** A rule of Quark: codes of scales are at least 1, and FP4 and FP6 have no -0. */
function quark(exponent) {
  return (element, scaleFormat) => {
    const zeros = isFP8(element) ? -1 : element.values[1] / 2; // magnitudes that become +0
    return {
      block(amax) {
        const e = exponent(amax, element);
        function scaled(x) {
          const multiple = x * 2 ** -e; // exact, perhaps beyond float32
          return Math.abs(multiple) <= zeros ? 0 : multiple;
        }
        return { code: clip(e + 127, 1, 254), scaled };
      },
      blockScale: (code) => decode(code, scaleFormat),
    };
  };
}

function quarkEven(a, element) {
  const fields = a === 0 ? 1 : (bitsOf(a) + 2 ** (22 - mantissaBits(element))) >>> 23;
  if (fields === 255) return 127; // rounded up to an infinity
  return clip(fields - 127 - exponentOf(element.max), -127, 127);
}

function quarkLogarithm(round) {
  return (a, { max }) => {
    const exponent = round(log2(a)) - exponentOf(max);
    return exponent < -149 ? -23 : exponent;
  };
}

function vllm(a, element) {
  if (element.bits === 4) {
    const code = bitsOf(f(a * f(1 / 6))) >>> 23;
    return [code, reciprocal(code, { 0: 0, 255: 0 })];
  }
  const code = clip(Math.floor(log2(Math.max(a, 2 ** -126))), -127, 127) + 127;
  return [code, reciprocal(code)];
}

function te(a, { max }) {
  const scale = f(a * f(1 / max));
  const [field, mantissa] = [bitsOf(scale) >>> 23, bitsOf(scale) & 0x7fffff];
  const up = mantissa > 0 && field !== 254 && (field > 0 || mantissa > 0x400000);
  const code = scale === Infinity ? 254 : field + (up ? 1 : 0);
  return [code, reciprocal(code, { 0: 1 })];
}

function triton(up) {
  return (a, { max }) => {
    const bits = bitsOf(f(a / (up ? max : 2 ** exponentOf(max)))) + (up ? 0x7fffff : 0);
    const code = (bits >>> 23) & 255;
    return [code, reciprocal(code, { 0: 0, 255: 0 })];
  };
}

function gfloat(a, { max }) {
  const code = clip(Math.floor(log2(a)) - exponentOf(max), -127, 127) + 127;
  return [code, reciprocal(code)];
}

/** Scales that are powers of two, by the name of the rule. */
export const POWER_RULES = {
  floor: plain(EXPONENTS.floor),
  rceil: plain(EXPONENTS.rceil),
  ceil: plain(EXPONENTS.ceil),
  even: plain(EXPONENTS.even),
  trunc: plain(EXPONENTS.trunc),
  torchao: torchao(),
  "torchao-rceil": party(torchaoRceil),
  "torchao-ceil": torchao({ up: true }),
  "torchao-even": torchao({ half: true }),
  "compressed-tensors": party(compressedTensors, ({ bits }) => (bits === 4 ? { zero: 0 } : {})),
  microxcaling: microxcaling(ROUNDS.nearest),
  "microxcaling-even": microxcaling(ROUNDS.even),
  "microxcaling-floor": microxcaling(ROUNDS.floor),
  modelopt: party(modelopt, ({ bits }) => (bits === 4 ? { zero: 8, rounding: "nearest_toward_zero" } : {})),
  quark: quark(quarkEven),
  "quark-floor": quark(quarkLogarithm(Math.floor)),
  "quark-ceil": quark(quarkLogarithm(Math.ceil)),
  vllm: party(vllm),
  te: party(te),
  triton: party(triton(true)),
  "triton-floor": party(triton(false)),
  gfloat: party(gfloat),
};

// Scales with a mantissa.

const TINY = 2 ** -126;
const EPSILON = 2 ** -23;
const LARGEST = (2 - 2 ** -23) * 2 ** 127;

/** A rule's function from a block's largest magnitude, of the code of its scale and of what scales x. */
function blocks(scales, scaleCode, scaled) {
  return (b) => {
    const code = scaleCode(b);
    const s = decode(code, scales);
    return { code, scaled: (x) => scaled(x, s) };
  };
}

/** The codes of what is NaN before it is encoded: where the scale is NaN, and elsewhere. */
function nanCodes(scales, inNaN, elsewhere) {
  return (x, scaleCode) => (Number.isNaN(decode(scaleCode, scales)) ? inNaN : elsewhere);
}

/**
 * The code of the ratio of a block's scale, at least `smallest`; beyond the largest it saturates. The
 * NaN of an invalid operation has a sign on x86.
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
      block: blocks(scales, (b) => encode(b / (M * t), scales), (x, s) => x / (s * t || Infinity)),
      blockScale: (code) => f(decode(code, scales) * t),
    };
  },
  te({ max: M }, scales, g) {
    const S = Math.min(f(f(M * scales.max) / g), LARGEST) || 1;
    const multiplier = f(S * f(1 / M));
    const factor = (s) => Math.min(f(1 / f(s * f(1 / S))), LARGEST);
    return {
      tensorScale: g,
      block: blocks(scales, (b) => encode(f(b * multiplier), scales), (x, s) => unsignedZero(f(x * factor(s)))),
      blockScale: (code) => f(f(decode(code, scales) * g) * f(1 / f(M * scales.max))),
      nan: nanCodes(scales, 0, 0),
    };
  },
  modelopt({ max: M }, scales, g) {
    const t = f(g / f(M * scales.max));
    function scaleCode(b) {
      const ratio = f(b / f(M * t));
      return encoded(ratio === 0 ? 1 : ratio, scales, scales.values[1]);
    }
    return {
      tensorScale: t,
      block: blocks(scales, scaleCode, (x, s) => unsignedZero(f(x / f(s * t)))),
      blockScale: (code) => f(decode(code, scales) * t),
      nan: nanCodes(scales, 7, 7),
    };
  },
  torchao({ max: M }, scales, g) {
    const t = f(g / f(M * scales.max));
    const smallest = 2 ** (1 - scales.bias);
    return {
      tensorScale: t,
      block: blocks(scales, (b) => encoded(f(f(b / M) / t), scales, smallest), (x, s) => f(x * f(f(1 / t) / s))),
      blockScale: (code) => f(decode(code, scales) * t),
      nan: nanCodes(scales, 0xc, 0xb),
    };
  },
  "compressed-tensors"({ max: M }, scales, g) {
    const ratio = f(f(1 / Math.max(g, TINY)) * f(M * scales.max));
    const G = Number.isFinite(ratio) ? ratio : 1;
    const smallest = encode(2 ** -scales.mantissa_bits, scales);
    return {
      tensorScale: G,
      block: blocks(scales, (b) => encoded(f(f(b / M) * G), scales) || smallest, (x, s) => unsignedZero(f(x / f(s / G)))),
      blockScale: (code) => f(decode(code, scales) / G),
      nan: nanCodes(scales, 0, 0),
    };
  },
  quark({ max: M, sign_bit: negativeZero }, scales, g) {
    const nonzero = (x) => x || EPSILON;
    const scaled = (x) => (Math.abs(x) === Infinity ? 4 * Math.sign(x) : x);
    const t = nonzero(f(g / f(M * scales.max)));
    return {
      tensorScale: t,
      block: blocks(scales, (b) => encoded(f(nonzero(f(b / M)) / t), scales), (x, s) => scaled(f(x / nonzero(f(s * t))))),
      blockScale: (code) => f(decode(code, scales) * t),
      nan: nanCodes(scales, 7, 7),
      finished: (code) => (code === negativeZero ? 0 : code),
    };
  },
  vllm({ max: M }, scales, g) {
    const G = f(f(M * scales.max) / g);
    const factor = (s) => (s === 0 ? 0 : flushedReciprocal(f(s * flushedReciprocal(G))));
    return {
      tensorScale: G,
      block: blocks(scales, (b) => encode(f(G * f(b * flushedReciprocal(M))), scales), (x, s) => f(x * factor(s))),
      blockScale: (code) => f(decode(code, scales) / G),
      nan: nanCodes(scales, 7, 7),
    };
  },
};
