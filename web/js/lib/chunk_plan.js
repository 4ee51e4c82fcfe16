// Edits of a chunk plan, which is a list of sizes here. What a text means, the server says
// (plan_reader.js). No page, no side effects.

/** Sizes or weights as they stand in the node's text. */
export function formatNumbers(numbers) {
  return numbers.join(", ");
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

/** Numbers of the chunks after a split: both halves keep the number. */
export function splitNumbers(numbers, chunk) {
  return numbers.toSpliced(chunk, 1, numbers[chunk], numbers[chunk]);
}

/** Numbers of the chunks after a merge: one takes the place of two, by default their mean, rounded
 * to 4 digits. */
export function mergeNumbers(numbers, chunk, merged = mean(numbers[chunk], numbers[chunk + 1])) {
  return numbers.toSpliced(chunk, 2, merged);
}

const mean = (a, b) => Number(((a + b) / 2).toFixed(4));
