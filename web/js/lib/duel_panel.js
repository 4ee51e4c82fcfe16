// "Was it worth it?": blind duels of base and LoRA, and then the result, above what else a node shows.
// No side effects: ComfyUI loads every .js below web/ as an extension.

import { h, useStyle } from "./dom.js";
import { DUELS, duelsName } from "./duels.js";
import { t } from "./i18n.js";
import { openLightbox } from "./lightbox.js";
import { openLarge } from "./pick_full.js";
import { pickPanel } from "./pick_panel.js";
import { simpleProgress } from "./pick_progress.js";
import { Picker } from "./picker.js";

export class DuelPanel {
  /**
   * @param others - element that is hidden as long as duels are shown: it may tell which is which
   * @param onShow - called with whether there are duels, or a result of them: they take room
   */
  constructor(others, onShow = () => {}) {
    useStyle("duel_panel.css");
    this.others = others;
    this.onShow = onShow;
    this.where = null; // {run, number, id}
    this.isLater = false;
    this.large = null;
    this.picker = new Picker(() => this.draw(), { source: DUELS, ways: ["duels"], isInOrder: true });
    const look = { progress, isBlind: true };
    this.look = look;
    const full = { isOpen: false, open: () => this.open(), close: () => {} };
    const later = () => [h("button", { type: "button", class: "later", title: t("Answer the rest another time, and see the scores now"), onclick: () => this.setLater(true) }, t("Later"))];
    this.small = pickPanel(this.picker, full, { ...look, extra: later });
    this.text = h("div", { class: "grow" });
    this.again = h("button", { type: "button", onclick: () => (this.result ? this.lookBack() : this.setLater(false)) });
    this.line = h("div", { class: "duel-line row", role: "status" }, this.text, this.again);
    this.small.element.classList.add("part");
    this.element = h("div", { class: "duel-panel" }, this.line, this.small.element, others);
    this.draw();
  }

  /** Show the duels that lie there, or none. */
  async show(where) {
    if (where?.id !== this.where?.id) this.isLater = false;
    this.where = where;
    if (where) await this.picker.open(duelsName(where));
    this.draw();
  }

  /** Take the message that some duels were answered. */
  hear(where) {
    if (this.where && duelsName(where) === duelsName(this.where)) this.picker.refresh();
  }

  /** The duels, if they are those that were meant. */
  get view() {
    const { view, name } = this.picker;
    const isThere = this.where && view && name === duelsName(this.where) && view.id === this.where.id;
    return isThere ? view : null;
  }

  get result() {
    return this.view?.result ?? null;
  }

  get isOpen() {
    return !!this.view && !this.result && !this.isLater;
  }

  setLater(isLater) {
    this.isLater = isLater;
    this.draw();
    if (!isLater) this.small.focus();
  }

  draw() {
    if (!this.small) return;
    const { view, result, isOpen } = this;
    if (!isOpen || this.result) this.large?.close();
    this.small.element.style.display = isOpen ? "" : "none";
    this.others.style.display = isOpen ? "none" : "";
    this.line.style.display = view && !isOpen ? "" : "none";
    this.line.classList.toggle("result", !!result);
    if (view && !isOpen) {
      this.text.textContent = result?.text ?? countOf(view);
      this.again.textContent = result ? t("See the pairs") : t("Go on");
    }
    if (isOpen) {
      this.small.draw();
      this.large?.draw();
    }
    if (!!view !== this.hadDuels) this.onShow(!!view);
    this.hadDuels = !!view;
  }

  open() {
    if (this.large) return;
    const closed = () => {
      this.large = null;
      this.small.focus();
    };
    this.large = openLarge(this.picker, closed, this.look);
  }

  /** All pairs, now with names. */
  lookBack() {
    const { name, view } = this.picker;
    const items = view.duels.map(({ prompt, pictures, answer, lora_is_left: isLeft }) => {
      const [left, right] = pictures.map((file, side) => ({
        src: DUELS.url(name, file),
        title: `${(side === 0) === isLeft ? t("LoRA") : t("base")}${answer === side + 1 ? ` · ${t("your choice")}` : ""}`,
      }));
      return { ...left, second: right, lines: [prompt] };
    });
    openLightbox(items);
  }

  close() {
    this.large?.close();
  }
}

const countOf = ({ answered, duels }) => t("Blind duels: {count} of {all} answered", { count: answered, all: duels.length });

function progress() {
  return simpleProgress((view) => [
    [h("b", {}, countOf(view)), ` · ${t("which do you like better?")}`],
    view.answered / view.duels.length,
  ]);
}
