// A photograph: by the phone's own camera where there is one, else by the camera that the browser has.

const byPhone = matchMedia("(pointer: coarse)").matches;

export const possible = byPhone || Boolean(navigator.mediaDevices?.getUserMedia);

let waiting = false; // for the person's leave

// dialog: with a video and buttons; field: the file input that opens a phone's camera; took(File), failed(sentence).
export async function photograph(dialog, field, took, failed) {
  if (byPhone) return field.click();
  if (waiting || dialog.open) return; // another stream's light would not go out
  waiting = true;
  const video = dialog.querySelector("video"), shutter = dialog.querySelector(".take");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
  } catch (error) {
    return failed(
      error.name === "NotAllowedError"
        ? "The browser does not let this page use the camera; allow it in the address bar, or choose a file."
        : "No camera answers; choose a file in its place.",
    );
  } finally {
    waiting = false;
  }
  shutter.disabled = true; // until there is something to take
  video.onloadedmetadata = () => {
    shutter.disabled = false;
    shutter.focus();
  };
  video.srcObject = stream;
  dialog.showModal();
  dialog.onclose = () => stream.getTracks().forEach((track) => track.stop());
  dialog.querySelector(".cancel").onclick = () => dialog.close();
  shutter.onclick = async () => {
    shutter.disabled = true;
    const sheet = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    sheet.getContext("2d").drawImage(video, 0, 0);
    const blob = await sheet.convertToBlob({ type: "image/jpeg", quality: 0.95 });
    dialog.close();
    took(new File([blob], "photo.jpg", { type: blob.type }));
  };
}
