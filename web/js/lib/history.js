// What a node showed last, from ComfyUI's own memory of the runs since it was started: for a page
// that is loaded again and for a second one. No side effects.

import { api } from "../../../../scripts/api.js";

const RUNS = 64; // how far back
const FRESH = 1500; // ms in which several nodes share one answer

let asked = { at: -Infinity, runs: null };

/**
 * What a node put into `ui` the last time it ran, or null.
 * @param executionId - "7", or "12:7" inside a subgraph
 * @param classType - of the node; another kind of node under the same number is another node
 * @param workflowId - of the open workflow; runs of a workflow with another id are left out
 */
export async function lastOutput(executionId, classType, workflowId) {
  const key = String(executionId);
  for (const run of await recentRuns()) {
    const output = run.outputs?.[key];
    if (!output || run.prompt?.[2]?.[key]?.class_type !== classType) continue;
    const id = run.prompt[3]?.extra_pnginfo?.workflow?.id;
    if (isId(id) && isId(workflowId) && id !== workflowId) continue;
    return output;
  }
  return null;
}

/** A workflow that was never saved may have an id of zeros, and gets another when it is loaded. */
const isId = (id) => /[1-9a-f]/i.test(id ?? "");

/** Runs that have ended, newest first; empty when the server does not answer. */
function recentRuns() {
  if (performance.now() - asked.at > FRESH) {
    asked = { at: performance.now(), runs: fetchRuns() };
  }
  return asked.runs;
}

async function fetchRuns() {
  try {
    const answer = await api.fetchApi(`/history?max_items=${RUNS}`);
    const runs = Object.values(await answer.json());
    return runs.sort((a, b) => b.prompt[0] - a.prompt[0]);
  } catch {
    return [];
  }
}
