// Panels: pieces of page inside a node, in the classic canvas and in "Nodes 2.0" alike.
// No side effects: ComfyUI loads every .js below web/ as an extension.

import { useStyle } from "./dom.js";

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
  const widget = node.addDOMWidget(name, "CHUNK_GRPO_PANEL", element, {
    serialize: false, // not into the prompt
    hideOnZoom: false,
    getMinHeight: () => minHeight, // the classic canvas looks at this
  });
  widget.serialize = false; // not into widgets_values
  keepShown(node, name, element);
  const [least, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], least, width), Math.max(node.size[1], height)]);
  return widget;
}

/**
 * Nodes 2.0 takes the element of a node when it first sees the node's id. After an undo, or with
 * another workflow, a new node has that id and the panel of the old one would stay.
 */
function keepShown(node, name, element) {
  element.dataset.panel = name;
  const show = () => {
    const shown = document.querySelector(`[data-node-id="${node.id}"] [data-panel="${name}"]`);
    if (shown && shown !== element && !element.isConnected) shown.replaceWith(element);
  };
  for (const event of ["onAdded", "onConfigure"]) {
    const before = node[event];
    node[event] = function (...values) {
      for (const wait of [0, 100, 500]) setTimeout(show, wait); // the page draws nodes later
      return before?.apply(this, values);
    };
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
