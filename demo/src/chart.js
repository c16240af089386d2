// The moving chart: scores of the classes that were leading at some time in the last seconds.

const SECONDS = 12;
// Distinguishable with most kinds of colour vision: Okabe and Ito's colours, light enough for a dark
// background.
const COLORS = ["#56b4e9", "#e69f00", "#2fc595", "#f0e442", "#e58cbf", "#ff8f6b", "#8ea2ff"];

export class Chart {
  constructor(canvas) {
    this.canvas = canvas;
    this.colors = new Map();
    this.clear();
  }

  clear() {
    this.points = [];
  }

  add(time, scores) {
    this.points.push({ time, scores });
    while (this.points[0].time < time - SECONDS - 1) this.points.shift();
  }

  /** Returns the colour of a class, which stays the same while the page is open. */
  color(label) {
    if (!this.colors.has(label)) this.colors.set(label, COLORS[this.colors.size % COLORS.length]);
    return this.colors.get(label);
  }

  draw(now) {
    const { canvas, points } = this;
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const left = 34;
    const bottom = height - 8;
    const x = (time) => left + (width - left) * (1 - (now - time) / SECONDS);
    const y = (score) => bottom - score * (bottom - 8);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    for (const score of [0, 0.5, 1]) {
      context.fillStyle = "#93a0b1";
      context.fillText(`${100 * score}%`, 0, y(score));
      context.fillStyle = "#262d38";
      context.fillRect(left, y(score), width - left, 1);
    }
    const leaders = new Set(points.map(({ scores }) => scores.indexOf(Math.max(...scores))));
    context.save();
    context.beginPath();
    context.rect(left, 0, width - left, height);
    context.clip();
    context.lineWidth = 2;
    context.lineJoin = "round";
    for (const label of leaders) {
      context.strokeStyle = this.color(label);
      context.beginPath();
      points.forEach(({ time, scores }, i) => {
        context[i ? "lineTo" : "moveTo"](x(time), y(scores[label]));
      });
      context.stroke();
    }
    context.restore();
  }
}
