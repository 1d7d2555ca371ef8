// The proof's own thread: Pyodide runs npfp8 and bert_numpy, and every result is posted at once.

import { PYODIDE } from "./config.js";
import { importProof, objects } from "./runtime.js";

let proof;
let toPython;

/** Jobs by name: each yields what is posted, one result after the other. */
const JOBS = {
  codec: ({ block }) => objects(proof.codec_digests(block)),
  golden: () => objects(proof.golden_digests()),
  sentence: ({ text, recipes }) => objects(proof.sentence(text, toPython(recipes))),
};

async function started() {
  const local = new URL("pyodide/", self.location.href).href;
  const indexURL = (await exists(`${local}pyodide.mjs`)) ? local : PYODIDE;
  const archive = await asked("project.zip");
  if (!archive.ok) {
    throw new Error("project.zip is missing: run python scripts/make_byte_page.py --archive");
  }
  const { loadPyodide } = await import(`${indexURL}pyodide.mjs`).catch(() => {
    throw new Error(`Python cannot be loaded from ${indexURL}. Is there a connection? Without one, `
      + "Pyodide's files and NumPy's wheel have to be in a folder pyodide beside this page");
  });
  const pyodide = await loadPyodide({ indexURL });
  proof = await importProof(pyodide, await archive.arrayBuffer());
  toPython = pyodide.toPy;
  return { machine: proof.machine().toJs({ dict_converter: Object.fromEntries }), indexURL };
}

async function exists(url) {
  const answer = await asked(url, { method: "HEAD" });
  return answer.ok;
}

async function asked(url, options) {
  try {
    return await fetch(url, options);
  } catch {
    throw new Error(`this page's server does not answer (${url})`);
  }
}

const ready = started();
ready.then(
  (found) => self.postMessage({ event: "ready", ...found }),
  (error) => self.postMessage({ event: "failed", message: String(error.message ?? error) }),
);

self.addEventListener("message", async ({ data }) => {
  await ready;
  try {
    for (const result of JOBS[data.job](data)) self.postMessage({ event: "result", id: data.id, result });
    self.postMessage({ event: "done", id: data.id });
  } catch (error) {
    self.postMessage({ event: "failed", id: data.id, message: String(error.message ?? error) });
  }
});
