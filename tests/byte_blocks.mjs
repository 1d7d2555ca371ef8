// Quantizes tensors by docs/byte/block.js in every block format by every rule, for test_byte_page.py.
//     node byte_blocks.mjs PAGE FOLDER
// reads FOLDER/tensors.json; writes NAME.RULE.blocks.json, where null stands for a refusal.

import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [page, folder] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${page}/${name}`).href);
const { NoCode } = await load("codec.js");
const { packedBytes, quantizeBlocks } = await load("block.js");
const { completed } = await load("tables.js");

const tables = completed(JSON.parse(readFileSync(`${page}/tables.json`)));

/** The bytes of float32 numbers, the sign of zero included; every NaN is the same one. */
const float32 = (numbers) => Buffer.from(new Float32Array(numbers.map((x) => (Number.isNaN(x) ? NaN : x))).buffer);

const tensors = JSON.parse(readFileSync(`${folder}/tensors.json`));
for (const blockFormat of tables.block_formats) {
  const { bits } = tables.formats.get(blockFormat.element);
  for (const rule of blockFormat.rules) {
    const found = tensors.map((tensor) => {
      try {
        const q = quantizeBlocks(tensor, blockFormat, rule, tables.formats);
        const parts = {
          codes: Buffer.from(q.codes),
          scaleCodes: Buffer.from(q.scaleCodes),
          scales: float32(q.scales),
          values: float32(q.values),
          tensorScale: float32(q.tensorScale === null ? [] : [q.tensorScale]),
          packed: Buffer.from(packedBytes(q.codes, bits)),
        };
        return Object.fromEntries(Object.entries(parts).map(([name, bytes]) => [name, bytes.toString("hex")]));
      } catch (error) {
        if (!(error instanceof NoCode)) throw error;
        return null;
      }
    });
    writeFileSync(`${folder}/${blockFormat.name}.${rule}.blocks.json`, JSON.stringify(found));
  }
}
