"use strict";
const api = "/api/v1";
const $ = (name) => document.getElementById(name);
const items = [];
const CROP = {upscale: 200, restore: 600};  // side of the part that is tried, in pixels of the source
const WORDS = {upscale: "Enlarge", restore: "Restore"};
const AT_ONCE = 2;  // uploads and jobs of this page at a time
let running = 0;

function seconds(s) {
  if (s < 1) return "less than a second";
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return `${(s / 3600).toFixed(1)} h`;
}

function about(s) {
  return s < 1 ? seconds(s) : `about ${seconds(s)}`;
}

function bytes(n) {
  return n < 1e6 ? `${Math.max(1, Math.round(n / 1e3))} KB` : `${(n / 1e6).toFixed(1)} MB`;
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(api + path, options);
  } catch {
    throw new Error("the server does not answer; is it still running?");
  }
  if (response.status === 204) return null;
  const said = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(said.error || `the server said ${response.status}`);
    error.refused = [413, 415, 422].includes(response.status);
    error.again = Number(response.headers.get("Retry-After")) || 0;
    throw error;
  }
  return said;
}

function wish(picture) {
  const how = {format: picture.kind === "film" ? "" : $("format").value};
  if (hasPages(picture)) how.pages = $("pages").value;
  if ($("do").value === "restore") return new URLSearchParams({do: "restore", fix: fixes(), strength: $("strength").value, ...how});
  return new URLSearchParams({do: "upscale", scale: $("scale").value, quality: $("quality").value, clean: $("clean").value, ...how});
}

function hasPages(picture) {
  return picture.format === "tiff" && picture.frames > 1;
}

function parts(picture) {
  return hasPages(picture) ? "pages" : "frames";
}

function fixes() {
  if ($("fix").value) return $("fix").value;
  return [...$("fixes").querySelectorAll(":checked")].map((box) => box.value).join(",");
}

function lines(list, texts) {
  list.replaceChildren(...texts.map((text) => {
    const line = document.createElement("li");
    line.textContent = text;
    return line;
  }));
}

class Item {
  constructor(file) {
    this.file = file;
    this.node = $("item").content.firstElementChild.cloneNode(true);
    this.part = (name) => this.node.querySelector("." + name);
    this.part("name").textContent = file.name;
    this.part("size").textContent = bytes(file.size);
    this.part("plan").textContent = "waiting to be sent";
    this.part("try").onclick = () => this.queue(true);
    this.part("start").onclick = () => this.queue(false);
    this.part("cancel").onclick = () => this.cancel();
    this.part("look").onclick = () => look(this);
    this.part("remove").onclick = () => this.remove();
    this.notes = [];
    this.asked = 0;
    this.sent = new Promise((go) => { this.arrived = go; });
    this.buttons(false);
    this.word();
    $("list").append(this.node);
  }

  word() {
    this.part("start").textContent = WORDS[$("do").value];
  }

  buttons(on) {
    this.part("try").disabled = this.part("start").disabled = !on || Boolean(this.queued);
  }

  fail(error) {
    this.part("error").textContent = error.message;
    this.part("error").hidden = false;
  }

  async send() {
    this.part("plan").textContent = "being sent …";
    try {
      this.picture = await ask(`/pictures?name=${encodeURIComponent(this.file.name)}`, {method: "POST", body: this.file});
      const p = this.picture;
      this.part("size").textContent = `${p.width}×${p.height}, ${p.format}, ${bytes(p.bytes)}` + (p.frames > 1 ? `, ${p.frames} ${parts(p)}` : "");
      if (hasPages(p)) $("paged").hidden = false;
      this.buttons(true);
      planSoon(this);
    } catch (error) {
      this.part("plan").textContent = "";
      this.fail(error);
    }
    this.arrived();
  }

  async plan() {
    if (!this.picture || this.job) return;
    const mine = this.asked;
    this.planned = new AbortController();
    this.part("plan").textContent = $("do").value === "restore" ? "being looked at …" : "";
    try {
      if ($("do").value === "restore" && !fixes()) throw Object.assign(new Error("choose at least one repair"), {refused: true});
      const plan = await ask(`/pictures/${this.picture.id}/plan?${wish(this.picture)}`, {signal: this.planned.signal});
      if (mine !== this.asked || this.job) return;
      this.seconds = plan.seconds;
      const becomes = $("do").value === "restore" ? "stays" : "becomes";
      const several = plan.files > 1 ? `, ${plan.files} files,` : plan.frames > 1 ? `, ${plan.frames} ${parts(this.picture)},` : "";
      this.part("plan").textContent = `${becomes} ${plan.width}×${plan.height}${several} in ${about(plan.seconds)}`;
      this.notes = plan.notes;
      this.part("error").hidden = true;
    } catch (error) {
      if (mine !== this.asked) return;
      if (error.again) {
        setTimeout(() => { if (mine === this.asked) planSoon(this); }, 1000 * error.again);
        return;
      }
      this.seconds = 0;
      this.notes = [];
      this.part("plan").textContent = "";
      this.refused = Boolean(error.refused);
      this.buttons(!this.refused);
      this.fail(error);
    }
    lines(this.part("notes"), this.notes);
    sum();
  }

  // The wish has changed: what was made of the old one is no longer offered.
  again() {
    if (this.source) return;
    this.word();
    this.stale();
    this.job = null;
    this.finished = this.refused = false;
    this.part("download").hidden = this.part("look").hidden = true;
    if (!this.picture) return;
    this.buttons(true);
    planSoon(this);
  }

  // A plan that is still on its way comes too late.
  stale() {
    this.asked += 1;
    if (this.planned) this.planned.abort();
  }

  queue(crop) {
    if (this.queued || this.source || this.refused) return;
    this.queued = true;
    this.buttons(false);
    waiting[crop ? "unshift" : "push"](async () => {
      this.queued = false;
      await this.start(crop);
    });
    next();
  }

  async start(crop) {
    await this.sent;
    if (!this.picture || this.source || this.refused || this.gone) return;
    const asked = wish(this.picture);
    this.stale();
    this.does = $("do").value;
    if (crop) {
      const side = CROP[this.does];
      const w = Math.min(side, this.picture.width), h = Math.min(side, this.picture.height);
      const left = Math.floor((this.picture.width - w) / 2), top = Math.floor((this.picture.height - h) / 2);
      asked.set("crop", [left, top, w, h].join(","));
    }
    this.part("error").hidden = true;
    this.part("download").hidden = this.part("look").hidden = true;
    this.buttons(false);
    this.trying = crop;
    try {
      this.job = await ask(`/pictures/${this.picture.id}/jobs?${asked}`, {method: "POST"});
    } catch (error) {
      if (error.again && !crop) {  // the queue is full: this page waits its turn
        this.part("plan").textContent = `the server is busy; trying again in ${error.again} s`;
        await new Promise((go) => setTimeout(go, 1000 * error.again));
        return this.start(crop);
      }
      this.buttons(true);
      this.fail(error);
      return;
    }
    this.part("cancel").hidden = false;
    await new Promise((go) => { this.go = go; this.listen(go); });
  }

  listen(go) {
    const bar = this.node.querySelector("progress");
    bar.hidden = false;
    this.source = new EventSource(`${api}/jobs/${this.job.id}/events`);
    const told = (event) => {
      const state = this.job = JSON.parse(event.data);
      bar.value = state.progress;
      if (state.state === "waiting") this.part("plan").textContent = `number ${state.place} in the queue`;
      if (state.state === "running") {
        const left = state.seconds_left;
        this.part("plan").textContent = left === null ? "working …" : `working, ${seconds(left)} left`;
      }
      return state;
    };
    this.source.addEventListener("progress", told);
    this.source.addEventListener("end", (event) => { this.end(told(event)); go(); });
    this.source.onerror = () => {
      if (this.source && this.source.readyState === EventSource.CLOSED) {
        this.end({state: "failed", error: "the server does not answer any more", result: {}});
        go();
      }
    };
  }

  end(state) {
    if (this.source) this.source.close();
    this.source = null;
    this.node.querySelector("progress").hidden = true;
    this.part("cancel").hidden = true;
    this.word();
    this.buttons(true);
    this.finished = state.state === "done" && !this.trying;
    if (state.state === "done") {
      const r = state.result;
      const several = r.pages > 1 ? `, ${r.pages} files,` : "";
      this.part("plan").textContent = `${this.trying ? "crop of " : ""}${r.width}×${r.height}${several} in ${seconds(r.seconds)}`;
      lines(this.part("notes"), this.trying ? [...new Set([...r.notes, ...this.notes])] : r.notes);
      this.part("look").hidden = false;
      this.part("look").focus();
      const link = this.part("download");
      link.hidden = this.trying;
      link.href = `${api}/jobs/${state.id}/result`;
      link.download = state.name;
      if (this.trying) look(this);
    } else {
      this.part("plan").textContent = state.state;
      if (state.state === "failed") this.fail(new Error(state.error));
      this.job = null;
    }
    sum();
  }

  async cancel() {
    if (this.job) await ask(`/jobs/${this.job.id}`, {method: "DELETE"}).catch((error) => this.fail(error));
  }

  async remove() {
    this.gone = true;
    this.stale();
    if (this.source) this.source.close();
    if (this.go) this.go();
    if (this.picture) ask(`/pictures/${this.picture.id}`, {method: "DELETE"}).catch(() => {});
    items.splice(items.indexOf(this), 1);
    this.node.remove();
    sum();
  }
}

function sum() {
  const finished = items.filter((item) => item.finished);
  const left = items.filter((item) => item.picture && !item.finished);
  const time = left.reduce((total, item) => total + (item.seconds || 0), 0);
  $("all").hidden = !items.length;
  $("zip").disabled = !finished.length;
  $("sum").textContent = `${items.length} picture${items.length === 1 ? "" : "s"}, ${finished.length} done` +
    (time ? `, ${about(time)} of work left` : "");
}

// The options of what is to be done.
function shown() {
  const does = $("do").value;
  for (const part of document.querySelectorAll("#wish [data-of]")) part.hidden = part.dataset.of !== does;
  $("fixes").hidden = does !== "restore" || $("fix").value !== "";
  $("start-all").textContent = `${WORDS[does]} all`;
}

// Plans, no more at a time either: a browser opens six connections, and cancelling must find one.
const unplanned = new Set();
let planning = 0;
function planSoon(item) {
  if (item) unplanned.add(item);
  while (planning < AT_ONCE && unplanned.size) {
    const [first] = unplanned;
    unplanned.delete(first);
    planning += 1;
    first.plan().finally(() => { planning -= 1; planSoon(); });
  }
}

const waiting = [];
function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    waiting.shift()().finally(() => { running -= 1; next(); });
  }
}

function add(files) {
  for (const file of files) {
    const item = new Item(file);
    items.push(item);
    waiting.push(() => item.send());
  }
  sum();
  next();
}

async function inside(entry) {
  if (entry.isFile) return [await new Promise((go, no) => entry.file(go, no))];
  const reader = entry.createReader(), found = [];
  for (;;) {
    const some = await new Promise((go, no) => reader.readEntries(go, no));
    if (!some.length) return found;
    for (const one of some) found.push(...await inside(one));
  }
}

async function begin() {
  const offer = await ask("");
  const fill = (name, values, text) => $(name).append(...values.map((value) => new Option(text(value), value)));
  fill("scale", offer.scales, (s) => `${s} times`);
  fill("quality", offer.qualities, (q) => q);
  fill("format", offer.formats, (f) => f);
  $("scale").value = "4";
  $("quality").value = "balanced";
  $("accepts").textContent = `${offer.reads.join(", ")}` +
    (offer.films.length ? `, films (${offer.films.map((one) => one.slice(1)).join(", ")})` : "") +
    `; up to ${offer.limits.megabytes} MB and ${offer.limits.megapixels} megapixels each`;
  $("fixes").append(...offer.fixes.map((name) => {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, {type: "checkbox", value: name, checked: name === "jpeg" || name === "noise"});
    label.append(box, ` ${name === "jpeg" ? "JPEG" : name}`);
    return label;
  }));
  $("wish").onchange = () => {
    shown();
    items.forEach((item) => item.again());
  };
  shown();
  for (const name of ["files", "folder"]) {
    $(name).onchange = () => { add([...$(name).files]); $(name).value = ""; };
  }
  const drop = $("drop");
  document.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  document.ondragleave = () => drop.classList.remove("over");
  document.ondrop = async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((one) => one.webkitGetAsEntry && one.webkitGetAsEntry()).filter(Boolean);
    const plain = [...event.dataTransfer.files];
    add(entries.length ? (await Promise.all(entries.map(inside))).flat() : plain);
  };
  document.onpaste = (event) => add([...event.clipboardData.files]);
  $("start-all").onclick = () => {
    for (const item of items.filter((one) => !one.finished)) item.queue(false);
  };
  $("zip").onclick = () => {
    const ids = items.filter((item) => item.finished).map((item) => `job=${item.job.id}`);
    location.href = `${api}/zip?${ids.join("&")}`;
  };
  viewer();
}

begin().catch((error) => { $("accepts").textContent = error.message; });
