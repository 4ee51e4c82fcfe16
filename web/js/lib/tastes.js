// What the server knows of a taste (nodes/bridge/tastes.py). No side effects.

import { api } from "../../../../scripts/api.js";
import { ask, send } from "./answers.js";

const address = (name, rest = "") => `/chunk_grpo/taste/${encodeURIComponent(name)}${rest}`;

/** What a picker asks (picker.js); all answers but the last are those of `taste_view`. */
export const TASTE = {
  /** All that a panel shows: picks, batches, marks. */
  read: (name) => ask(address(name)),
  /** Do something, such as {do: "best", batch, place}; see `act`. */
  act: (name, act) => send(address(name, "/pick"), act),
  /** Let the node that waits go on. */
  goOn: (name) => send(address(name, "/go_on")),
  /** Address of a picture, by its hash. */
  url: (name, hash) => api.apiURL(address(name, `/pictures/${hash}.png`)),
};
