// Runs docs/byte/proof.py in Pyodide under Node, for test_byte_page.py.
//     node byte_wasm.mjs PAGE ARCHIVE PYODIDE BLOCK...
// prints one JSON object a line: the machine, then every digest and sentence.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [page, archive, folder, ...blocks] = process.argv.slice(2);
const { importProof, objects } = await import(pathToFileURL(`${page}/runtime.js`).href);
const { loadPyodide } = await import(pathToFileURL(`${folder}/pyodide.mjs`).href);
const print = (kind, found) => console.log(JSON.stringify({ kind, ...found }));

// Pyodide's code is one line of a megabyte, which an uncaught error would show.
process.on("uncaughtException", (error) => {
  console.error(String(error.message ?? error).slice(-2000));
  process.exit(1);
});
const pyodide = await loadPyodide({ indexURL: `${folder}/` });
const proof = await importProof(pyodide, new Uint8Array(readFileSync(archive)).buffer);
print("machine", proof.machine().toJs({ dict_converter: Object.fromEntries }));
const { sentence } = JSON.parse(readFileSync(`${page}/tables.json`));
const recipes = pyodide.toPy(Object.keys(sentence.recipes));
for (const found of objects(proof.sentence(sentence.text, recipes))) print("sentence", found);
for (const found of objects(proof.golden_digests())) print("golden", found);
for (const block of blocks) {
  for (const found of objects(proof.codec_digests(Number(block)))) print("codec", found);
}
