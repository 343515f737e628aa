// Judging by keys: stars beside an image, the choices of a pair, the cut between two images.

const announce = (text) => { document.getElementById("announcements").textContent = text; };
const withKeys = document.getElementById("keys");
const stored = "fluxpool-keys";

if (withKeys) {
  withKeys.checked = localStorage.getItem(stored) !== "off";
  withKeys.addEventListener("change", () => localStorage.setItem(stored, withKeys.checked ? "on" : "off"));
}

document.addEventListener("change", (event) => {
  if (event.target.name === "score") event.target.form.requestSubmit();
});
document.addEventListener("htmx:afterSwap", (event) => {
  const form = event.detail.elt;
  if (form.matches?.("form.rate")) announce(form.dataset.score ? `Rated ${form.dataset.score} of 5.` : "Rating taken back.");
  if (form.matches?.("form.star")) {
    announce(form.querySelector("[aria-pressed=true]") ? "Starred." : "Star taken back.");
    const others = document.querySelectorAll(`form.star[action="${CSS.escape(form.getAttribute("action"))}"]`);
    for (const other of others) if (other !== form) other.replaceWith(copyOf(form, other));
  }
});

// The same star is shown by the tile and in the drawer; each goes on where it stands.
function copyOf(form, other) {
  const copy = form.cloneNode(true);
  copy.elements.next.value = other.elements.next.value;
  htmx.process(copy);
  return copy;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input:not([type=radio]):not([type=checkbox]):not([type=range]), textarea, select")) return;
  if (event.key.startsWith("Arrow") && event.target.closest("input")) return;
  const choices = [...document.querySelectorAll("[data-keys]")];
  if (choices.length) {
    if (localStorage.getItem(stored) === "off") return;
    const wanted = choices.find((one) => one.dataset.keys.split(" ").includes(event.key));
    if (!wanted || wanted.disabled) return;
    event.preventDefault();
    wanted.click();
    return;
  }
  // Of the image that has the focus, or of the first one.
  const rates = [...document.querySelectorAll("form.rate fieldset:not(:disabled)")];
  const rate = rates.find((one) => one.closest("figure")?.contains(event.target)) ?? rates[0];
  const star = rate?.querySelector(`input[name=score][value="${CSS.escape(event.key)}"]`);
  if (star && !event.target.closest("input[type=radio]")) star.click();
});

const images = document.querySelector("[data-slider]");
const cut = document.getElementById("cut");
if (images && cut) {
  const move = () => images.style.setProperty("--cut", `${cut.value}%`);
  cut.addEventListener("input", move);
  move();
}
