// Line charts on a canvas: drawn anew each time, a millisecond for a thousand points.
// No side effects: ComfyUI loads every .js below web/ as an extension.

const PADDING = { left: 44, right: 8, top: 6, bottom: 18 };
const SHARPNESS = 2; // canvas pixels for each pixel of page: the graph may be zoomed in

/**
 * Draw a chart.
 * @param canvas - its size on the page is that of its box
 * @param options.series - [{kind: "line", x, y, colour, width, dashed}, {kind: "band", x, low, high,
 *   colour}, {kind: "points", x, y, low, high, colour}]; arrays of numbers, null where unknown
 * @param options.xRange - [first, last]
 * @param options.colours - {text, grid}
 * @param options.cursor - x of a vertical line, or null
 * @param options.fromZero - the y axis begins at 0
 * @returns {xAt(pixels)} - the x under a place on the canvas, in pixels of its own box
 */
export function drawChart(canvas, { series, xRange, colours, cursor = null, fromZero }) {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width || !height) return { xAt: () => null };
  if (canvas.width !== width * SHARPNESS || canvas.height !== height * SHARPNESS) {
    canvas.width = width * SHARPNESS;
    canvas.height = height * SHARPNESS;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(SHARPNESS, 0, 0, SHARPNESS, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "10px Inter, system-ui, sans-serif";
  const [low, high] = yRange(series, fromZero);
  const inner = {
    width: width - PADDING.left - PADDING.right,
    height: height - PADDING.top - PADDING.bottom,
  };
  const span = Math.max(xRange[1] - xRange[0], 1e-9);
  const px = (x) => PADDING.left + ((x - xRange[0]) / span) * inner.width;
  const py = (y) => PADDING.top + (1 - (y - low) / (high - low)) * inner.height;
  drawAxes(pen, { px, py, low, high, xRange, width, height, colours });
  pen.save();
  pen.beginPath();
  pen.rect(PADDING.left - 5, PADDING.top - 5, inner.width + 10, inner.height + 10);
  pen.clip();
  for (const one of series) KINDS[one.kind](pen, one, px, py);
  pen.restore();
  if (cursor !== null) {
    pen.strokeStyle = colours.text;
    pen.globalAlpha = 0.6;
    stroke(pen, () => (pen.moveTo(px(cursor), PADDING.top), pen.lineTo(px(cursor), height - PADDING.bottom)));
    pen.globalAlpha = 1;
  }
  return { xAt: (pixels) => xRange[0] + ((pixels - PADDING.left) / inner.width) * span };
}

/** Round numbers of an axis: about `count` of them within low..high, two at least. */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const sizes = [0.5, 1, 2, 5, 10].map((factor) => factor * power);
  const step = sizes.findIndex((size) => size >= rough);
  const found = multiples(low, high, sizes[step]);
  return found.length < 2 && step > 0 ? multiples(low, high, sizes[step - 1]) : found;
}

function multiples(low, high, step) {
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) {
    found.push(Number((n * step).toPrecision(12)));
  }
  return found;
}

/** A number for people: few digits, no "-0". */
export function short(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) {
    return value.toExponential(1);
  }
  return String(Number(value.toPrecision(digits)));
}

/** 75 -> "1:15"; 3671 -> "1:01:11". */
export function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/** Exponential moving average that skips what is unknown; the same as in plot_style.py. */
export function smoothed(values, weight = 0.7) {
  let last = null;
  return values.map((value) => {
    if (value === null) return last;
    last = last === null ? value : weight * last + (1 - weight) * value;
    return last;
  });
}

function yRange(series, fromZero) {
  let low = fromZero ? 0 : Infinity;
  let high = -Infinity;
  for (const one of series) {
    for (const values of [one.y, one.low, one.high]) {
      for (const value of values ?? []) {
        if (value === null || !Number.isFinite(value)) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
  }
  if (!Number.isFinite(low) || !Number.isFinite(high)) return [0, 1];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [fromZero ? 0 : low - room, high + room];
}

function drawAxes(pen, { px, py, low, high, xRange, width, height, colours }) {
  pen.fillStyle = colours.text;
  pen.strokeStyle = colours.grid;
  pen.lineWidth = 1;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  const rows = ticks(low, high, Math.max(2, Math.floor(height / 40)));
  const digits = [3, 4, 5, 6].find((count) => new Set(rows.map((y) => short(y, count))).size === rows.length);
  for (const y of rows) {
    stroke(pen, () => (pen.moveTo(PADDING.left, py(y)), pen.lineTo(width - PADDING.right, py(y))));
    pen.fillText(short(y, digits), PADDING.left - 4, py(y));
  }
  pen.textBaseline = "alphabetic";
  pen.textAlign = "center";
  for (const x of ticks(xRange[0], xRange[1], Math.max(2, Math.floor(width / 90)))) {
    if (Number.isInteger(x)) pen.fillText(String(x), px(x), height - 5);
  }
}

function stroke(pen, path) {
  pen.beginPath();
  path();
  pen.stroke();
}

const KINDS = {
  line(pen, { x, y, colour, width = 1.5, dashed = false, alpha = 1 }, px, py) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.globalAlpha = alpha;
    pen.setLineDash(dashed ? [4, 3] : []);
    stroke(pen, () => {
      let drawing = false;
      for (let i = 0; i < x.length; i += 1) {
        if (y[i] === null || y[i] === undefined) drawing = false;
        else if (drawing) pen.lineTo(px(x[i]), py(y[i]));
        else {
          pen.moveTo(px(x[i]), py(y[i]));
          pen.lineTo(px(x[i]) + 0.01, py(y[i])); // a single point is seen, too
          drawing = true;
        }
      }
    });
    pen.setLineDash([]);
    pen.globalAlpha = 1;
  },

  band(pen, { x, low, high, colour }, px, py) {
    pen.fillStyle = colour;
    pen.globalAlpha = 0.2;
    pen.beginPath();
    const known = [...x.keys()].filter((i) => low[i] !== null && high[i] !== null);
    for (const i of known) pen.lineTo(px(x[i]), py(high[i]));
    for (const i of known.reverse()) pen.lineTo(px(x[i]), py(low[i]));
    pen.closePath();
    pen.fill();
    pen.globalAlpha = 1;
  },

  points(pen, { x, y, low, high, colour }, px, py) {
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = 1.5;
    for (let i = 0; i < x.length; i += 1) {
      if (y[i] === null) continue;
      const [left, top] = [px(x[i]), py(y[i])];
      if (low && low[i] !== null && high[i] !== low[i]) {
        stroke(pen, () => {
          pen.moveTo(left, py(low[i]));
          pen.lineTo(left, py(high[i]));
          for (const end of [low[i], high[i]]) {
            pen.moveTo(left - 3, py(end));
            pen.lineTo(left + 3, py(end));
          }
        });
      }
      pen.beginPath();
      pen.moveTo(left, top - 4);
      pen.lineTo(left + 4, top);
      pen.lineTo(left, top + 4);
      pen.lineTo(left - 4, top);
      pen.closePath();
      pen.fill();
    }
  },
};
