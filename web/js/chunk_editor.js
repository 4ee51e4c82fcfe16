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
import { PlanReader } from "./lib/plan_reader.js";

const TYPE = "ChunkGRPO_PlanChunks";
const KEY = "chunk_grpo_plan"; // of the node's output
const [WIDTH, HEIGHT] = [360, 236];

const editors = new WeakMap(); // node -> {panel, reader, ran, shown, isWriting}
const remembered = new Map(); // "workflow/execution id" -> what the last run gave, while the page lives

app.registerExtension({
  name: "chunk_grpo.chunk_editor",
  nodeCreated(node) {
    if (node.comfyClass === TYPE) addEditor(node);
  },
  afterConfigureGraph() {
    showLastRuns(); // not awaited: the graph need not wait for it
  },
});

function addEditor(node) {
  useStyle("chunk_editor.css");
  const editor = { ran: null, shown: null, isWriting: false };
  editor.reader = new PlanReader(() => editor.panel.draw());
  editor.panel = new ChunkPanel(
    () => readPlan(node, editor),
    (edit) => writePlan(node, editor, edit),
  );
  editors.set(node, editor);
  addPanel(node, "chunk_editor", editor.panel.element, HEIGHT, WIDTH);
  const redraw = () => editor.isWriting || editor.panel.draw();
  for (const name of ["chunk_sizes", "weights"]) after(widgetOf(node, name), "callback", redraw);
  for (const change of ["onConfigure", "onConnectionsChange"]) after(node, change, redraw);
  after(node, "onRemoved", () => {
    editor.panel.remove();
    editor.reader.remove();
  });
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

function readPlan(node, editor) {
  const { ran, reader } = editor;
  const question = questionOf(node, ran);
  const answer = question ? reader.read(question) : { note: throughLink(ran) };
  if (answer === null) return { ...(editor.shown ?? { about: "" }), editable: false, isBusy: true };
  const { curve } = question ?? { curve: null };
  const sizes = answer.sizes ?? null;
  const covered = sizes && total(sizes);
  const steps = curve && curve.mean.length - 1;
  const isLinked = linked(node, "chunk_sizes");
  editor.shown = {
    sizes,
    ...weightsOf(node, ran, answer),
    curve: curve && (covered ?? steps) === steps ? curve : null,
    trainable: covered ?? steps,
    editable: sizes !== null && !isLinked,
    about: curve ? about(curve) : nothingAbout(node),
    problem: answer.problem ?? null,
    note: (isLinked ? throughLink(ran) : answer.note) ?? null,
    isBusy: reader.isBusy,
  };
  return editor.shown;
}

/** What to ask the server; null if even the text is unknown. */
function questionOf(node, ran) {
  const textOf = (name) => String(widgetOf(node, name).value ?? "");
  const isLinked = linked(node, "chunk_sizes");
  if (isLinked && !ran) return null;
  return {
    chunk_sizes: isLinked ? plans.formatNumbers(ran.sizes) : textOf("chunk_sizes"),
    weights: linked(node, "weights") ? null : textOf("weights"),
    curve: (linked(node, "curve") && ran?.curve) || null,
  };
}

function throughLink(ran) {
  return "chunk_sizes comes through a link; " + (ran ? "as in the last run" : "run the graph");
}

/** Weights of the chunks, and how they are written there. */
function weightsOf(node, ran, { sizes, weights = null, numbers = null }) {
  if (linked(node, "weights")) weights = ran?.weights?.length === sizes?.length ? ran.weights : null;
  return { weights, labels: numbers ?? weights?.map((weight) => weight.toFixed(2)) ?? null };
}

const total = (sizes) => sizes.reduce((sum, size) => sum + size, 0);

function about(curve) {
  const { model, rule, eta, prompts, samples } = curve;
  return `${model || "model"}, ${rule} eta ${eta}, ${prompts} prompts, ${samples} samples`;
}

function nothingAbout(node) {
  return linked(node, "curve") ? t("No curve yet: press Run") : t("No curve");
}

function writePlan(node, editor, edit) {
  const { weights, numbers } = editedWeights(editor.reader.answer, edit);
  editor.isWriting = true;
  if (numbers) setText(node, widgetOf(node, "weights"), plans.formatNumbers(numbers));
  setText(node, widgetOf(node, "chunk_sizes"), plans.formatNumbers(edit.sizes));
  editor.isWriting = false;
  editor.reader.assume(questionOf(node, editor.ran), { sizes: edit.sizes, weights, numbers });
}

/** Written weights follow the chunks; those that are read off the curve are the server's to say. */
function editedWeights({ weights, numbers }, { split, merge }) {
  if (split === undefined && merge === undefined) return { weights, numbers };
  if (!numbers) return { weights: null, numbers: null };
  if (split !== undefined) {
    const after = (list) => plans.splitNumbers(list, split);
    return { weights: after(weights), numbers: after(numbers) };
  }
  const after = plans.mergeNumbers(weights, merge);
  return { weights: after, numbers: plans.mergeNumbers(numbers, merge, String(after[merge])) };
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
  editor.reader.forget();
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
