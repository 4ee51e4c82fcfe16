// Pictures with scores inside a node, in the order that the user chooses. No side effects.

import { app } from "../../../../scripts/app.js";
import { api } from "../../../../scripts/api.js";
import { h, useStyle } from "./dom.js";
import { shownLast } from "./history.js";
import { t } from "./i18n.js";
import { openLightbox } from "./lightbox.js";
import { nodesOfType } from "./nodes.js";
import { addPanel } from "./panel.js";

export const GRID_HEIGHT = 220; // of the panel at least, in pixels
const TEXT_HEIGHT = 110; // of text fields beside it at most; the classic canvas shares out evenly
const TINY = 256; // pixels; smaller pictures are enlarged without blur

/** A score as text: four digits, and "-" where there is none. */
export const number = (value, digits = 4) => (value === null ? "-" : value.toFixed(digits));

/** A gain as text, with its sign. */
export const signed = (value, digits = 4) =>
  value === null ? "-" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

/** How many digits show the two first figures of the largest of these numbers; `least` or more. */
export function places(values, least) {
  const largest = Math.max(...values.map((value) => Math.abs(value ?? 0)));
  return largest ? Math.min(6, Math.max(least, 1 - Math.floor(Math.log10(largest)))) : least;
}

/** The address of a file that a node wrote for the page. */
export function viewUrl(file) {
  return api.apiURL(`/view?${new URLSearchParams(file)}`);
}

/**
 * An extension that gives every node of a type a grid of what it showed last.
 * @param name - of the extension
 * @param type - class of the nodes
 * @param read - makes of what the node put into `ui` what `scoreGrid` shows, or null
 * @param around - (node, grid) => {element, mounted(widget), show(output)}: what the panel holds
 *   besides the grid; `output` is null where nothing is remembered
 */
export function gridExtension(name, type, read, around = onlyTheGrid) {
  const grids = new WeakMap();
  const show = (node, output) => {
    const { grid, panel } = grids.get(node) ?? {};
    const content = read(output ?? {});
    if (content) grid?.show(content);
    panel?.show(output ?? null);
  };
  return {
    name,
    nodeCreated(node) {
      if (node.comfyClass !== type) return;
      const grid = scoreGrid();
      const panel = around(node, grid);
      grids.set(node, { grid, panel });
      for (const { element } of node.widgets ?? []) {
        element?.style.setProperty("--comfy-widget-max-height", TEXT_HEIGHT);
      }
      panel.mounted(addPanel(node, "pictures", panel.element, GRID_HEIGHT));
      const before = node.onExecuted;
      node.onExecuted = function (output) {
        before?.apply(this, arguments);
        show(node, output);
      };
    },
    async afterConfigureGraph() {
      const root = app.rootGraph ?? app.graph;
      for (const node of nodesOfType(root, type)) show(node, await shownLast(root, node));
    },
  };
}

const onlyTheGrid = (node, { element }) => ({ element, mounted() {}, show() {} });

/**
 * An empty grid: {element, show}. What `show` takes:
 * summary - a line above the pictures, or null
 * rows - one for each cell, each with a `number`
 * orders - {label, key: (row) => number or text or null, down: whether large ones come first,
 *   shown: (row) => text, for what the cells do not show anyway}
 * cell - (row) => {pictures: [{src, alt}], lines: [element, ..], label}
 * item - (row) => what the lightbox shows
 * width - of a cell at least, in pixels
 */
export function scoreGrid() {
  useStyle("score_grid.css");
  let content = null;
  let rows = []; // in the order shown
  let cells = new Map();

  const order = h("select", { "aria-label": t("Order"), title: t("Order of the pictures"), onchange: arrange });
  const summary = h("div", { class: "summary grow" });
  const head = h("div", { class: "row" }, summary, order);
  const grid = h("div", { class: "score-grid scrolls", role: "group", "aria-label": t("Pictures, arrow keys walk"), onclick: clicked, onkeydown: pressed });
  const hint = h("div", { class: "hint quiet" }, t("After a run the pictures are here, with their scores."));
  const element = h("div", { class: "part" }, head, hint, grid);
  head.style.display = grid.style.display = "none";

  function show(wanted) {
    content = wanted;
    head.style.display = grid.style.display = "";
    hint.style.display = "none";
    summary.textContent = content.summary ?? "";
    grid.style.setProperty("--cell", `${content.width}px`);
    const chosen = order.value;
    order.replaceChildren(...content.orders.map(({ label }) => h("option", { value: label }, label)));
    if (content.orders.some(({ label }) => label === chosen)) order.value = chosen;
    cells = new Map(content.rows.map((row) => [row, makeCell(row)]));
    arrange();
  }

  function makeCell(row) {
    const { pictures, lines, label } = content.cell(row);
    return h(
      "button",
      { type: "button", class: "cell", "data-number": String(row.number), "aria-label": label, title: label, tabindex: "-1" },
      h("div", { class: "pictures" }, ...pictures.map(thumbnail)),
      ...lines,
      h("div", { class: "prompt by" }),
    );
  }

  function arrange() {
    const { key, down, shown } = content.orders.find(({ label }) => label === order.value);
    rows = [...content.rows].sort((a, b) => compare(key(a), key(b), down) || a.number - b.number);
    for (const [row, cell] of cells) cell.querySelector(".by").textContent = shown?.(row) ?? "";
    grid.replaceChildren(...rows.map((row) => cells.get(row)));
    grid.scrollTop = 0;
    reach(0);
  }

  /** Make one cell the one that the Tab key comes to. */
  function reach(index) {
    for (const cell of grid.querySelectorAll('[tabindex="0"]')) cell.setAttribute("tabindex", "-1");
    const cell = grid.children[index];
    cell?.setAttribute("tabindex", "0");
    return cell;
  }

  function clicked(event) {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    const index = [...grid.children].indexOf(cell);
    openLightbox(rows.map(content.item), index, (last) => reach(last)?.focus());
  }

  function pressed(event) {
    const now = [...grid.children].indexOf(event.target.closest(".cell"));
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const wanted = {
      ArrowLeft: now - 1,
      ArrowRight: now + 1,
      ArrowUp: now - columns,
      ArrowDown: now + columns,
      Home: 0,
      End: rows.length - 1,
    }[event.key];
    if (now < 0 || wanted === undefined) return;
    event.preventDefault();
    event.stopPropagation(); // the canvas moves nodes by arrow keys
    if (wanted >= 0 && wanted < rows.length) reach(wanted).focus();
  }

  return { element, show };
}

function thumbnail({ src, alt }) {
  return h("img", {
    src,
    alt,
    loading: "lazy",
    decoding: "async",
    draggable: "false",
    load: (event) => event.target.classList.toggle("tiny", event.target.naturalWidth < TINY),
    error: (event) => event.target.classList.add("gone"),
  });
}

/** Order of two values; what has none comes last either way. */
function compare(a, b, down) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "string" ? a.localeCompare(b) : a - b;
  return down ? -order : order;
}
