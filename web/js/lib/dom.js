// Small pieces of page. No side effects: ComfyUI loads every .js below web/ as an extension.

/**
 * Make an element: h("div", {class: "row", onclick: act}, "text", child).
 * Attributes that are functions become listeners; null, undefined and false are left out.
 */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.replace(/^on/, ""), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Lay an element over the whole page: into what holds ComfyUI's own. */
export function layOverPage(element) {
  (document.getElementById("vue-app") ?? document.documentElement).append(element);
}

/** Load a style sheet that lies in web/css, once. */
export function useStyle(name) {
  const href = new URL(`../../css/${name}`, import.meta.url).href;
  if ([...document.styleSheets].some((sheet) => sheet.href === href)) return;
  if (document.querySelector(`link[href="${href}"]`)) return;
  document.head.append(h("link", { rel: "stylesheet", href }));
}

/** Colours of chunks and series: Okabe-Ito, as in the plots of chunk_grpo_core/watch/plot_style.py. */
export const PALETTE = ["#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2"];

/** The colour of the n-th chunk. */
export const chunkColour = (index) => PALETTE[index % PALETTE.length];
