// The panel of the chunk editor: shows a plan, and turns pointer and keys into edits of it.
// No side effects: ComfyUI loads every .js below web/ as an extension.

import { h, svg } from "./dom.js";
import { drawPlan, hit, layout } from "./chunk_picture.js";
import { t } from "./i18n.js";
import { edgesOf, mergeChunks, moveBoundary, splitChunk } from "./chunk_plan.js";

const help = () => [
  t("Colours are chunks; the large number counts their steps, w is the weight (also the bar below)."),
  t("Mouse: drag a boundary. Double-click inside a chunk splits it there, on a boundary merges."),
  t("Keys: Tab, then arrows. Home and End move a boundary far; S splits, Delete merges, Ctrl+Z undoes."),
  t("Right of the dotted line: the last step, which is never trained."),
];

export class ChunkPanel {
  /**
   * @param read - gives the plan: {sizes, weights, labels, curve, trainable, editable, about,
   *   problem, note, isBusy}
   * @param write - takes {sizes, split: chunk} or {sizes, merge: chunk} or {sizes}
   */
  constructor(read, write) {
    this.read = read;
    this.write = write;
    this.selected = null; // {chunk} or {boundary}
    this.drag = null;
    this.svg = svg("svg", {
      role: "group",
      "aria-label": t("chunk plan"),
      onpointerdown: (e) => this.onPointerDown(e),
      onpointermove: (e) => this.onPointerMove(e),
      onpointerup: (e) => this.endDrag(e),
      onpointercancel: (e) => this.endDrag(e),
      ondblclick: (e) => e.stopPropagation(), // see onPointerDown
      onkeydown: (e) => this.onKey(e),
    });
    this.about = h("span", { class: "grow about quiet" });
    this.splitButton = h(
      "button",
      { type: "button", title: t("split the chosen chunk (S)"), onclick: () => this.split() },
      t("Split"),
    );
    this.mergeButton = h(
      "button",
      {
        ...{ type: "button", onclick: () => this.merge() },
        title: t("merge the chunks beside the chosen boundary, or a chunk and the next (Delete)"),
      },
      t("Merge"),
    );
    this.help = h("div", { class: "help scrolls", hidden: true }, ...help().map((line) => h("p", {}, line)));
    this.helpButton = h(
      "button",
      {
        ...{ type: "button", title: help().join("\n"), "aria-label": t("help"), "aria-expanded": "false" },
        onclick: () => this.toggleHelp(),
      },
      "?",
    );
    this.says = h("div", { class: "says quiet", role: "status" });
    this.frame = h(
      "div",
      { class: "picture", onfocusin: (e) => this.select(partOf(e.target)) },
      this.svg,
      this.help,
    );
    this.element = h(
      "div",
      { class: "chunk-editor", onpointerenter: () => this.draw() },
      h("div", { class: "row" }, this.about, this.splitButton, this.mergeButton, this.helpButton),
      this.frame,
      this.says,
    );
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.frame);
  }

  /** Stop watching; the node is gone. */
  remove() {
    this.watch.disconnect();
  }

  /** Read the plan again and show it. */
  draw() {
    const plan = (this.plan = this.read());
    const { sizes, problem, note, editable } = plan;
    this.element.setAttribute("aria-busy", String(plan.isBusy));
    const says = problem ?? note ?? (editable ? t("Drag a boundary; double-click splits or merges") : "");
    if (this.says.textContent !== says) this.says.textContent = says;
    this.says.title = says;
    this.says.className = `says ${problem ? "problem" : "quiet"}`;
    this.about.textContent = this.about.title = plan.about;
    const part = Object.entries(this.selected ?? {})[0];
    if (part && !(part[1] < (sizes?.length ?? 0) - (part[0] === "boundary"))) this.selected = null;
    const [width, height] = [this.frame.clientWidth, this.frame.clientHeight];
    if (!width || !height) return;
    const focused = this.svg.contains(document.activeElement);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    if (plan.trainable) {
      this.place = layout({ width, height }, plan.trainable, plan.curve);
      this.svg.replaceChildren(...drawPlan(this.place, plan));
    } else {
      this.place = null;
      this.svg.replaceChildren();
    }
    this.mark();
    if (focused) this.chosen()?.focus({ preventScroll: true });
  }

  /** Show what is chosen; of the chunks, Tab stops at that one. */
  mark() {
    const { sizes, editable } = this.plan;
    for (const part of this.svg.querySelectorAll(".selected")) part.classList.remove("selected");
    this.chosen()?.classList.add("selected");
    const stop = this.selected?.chunk ?? 0;
    for (const chunk of editable ? this.svg.querySelectorAll("[data-chunk]") : []) {
      chunk.setAttribute("tabindex", Number(chunk.dataset.chunk) === stop ? 0 : -1);
    }
    this.splitButton.disabled = !editable || !(sizes[this.chosenToSplit()] > 1);
    this.mergeButton.disabled = !editable || !mergeChunks(sizes, this.chosenToMerge());
  }

  /** The element of the chosen chunk or boundary. */
  chosen() {
    const [kind, index] = Object.entries(this.selected ?? {})[0] ?? [];
    return kind && this.svg.querySelector(`[data-${kind}="${index}"]`);
  }

  /** Choose a chunk or boundary; elements stay, so that focus and clicks do. */
  select(part) {
    if (!part) return;
    this.selected = part;
    this.mark();
  }

  chosenToSplit() {
    const { chunk, boundary } = this.selected ?? {};
    return chunk ?? (boundary === undefined ? -1 : boundary + 1);
  }

  chosenToMerge() {
    const { chunk, boundary } = this.selected ?? {};
    return boundary ?? chunk ?? -1;
  }

  // Edits

  split(chunk = this.chosenToSplit(), at = null) {
    const sizes = this.editable() && splitChunk(this.plan.sizes, chunk, at);
    if (!sizes) return;
    this.selected = { boundary: chunk };
    this.change({ sizes, split: chunk });
  }

  merge(chunk = this.chosenToMerge()) {
    const sizes = this.editable() && mergeChunks(this.plan.sizes, chunk);
    if (!sizes) return;
    this.selected = { chunk };
    this.change({ sizes, merge: chunk });
  }

  move(boundary, to) {
    if (!this.editable()) return;
    const sizes = moveBoundary(this.plan.sizes, boundary, to);
    if (sizes.join() !== this.plan.sizes.join()) this.change({ sizes });
  }

  editable() {
    this.plan = this.read(); // the text may have changed since it was drawn
    return this.plan.editable;
  }

  change(edit) {
    this.write(edit);
    this.draw();
  }

  // Pointer. The page may be zoomed: client pixels are not those of the picture.

  at(event) {
    const box = this.svg.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.frame.clientWidth,
      ((event.clientY - box.top) / box.height) * this.frame.clientHeight,
    ];
  }

  partAt(event) {
    return this.place && this.plan.sizes ? hit(this.place, this.plan.sizes, ...this.at(event)) : null;
  }

  onPointerDown(event) {
    if (event.button !== 0 || !this.editable()) return;
    const part = this.partAt(event);
    if (!part) return;
    if (this.isSecond(event)) return this.onDoubleClick(event, part);
    this.select(part);
    this.chosen()?.focus({ preventScroll: true });
    if (part.boundary === undefined) return;
    this.drag = { pointer: event.pointerId, boundary: part.boundary, before: this.plan.sizes };
    this.svg.setPointerCapture(event.pointerId);
  }

  onPointerMove(event) {
    if (this.drag?.pointer === event.pointerId) {
      this.move(this.drag.boundary, this.place.edge(this.at(event)[0]));
    } else {
      const part = this.plan?.editable ? this.partAt(event) : null;
      this.svg.style.cursor = part?.boundary === undefined ? "" : "ew-resize";
    }
  }

  endDrag(event) {
    if (this.drag?.pointer === event.pointerId) this.drag = null;
  }

  /** Whether this is the second press of a double-click: the browser's own needs the element of
   * the first one, which an edit replaces. */
  isSecond(event) {
    const { time, x, y } = this.press ?? {};
    const near = Math.hypot(event.clientX - x, event.clientY - y) < 6;
    const second = near && event.timeStamp - time < 400;
    this.press = second ? null : { time: event.timeStamp, x: event.clientX, y: event.clientY };
    return second;
  }

  onDoubleClick(event, part) {
    if (part.boundary !== undefined) this.merge(part.boundary);
    else this.split(part.chunk, this.place.edge(this.at(event)[0]));
    this.chosen()?.focus({ preventScroll: true });
  }

  // Keys

  onKey(event) {
    const part = partOf(event.target);
    if (!part || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = this.actionOf(event.key, part);
    if (!act) return;
    event.preventDefault();
    event.stopPropagation(); // ComfyUI has its own meaning for these keys
    act();
  }

  actionOf(key, { chunk, boundary }) {
    if (key === "Escape" && this.drag) {
      return () => {
        this.change({ sizes: this.drag.before });
        this.drag = null;
      };
    }
    if (key.toLowerCase() === "s") return () => this.split();
    if (key === "Delete" || key === "Backspace") return () => this.merge();
    const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[key];
    if (boundary !== undefined) {
      const edge = () => edgesOf(this.plan.sizes)[boundary + 1];
      if (way) return () => this.move(boundary, edge() + way);
      if (key === "Home") return () => this.move(boundary, -Infinity);
      if (key === "End") return () => this.move(boundary, Infinity);
    } else if (way) {
      const next = Math.min(Math.max(chunk + way, 0), this.plan.sizes.length - 1);
      return () => {
        this.select({ chunk: next });
        this.chosen().focus({ preventScroll: true });
      };
    }
    return null;
  }

  toggleHelp() {
    this.help.hidden = !this.help.hidden;
    this.helpButton.setAttribute("aria-expanded", String(!this.help.hidden));
  }
}

/** The chunk or boundary that an element of the picture belongs to. */
function partOf(target) {
  const { chunk, boundary } = target.closest?.("[data-chunk], [data-boundary]")?.dataset ?? {};
  if (chunk !== undefined) return { chunk: Number(chunk) };
  return boundary === undefined ? null : { boundary: Number(boundary) };
}
