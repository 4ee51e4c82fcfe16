// Keys of a Pick Pictures panel, in the node and in full screen. No side effects.

/**
 * Do what a key means; whether it means anything.
 * @param picker - see picker.js
 * @param event - of the keyboard
 * @param columns - of the grid
 * @param full - {isOpen, open, close} of the full screen
 */
export function pressed(picker, event, columns, full) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.altKey || event.metaKey || (event.ctrlKey && !["a", "z"].includes(key))) return false;
  if (key === "a" && !event.ctrlKey) return false;
  const act = common(picker, key, full) ?? ofWay(picker, event, key, columns);
  if (!act) return false;
  if (!event.repeat || key.startsWith("Arrow")) act();
  return true;
}

function common(picker, key, full) {
  return {
    z: () => picker.undo(),
    s: () => picker.skip(),
    f: () => (full.isOpen ? full.close() : full.open()),
    a: () => picker.selectAll(),
    PageUp: () => picker.step(-1),
    PageDown: () => picker.step(1),
    Enter: () => picker.enter(),
    Escape: () => picker.clearSelection() || full.close(),
  }[key];
}

function ofWay(picker, event, key, columns) {
  if (!picker.batch) return null;
  if (picker.way === "duels") return duel(picker, key);
  const { cursor } = picker;
  const to = (place) => () => picker.move(place, event.shiftKey);
  const last = picker.batch.pictures.length - 1;
  const moves = {
    ArrowLeft: to(cursor - 1),
    ArrowRight: to(cursor + 1),
    ArrowUp: to(cursor - columns),
    ArrowDown: to(cursor + columns),
    Home: to(0),
    End: to(last),
  };
  if (moves[key]) return moves[key];
  const digit = /^[1-9]$/.test(key) ? Number(key) : 0;
  if (picker.way === "stars") {
    if (key === "x") return () => picker.give(cursor, -1);
    if (digit >= 1 && digit <= 5) return () => star(picker, digit);
    return key === " " ? () => picker.select(cursor) : null;
  }
  const place = digit ? digit - 1 : cursor;
  if (place > last || (!digit && key !== " " && key !== "x")) return null;
  if (picker.way === "best") return key === "x" ? null : () => picker.choose(place);
  return () => {
    if (digit) picker.move(place);
    picker.heart(place, key === "x" ? -1 : 1);
  };
}

/** Give stars, and go to the next picture. */
async function star(picker, stars) {
  const { cursor, selected, at } = picker;
  const isOne = !selected.has(cursor);
  await picker.give(cursor, stars);
  if (isOne && picker.at === at) picker.move(cursor + 1);
}

function duel(picker, key) {
  const sides = { ArrowLeft: 0, 1: 0, ArrowRight: 1, 2: 1, " ": null, 0: null };
  return key in sides ? () => picker.answer(sides[key]) : null;
}
