// What is picked from, and what a click or a key means: the state of a Pick Pictures panel, without
// any element. The server has the marks; here are only the place and the way. No side effects.

import { TASTE } from "./tastes.js";

export const WAYS = ["hearts", "best", "duels", "stars"];

export class Picker {
  /**
   * @param onChange - called whenever there is something to draw anew
   * @param options.source - whom to ask: {read(name), act(name, said), goOn(name), url(name, picture)}
   * @param options.ways - those that are offered
   * @param options.isInOrder - the first batch comes first, not the newest
   */
  constructor(onChange, { source = TASTE, ways = WAYS, isInOrder = false } = {}) {
    this.onChange = onChange;
    this.source = source;
    this.ways = ways;
    this.isInOrder = isInOrder;
    this.name = "";
    this.view = null;
    this.problem = "";
    this.way = ways[0];
    this.at = null; // id of the batch
    this.cursor = 0; // place in it
    this.selected = new Set(); // places
    this.since = performance.now();
    this.turn = Promise.resolve(); // acts go one after another
  }

  /** Show a taste. */
  async open(name) {
    if (name !== this.name) [this.name, this.view, this.at] = [name, null, null];
    await this.refresh();
  }

  /**
   * Ask the server; keeps the place. After what is being said: else the next question would be
   * drawn while keys still count as pressed for the last one, and be lost.
   */
  refresh() {
    return this.turn.then(() => this.attempt(() => this.source.read(this.name)));
  }

  get batches() {
    return this.view?.batches ?? [];
  }

  get batch() {
    return this.batches.find(({ id }) => id === this.at) ?? null;
  }

  /** The duel that is asked: {batch, places}, or null. */
  get duel() {
    const repeat = this.view?.repeat;
    const old = repeat && this.batches.find(({ id }) => id === repeat.batch);
    if (old) return { batch: old, places: repeat.places };
    const [places] = this.batch?.duels ?? [];
    return places ? { batch: this.batch, places } : null;
  }

  /** Whether there is still something to say about a batch in the present way. */
  needs({ skipped, hearts, best, stars, duels, pictures }) {
    if (skipped) return false;
    if (this.way === "hearts") return !hearts.some(Boolean);
    if (this.way === "best") return best === null && pictures.length > 1;
    return this.way === "duels" ? duels.length > 0 : stars.includes(null);
  }

  setWay(way) {
    this.way = this.ways.includes(way) ? way : this.ways[0];
    if (!this.batch || !this.needs(this.batch)) this.advance();
    this.begin();
  }

  /** Go to the next batch that needs something; stay if none does. */
  advance() {
    const batches = this.isInOrder ? this.batches : this.batches.toReversed();
    const next = batches.find((batch) => this.needs(batch)) ?? (this.batch ? null : batches[0]);
    if (next) this.goTo(next.id);
  }

  goTo(id) {
    if (id === this.at) return;
    this.at = id;
    this.cursor = 0;
    this.begin();
  }

  /** Go to the batch before (-1) or after (1). */
  step(by) {
    const now = this.batches.findIndex(({ id }) => id === this.at);
    const next = this.batches[now + by];
    if (next) this.goTo(next.id);
  }

  begin() {
    this.selected.clear();
    this.since = performance.now();
    this.onChange();
  }

  move(place, isSelecting = false) {
    const count = this.batch?.pictures.length ?? 0;
    if (place < 0 || place >= count) return;
    if (isSelecting) this.selected.add(this.cursor).add(place);
    this.cursor = place;
    this.onChange();
  }

  select(place) {
    if (!this.selected.delete(place)) this.selected.add(place);
    this.cursor = place;
    this.onChange();
  }

  selectAll() {
    this.selected = new Set(this.batch?.pictures.keys() ?? []);
    this.onChange();
  }

  clearSelection() {
    const had = this.selected.size > 0;
    this.selected.clear();
    if (had) this.onChange();
    return had;
  }

  /** What a mark of one picture is about: all that are selected, if it is one of them. */
  meant(place) {
    return this.selected.has(place) ? [...this.selected] : [place];
  }

  /** Like (1) or reject (-1); again takes the mark away. */
  heart(place, mark) {
    const { id, hearts } = this.batch;
    const places = this.meant(place);
    const isNew = places.some((each) => hearts[each] !== mark);
    return this.act({ do: "hearts", batch: id, marks: places.map((each) => [each, isNew ? mark : 0]) });
  }

  give(place, stars) {
    const marks = this.meant(place).map((each) => [each, stars]);
    return this.act({ do: "stars", batch: this.at, marks });
  }

  choose(place) {
    if (this.batch.pictures.length < 2) return null;
    return this.act({ do: "best", batch: this.at, place }, () => this.advance());
  }

  /** 0: left, 1: right, null: same. */
  answer(side) {
    const { duel } = this;
    if (!duel || this.isBusy) return null;
    const said = { do: "duel", batch: duel.batch.id, places: duel.places, answer: side };
    return this.act(said, () => this.next());
  }

  skip() {
    const { duel } = this;
    if (!this.batch || this.isBusy) return null;
    if (this.way !== "duels") return this.act({ do: "skip", batch: this.at }, () => this.advance());
    if (!duel) return null;
    return this.act({ do: "skip", batch: duel.batch.id, places: duel.places }, () => this.next());
  }

  next() {
    if (!this.batch?.duels.length) this.advance();
    this.begin();
  }

  /** Take back the last pick, and go where it was. */
  undo() {
    const before = new Map(this.batches.map((batch) => [batch.id, JSON.stringify(batch)]));
    return this.act({ do: "undo" }, () => {
      const changed = this.batches.find((batch) => before.get(batch.id) !== JSON.stringify(batch));
      if (changed) this.goTo(changed.id);
    });
  }

  /** What the Enter key means: whoever waits goes on; or the next batch. */
  enter() {
    return this.view?.waits ? this.goOn() : this.advance();
  }

  async goOn() {
    if (!this.view?.waits) return;
    await this.attempt(async () => (await this.source.goOn(this.name), this.source.read(this.name)));
  }

  act(said, then = () => {}) {
    const ms = Math.round(performance.now() - this.since);
    this.since = performance.now();
    this.isBusy = true;
    this.turn = this.turn.then(async () => {
      const done = await this.attempt(() => this.source.act(this.name, { ...said, ms }));
      this.isBusy = false;
      if (done) then();
    });
    return this.turn;
  }

  async attempt(ask) {
    const { name } = this;
    try {
      const view = await ask();
      if (name !== this.name) return false; // another taste was opened meanwhile
      [this.view, this.problem] = [view, ""];
    } catch (error) {
      if (name === this.name) this.problem = error.message;
    }
    if (!this.batch || (!this.isBusy && !this.needs(this.batch) && this.hasNew())) this.advance();
    this.seen = this.batches.at(-1)?.id;
    this.onChange();
    return !this.problem;
  }

  /** Whether the newest batch has not been seen yet. */
  hasNew() {
    const newest = this.batches.at(-1)?.id;
    return !!newest && newest !== this.seen;
  }
}
