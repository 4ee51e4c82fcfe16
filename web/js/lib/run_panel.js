// The picture of one training: charts, phases, the newest group. Knows no server and no graph.
// No side effects: ComfyUI loads every .js below web/ as an extension.

import { clock, drawChart, short, smoothed } from "./chart.js";
import { checkView } from "./check_view.js";
import { standingOut } from "./contrast.js";
import { chunkColour, h, useStyle } from "./dom.js";
import { GroupStrip } from "./group_strip.js";
import { t } from "./i18n.js";

const PHASES = { rollout: "#56b4e9", score: "#e69f00", update: "#009e73" };
const [REWARD, HELD_OUT] = ["#3090d5", "#d55e00"];

/** How far the policy has moved: from the one that sampled, or, without ratios, from the base. */
const distance = (row) => row.approx_kl ?? row.reference_gap ?? null;

export class RunPanel {
  /**
   * @param options.onStop() - Stop and keep was pressed
   * @param options.onChoose(name) - a run was chosen; "" is the node's latest
   * @param options.onOpenList() - the list of runs is about to be opened
   * @param options.pictureUrl(run, file) - address of a picture
   * @param options.asking - element that takes the place of the charts; see setAsking
   */
  constructor({ onStop, onChoose, onOpenList, pictureUrl, asking = null }) {
    useStyle("monitor.css");
    this.view = null;
    this.cursor = null; // row under the pointer
    this.isAsking = false;
    this.isChecking = false; // the graph runs, and only checks
    this.check = null; // what it has found
    this.build({ onStop, onChoose, onOpenList, pictureUrl, asking });
    new ResizeObserver(() => this.redraw()).observe(this.element);
    new MutationObserver(() => this.redraw()).observe(document.documentElement, {
      attributes: true, // the theme
    });
  }

  build({ onStop, onChoose, onOpenList, pictureUrl, asking }) {
    this.runs = h("select", {
      title: t("Choose a run"),
      "aria-label": t("Choose a run"),
      onchange: () => onChoose(this.runs.value),
      onpointerdown: onOpenList,
      onfocus: onOpenList,
    });
    this.setRuns([]);
    this.state = h("span", { class: "state" });
    this.count = h("span", { class: "quiet grow" });
    this.stop = h("button", { class: "stop", type: "button", onclick: onStop }, t("Stop and keep"));
    this.fill = h("div");
    this.message = h("div", { class: "message", role: "alert" });
    this.alarms = h("div", { class: "message alarms", role: "alert" });
    this.reward = h("canvas", { class: "takes-pointer", role: "img" });
    this.clip = h("canvas", { role: "img" });
    this.kl = h("canvas", { role: "img" });
    this.readout = h("div", { class: "readout" });
    this.clipText = h("div", { class: "readout" });
    this.klText = h("div", { class: "readout" });
    this.small = h("div", { class: "small" }, h("div", {}, this.clipText, this.clip), h("div", {}, this.klText, this.kl));
    this.phases = h("div", { class: "phases" });
    this.group = new GroupStrip(pictureUrl);
    this.nothing = h("div", { class: "nothing quiet" }, t("No run yet: press Run"));
    this.found = h("div", { class: "check scrolls" });
    this.charts = [
      this.readout,
      h("div", { class: "reward" }, this.reward),
      this.small,
      this.phases,
      ...this.group.elements,
    ];
    this.element = h(
      "div",
      { class: "monitor" },
      h("div", { class: "row head" }, this.runs, this.state, this.count, this.stop),
      h("div", { class: "bar" }, this.fill),
      this.message,
      this.alarms,
      this.nothing,
      this.found,
      asking,
      ...this.charts,
    );
    this.reward.style.height = "100%";
    this.reward.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.reward.addEventListener("pointerleave", () => this.point(null));
    this.draw();
  }

  /** Offer the names of runs. */
  setRuns(names) {
    const chosen = this.runs.value;
    const options = [["", t("Latest run")], ...names.map((name) => [name, name])];
    this.runs.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
    this.runs.value = names.includes(chosen) ? chosen : "";
  }

  /** Show a run as `RunFollower.view` has it; null shows that there is none. */
  show(view) {
    this.view = view;
    this.redraw();
  }

  /**
   * Say whether a graph runs: until the training in it begins there is nothing else to show.
   * @param isCheck - it only checks, and no training will begin
   */
  setRunning(isRunning, isCheck) {
    const running = isCheck ? t("Checking: it tries a little and keeps nothing") : t("Running: the training has not begun yet");
    this.nothing.textContent = isRunning ? running : t("No run yet: press Run");
    this.isChecking = isRunning && isCheck;
    this.redraw();
  }

  /** Show in the place of the run what check_only has found; null shows the run again. */
  setCheck(check) {
    if (!check && !this.check) return;
    this.check = check;
    this.found.replaceChildren(...(check ? checkView(check) : []));
    this.redraw();
  }

  /** Say what went wrong between page and server. */
  complain(text) {
    this.message.textContent = text;
  }

  /** Give the place of the charts to what the run asks, or take it back. */
  setAsking(isAsking) {
    this.isAsking = isAsking;
    this.redraw();
  }

  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const isTraining = this.view?.live?.state === "running";
    const view = isTraining || !(this.check || this.isChecking) ? this.view : null;
    const rows = view?.rows ?? [];
    const isShown = !!view && (rows.length > 0 || !!view.live);
    const hasCheck = !!this.check && !this.isChecking && !isTraining;
    this.nothing.style.display = isShown || hasCheck ? "none" : "";
    this.found.style.display = hasCheck ? "" : "none";
    const hasCharts = isShown && !this.isAsking;
    for (const part of this.charts) part.style.display = hasCharts ? "" : "none";
    this.drawHead(view, rows);
    if (!hasCharts) return;
    this.drawCharts(view, rows);
    this.drawPhases(rows);
    this.group.draw(view);
  }

  drawHead(view, rows) {
    const live = view?.live;
    const isRunning = live?.state === "running";
    const state = stateOf(view, rows);
    this.state.className = `state ${state}`;
    this.state.textContent = state ? stateText(state, live) : "";
    this.state.style.display = state ? "" : "none";
    const iterations = live?.iterations ?? view?.iterations ?? 0;
    const left = isRunning && live.seconds_left !== null ? ` · ${t("remaining")} ${clock(live.seconds_left)}` : "";
    this.count.textContent = view && iterations ? `${rows.length} / ${iterations}${left}` : "";
    this.stop.style.display = isRunning && live.phase !== "after" ? "" : "none"; // then it has ended
    this.stop.disabled = !!live?.stopping;
    this.stop.textContent = live?.stopping ? t("Stopping after this update") : t("Stop and keep");
    const within = isRunning && ["rollout", "score", "update"].includes(live.phase) ? live.fraction : 0;
    const done = iterations ? Math.min(1, (rows.length + within) / iterations) : 0;
    this.fill.style.transform = `scaleX(${done})`;
    this.complain(live?.message ?? "");
    this.alarms.textContent = (view?.alarms ?? []).join(" ");
  }

  drawCharts(view, rows) {
    const style = getComputedStyle(this.element);
    const colours = {
      text: style.getPropertyValue("--grpo-quiet").trim() || "#aaa",
      grid: style.getPropertyValue("--grpo-edge").trim() || "#555",
    };
    const line = standingOut(REWARD, style);
    const x = rows.map((row) => row.iteration + 1);
    const mean = rows.map((row) => row.reward_mean);
    const iterations = view.live?.iterations ?? view.iterations ?? 1;
    const xRange = [0, Math.max(iterations, rows.length, 1)];
    const cursor = this.cursor === null ? null : (x[this.cursor] ?? null);
    const edge = (sign) =>
      rows.map((row) => (row.reward_mean === null ? null : row.reward_mean + sign * (row.reward_std ?? 0)));
    this.chart = drawChart(this.reward, {
      colours,
      cursor,
      xRange,
      series: [
        { kind: "band", x, low: edge(-1), high: edge(1), colour: line },
        { kind: "line", x, y: mean, colour: line, width: 1, alpha: 0.55 },
        { kind: "line", x, y: smoothed(mean), colour: line, width: 2.2 },
        ...heldOutSeries(view.held_out ?? [], standingOut(HELD_OUT, style)),
      ],
    });
    const chunks = rows[0]?.clip_fraction?.length ?? 0;
    // Training without ratios has nothing to clip: the length of the velocity is what to watch.
    const green = standingOut(PHASES.update, style);
    const norm = { kind: "line", x, y: rows.map((row) => row.velocity_norm), colour: green };
    const ofChunk = (chunk) => standingOut(chunkColour(chunk), style);
    // Before the first iteration nobody knows which of them there will be.
    this.small.style.visibility = rows.length ? "" : "hidden";
    drawChart(this.clip, {
      colours,
      cursor,
      xRange,
      fromZero: chunks > 0,
      series: chunks
        ? Array.from({ length: chunks }, (_, chunk) => ({
            kind: "line",
            x,
            y: smoothed(rows.map((row) => row.clip_fraction[chunk])),
            colour: ofChunk(chunk),
          }))
        : [norm],
    });
    drawChart(this.kl, {
      colours,
      cursor,
      xRange,
      fromZero: true,
      series: [{ kind: "line", x, y: rows.map(distance), colour: green }],
    });
    this.drawReadout(view, rows, ofChunk);
  }

  /** Write the numbers of the row under the pointer, or of the newest one. */
  drawReadout(view, rows, ofChunk) {
    const row = rows[this.cursor ?? rows.length - 1];
    const done = (row?.iteration ?? -1) + 1;
    const measured = (view.held_out ?? []).filter((one) => one.iterations <= done).at(-1);
    this.readout.replaceChildren(
      ...(row ? [`${t("iteration")} ${done} · ${view.reward} `] : []),
      ...(row ? [h("b", { class: "train" }, `${short(row.reward_mean)} ± ${short(row.reward_std, 2)}`)] : []),
      ...Object.entries(row?.rewards ?? {}).flatMap(([name, mean]) => [` · ${name} `, h("b", {}, short(mean))]),
      ...(measured ? [`${row ? " · " : ""}${t("held-out")} `, h("b", { class: "held-out" }, heldOutText(measured))] : []),
    );
    this.readout.title = this.readout.textContent;
    const hasRatios = row?.clip_fraction !== undefined;
    if (hasRatios) {
      const chunks = row.clip_fraction.flatMap((value, chunk) => {
        const swatch = h("span", { class: "swatch", style: `background: ${ofChunk(chunk)}` });
        return [h("span", { class: "one" }, swatch, `${chunk + 1} `, h("b", {}, short(value, 2))), " "];
      });
      this.clipText.replaceChildren(`${t("clip fraction")}, ${t("chunk")} `, ...chunks);
      this.clipText.title = t("share of the pictures whose update was cut short");
    } else if (row) {
      this.clipText.replaceChildren(`${t("velocity norm")} `, h("b", {}, short(row.velocity_norm, 3)));
      this.clipText.title = t("length of the velocity, compared with the base model's");
    }
    const name = hasRatios ? t("KL") : t("distance to base");
    this.klText.title = hasRatios
      ? t("how far this round moves the model from the one that drew the pictures")
      : t("how far the LoRA moves the model from the base");
    this.klText.replaceChildren(`${name} `, h("b", {}, row ? short(distance(row), 2) : ""));
    const charts = [[this.reward, this.readout], [this.clip, this.clipText], [this.kl, this.klText]];
    for (const [canvas, { textContent }] of charts) {
      canvas.setAttribute("aria-label", textContent || t("reward"));
    }
  }

  drawPhases(rows) {
    const seconds = rows.at(-1)?.seconds ?? {};
    const names = { rollout: t("rollout"), score: t("score"), update: t("update") };
    const parts = Object.keys(PHASES).filter((name) => seconds[name] > 0);
    this.phases.style.display = parts.length ? "" : "none";
    const text = parts.map((name) => `${names[name]} ${short(seconds[name], 2)} s`);
    const title = [text.join(" · "), t("drawn, marked, learnt from: the last iteration")].join("\n");
    if (this.phases.title === title) return;
    this.phases.title = title;
    this.phases.replaceChildren(
      ...parts.map((name, index) =>
        h("span", { style: `flex: ${1000 * seconds[name]} 1 0; background: ${PHASES[name]}` }, text[index]),
      ),
    );
  }

  point(pixels) {
    const rows = this.view?.rows ?? [];
    const x = pixels === null ? null : this.chart?.xAt(pixels);
    const index = x === null || x === undefined ? null : nearest(rows, Math.round(x) - 1);
    if (index === this.cursor) return;
    this.cursor = index;
    this.redraw();
  }
}

/** running, finished, stopped, cancelled or failed; "" for a run that nobody finished. */
export function stateOf(view, rows) {
  if (!view) return "";
  if (view.live) return view.live.state;
  if (!view.is_measured) return rows.length ? "cancelled" : "";
  return rows.length < view.iterations ? "stopped" : "finished";
}

function stateText(state, live) {
  if (state !== "running") {
    return { finished: t("finished"), stopped: t("stopped"), cancelled: t("cancelled"), failed: t("failed") }[state];
  }
  const phase = { rollout: t("rollout"), score: t("score"), update: t("update"), ask: t("asks you") }[live.phase];
  return phase ?? `${t("measuring")} ${Math.round(live.fraction * 100)} %`;
}

function heldOutText({ mean, low, high }) {
  return low === high ? short(mean) : `${short(mean)} (${short(low)} – ${short(high)})`;
}

function heldOutSeries(rows, colour) {
  const x = rows.map((row) => row.iterations);
  const y = rows.map((row) => row.mean);
  return [
    { kind: "line", x, y, colour, dashed: true },
    { kind: "points", x, y, low: rows.map((row) => row.low), high: rows.map((row) => row.high), colour },
  ];
}

/** The index of the row of an iteration, or of the closest one. */
function nearest(rows, iteration) {
  if (!rows.length) return null;
  const first = rows[0].iteration;
  return Math.min(rows.length - 1, Math.max(0, iteration - first));
}
