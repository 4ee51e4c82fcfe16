// Pictures over the whole page, one at a time or in pairs. No side effects.

import { h, layOverPage, useStyle } from "./dom.js";
import { t } from "./i18n.js";

const TINY = 256; // pixels; smaller pictures are enlarged without blur

let closeOpen = null;

/**
 * Show pictures over the page. Escape or a click beside the controls closes; arrow keys, Home and
 * End walk. Pairs lie side by side; F, or Space while it is held down, shows one in the place of
 * the other.
 * @param items - {src, title, lines: [text, ..], second: {src, title}}; `second` makes a pair
 * @param index - which one comes first
 * @param onClose - called with the index of the picture that was shown last
 */
export function openLightbox(items, index = 0, onClose = () => {}) {
  closeOpen?.();
  if (!items.length) return;
  useStyle("lightbox.css");
  const before = document.activeElement;
  let at = clamp(index);
  let flipping = false; // one place instead of two
  let other = false; // the second picture is in that place

  const place = h("span", { class: "grow", "aria-live": "polite" });
  const flip = button(t("Flip (F or hold Space)"), t("Show both pictures in one place"), () => turn());
  const apart = button(t("Side by side (S)"), t("Show both pictures beside each other"), split);
  const stage = h("div", { class: "stage" });
  const lines = h("div", { class: "lines" });
  const bar = h(
    "div",
    { class: "bar" },
    place,
    flip,
    apart,
    button("‹", t("Previous (left arrow)"), () => go(at - 1)),
    button("›", t("Next (right arrow)"), () => go(at + 1)),
    button(t("Close"), t("Close (Escape)"), close),
  );
  const box = h(
    "div",
    { class: "chunk-grpo-lightbox", role: "dialog", "aria-modal": "true", "aria-label": t("Pictures"), tabindex: "-1", onclick: clicked },
    bar,
    stage,
    lines,
  );

  function clamp(wanted) {
    return Math.min(items.length - 1, Math.max(0, wanted));
  }

  function go(wanted) {
    at = clamp(wanted);
    draw();
  }

  function turn() {
    if (!items[at].second) return;
    other = flipping ? !other : true;
    flipping = true;
    draw();
  }

  function split() {
    flipping = other = false;
    draw();
  }

  function draw() {
    const item = items[at];
    const pair = item.second ? [item, item.second] : [item];
    place.textContent = `${at + 1} of ${items.length}`;
    for (const control of [flip, apart]) control.style.display = item.second ? "" : "none";
    flip.setAttribute("aria-pressed", String(flipping));
    apart.setAttribute("aria-pressed", String(!flipping));
    stage.replaceChildren(...(flipping && item.second ? [pair[other ? 1 : 0]] : pair).map(figure));
    const [first, ...rest] = (item.lines ?? []).filter(Boolean);
    lines.replaceChildren(
      ...(first === undefined ? [] : [h("div", { class: "first" }, first)]),
      ...rest.map((line) => h("div", {}, line)),
    );
    for (const near of [items[at - 1], items[at + 1]]) preload(near);
  }

  function clicked(event) {
    if (event.target.closest(".bar, .lines")) return;
    close();
  }

  function pressed(event) {
    event.stopPropagation(); // ComfyUI's own keys stay quiet
    const act = {
      Escape: close,
      ArrowLeft: () => go(at - 1),
      ArrowUp: () => go(at - 1),
      ArrowRight: () => go(at + 1),
      ArrowDown: () => go(at + 1),
      Home: () => go(0),
      End: () => go(items.length - 1),
      f: turn,
      F: turn,
      s: split,
      S: split,
      Tab: () => cycle(event.shiftKey ? -1 : 1),
    }[event.key];
    if (event.key === " " && items[at].second) {
      event.preventDefault();
      if (!event.repeat) turn();
    } else if (act && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      act();
    }
  }

  function released(event) {
    event.stopPropagation();
    if (event.key === " " && items[at].second) {
      event.preventDefault(); // it presses no button
      if (flipping) turn();
    }
  }

  function cycle(step) {
    const stops = [...bar.querySelectorAll("button")].filter((b) => b.style.display !== "none");
    const now = stops.indexOf(document.activeElement);
    stops[(now + step + stops.length) % stops.length].focus();
  }

  function close() {
    window.removeEventListener("keydown", pressed, true);
    window.removeEventListener("keyup", released, true);
    box.remove();
    closeOpen = null;
    before?.focus?.({ preventScroll: true });
    onClose(at);
  }

  for (const name of ["pointerdown", "pointerup", "wheel", "contextmenu"]) {
    box.addEventListener(name, (event) => event.stopPropagation());
  }
  window.addEventListener("keydown", pressed, true);
  window.addEventListener("keyup", released, true);
  closeOpen = close;
  layOverPage(box);
  draw();
  box.focus();
}

function button(text, title, act) {
  return h("button", { type: "button", title, "aria-label": title, onclick: act }, text);
}

function figure({ src, title }) {
  const image = h("img", { src, alt: title ?? "", draggable: "false" });
  const mark = () => image.classList.toggle("tiny", image.naturalWidth < TINY);
  if (image.complete) mark();
  else image.addEventListener("load", mark);
  return h("figure", {}, title ? h("figcaption", {}, title) : null, image);
}

function preload(item) {
  for (const src of [item?.src, item?.second?.src]) if (src) new Image().src = src;
}
