"use strict";

// Views of one image move together: hovering a pixel marks it, its field and its classes in all of them.
{
  const pointers = JSON.parse(document.getElementById("pointers").textContent);
  const inspector = document.getElementById("inspector");
  const where = inspector.querySelector(".where");
  const what = inspector.querySelector(".what");
  const [zoom, patches] = inspector.querySelectorAll("canvas");
  const last = {}; // the pixel that was pointed at, by image
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  for (const each of pointers) [each.labels, each.percent] = [bytes(each.labels), bytes(each.percent)];

  const mark = (plane, kind) => plane.querySelector("." + kind) || plane.appendChild(Object.assign(document.createElement("span"), { className: kind }));
  const place = (element, box) => {
    for (const side of ["left", "top", "width", "height"]) element.style[side] = box[side] + "%";
  };
  const classText = (pointer, x, y) => {
    const [height, width] = pointer.size, [rows, columns] = pointer.grid;
    const cell = Math.min(rows - 1, Math.floor(y * rows / height)) * columns + Math.min(columns - 1, Math.floor(x * columns / width));
    const texts = [];
    for (let at = cell; at < pointer.labels.length; at += rows * columns) texts.push(pointer.classes[pointer.labels[at]] + " " + pointer.percent[at] + "%");
    return texts.join(", ");
  };
  const showPixel = (index, x, y, field) => {
    const pointer = pointers[index], [height, width] = pointer.size;
    const box = field === undefined ? pointer.field : field;
    for (const plane of document.querySelectorAll(`.over[data-image="${index}"] .plane`)) {
      const cross = mark(plane, "cross");
      cross.style.left = 100 * (x + 0.5) / width + "%";
      cross.style.top = 100 * (y + 0.5) / height + "%";
      const frame = mark(plane, "field");
      frame.hidden = !box;
      place(frame, { left: 100 * (x + 0.5 - box / 2) / width, top: 100 * (y + 0.5 - box / 2) / height, width: 100 * box / width, height: 100 * box / height });
    }
  };
  for (const figure of document.querySelectorAll(".over")) {
    const index = Number(figure.dataset.image), plane = figure.querySelector(".plane");
    if (index < 0) continue;
    plane.addEventListener("pointermove", (event) => {
      const pointer = pointers[index], [height, width] = pointer.size, frame = plane.getBoundingClientRect();
      const x = Math.max(0, Math.min(width - 1, Math.floor((event.clientX - frame.left) * width / frame.width)));
      const y = Math.max(0, Math.min(height - 1, Math.floor((event.clientY - frame.top) * height / frame.height)));
      last[index] = [x, y];
      showPixel(index, x, y);
      inspector.hidden = false;
      zoom.hidden = patches.hidden = true;
      where.textContent = `pixel ${x}, ${y}` + (pointer.field ? `; receptive field ${pointer.field} pixels` : "");
      what.textContent = classText(pointer, x, y);
    });
  }

  // The cells of a sheet, drawn side by side into a canvas.
  const drawCells = (canvas, sheet, cells) => {
    const image = sheet.querySelector("img"), columns = Number(sheet.dataset.columns), count = Number(sheet.dataset.count);
    const used = Math.min(columns, count), width = image.naturalWidth / used, height = image.naturalHeight / Math.ceil(count / columns);
    const draw = canvas.getContext("2d"), scale = 96 / Math.max(width, height);
    draw.imageSmoothingEnabled = false;
    draw.clearRect(0, 0, canvas.width, canvas.height);
    cells.forEach((cell, index) => draw.drawImage(image, cell % columns * width, Math.floor(cell / columns) * height, width, height, 96 * index, 0, width * scale, height * scale));
  };

  // A unit of a sheet: enlarged below, with its best patches, and its field around the last pixel.
  for (const sheet of document.querySelectorAll(".sheet")) {
    const plane = sheet.querySelector(".plane");
    const columns = Number(sheet.dataset.columns), count = Number(sheet.dataset.count), rows = Math.ceil(count / columns);
    const channels = sheet.dataset.channels.split(",");
    plane.addEventListener("pointermove", (event) => {
      const frame = plane.getBoundingClientRect(), used = Math.min(columns, count);
      const column = Math.floor((event.clientX - frame.left) * used / frame.width);
      const row = Math.floor((event.clientY - frame.top) * rows / frame.height);
      const cell = row * columns + column;
      if (column < 0 || column >= used || row < 0 || cell >= count) return;
      place(mark(plane, "cell"), { left: 100 * column / used, top: 100 * row / rows, width: 100 / used, height: 100 / rows });
      inspector.hidden = zoom.hidden = false;
      drawCells(zoom, sheet, [cell]);
      const index = Number(sheet.dataset.image), field = Number(sheet.dataset.field);
      const best = [...document.querySelectorAll(`.sheet[data-kind="patches"][data-image="${index}"]`)].find((each) => each.dataset.layer === sheet.dataset.layer);
      const found = best ? best.dataset.channels.split(",").flatMap((channel, place) => (channel === channels[cell] ? [place] : [])) : [];
      patches.hidden = !found.length;
      if (found.length) drawCells(patches, best, found.slice(0, 3));
      if (index >= 0 && field) {
        const [height, width] = pointers[index].size;
        showPixel(index, ...(last[index] || [Math.floor(width / 2), Math.floor(height / 2)]), field);
      }
      where.textContent = `${sheet.dataset.layer}, channel ${channels[cell]}` + (field ? `; receptive field ${field} pixels` : "");
      what.textContent = sheet.querySelector("figcaption").textContent;
    });
  }
}

// One convolution by hand: image, patch x kernel for one channel, and the output map for the chosen stride and padding.
for (const box of document.querySelectorAll(".worked")) {
  const data = JSON.parse(box.querySelector("script").textContent).worked;
  if (!data.patch.length) {
    box.textContent = "The first layer has groups; its sums are not worked out here.";
    continue;
  }
  const channels = data.patch.length, side = data.patch[0].length, wide = data.patch[0][0].length;
  const high = data.kernel[0].length, long = data.kernel[0][0].length;
  const element = (name, parent, properties = {}) => parent.appendChild(Object.assign(document.createElement(name), properties));
  const left = element("div", box), middle = element("div", box), right = element("div", box);
  const canvas = element("canvas", left, { width: wide * 10, height: side * 10 });
  const slider = (title, value, low, top) => {
    const label = element("label", left), shown = element("span", label);
    const input = element("input", label, { type: "range", min: low, max: top, value });
    const apply = () => { shown.textContent = `${title} ${input.value} `; draw(); };
    input.addEventListener("input", apply);
    return [input, apply];
  };
  let chosen = [0, 0], channel = 0;
  const sum = element("p", middle), select = element("select", middle, { ariaLabel: "channel" });
  for (let index = 0; index < channels; index++) element("option", select, { value: index, textContent: `channel ${index}` });
  const table = element("table", middle, { className: "numbers" });
  const output = element("canvas", right), size = element("p", right, { className: "note" });
  const at = (plane, row, column) => (row < 0 || column < 0 || row >= side || column >= wide ? 0 : plane[row][column]);
  const value = (row, column, products) => {
    let total = data.bias;
    for (let plane = 0; plane < channels; plane++)
      for (let r = 0; r < high; r++)
        for (let c = 0; c < long; c++) {
          const one = at(data.patch[plane], row + r, column + c) * data.kernel[plane][r][c];
          total += one;
          if (products) products[plane][r][c] = one;
        }
    return total;
  };
  const color = (number, top) => {
    const part = Math.max(-1, Math.min(1, number / top)), rest = Math.round(247 - 180 * Math.abs(part));
    return part < 0 ? `rgb(${rest},${rest},247)` : `rgb(247,${rest},${rest})`;
  };
  function draw() {
    const stride = Number(strideSlider[0].value), padding = Number(paddingSlider[0].value);
    const rows = Math.floor((side + 2 * padding - high) / stride) + 1, columns = Math.floor((wide + 2 * padding - long) / stride) + 1;
    const values = [];
    for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) values.push(value(row * stride - padding, column * stride - padding));
    const top = Math.max(...values.map(Math.abs), 1e-9);
    output.width = columns * 10;
    output.height = rows * 10;
    const paint = output.getContext("2d");
    values.forEach((number, index) => { paint.fillStyle = color(number, top); paint.fillRect(index % columns * 10, Math.floor(index / columns) * 10, 10, 10); });
    chosen = [Math.min(chosen[0], rows - 1), Math.min(chosen[1], columns - 1)];
    paint.strokeStyle = "#000";
    paint.strokeRect(chosen[1] * 10 + 0.5, chosen[0] * 10 + 0.5, 9, 9);
    size.textContent = `output ${rows} x ${columns} = floor((${side} + 2 x ${padding} - ${high}) / ${stride}) + 1`;
    const ink = canvas.getContext("2d");
    for (let row = 0; row < side; row++) for (let column = 0; column < wide; column++) {
      ink.fillStyle = `rgb(${data.pixels[row][column].join(",")})`;
      ink.fillRect(column * 10, row * 10, 10, 10);
    }
    const row = chosen[0] * stride - padding, column = chosen[1] * stride - padding;
    ink.strokeStyle = "#fff";
    ink.lineWidth = 2;
    ink.strokeRect(column * 10, row * 10, long * 10, high * 10);
    const products = data.kernel.map((plane) => plane.map((line) => line.slice()));
    const total = value(row, column, products), sums = products.map((plane) => plane.flat().reduce((a, b) => a + b, 0));
    sum.textContent = `kernel ${data.kernel_index} at output ${chosen[0]}, ${chosen[1]}: ` + sums.map((part) => part.toFixed(3)).join(" + ") + (data.bias ? ` + bias ${data.bias}` : "") + ` = ${total.toFixed(3)}`;
    box.dataset.value = total;
    table.replaceChildren();
    const largest = Math.max(...data.kernel[channel].flat().map(Math.abs), 1e-9);
    for (let r = 0; r < high; r++) {
      const line = element("tr", table);
      for (let c = 0; c < long; c++) {
        const weight = data.kernel[channel][r][c], pixel = at(data.patch[channel], row + r, column + c);
        const cell = element("td", line, { textContent: (pixel * weight).toFixed(2), title: `${pixel} x ${weight} = ${(pixel * weight).toFixed(4)}` });
        cell.style.background = color(weight, largest);
        cell.style.color = "#111";
      }
    }
  }
  const strideSlider = slider("stride", data.stride, 1, 4), paddingSlider = slider("padding", data.padding, 0, Math.max(3, high - 1));
  strideSlider[1]();
  paddingSlider[1]();
  select.addEventListener("change", () => { channel = Number(select.value); draw(); });
  const pick = (canvas, place) => canvas.addEventListener("pointermove", (event) => {
    const frame = canvas.getBoundingClientRect();
    chosen = place((event.clientY - frame.top) * canvas.height / frame.height / 10, (event.clientX - frame.left) * canvas.width / frame.width / 10).map((number) => Math.max(0, Math.floor(number)));
    draw();
  });
  pick(output, (row, column) => [row, column]);
  pick(canvas, (row, column) => [row, column].map((number, axis) => (number - (axis ? long : high) / 2 + 0.5 + Number(paddingSlider[0].value)) / Number(strideSlider[0].value)));
}

// The evolution: a frame per snapshot.
for (const player of document.querySelectorAll(".player")) {
  const frames = [...player.querySelectorAll("img")], range = player.querySelector("input"), button = player.querySelector("button");
  let timer = 0;
  const show = () => {
    frames.forEach((frame, index) => { frame.hidden = index !== Number(range.value); });
    player.querySelector(".text").textContent = frames[range.value].dataset.text;
  };
  const stop = () => { clearInterval(timer); timer = 0; button.textContent = "Play"; };
  range.addEventListener("input", () => { stop(); show(); });
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(range.value) === frames.length - 1) range.value = 0;
    button.textContent = "Pause";
    show();
    timer = setInterval(() => {
      if (Number(range.value) === frames.length - 1) return stop();
      range.value = Number(range.value) + 1;
      show();
    }, 300);
  });
  show();
}
