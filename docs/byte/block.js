// A row of numbers with one outlier, quantized as npfp8.quantize does: codes, scales, errors.

import { decode, encode } from "./codec.js";
import { POWER_RULES, RATIO_RULES } from "./rules.js";

const MIN_NORMAL = 2 ** -126; // the smallest scale: a normal float32

/** The scale that maps the absolute maximum to the format's largest value; in float32. */
function absmaxScale(numbers, element) {
  const largest = largestOf(numbers);
  return largest === 0 ? 1 : Math.max(Math.fround(largest / Math.fround(element.max)), MIN_NORMAL);
}

function largestOf(numbers) {
  return Math.max(...numbers.map(Math.abs));
}

/**
 * Quantize a row with one scale.
 *
 * @param {number[]} row taken as float32
 * @param {object} rowFormat an entry of `row_formats` of tables.json
 * @param {Map<string, object>} formats the prepared formats by name
 * @returns {{codes: number[], scales: number[], values: number[], errors: number[]}} a scale per
 *   block, here one; a value and an error per number
 */
export function quantizeRow(row, rowFormat, formats) {
  const element = formats.get(rowFormat.element);
  const numbers = row.map(Math.fround);
  const scale = absmaxScale(numbers, element);
  const codes = numbers.map((x) => encode(Math.fround(x / scale), element));
  return dequantized(numbers, codes, [scale], numbers.length, element);
}

/**
 * Quantize a row in blocks; the row is the whole tensor.
 *
 * @param {number[]} row taken as float32
 * @param {object} blockFormat an entry of `block_formats` of tables.json
 * @param {string} rule one of its rules
 * @param {Map<string, object>} formats the prepared formats by name
 * @returns {{codes: number[], scaleCodes: number[], tensorScale: number | null, scales: number[],
 *   values: number[], errors: number[]}} a scale, and its code, per block
 */
export function quantizeBlocks(row, blockFormat, rule, formats) {
  const element = formats.get(blockFormat.element);
  const scaleFormat = formats.get(blockFormat.scale_format);
  const numbers = row.map(Math.fround);
  const how = scaleFormat.mantissa_bits
    ? RATIO_RULES[rule](element, scaleFormat, largestOf(numbers))
    : POWER_RULES[rule](element, scaleFormat);
  const scaleCodes = [];
  const codes = [];
  for (let start = 0; start < numbers.length; start += blockFormat.block) {
    const block = numbers.slice(start, start + blockFormat.block);
    const { code: scaleCode, scaled } = how.block(largestOf(block));
    scaleCodes.push(scaleCode);
    codes.push(...block.map((x) => elementCode(x, scaled(x), scaleCode, element, how)));
  }
  const scales = scaleCodes.map(how.blockScale);
  const found = dequantized(numbers, codes, scales, blockFormat.block, element);
  return { ...found, scaleCodes, tensorScale: how.tensorScale ?? null };
}

/** The code of a number, from its multiple and the rule. */
function elementCode(x, scaled, scaleCode, element, { rounding, zero, nan, finished = (code) => code }) {
  if (Number.isNaN(scaled) && nan) return nan(x, scaleCode);
  if (scaled === 0 && zero !== undefined) return zero;
  return finished(encode(scaled, element, { rounding }));
}

function dequantized(numbers, codes, scales, length, element) {
  const values = codes.map((code, i) => Math.fround(decode(code, element) * scales[Math.floor(i / length)]));
  return { codes, scales, values, errors: values.map((value, i) => value - numbers[i]) };
}

/** Codes of `bits` bits one after another, each from its lowest bit on: two FP4 codes a byte, the first low. */
export function packedBytes(codes, bits) {
  const bytes = Array(Math.ceil((codes.length * bits) / 8)).fill(0);
  codes.forEach((code, i) => {
    for (let bit = 0; bit < bits; bit += 1) {
      const place = i * bits + bit;
      bytes[place >> 3] |= ((code >> bit) & 1) << (place & 7);
    }
  });
  return bytes;
}

/** The ratio of the squares of numbers and of errors, in decibels; Infinity without errors. */
export function sqnr(numbers, errors) {
  const energy = (list) => list.reduce((sum, x) => sum + x * x, 0);
  return 10 * Math.log10(energy(numbers) / energy(errors));
}

/** The row with its outlier in place: the number at `place` is `magnitude` with its own sign. */
export function withOutlier(row, place, magnitude) {
  return row.map((x, i) => Math.fround(i === place ? Math.sign(x) * magnitude : x));
}
