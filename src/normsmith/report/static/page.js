// Theme, copying, the filter, and going from entry to entry.
(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  for (const image of all("img[data-picture]")) image.src = `data:image/png;base64,${pictures[Number(image.dataset.picture)]}`;

  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a file may keep nothing */ }
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (button?.classList.contains("copy")) {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch { // without the right to write, it is marked, to be copied by hand
        getSelection().selectAllChildren(code);
        button.textContent = "Marked";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    }
    if (button?.classList.contains("all")) {
      button.parentElement.classList.add("whole");
      button.remove();
    }
    const link = event.target.closest('a[href^="#"]');
    if (link && link.getAttribute("href") === location.hash) goTo();
  });

  const entries = all(".entry"), cells = new Map(all(".map a").map((cell) => [cell.getAttribute("href").slice(1), cell]));
  const box = document.getElementById("filter"), shown = document.getElementById("shown");
  const levels = all("button.level");

  function filter() {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = new Set(levels.filter((level) => level.ariaPressed === "true").map((level) => level.dataset.level));
    let count = 0;
    for (const entry of entries) {
      const text = entry.dataset.words.toLowerCase();
      entry.hidden = !(wanted.has(entry.dataset.level) && words.every((word) => text.includes(word)));
      cells.get(entry.id)?.classList.toggle("off", entry.hidden);
      count += entry.hidden ? 0 : 1;
    }
    const noun = document.querySelector(".entries").dataset.noun;
    shown.textContent = count === entries.length ? `${count} ${noun}` : `${count} of ${entries.length} ${noun}`;
    document.querySelector(".entries .none").hidden = count > 0;
  }

  function everything() {
    box.value = "";
    for (const level of levels) level.ariaPressed = "true";
    filter();
  }

  if (box) {
    box.addEventListener("input", filter);
    for (const level of levels) {
      level.addEventListener("click", () => {
        level.ariaPressed = String(level.ariaPressed !== "true");
        filter();
      });
    }
  }

  function focusOn(entry) {
    const summary = entry.querySelector("summary");
    summary.focus({ preventScroll: true });
    summary.scrollIntoView({ block: "nearest" });
  }

  /** Opens the entry that the address names. */
  function goTo() {
    const entry = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!entry?.matches(".entry")) return;
    if (entry.hidden) everything();
    entry.open = true;
    entry.scrollIntoView({ block: "start" });
    entry.querySelector("summary").focus({ preventScroll: true });
  }

  /** To the next entry that the filter leaves; where one was open, the next is opened instead. */
  function step(by) {
    const left = entries.filter((entry) => !entry.hidden);
    const here = document.activeElement?.closest(".entry");
    const next = here ? left[left.indexOf(here) + by] : left[0];
    if (!next) return;
    if (here?.open) {
      here.open = false;
      next.open = true;
      next.scrollIntoView({ block: "start" });
    }
    focusOn(next);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !box) return;
    const writing = event.target.matches("input, textarea, select");
    const onRow = event.target.matches(".entry > summary");
    if (event.key === "Escape") {
      const entry = event.target.closest(".entry");
      if (writing) everything();
      else if (entry) {
        entry.open = false;
        focusOn(entry);
      }
    }
    if (writing && event.key === "ArrowDown") step(1);
    else if (writing) return;
    else if (event.key === "/") box.focus();
    else if (event.key === "j" || (onRow && event.key === "ArrowDown")) step(1);
    else if (event.key === "k" || (onRow && event.key === "ArrowUp")) step(-1);
    else return;
    event.preventDefault();
  });

  addEventListener("hashchange", goTo);
  goTo();
})();
