// What the text of a chunk plan means, as the server reads it (nodes/bridge/routes.py).
// No side effects: ComfyUI loads every .js below web/ as an extension.

import { api } from "../../../../scripts/api.js";
import { t } from "./i18n.js";

const PAUSE = 120; // ms without a change after which the server is asked

export class PlanReader {
  /** @param changed - called when there is an answer */
  constructor(changed) {
    this.changed = changed;
    this.asked = null; // the newest question, as text
    this.answered = null; // the question that `answer` belongs to
    this.answer = null;
    this.timer = null;
  }

  /** Whether the server has not yet said what the newest question means. */
  get isBusy() {
    return this.timer !== null;
  }

  /**
   * What a text means, or null while the server is asked.
   * @param question - {chunk_sizes, weights, curve}; weights and curve may be null
   * @returns what `plan_view` gives: {sizes, weights, numbers, problem, note}
   */
  read(question) {
    const key = JSON.stringify(question);
    if (key !== this.asked) this.ask(key);
    return key === this.answered ? this.answer : null;
  }

  /** Take the page's own edit for the answer, until the server has said the same. */
  assume(question, answer) {
    const key = JSON.stringify(question);
    [this.answered, this.answer] = [key, answer];
    this.ask(key);
  }

  /** Ask again when there is reason to. */
  forget() {
    this.asked = null;
  }

  /** The node is gone. */
  remove() {
    clearTimeout(this.timer);
  }

  ask(key) {
    this.asked = key;
    clearTimeout(this.timer);
    const timer = (this.timer = setTimeout(async () => {
      const answer = await fetchView(key);
      if (timer !== this.timer) return; // there is a newer question
      [this.timer, this.answered, this.answer] = [null, key, answer];
      this.changed();
    }, PAUSE));
  }
}

async function fetchView(body) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body };
  try {
    const answer = await api.fetchApi("/chunk_grpo/chunk_plan", options);
    const view = await answer.json();
    return answer.ok ? view : { problem: view.error };
  } catch {
    return { problem: t("The server does not answer") };
  }
}
