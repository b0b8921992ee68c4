// Takes a photo: with the phone's camera app on touch devices, otherwise with getUserMedia.

const hasCameraApp = matchMedia("(pointer: coarse)").matches;

export const isAvailable = hasCameraApp || Boolean(navigator.mediaDevices?.getUserMedia);

let awaitingPermission = false;

// dialog: holds a video and buttons; field: the file input that opens a phone's camera; onPhoto(File), onError(message).
export async function takePhoto(dialog, field, onPhoto, onError) {
  if (hasCameraApp) return field.click();
  if (awaitingPermission || dialog.open) return; // a second stream would never be stopped
  awaitingPermission = true;
  const video = dialog.querySelector("video"), shutter = dialog.querySelector(".shutter");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
  } catch (error) {
    return onError(
      error.name === "NotAllowedError"
        ? "The browser blocks the camera. Allow it in the address bar, or choose a file."
        : "No camera found. Connect one, or choose a file.",
    );
  } finally {
    awaitingPermission = false;
  }
  shutter.disabled = true; // until the first frame
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
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
    dialog.close();
    onPhoto(new File([blob], "photo.jpg", { type: blob.type }));
  };
}
