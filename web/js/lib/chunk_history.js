// What a node showed last, looked up in the answer of GET /history. No side effects.

const NIL = "00000000-0000-0000-0000-000000000000"; // the id of workflows that have none of their own

/** The path of the newest prompts; the server takes no filter. */
export const NEWEST = "/history?max_items=32";

/** An id of a workflow that tells it from others, or null. */
export function ownId(id) {
  return id && id !== NIL ? id : null;
}

/**
 * The newest output of a node that belongs to the open workflow.
 * @param history - answer of GET /history: prompt id -> entry, oldest first
 * @param wanted - {id: execution id, type, key: of the output, workflow: id of the open workflow,
 *   typeOf: function that gives the type of an open node by execution id}
 * @returns the first item of the output, or null
 */
export function lastOutput(history, { id, type, key, workflow, typeOf }) {
  for (const entry of Object.values(history).reverse()) {
    const [, , nodes, extra] = entry.prompt ?? [];
    const output = entry.outputs?.[id]?.[key]?.[0];
    if (!output || nodes?.[id]?.class_type !== type) continue;
    const itsWorkflow = ownId(extra?.extra_pnginfo?.workflow?.id);
    const same =
      itsWorkflow && ownId(workflow)
        ? itsWorkflow === workflow
        : Object.entries(nodes).every(([other, { class_type }]) => typeOf(other) === class_type);
    if (same) return output;
  }
  return null;
}
