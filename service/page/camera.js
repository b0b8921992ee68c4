// A photograph: by the phone's own camera where there is one, else by the camera that the browser has.

const byPhone = matchMedia("(pointer: coarse)").matches;

export const possible = byPhone || Boolean(navigator.mediaDevices?.getUserMedia);

// dialog: with a video and buttons; field: the file input that opens a phone's camera; took(File), failed(sentence).
export async function photograph(dialog, field, took, failed) {
  if (byPhone) return field.click();
  const video = dialog.querySelector("video");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
  } catch (error) {
    return failed(
      error.name === "NotAllowedError"
        ? "The browser does not let this page use the camera; allow it in the address bar, or choose a file."
        : "No camera answers; choose a file in its place.",
    );
  }
  video.srcObject = stream;
  dialog.showModal();
  dialog.onclose = () => stream.getTracks().forEach((track) => track.stop());
  dialog.querySelector(".cancel").onclick = () => dialog.close();
  dialog.querySelector(".take").onclick = async () => {
    const sheet = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    sheet.getContext("2d").drawImage(video, 0, 0);
    const blob = await sheet.convertToBlob({ type: "image/jpeg", quality: 0.95 });
    dialog.close();
    took(new File([blob], "photo.jpg", { type: blob.type }));
  };
}
