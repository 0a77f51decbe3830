"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const series = read("series"), scenes = read("scenes");
  const labels = { psnr: "PSNR", ms_ssim_db: "MS-SSIM" };
  let quality = "psnr", lit = null;

  // ---- colours: models in order, classical codecs by name
  let count = 0;
  for (const s of series) {
    s.css = s.kind === "model" ? `var(--model${count++ % 4})` : `var(--${s.colour})`;
    s.shown = s.on;
  }

  // ---- chart
  const chart = document.getElementById("chart");
  const tip = Object.assign(document.createElement("div"), { id: "tip", hidden: true });
  const element = (name, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const steps = (low, high, wanted) => {
    const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= rough);
    const ticks = [];
    for (let t = Math.ceil(low / step) * step; t <= high + 1e-9; t += step) ticks.push(t);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9), step / power === 2.5 ? 1 - Math.log10(power) : 0);
    return { ticks, digits: Math.min(digits, 3) };
  };
  const visible = () => series.filter((s) => s.shown && s.points.some((p) => p[quality] !== null));
  const usable = (s) => s.points.filter((p) => p[quality] !== null);

  const extent = () => {
    const measured = series.filter((s) => s.kind !== "published").flatMap(usable);
    if (!measured.length) return null;
    const models = series.filter((s) => s.kind === "model").flatMap(usable);
    const most = Math.max(...(models.length ? models : measured).map((p) => p.bpp));
    const right = Math.min(Math.max(...measured.map((p) => p.bpp)), most * 1.6) * 1.03;
    const inside = measured.filter((p) => p.bpp <= right).map((p) => p[quality]);
    // A curve that goes on beyond the right edge leaves there, not through the top.
    for (const points of series.filter((s) => s.kind !== "published").map(usable)) {
      const next = points.findIndex((p) => p.bpp > right), a = points[next - 1], b = points[next];
      if (next > 0) inside.push(a[quality] + (b[quality] - a[quality]) * (right - a.bpp) / (b.bpp - a.bpp));
    }
    const low = Math.min(...inside), high = Math.max(...inside), air = Math.max(0.4, (high - low) * 0.06);
    return { left: 0, right, low: low - air, high: high + air };
  };

  const place = (names, top, bottom, gap) => {
    // Leaders are level within the plot, and names are in the order of their heights: none cross.
    names.sort((a, b) => a.at - b.at);
    names.forEach((n, i) => { n.y = Math.max(n.at, i ? names[i - 1].y + gap : top); });
    for (let i = names.length - 1, limit = bottom; i >= 0; i--, limit = names[i + 1].y - gap) names[i].y = Math.min(names[i].y, limit);
  };

  let drawn = [];
  const draw = () => {
    const width = chart.clientWidth, wide = width > 700;
    const range = extent();
    chart.replaceChildren(tip);
    tip.hidden = true;
    drawn = [];
    if (!range) { chart.append("No picture of this set is large enough for MS-SSIM."); return; }
    const height = Math.round(Math.min(540, Math.max(320, width * 0.58)));
    const box = { left: 46, right: width - (wide ? 190 : 10), top: 26, bottom: height - 44 };
    const x = (v) => box.left + (v - range.left) / (range.right - range.left) * (box.right - box.left);
    const y = (v) => box.bottom - (v - range.low) / (range.high - range.low) * (box.bottom - box.top);
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, height });
    const clip = element("clipPath", { id: "inside" });
    clip.append(element("rect", { x: box.left, y: box.top - 6, width: box.right - box.left + 6, height: box.bottom - box.top + 6 }));
    svg.append(clip);
    const down = steps(range.low, range.high, height / 60), across = steps(range.left, range.right, (box.right - box.left) / 64);
    for (const t of down.ticks) {
      svg.append(element("line", { class: "grid", x1: box.left, x2: box.right, y1: y(t), y2: y(t) }));
      svg.append(element("text", { x: box.left - 8, y: y(t) + 4, "text-anchor": "end" }, t.toFixed(down.digits)));
    }
    for (const t of across.ticks) svg.append(element("text", { x: x(t), y: box.bottom + 20, "text-anchor": "middle" }, t.toFixed(across.digits)));
    svg.append(element("line", { class: "grid", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
    svg.append(element("text", { x: box.left - 38, y: 12 }, `${labels[quality]}, dB`));
    svg.append(element("text", { x: box.right, y: height - 6, "text-anchor": "end" }, "bits per pixel"));

    const order = { published: 0, peer: 1, model: 2 }, names = [];
    for (const s of visible().sort((a, b) => order[a.kind] - order[b.kind])) {
      const dim = lit && lit !== s ? " dim" : "";
      const points = usable(s).map((p) => ({ ...p, s, px: x(p.bpp), py: y(p[quality]) }));
      const group = element("g", { "clip-path": "url(#inside)", class: dim });
      group.append(element("polyline", { class: `curve ${s.kind}`, style: `stroke:${s.css}`, points: points.map((p) => `${p.px},${p.py}`).join(" ") }));
      if (s.kind !== "published") for (const p of points) group.append(element("circle", { cx: p.px, cy: p.py, r: s.kind === "model" ? 5 : 2.6, style: `fill:${s.css}` }));
      svg.append(group);
      const seen = points.filter((p) => p.px <= box.right + 1 && p.py >= box.top - 6 && p.py <= box.bottom);
      drawn.push(...seen);
      if (seen.length) names.push({ s, dim, ...leave(points, box) });
    }
    if (wide) {
      place(names, box.top, box.bottom, 17);
      for (const n of names) {
        svg.append(element("path", { class: "leader", d: `M${n.x + 5},${n.at} L${box.right + 6},${n.at} L${box.right + 16},${n.y}` }));
        svg.append(element("text", { class: `name ${n.s.kind}${n.dim}`, x: box.right + 20, y: n.y + 4, style: `fill:${n.s.css}` }, shorten(n.s.name)));
      }
    }
    chart.prepend(svg);
  };
  const shorten = (name) => name.length > 24 ? `${name.slice(0, 23)}…` : name;

  // Where a curve leaves the plot: at its last point, or where it crosses the right or upper edge.
  const leave = (points, box) => {
    let last = points[0];
    for (const p of points) {
      if (p.px > box.right || p.py < box.top) {
        const t = Math.min(p.px > box.right ? (box.right - last.px) / (p.px - last.px) : 1, p.py < box.top ? (box.top - last.py) / (p.py - last.py) : 1);
        return { x: last.px + t * (p.px - last.px), at: last.py + t * (p.py - last.py) };
      }
      last = p;
    }
    return { x: last.px, at: last.py };
  };

  chart.addEventListener("pointermove", (event) => {
    const at = chart.getBoundingClientRect(), mx = event.clientX - at.left, my = event.clientY - at.top;
    let best = null, least = 40 ** 2;
    for (const p of drawn) {
      const d = (p.px - mx) ** 2 + (p.py - my) ** 2;
      if (d < least) { least = d; best = p; }
    }
    tip.hidden = !best;
    if (!best) return;
    tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: best.s.name }),
      `${best.bpp.toFixed(3)} bpp, ${best[quality].toFixed(2)} dB`, document.createElement("br"), best.what ? `${best.s.kind === "peer" ? "setting " : ""}${best.what}` : "");
    const room = at.width - tip.offsetWidth - 4;
    tip.style.left = `${Math.max(4, Math.min(room, best.px + 12))}px`;
    tip.style.top = `${Math.max(0, best.py - tip.offsetHeight - 10)}px`;
  });
  chart.addEventListener("pointerleave", () => { tip.hidden = true; });

  // ---- legend and tabs
  const legend = document.getElementById("legend");
  for (const s of series) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: s.kind, title: s.note });
    const mark = document.createElement("i");
    mark.style.borderColor = s.css;
    button.append(mark, s.name);
    if (s.kind === "published" && !/published/.test(s.name)) button.append(Object.assign(document.createElement("small"), { textContent: "published" }));
    button.setAttribute("aria-pressed", s.shown);
    button.addEventListener("click", () => { s.shown = !s.shown; button.setAttribute("aria-pressed", s.shown); lit = null; draw(); });
    for (const [kind, value] of [["pointerenter", s], ["pointerleave", null]]) button.addEventListener(kind, (event) => {
      if (event.pointerType === "mouse" && s.shown) { lit = value; draw(); }
    });
    legend.append(button);
  }
  const tabs = [...document.querySelectorAll(".tabs button")];
  for (const tab of tabs) tab.addEventListener("click", () => {
    quality = tab.dataset.quality;
    for (const other of tabs) other.setAttribute("aria-selected", other === tab);
    draw();
  });
  draw();
  let width = chart.clientWidth;
  new ResizeObserver(() => requestAnimationFrame(() => {
    if (chart.clientWidth !== width) { width = chart.clientWidth; draw(); }
  })).observe(chart);

  // ---- sliders
  for (const figure of document.querySelectorAll(".compare")) {
    const stage = figure.querySelector(".stage"), range = figure.querySelector("input");
    const slide = () => stage.style.setProperty("--cut", `${range.value}%`);
    range.addEventListener("input", slide);
    slide();
    const views = scenes[figure.dataset.scene];
    if (!views) continue;
    for (const [side, layer] of [["left", "over"], ["right", "under"]]) {
      const select = figure.querySelector(`.${side}`), image = figure.querySelector(`.${layer}`);
      const show = () => {
        const view = views[select.value];
        image.src = view.src;
        image.alt = view.label;
        select.parentElement.querySelector("em").textContent = view.bpp === null ? "as given" : `${view.bpp.toFixed(3)} bpp, ${view.psnr.toFixed(2)} dB`;
      };
      select.addEventListener("change", show);
      show();
    }
  }
})();
