// The chunk editor in the node Plan Chunks. It writes the node's own text widgets, so that prompts
// and saved workflows need no JavaScript; the curve is what the node showed in its last run.

import { app } from "../../../scripts/app.js";
import { useStyle } from "./lib/dom.js";
import { ChunkPanel } from "./lib/chunk_panel.js";
import * as plans from "./lib/chunk_plan.js";
import { ownId, shownLast } from "./lib/history.js";
import { t } from "./lib/i18n.js";
import { executionId, nodesOfType } from "./lib/nodes.js";
import { addPanel } from "./lib/panel.js";

const TYPE = "ChunkGRPO_PlanChunks";
const KEY = "chunk_grpo_plan"; // of the node's output
const [WIDTH, HEIGHT] = [360, 236];

const editors = new WeakMap(); // node -> {panel, ran}
const remembered = new Map(); // "workflow/execution id" -> what the last run gave, while the page lives

app.registerExtension({
  name: "ChunkGRPO.ChunkEditor",
  nodeCreated(node) {
    if (node.comfyClass === TYPE) addEditor(node);
  },
  afterConfigureGraph() {
    showLastRuns(); // not awaited: the graph need not wait for it
  },
});

function addEditor(node) {
  useStyle("chunk_editor.css");
  const editor = { ran: null };
  editor.panel = new ChunkPanel(
    () => readPlan(node, editor.ran),
    (edit) => writePlan(node, edit),
  );
  editors.set(node, editor);
  addPanel(node, "chunk_editor", editor.panel.element, HEIGHT, WIDTH);
  const redraw = () => editor.panel.draw();
  for (const name of ["chunk_sizes", "weights"]) after(widgetOf(node, name), "callback", redraw);
  for (const change of ["onConfigure", "onConnectionsChange"]) after(node, change, redraw);
  after(node, "onRemoved", () => editor.panel.remove());
  after(node, "onExecuted", (output) => {
    if (output?.[KEY]?.[0]) show(node, output[KEY][0]);
  });
  redraw();
}

/** Do something after a method of an object, if it has one. */
function after(object, method, act) {
  const before = object[method];
  object[method] = function (...values) {
    const answer = before?.apply(this, values);
    act(...values);
    return answer;
  };
}

function widgetOf(node, name) {
  return node.widgets.find((widget) => widget.name === name);
}

function linked(node, name) {
  const input = node.inputs?.find((each) => each.name === name);
  return input?.link !== null && input?.link !== undefined;
}

// The plan and its text

function readPlan(node, ran) {
  const curve = linked(node, "curve") ? (ran?.curve ?? null) : null;
  const steps = curve && ran.steps;
  const sizes = linked(node, "chunk_sizes") ? throughLink(ran) : sizesOf(node, ran, steps);
  const weights = sizes.sizes ? weightsOf(node, ran, sizes.sizes, curve) : {};
  const covered = sizes.sizes?.reduce((total, size) => total + size, 0);
  const fits = curve && (covered ?? steps) === steps;
  return {
    sizes: sizes.sizes,
    weights: weights.weights ?? null,
    labels: weights.labels ?? null,
    curve: fits ? curve : null,
    trainable: covered ?? steps,
    editable: !!sizes.sizes && !linked(node, "chunk_sizes"),
    about: curve ? about(curve) : nothingAbout(node),
    problem: sizes.problem ?? weights.problem ?? null,
    note: sizes.note ?? weights.note ?? null,
  };
}

function sizesOf(node, ran, steps) {
  const text = String(widgetOf(node, "chunk_sizes").value ?? "");
  return plans.readSizes(text, steps, ran?.written.chunk_sizes === text ? ran.sizes : null);
}

function throughLink(ran) {
  const note = "chunk_sizes comes through a link; " + (ran ? "as in the last run" : "run the graph");
  return { sizes: ran?.sizes ?? null, note };
}

function weightsOf(node, ran, sizes, curve) {
  if (!linked(node, "weights")) {
    const fits = curve && sizes.reduce((total, size) => total + size, 0) === curve.mean.length - 1;
    const text = String(widgetOf(node, "weights").value ?? "");
    return plans.readWeights(text, sizes, fits ? curve : null);
  }
  const weights = ran?.weights?.length === sizes.length ? ran.weights : null;
  return { weights, labels: weights?.map((weight) => weight.toFixed(2)) };
}

function about(curve) {
  const { model, rule, eta, prompts, samples } = curve;
  return `${model || "model"}, ${rule} eta ${eta}, ${prompts} prompts, ${samples} samples`;
}

function nothingAbout(node) {
  return linked(node, "curve") ? t("No curve yet: press Run") : t("No curve");
}

function writePlan(node, { sizes, split, merge }) {
  const weights = widgetOf(node, "weights");
  const count = sizes.length;
  if (!linked(node, "weights")) {
    const text = String(weights.value ?? "");
    if (split !== undefined) setText(node, weights, plans.weightsAfterSplit(text, count - 1, split));
    if (merge !== undefined) setText(node, weights, plans.weightsAfterMerge(text, count + 1, merge));
  }
  setText(node, widgetOf(node, "chunk_sizes"), plans.formatSizes(sizes));
}

function setText(node, widget, text) {
  if (widget.value === text) return;
  widget.value = text;
  widget.callback?.(text, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
}

// What the last run gave

const rootGraph = () => app.rootGraph ?? app.graph;
const keyOf = (node) => `${rootGraph().id}/${executionId(rootGraph(), node)}`;

function show(node, ran) {
  const editor = editors.get(node);
  if (!editor) return;
  editor.ran = ran;
  if (ownId(rootGraph().id)) remembered.set(keyOf(node), ran);
  editor.panel.draw();
}

async function showLastRuns() {
  const nodes = nodesOfType(rootGraph(), TYPE);
  for (const node of nodes.filter((each) => remembered.has(keyOf(each)))) {
    show(node, remembered.get(keyOf(node)));
  }
  const unknown = nodes.filter((node) => !editors.get(node)?.ran);
  for (const node of unknown) {
    const output = await shownLast(rootGraph(), node);
    if (output?.[KEY]?.[0] && !editors.get(node).ran) show(node, output[KEY][0]);
  }
}
