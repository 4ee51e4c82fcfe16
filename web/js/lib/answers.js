// Questions to our routes (nodes/bridge/answers.py). No side effects.

import { api } from "../../../../scripts/api.js";

/** The JSON that a route answers; a refusal is an error with its message. */
export async function ask(path, options) {
  const answer = await api.fetchApi(path, options);
  const body = await answer.json().catch(() => ({ error: `HTTP ${answer.status}` }));
  if (!answer.ok) throw new Error(body.error);
  return body;
}

/** The same, after sending an object. */
export const send = (path, body = {}) => ask(path, { method: "POST", body: JSON.stringify(body) });
