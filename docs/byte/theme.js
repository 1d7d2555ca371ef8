// Light or dark: the system's choice and its changes, or the reader's. The choice is kept where the
// documentation's other pages keep theirs, so that it holds for all of them.

const system = matchMedia("(prefers-color-scheme: dark)");

/** Follow a select element whose value is "auto" (as the system), "light" or "dark". */
export function follow(select) {
  const store = storage();
  const kept = store?.getItem("mode");
  if (kept === "light" || kept === "dark") select.value = kept;
  const apply = () => {
    const systems = system.matches ? "dark" : "light";
    document.documentElement.dataset.theme = select.value === "auto" ? systems : select.value;
  };
  select.addEventListener("change", () => {
    apply();
    store?.setItem("mode", select.value);
    store?.setItem("theme", document.documentElement.dataset.theme);
  });
  system.addEventListener("change", apply);
  apply();
}

/** The browser's store, or null where it is forbidden. */
function storage() {
  try {
    return localStorage;
  } catch {
    return null;
  }
}
