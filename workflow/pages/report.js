"use strict";
// Shows values under the pointer, and lets runs be hidden; the page is whole without it.
(() => {
  const short = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  const nearest = (points, x) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
  const hidden = new Set();

  for (const figure of document.querySelectorAll("[data-chart]")) {
    const { x: unit, lines } = JSON.parse(figure.dataset.chart);
    const plot = figure.querySelector(".plot");
    const ends = figure.dataset.range.split(" ").map(Number);
    const cursor = Object.assign(document.createElement("div"), { className: "cursor", hidden: true });
    const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
    plot.append(cursor, tip);
    const leave = () => { cursor.hidden = tip.hidden = true; };
    const move = (event) => {
      const box = plot.getBoundingClientRect();
      const at = ends[0] + (ends[1] - ends[0]) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      const shown = lines.filter((line) => line.points.length && !hidden.has(line.run));
      if (!shown.length) return leave();
      const x = nearest(shown.map((line) => nearest(line.points, at)), at)[0];
      tip.replaceChildren(Object.assign(document.createElement("div"), { textContent: `${unit} ${short(x)}` }));
      for (const line of shown) {
        const point = nearest(line.points, x);
        if (Math.abs(point[0] - x) > 0.03 * (ends[1] - ends[0])) continue;
        const row = document.createElement("div");
        row.append(
          Object.assign(document.createElement("i"), { className: `swatch c${line.colour}` }),
          Object.assign(document.createElement("span"), { textContent: `${line.name} ${short(point[1])}` }),
        );
        tip.append(row);
      }
      const left = ((x - ends[0]) / (ends[1] - ends[0])) * box.width;
      cursor.style.left = `${left}px`;
      cursor.hidden = tip.hidden = false;
      const room = document.documentElement.clientWidth - box.left - tip.offsetWidth - 8;
      tip.style.left = `${Math.max(8 - box.left, Math.min(left + 12, room))}px`;
      tip.style.top = "8px";
    };
    plot.addEventListener("pointermove", move);
    plot.addEventListener("pointerdown", move);
    plot.addEventListener("pointerleave", leave);
  }

  for (const item of document.querySelectorAll(".legend li")) {
    const run = Number(item.dataset.run);
    const button = Object.assign(document.createElement("button"), { type: "button", title: "show or hide this run's curves" });
    button.append(item.querySelector(".swatch"), item.querySelector("bdi"));
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (!hidden.delete(run)) hidden.add(run);
      button.setAttribute("aria-pressed", String(!hidden.has(run)));
      for (const drawn of document.querySelectorAll(`.r${run}`)) drawn.style.display = hidden.has(run) ? "none" : "";
    });
    item.prepend(button);
  }
})();
