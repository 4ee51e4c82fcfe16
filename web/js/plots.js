// Nodes that draw: a new one draws on the background of the page's theme. Saved ones keep their own.

import { app } from "../../../scripts/app.js";

app.registerExtension({
  name: "chunk_grpo.plots",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("ChunkGRPO_")) return;
    const dark = node.widgets?.find(({ name, value }) => name === "dark" && typeof value === "boolean");
    if (dark) dark.value = document.body.classList.contains("dark-theme");
  },
});
