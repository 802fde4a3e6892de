// The search page. All that comes from the data set is set as text or as an attribute, never as HTML.

const NAMES = { image: "Pictures", text: "Texts", audio: "Sounds" };
const READ = /^(image\/(jpeg|png|webp|gif|tiff|bmp|avif)|audio\/(x-)?(wav|wave|vnd\.wave|flac|ogg|mpeg|mp3|aiff))$/;
const PARTS = ["text", "image", "audio", "id", "without"];
const USUAL_K = "12";
const LONGEST_RECORDING = 30; // seconds
const LARGEST_SIDE = 2048; // pixels of a picture that the browser has to change before it is sent
const CONTEXT = 240; // characters around a chunk that are shown

const $ = (id) => document.getElementById(id);
const query = { text: "", without: "", id: "", to: "any", k: USUAL_K, filter: "", fold: true, all: false, weights: {} };
const files = { image: null, audio: null };
const kept = new Map(); // files of earlier entries of the history, by their number
let info = null;
let running = null; // the search that is under way
let explaining = null;
let before = null; // what had the focus before the panel opened

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const plural = (count, name) => `${count.toLocaleString("en")} ${count === 1 ? name : `${name}s`}`;

async function get(address, options = {}) {
  const response = await fetch(address, { credentials: "same-origin", ...options });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Error(problem.detail || `the server answered ${response.status}`);
}

function say(message, bad = false) {
  $("status").textContent = message;
  $("status").classList.toggle("bad", bad);
}

// The query, the address and the form

function readAddress() {
  const given = new URLSearchParams(location.search);
  for (const name of ["text", "without", "id", "filter"]) query[name] = given.get(name) || "";
  query.to = given.get("to") || "any";
  query.k = given.get("k") || USUAL_K;
  query.fold = given.get("fold") !== "false";
  query.all = given.get("segments") === "all";
  query.weights = {};
  for (const part of PARTS) if (given.has(`${part}_weight`)) query.weights[part] = given.get(`${part}_weight`);
  const held = kept.get(history.state?.files);
  files.image = held?.image || null;
  files.audio = held?.audio || null;
  return Boolean(history.state?.files) && !held;
}

function writeAddress() {
  const params = new URLSearchParams();
  for (const name of ["text", "without", "id", "filter"]) if (query[name]) params.set(name, query[name]);
  if (query.to !== "any") params.set("to", query.to);
  if (query.k !== USUAL_K) params.set("k", query.k);
  if (!query.fold) params.set("fold", "false");
  if (query.all) params.set("segments", "all");
  for (const [part, weight] of Object.entries(query.weights)) if (weight !== "1") params.set(`${part}_weight`, weight);
  const address = `/${params.size ? `?${params}` : ""}`;
  const same = kept.get(history.state?.files);
  const sameFiles = (same?.image || null) === files.image && (same?.audio || null) === files.audio;
  if (address === location.pathname + location.search && sameFiles) return;
  const number = files.image || files.audio ? kept.size + 1 : 0;
  if (number) kept.set(number, { ...files });
  history.pushState({ files: number }, "", address);
}

function showForm() {
  for (const name of ["text", "without", "filter", "k"]) $(name).value = query[name];
  $("fold").checked = query.fold;
  $("all").checked = query.all;
  for (const input of $("targets").querySelectorAll("input")) input.checked = input.value === query.to;
  if (query.filter || query.without || query.all) openOptions(true);
  document.title = query.text || query.id ? `${query.text || query.id} · ${info.name}` : info.name;
  showChips();
  showWeights();
}

function readForm() {
  for (const name of ["text", "without", "filter", "k"]) query[name] = $(name).value.trim();
  query.fold = $("fold").checked;
  query.all = $("all").checked;
  query.to = $("targets").querySelector(":checked")?.value || "any";
}

const given = () => PARTS.filter((part) => query[part] || files[part]);

function form() {
  const data = new FormData();
  for (const part of given()) {
    data.set(part, files[part] || query[part]);
    if (query.weights[part]) data.set(`${part}_weight`, query.weights[part]);
  }
  return data;
}

function showChips() {
  const chips = [];
  const remove = (name, drop) =>
    make("button", { type: "button", class: "icon", "aria-label": `Without ${name}`, onclick: () => { drop(); submit(); } }, cross());
  if (files.image) {
    const picture = make("img", { src: URL.createObjectURL(files.image), alt: "" });
    chips.push(make("span", { class: "chip" }, picture, make("span", {}, files.image.name), remove("the picture", () => { files.image = null; })));
  }
  if (files.audio) {
    const sound = make("audio", { src: URL.createObjectURL(files.audio), controls: true, "aria-label": files.audio.name });
    chips.push(make("span", { class: "chip" }, sound, remove("the sound", () => { files.audio = null; })));
  }
  if (query.id) {
    const chip = make("span", { class: "chip" });
    if (info.targets.includes("image")) {
      const picture = make("img", { src: `/thumbnail/image/${encodeURIComponent(query.id)}`, alt: "" });
      picture.addEventListener("error", () => picture.remove());
      chip.append(picture);
    }
    chip.append(make("span", {}, `like ${query.id}`), remove("the record", () => { query.id = ""; }));
    chips.push(chip);
  }
  $("chips").replaceChildren(...chips);
}

function cross() {
  const svg = $("why-close").querySelector("svg").cloneNode(true);
  return svg;
}

function showWeights() {
  const parts = given();
  const called = { text: "the text", image: "the picture", audio: "the sound", id: "the record", without: "less of" };
  const rows = parts.length < 2 ? [] : parts.map((part) => {
    const shown = make("output", {}, Number(query.weights[part] || 1).toFixed(1));
    const slide = make("input", { type: "range", min: "0", max: "2", step: "0.1", value: query.weights[part] || "1", "aria-label": `How much ${called[part]} counts` });
    slide.addEventListener("input", () => { query.weights[part] = slide.value; shown.textContent = Number(slide.value).toFixed(1); });
    slide.addEventListener("change", () => submit(false));
    return make("label", { class: "field wide" }, make("span", {}, called[part]), slide, shown);
  });
  $("weights").replaceChildren(...rows);
}

function openOptions(open) {
  $("more").hidden = !open;
  $("more-button").setAttribute("aria-expanded", String(open));
}

function showHints(chosen = null) {
  const value = (key, example) => (typeof example === "number" ? `${column(key)} = ${example}` : `${column(key)} = '${String(example).replaceAll("'", "''")}'`);
  const column = (key) => (/^[A-Za-z_]\w*$/.test(key) ? key : `"${key.replaceAll('"', '""')}"`);
  const add = (text) => {
    const filter = $("filter");
    filter.value = filter.value.trim() ? `${filter.value.trim()} and ${text}` : text;
    filter.focus();
  };
  const hints = info.keys.flatMap((key) => {
    const open = key.name === chosen;
    const pressed = () => (key.examples.length ? showHints(open ? null : key.name) : add(`${column(key.name)} = `));
    const button = make("button", { type: "button", class: "hint", title: key.kind, "aria-expanded": String(open), onclick: pressed }, key.name);
    if (!open) return [button];
    return [button, ...key.examples.map((example) => make("button", { type: "button", class: "hint value", onclick: () => { add(value(key.name, example)); submit(); } }, String(example)))];
  });
  $("hints").replaceChildren(...hints);
}

function submit(read = true) {
  if (read) readForm();
  writeAddress();
  showForm();
  search();
}

// Searching

async function search() {
  running?.abort();
  closeWhy();
  if (!given().length) {
    say("");
    $("results").classList.remove("busy");
    welcome();
    return;
  }
  const control = (running = new AbortController());
  const targets = query.to === "any" ? info.targets : [query.to];
  $("results").classList.add("busy");
  say("Searching …");
  try {
    const answers = await Promise.all(targets.map((to) => ask(to, control.signal)));
    const found = answers.reduce((sum, answer) => sum + answer.hits.length, 0);
    const most = Math.max(...answers.map((answer) => answer.milliseconds));
    $("results").replaceChildren(...order(targets).map((to) => section(to, answers[targets.indexOf(to)].hits)).filter(Boolean));
    say(found ? `${plural(found, "answer")} in ${most < 10 ? most.toFixed(1) : Math.round(most)} ms` : "Nothing was found: loosen the condition under Options.");
    scrollTo({ top: 0 });
  } catch (error) {
    if (error.name === "AbortError") return;
    say(error.message, true);
  }
  if (running === control) $("results").classList.remove("busy");
}

const order = (targets) => ["image", "text", "audio"].filter((name) => targets.includes(name));

async function ask(to, signal) {
  const data = form();
  const options = { to, k: query.k, filter: query.filter, fold: String(query.fold), segments: query.all ? "all" : "best" };
  for (const [name, value] of Object.entries(options)) if (value) data.set(name, value);
  const plain = !files.image && !files.audio;
  const response = plain ? await get(`/api/search?${new URLSearchParams(data)}`, { signal }) : await get("/api/search", { method: "POST", body: data, signal });
  return response.json();
}

function welcome() {
  const way = { text: "type a sentence", image: "drop or paste a picture", audio: "record a sound" };
  const ways = Object.keys(way).filter((name) => info.askable.includes(name)).map((name) => way[name]);
  const intro = make("div", { class: "welcome" }, make("p", {}, `${capital(ways.join(", "))}, or begin with something that is there:`));
  const starts = order(info.targets).map((modality) => {
    const buttons = info.samples.filter((sample) => sample.modality === modality).slice(0, modality === "text" ? 6 : 12).map((sample) => {
      const button = make("button", { type: "button", onclick: () => like(sample.id), title: sample.id });
      if (modality === "text") button.append(make("span", {}, sample.media));
      else {
        const picture = make("img", { src: `/thumbnail/${modality}/${encodeURIComponent(sample.id)}?name=${encodeURIComponent(sample.media)}`, alt: `Begin with ${sample.id}`, loading: "lazy" });
        picture.addEventListener("error", () => picture.replaceWith(make("span", {}, sample.id)));
        button.append(picture);
      }
      return button;
    });
    return buttons.length ? make("section", {}, make("h2", {}, NAMES[modality]), make("div", { class: `starts ${modality}` }, ...buttons)) : "";
  });
  $("results").replaceChildren(intro, ...starts);
}

const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);

// Results

function section(modality, hits) {
  if (!hits.length) return null;
  const best = Math.max(...hits.map((hit) => hit.score), 1e-9);
  const scale = Math.max(best, best <= 1 ? 1 : 0);
  const head = make("h2", {}, NAMES[modality] || modality, make("small", {}, String(hits.length)));
  return make("section", {}, head, make("div", { class: `cards ${modality}` }, ...hits.map((hit) => card(hit, scale))));
}

function card(hit, scale) {
  const label = `${hit.rank}: ${hit.modality === "text" ? hit.media.slice(0, 120) : hit.id}, score ${hit.score.toFixed(3)}`;
  const element = make("article", { class: `card ${hit.modality}`, tabindex: "0", "aria-label": label });
  element.hit = hit;
  element.append(...({ image: picture, text: words, audio: sound })[hit.modality](hit), about(hit, scale));
  return element;
}

function picture(hit) {
  const image = make("img", { src: hit.thumbnail_url, alt: hit.media, loading: "lazy" });
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "gone" }, "can't be shown")));
  return [make("button", { type: "button", class: "show", tabindex: "-1", title: "More like this", onclick: () => like(hit.id) }, image)];
}

function words(hit) {
  const text = make("button", { type: "button", class: "words", tabindex: "-1", title: "More like this", onclick: () => like(hit.id) }, hit.media);
  if (info.chunked) whole(hit, text);
  return [text];
}

async function whole(hit, element) {
  const text = await get(hit.media_url).then((response) => response.text()).catch(() => "");
  const signs = [...text]; // spans count characters, strings of a browser their halves too
  const [start, end] = hit.span;
  if (!text || (start <= 0 && end >= signs.length)) return;
  const head = (start > CONTEXT ? "… " : "") + signs.slice(Math.max(0, start - CONTEXT), start).join("");
  const tail = signs.slice(end, end + CONTEXT).join("") + (end + CONTEXT < signs.length ? " …" : "");
  const mark = make("mark", {}, signs.slice(start, end).join(""));
  element.replaceChildren(head, mark, tail);
  element.scrollTop = Math.max(0, mark.offsetTop - element.offsetTop - 60);
}

function sound(hit) {
  const [start, end] = hit.span;
  const image = make("img", { src: hit.thumbnail_url, alt: "", loading: "lazy" });
  image.addEventListener("error", () => image.remove());
  const show = make("button", { type: "button", class: "show", tabindex: "-1", title: "More like this", onclick: () => like(hit.id) }, image);
  const player = make("audio", { src: hit.media_url, controls: true, preload: "metadata", "aria-label": hit.media });
  player.addEventListener("loadedmetadata", () => {
    const length = player.duration;
    if (!Number.isFinite(length) || end - start > 0.9 * length) return;
    const span = make("i", { class: "span", title: `${start.toFixed(1)} to ${end.toFixed(1)} s` });
    const room = 0.8 * 16; // the padding beside the picture
    span.style.left = `calc(${room}px + (100% - ${2 * room}px) * ${start / length})`;
    span.style.width = `calc((100% - ${2 * room}px) * ${(end - start) / length})`;
    show.append(span);
    player.currentTime = start;
  });
  player.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== player) other.pause();
  });
  return [show, player];
}

function about(hit, scale) {
  const bar = make("b");
  bar.style.width = `${Math.max(0, Math.min(1, hit.score / scale)) * 100}%`;
  const tags = Object.entries(hit.metadata).map(([key, value]) => {
    const shown = typeof value === "object" ? JSON.stringify(value) : String(value);
    return make("li", { title: `${key}: ${shown}` }, typeof value === "string" ? shown : `${key} ${shown}`);
  });
  const more = tags.length > 6 ? [make("li", { title: Object.keys(hit.metadata).slice(6).join(", ") }, `+${tags.length - 6}`)] : [];
  const twins = hit.twins.length ? [make("li", { class: "twins", title: hit.twins.join("\n") }, `and ${plural(hit.twins.length, "near duplicate")}`)] : [];
  const acts = make(
    "div",
    { class: "acts" },
    make("button", { type: "button", onclick: () => like(hit.id) }, "More like this"),
    make("button", { type: "button", onclick: () => why(hit) }, "Why?"),
    make("a", { href: hit.media_url, target: "_blank", rel: "noopener", title: "Open it as it is", "aria-label": "Open it as it is" }, "↗"),
  );
  return make(
    "div",
    { class: "about" },
    make("div", { class: "score", title: "Score" }, make("span", {}, hit.score.toFixed(3)), make("i", {}, bar)),
    make("div", { class: "id", title: hit.id }, hit.id),
    make("ul", { class: "tags" }, ...tags.slice(0, 6), ...more, ...twins),
    acts,
  );
}

function like(id) {
  Object.assign(query, { text: "", without: "", id, weights: {} });
  Object.assign(files, { image: null, audio: null });
  submit(false);
  $("results").focus({ preventScroll: true });
}

// Why this match

async function why(hit) {
  explaining?.abort();
  const control = (explaining = new AbortController());
  before = document.activeElement;
  $("why").hidden = false;
  $("why-body").replaceChildren(make("p", {}, make("span", { class: "spin" }), "Parts of both are masked, one after the other …"));
  $("why").focus();
  const data = form();
  data.set("record", hit.id);
  data.set("to", hit.modality);
  try {
    const { matches } = await (await get("/api/explain", { method: "POST", body: data, signal: control.signal })).json();
    $("why-body").replaceChildren(...matches.flatMap((match) => explained(match, matches.length > 1)), legend());
  } catch (error) {
    if (error.name !== "AbortError") $("why-body").replaceChildren(make("p", { class: "status bad" }, error.message));
  }
}

function closeWhy() {
  explaining?.abort();
  if ($("why").hidden) return;
  $("why").hidden = true;
  if (before?.isConnected) before.focus();
}

function explained(match, several) {
  const called = { text: "Your text", image: "Your picture", audio: "Your sound", id: `The record ${query.id}`, without: "What you don't want" };
  const score = several ? `, weighs ${match.weight.toFixed(1)}` : "";
  return [
    make("h3", {}, `${called[match.part]}${score}: ${match.score.toFixed(3)}`),
    ...side(match.query),
    make("h3", {}, match.record.what),
    ...side(match.record),
  ];
}

function side({ modality, parts, rest, content }) {
  const most = Math.max(...parts.map((part) => Math.abs(part.adds)), 1e-9);
  const sum = parts.reduce((total, part) => total + part.adds, 0);
  const shown = { text: shadedText, image: shadedPicture, audio: shadedSound }[modality](parts, most, content);
  return [...shown, make("p", { class: "sum" }, `Its parts add ${signed(sum)}, without them it scores ${signed(rest)}`)];
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
const tint = (adds, most, strongest) => `rgba(var(--${adds < 0 ? "lower" : "raise"}), ${((strongest * Math.abs(adds)) / most).toFixed(3)})`;

function shadedText(parts, most, { text }) {
  const signs = [...text];
  const line = make("p", { class: "shaded" });
  line.style.color = "var(--ink)";
  let place = 0;
  for (const part of parts) {
    line.append(signs.slice(place, part.span[0]).join(""));
    const word = make("span", { title: signed(part.adds) }, signs.slice(part.span[0], part.span[1]).join(""));
    word.style.background = tint(part.adds, most, 0.6);
    line.append(word);
    place = part.span[1];
  }
  line.append(signs.slice(place).join(""));
  if (parts.length > 12) return [line];
  const bars = parts.flatMap((part) => {
    const bar = make("i");
    bar.style.width = `${(100 * Math.abs(part.adds)) / most}%`;
    bar.style.background = tint(part.adds, Math.abs(part.adds) || 1, 0.9);
    return [make("span", {}, part.label), make("span", {}, signed(part.adds)), make("span", {}, bar)];
  });
  for (const cell of bars) if (cell.firstElementChild) cell.firstElementChild.style.display = "block";
  return [line, make("div", { class: "bars" }, ...bars)];
}

function shadedPicture(parts, most, { picture, width, height }) {
  const frame = make("div", { class: "picture" }, make("img", { src: picture, alt: "What the encoder saw, its cells tinted" }));
  for (const part of parts) {
    const [left, top, right, bottom] = part.span;
    const cell = make("i", { title: signed(part.adds) });
    cell.style.left = `${(100 * left) / width}%`;
    cell.style.top = `${(100 * top) / height}%`;
    cell.style.width = `${(100 * (right - left)) / width}%`;
    cell.style.height = `${(100 * (bottom - top)) / height}%`;
    cell.style.background = tint(part.adds, most, 0.75);
    frame.append(cell);
  }
  return [frame];
}

function shadedSound(parts, most, { peaks, seconds }) {
  const wave = make("div", { class: "sound", "aria-hidden": "true" }, ...peaks.map((peak) => {
    const bar = make("i");
    bar.style.height = `${100 * peak}%`;
    return bar;
  }));
  const over = make("div", { class: "over", role: "img", "aria-label": "What each stretch of time adds" }, ...parts.map((part) => {
    const [start, end] = part.span;
    const bar = make("i", { title: `${start.toFixed(1)} to ${end.toFixed(1)} s: ${signed(part.adds)}` });
    bar.style.left = `${(100 * start) / seconds}%`;
    bar.style.width = `calc(${(100 * (end - start)) / seconds}% - 1px)`;
    bar.style.height = `${(50 * Math.abs(part.adds)) / most}%`;
    bar.style[part.adds < 0 ? "top" : "bottom"] = "50%";
    bar.style.background = tint(part.adds, 1, 1 / (Math.abs(part.adds) || 1));
    return bar;
  }));
  return [wave, over, make("div", { class: "ticks" }, make("span", {}, "0 s"), make("span", {}, `${seconds.toFixed(1)} s`))];
}

function legend() {
  const entry = (name, text) => {
    const colour = make("i");
    colour.style.background = `rgb(var(--${name}))`;
    return make("span", {}, colour, text);
  };
  return make("div", { class: "legend" }, entry("raise", "raises the score"), entry("lower", "lowers it"));
}

// Files and recordings

async function take(file) {
  if (!file) return;
  const name = file.name || "";
  const kind = file.type.split("/")[0] || (/\.(wav|flac|ogg|oga|opus|mp3|aiff?|m4a)$/i.test(name) ? "audio" : "image");
  const part = kind === "video" ? "audio" : kind; // a recorder calls its sound a video now and then
  if (!info.askable.includes(part)) {
    say(`This data set can't be asked with ${{ image: "pictures", audio: "sounds" }[part] || "such files"}.`, true);
    return;
  }
  try {
    files[part] = await readable(file, part);
  } catch {
    say(`${name || "The file"} can't be read.`, true);
    return;
  }
  query.id = "";
  submit();
}

// What the server doesn't read, or is too large for it, the browser may read for it.
async function readable(file, part) {
  const fits = file.size <= info.max_upload;
  if (fits && (READ.test(file.type) || !file.type)) return file;
  return part === "image" ? redrawn(file) : resounded(file);
}

async function redrawn(file) {
  const image = make("img", { src: URL.createObjectURL(file) });
  await image.decode();
  const scale = Math.min(1, LARGEST_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = make("canvas", { width: Math.round(image.naturalWidth * scale) || 512, height: Math.round(image.naturalHeight * scale) || 512 });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  return new File([blob], file.name, { type: "image/png" });
}

async function resounded(file) {
  const context = new OfflineAudioContext(1, 1, 16000);
  const decoded = await context.decodeAudioData(await file.arrayBuffer());
  return wav([decoded.getChannelData(0)], decoded.sampleRate, file.name);
}

// Mono PCM of 16 bits as a WAV file.
function wav(blocks, rate, name) {
  const count = blocks.reduce((sum, block) => sum + block.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const write = (place, letters) => [...letters].forEach((letter, i) => view.setUint8(place + i, letter.charCodeAt(0)));
  write(0, "RIFF");
  view.setUint32(4, 36 + 2 * count, true);
  write(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  write(36, "data");
  view.setUint32(40, 2 * count, true);
  let place = 44;
  for (const block of blocks) for (const sample of block) {
    view.setInt16(place, Math.max(-1, Math.min(1, sample)) * 0x7fff, true);
    place += 2;
  }
  return new File([view], name, { type: "audio/wav" });
}

let recorder = null;

async function record() {
  if (recorder) {
    recorder.stop();
    return;
  }
  let stream, context, givenUp = false;
  const giveUp = () => { givenUp = true; };
  recorder = { stop: giveUp, cancel: giveUp };  // while the browser asks: a second press opens no second microphone
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
    context = new AudioContext();
    await context.audioWorklet.addModule("/static/recorder.js");
  } catch {
    say("The browser gives no microphone: allow it for this page, or choose a file.", true);
    givenUp = true;
  }
  if (givenUp) {
    recorder = null;
    stream?.getTracks().forEach((track) => track.stop());
    context?.close();
    return;
  }
  const node = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
  context.createMediaStreamSource(stream).connect(node);
  const blocks = [];
  let count = 0;
  const end = (use) => {
    node.port.onmessage = null;
    stream.getTracks().forEach((track) => track.stop());
    context.close();
    recorder = null;
    showRecording(false);
    if (use && count) take(wav(blocks, context.sampleRate, "recording.wav"));
  };
  node.port.onmessage = ({ data }) => {
    blocks.push(data);
    count += data.length;
    const loud = Math.sqrt(data.reduce((sum, sample) => sum + sample * sample, 0) / data.length);
    $("level").value = Math.max(loud * 3, 0.9 * $("level").value);
    $("clock").textContent = `${(count / context.sampleRate).toFixed(1)} s`;
    if (count > LONGEST_RECORDING * context.sampleRate) end(true);
  };
  recorder = { stop: () => end(true), cancel: () => end(false) };
  showRecording(true);
}

function showRecording(on) {
  $("recording").hidden = !on;
  $("record").setAttribute("aria-pressed", String(on));
  $("record").setAttribute("aria-label", on ? "Stop recording" : "Record a sound");
  $("level").value = 0;
  $("clock").textContent = "0.0 s";
  if (on) $("stop").focus();
}

// Keys

const cards = () => [...document.querySelectorAll(".card")];

function move(from, key) {
  const all = cards();
  const place = all.indexOf(from);
  if (key === "ArrowRight" || key === "ArrowLeft") return all[place + (key === "ArrowRight" ? 1 : -1)];
  const down = key === "ArrowDown";
  const box = from.getBoundingClientRect();
  const middle = box.left + box.width / 2;
  const rows = all
    .map((card) => ({ card, box: card.getBoundingClientRect() }))
    .filter((other) => (down ? other.box.top >= box.bottom - 1 : other.box.bottom <= box.top + 1));
  const distance = (other) => Math.abs(other.box.top - box.top) * 10 + Math.abs(other.box.left + other.box.width / 2 - middle);
  return rows.sort((a, b) => distance(a) - distance(b))[0]?.card;
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const { key, target } = event;
  if (key === "Escape") {
    if (recorder) recorder.cancel();
    else if (!$("why").hidden) closeWhy();
    else document.activeElement?.blur();
    return;
  }
  const typing = target.matches("input:not([type=checkbox], [type=radio], [type=range]), select, textarea");
  const at = target.closest?.(".card");
  if (typing) {
    if (key === "ArrowDown" && target.id === "text") focus(cards()[0], event);
  } else if (key === "/") focus($("text"), event, true);
  else if (key === "?") $("keys").showModal();
  else if (/^Arrow/.test(key) && !target.matches("input, audio, [role=dialog]")) focus(at ? move(at, key) : key === "ArrowDown" && cards()[0], event);
  else if (at && key === "w") why(at.hit);
  else if (at && key === "o") at.querySelector(".acts a").click();
  else if (at === target && key === "Enter") like(at.hit.id);
  else if (at === target && key === " ") {
    const player = at.querySelector("audio");
    if (player) (player.paused ? player.play() : player.pause(), event.preventDefault());
  }
}

function focus(element, event, select = false) {
  if (!element) return;
  event.preventDefault();
  element.focus();
  element.scrollIntoView({ block: "nearest" });
  if (select) element.select();
}

// Start

function showTargets() {
  const target = (value, name) => {
    const input = make("input", { type: "radio", name: "to", value });
    input.addEventListener("change", () => submit());
    return make("label", {}, input, name);
  };
  const known = order(info.targets);
  const all = known.length > 1 ? [target("any", "Everything")] : [];
  $("targets").append(...all, ...known.map((name) => target(name, NAMES[name])));
  if (known.length === 1 && query.to === "any") query.to = known[0];
}

function listen() {
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  $("pick").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => { take($("file").files[0]); $("file").value = ""; });
  $("record").addEventListener("click", record);
  $("stop").addEventListener("click", () => recorder?.stop());
  $("more-button").addEventListener("click", () => openOptions($("more").hidden));
  for (const name of ["fold", "all", "k"]) $(name).addEventListener("change", () => submit());
  $("why-close").addEventListener("click", closeWhy);
  $("keys-button").addEventListener("click", () => $("keys").showModal());
  $("home").addEventListener("click", (event) => { event.preventDefault(); history.pushState({}, "", "/"); restore(); });
  addEventListener("keydown", pressed);
  addEventListener("popstate", restore);
  addEventListener("paste", (event) => { if (event.clipboardData.files.length) { event.preventDefault(); take(event.clipboardData.files[0]); } });
  let depth = 0; // elements below the pointer while something is dragged
  const dragging = (on) => $("drop").classList.toggle("dragging", on);
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => { if (isFile(event)) { depth += 1; dragging(true); } });
  addEventListener("dragleave", (event) => { if (isFile(event)) { depth -= 1; dragging(depth > 0); } });
  addEventListener("dragover", (event) => { if (isFile(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    depth = 0;
    dragging(false);
    for (const file of [...event.dataTransfer.files].slice(0, 2)) take(file);
  });
}

function restore() {
  const lost = readAddress();
  showForm();
  search();
  if (lost && !given().length) say("The picture or the sound is not kept when a page is loaded again: drop it once more.", true);
}

async function start() {
  const given = new URLSearchParams(location.search);
  if (given.has("token")) { // it is in a cookie now, and no address bar needs to show it
    given.delete("token");
    history.replaceState({}, "", `/${given.size ? `?${given}` : ""}`);
  }
  try {
    info = await (await get("/api/info")).json();
  } catch (error) {
    say(error.message, true);
    return;
  }
  $("name").textContent = info.name;
  $("facts").textContent = [plural(info.records, "record"), ...order(info.targets).map((name) => plural(info.rows[name], { image: "picture", text: "text", audio: "sound" }[name]))].join(" · ");
  if (!info.askable.includes("text")) $("text").placeholder = "Drop a picture or a sound";
  $("pick").disabled = !info.askable.includes("image") && !info.askable.includes("audio");
  if (!navigator.mediaDevices || !info.askable.includes("audio")) {
    $("record").disabled = true;
    $("record").title = info.askable.includes("audio") ? "Browsers record on https or on this machine only" : "This data set can't be asked with sounds";
  }
  showTargets();
  showHints();
  listen();
  restore();
}

start();
