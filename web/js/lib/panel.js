// Panels: pieces of page inside a node, in the classic canvas and in "Nodes 2.0" alike.
// No side effects: ComfyUI loads every .js below web/ as an extension.

import { app } from "../../../../scripts/app.js";
import { useStyle } from "./dom.js";

const TYPE = "CHUNK_GRPO_PANEL";
const LOOK_AGAIN = [0, 200, 1000, 3000]; // ms after a node was made
let watching = false;

/**
 * Put an element below the widgets of a node. It stays out of prompts and of saved workflows.
 * @param node - a node of the canvas
 * @param name - of the widget
 * @param element - what to show; it gets the class "chunk-grpo" and its theme variables
 * @param minHeight - pixels
 * @param width - pixels that a new node gets at least; a saved one keeps its own
 */
export function addPanel(node, name, element, minHeight, width = 340) {
  useStyle("panel.css");
  element.classList.add("chunk-grpo");
  element.style.minHeight = `${minHeight}px`; // Nodes 2.0 looks at this
  for (const event of ["pointerdown", "wheel", "contextmenu"]) {
    element.addEventListener(event, (e) => insideControl(e, element) && e.stopPropagation());
  }
  const widget = node.addDOMWidget(name, TYPE, element, {
    serialize: false, // not into the prompt
    hideOnZoom: false,
    getMinHeight: () => minHeight, // the classic canvas looks at this
  });
  widget.serialize = false; // not into widgets_values
  element.dataset.panel = name;
  for (const wait of LOOK_AGAIN) setTimeout(mount, wait);
  if (!watching) app.canvas?.canvas.addEventListener("litegraph:set-graph", () => setTimeout(mount));
  watching ||= !!app.canvas;
  const [least, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], least, width), Math.max(node.size[1], height)]);
  return widget;
}

/** Give a panel another least height; the node grows with it, but never shrinks. */
export function setMinHeight(node, widget, minHeight) {
  widget.element.style.minHeight = `${minHeight}px`;
  widget.options.getMinHeight = () => minHeight;
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
}

/**
 * Put the panels of the nodes now open into the page. Some versions of Nodes 2.0 keep the element of
 * a node with the same number that was open before, from another workflow or subgraph.
 */
function mount() {
  for (const node of app.canvas?.graph?.nodes ?? []) {
    for (const { type, name, element } of node.widgets ?? []) {
      if (type !== TYPE || element.isConnected) continue;
      const place = `[data-node-id="${node.id}"] [data-panel="${name}"]`;
      document.querySelector(place)?.replaceWith(element);
    }
  }
}

/** Whether an event is for a control in the panel, and not for the canvas below it. */
function insideControl(event, element) {
  if (event.type === "wheel") {
    const list = event.target.closest?.(".scrolls");
    return !!list && element.contains(list) && list.scrollHeight > list.clientHeight;
  }
  if (event.button === 1) return false; // the middle button moves the canvas
  return !!event.target.closest?.("button, select, input, a, summary, .takes-pointer");
}
