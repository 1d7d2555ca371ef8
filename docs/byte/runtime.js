// Python in WebAssembly: Pyodide, NumPy and the project's archive, ready to prove.
// The page's worker and the tests in Node start it alike.

/**
 * Unpack the archive into a fresh Pyodide and import its module `proof`.
 *
 * @param {object} pyodide what loadPyodide gave
 * @param {ArrayBuffer} archive project.zip, as scripts/make_byte_page.py writes it
 * @returns {Promise<object>} the Python module, as a proxy
 */
export async function importProof(pyodide, archive) {
  // Emscripten begins with a umask of 0o777: no file could be read.
  pyodide.runPython("import os; os.umask(0o022)");
  await pyodide.loadPackage("numpy", { messageCallback: () => {} });
  pyodide.unpackArchive(archive, "zip", { extractDir: "/project" });
  pyodide.runPython(`
    import importlib, sys
    sys.path.insert(0, "/project")
    importlib.invalidate_caches()
  `);
  return pyodide.pyimport("proof");
}

/** The dicts of a Python generator, as JavaScript objects. */
export function* objects(generator) {
  for (const found of generator) {
    yield found.toJs({ dict_converter: Object.fromEntries });
    found.destroy();
  }
  generator.destroy();
}
