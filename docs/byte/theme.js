// Light or dark: the system's choice and its changes, unless one is chosen here and kept.

const KEY = "byte-theme";
const store = storage();
const system = matchMedia("(prefers-color-scheme: dark)");

/** Follow the system, or the choice in a select element whose value is "", "light" or "dark". */
export function follow(select) {
  select.value = store?.getItem(KEY) ?? "";
  const apply = () => {
    document.documentElement.dataset.theme = select.value || (system.matches ? "dark" : "light");
  };
  select.addEventListener("change", () => {
    if (select.value) store?.setItem(KEY, select.value);
    else store?.removeItem(KEY);
    apply();
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
