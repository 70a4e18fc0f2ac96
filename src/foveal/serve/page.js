"use strict";
const api = "/api/v1";
const $ = (name) => document.getElementById(name);
const items = [];
const CROP = 200;  // side of the part that is tried, in pixels of the source
const AT_ONCE = 2;  // uploads and jobs of this page at a time
let running = 0;

function seconds(s) {
  if (s < 1) return "under a second";
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return `${(s / 3600).toFixed(1)} h`;
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
  const said = await response.json();
  if (!response.ok) {
    const error = new Error(said.error || `the server said ${response.status}`);
    error.again = Number(response.headers.get("Retry-After")) || 0;
    throw error;
  }
  return said;
}

function wish(picture) {
  return new URLSearchParams({scale: $("scale").value, quality: $("quality").value,
    clean: $("clean").value, format: picture.kind === "film" ? "" : $("format").value});
}

class Item {
  constructor(file) {
    this.file = file;
    this.node = $("item").content.firstElementChild.cloneNode(true);
    this.part = (name) => this.node.querySelector("." + name);
    this.part("name").textContent = file.name;
    this.part("size").textContent = bytes(file.size);
    this.part("plan").textContent = "waiting to be sent";
    this.part("try").onclick = () => this.start(true);
    this.part("start").onclick = () => this.start(false);
    this.part("cancel").onclick = () => this.cancel();
    this.part("look").onclick = () => look(this);
    this.part("remove").onclick = () => this.remove();
    this.buttons(false);
    $("list").append(this.node);
  }

  buttons(on) {
    this.part("try").disabled = this.part("start").disabled = !on;
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
      this.part("size").textContent = `${p.width}×${p.height}, ${p.format}, ${bytes(p.bytes)}` + (p.frames > 1 ? `, ${p.frames} frames` : "");
      this.buttons(true);
      await this.plan();
    } catch (error) {
      this.part("plan").textContent = "";
      this.fail(error);
    }
  }

  async plan() {
    if (!this.picture || this.job) return;
    try {
      const plan = await ask(`/pictures/${this.picture.id}/plan?${wish(this.picture)}`);
      this.seconds = plan.seconds;
      this.part("plan").textContent = `becomes ${plan.width}×${plan.height}${plan.frames > 1 ? `, ${plan.frames} frames,` : ""} in about ${seconds(plan.seconds)}`;
      this.part("notes").replaceChildren(...plan.notes.map((note) => {
        const line = document.createElement("li");
        line.textContent = note;
        return line;
      }));
    } catch (error) {
      this.fail(error);
    }
    sum();
  }

  async start(crop) {
    if (!this.picture || this.source) return;
    const asked = wish(this.picture);
    if (crop) {
      const w = Math.min(CROP, this.picture.width), h = Math.min(CROP, this.picture.height);
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
      this.buttons(true);
      if (error.again && !crop) {  // the queue is full: this page waits its turn
        this.part("plan").textContent = `the server is busy; trying again in ${error.again} s`;
        await new Promise((go) => setTimeout(go, 1000 * error.again));
        return this.start(crop);
      }
      this.fail(error);
      return;
    }
    this.part("cancel").hidden = false;
    await new Promise((go) => this.listen(go));
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
    this.buttons(true);
    this.finished = state.state === "done" && !this.trying;
    if (state.state === "done") {
      const r = state.result;
      this.part("plan").textContent = `${this.trying ? "crop of " : ""}${r.width}×${r.height} in ${seconds(r.seconds)}`;
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
    if (this.source) this.source.close();
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
    (time ? `, about ${seconds(time)} of work left` : "");
}

const waiting = [];
async function next() {
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

// Before and after

const view = {zoom: 1, x: 0, y: 0, share: 0.5};

function draw() {
  const stage = $("stage"), at = view.share * stage.clientWidth;
  for (const image of [$("before"), $("after")]) {
    image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
  }
  const cut = Math.max(0, (at - view.x) / view.zoom);
  $("before").style.clipPath = `polygon(0 0, ${cut}px 0, ${cut}px 100%, 0 100%)`;
  $("line").style.left = `${at}px`;
  stage.setAttribute("aria-valuenow", Math.round(100 * (1 - view.share)));
}

function zoom(factor, x, y) {
  const wanted = Math.min(16, Math.max(0.05, view.zoom * factor)), real = wanted / view.zoom;
  view.x = x - (x - view.x) * real;
  view.y = y - (y - view.y) * real;
  view.zoom = wanted;
  draw();
}

function look(item) {
  const base = `${api}/jobs/${item.job.id}`;
  $("viewer-name").textContent = item.file.name;
  $("after").onload = () => {
    const stage = $("stage"), image = $("after");
    view.zoom = Math.min(stage.clientWidth / image.naturalWidth, stage.clientHeight / image.naturalHeight, 4);
    view.x = (stage.clientWidth - image.naturalWidth * view.zoom) / 2;
    view.y = (stage.clientHeight - image.naturalHeight * view.zoom) / 2;
    view.share = 0.5;
    draw();
  };
  $("after").onerror = async () => {
    $("viewer").close();
    const said = await fetch(`${base}/after.png`).then((r) => r.json()).catch(() => ({}));
    item.fail(new Error(said.error || "the result cannot be shown; download it"));
  };
  $("before").src = `${base}/before.png`;
  $("after").src = `${base}/after.png`;
  $("viewer").showModal();
  $("stage").focus();
}

function viewer() {
  const stage = $("stage"), held = new Map();
  let slides = false, apart = 0;
  stage.onpointerdown = (event) => {
    stage.setPointerCapture(event.pointerId);
    const x = event.clientX - stage.getBoundingClientRect().left;
    slides = held.size === 0 && Math.abs(x - view.share * stage.clientWidth) < 24;
    held.set(event.pointerId, event);
    apart = 0;
  };
  stage.onpointermove = (event) => {
    const last = held.get(event.pointerId);
    if (!last) return;
    const box = stage.getBoundingClientRect();
    held.set(event.pointerId, event);
    if (held.size === 2) {  // two fingers zoom
      const [a, b] = [...held.values()];
      const now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      if (apart) zoom(now / apart, (a.clientX + b.clientX) / 2 - box.left, (a.clientY + b.clientY) / 2 - box.top);
      apart = now;
    } else if (slides) {
      view.share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      draw();
    } else {
      view.x += event.clientX - last.clientX;
      view.y += event.clientY - last.clientY;
      draw();
    }
  };
  stage.onpointerup = stage.onpointercancel = (event) => { held.delete(event.pointerId); apart = 0; };
  stage.onwheel = (event) => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  };
  stage.onkeydown = (event) => {
    const step = {ArrowLeft: -0.02, ArrowRight: 0.02}[event.key];
    if (step) view.share = Math.min(1, Math.max(0, view.share + step));
    else if (event.key === "+" || event.key === "=") zoom(1.25, stage.clientWidth / 2, stage.clientHeight / 2);
    else if (event.key === "-") zoom(0.8, stage.clientWidth / 2, stage.clientHeight / 2);
    else return;
    event.preventDefault();
    draw();
  };
  $("close").onclick = () => $("viewer").close();
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
  $("wish").onchange = () => items.forEach((item) => { if (!item.source) { item.job = null; item.finished = false; item.plan(); } });
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
    for (const item of items.filter((one) => !one.finished && !one.source)) waiting.push(() => item.start(false));
    next();
  };
  $("zip").onclick = () => {
    const ids = items.filter((item) => item.finished).map((item) => `job=${item.job.id}`);
    location.href = `${api}/zip?${ids.join("&")}`;
  };
  viewer();
}

begin().catch((error) => { $("accepts").textContent = error.message; });
