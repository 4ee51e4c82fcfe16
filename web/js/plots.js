// Nodes that draw: a new one draws on the background of the page's theme, and so does one of a
// template that is opened for the first time. Those of a person's own graphs stay as they are.

import { app } from "../../../scripts/app.js";
import { isDark } from "./lib/contrast.js";

/** In the properties of a template's node; gone as soon as the template has been opened. */
const FOLLOWS_THEME = "chunk_grpo_follows_theme";

/** Draw on the page's background, if this is a node that draws. */
function followTheme(node) {
  if (!node.comfyClass?.startsWith("ChunkGRPO_")) return;
  const dark = node.widgets?.find(({ name, value }) => name === "dark" && typeof value === "boolean");
  const face = getComputedStyle(document.documentElement).getPropertyValue("--comfy-menu-bg");
  if (dark) dark.value = isDark(face);
}

app.registerExtension({
  name: "chunk_grpo.plots",
  nodeCreated: followTheme,
  loadedGraphNode(node) {
    if (!node.properties?.[FOLLOWS_THEME]) return;
    delete node.properties[FOLLOWS_THEME];
    followTheme(node);
  },
});
