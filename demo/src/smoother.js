// Turns logits into displayed predictions, with the same rule as `Smoother` in
// tsm_jax/deploy/stream.py.

export function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** The mean logits of the last `frames` frames determine the leading class; the answer changes when
 *  another class has led for `patience` frames in a row. */
export class Smoother {
  constructor(frames, patience = 2) {
    this.frames = frames;
    this.patience = patience;
    this.reset();
  }

  reset() {
    this.logits = [];
    this.leaders = [];
    this.answer = null;
  }

  update(logits) {
    this.logits = [...this.logits, Array.from(logits)].slice(-this.frames);
    const mean = this.logits[0].map(
      (_, k) => this.logits.reduce((sum, one) => sum + one[k], 0) / this.logits.length,
    );
    const leader = mean.indexOf(Math.max(...mean));
    this.leaders = [...this.leaders, leader].slice(-this.patience);
    const settled =
      this.leaders.length === this.patience && this.leaders.every((each) => each === leader);
    if (this.answer === null || settled) this.answer = leader;
    return { answer: this.answer, scores: softmax(mean) };
  }
}
