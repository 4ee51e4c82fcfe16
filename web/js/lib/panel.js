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
  const [least, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], least, width), Math.max(node.size[1], height)]);
  return widget;
}

/** Whether an event is for a control in the panel, and not for the canvas below it. */
function insideControl(event, element) {
  if (event.type === "wheel") {
    const list = event.target.closest?.(".scrolls");
    return !!list && element.contains(list) && list.scrollHeight > list.clientHeight;
  }
  return !!event.target.closest?.("button, select, input, a, summary, .takes-pointer");
}
