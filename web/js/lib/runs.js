// What the server knows of trainings (nodes/bridge/routes.py), and one run kept up to date.
// No side effects: ComfyUI loads every .js below web/ as an extension.

import { api } from "../../../../scripts/api.js";
import { ask, send } from "./answers.js";
import { TASTE } from "./tastes.js";

/** Names of all runs, newest first, and the status of the node's own run. */
export function listRuns(node, workflow) {
  return ask(`/chunk_grpo/runs?${new URLSearchParams({ node, workflow })}`);
}

/** Ask a run to end after its current update and keep what it has learnt. */
export function stopRun(name) {
  return send(`/chunk_grpo/runs/${encodeURIComponent(name)}/stop`);
}

/** What a picker asks (picker.js) about a run that waits for its person, by the name of the run. */
export function askSource() {
  let taste = ""; // whose pictures and picks they are
  const address = (run, rest = "") => `/chunk_grpo/runs/${encodeURIComponent(run)}/ask${rest}`;
  const read = async (run) => {
    const { asks, batches, repeat } = await ask(address(run));
    taste = asks?.taste ?? taste;
    return { asks, batches, repeat, picks: asks?.given ?? 0, waits: !!asks };
  };
  return {
    read,
    act: async (run, act) => (await TASTE.act(taste, act), read(run)),
    goOn: (run) => send(address(run, "/go_on")),
    url: (run, hash) => TASTE.url(taste, hash),
  };
}

/** Address of a picture of the newest group. */
export function pictureUrl(name, file) {
  return api.apiURL(`/chunk_grpo/runs/${encodeURIComponent(name)}/group/${file}`);
}

/**
 * One run as its folder has it; only rows that are new are asked for.
 * `view` is what `run_view` gives, with all rows so far and `live`, the status.
 */
export class RunFollower {
  constructor(name) {
    this.name = name;
    this.view = { name, rows: [], held_out: [], group: null, live: null };
    this.asking = null;
  }

  /** Ask the server; calls that come meanwhile share one more question. */
  refresh() {
    if (!this.asking) {
      this.asking = this.fetchNew().finally(() => (this.asking = null));
      return this.asking;
    }
    this.again ??= this.asking.then(() => ((this.again = null), this.refresh()));
    return this.again;
  }

  async fetchNew() {
    const since = nextRow(this.view.rows);
    const found = await ask(`/chunk_grpo/runs/${encodeURIComponent(this.name)}?since=${since}`);
    if (found.done !== undefined && found.done < since) {
      // It was resumed from an earlier checkpoint: rows are redone.
      this.view.rows = [];
      return this.fetchNew();
    }
    this.view = { ...this.view, ...found, rows: [...this.view.rows, ...(found.rows ?? [])] };
    return this.view;
  }

  /** Take a status that the server sent. */
  hear(status) {
    this.view = { ...this.view, live: status };
  }
}

function nextRow(rows) {
  return rows.length ? rows[rows.length - 1].iteration + 1 : 0;
}
