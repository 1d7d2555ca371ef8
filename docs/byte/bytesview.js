// The bytes of a row in blocks: the scale of each block, the codes of its numbers, and both packed.

import { packedBytes } from "./block.js";
import { decode } from "./codec.js";

/**
 * Show a card per block: how its scale is stored, each number's code, and the packed bytes.
 *
 * @param {HTMLElement} place
 * @param {number[]} numbers
 * @param {object} blockFormat an entry of `block_formats` of tables.json
 * @param {Map<string, object>} formats
 * @param {object} found what quantizeBlocks gave
 */
export function showBytes(place, numbers, blockFormat, formats, found) {
  const element = formats.get(blockFormat.element);
  const scaleFormat = formats.get(blockFormat.scale_format);
  const cards = found.scaleCodes.map((scaleCode, i) => {
    const [from, to] = [i * blockFormat.block, Math.min((i + 1) * blockFormat.block, numbers.length)];
    const codes = found.codes.slice(from, to);
    const cells = codes.map((code, j) => cell(numbers[from + j], code, found.values[from + j], element));
    const largest = Math.max(...numbers.slice(from, to).map(Math.abs));
    const missing = blockFormat.block - codes.length;
    const note = missing ? ` The ${missing} numbers that the block lacks count as zeros.` : "";
    return `<section class="card" aria-label="block ${i + 1}">
      <p>Numbers ${from + 1} to ${to}, largest ${short(largest)}: scale byte
      <b class="scale-byte">${hexadecimal(scaleCode)}</b> = ${power(decode(scaleCode, scaleFormat))}${
        blockFormat.tensor_scale ? `; with the tensor's factor, the scale is ${short(found.scales[i])}` : ""}.${note}</p>
      <div class="codes">${cells.join("")}</div>
      <p>${label(element, codes.length)}: <code class="packed">${packedBytes(codes, element.bits).map(pair).join(" ")}</code></p>
    </section>`;
  });
  // Some rules store the factor, some its reciprocal, and te the largest magnitude: blocks show the factor.
  const largest = Math.max(...found.scales);
  const factor = largest / decode(found.scaleCodes[found.scales.indexOf(largest)], scaleFormat);
  const meaning = Number.isFinite(factor) ? `, which gives scales the factor ${short(factor)}` : "";
  const tensor = found.tensorScale === null ? "" : `<p>Stored for the whole tensor, in float32:
    <b class="tensor-scale" data-value="${found.tensorScale}">${short(found.tensorScale)}</b>${meaning}.</p>`;
  place.innerHTML = tensor + cards.join("");
}

/** A number's code by its fields, and the value that comes of it. */
function cell(x, code, value, element) {
  const bits = code.toString(2).padStart(element.bits, "0");
  const fields = element.kind === "integer" ? bits : bits.replace(
    new RegExp(`^(.{${Number(element.signed)}})(.{${element.exponent_bits}})(.*)$`),
    '<i class="sign">$1</i><i class="exponent">$2</i><i class="mantissa">$3</i>',
  );
  const title = `${x} becomes code ${hexadecimal(code)}, ${decode(code, element)} times the scale = ${value}`;
  return `<span class="code" data-code="${code}" title="${title}">${fields}<small>${short(value)}</small></span>`;
}

function label(element, count) {
  const bytes = `${Math.ceil((count * element.bits) / 8)} bytes`;
  return {
    4: `Packed, two codes per byte, the first in the low nibble, ${bytes}`,
    6: `Packed, four codes in three bytes, from the lowest bit on, ${bytes}`,
  }[element.bits] ?? `One code per byte, ${bytes}`;
}

function power(x) {
  const exponent = Math.log2(x);
  return Number.isInteger(exponent) ? `2<sup>${minus(exponent)}</sup>` : short(x);
}

function short(x) {
  return minus(Number(x.toPrecision(4)));
}

function minus(x) {
  return Object.is(x, -0) ? "−0" : String(x).replaceAll("-", "−");
}

function hexadecimal(code) {
  return `0x${pair(code)}`;
}

function pair(byte) {
  return byte.toString(16).toUpperCase().padStart(2, "0");
}
