// Follow a change of the system's light or dark mode at once, as long as the reader has chosen none.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (system) => {
  const page = document.documentElement.dataset;
  if (page.mode === "auto") page.theme = system.matches ? "dark" : "light";
});
