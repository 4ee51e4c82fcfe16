// What a node showed last, from ComfyUI's own memory of the runs since it was started: for a page
// that is loaded again and for a second one. No side effects.

import { api } from "../../../../scripts/api.js";
import { executionId, nodeWithExecutionId } from "./nodes.js";

const RUNS = 64; // how far back
const FRESH = 250; // ms in which several nodes share one answer; a run takes longer

let asked = { at: -Infinity, runs: null };

/**
 * What a node put into `ui` the last time it ran, or null.
 * @param executionId - "7", or "12:7" inside a subgraph
 * @param classType - of the node; another kind of node under the same number is another node
 * @param workflowId - of the open workflow; runs of a workflow with another id are left out
 * @param typeOf - function: execution id -> type of that node in the open workflow. If given, runs
 *   that no id tells apart (sent through the API, or of a file without an id) must have its nodes
 */
export async function lastOutput(executionId, classType, workflowId, typeOf = null) {
  return newestOutput(await recentRuns(), executionId, classType, workflowId, typeOf);
}

/** What a node of the open graph put into `ui` the last time it ran, or null. */
export function shownLast(root, node) {
  const typeOf = (id) => nodeWithExecutionId(root, id)?.comfyClass;
  return lastOutput(executionId(root, node), node.comfyClass, root.id, typeOf);
}

/** The same as `lastOutput`, out of runs, newest first. */
export function newestOutput(runs, executionId, classType, workflowId, typeOf = null) {
  const key = String(executionId);
  for (const run of runs) {
    const output = run.outputs?.[key];
    const nodes = run.prompt?.[2] ?? {};
    if (!output || nodes[key]?.class_type !== classType) continue;
    const id = ownId(run.prompt[3]?.extra_pnginfo?.workflow?.id);
    if (id && ownId(workflowId)) {
      if (id !== workflowId) continue;
    } else if (typeOf) {
      const same = Object.entries(nodes).every(([each, node]) => typeOf(each) === node.class_type);
      if (!same) continue;
    }
    return output;
  }
  return null;
}

/** An id that tells a workflow from others, or null: many files hold none, or zeros. */
export function ownId(id) {
  return id && /[^0-]/.test(id) ? id : null;
}

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
