// Train LoRA: workflows saved before it had recipes go on by hand, as they were made. All nodes:
// advanced inputs that a graph links are shown.

import { app } from "../../../scripts/app.js";

const BY_HAND = "by hand";

/** Whether something is connected to an input that the page would hide. */
const linksAdvanced = (node) =>
  node.widgets?.some((widget) => {
    const slot = node.inputs?.findIndex((input) => input.widget?.name === widget.name) ?? -1;
    return widget.advanced && slot >= 0 && node.isInputConnected(slot);
  });

/** Whether the values of a saved node end before those of a widget. */
const endsBefore = (values, place) => Array.isArray(values) && values.length <= place;

/** Let a node without a saved recipe go on without one. */
function keepByHand(node, values) {
  const widgets = node.widgets?.filter((widget) => widget.serialize !== false) ?? [];
  const place = widgets.findIndex((widget) => widget.name === "recipe");
  if (place >= 0 && endsBefore(values, place)) widgets[place].value = BY_HAND;
}

app.registerExtension({
  name: "chunk_grpo.saved_nodes",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("ChunkGRPO_")) return;
    const before = node.onConfigure;
    node.onConfigure = function (saved) {
      before?.apply(this, arguments);
      if (node.comfyClass === "ChunkGRPO_TrainLoRA") keepByHand(node, saved?.widgets_values);
      if (linksAdvanced(node)) node.showAdvanced = true;
    };
  },
});
