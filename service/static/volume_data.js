// The geometry of a volume for display: from a file's axes to the patient's, as models/readers/orientation.py, and the three planes.

// Axes 0, 1, 2 run to the head, the back and the left. Each: the axis of the world (right, front, head) and the sign.
const CANONICAL = [[2, 1], [1, -1], [0, -1]];
const ORDERS = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
const SAMPLES = 50_000; // voxels from which the range is found
const OUTLIERS = 0.005; // fraction of these that may lie outside, at each end

// As on a radiologist's screen: the patient's right is on the left, the head is up. `down` runs down the screen, or up where
// `upward`; `through` from one slice to the next. edges: the directions at the left, right, top and bottom.
export const PLANES = [
  { name: "Axial", across: 2, down: 1, through: 0, upward: false, edges: ["R", "L", "A", "P"] },
  { name: "Coronal", across: 2, down: 0, through: 1, upward: true, edges: ["R", "L", "S", "I"] },
  { name: "Sagittal", across: 1, down: 0, through: 2, upward: true, edges: ["A", "P", "S", "I"] },
];

// shape: voxels along the file's axes, the first one fastest; affine: three rows, to mm (RAS). size, spacing and strides of the
// grid are along axes 0, 1, 2.
export function createGrid(shape, affine) {
  const lengths = [0, 1, 2].map((axis) => Math.hypot(...affine.map((row) => row[axis])));
  const cosine = (ours, axis) => (CANONICAL[ours][1] * affine[CANONICAL[ours][0]][axis]) / lengths[axis];
  const score = (order) => Math.round(1e6 * order.reduce((sum, axis, ours) => sum + Math.abs(cosine(ours, axis)), 0));
  const order = ORDERS.reduce((best, each) => (score(each) > score(best) ? each : best));
  const steps = [1, shape[0], shape[0] * shape[1]], flipped = order.map((axis, ours) => cosine(ours, axis) < 0);
  const size = order.map((axis) => shape[axis]);
  return {
    shape, affine, order, flipped, size,
    spacing: order.map((axis) => lengths[axis]),
    strides: order.map((axis, ours) => (flipped[ours] ? -steps[axis] : steps[axis])),
    start: order.reduce((sum, axis, ours) => sum + (flipped[ours] ? (size[ours] - 1) * steps[axis] : 0), 0),
  };
}

// position: along axes 0, 1, 2 -> the place in the file's array
export const indexOf = ({ start, strides }, position) => position.reduce((sum, step, axis) => sum + step * strides[axis], start);

// -> [i, j, k] in the file
export function voxelOf({ order, flipped, size }, position) {
  const voxel = [0, 0, 0];
  order.forEach((axis, ours) => (voxel[axis] = flipped[ours] ? size[ours] - 1 - position[ours] : position[ours]));
  return voxel;
}

// -> [x, y, z] in mm, to the patient's right, front and head
export const worldOf = ({ affine }, voxel) => affine.map((row) => row[3] + voxel.reduce((sum, step, axis) => sum + step * row[axis], 0));

// Where a plane lies in a view of width x height -> the upper left corner, and the size of a voxel there
export function placePlane({ across, down }, { size, spacing }, width, height) {
  const scale = Math.min(width / (size[across] * spacing[across]), height / (size[down] * spacing[down]));
  const [stepX, stepY] = [spacing[across] * scale, spacing[down] * scale];
  return { left: (width - size[across] * stepX) / 2, top: (height - size[down] * stepY) / 2, stepX, stepY };
}

// The range of nearly all values: [low, high]
export function findRange(values) {
  const step = Math.max(1, Math.floor(values.length / SAMPLES));
  const some = Float64Array.from({ length: Math.ceil(values.length / step) }, (_, index) => values[index * step]).filter(Number.isFinite).sort();
  if (!some.length) return [0, 1];
  const outside = Math.floor(some.length * OUTLIERS), low = some[outside], high = some[some.length - 1 - outside];
  return high > low ? [low, high] : [some[0], some[some.length - 1] > some[0] ? some[some.length - 1] : some[0] + 1];
}

// classes: [{name, rgb}] by label -> {classes: [{label, name, rgb, fraction, voxels, ml, amount}], unlabeled: {fraction}}, as the
// legend takes it. voxelMl: null if it is not known
export function countLabels(labels, classes, voxelMl) {
  const counts = new Float64Array(256);
  for (let at = 0; at < labels.length; at++) counts[labels[at]]++;
  const entries = classes.map(({ name, rgb }, label) => {
    const voxels = counts[label], ml = voxelMl === null ? null : voxels * voxelMl;
    return { label, name, rgb, fraction: voxels / labels.length, voxels, ml, amount: ml === null ? `${voxels.toLocaleString("en")} voxels` : formatMl(ml) };
  });
  const present = entries.filter(({ voxels }) => voxels), labeled = present.reduce((sum, { fraction }) => sum + fraction, 0);
  return { classes: present, unlabeled: { fraction: Math.max(0, 1 - labeled) > 1e-9 ? 1 - labeled : 0 } };
}

export const formatMl = (ml) => `${ml >= 100 ? Math.round(ml).toLocaleString("en") : Number(ml.toPrecision(3))} ml`;
