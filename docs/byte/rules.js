// From the magnitudes of blocks to their scales, by npfp8's rules: npfp8/blocks/powers.py and
// npfp8/blocks/ratios.py, of which a test compares every rule. All numbers are float32.
//
// A rule makes, of the formats (and of the largest magnitude of the tensor), functions:
//   scaleCode(amax)      the code of a block's scale, from the largest magnitude of the block
//   scaled(x, scaleCode) the number that is encoded
//   blockScale(code)     the scale by which values of codes are multiplied
// and perhaps `rounding` of the elements, `finished(code, x)`, which changes a code at the end, and
// `tensorScale`, the number that is stored for the tensor.

const f = Math.fround;

/** floor(log2 x) of a positive float64; exact. */
export function exponentOf(x) {
  if (x < 2 ** -1022) return exponentOf(x * 2 ** 60) - 60;
  const bits = new DataView(new ArrayBuffer(8));
  bits.setFloat64(0, x);
  return ((bits.getUint16(0) >> 4) & 0x7ff) - 1023;
}

/** The exponents of blocks, from the largest magnitude and the format of the elements. */
const EXPONENTS = {
  floor: (a, { max }) => exponentOf(a) - exponentOf(max),
  rceil(a, { max }) {
    const e = exponentOf(a) - exponentOf(max);
    return a > max * 2 ** e ? e + 1 : e;
  },
  ceil: (a, { max }) => exponentOf(a) + (a > 2 ** exponentOf(a) ? 1 : 0) - exponentOf(max),
};

function powers(exponent, { rounding = "nearest", finished } = {}) {
  return (element, scaleFormat) => {
    const smallest = exponentOf(scaleFormat.values[0]);
    const largest = exponentOf(scaleFormat.max);
    return {
      rounding,
      finished,
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
};

/** Scales with a mantissa (NVFP4), by the name of the rule. */
export const RATIO_RULES = {
};
