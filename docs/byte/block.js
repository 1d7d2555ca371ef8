// A row of numbers with one outlier, quantized as npfp8.quantize does: codes, scales, errors.

import { decode, encode } from "./codec.js";

const MIN_NORMAL = 2 ** -126; // the smallest scale: a normal float32

/** How a block's numbers become its scale; `scale` of an entry of tables.json names one. */
export const SCALES = {
  /** The absolute maximum is mapped to the format's largest value; in float32. */
  absmax(numbers, element) {
    const largest = Math.max(...numbers.map(Math.abs));
    return largest === 0 ? 1 : Math.max(Math.fround(largest / Math.fround(element.max)), MIN_NORMAL);
  },
};

/**
 * Quantize a row.
 *
 * @param {number[]} row taken as float32
 * @param {object} blockFormat an entry of `block_formats` of tables.json
 * @param {Map<string, object>} formats the prepared formats by name
 * @returns {{codes: number[], scales: number[], values: number[], errors: number[]}} a scale per
 *   block; a value and an error per number
 */
export function quantizeRow(row, blockFormat, formats) {
  const element = formats.get(blockFormat.element);
  const numbers = row.map(Math.fround);
  const length = blockFormat.block ?? numbers.length;
  const scales = [];
  for (let start = 0; start < numbers.length; start += length) {
    scales.push(SCALES[blockFormat.scale](numbers.slice(start, start + length), element));
  }
  const scaleOf = (i) => scales[Math.floor(i / length)];
  const codes = numbers.map((x, i) => encode(Math.fround(x / scaleOf(i)), element));
  const values = codes.map((code, i) => Math.fround(decode(code, element) * scaleOf(i)));
  const errors = values.map((value, i) => value - numbers[i]);
  return { codes, scales, values, errors };
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
