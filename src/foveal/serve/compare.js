"use strict";
// The slider between before and after. $ and api are those of page.js, which is loaded after it.

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
  const base = `${api}/jobs/${item.job.id}`, repaired = item.does === "restore";
  $("after").alt = repaired ? "restored by foveal" : "enlarged by foveal";
  $("before").alt = repaired ? "source" : "source, enlarged by bicubic interpolation";
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
