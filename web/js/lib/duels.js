// Blind duels of a run (nodes/bridge/duels.py), as a picker asks for them. No side effects.

import { api } from "../../../../scripts/api.js";
import { ask, send } from "./answers.js";

/** The name under which a picker knows the duels of a run; names of runs have no slash. */
export const duelsName = ({ run, number }) => `${run}/${number}`;

/** What a picker asks (picker.js): one batch of two pictures for each duel. */
export const DUELS = {
  read: async (name) => asBatches(await ask(address(name))),
  act: async (name, said) => asBatches(await send(address(name), bodyOf(said))),
  url: (name, file) => api.apiURL(address(name, `/${file}`)),
};

function address(name, rest = "") {
  const [run, number] = name.split("/");
  return `/chunk_grpo/runs/${encodeURIComponent(run)}/duels/${number}${rest}`;
}

/** A picker says 0 (left), 1 (right) or null (same). */
function bodyOf({ do: what, batch, answer }) {
  if (what === "undo") return { undo: true };
  return { duel: Number(batch), answer: answer === null ? 0 : answer + 1 };
}

function asBatches(view) {
  const batches = view.duels.map(({ prompt, pictures, answer }, index) => ({
    id: String(index + 1),
    prompt,
    pictures,
    duels: answer === null ? [[0, 1]] : [],
  }));
  return { ...view, picks: view.answered, batches };
}
