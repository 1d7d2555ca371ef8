// Sphinx's weights, and these rules: a heading that contains the whole query comes first, a page's
// title before a section's; of pages that match equally well, guides come before notebooks and
// these before the reference; of names in the reference, the one with the shortest path.
var Scorer = {
  score: ([page, title, anchor, description, score, file, kind]) => {
    if (kind === "title") return score + (anchor ? 30 : 35);
    if (kind === "object") return score - title.split(".").length / 10;
    if (kind === "text") return score - (page.startsWith("notebooks/") ? 0.2 : page.startsWith("reference/") ? 0.3 : 0);
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
