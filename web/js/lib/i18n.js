// Strings of our panels in the page's language. No side effects; the table is strings.js.

import { STRINGS } from "./strings.js";

/** The page's language: "en", "zh", "ja", ... */
export function locale() {
  const app = globalThis.comfyAPI?.app?.app ?? globalThis.app;
  const chosen = app?.extensionManager?.setting?.get("Comfy.Locale");
  return chosen || (document.documentElement.lang || navigator.language || "en").split("-")[0];
}

/**
 * Translate an English string of the table; what is not in it stays English.
 * @param text - the English text, written out at the call: a test looks every t("...") up
 * @param values - what stands for {name} in the text: t("{count} groups", {count: 4})
 */
export function t(text, values = {}) {
  const found = STRINGS[text]?.[locale()] ?? text;
  return found.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
