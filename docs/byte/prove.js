// The proof on the page: squares that turn green, and a sentence by several formats.

import { colourOf } from "./tables.js";

const $ = (id) => document.getElementById(id);

/** Blocks of 2^24 float32 numbers with a boundary of a format, of both signs: prove_codec.py's. */
const EDGES = "00 40 41 43 47 7e 7f 80 c0 c1 c3 c7 fe ff";

/** The worker, and the jobs that it has been given. */
class Prover {
  /** Start the worker; `onReady` is called with the machine that it runs on. */
  constructor(onReady, onFailure) {
    this.worker = new Worker("worker.js", { type: "module" });
    this.jobs = new Map();
    this.worker.addEventListener("error", (event) => onFailure(event.message ?? "this page's server does not answer"));
    this.worker.addEventListener("message", ({ data }) => {
      if (data.event === "ready") onReady(data);
      else if (data.event === "failed" && data.id === undefined) onFailure(data.message);
      else this.jobs.get(data.id)(data);
    });
  }

  /** Run a job; `onResult` is called with each of its results. Resolves when it is done. */
  run(job, onResult) {
    const id = this.jobs.size;
    return new Promise((resolve, reject) => {
      this.jobs.set(id, ({ event, result, message }) => {
        if (event === "result") onResult(result);
        else if (event === "done") resolve();
        else reject(new Error(message));
      });
      this.worker.postMessage({ ...job, id });
    });
  }

  stop() {
    this.worker.terminate();
  }
}

export function showProof({ sentence, proof }) {
  let prover = null;
  $("sentence").value = sentence.text;
  $("sentences").innerHTML = "";
  $("prove").addEventListener("click", prove);
  $("prove").disabled = false; // until here, a click would have done nothing
  $("stop").addEventListener("click", () => {
    prover.stop();
    ended("Stopped.");
  });
  $("sentence").addEventListener("input", () => $("sentence").setCustomValidity(""));
  $("sentence-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const blank = !$("sentence").value.trim();
    $("sentence").setCustomValidity(blank ? "Write a sentence." : "");
    if (!$("sentence").reportValidity()) return;
    $("classify").disabled = true;
    classify($("sentence").value).catch(failed).finally(() => { $("classify").disabled = false; });
  });

  function prove() {
    $("prove").disabled = true;
    $("stop").hidden = false;
    $("classify").disabled = true;
    $("proofs").replaceChildren();
    say("Loading Python and NumPy for WebAssembly …");
    prover?.stop();
    prover = new Prover(({ machine }) => run(machine).catch(failed), failed);
  }

  async function run({ machine, bits, python, numpy }) {
    say(`Running: Python ${python}, NumPy ${numpy}, ${machine} (${bits} bits).`);
    const begin = performance.now();
    const counts = { equal: 0, different: 0 };
    const count = (equal) => { counts[equal ? "equal" : "different"] += 1; };
    const golden = proofRow("The golden job: calibrate BERT-tiny, then run every recipe", proof.golden);
    await prover.run({ job: "golden" }, (result) => count(golden(result)));
    await classify(sentence.text);
    const wanted = $("blocks-wanted").value;
    for (const block of (wanted === "edges" ? EDGES : wanted).split(" ")) {
      const row = proofRow(`The codec on the 2^24 float32 numbers that begin with 0x${block.toUpperCase()}`, proof.codec);
      await prover.run({ job: "codec", block: parseInt(block, 16) }, (result) => count(row(result)));
    }
    const seconds = Math.round((performance.now() - begin) / 1000);
    ended(counts.different
      ? `${counts.different} of ${counts.equal + counts.different} digests differ: please report it.`
      : `All ${counts.equal} digests are equal, after ${seconds} s.`, !counts.different);
    $("classify").disabled = false;
  }

  async function classify(text) {
    const rows = [];
    await prover.run({ job: "sentence", text, recipes: Object.keys(sentence.recipes) }, (result) => {
      const expected = text === sentence.text ? sentence.sha256[result.name] : null;
      rows.push(sentenceRow(sentence.recipes[result.name], result, expected));
      showSentences(rows);
    });
  }

  function failed(error) {
    ended(`Failed: ${error.message ?? error}.`, false);
  }

  function ended(message, good) {
    say(message, good);
    $("prove").disabled = false;
    $("stop").hidden = true;
  }
}

/** Show how far the proof is; green when all is equal, red when not. */
function say(message, good) {
  $("status").textContent = message;
  $("status").className = good === undefined ? "" : good ? "equal-text" : "different-text";
}

/** A row of grey squares; the function returned colours the next one, and tells whether it is equal. */
function proofRow(title, count) {
  const row = document.createElement("div");
  row.className = "proof";
  row.innerHTML = `<div>${title} <span class="tally">0 of ${count}</span></div><div class="squares">${"<span></span>".repeat(count)}</div>`;
  $("proofs").append(row);
  const squares = [...row.querySelectorAll(".squares span")];
  let done = 0;
  return ({ name, found, expected }) => {
    const square = squares[done];
    done += 1;
    square.className = found === expected ? "equal" : "different";
    square.title = `${name}: ${found}`;
    row.querySelector(".tally").textContent = `${done} of ${count}`;
    return found === expected;
  };
}

function sentenceRow(name, { label, logits, sha256, tokens }, expected) {
  const mark = expected === null ? "" : sha256 === expected ? "equal" : "different";
  const shown = logits.map((x) => x.toFixed(4)).join(", ");
  return `<tr><td>${name}</td><td>${label}</td><td>${shown}</td><td>${tokens}</td>
    <td class="hash">${sha256}</td><td class="${mark}-text">${mark && (mark === "equal" ? "as committed" : "not as committed")}</td></tr>`;
}

function showSentences(rows) {
  $("sentences").innerHTML = `<thead><tr><th scope="col">format</th><th scope="col">label</th>
    <th scope="col">logits</th><th scope="col">tokens</th><th scope="col">SHA-256 of the logits</th><th></th></tr></thead>
    <tbody>${rows.join("")}</tbody>`;
}
