// Encoding and decoding by npfp8's tables, rounded once from the exact value of a JavaScript
// number (a float64). The same definition as npfp8/codec/definition.py; a test compares both.

/** How numbers between two values are rounded, as npfp8.encode has it. */
export const ROUNDINGS = ["nearest", "nearest_away", "nearest_toward_zero", "toward_zero", "stochastic"];

/** Thrown where a format has no code for a number. */
export class NoCode extends Error {}

/**
 * Complete a format of tables.json: its values as numbers, the grid of magnitudes, the codes of
 * its finite values in rising order, and these values without the second zero.
 */
export function prepared(table) {
  const values = table.values.map(Number); // "NaN" and "Infinity" are strings in JSON
  const fmt = { ...table, values };
  if (fmt.kind === "float") {
    fmt.grid = [...values.slice(0, fmt.max_code + 1), fmt.next];
    fmt.max = values[fmt.max_code];
  } else {
    fmt.max = fmt.max_code / 2 ** fmt.fraction_bits;
    fmt.min = fmt.min_code / 2 ** fmt.fraction_bits;
  }
  fmt.rising = [...values.keys()]
    .filter((code) => Number.isFinite(values[code]) && isUsed(fmt, code))
    .sort((a, b) => values[a] - values[b] || sign(values[a]) - sign(values[b]));
  fmt.distinct = [...new Set(fmt.rising.map((code) => values[code]))]; // -0 and 0 are one
  return fmt;
}

/** Whether encoding gives a code: INT8 leaves -128 unused. */
function isUsed(fmt, code) {
  const value = fmt.values[code];
  return fmt.kind === "float" || (value >= fmt.min && value <= fmt.max);
}

/** -1 or 1, also of zeros. */
export function sign(x) {
  return x < 0 || Object.is(x, -0) ? -1 : 1;
}

/** The value of a code; exact. */
export function decode(code, fmt) {
  return fmt.values[code];
}

/**
 * Encode a number.
 *
 * @param {number} x
 * @param {object} fmt a format, prepared
 * @param {object} options `rounding`, `saturate`, and for stochastic rounding `draw`, a function
 *   that gives 64 random bits as a BigInt
 * @returns {number} the code, 0 to 255 (integers: the bits of their two's complement)
 * @throws {NoCode} where npfp8.encode raises ValueError
 */
export function encode(x, fmt, { rounding = "nearest", saturate = true, draw = draw64 } = {}) {
  if (fmt.kind === "integer") return encodeInteger(x, fmt, rounding, saturate);
  if (Number.isNaN(x) && fmt.nan_code === null) throw new NoCode(`${fmt.name} has no NaN`);
  const [code, overflow] = rounded(Number.isNaN(x) ? 0 : Math.abs(x), fmt, rounding, draw);
  return withSpecials(x, code, overflow, fmt, saturate);
}

/** The code of a magnitude, and whether it rounds to one beyond the largest value. */
function rounded(magnitude, fmt, rounding, draw) {
  if (magnitude === Infinity) return [fmt.max_code, true];
  let code = codeBelow(magnitude, fmt);
  if (rounding.startsWith("nearest")) code += isNearerAbove(magnitude, code, fmt, rounding) ? 1 : 0;
  if (rounding === "stochastic") code += isDrawnAbove(magnitude, code, fmt, draw) ? 1 : 0;
  return [code, code > fmt.max_code];
}

/** Whether a number rounds beyond the largest value; if rounding is stochastic, whether it can. */
export function overflows(x, fmt, rounding) {
  if (fmt.kind === "float") return rounded(Math.abs(x), fmt, rounding, () => 0n)[1];
  const integer = toInteger(x * 2 ** fmt.fraction_bits, rounding);
  return integer < fmt.min_code || integer > fmt.max_code;
}

/** The code of the largest finite value that is not above a magnitude; 0 if none is. */
function codeBelow(magnitude, fmt) {
  let low = 0;
  let high = fmt.max_code + 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (fmt.grid[middle] <= magnitude) low = middle;
    else high = middle;
  }
  return low;
}

/** Whether a magnitude rounds to the value above a code: the nearest; a tie as the rounding says. */
function isNearerAbove(magnitude, code, fmt, rounding) {
  const [below, above] = [fmt.grid[code], fmt.grid[code + 1]];
  const midpoint = (below + above) / 2; // exact: one more bit than the values have
  const isOdd = (below / (above - below)) % 2 === 1;
  const tieGoesUp = rounding === "nearest" ? isOdd : rounding === "nearest_away";
  return magnitude > midpoint || (magnitude === midpoint && tieGoesUp);
}

/** The fraction of the way from a code's value to the next that a magnitude has gone. */
export function fractionAbove(magnitude, code, fmt) {
  const [below, above] = [fmt.grid[code], fmt.grid[code + 1]];
  return Math.min(Math.max(magnitude - below, 0) / (above - below), 1);
}

/** Whether a draw rounds up: with exactly that fraction's probability, 64 bits at a time. */
function isDrawnAbove(magnitude, code, fmt, draw) {
  const step = fmt.grid[code + 1] - fmt.grid[code];
  let rest = Math.max(magnitude - fmt.grid[code], 0);
  if (rest >= step) return true;
  for (;;) {
    const scaled = rest * 2 ** 64; // exact, as are the remainder and the quotient by a power of 2
    const digit = BigInt(Math.min(Math.floor(scaled / step), 2 ** 64 - 2 ** 11));
    rest = scaled % step;
    const drawn = draw();
    if (drawn !== digit || rest === 0) return drawn < digit;
  }
}

function draw64() {
  return crypto.getRandomValues(new BigUint64Array(1))[0];
}

/** Complete a magnitude's code: overflow, NaN and the sign. */
function withSpecials(x, magnitudeCode, overflow, fmt, saturate) {
  const negative = sign(x) < 0;
  const nan = Number.isNaN(x) || (!saturate && !fmt.has_zero && x === 0);
  const nanCode = (saturate ? fmt.nan_code : fmt.quiet_nan_code) ?? 0;
  const tooLarge = (!saturate && (fmt.infinity_code || fmt.quiet_nan_code)) || fmt.max_code;
  let code = overflow ? tooLarge : magnitudeCode;
  if (nan) code = nanCode;
  if (!fmt.signed) return negative && x !== 0 && !nan ? nanCode : code;
  // Zero has no sign where a NaN has the place of -0; a NaN of JavaScript has none anywhere.
  const keepsSign = !fmt.nan_codes.includes(fmt.sign_bit) || (code & (fmt.sign_bit - 1)) !== 0;
  return negative && keepsSign ? code | fmt.sign_bit : code;
}

function encodeInteger(x, fmt, rounding, saturate) {
  if (rounding === "stochastic") throw new NoCode(`${fmt.name} is not rounded stochastically`);
  if (Number.isNaN(x)) throw new NoCode(`${fmt.name} has no NaN`);
  const rounded = toInteger(x * 2 ** fmt.fraction_bits, rounding);
  const clipped = Math.min(Math.max(rounded, fmt.min_code), fmt.max_code);
  if (!saturate && clipped !== rounded) {
    throw new NoCode(`beyond ${fmt.name}'s ${fmt.min} to ${fmt.max}, without saturation`);
  }
  return clipped & (2 ** fmt.bits - 1);
}

/** The nearest integer, a tie as the rounding says; or the next one toward zero. */
function toInteger(x, rounding) {
  if (!Number.isFinite(x)) return x;
  const whole = Math.trunc(x);
  const rest = Math.abs(x - whole); // exact
  const tieGoesUp = rounding === "nearest" ? whole % 2 !== 0 : rounding === "nearest_away";
  const up = rounding !== "toward_zero" && (rest > 0.5 || (rest === 0.5 && tieGoesUp));
  return up ? whole + sign(x) : whole;
}

/** The codes of the largest finite value below a number and of the smallest above, or undefined. */
export function neighbours(x, fmt) {
  return {
    below: fmt.rising.findLast((code) => fmt.values[code] < x),
    above: fmt.rising.find((code) => fmt.values[code] > x),
  };
}

/** The code `steps` values above a code (or below); from NaN and infinity, an end of the range. */
export function stepped(code, steps, fmt) {
  const place = fmt.rising.indexOf(code);
  if (place < 0) {
    const value = fmt.values[code];
    return fmt.rising.at(value > 0 || (Number.isNaN(value) && steps < 0) ? -1 : 0);
  }
  return fmt.rising[Math.min(Math.max(place + steps, 0), fmt.rising.length - 1)];
}

/** The name of what a code stands for. */
export function kindOf(code, fmt) {
  const value = fmt.values[code];
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return "infinity";
  if (value === 0) return Object.is(value, -0) ? "negative zero" : "zero";
  if (fmt.kind === "integer") return isUsed(fmt, code) ? "integer" : "integer that encode leaves unused";
  const exponent = (code >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1);
  return fmt.has_zero && exponent === 0 ? "subnormal" : "normal";
}

/**
 * How far a code's value is from the number that it stands for.
 *
 * @returns {{absolute: number, relative: number, ulps: number}} NaN where it is not defined; ulps
 *   are counted in the distance of the two values that the number is between (beyond the range:
 *   of the last two)
 */
export function errorOf(x, code, fmt) {
  const value = fmt.values[code];
  const absolute = value - x;
  if (!Number.isFinite(absolute)) return { absolute: NaN, relative: NaN, ulps: NaN };
  if (absolute === 0) return { absolute: 0, relative: 0, ulps: 0 };
  return { absolute, relative: x === 0 ? NaN : absolute / Math.abs(x), ulps: absolute / ulpAt(x, fmt) };
}

/** The distance of the two finite values that a number is between, or of the last two. */
export function ulpAt(x, fmt) {
  const above = fmt.distinct.findIndex((value) => value > x);
  const place = above < 0 ? fmt.distinct.length - 1 : Math.max(above, 1);
  return fmt.distinct[place] - fmt.distinct[place - 1];
}
