// Sphinx's weights, and two rules: a heading that contains the whole query comes first, and of
// names in the reference the one with the shortest path.
var Scorer = {
  score: ([page, title, anchor, description, score, file, kind]) => {
    if (kind === "title") return score + 30;
    if (kind === "object") return score - title.split(".").length / 10;
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
