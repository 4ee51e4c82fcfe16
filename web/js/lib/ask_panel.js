// What a training asks its person about: the newest pictures, to be picked. Without any graph.
// No side effects: ComfyUI loads every .js below web/ as an extension.

import { h } from "./dom.js";
import { t } from "./i18n.js";
import { openLarge } from "./pick_full.js";
import { pickPanel } from "./pick_panel.js";
import { simpleProgress } from "./pick_progress.js";
import { Picker } from "./picker.js";
import { askSource } from "./runs.js";

/** A picker that is through with a batch when all of it is answered, or when the person says so. */
class AskPicker extends Picker {
  constructor(onChange) {
    super(onChange, { source: askSource(), isInOrder: true });
    this.closed = new Set(); // ids of batches about which this was all
  }

  needs(batch) {
    if (batch.done || this.closed.has(batch.id)) return false;
    if (this.way === "hearts" && !batch.skipped) return batch.hearts.includes(0);
    return super.needs(batch);
  }

  act(said, then = () => this.batch && this.needs(this.batch) ? null : this.advance()) {
    return super.act(said, then);
  }

  enter() {
    return this.batch ? this.close() : null;
  }

  /** Nothing more will be said about this batch. */
  close() {
    this.closed.add(this.at);
    return this.act({ do: "done", batch: this.at });
  }
}

export class AskPanel {
  /** @param onShow - called with whether a question is shown, when that changes */
  constructor(onShow) {
    this.onShow = onShow;
    this.asks = null;
    this.large = null;
    this.isRunning = false;
    this.hadFocus = false; // when the last question went away
    this.picker = new AskPicker(() => this.draw());
    this.look = {
      progress: () => simpleProgress((view) => this.progress(view)),
      done: { text: t("Go on without"), isQuiet: true, title: t("Train with what you have said so far") },
      extra: () => [h("button", { type: "button", class: "enough primary", title: t("Nothing more about these pictures (Enter)"), onclick: () => this.picker.enter() }, t("That is all"))],
      hint: () => t("The training goes on. Its next pictures are shown here."),
    };
    this.small = pickPanel(this.picker, { isOpen: false, open: () => this.open(), close: () => {} }, this.look);
    this.small.element.classList.add("part");
    this.element = h("div", { class: "asking part" }, this.small.element);
    this.element.style.display = "none";
  }

  /**
   * Show what a run asks.
   * @param run - its name
   * @param live - its status, or null
   */
  async show(run, live) {
    const asks = live?.asks ?? null;
    const wasAsked = !!this.asks;
    const isNew = asks && asks.batches.join() !== this.asks?.batches.join();
    this.asks = asks;
    this.isRunning = live?.state === "running";
    if (!!asks !== wasAsked) {
      if (wasAsked) this.hadFocus = this.element.contains(document.activeElement);
      this.element.style.display = asks ? "" : "none";
      this.onShow(!!asks);
    }
    if (isNew) this.picker.setWay(asks.kind);
    if (isNew || (wasAsked && !asks)) await this.picker.open(run);
    else this.draw();
    if (isNew) this.takeFocus();
  }

  /** Keys that answered the last question answer this one, unless something else has them now. */
  takeFocus() {
    if (this.hadFocus && !this.large && document.activeElement === document.body) this.small.focus();
    this.hadFocus = false;
  }

  /** Take the message that something was picked. */
  hear(taste) {
    if (this.asks?.taste === taste) this.picker.refresh();
  }

  progress({ asks }) {
    if (!asks) return [[""], 1];
    const { given, wanted, why, batches } = asks;
    const isVoting = why === "votes";
    const words = isVoting ? t("your picks are the reward") : t("your taste is fitted anew: {why}", { why });
    const open = this.picker.batches.filter((batch) => this.picker.needs(batch)).length;
    const [count, all] = wanted ? [given, wanted] : [batches.length - open, batches.length];
    const counted = wanted ? t("{count} of {all} picks", { count, all }) : t("{count} of {all} groups", { count, all });
    return [[h("b", {}, counted), ` · ${words}`], Math.min(1, count / all)];
  }

  draw() {
    if (!this.small) return;
    if (this.large && !this.isRunning) this.large.close();
    if (this.asks) this.small.draw();
    this.large?.draw();
  }

  open() {
    if (this.large) return;
    const closed = () => {
      this.large = null;
      this.small.focus();
    };
    this.large = openLarge(this.picker, closed, this.look);
  }
}
