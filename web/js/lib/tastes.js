// What the server knows of a taste (nodes/bridge/tastes.py). No side effects.

import { api } from "../../../../scripts/api.js";

const address = (name, rest = "") => `/chunk_grpo/taste/${encodeURIComponent(name)}${rest}`;

/** All that a panel shows: picks, batches, marks; see `taste_view`. */
export const readTaste = (name) => ask(address(name));

/** Do something, such as {do: "best", batch, place}; see `act`. Gives what `readTaste` gives. */
export const pick = (name, act) => ask(address(name, "/pick"), { method: "POST", body: JSON.stringify(act) });

/** Let the node that waits go on. */
export const letGoOn = (name) => ask(address(name, "/go_on"), { method: "POST" });

/** Address of a picture. */
export const pictureUrl = (name, hash) => api.apiURL(address(name, `/pictures/${hash}.png`));

async function ask(path, options) {
  const answer = await api.fetchApi(path, options);
  const body = await answer.json().catch(() => ({ error: `HTTP ${answer.status}` }));
  if (!answer.ok) throw new Error(body.error);
  return body;
}
