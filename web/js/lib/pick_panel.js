// The panel of Pick Pictures: pictures with hearts, stars, the best of them, duels; in the node, and
// the same once more over the whole page. No side effects.

import { h, svg, useStyle } from "./dom.js";
import { t } from "./i18n.js";
import { pressed } from "./pick_keys.js";
import { tasteProgress } from "./pick_progress.js";

const TINY = 256; // pixels; smaller pictures are enlarged without blur
const SHAPES = {
  heart: "M12 20.5C5 15 2.5 11.8 2.5 8.4 2.5 5.5 4.7 3.5 7.3 3.5c1.9 0 3.6 1 4.7 2.8 1.1-1.8 2.8-2.8 4.7-2.8 2.6 0 4.8 2 4.8 4.9 0 3.4-2.5 6.6-9.5 12.1z",
  cross: "M5.6 3.5 12 9.9l6.4-6.4 2.1 2.1L14.1 12l6.4 6.4-2.1 2.1L12 14.1l-6.4 6.4-2.1-2.1L9.9 12 3.5 5.6z",
  star: "M12 2.5l2.9 6.1 6.6.9-4.8 4.6 1.2 6.6L12 17.5l-5.9 3.2 1.2-6.6L2.5 9.5l6.6-.9z",
  duel: "M3 4h8v16H3zm10 0h8v16h-8z",
  large: "M3 3h7v2.5H5.5V10H3zm11 0h7v7h-2.5V5.5H14zM3 14h2.5v4.5H10V21H3zm15.5 0H21v7h-7v-2.5h4.5z",
};
const SMALLEST = { hearts: 76, best: 76, stars: 100 }; // pixels of a cell; smaller ones scroll
const GAP = 6;
const TOOLS = 26; // pixels below a picture

const icon = (name) => svg("svg", { viewBox: "0 0 24 24", class: `icon ${name}`, "aria-hidden": "true" }, svg("path", { d: SHAPES[name] }));

/**
 * One drawing of a picker: {element, draw, columns, focus}.
 * @param picker - see picker.js
 * @param full - {isOpen, open, close} of the full screen
 * @param look.progress - () => {element, draw(view)}: how far it is to enough
 * @param look.done - {text, title} of the button that goes on; isQuiet where another one is the main one
 * @param look.extra - () => further buttons
 * @param look.hint - () => what stands there without pictures
 * @param look.isBlind - nothing can be skipped, and one batch comes after the other
 */
export function pickPanel(picker, full, look = {}) {
  useStyle("pick_panel.css");
  const ways = {
    hearts: [icon("heart"), t("Hearts"), t("Like and reject any number")],
    best: [icon("star"), t("Best"), t("The best of the group")],
    duels: [icon("duel"), t("Duels"), t("The better of two")],
    stars: [icon("star"), t("Stars"), t("One to five stars for each")],
  };
  const tab = (way) => {
    const [shape, text, title] = ways[way];
    const choose = ({ detail: isMouse }) => {
      picker.setWay(way);
      if (isMouse) focus(); // Enter is for the pictures, not for the way once more
    };
    return h("button", { type: "button", class: `way ${way}`, title, onclick: choose }, shape, h("span", {}, text));
  };
  const tabs = Object.fromEntries(picker.ways.map((way) => [way, tab(way)]));
  const large = h("button", { type: "button", class: "full", title: full.isOpen ? t("Leave full screen (Escape)") : t("Full screen (F)"), onclick: () => (full.isOpen ? full.close() : full.open()) }, icon(full.isOpen ? "cross" : "large"));
  const isOneWay = picker.ways.length === 1;
  const bar = (look.progress ?? tasteProgress)();
  const back = button("‹", t("Batch before (Page Up)"), () => picker.step(-1));
  const forth = button("›", t("Batch after (Page Down)"), () => picker.step(1));
  const prompt = h("div", { class: "prompt" });
  const place = h("div", { class: "quiet place" });
  const stage = h("div", { class: "stage", role: "group", "aria-label": t("Pictures, arrow keys walk") });
  const undo = button(t("Undo (Z)"), t("Take back the last pick"), () => picker.undo());
  const same = button(t("Same (Space)"), t("Neither is better"), () => picker.answer(null));
  const skip = button(t("Skip (S)"), t("Say nothing about it"), () => picker.skip());
  const onward = look.done ?? { text: t("Done: go on"), title: t("The queue waits: go on (Enter)") };
  const done = h("button", { type: "button", class: `done${onward.isQuiet ? "" : " primary"}`, title: onward.title, onclick: () => picker.goOn() }, onward.text);
  const keys = h("div", { class: "quiet keys grow" });
  const problem = h("div", { class: "problem", role: "alert" });
  const element = h(
    "div",
    { class: "pick-panel", tabindex: "-1" },
    isOneWay ? null : h("div", { class: "row top" }, h("div", { class: "ways", role: "group" }, ...Object.values(tabs)), h("div", { class: "grow" }), large),
    bar.element,
    h("div", { class: "where" }, back, prompt, place, forth, isOneWay ? large : null),
    stage,
    problem,
    h("div", { class: "row foot" }, undo, same, skip, keys, ...(look.extra?.() ?? []), done),
  );
  let drawn = ""; // what lies on the stage
  let aspect = 1;
  let cells = [];
  let columns = 1;

  new ResizeObserver(() => fit()).observe(stage);

  function draw() {
    const { view, batch, way } = picker;
    const asked = way === "duels" ? picker.duel : null;
    const shown = asked?.batch ?? batch;
    for (const [name, tab] of Object.entries(tabs)) tab.setAttribute("aria-pressed", String(name === way));
    bar.draw(view);
    prompt.textContent = shown?.prompt ?? "";
    prompt.title = shown?.prompt ?? "";
    const number = picker.batches.findIndex(({ id }) => id === shown?.id) + 1;
    for (const control of [back, forth, skip]) control.style.display = look.isBlind ? "none" : "";
    place.textContent = number ? `${number} / ${picker.batches.length}` : "";
    back.disabled = number <= 1;
    forth.disabled = number === picker.batches.length;
    same.style.display = way === "duels" ? "" : "none";
    same.disabled = way === "duels" && !asked;
    undo.disabled = !view?.picks && !view?.batches.some(({ skipped }) => skipped);
    skip.disabled = !shown || (way === "duels" && !asked);
    done.style.display = view?.waits ? "" : "none";
    keys.textContent = hintOf(way);
    problem.textContent = picker.problem;
    problem.style.display = picker.problem ? "" : "none";
    const wanted = [picker.name, way, shown?.id, asked?.places].join();
    if (wanted !== drawn || !shown) lay(wanted, shown, asked);
    mark(shown);
  }

  function lay(wanted, shown, asked) {
    drawn = wanted;
    const hadFocus = stage.contains(document.activeElement);
    const url = (index) => picker.source.url(picker.name, shown.pictures[index]);
    stage.className = `stage ${picker.way}`;
    if (!shown || (picker.way === "duels" && !asked)) {
      cells = [];
      const text = !picker.batches.length
        ? (look.hint?.() ?? t("Run the graph: its pictures are shown here, to be picked."))
        : shown.pictures.length < 2
          ? t("A duel needs two pictures of one prompt: run a batch of several.")
          : t("All duels of these pictures are answered. Run the graph for new ones.");
      stage.replaceChildren(h("div", { class: "hint quiet" }, text));
      if (hadFocus) element.focus({ preventScroll: true });
      return;
    }
    cells = asked
      ? asked.places.map((index, side) => duelCell(url(index), side))
      : shown.pictures.map((_, index) => cell(url(index), index));
    stage.replaceChildren(...cells);
    if (hadFocus) focus(); // keys go on to what is new
    fit();
  }

  function cell(src, index) {
    const tools = { hearts: heartTools, best: () => [], stars: starTools }[picker.way](index);
    return h(
      "div",
      { class: "cell takes-pointer", tabindex: "-1", "data-place": String(index), role: "group", onclick: (event) => clicked(event, index), onfocus: () => picker.cursor !== index && picker.move(index) },
      picture(src),
      h("span", { class: "badge" }, icon(picker.way === "best" ? "star" : "heart")),
      tools.length ? h("div", { class: "tools" }, ...tools) : null,
    );
  }

  function duelCell(src, side) {
    const title = side ? t("The right one is better (right arrow)") : t("The left one is better (left arrow)");
    return h("button", { type: "button", class: "cell duel", title, "data-side": String(side), onclick: () => picker.answer(side) }, picture(src));
  }

  function heartTools(index) {
    return [
      tool("heart", t("Like (Space)"), () => picker.heart(index, 1)),
      tool("cross", t("Reject (X)"), () => picker.heart(index, -1)),
    ];
  }

  function starTools(index) {
    const stars = [1, 2, 3, 4, 5].map((count) => tool("star", String(count), () => picker.give(index, count)));
    return [...stars, tool("cross", t("Reject (X)"), () => picker.give(index, -1))];
  }

  function picture(src) {
    const load = ({ target }) => {
      target.classList.toggle("tiny", target.naturalWidth < TINY);
      aspect = target.naturalWidth / target.naturalHeight || 1;
      fit();
    };
    return h("img", { src, alt: "", draggable: "false", decoding: "async", load, error: ({ target }) => target.classList.add("gone") });
  }

  function clicked(event, index) {
    if (event.target.closest(".tools")) return;
    if (event.shiftKey || event.ctrlKey || event.metaKey) picker.select(index);
    else if (picker.way === "hearts") picker.heart(index, 1);
    else if (picker.way === "best") picker.choose(index);
    else picker.move(index);
  }

  /** Draw the marks of a batch onto its pictures. */
  function mark(shown) {
    if (!shown || picker.way === "duels") return;
    for (const [index, element] of cells.entries()) {
      const stars = shown.stars[index];
      const liked = picker.way === "hearts" && shown.hearts[index];
      const isBest = picker.way === "best" && shown.best === index;
      const isOut = liked === -1 || (picker.way === "stars" && stars === -1);
      element.classList.toggle("liked", liked === 1 || isBest);
      element.classList.toggle("rejected", isOut);
      element.classList.toggle("selected", picker.selected.has(index));
      element.classList.toggle("current", picker.cursor === index);
      element.setAttribute("aria-label", labelOf(shown, index));
      element.setAttribute("tabindex", picker.cursor === index ? "0" : "-1");
      for (const [place, star] of [...element.querySelectorAll(".tool.star")].entries()) {
        star.setAttribute("aria-pressed", String(stars !== null && place < stars));
      }
      element.querySelector(".tool.heart")?.setAttribute("aria-pressed", String(liked === 1));
      element.querySelector(".tool.cross")?.setAttribute("aria-pressed", String(isOut));
    }
    const focused = document.activeElement?.closest?.(".cell");
    if (focused && focused !== cells[picker.cursor] && element.contains(focused)) cells[picker.cursor]?.focus();
    cells[picker.cursor]?.scrollIntoView?.({ block: "nearest", inline: "nearest" });
  }

  function labelOf(shown, index) {
    const heart = { 1: t("liked"), [-1]: t("rejected") }[shown.hearts[index]];
    const count = shown.stars[index];
    const stars = count === -1 ? t("rejected") : count && t("{count} stars", { count });
    const mark = { hearts: heart, best: shown.best === index && t("Best"), stars }[picker.way];
    const words = [mark, picker.selected.has(index) && t("selected")].filter(Boolean);
    return [t("picture {number}", { number: shown.numbers[index] }), ...words].join(", ");
  }

  /** As few columns as make the pictures largest. */
  function fit() {
    const [width, height] = [stage.clientWidth, stage.clientHeight];
    if (!cells.length || !width || picker.way === "duels") return;
    const below = picker.way === "best" ? 0 : TOOLS;
    const size = (count) => {
      const rows = Math.ceil(cells.length / count);
      const room = (height - GAP * (rows - 1)) / rows - below;
      return Math.min((width - GAP * (count - 1)) / count, room * aspect);
    };
    const counts = cells.map((_, index) => index + 1);
    columns = counts.reduce((best, count) => (size(count) > size(best) + 0.5 ? count : best), 1);
    let cell = size(columns);
    const least = SMALLEST[picker.way];
    if (cell < least) {
      columns = Math.max(1, Math.min(cells.length, Math.floor((width + GAP) / (least + GAP))));
      cell = (width - 10 - GAP * (columns - 1)) / columns;
    }
    stage.style.setProperty("--cell", `${Math.floor(cell)}px`);
    stage.style.setProperty("--columns", String(columns));
    stage.style.setProperty("--aspect", String(aspect));
  }

  element.addEventListener("keydown", (event) => {
    if (full.isOpen || event.target.closest?.("select, input")) return;
    if (event.key === "Enter" && event.target.closest("button")) return;
    if (event.key === " " && event.target.closest(".ways button, .foot button, .top button")) return;
    if (!pressed(picker, event, columns, full)) return;
    event.preventDefault();
    event.stopPropagation(); // the canvas moves nodes by arrow keys
  });

  /** Keys go to the pictures; of two pictures none is marked. */
  function focus() {
    const cell = picker.way === "duels" ? null : cells[picker.cursor];
    (cell ?? element).focus({ preventScroll: true });
  }

  return { element, draw, columns: () => columns, focus };
}

function tool(shape, title, act) {
  const press = (event) => {
    event.stopPropagation();
    act();
  };
  return h("button", { type: "button", class: `tool ${shape}`, title, "aria-label": title, tabindex: "-1", onclick: press }, icon(shape));
}

function button(text, title, act) {
  return h("button", { type: "button", title, onclick: act }, text);
}

function hintOf(way) {
  return {
    hearts: t("Space likes, X rejects, Shift selects"),
    best: t("Click the best, or press its number"),
    duels: t("← or →: the better one"),
    stars: t("1 to 5 stars, X rejects, Shift selects"),
  }[way];
}
