
// --- videos and folders that are dropped in or chosen ---
const isMovie = file => file.type.startsWith("video/") || /\.(VIDEO_SUFFIXES)$/i.test(file.name);
const isPicture = name => /\.(jpe?g|png|bmp|webp|tiff?)$/i.test(name);
const byName = (a, b) => a.localeCompare(b, "en", {numeric: true});

class CannotPlay extends Error {}
async function framesOfMovie(file) {
  try { return await framesPlayed(file); } catch (error) {
    if (!(error instanceof CannotPlay)) throw error;
  }
  const answer = await answerTo("film", {name: file.name}, file, MAX_FILM_BYTES).catch(error => {
    throw new Error(error.message.startsWith(file.name) ? error.message :
      `${file.name}: ${error.message}`); });
  return unpacked(await answer.arrayBuffer()); // the server can read more kinds than browsers
}
async function framesPlayed(file) {
  const movie = element("video", {muted: true, preload: "auto", src: URL.createObjectURL(file)});
  const event = name => new Promise((done, fail) => {
    movie.addEventListener(name, done, {once: true});
    movie.onerror = () => fail(new CannotPlay()); });
  try {
    await event("loadeddata");
    if (!Number.isFinite(movie.duration)) throw new CannotPlay(); // a recording that does not tell
    if (movie.duration * RATE > MAX_FRAMES)
      throw new Error(`${file.name}: lasts longer than ${MAX_FRAMES / RATE} s; cut it first.`);
    if (!movie.videoWidth) throw new CannotPlay(); // only its sound
    const frames = [], count = Math.max(2, Math.round(movie.duration * RATE));
    for (let i = 0; i < count; i++) {
      const seeked = event("seeked");
      movie.currentTime = (i + 0.5) * movie.duration / count;
      await seeked;
      frames.push([i * PERIOD, await jpeg(movie, movie.videoWidth, movie.videoHeight)]);
    }
    return frames;
  } finally { URL.revokeObjectURL(movie.src); }
}
async function framesOfImages(files) {
  if (files.length > MAX_FRAMES) throw new Error(`A clip has at most ${MAX_FRAMES} frames, and ` +
    `the folder of ${files[0].name} has ${files.length}.`);
  const frames = [];
  for (const file of files) {
    const image = await createImageBitmap(file).catch(() => {
      throw new Error(`${file.name}: cannot be read as a picture.`); });
    frames.push([frames.length * PERIOD, await jpeg(image, image.width, image.height)]);
  }
  return frames;
}
const framesOf = files => isMovie(files[0]) && !(files.length > 1) ? framesOfMovie(files[0]) :
  framesOfImages(files);

async function* clipsIn(entry, name, others) { // a video, or the pictures of one folder
  if (entry.isFile) {
    const file = await new Promise((done, fail) => entry.file(done, fail));
    if (isMovie(file)) yield [name, [file]];
    else others.push(file.name);
    return;
  }
  const reader = entry.createReader(), inside = [], images = [];
  for (let some; (some = await new Promise((done, fail) => reader.readEntries(done, fail))).length;)
    inside.push(...some);
  inside.sort((a, b) => byName(a.name, b.name));
  for (const one of inside.filter(one => !one.name.startsWith("."))) {
    if (isPicture(one.name))
      images.push(await new Promise((done, fail) => one.file(done, fail)));
    else yield* clipsIn(one, entry.name, others);
  }
  if (images.length) yield [name, images];
}
function* clipsOfFolder(files, name, others) { // of a chosen folder: as `clipsIn` for a dropped one
  const folders = new Map(); // path -> pictures
  for (const file of files.sort((a, b) => byName(a.webkitRelativePath, b.webkitRelativePath))) {
    const parts = file.webkitRelativePath.split("/"), path = parts.slice(0, -1).join("/");
    if (parts.some(part => part.startsWith("."))) continue;
    if (isPicture(file.name)) folders.set(path, [...folders.get(path) ?? [], file]);
    else if (isMovie(file)) yield [parts.at(-2) ?? name, [file]];
    else others.push(file.name);
  }
  for (const [path, images] of folders) yield [path.split("/").at(-2) ?? name, images];
}
async function addClips(clips, others = []) {
  let count = 0;
  const problems = [];
  isBusy = true; show();
  try {
    for await (const [name, files] of clips) {
      notify(`Reading clip ${count + 1} …`, false, "drop-message");
      try {
        if (!name.trim()) throw new Error("Name the gesture first.");
        await ask("add", {name: spelling(name)}, packed(await framesOf(files)));
        count++;
      } catch (error) { problems.push(error.message); }
    }
  } finally { isBusy = false; await showClips(); }
  if (others.length) problems.push(`Ignored: ${plural(others.length, "file")} that ` +
    `${isAre(others.length)} not a video: ${summary(others)}.`);
  if (!count && !problems.length) problems.push("There is no video and no folder of pictures in it.");
  const sentence = text => /[.…]$/.test(text) ? text : `${text}.`;
  notify([`${plural(count, "clip")} ${isAre(count)} added.`, ...problems.map(sentence)].join(" "),
    problems.length > 0, "drop-message");
}
const typed = () => spelling($("name").value);
const pick = (id, action) => doing(async () => {
  const files = [...$(id).files];
  try { if (files.length) await action(files); } finally { $(id).value = ""; }
}, "drop-message");
$("files").onchange = pick("files", files => {
  const others = files.filter(file => !isMovie(file)).map(file => file.name);
  return addClips(files.filter(isMovie).map(file => [typed(), [file]]), others);
});
$("folder").onchange = pick("folder", files => {
  const others = [];
  return addClips(clipsOfFolder(files, typed(), others), others);
});
$("samples").onclick = doing(async () => {
  isBusy = true; show();
  notify("Drawing …", false, "drop-message");
  try {
    const {ids} = await ask("samples", {}, "");
    notify(`${plural(ids.length, "clip")} ${isAre(ids.length)} added; press Train.`, false,
      "drop-message");
  } finally { isBusy = false; await showClips(); }
}, "drop-message");

const zoneOf = event => event.target.closest?.("#try-drop") ?? $("drop");
const unmark = () => document.querySelectorAll(".over").forEach(one => one.classList.remove("over"));
ondragover = event => { event.preventDefault(); unmark(); zoneOf(event).classList.add("over"); };
ondragleave = unmark;
ondrop = async event => {
  event.preventDefault(); unmark();
  const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(Boolean);
  const others = [], name = typed();
  async function* all() { for (const entry of entries) yield* clipsIn(entry, name, others); }
  if (zoneOf(event).id === "drop") await doing(() => addClips(all(), others), "drop-message")();
  else await doing(async () => {
    for await (const [, files] of all()) return tryFilm(files);
    throw new Error("There is no video and no folder of pictures in it.");
  }, "try-message")();
};
