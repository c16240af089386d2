// Picks frames by time: on average `rate` per second, the rate that the network was trained with.
// Uses the same rule as tsm_jax/deploy/live_input.py.

const EARLY = 0.25; // of the time between two frames

export class Picker {
  constructor(rate) {
    this.period = 1 / rate;
    this.next = null;
  }

  /** Returns whether to pass the frame at this time, in seconds, to the network. */
  pick(time) {
    if (this.next === null || this.next - time > 2 * this.period) this.next = time;
    if (time < this.next - EARLY * this.period) return false;
    this.next += this.period;
    if (this.next <= time) this.next = time + this.period;
    return true;
  }
}

/** Measures the number of events per second over the last seconds. */
export class Meter {
  constructor(seconds = 3) {
    this.seconds = seconds;
    this.times = [];
  }

  add(time) {
    this.times.push(time);
    while (this.times[0] < time - this.seconds) this.times.shift();
  }

  get rate() {
    const { times } = this;
    return times.length < 2 ? 0 : (times.length - 1) / (times.at(-1) - times[0]);
  }
}
