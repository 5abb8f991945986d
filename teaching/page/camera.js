
// --- the camera: pictures at most 120 pixels high, 12 per second, with their times in ms ---
function jpeg(source, width, height) {
  canvas.height = Math.min(HEIGHT, height); // never enlarged
  canvas.width = Math.max(1, Math.round(width * canvas.height / height));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return new Promise(done => canvas.toBlob(done, "image/jpeg", QUALITY));
}
function onFrame(now, about) {
  video.requestVideoFrameCallback(onFrame);
  const time = about.captureTime ?? now, isUseful = training.state === "running" || training.has_network;
  const receiver = taker ?? (isUseful && !document.hidden ? keepLatest : null);
  if (!receiver || (next !== null && time < next - 8)) return;
  // After a gap there are fewer pictures; more would make the movement faster.
  next = next === null ? time + PERIOD : Math.max(next + PERIOD, time + PERIOD / 2);
  receiver(time, jpeg(video, video.videoWidth, video.videoHeight));
}
const take = receiver => { taker = receiver; next = null; latest = []; };
// While nothing else takes them, the latest 3 seconds are kept in the browser: “Start” then has a
// verdict at once, for example when a training ends.
const lastSeconds = frames => frames.filter(([time]) => frames.at(-1)[0] - time < LIVE + PERIOD);
const keepLatest = (...frame) => { latest = lastSeconds([...latest, frame]); };
const WHY = {NotAllowedError: "it was refused; allow it in the address bar", NotFoundError:
  "none was found; connect one", NotReadableError: "another program uses it; close that"};
async function openCamera() {
  const lacks = [["navigator.mediaDevices", navigator.mediaDevices], ["requestVideoFrameCallback",
    video.requestVideoFrameCallback], ["canvas.toBlob", canvas.toBlob]].filter(([, has]) => !has);
  if (lacks.length) return notify(`This browser lacks ${lacks[0][0]}; use a current Chrome, Edge, ` +
    "Firefox or Safari.", true);
  const waiting = setTimeout(() => notify("Waiting for the camera: allow it in the address bar, " +
    "and keep this tab in front."), 5000);
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia(
      {video: {width: {ideal: 640}, height: {ideal: 480}}, audio: false});
    await video.play();
    if ($("message").textContent.startsWith("Waiting")) notify("");
  } catch (error) { return notify(`No camera: ${WHY[error.name] ?? error.message}, then reload ` +
    "the page. Videos, folders and samples work without one.", true); }
  finally { clearTimeout(waiting); }
  video.srcObject.getVideoTracks()[0].onended = cameraIsGone;
  video.requestVideoFrameCallback(onFrame);
  document.body.dataset.ready = "camera";
  show();
}
function cameraIsGone() {
  document.body.dataset.ready = "";
  recording?.abort(new Error("Not saved: the camera was disconnected; reload the page."));
  if (session) stopTrying();
  show();
  notify("The camera was disconnected; reload the page.", true);
}
