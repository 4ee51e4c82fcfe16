// The settings nodes: what is in force after the last run, and where it comes from.

import { app } from "../../../scripts/app.js";
import { h, useStyle } from "./lib/dom.js";
import { shownLast } from "./lib/history.js";
import { t } from "./lib/i18n.js";
import { nodesOfType } from "./lib/nodes.js";
import { addPanel } from "./lib/panel.js";

const TYPES = ["ChunkGRPO_GRPOSettings", "ChunkGRPO_GRPOObjective", "ChunkGRPO_GRPOExploration",
  "ChunkGRPO_ForwardObjective", "ChunkGRPO_PreferenceObjective"];
const HEIGHT = 110; // pixels; longer lists scroll

const lists = new WeakMap();

/** Show the settings that a node put into `ui`, what it sets itself first. */
function show(node, output) {
  const rows = output?.chunk_grpo_settings;
  const ordered = rows && [...rows].sort((a, b) => isOwn(b) - isOwn(a));
  if (ordered) lists.get(node)?.replaceChildren(...ordered.map(line));
}

const isOwn = ({ source }) => source === "this node";

function line(row) {
  const { key, value, source } = row;
  return h(
    "div",
    { class: isOwn(row) ? "setting own" : "setting", role: "listitem", title: `${key} = ${value}` },
    h("span", { class: "key" }, key),
    h("span", {}, value),
    h("span", { class: "quiet" }, name(source)),
  );
}

/** A source in the page's language; the name of a preset stays as it is. */
function name(source) {
  if (source === "this node") return t("this node");
  if (source === "settings that come in") return t("settings that come in");
  return source === "default" ? t("default") : source;
}

app.registerExtension({
  name: "chunk_grpo.settings",
  nodeCreated(node) {
    if (!TYPES.includes(node.comfyClass)) return;
    useStyle("settings_nodes.css");
    const hint = t("After a run, the settings in force are listed here.");
    const list = h("div", { class: "settings scrolls", role: "list" }, h("div", { class: "quiet" }, hint));
    lists.set(node, list);
    addPanel(node, "in_force", h("div", {}, list), HEIGHT);
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      show(node, output);
    };
  },
  async afterConfigureGraph() {
    const root = app.rootGraph ?? app.graph;
    for (const type of TYPES) {
      for (const node of nodesOfType(root, type)) show(node, await shownLast(root, node));
    }
  },
});
