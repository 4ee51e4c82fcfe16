// A picker over the whole page. No side effects: ComfyUI loads every .js below web/ as an extension.

import { h, layOverPage } from "./dom.js";
import { pressed } from "./pick_keys.js";
import { pickPanel } from "./pick_panel.js";

/**
 * Show a picker over the whole page; keys go to it alone: {draw, close}.
 * @param onClose - called when it was closed
 * @param look - see pick_panel.js
 */
export function openLarge(picker, onClose, look = {}) {
  const full = { isOpen: true, open: () => {}, close };
  const panel = pickPanel(picker, full, look);
  const box = h("div", { class: "chunk-grpo chunk-grpo-picker", role: "dialog", "aria-modal": "true" }, panel.element);
  const onKey = (event) => {
    event.stopPropagation(); // ComfyUI's own keys stay quiet
    if (event.key === "Tab") return;
    if (event.key === "Enter" && event.target.closest?.("button:not(.cell)")) return;
    if (pressed(picker, event, panel.columns(), full)) event.preventDefault();
  };
  function close() {
    window.removeEventListener("keydown", onKey, true);
    window.removeEventListener("keyup", quiet, true);
    box.remove();
    onClose();
  }
  for (const name of ["pointerdown", "pointerup", "wheel", "contextmenu"]) {
    box.addEventListener(name, (event) => event.stopPropagation());
  }
  window.addEventListener("keydown", onKey, true);
  window.addEventListener("keyup", quiet, true);
  layOverPage(box);
  panel.draw();
  panel.focus();
  return { draw: panel.draw, close };
}

/** A space that was pressed presses no button when it is released. */
function quiet(event) {
  event.stopPropagation();
  if (event.key === " ") event.preventDefault();
}
