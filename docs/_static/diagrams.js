// Draws the diagrams of a page, in the colours of the scheme that is shown then.
(() => {
  const chosen = document.body.dataset.theme;
  const isDark = chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  mermaid.initialize({ startOnLoad: false, theme: isDark ? "dark" : "default" });
  mermaid.run({ querySelector: "pre.mermaid" });
})();
