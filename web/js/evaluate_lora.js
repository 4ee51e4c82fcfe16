// Evaluate LoRA: blind duels, if there are any, and pairs of pictures of base and LoRA with scores.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { h } from "./lib/dom.js";
import { DuelPanel } from "./lib/duel_panel.js";
import { t } from "./lib/i18n.js";
import { nodesOfType } from "./lib/nodes.js";
import { setMinHeight } from "./lib/panel.js";
import { GRID_HEIGHT, gridExtension, number, places, signed, viewUrl } from "./lib/score_grid.js";

const TYPE = "ChunkGRPO_EvaluateLoRA";
const DUEL_HEIGHT = 340;
const KEPT = "chunk_grpo_duels"; // where the duels lie; ComfyUI forgets what nodes showed when it ends

const duels = new WeakMap();

app.registerExtension({
  ...gridExtension("chunk_grpo.evaluate_lora", TYPE, read, withDuels),
  setup() {
    api.addEventListener("chunk_grpo.duels", ({ detail }) => {
      for (const node of nodesOfType(app.rootGraph ?? app.graph, TYPE)) duels.get(node)?.hear(detail);
    });
  },
});

function withDuels(node, grid) {
  let widget = null;
  const resize = (hasDuels) => widget && setMinHeight(node, widget, hasDuels ? DUEL_HEIGHT : GRID_HEIGHT);
  const panel = new DuelPanel(grid.element, resize);
  duels.set(node, panel);
  const removed = node.onRemoved;
  node.onRemoved = function () {
    panel.close();
    removed?.apply(this, arguments);
  };

  function show(output) {
    if (output) {
      const where = output.chunk_grpo_duels?.[0];
      if (where) node.properties[KEPT] = where;
      else delete node.properties[KEPT];
    }
    return panel.show(node.properties[KEPT] ?? null);
  }
  return { element: panel.element, mounted: (made) => (widget = made), show };
}

function read({ chunk_grpo_pairs: rows, chunk_grpo_gain: [gain] = [] }) {
  if (!rows) return null;
  const parts = [...new Set(rows.flatMap((row) => Object.keys(row.parts)))];
  const digits = places(rows.map((row) => row.gain), 2);
  return {
    rows,
    width: 150,
    summary: summary(gain, rows.length),
    orders: [
      { label: t("largest gain first"), key: (row) => row.gain, down: true },
      { label: t("smallest gain first"), key: (row) => row.gain },
      { label: t("by prompt number"), key: (row) => row.number },
      { label: t("{name}: best first", { name: t("base") }), key: (row) => row.base, down: true },
      { label: t("{name}: worst first", { name: t("base") }), key: (row) => row.base },
      { label: t("{name}: best first", { name: t("LoRA") }), key: (row) => row.lora, down: true },
      { label: t("{name}: worst first", { name: t("LoRA") }), key: (row) => row.lora },
      ...parts.flatMap((name) => {
        const key = (row) => row.parts[name].gain;
        const partDigits = places(rows.map(key), 2);
        const shown = (row) => `${signed(key(row), partDigits)} ${name}`;
        return [
          { label: t("{name}: largest gain first", { name }), key, shown, down: true },
          { label: t("{name}: smallest gain first", { name }), key, shown },
        ];
      }),
    ],
    cell: (row) => ({
      pictures: pair(row).map(({ src }) => ({ src, alt: "" })),
      lines: [
        h(
          "div",
          { class: "line" },
          h("span", { class: "quiet" }, `${number(row.base, digits)} → ${number(row.lora, digits)}`),
          h("span", { class: `score ${direction(row.gain)}` }, signed(row.gain, digits)),
        ),
        h("div", { class: "prompt quiet" }, row.prompt),
      ],
      label: [t("Prompt {number}: {means}", { number: row.number, means: means(row) }), row.prompt].join("\n"),
    }),
    item: (row) => {
      const [base, lora] = pair(row);
      return { ...base, second: lora, lines: [heading(row, gain), row.prompt, partLine(row)] };
    },
  };
}

function summary(gain, shown) {
  const numbers = [gain.gain, gain.low, gain.high];
  const digits = places(numbers, 3);
  const [mean, low, high] = numbers.map((value) => signed(value, digits));
  const said = t("Gain {mean}, 95 % interval {low} to {high}; better on {wins} of {prompts} prompts, {rate} % of pictures.", {
    ...{ mean, low, high, wins: gain.wins, prompts: gain.prompts, rate: Math.round(100 * gain.win_rate) },
  });
  return shown < gain.prompts ? `${said} ${t("The {shown} largest and smallest gains are shown.", { shown })}` : said;
}

function pair(row) {
  return [t("base"), t("LoRA")].map((name, index) => ({
    src: viewUrl(row.pictures[index]),
    title: `${name} ${number(row.shown[index])}`,
  }));
}

const means = ({ base, lora, gain }) =>
  t("base {base}, LoRA {lora}, gain {gain}", { base: number(base), lora: number(lora), gain: signed(gain) });

const heading = (row, { pictures }) =>
  pictures === 1 ? means(row) : t("mean of {pictures} pictures: {means}", { pictures, means: means(row) });

const partLine = (row) =>
  Object.entries(row.parts)
    .map(([name, { base, lora }]) => `${name} ${number(base, 3)} → ${number(lora, 3)}`)
    .join(" · ");

const direction = (gain) => (gain === null ? "" : gain > 0 ? "gained" : gain < 0 ? "lost" : "");
