// What the page does beyond forms and links, all of which work without it. Draws nothing itself: what changes is fetched
// as the server renders it, but for the steps of a running task.

const byId = (id) => document.getElementById(id);
const announce = (text) => { byId("announcements").textContent = text; };

document.documentElement.classList.add("script");
// On the document: htmx replaces parts of it.
document.addEventListener("click", onClick);
document.addEventListener("htmx:afterSwap", showTimes);
document.addEventListener("htmx:afterSwap", showElapsed);
setInterval(showElapsed, 1000);
document.addEventListener("htmx:afterSwap", tell);
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.elt.matches?.("form[action$='/cancel']")) {
    announce(event.detail.successful ? "Cancel requested." : "The task could not be canceled.");
  }
});
showTimes();
showElapsed();
showCurrentView();
if (byId("create")) followForm(byId("create"));
if (byId("chosen")) followChoice(byId("chosen"));
const live = document.querySelector("[data-events]");
if (live) followTasks(live.dataset.events, live.dataset.only);

// On a phone the views scroll sideways: the current one is brought to the middle.
function showCurrentView() {
  const nav = document.querySelector(".top nav");
  const current = nav?.querySelector("[aria-current]");
  if (current) nav.scrollLeft = current.offsetLeft - nav.offsetLeft - (nav.clientWidth - current.offsetWidth) / 2;
}

function showTimes() {
  for (const time of document.querySelectorAll("time:not([title])")) {
    time.title = time.textContent;
    time.textContent = new Date(time.dateTime).toLocaleString();
  }
}

// What a part that is fetched again and again has to say, once.
const toTell = () => document.querySelector("[data-announce]")?.dataset.announce ?? "";
let told = toTell();
function tell() {
  const text = toTell();
  if (text && text !== told) announce(text);
  told = text;
}

// For how long a task has waited or run; no live region, which would say it each second.
function showElapsed() {
  for (const place of document.querySelectorAll("[data-since]")) {
    const seconds = Math.max(0, Math.floor((Date.now() - new Date(place.dataset.since)) / 1000));
    const minutes = Math.floor(seconds / 60);
    const hours = Math.floor(minutes / 60);
    const words = hours ? `${hours} h ${minutes % 60} min` : minutes ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
    // No line ends between a number and its unit.
    place.textContent = `for ${words.replace(/(?<=\d) /g, "\u00a0")}`;
  }
}

// What was opened stays open when its part is fetched again.
const opened = new Set();
document.addEventListener("toggle", (event) => opened[event.target.open ? "add" : "delete"](event.target.id), true);
document.addEventListener("htmx:afterSwap", () => {
  for (const id of opened) byId(id)?.setAttribute("open", "");
});

async function onClick(event) {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const code = byId(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(code.textContent);
    announce("Copied.");
    button.textContent = "Copied";
  } catch {
    // Browsers allow it on HTTPS and loopback alone: what is selected can be copied by hand.
    getSelection().selectAllChildren(code);
    announce("Selected; copy it with the keyboard.");
  }
}

// Create

function followForm(form) {
  const { prompt, width, height, seed, true_cfg_scale: scale, negative_prompt: negative } = form.elements;
  const presets = form.querySelectorAll("[data-width]");
  const showSize = () => {
    byId("megapixels").textContent = ((width.value * height.value) / 1e6).toFixed(2);
    for (const preset of presets) {
      const isChosen = preset.dataset.width === width.value && preset.dataset.height === height.value;
      preset.setAttribute("aria-pressed", String(isChosen));
    }
  };
  const snap = (event) => {
    const field = event.target;
    const step = Number(field.step);
    const nearest = Math.round(field.value / step) * step;
    if (field.value) field.value = Math.min(Number(field.max), Math.max(Number(field.min), nearest));
    showSize();
  };
  const showEffect = () => negative.classList.toggle("without-effect", !(Number(scale.value) > 1));
  for (const side of [width, height]) {
    side.addEventListener("change", snap);
    side.addEventListener("input", showSize);
  }
  for (const preset of presets) {
    preset.addEventListener("click", () => {
      width.value = preset.dataset.width;
      height.value = preset.dataset.height;
      showSize();
    });
  }
  byId("dice").addEventListener("click", () => {
    seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
    announce(`Seed ${seed.value}.`);
  });
  scale.addEventListener("input", showEffect);
  showEffect();
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(byId("submit"));
  });
  // A form that the browser shows again after a step back is a new one, which makes a new task.
  addEventListener("pageshow", (event) => {
    if (event.persisted) form.elements.key.value = crypto.getRandomValues(new Uint32Array(4)).join("-");
  });
  keepDraft(form, prompt);
}

// What was typed and not sent survives a look elsewhere. The settings of another task are shown beside it, not over it:
// one says what is kept.
function keepDraft(form, prompt) {
  const key = "fluxpool-draft";
  const read = () => Object.fromEntries([...new FormData(form)].filter(([name]) => name !== "form_token" && name !== "key"));
  const draft = JSON.parse(sessionStorage.getItem(key) ?? "{}");
  const restore = (names) => {
    for (const name of names) {
      const field = form.elements[name];
      if (field?.type === "checkbox") field.checked = name in draft;
      else if (field) field.value = draft[name] ?? "";
      field?.dispatchEvent(new Event("input"));
    }
  };
  const all = Object.keys({ ...read(), ...draft, preview: 1, lock: 1 });
  if (draft.prompt && draft.prompt !== prompt.value) {
    if (!prompt.value.trim() && !form.dataset.source) {
      restore(all);
    } else {
      const notice = byId("draft");
      notice.querySelector("[data-draft]").textContent =
        draft.prompt.length > 80 ? `${draft.prompt.slice(0, 80)}…` : draft.prompt;
      for (const button of notice.querySelectorAll("[data-restore]")) {
        button.addEventListener("click", () => {
          restore(button.dataset.restore === "all" ? all : ["prompt"]);
          notice.hidden = true;
          prompt.focus();
        });
      }
      notice.hidden = false;
    }
  }
  form.addEventListener("input", (event) => {
    if (event.isTrusted) sessionStorage.setItem(key, JSON.stringify(read()));
  });
  form.addEventListener("submit", (event) => {
    if (event.submitter?.name !== "show") sessionStorage.removeItem(key);
  });
}

// Queue

function followChoice(form) {
  const all = byId("choose-all");
  const boxes = [...form.querySelectorAll("input[name=id]")];
  const show = () => {
    const chosen = boxes.filter((box) => box.checked).length;
    all.checked = chosen === boxes.length;
    all.indeterminate = chosen > 0 && chosen < boxes.length;
    byId("chosen-count").textContent = chosen ? `${chosen} chosen` : "None chosen";
    for (const button of form.querySelectorAll("button[name=action]")) button.disabled = chosen === 0;
  };
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
    show();
  });
  form.addEventListener("change", show);
  show();
}

// Live tasks

function followTasks(address, only) {
  const words = { succeeded: "succeeded", failed: "failed", expired: "expired", canceled: "was canceled" };
  // However many tasks change: what is shown is fetched at most once in this time, and never twice at once.
  const pauseMilliseconds = 500;
  let wanted = false;
  let isFetching = false;

  const fetchNow = () => {
    wanted = false;
    isFetching = true;
    htmx.trigger("#tasks", "changed");
    setTimeout(() => {
      isFetching = false;
      if (wanted) fetchNow();
    }, pauseMilliseconds);
  };
  const refresh = () => {
    wanted = true;
    if (!isFetching) fetchNow();
  };
  const cardOf = (id) => document.querySelector(`[data-task="${CSS.escape(id)}"]`);
  const connection = (text) => {
    for (const place of document.querySelectorAll("[data-connection]")) place.textContent = text;
  };

  const events = new EventSource(address);
  // After a pause of the connection the server begins with what was missed.
  events.addEventListener("open", () => connection(""));
  events.addEventListener("error", () => {
    connection(events.readyState === EventSource.CLOSED ? "Not connected: reload the page." : "Connecting again …");
  });
  events.addEventListener("snapshot", refresh);
  for (const name of ["queued", "running", ...Object.keys(words)]) {
    events.addEventListener(name, (event) => {
      const task = JSON.parse(event.data);
      if (only && task.request_id !== only) return;
      const card = cardOf(task.request_id);
      if (card && words[task.status] && card.dataset.status !== task.status) announce(`A task ${words[task.status]}.`);
      refresh();
    });
  }
  events.addEventListener("progress", (event) => {
    const task = JSON.parse(event.data);
    if (only && task.request_id !== only) return;
    const card = cardOf(task.request_id);
    const bar = card?.querySelector("progress");
    if (!bar || !task.progress || task.status !== "running") {
      refresh();
      return;
    }
    bar.value = task.progress.percent;
    card.querySelector("[data-step]").textContent = `step ${task.progress.step} of ${task.progress.total_steps}`;
  });

  // Of each running task the latest picture: views that are fetched again have none.
  const pictures = new Map();
  const paint = (id) => {
    const canvas = cardOf(id)?.querySelector("[data-preview]");
    const picture = pictures.get(id);
    if (!canvas || !picture) return;
    canvas.width = picture.bitmap.width;
    canvas.height = picture.bitmap.height;
    canvas.getContext("2d").drawImage(picture.bitmap, 0, 0);
    canvas.setAttribute("aria-label", `Preview after step ${picture.step ?? "?"}`);
    canvas.hidden = false;
  };
  document.addEventListener("htmx:afterSwap", () => {
    for (const id of pictures.keys()) {
      if (cardOf(id)?.dataset.status === "running") paint(id);
      else pictures.delete(id);
    }
  });
  events.addEventListener("preview", async (event) => {
    const preview = JSON.parse(event.data);
    if (only && preview.request_id !== only) return;
    const bytes = Uint8Array.from(atob(preview.data), (character) => character.charCodeAt(0));
    // Drawn, not loaded: the policy of the page allows images of its own address alone.
    const bitmap = await createImageBitmap(new Blob([bytes], { type: preview.content_type }));
    pictures.set(preview.request_id, { bitmap, step: preview.step });
    paint(preview.request_id);
  });
}
