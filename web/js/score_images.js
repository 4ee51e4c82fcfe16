// Score Images: every picture with its score, in the order that the user chooses.

import { app } from "../../../scripts/app.js";
import { h } from "./lib/dom.js";
import { t } from "./lib/i18n.js";
import { gridExtension, number, places, viewUrl } from "./lib/score_grid.js";

app.registerExtension(gridExtension("chunk_grpo.score_images", "ChunkGRPO_ScoreImages", read));

function read({ chunk_grpo_scores: rows, chunk_grpo_total: totals }) {
  if (!rows) return null;
  const total = totals.reduce((sum, count) => sum + count, 0);
  const parts = [...new Set(rows.flatMap((row) => Object.keys(row.parts)))];
  const digits = places(rows.map((row) => row.score), 3);
  const one = new Set(rows.map((row) => row.prompt)).size === 1;
  return {
    rows,
    width: 100,
    summary: summary(rows, total),
    orders: [
      { label: t("best first"), key: (row) => row.score, down: true },
      { label: t("worst first"), key: (row) => row.score },
      { label: t("by number"), key: (row) => row.number },
      { label: t("by prompt"), key: (row) => row.prompt },
      ...parts.flatMap((name) => {
        const key = (row) => row.parts[name] ?? null;
        const partDigits = places(rows.map(key), 3);
        const shown = (row) => `${number(key(row), partDigits)} ${name}`;
        return [
          { label: t("{name}: largest first", { name }), key, shown, down: true },
          { label: t("{name}: smallest first", { name }), key, shown },
        ];
      }),
    ],
    cell: (row) => ({
      pictures: [{ src: viewUrl(row.picture), alt: "" }],
      lines: [
        line(`#${row.number}`, number(row.score, digits)),
        ...(one ? [] : [h("div", { class: "prompt quiet" }, row.prompt)]),
      ],
      label: [t("Picture {number}, score {score}", { number: row.number, score: number(row.score) }), ...partLines(row), row.prompt].join("\n"),
    }),
    item: (row) => ({
      src: viewUrl(row.picture),
      title: `#${row.number}`,
      lines: [t("score {score}", { score: number(row.score) }), row.prompt, partLines(row).join(" · ")],
    }),
  };
}

function summary(rows, total) {
  const shown = rows.length;
  if (shown < total) return t("{total} pictures; the best and the worst, {shown} of them, are shown", { total, shown });
  const known = rows.filter((row) => row.score !== null).map((row) => row.score);
  if (!known.length) return t("{total} pictures", { total });
  const mean = number(known.reduce((sum, score) => sum + score, 0) / known.length, places(known, 3));
  const lost = total - known.length;
  if (lost) return t("{total} pictures, mean {mean}, {lost} without a score", { total, mean, lost });
  return t("{total} pictures, mean {mean}", { total, mean });
}

function line(left, right) {
  return h("div", { class: "line" }, h("span", { class: "quiet" }, left), h("span", { class: "score" }, right));
}

function partLines(row) {
  return Object.entries(row.parts).map(([name, value]) => `${name} ${number(value)}`);
}
