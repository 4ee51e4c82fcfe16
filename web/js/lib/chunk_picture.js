// The picture of a chunk plan: curve, chunks, weights, handles. It draws; no side effects.

import { chunkColour, svg } from "./dom.js";
import { edgesOf } from "./chunk_plan.js";

const CHANGE = { l1: "relative L1 change", l2: "relative L2 change", cosine: "cosine distance" };
const BAR = 12; // height of the highest weight
const LABELS = 38; // height of sizes and weights above the curve

/**
 * Where things lie in a picture.
 * @param box - {width, height} in pixels
 * @param trainable - number of trainable steps; one more, the last, is shown too
 * @param curve - null leaves no room for its scale
 */
export function layout(box, trainable, curve) {
  const left = curve ? 40 : 10;
  const right = box.width - 8;
  const top = 4;
  const bottom = Math.max(box.height - 32, top + 40);
  const step = (right - left) / (trainable + 1);
  const base = bottom - BAR - 4; // the curve's zero; weights lie below it
  return {
    ...{ left, right, top, bottom, base, step, trainable },
    grips: curve ? base - 14 : (top + base) / 2, // out of the curve's way
    x: (edge) => left + edge * step, // edge 0 is left of the first step
    edge: (x) => (x - left) / step,
  };
}

/** How near to a boundary a pointer takes it; between two boundaries some chunk must remain. */
const reachOf = (place) => Math.max(4, Math.min(9, place.step / 3));

/** What a pointer means: {boundary: chunk before it}, {chunk}, or null. */
export function hit(place, sizes, x, y) {
  if (y < place.top || y > place.bottom) return null;
  const edges = edgesOf(sizes);
  const inner = edges.slice(1, -1).map((edge) => Math.abs(place.x(edge) - x));
  const nearest = inner.indexOf(Math.min(...inner));
  if (nearest >= 0 && inner[nearest] <= reachOf(place)) return { boundary: nearest };
  const at = place.edge(x);
  const chunk = edges.slice(1).findIndex((edge) => at < edge);
  return at >= 0 && chunk >= 0 ? { chunk } : null;
}

/**
 * Everything to see, as children for an <svg>.
 * @param place - see layout
 * @param plan - {sizes, weights, labels, curve, editable}; each may be null
 */
export function drawPlan(place, { sizes, weights, labels, curve, editable }) {
  const most = weights ? Math.max(...weights.filter(Number.isFinite), 0) : 0;
  const share = (index) => (weights && most > 0 ? Math.min(weights[index] / most, 1) : 1);
  const edges = sizes ? edgesOf(sizes) : [];
  return [
    svg("g", { class: "axis" }, ...axis(place), ...(curve ? scale(place, curve) : [])),
    ...(sizes ?? []).map((size, index) =>
      drawChunk(place, edges[index], size, {
        ...{ index, count: sizes.length, label: labels?.[index], share: share(index), editable },
        bar: weights !== null,
        raised: !!curve,
      }),
    ),
    ...(curve ? [drawCurve(place, curve)] : []),
    lastStep(place),
    ...edges.slice(1, -1).map((edge, index) =>
      drawBoundary(place, edge, {
        index,
        editable,
        low: edges[index] + 1,
        high: edges[index + 2] - 1,
      }),
    ),
  ];
}

function drawChunk(place, start, size, options) {
  const { index, count, label, share, bar, raised, editable } = options;
  const [x, width] = [place.x(start), size * place.step];
  const colour = chunkColour(index);
  const middle = x + width / 2;
  const textY = raised ? place.top + 15 : (place.top + place.base) / 2;
  const roomy = label && width > 6 * label.length + 4;
  const weight = label ? `, weight ${label}` : "";
  const steps = size === 1 ? `step ${start + 1}` : `steps ${start + 1} to ${start + size}`;
  const text = (y, words, kind) =>
    svg("text", { x: middle, y, "text-anchor": "middle", class: kind }, words);
  return svg(
    "g",
    {
      class: "chunk takes-pointer",
      role: editable ? "button" : "img",
      "aria-label": `chunk ${index + 1} of ${count}: ${steps}${weight}`,
      "data-chunk": index,
    },
    svg("rect", {
      ...{ x, y: place.top, width, height: place.bottom - place.top, fill: colour },
      ...{ "fill-opacity": 0.1 + 0.24 * share, class: "area" },
    }),
    bar
      ? svg("rect", {
          ...{ x: x + 1.5, width: Math.max(width - 3, 1), fill: colour, class: "bar" },
          ...{ y: place.bottom - Math.max(BAR * share, 1), height: Math.max(BAR * share, 1) },
        })
      : null,
    width > 9 ? text(textY, size, "size") : null,
    roomy ? text(textY + 13, width > 6 * label.length + 20 ? `w ${label}` : label, "weight") : null,
    svg("title", {}, `${steps}${weight}`),
  );
}

function drawBoundary(place, edge, { index, editable, low, high }) {
  const x = place.x(edge);
  const reach = reachOf(place);
  const grip = Math.min(7, Math.max(place.step * 0.45, 3));
  return svg(
    "g",
    {
      class: `boundary takes-pointer${editable ? "" : " fixed"}`,
      tabindex: editable ? 0 : null,
      role: editable ? "slider" : "separator",
      "aria-label": `boundary between chunks ${index + 1} and ${index + 2}`,
      "aria-orientation": "horizontal",
      ...{ "aria-valuemin": low, "aria-valuemax": high, "aria-valuenow": edge },
      "aria-valuetext": `after step ${edge}`,
      "data-boundary": index,
    },
    svg("rect", {
      ...{ x: x - reach, y: place.top, width: 2 * reach, fill: "transparent" },
      height: place.bottom - place.top,
    }),
    svg("line", { x1: x, x2: x, y1: place.top, y2: place.bottom }),
    editable
      ? svg("rect", {
          ...{ x: x - grip / 2, y: place.grips - 11, width: grip, height: 22, rx: grip / 2 },
          class: "grip",
        })
      : null,
    svg("title", {}, `after step ${edge}`),
  );
}

/** Step numbers, as many as there is room for. */
function axis(place) {
  const total = place.trainable + 1;
  const room = 8 + 7 * String(total).length;
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => n * place.step >= room) ?? total;
  const numbers = Array.from({ length: total }, (_, i) => i + 1).filter(
    (n) => n % every === 0 || (n === 1 && every > 2),
  );
  const y = place.bottom + 12;
  return [
    ...numbers.map((n) => svg("text", { x: place.x(n - 0.5), y, "text-anchor": "middle" }, n)),
    svg(
      "text",
      { x: (place.left + place.right) / 2, y: y + 14, "text-anchor": "middle" },
      place.right - place.left > 230 ? "step, from noise to data" : "step",
    ),
  ];
}

/** The scale of the curve: round numbers at the left. */
function scale(place, curve) {
  const top = topOf(place, curve);
  const rough = top / 3;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const gap = unit * ([1, 2, 5, 10].find((n) => n * unit >= rough) ?? 10);
  const values = Array.from({ length: Math.floor(top / gap) + 1 }, (_, i) => i * gap);
  const digits = Math.min(Math.max(0, -Math.floor(Math.log10(gap))), 8);
  const middle = (place.top + place.base) / 2;
  return [
    ...values.flatMap((value) => [
      svg("line", {
        ...{ x1: place.left, x2: place.right, class: "grid" },
        ...{ y1: height(place, top, value), y2: height(place, top, value) },
      }),
      svg(
        "text",
        { x: place.left - 4, y: height(place, top, value) + 3.5, "text-anchor": "end" },
        value.toFixed(digits),
      ),
    ]),
    svg(
      "text",
      {
        ...{ x: 9, y: middle, "text-anchor": "middle", class: "name" },
        transform: `rotate(-90 9 ${middle})`,
      },
      CHANGE[curve.distance] ?? curve.distance,
    ),
  ];
}

/** The highest value shown: the curve stays below sizes and weights. */
function topOf(place, curve) {
  const room = place.base - place.top;
  const part = Math.max(room - LABELS, room / 2) / room;
  return Math.max(...curve.mean.map((mean, i) => mean + curve.std[i])) / part || 1;
}

function height(place, top, value) {
  return place.base - (Math.max(value, 0) / top) * (place.base - place.top);
}

function drawCurve(place, curve) {
  const top = topOf(place, curve);
  const point = (value, i) =>
    `${place.x(i + 0.5).toFixed(1)},${height(place, top, value).toFixed(1)}`;
  const high = curve.mean.map((mean, i) => point(mean + curve.std[i], i));
  const low = curve.mean.map((mean, i) => point(mean - curve.std[i], i)).reverse();
  const dot = Math.min(3, place.step / 4);
  return svg(
    "g",
    { class: "curve" },
    svg("polygon", { points: [...high, ...low].join(" "), class: "band" }),
    svg("polyline", { points: curve.mean.map(point).join(" "), class: "line" }),
    ...curve.mean.map((mean, i) =>
      svg("circle", { cx: place.x(i + 0.5), cy: height(place, top, mean), r: dot }),
    ),
  );
}

/** The dotted line before the last step, which is not trained. */
function lastStep(place) {
  const x = place.x(place.trainable);
  return svg(
    "g",
    { class: "last" },
    svg("line", { x1: x, x2: x, y1: place.top, y2: place.bottom }),
    svg(
      "rect",
      { x, y: place.top, width: place.step, height: place.bottom - place.top, fill: "transparent" },
      svg("title", {}, "the last step is deterministic and not trained"),
    ),
  );
}
