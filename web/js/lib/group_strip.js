// The newest group of a run: its pictures with reward and advantage, best first. No side effects.

import { short } from "./chart.js";
import { h } from "./dom.js";
import { t } from "./i18n.js";
import { openLightbox } from "./lightbox.js";

const TINY = 256; // pixels; smaller pictures are enlarged without blur

export class GroupStrip {
  /** @param pictureUrl - (run, file) => address of a picture */
  constructor(pictureUrl) {
    this.pictureUrl = pictureUrl;
    this.shown = ""; // which group
    this.thumbnails = [];
    this.pictures = []; // as the lightbox takes them
    this.caption = h("div", { class: "caption quiet" });
    this.group = h("div", { class: "group scrolls" });
    this.elements = [this.caption, this.group];
  }

  draw({ name, group }) {
    const key = group ? `${name}/${group.samples[0]?.file}` : "";
    if (key === this.shown) return;
    this.shown = key;
    this.caption.textContent = group
      ? `${t("iteration")} ${group.iteration + 1}, ${t("best first")}: ${group.prompt}`
      : "";
    this.caption.title = group?.prompt ?? "";
    const sorted = [...(group?.samples ?? [])].sort(bestFirst);
    this.pictures = sorted.map((sample) => ({
      src: this.pictureUrl(name, sample.file),
      title:
        `${t("reward")} ${short(sample.reward)}, ${t("advantage")} ${signed(sample.advantage)} ` +
        `(${t("against the others of its group")})`,
      lines: [group.prompt],
    }));
    while (this.thumbnails.length < sorted.length) {
      this.thumbnails.push(new Thumbnail(this.thumbnails.length, (index) => openLightbox(this.pictures, index)));
    }
    sorted.forEach((sample, index) => this.thumbnails[index].show(sample, this.pictures[index]));
    const wanted = this.thumbnails.slice(0, sorted.length).map((thumbnail) => thumbnail.element);
    if (this.group.childElementCount !== wanted.length) this.group.replaceChildren(...wanted);
  }
}

/** One picture of the group with its numbers; used again for the next group. */
class Thumbnail {
  constructor(index, open) {
    this.image = h("img", { alt: "" });
    this.image.addEventListener("load", () => {
      this.image.classList.toggle("tiny", this.image.naturalWidth < TINY);
    });
    this.reward = h("span");
    this.advantage = h("span");
    this.element = h(
      "button",
      { type: "button", onclick: () => open(index) },
      this.image,
      h("div", {}, this.reward, " ", this.advantage),
    );
  }

  show({ reward, advantage }, { src, title }) {
    this.image.src = src;
    this.image.alt = this.element.title = title;
    this.reward.textContent = short(reward);
    this.advantage.textContent = signed(advantage);
    this.advantage.className = advantage > 0 ? "up" : advantage < 0 ? "down" : "";
  }
}

function bestFirst(a, b) {
  return (b.reward ?? -Infinity) - (a.reward ?? -Infinity) || 0;
}

function signed(value) {
  return `${value > 0 ? "+" : ""}${short(Math.round(value * 100) / 100, 3)}`;
}
