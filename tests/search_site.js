// node search_site.js SITE QUERY...: the built site's search without a browser; prints as JSON the
// page and the anchor of the first result of each query.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [site, ...queries] = process.argv.slice(2);
const element = {
  addEventListener() {},
  querySelector: () => null,
  getElementById: () => null,
  dataset: { content_root: "./" },
};
const page = { ...element, readyState: "loading", documentElement: element };
const scope = { SPHINX_HIGHLIGHT_ENABLED: false, document: page };
scope.window = scope;
vm.createContext(scope);
for (const file of [
  "_static/doctools.js",
  "_static/base-stemmer.js", // with the next one, since Sphinx 9; before, part of language_data.js
  "_static/english-stemmer.js",
  "_static/language_data.js",
  "_static/searchtools.js",
  "searchindex.js",
]) {
  const script = path.join(site, file);
  if (fs.existsSync(script)) vm.runInContext(fs.readFileSync(script, "utf-8"), scope);
}
scope.queries = queries;
console.log(
  vm.runInContext(
    `JSON.stringify(queries.map((query) => {
      const results = Search._performSearch(...Search._parseQuery(query));
      const best = results.at(-1);  // the page shows them from the end
      return best ? best[0] + best[2] : null;
    }))`,
    scope,
  ),
);
