// The live monitor in Train LoRA (RL): what the training does, and a way to end it early.
// All of it is asked from the server, so a page that is loaded later shows the same.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { AskPanel } from "./lib/ask_panel.js";
import { ownId, shownLast } from "./lib/history.js";
import { executionId, nodeWithExecutionId, nodesOfType } from "./lib/nodes.js";
import { addPanel } from "./lib/panel.js";
import { RunPanel } from "./lib/run_panel.js";
import { RunFollower, listRuns, pictureUrl, stopRun } from "./lib/runs.js";

const TYPE = "ChunkGRPO_TrainLoRA";
const [WIDTH, HEIGHT] = [440, 560];
const RUNNING = { execution_start: true, execution_success: false, execution_error: false, execution_interrupted: false };

const monitors = new WeakMap();
const root = () => app.rootGraph ?? app.graph;
const workflowId = () => ownId(root()?.id) ?? "";

class Monitor {
  constructor(node) {
    this.node = node;
    this.follower = null;
    this.pinned = ""; // a run that was chosen; "" follows the node's own
    this.ask = new AskPanel((isAsking) => this.panel.setAsking(isAsking));
    this.panel = new RunPanel({
      onStop: () => this.attempt(() => stopRun(this.follower.name)),
      onChoose: (name) => this.choose(name),
      onOpenList: () => this.list(),
      pictureUrl,
      asking: this.ask.element,
    });
    addPanel(node, "monitor", this.panel.element, HEIGHT, WIDTH);
  }

  /** Look for the run of this node and show it, or for what a later check of it has found. */
  async find() {
    const found = await this.list();
    if (this.pinned) return;
    if (found?.live) await this.follow(found.live.run);
    const hasEnded = ["finished", "stopped"].includes(found?.live?.state ?? "finished");
    if (hasEnded) this.executed(await shownLast(root(), this.node));
  }

  /** Take what the node has put out. */
  executed(output) {
    const [check] = output?.chunk_grpo_check ?? [];
    if (check && this.pinned) {
      this.pinned = this.panel.runs.value = ""; // the run of the list gives way
      this.follower = null;
      this.show(null);
    }
    this.panel.setCheck(check ?? null);
  }

  async list() {
    const found = await this.attempt(() => listRuns(executionId(root(), this.node), workflowId()));
    if (found) this.panel.setRuns(found.runs);
    return found;
  }

  async choose(name) {
    this.pinned = name;
    this.follower = null;
    this.panel.setCheck(null);
    this.show(null);
    await (name ? this.follow(name) : this.find());
  }

  async follow(name) {
    if (this.follower?.name !== name) this.follower = new RunFollower(name);
    const follower = this.follower;
    await this.attempt(() => follower.refresh());
    if (follower === this.follower) this.show(follower.view);
  }

  show(view) {
    this.panel.show(view);
    this.ask.show(view?.name, view?.live);
  }

  /** Take a status that the server sent to all pages. */
  hear(status) {
    if (!this.concerns(status)) return;
    if (status.state === "running") this.panel.setCheck(null);
    const before = this.follower?.view.live;
    const isNew = this.follower?.name !== status.run;
    if (isNew) this.follower = new RunFollower(status.run);
    this.follower.hear(status);
    if (isNew || before?.news !== status.news) this.follow(status.run);
    else this.show(this.follower.view);
  }

  concerns(status) {
    if (this.pinned) return this.pinned === status.run;
    if (this.follower?.name === status.run) return true;
    if (status.state !== "running" || status.node !== executionId(root(), this.node)) return false;
    const isOwn = status.workflow === "" || status.workflow === workflowId();
    return isOwn || this.follower?.view.live?.state !== "running";
  }

  async attempt(action) {
    try {
      return await action();
    } catch (error) {
      this.panel.complain(error.message);
      return null;
    }
  }
}

function findAll() {
  for (const node of nodesOfType(root(), TYPE)) monitors.get(node)?.find();
}

// The panel shows the group; the live preview that other clients get would show it once more.
// Heard before the page's own listener, which is added after extensions are loaded.
api.addEventListener("b_preview_with_metadata", (event) => {
  const node = nodeWithExecutionId(root(), event.detail.displayNodeId ?? event.detail.nodeId);
  if (node && monitors.has(node)) event.stopImmediatePropagation();
});

app.registerExtension({
  name: "chunk_grpo.monitor",
  setup() {
    api.addEventListener("chunk_grpo.status", ({ detail }) => {
      for (const node of nodesOfType(root(), TYPE)) monitors.get(node)?.hear(detail);
    });
    api.addEventListener("chunk_grpo.taste", ({ detail }) => {
      for (const node of nodesOfType(root(), TYPE)) monitors.get(node)?.ask.hear(detail.taste);
    });
    api.addEventListener("reconnected", findAll);
    for (const [event, isRunning] of Object.entries(RUNNING)) {
      api.addEventListener(event, () => {
        for (const node of nodesOfType(root(), TYPE)) {
          const isCheck = node.widgets?.some((w) => w.name === "check_only" && w.value) ?? false;
          monitors.get(node)?.panel.setRunning(isRunning, isCheck);
        }
      });
    }
  },
  nodeCreated(node) {
    if (node.comfyClass !== TYPE) return;
    monitors.set(node, new Monitor(node));
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      monitors.get(node).executed(output);
    };
  },
  afterConfigureGraph: findAll,
});
