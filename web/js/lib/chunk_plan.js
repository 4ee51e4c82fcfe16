// Chunk plans as text: what chunk_grpo_core/method/chunks.py and planners.py read, read by the page.
// Cuts that need the curve ("cut 4", "adaptive") are left to the server. No page, no side effects.

const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const AROUND = new RegExp(`^[${SPACE}]+|[${SPACE}]+$`, "g");
const BETWEEN = new RegExp(`[${SPACE},;]+`);
const GAPS = new RegExp(`[${SPACE}]+`);
const WHOLE = /^\p{Nd}+$/u;
const DIGITS = "\\p{Nd}+(?:_\\p{Nd}+)*";
const FLOAT = new RegExp(
  `^[+-]?(?:inf(?:inity)?|nan|(?:${DIGITS}\\.?(?:${DIGITS})?|\\.${DIGITS})(?:e[+-]?${DIGITS})?)$`,
  "u",
);
const READ_OFF = /^(?:curve|softmax(?: (?:\p{Nd}+\.?\p{Nd}*|\.\p{Nd}+))?)$/u;

const SIZES_FORM =
  "write sizes such as 2, 3, 4, 7 - or step, whole, size 4, cut 4, cut 4 2, adaptive, adaptive 2 4";
const WEIGHTS_FORM = "write uniform, curve, softmax, softmax 0.5, or one number, 0 or more, per chunk";

/** More chunks or steps than can be told apart in a picture. */
export const TOO_MANY = 1000;

function strip(text) {
  return text.replace(AROUND, "");
}

function words(text) {
  return strip(text)
    .toLowerCase()
    .replace(/^[[\]()]+|[[\]()]+$/g, "")
    .split(BETWEEN);
}

/** Digits of any script as 0-9: every script's ten digits follow each other. */
function ascii(text) {
  return text.replace(/\p{Nd}/gu, (digit) => {
    let value = 0;
    const code = digit.codePointAt(0);
    while (WHOLE.test(String.fromCodePoint(code - value - 1))) value += 1;
    return value % 10;
  });
}

function float(word) {
  if (!FLOAT.test(word)) return null;
  const plain = ascii(word).replaceAll("_", "");
  return plain.includes("inf") ? (plain[0] === "-" ? -Infinity : Infinity) : Number(plain);
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** Whether a plan written like this is read off a curve, by the server. */
export function needsCurve(text) {
  return ["adaptive", "cut"].includes(curveWords(text)[0]);
}

function curveWords(text) {
  return strip(text.toLowerCase().replaceAll(",", " ")).split(GAPS);
}

/**
 * The chunks that a text means.
 * @param text - what stands in chunk_sizes
 * @param steps - number of trainable steps, null if unknown
 * @param ran - sizes that the server made of this very text, null if unknown
 * @returns {{sizes: number[]?, problem: string?, note: string?}} sizes are null if unknown
 */
export function readSizes(text, steps = null, ran = null) {
  const plan = needsCurve(text) ? readOffCurve(text, steps, ran) : readPlain(text, steps);
  const answer = { sizes: null, problem: null, note: null, ...plan };
  if (answer.sizes && !answer.problem && sum(answer.sizes) > TOO_MANY) {
    return { ...answer, sizes: null, note: `${sum(answer.sizes)} steps are too many to draw` };
  }
  return answer;
}

function readPlain(text, steps) {
  const list = words(text);
  const numbers = list.every((word) => WHOLE.test(word)) ? list.map((w) => Number(ascii(w))) : null;
  if (numbers) return checkSizes(numbers, steps);
  const [word, size] = list;
  const fixed = list.length === 2 && word === "size" && WHOLE.test(size);
  if (!fixed && !(list.length === 1 && ["step", "whole"].includes(word))) {
    return { problem: `chunk_sizes is "${text}"; ${SIZES_FORM}` };
  }
  const step = fixed ? Number(ascii(size)) : 1;
  if (step < 1) return { problem: `the chunk size is ${step}; it must be 1 or more` };
  if (steps === null) {
    return { note: `"${text}" needs the number of steps: connect a curve and run the graph` };
  }
  if (step > steps) return { problem: `the chunk size is ${step}; it must be in 1..${steps}` };
  if (steps > TOO_MANY) return { note: `${steps} steps are too many to draw` };
  if (word === "whole") return { sizes: [steps] };
  const sizes = Array(Math.floor(steps / step)).fill(step);
  return { sizes: steps % step ? [...sizes, steps % step] : sizes };
}

function checkSizes(sizes, steps) {
  if (sizes.some((size) => size < 1)) {
    return { problem: `chunk sizes are ${formatSizes(sizes)}; each must be 1 or more` };
  }
  if (steps === null || sum(sizes) === steps) return { sizes };
  const problem =
    `the sizes add up to ${sum(sizes)}, but the curve of the last run has ${steps} trainable ` +
    "steps; make them equal, unless the sigmas have changed since";
  return { sizes: sum(sizes) > TOO_MANY ? null : sizes, problem };
}

function readOffCurve(text, steps, ran) {
  const [kind, ...rest] = curveWords(text);
  const known = rest.every((word) => WHOLE.test(word));
  const allowed = kind === "cut" ? [1, 2] : [0, 2];
  if (!known || !allowed.includes(rest.length)) {
    return { problem: `chunk_sizes is "${text}"; ${SIZES_FORM}` };
  }
  const numbers = rest.map((word) => Number(ascii(word)));
  if (kind === "cut") {
    const [chunks, least = 1] = numbers;
    if (chunks < 1 || least < 1 || (steps !== null && chunks * least > steps)) {
      const place = steps === null ? "into any plan" : `into ${steps} trainable steps`;
      return { problem: `${chunks} chunks of at least ${least} steps do not fit ${place}` };
    }
  } else {
    const [least = 2, most = 4] = numbers;
    if (least < 1 || least > most || (steps !== null && least > steps)) {
      return {
        problem: `smallest chunk ${least}, largest ${most}; 1 <= smallest <= largest is needed`,
      };
    }
  }
  if (ran) return { sizes: ran };
  if (steps !== null) return { note: `run the graph to see the chunks of "${text}"` };
  return { note: `"${text}" is read off a curve: connect one and run the graph` };
}

/**
 * The weights that a text means.
 * @param text - what stands in weights
 * @param sizes - of the chunks
 * @param curve - {mean: number[]} over all steps, null if unknown
 * @returns {{weights: number[]?, labels: string[]?, problem: string?, note: string?}} weights are
 *   null if they are equal or unknown
 */
export function readWeights(text, sizes, curve = null) {
  const answer = { weights: null, labels: null, problem: null, note: null };
  const list = words(text);
  if (list.length === 1 && list[0] === "uniform") return answer;
  if (READ_OFF.test(list.join(" "))) {
    const temperature = list[0] === "curve" ? null : Number(ascii(list[1] ?? "1"));
    if (temperature !== null && !(temperature > 0)) {
      return { ...answer, problem: `the softmax temperature is ${list[1]}; it must be above 0` };
    }
    if (!curve) {
      return { ...answer, note: `the weights "${text}" need a curve: connect one and run the graph` };
    }
    const weights = weightsOfCurve(sizes, curve, temperature);
    return { ...answer, weights, labels: weights.map((weight) => weight.toFixed(2)) };
  }
  const numbers = list.map(float);
  if (numbers.includes(null)) {
    return { ...answer, problem: `weights is "${text}"; ${WEIGHTS_FORM}` };
  }
  if (numbers.length !== sizes.length) {
    const count = `${sizes.length} chunks need as many weights, but there are ${numbers.length}`;
    return { ...answer, problem: `${count}; or write uniform or curve` };
  }
  if (numbers.some((weight) => !(weight >= 0)) || !numbers.some((weight) => weight > 0)) {
    return { ...answer, problem: `weights is "${text}"; all must be 0 or more, and one above 0` };
  }
  return { ...answer, weights: numbers, labels: list };
}

function weightsOfCurve(sizes, curve, temperature) {
  let start = 0;
  const means = sizes.map((size) => {
    start += size;
    return sum(curve.mean.slice(start - size, start)) / size;
  });
  const most = Math.max(...means);
  const parts = temperature === null ? means : means.map((m) => Math.exp((m - most) / temperature));
  return parts.map((part) => part / sum(parts));
}

/** Sizes as they stand in chunk_sizes. */
export function formatSizes(sizes) {
  return sizes.join(", ");
}

/** Where chunks begin and end: K chunks have K + 1 edges, the first is 0. */
export function edgesOf(sizes) {
  return sizes.reduce((edges, size) => [...edges, edges.at(-1) + size], [0]);
}

/** Move the boundary behind a chunk to a step; both chunks keep at least one step. */
export function moveBoundary(sizes, chunk, to) {
  const edges = edgesOf(sizes);
  const [low, high] = [edges[chunk] + 1, edges[chunk + 2] - 1];
  const at = Math.min(Math.max(Math.round(to), low), high);
  return sizes.toSpliced(chunk, 2, at - edges[chunk], edges[chunk + 2] - at);
}

/** Cut a chunk at the step nearest to `at`, by default in its middle; null if it has one step. */
export function splitChunk(sizes, chunk, at = null) {
  const size = sizes[chunk];
  if (!(size > 1)) return null;
  const start = edgesOf(sizes)[chunk];
  const wanted = at === null ? Math.ceil(size / 2) : Math.round(at) - start;
  const first = Math.min(Math.max(wanted, 1), size - 1);
  return sizes.toSpliced(chunk, 1, first, size - first);
}

/** Join a chunk and the next one; null if there is no next one. */
export function mergeChunks(sizes, chunk) {
  if (!(chunk >= 0 && chunk + 1 < sizes.length)) return null;
  return sizes.toSpliced(chunk, 2, sizes[chunk] + sizes[chunk + 1]);
}

/** Weights after a split: both halves keep the number; words and other counts stay as they are. */
export function weightsAfterSplit(text, count, chunk) {
  const list = numbersOf(text, count);
  return list ? list.toSpliced(chunk, 1, list[chunk], list[chunk]).join(", ") : text;
}

/** Weights after a merge: the mean of both numbers, rounded to 4 digits. */
export function weightsAfterMerge(text, count, chunk) {
  const list = numbersOf(text, count);
  if (!list) return text;
  const mean = (float(list[chunk]) + float(list[chunk + 1])) / 2;
  return list.toSpliced(chunk, 2, String(Number(mean.toFixed(4)))).join(", ");
}

function numbersOf(text, count) {
  const list = words(text);
  return list.length === count && list.every((word) => float(word) !== null) ? list : null;
}
