"use strict";
// Sends the sound and the ways that the controls name, and shows the answer. The newest request wins.

const at = (id) => document.getElementById(id);
let about, sound, recorder, asking;

async function start() {
  about = await (await fetch("/about")).json();
  document.title = `jaxprune: ${about.name}`;
  at("name").textContent = about.name;
  add();
  say("");
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").className = wrong ? "wrong" : "";
}

function add() {
  const way = at("way").content.cloneNode(true).firstElementChild;
  const [method, rate, shown] = ["select", "input", "output"].map((name) => way.querySelector(name));
  const taken = [...document.querySelectorAll(".way select")].map((other) => other.value);
  for (const name of about.methods) method.add(new Option(name));
  method.value = about.methods.find((name) => !taken.includes(name)) ?? about.methods[0];
  rate.value = about.keep_rate;
  const show = () => { shown.textContent = Number(rate.value).toFixed(2); };
  rate.addEventListener("input", show);
  for (const control of [method, rate]) control.addEventListener("change", ask);
  way.querySelector(".remove").addEventListener("click", () => { way.remove(); limit(); ask(); });
  show();
  at("ways").append(way);
  limit();
  ask();
}

function limit() {
  at("add").disabled = document.querySelectorAll(".way").length >= about.most;
}

function take(blob, name) {
  if (blob.size > about.megabytes * 1e6) {
    say(`The sound has ${(blob.size / 1e6).toFixed(1)} MB; at most ${about.megabytes} MB are taken.`, true);
    return;
  }
  sound = { blob, name };
  if (at("player").src) URL.revokeObjectURL(at("player").src);
  at("player").src = URL.createObjectURL(blob);
  at("player").hidden = false;
  at("window").value = 0;
  ask();
}

async function ask() {
  if (!sound) return;
  asking?.abort();
  const mine = asking = new AbortController();
  const query = new URLSearchParams({ name: sound.name, window: at("window").value });
  for (const way of document.querySelectorAll(".way")) {
    query.append("way", `${way.querySelector("select").value}:${way.querySelector("input").value}`);
  }
  say("Listening. A new keep rate takes a moment, once.");
  at("answer").className = "waiting";
  let told;
  try {
    const answer = await fetch(`/compare?${query}`, { method: "POST", body: sound.blob, signal: mine.signal });
    told = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") return;
    told = { error: "The program behind this page does not answer. Is it still running?" };
  }
  if (mine !== asking) return;
  at("answer").className = "";
  if (told.error) {
    at("answer").replaceChildren();
    at("where").hidden = true;
    say(told.error, true);
    return;
  }
  at("answer").innerHTML = told.html; // ours: every text in it is escaped
  at("window").max = told.windows - 1;
  at("where").hidden = told.windows === 1;
  at("from").textContent = told.start.toFixed(2);
  say("");
}

async function record() {
  if (recorder) {
    recorder.stop();
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    say(`The microphone cannot be used: ${error.message}`, true);
    return;
  }
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", async () => {
    for (const track of stream.getTracks()) track.stop();
    recorder = undefined;
    at("record").className = "";
    at("record").textContent = "Record";
    take(await wav(new Blob(parts)), "recording.wav");
  });
  recorder.start();
  at("record").className = "on";
  at("record").textContent = "Stop";
}

// A recording as a WAV file of one channel, which every reader knows: browsers record in formats of their own.
async function wav(recording) {
  const context = new AudioContext();
  const samples = (await context.decodeAudioData(await recording.arrayBuffer())).getChannelData(0);
  const rate = context.sampleRate;
  await context.close();
  const file = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, letters) => [...letters].forEach((l, i) => file.setUint8(place + i, l.charCodeAt(0)));
  text(0, "RIFF");
  file.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  [[16, 4, 16], [20, 2, 1], [22, 2, 1], [24, 4, rate], [28, 4, 2 * rate], [32, 2, 2], [34, 2, 16]].forEach(
    ([place, bytes, value]) => (bytes === 4 ? file.setUint32(place, value, true) : file.setUint16(place, value, true)));
  text(36, "data");
  file.setUint32(40, 2 * samples.length, true);
  samples.forEach((s, i) => file.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, s))), true));
  return new Blob([file], { type: "audio/wav" });
}

at("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) take(file, file.name);
  event.target.value = "";
});
at("record").addEventListener("click", record);
at("add").addEventListener("click", add);
at("window").addEventListener("change", ask);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").className = kind === "dragover" ? "over" : "";
    if (kind === "drop" && event.dataTransfer.files[0]) take(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
  });
}
if (!navigator.mediaDevices) {
  at("record").disabled = true;
  at("record").title = "Browsers lend a microphone to https and to this machine's own pages only";
}
start();
