// Where Pyodide comes from when the page has no folder pyodide/ beside it. A local folder with
// Pyodide's core files and NumPy's wheel wins, so that an offline copy needs no network.
export const PYODIDE = "https://cdn.jsdelivr.net/pyodide/v0.27.7/full/";
