// What check_only of Train LoRA has found, in the panel. No side effects.

import { clock, short } from "./chart.js";
import { h } from "./dom.js";
import { t } from "./i18n.js";

/**
 * The result of a check as a piece of page.
 * @param check - as `Check.to_json` of chunk_grpo_core/runs/forecast.py gives it
 */
export function checkView(check) {
  const rows = [
    [t("in all"), clock(check.seconds)],
    [
      t("an iteration"),
      t("{seconds} s; {count} of them, {pictures} pictures each", {
        ...{ seconds: short(check.seconds_per_iteration), count: check.iterations, pictures: check.pictures },
      }),
    ],
    [
      t("a measurement"),
      t("{seconds} s; {count} of them", { seconds: short(check.seconds_per_measurement), count: check.measurements }),
    ],
    [t("memory"), memory(check)],
    [t("self-test"), selfTest(check.self_test)],
    ...(check.reward_mean === null ? [] : [[t("reward"), reward(check)]]),
  ];
  return [
    h("div", { class: "title" }, t("Checked: nothing was trained, nothing was kept")),
    h("dl", {}, ...rows.flatMap(([name, text]) => [h("dt", { class: "quiet" }, name), h("dd", {}, text)])),
    ...advice(check).map((text) => h("div", { class: "message", role: "alert" }, text)),
  ];
}

function memory({ fitting, peak_gib: peak, memory_gib: all, free_gib: free }) {
  const fits = t("{count} pictures at once fit", { count: fitting });
  if (peak === null || all === null || free === null) return fits;
  const used = t("{peak} of {all} GiB at most, {free} GiB are free", {
    ...{ peak: peak.toFixed(1), all: all.toFixed(1), free: free.toFixed(1) },
  });
  return `${fits}; ${used}`;
}

function selfTest(test) {
  if (!test) return t("not done: it is off, or no step took noise");
  return t("passed: error {error}, {tolerance} would have been too much", {
    ...{ error: short(test.error, 2), tolerance: short(test.tolerance, 2) },
  });
}

function reward({ reward: name, reward_mean: mean, reward_spread: spread }) {
  const told = t("{mean} on average, spread {spread} inside a group", {
    ...{ mean: short(mean, 4), spread: short(spread, 2) },
  });
  return `${name}: ${told}`;
}

/** What to change before the training; the same cases as `Check.advice`. */
function advice(check) {
  const { fitting, batch_size: asked, unscored, tried } = check;
  return [
    ...(check.fits ? [] : [t("Memory ran out with {asked} pictures at once: set batch_size to {fitting}.", { asked, fitting })]),
    ...(check.is_tight
      ? [t("Little memory is left. In this order: a smaller batch_size, smaller pictures, activation offloading, a lower rank.")]
      : []),
    ...(unscored ? [t("{unscored} of {tried} pictures got no score: see the log.", { unscored, tried })] : []),
    ...(check.sees_differences === false
      ? [t("All pictures of a group get the same score, so nothing can be learnt: choose another reward, other prompts or larger groups.")]
      : []),
    ...(check.reward && check.sees_differences === null ? [t("The reward scored no picture: repair it first.")] : []),
  ];
}
