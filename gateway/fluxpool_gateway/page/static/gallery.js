// The gallery's drawer: opened and closed without leaving the place in the list, under addresses of its own.

const gallery = document.getElementById("gallery");
const isPlain = (event) => !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-open], a[data-close]");
  if (!link || !isPlain(event) || event.button !== 0) return;
  event.preventDefault();
  history.pushState(null, "", link.href);
  show(link.href);
});
addEventListener("popstate", () => show(location.href));
document.addEventListener("keydown", (event) => {
  if (!isPlain(event) || event.target.closest("input:not([type=radio]), textarea, select")) return;
  const close = document.querySelector("#drawer a[data-close]");
  if (!close) return;
  if (event.key === "Escape") {
    event.preventDefault();
    close.click();
  } else if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && !event.target.closest("input")) {
    event.preventDefault();
    const tiles = [...document.querySelectorAll("[data-tile]")];
    const at = tiles.findIndex((tile) => tile.hasAttribute("aria-current"));
    tiles[at + (event.key === "ArrowRight" ? 1 : -1)]?.querySelector("a[data-open]").click();
  }
});

async function show(address) {
  const chosen = new URL(address).searchParams.get("task");
  const before = document.querySelector("[data-tile][aria-current]");
  await htmx.ajax("GET", address, { target: "#drawer", select: "#drawer", swap: "outerHTML" });
  gallery.classList.toggle("with-drawer", chosen !== null);
  before?.removeAttribute("aria-current");
  const tile = chosen && document.querySelector(`[data-tile="${CSS.escape(chosen)}"]`);
  if (chosen) {
    tile?.setAttribute("aria-current", "true");
    document.getElementById("detail-title")?.focus({ preventScroll: true });
  } else {
    before?.querySelector("a").focus();
  }
}
