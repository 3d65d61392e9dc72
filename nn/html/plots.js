// Draws the plots of a page from the JSON beside it. All share one range of steps: drag over one to look closer, click it
// twice to see all again. {"plots": [{"title", "unit", "stacked", "log", "curves": [{"name", "colour", "dots", "x", "y"}]}]}
(() => {
  const W = 520, H = 220, L = 54, R = 20, T = 8, B = 22;
  const data = JSON.parse(document.getElementById('plots').textContent);
  const all = [Infinity, -Infinity];
  for (const p of data.plots) for (const c of p.curves) for (const x of c.x) {
    all[0] = Math.min(all[0], x);
    all[1] = Math.max(all[1], x);
  }
  if (!(all[1] > all[0])) all[1] = all[0] + 1;
  let range = all.slice();
  const draws = [];

  const element = (parent, name, attributes, text) => {
    const e = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const k in attributes) e.setAttribute(k, attributes[k]);
    if (text !== undefined) e.textContent = text;
    return parent.appendChild(e);
  };
  const short = v => {
    const a = Math.abs(v);
    if (v === 0) return '0';
    if (a >= 1e9) return +(v / 1e9).toPrecision(4) + ' G';
    if (a >= 1e6) return +(v / 1e6).toPrecision(4) + ' M';
    if (a >= 1e4) return +(v / 1e3).toPrecision(4) + ' k';
    return a < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(5));
  };
  // Round numbers in [low, high], about n of them.
  // Powers of ten, with their doubles and halves where there is room; of less than a decade as on a plain scale.
  const logarithmicTicks = (low, high) => {
    const list = [];
    for (let e = Math.floor(Math.log10(low)); 10 ** e <= high; ++e)
      for (const m of high / low < 1e4 ? [1, 2, 5] : [1])
        if (m * 10 ** e >= low && m * 10 ** e <= high) list.push(m * 10 ** e);
    return list.length > 1 ? list : ticks(low, high, 5);
  };
  const ticks = (low, high, n) => {
    const raw = (high - low) / n, ten = 10 ** Math.floor(Math.log10(raw));
    const step = ten * [1, 2, 5, 10].find(k => k * ten >= raw);
    const list = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) list.push(i * step);
    return list;
  };
  // The index of the value nearest to x, of values that grow.
  const nearest = (list, x) => {
    let a = 0, b = list.length - 1;
    while (b - a > 1) {
      const m = (a + b) >> 1;
      list[m] <= x ? a = m : b = m;
    }
    return b >= 0 && Math.abs(list[b] - x) < Math.abs(list[a] - x) ? b : a;
  };

  function plot(p, box) {
    const head = box.querySelector('h3'), key = box.querySelector('.key');
    let log = p.log && p.curves.every(c => c.y.every(y => y > 0));
    if (!p.stacked) {
      const label = head.appendChild(document.createElement('label')), tick = document.createElement('input');
      tick.type = 'checkbox', tick.checked = log;
      label.append(tick, ' log');
      tick.onchange = () => { log = tick.checked; draw(); };
    }
    const svg = element(box, 'svg', {viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': p.title});
    const levels = p.curves.map(c => c.y.slice());  // a stacked curve lies on those before it
    if (p.stacked) for (let k = 1; k < levels.length; ++k) levels[k] = levels[k].map((y, i) => y + (levels[k - 1][i] || 0));
    const X = x => L + (x - range[0]) / (range[1] - range[0]) * (W - L - R);
    const step = event => {
      const r = svg.getBoundingClientRect();
      const x = ((event.clientX - r.left) / r.width * W - L) / (W - L - R);
      return range[0] + Math.min(1, Math.max(0, x)) * (range[1] - range[0]);
    };

    function tell(x) {
      key.replaceChildren(...p.curves.map((c, k) => {
        const span = document.createElement('span'), colour = document.createElement('i');
        colour.style.background = `var(--${c.colour})`;
        const at = c.x.length ? nearest(c.x, x) : -1;
        span.append(colour, c.name + (at < 0 ? '' : ` ${short(c.y[at])}` + (p.curves.length < 4 ? ` at ${c.x[at]}` : '')));
        return span;
      }));
    }
    function draw() {
      svg.replaceChildren();
      let low = p.stacked ? 0 : Infinity, high = -Infinity;
      levels.forEach((ys, k) => ys.forEach((y, i) => {
        const x = p.curves[k].x[i];
        if (x < range[0] || x > range[1] || (log && y <= 0)) return;
        low = Math.min(low, y), high = Math.max(high, y);
      }));
      if (low > high) low = 0, high = 1;
      const f = log ? Math.log10 : y => y;
      let a = f(low), b = f(high);
      if (b - a < 1e-12 * Math.max(1, Math.abs(a))) a -= Math.abs(a) * .05 || .5, b += Math.abs(b) * .05 || .5;
      else if (!p.stacked) [a, b] = [a - .04 * (b - a), b + .04 * (b - a)];
      else b *= 1.04;
      const Y = y => T + (b - f(y)) / (b - a) * (H - T - B);
      const shown = log ? logarithmicTicks(10 ** a, 10 ** b) : ticks(a, b, 5);
      for (const y of shown) {
        element(svg, 'line', {x1: L, x2: W - R, y1: Y(y), y2: Y(y), stroke: 'var(--line)'});
        element(svg, 'text', {x: L - 6, y: Y(y) + 4, 'text-anchor': 'end'}, short(y));
      }
      for (const x of ticks(range[0], range[1], 6))
        if (Number.isInteger(x)) element(svg, 'text', {x: X(x), y: H - 6, 'text-anchor': 'middle'}, x);
      const clip = 'clip' + draws.indexOf(draw);
      element(element(svg, 'clipPath', {id: clip}), 'rect', {x: L, y: 0, width: W - L - R, height: H - B});
      const area = element(svg, 'g', {'clip-path': `url(#${clip})`});
      for (let k = p.curves.length - 1; k >= 0; --k) {
        const c = p.curves[k], colour = `var(--${c.colour})`, points = [];
        levels[k].forEach((y, i) => { if (!(log && y <= 0)) points.push([X(c.x[i]), Y(y)]); });
        const text = points.map(q => q.map(v => v.toFixed(1)).join(',')).join(' ');
        if (p.stacked && points.length)
          element(area, 'polygon', {points: `${points[0][0]},${H - B} ${text} ${points[points.length - 1][0]},${H - B}`, fill: colour});
        else
          element(area, 'polyline', {points: text, fill: 'none', stroke: colour, 'stroke-width': 1.5, 'stroke-linejoin': 'round'});
        if (c.dots || points.length === 1)
          for (const [x, y] of points) element(area, 'circle', {cx: x, cy: y, r: 2.5, fill: colour});
      }
      const cross = element(svg, 'line', {y1: T, y2: H - B, stroke: 'var(--soft)', visibility: 'hidden'});
      const dragged = element(svg, 'rect', {y: T, height: H - T - B, fill: 'var(--soft)', 'fill-opacity': .2, visibility: 'hidden'});
      let from = null;
      svg.onpointerdown = e => { from = step(e); svg.setPointerCapture(e.pointerId); };
      svg.onpointermove = e => {
        const x = step(e);
        tell(x);
        cross.setAttribute('visibility', 'visible');
        cross.setAttribute('x1', X(x)), cross.setAttribute('x2', X(x));
        if (from === null) return;
        dragged.setAttribute('visibility', 'visible');
        dragged.setAttribute('x', X(Math.min(from, x)));
        dragged.setAttribute('width', Math.abs(X(x) - X(from)));
      };
      svg.onpointerleave = () => { cross.setAttribute('visibility', 'hidden'); tell(range[1]); };
      svg.onpointerup = e => {
        const x = step(e), begin = from;
        from = null;
        if (begin === null || Math.abs(X(x) - X(begin)) < 6) return dragged.setAttribute('visibility', 'hidden');
        look([Math.min(begin, x), Math.max(begin, x)]);
      };
      svg.ondblclick = () => look(all.slice());
      tell(range[1]);
    }
    draws.push(draw);
    draw();
  }
  function look(at) {
    range = at;
    for (const draw of draws) draw();
  }
  document.querySelectorAll('.plot').forEach((box, i) => plot(data.plots[i], box));
  // A run that goes on writes its page anew: it is read again, but not while somebody looks closer.
  if (data.again) setInterval(() => { if (range[0] === all[0] && range[1] === all[1]) location.reload(); }, 1000 * data.again);
})();
