// A recording for display: minima and maxima of its leads at several resolutions, its events, and how to find them.

const FIRST_BLOCK = 16; // time steps of a block of the finest level; finer views read the samples
const FACTOR = 4; // blocks of a level in one of the next
const COUNT_BLOCK = 256; // time steps of a block in which labels are counted
const SAMPLES = 32; // labels that are counted in a shorter stretch
const RANGE_SAMPLES = 50_000; // samples of a lead from which its range is found
const OUTLIERS = 0.0002; // fraction of these that may lie outside, at each end

// arrays: of the service's npz -> the recording
export function createRecording({ values, labels, confidence, rate, leads, classes, colors, units, start }) {
  const [length, count] = values.shape, trackCount = labels.shape[1] ?? 1;
  const traces = leads.data.map((name, index) => createTrace(name, units.data[index] ?? "", takeColumn(values.data, length, count, index)));
  const tracks = Array.from({ length: trackCount }, (_, index) => {
    const [own, sure] = [labels, confidence].map(({ data }) => (trackCount === 1 ? data : takeColumn(data, length, trackCount, index)));
    return { lead: trackCount === 1 && count > 1 ? null : leads.data[index], labels: own, confidence: sure, ...findEvents(own, sure), counts: countLabels(own) };
  });
  const palette = classes.data.map((name, label) => ({ label, name, rgb: [...colors.data.subarray(3 * label, 3 * label + 3)] }));
  return { length, rate: rate.data[0], start: start.data[0] ?? "", traces, tracks, classes: palette };
}

function takeColumn(data, length, count, index) {
  if (count === 1) return data;
  const column = new data.constructor(length);
  for (let step = 0, from = index; step < length; step++, from += count) column[step] = data[from];
  return column;
}

function createTrace(name, unit, samples) {
  const levels = [];
  let low = samples, high = samples, size = 1;
  for (let factor = FIRST_BLOCK; low.length > FACTOR; factor = FACTOR) {
    ({ low, high } = reduce(low, high, factor));
    levels.push({ size: (size *= factor), low, high });
  }
  return { name, unit, samples, levels, range: findRange(samples) };
}

// Minima of `low` and maxima of `high` in blocks. Missing samples are NaN; a block of these alone is one too.
function reduce(low, high, factor) {
  const count = Math.ceil(low.length / factor), result = { low: new Float32Array(count), high: new Float32Array(count) };
  for (let block = 0, at = 0; block < count; block++) {
    let least = Infinity, most = -Infinity;
    for (const end = Math.min(at + factor, low.length); at < end; at++) {
      if (low[at] < least) least = low[at];
      if (high[at] > most) most = high[at];
    }
    result.low[block] = least > most ? NaN : least;
    result.high[block] = least > most ? NaN : most;
  }
  return result;
}

// The range of nearly all samples: an artifact does not flatten the rest.
function findRange(samples) {
  const step = Math.max(1, Math.floor(samples.length / RANGE_SAMPLES));
  const some = Float32Array.from({ length: Math.ceil(samples.length / step) }, (_, index) => samples[index * step]).filter(Number.isFinite).sort();
  if (!some.length) return [-1, 1];
  const outside = Math.floor(some.length * OUTLIERS);
  const [low, high] = [some[outside], some[some.length - 1 - outside]];
  const margin = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - margin, high + margin];
}

// Least and greatest sample of [from, to) in time steps -> [low, high], NaN where all are missing
export function extent(trace, from, to) {
  const steps = to - from;
  const level = trace.levels.findLast(({ size }) => 2 * size <= steps);
  const [lows, highs, size] = level ? [level.low, level.high, level.size] : [trace.samples, trace.samples, 1];
  let low = Infinity, high = -Infinity;
  const first = Math.max(0, Math.floor(from / size)), end = Math.min(lows.length, Math.ceil(to / size));
  for (let at = first; at < end; at++) {
    if (lows[at] < low) low = lows[at];
    if (highs[at] > high) high = highs[at];
  }
  return low > high ? [NaN, NaN] : [low, high];
}

// Stretches of one class that is neither background (0) nor unlabeled (255), in order of time.
function findEvents(labels, confidence) {
  let count = 0;
  for (let step = 0, before = 0; step < labels.length; before = labels[step++])
    if (labels[step] !== before && labels[step] && labels[step] !== 255) count++;
  const starts = new Uint32Array(count), ends = new Uint32Array(count), kinds = new Uint8Array(count), means = new Float32Array(count);
  for (let step = 0, index = 0; index < count; ) {
    const label = labels[step], start = step;
    let sum = 0;
    while (step < labels.length && labels[step] === label) sum += confidence[step++];
    if (label === 0 || label === 255) continue;
    starts[index] = start;
    ends[index] = step;
    kinds[index] = label;
    means[index++] = sum / (step - start);
  }
  return { starts, ends, kinds, means };
}

// Time steps of each label in blocks of COUNT_BLOCK: label -> Uint16Array
function countLabels(labels) {
  const blocks = Math.ceil(labels.length / COUNT_BLOCK), counts = new Map();
  for (let block = 0, step = 0; block < blocks; block++)
    for (const end = Math.min(step + COUNT_BLOCK, labels.length); step < end; ) {
      const label = labels[step], start = step;
      while (step < end && labels[step] === label) step++;
      if (!counts.has(label)) counts.set(label, new Uint16Array(blocks));
      counts.get(label)[block] += step - start;
    }
  return counts;
}

// The fraction of each label in [from, to), time steps, into `fractions`, 256 numbers. With a minimum confidence, or in short
// stretches, from some time steps only: at multiples of a stride, so that a column of the view keeps them while one pans.
export function labelFractions(track, from, to, minConfidence, fractions) {
  fractions.fill(0);
  if (!minConfidence && to - from >= 2 * COUNT_BLOCK) {
    const first = Math.floor(from / COUNT_BLOCK), end = Math.ceil(to / COUNT_BLOCK);
    for (const [label, counts] of track.counts) for (let block = first; block < end && block < counts.length; block++) fractions[label] += counts[block];
    for (const label of track.counts.keys()) fractions[label] /= (end - first) * COUNT_BLOCK;
    return;
  }
  const stride = Math.max(1, Math.ceil((to - from) / SAMPLES)), end = Math.min(track.labels.length, to);
  let count = 0;
  for (let step = Math.max(0, Math.ceil(from / stride) * stride); step < end; step += stride, count++) if (track.confidence[step] >= minConfidence) fractions[track.labels[step]]++;
  for (let label = 0; label < 256; label++) fractions[label] /= count || 1;
}

// -> the index of the first event that ends after a time step
export function firstEvent({ ends }, step) {
  let low = 0, high = ends.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] > step) high = middle;
    else low = middle + 1;
  }
  return low;
}

// -> {classes: [{label, name, rgb, fraction, mean_confidence, events}], unlabeled: {fraction}}, as the legend takes it
export function summarize({ tracks, classes, length }) {
  const steps = new Float64Array(256), sums = new Float64Array(256), events = new Uint32Array(256), all = length * tracks.length;
  for (const { labels, confidence, kinds } of tracks) {
    for (let step = 0; step < length; step++) {
      steps[labels[step]]++;
      sums[labels[step]] += confidence[step];
    }
    for (const kind of kinds) events[kind]++;
  }
  const found = classes.filter(({ label }) => steps[label]);
  return {
    classes: found.map((entry) => ({ ...entry, fraction: steps[entry.label] / all, mean_confidence: sums[entry.label] / steps[entry.label], events: events[entry.label] })),
    unlabeled: { fraction: steps[255] / all },
  };
}

// The events as rows, with the names of the service's formats `events` and `csv`.
export function eventRows({ tracks, classes, rate }) {
  const seconds = (step) => Number((step / rate).toFixed(6));
  return tracks.flatMap(({ lead, starts, ends, kinds, means }) => Array.from(starts, (onset, index) => ({
    lead, class: classes[kinds[index]].name, label: kinds[index], onset, offset: ends[index],
    onset_seconds: seconds(onset), offset_seconds: seconds(ends[index]), confidence: Number(means[index].toFixed(4)),
  })));
}
