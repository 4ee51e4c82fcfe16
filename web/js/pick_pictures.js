// Pick Pictures: the panel in the node, and over the whole page. The server has all marks, so that a
// page that is loaded later, and a second one, show the same.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { shownLast } from "./lib/history.js";
import { nodesOfType } from "./lib/nodes.js";
import { addPanel } from "./lib/panel.js";
import { openLarge } from "./lib/pick_full.js";
import { pickPanel } from "./lib/pick_panel.js";
import { Picker } from "./lib/picker.js";

const TYPE = "ChunkGRPO_PickPictures";
const [WIDTH, HEIGHT] = [420, 430];
const TEXT_HEIGHT = 80; // of the text field beside it at most; the classic canvas shares out evenly

const panels = new WeakMap();
const root = () => app.rootGraph ?? app.graph;

class PickNode {
  constructor(node) {
    this.node = node;
    this.linked = ""; // name of the taste where it comes through a link
    this.large = null;
    this.picker = new Picker(() => this.draw());
    const full = { isOpen: false, open: () => this.open(), close: () => {} };
    this.small = pickPanel(this.picker, full);
    for (const { element } of node.widgets ?? []) {
      element?.style.setProperty("--comfy-widget-max-height", TEXT_HEIGHT);
    }
    addPanel(node, "picker", this.small.element, HEIGHT, WIDTH);
    this.listen("taste", () => this.find());
    this.listen("kind", (way) => this.picker.setWay(way));
    this.picker.setWay(this.widget("kind")?.value);
    const before = node.onExecuted;
    const mine = this;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      mine.linked = output?.chunk_grpo_taste?.[0] ?? mine.linked;
      mine.find();
    };
    const removed = node.onRemoved;
    node.onRemoved = function () {
      mine.large?.close();
      removed?.apply(this, arguments);
    };
  }

  widget(name) {
    return this.node.widgets?.find((widget) => widget.name === name);
  }

  listen(name, act) {
    const widget = this.widget(name);
    if (!widget) return;
    const before = widget.callback;
    widget.callback = function (value) {
      before?.apply(this, arguments);
      act(value);
    };
  }

  get taste() {
    const isLinked = this.node.inputs?.some(({ name, link }) => name === "taste" && link != null);
    return String((isLinked ? this.linked : this.widget("taste")?.value) ?? "").trim();
  }

  async find() {
    const { taste } = this;
    if (taste) await this.picker.open(taste);
  }

  /** After a workflow was loaded: its values are there now. */
  async begin() {
    this.picker.setWay(this.widget("kind")?.value);
    this.linked = (await shownLast(root(), this.node))?.chunk_grpo_taste?.[0] ?? this.linked;
    await this.find();
  }

  hear(name) {
    if (name === this.picker.name) this.picker.refresh();
    else if (name === this.taste) this.find();
  }

  draw() {
    this.small?.draw();
    this.large?.draw();
  }

  open() {
    if (!this.large) this.large = openLarge(this.picker, () => ((this.large = null), this.small.focus()));
  }
}

function findAll() {
  for (const node of nodesOfType(root(), TYPE)) panels.get(node)?.begin();
}

app.registerExtension({
  name: "chunk_grpo.pick_pictures",
  setup() {
    api.addEventListener("chunk_grpo.taste", ({ detail }) => {
      for (const node of nodesOfType(root(), TYPE)) panels.get(node)?.hear(detail.taste);
    });
    api.addEventListener("reconnected", findAll);
  },
  nodeCreated(node) {
    if (node.comfyClass === TYPE) panels.set(node, new PickNode(node));
  },
  afterConfigureGraph: findAll,
});
