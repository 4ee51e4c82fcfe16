// Nodes that draw: a new one draws on the background of the page's theme. Saved ones keep their own.

import { app } from "../../../scripts/app.js";
import { isDark } from "./lib/contrast.js";

app.registerExtension({
  name: "chunk_grpo.plots",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("ChunkGRPO_")) return;
    const dark = node.widgets?.find(({ name, value }) => name === "dark" && typeof value === "boolean");
    const face = getComputedStyle(document.documentElement).getPropertyValue("--comfy-menu-bg");
    if (dark) dark.value = isDark(face);
  },
});
