// How far it is to enough picks. No side effects.

import { h } from "./dom.js";
import { t } from "./i18n.js";

/** Towards a taste that is worth something: {element, draw(view)}. */
export function tasteProgress() {
  const ticks = h("div", { class: "ticks" });
  const bar = simpleProgress((view) => [
    [h("b", {}, t("{count} clicks", { count: view.clicks })), ` · ${wordsOf(view)}`],
    share(view.clicks, Object.values(view.enough)),
  ]);
  bar.element.append(ticks);

  function draw(view) {
    bar.draw(view);
    if (!view) return;
    const goals = Object.values(view.enough);
    const names = [t("fit"), t("train"), "", ""];
    ticks.replaceChildren(
      ...goals.map((goal, index) => h("span", { class: view.clicks >= goal ? "reached" : "" }, `${goal} ${names[index]}`.trim())),
    );
  }
  return { element: bar.element, draw };
}

/**
 * A line of words and a bar: {element, draw(view)}.
 * @param read - (view) => [what stands in the line, the share of the bar that is filled]
 */
export function simpleProgress(read) {
  const text = h("div", { class: "counts" });
  const fill = h("div", { class: "fill" });
  const element = h("div", { class: "progress" }, text, h("div", { class: "track" }, fill));

  function draw(view) {
    element.style.display = view ? "" : "none";
    if (!view) return;
    const [words, filled] = read(view);
    text.replaceChildren(...words);
    text.title = text.textContent;
    fill.style.width = `${100 * filled}%`;
  }
  return { element, draw };
}

function wordsOf({ clicks, enough, own }) {
  const { fit, train, good, best } = enough;
  const words =
    clicks < fit
      ? t("{more} more to fit a taste", { more: fit - clicks })
      : clicks < train
        ? t("enough to fit, {more} more to train", { more: train - clicks })
        : clicks < good
          ? t("enough to train, {more} more for a good taste", { more: good - clicks })
          : clicks < best
            ? t("good; it gets better up to {best}", { best })
            : t("plenty");
  return own.asked ? `${words} · ${t("asked again: same answer {agreed} of {asked} times", own)}` : words;
}

/** Each goal is as far from the next one as any other. */
function share(clicks, goals) {
  const next = goals.findIndex((goal) => clicks < goal);
  if (next < 0) return 1;
  const before = next ? goals[next - 1] : 0;
  return (next + (clicks - before) / (goals[next] - before)) / goals.length;
}
