// Encodes numbers by docs/byte/codec.js and quantizes rows by block.js, for test_byte_page.py.
//     node byte_codec.mjs PAGE FOLDER
// reads FOLDER/numbers.f64, draws.u64 and rows.json; writes NAME.ROUNDING.SATURATE.u16, where 256
// stands for a refusal, decoded.json and rows.out.json.

import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [page, folder] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${page}/${name}`).href);
const { NoCode, ROUNDINGS, decode, encode, errorOf, neighbours, stepped } = await load("codec.js");
const { quantizeRow, sqnr } = await load("block.js");
const { completed } = await load("tables.js");

const tables = completed(JSON.parse(readFileSync(`${page}/tables.json`)));
const bytes = (name) => new Uint8Array(readFileSync(`${folder}/${name}`)).buffer;
const numbers = new Float64Array(bytes("numbers.f64"));
const draws = new BigUint64Array(bytes("draws.u64"));

for (const fmt of tables.formats.values()) {
  for (const rounding of ROUNDINGS.filter((one) => fmt.kind === "float" || one !== "stochastic")) {
    for (const saturate of [true, false]) {
      const given = ["nearest", "toward_zero"].includes(rounding) ? numbers : numbers.subarray(0, draws.length);
      const codes = new Uint16Array(given.length);
      for (let i = 0; i < given.length; i += 1) {
        try {
          codes[i] = encode(given[i], fmt, { rounding, saturate, draw: () => draws[i] });
        } catch (error) {
          if (!(error instanceof NoCode)) throw error;
          codes[i] = 256;
        }
      }
      writeFileSync(`${folder}/${fmt.name}.${rounding}.${saturate}.u16`, codes);
    }
  }
}

const decoded = [...tables.formats.values()].map((fmt) => [
  fmt.name,
  fmt.values.map((_, code) => String(decode(code, fmt))),
  fmt.rising.map((code) => stepped(code, 1, fmt)),
  fmt.distinct.map((value) => neighbours(value, fmt).above ?? null),
  [...numbers.subarray(0, 1000)].map((x) => (Number.isFinite(x) ? errorOf(x, encode(x, fmt), fmt).ulps : 0)),
]);
writeFileSync(`${folder}/decoded.json`, JSON.stringify(decoded));

const rows = JSON.parse(readFileSync(`${folder}/rows.json`));
const quantized = rows.map((row) => tables.row_formats.map((rowFormat) => {
  const found = quantizeRow(row, rowFormat, tables.formats);
  return { ...found, sqnr: sqnr(row, found.errors) };
}));
writeFileSync(`${folder}/rows.out.json`, JSON.stringify(quantized));
