// A text that comes over a link: its box, which the classic canvas would leave empty, shrinks to a
// line with the name of the input.

import { app } from "../../../scripts/app.js";

const LINE = 20; // pixels
const LEGIBLE = 0.5; // of full size; farther away the canvas writes nothing
const isText = (widget) => widget.element?.tagName === "TEXTAREA";

/** The slot of a widget, if something is connected to it; else -1. */
function linkedSlot(node, widget) {
  const slot = node.inputs?.findIndex((input) => input.widget?.name === widget.name) ?? -1;
  return slot >= 0 && node.isInputConnected(slot) ? slot : -1;
}

/** Let a box take a line of its node while it is linked. */
function shrink(node, widget) {
  const whole = widget.computeLayoutSize;
  if (typeof whole !== "function") return;
  widget.computeLayoutSize = function () {
    if (linkedSlot(node, widget) >= 0) return { minHeight: LINE, maxHeight: LINE, minWidth: 0 };
    return whole.apply(this, arguments);
  };
}

/** Write the names of linked texts beside their sockets. */
function writeNames(node, context) {
  if ((app.canvas?.ds?.scale ?? 1) < LEGIBLE) return;
  context.font = `${globalThis.LiteGraph?.NODE_SUBTEXT_SIZE ?? 12}px Arial`;
  for (const widget of node.widgets ?? []) {
    const slot = isText(widget) ? linkedSlot(node, widget) : -1;
    if (slot < 0) continue;
    const { pos } = node.inputs[slot];
    if (!pos) continue;
    context.fillStyle = globalThis.LiteGraph?.NODE_TEXT_COLOR ?? "#aaa";
    context.textAlign = "left";
    context.fillText(widget.label ?? widget.name, pos[0] + 10, pos[1] + 5);
  }
}

app.registerExtension({
  name: "chunk_grpo.linked_text",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("ChunkGRPO_") || !node.widgets?.some(isText)) return;
    node.widgets.filter(isText).forEach((widget) => shrink(node, widget));
    const before = node.onDrawForeground;
    node.onDrawForeground = function (context) {
      before?.apply(this, arguments);
      if (!this.flags?.collapsed) writeNames(this, context);
    };
  },
});
