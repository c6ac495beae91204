// A video on the page: one frame at a time, and how many of its tokens stay, join tokens of which frame, or are dropped.
let frame = 0, timer = null;

function fates(number) {
  const at = step(), { of } = now.frames, found = { seated: 0, tokens: 0, dropped: 0, into: new Map() };
  for (const seat of at.seated) found.seated += seat === number;
  at.owner.forEach((owner, token) => {
    if (of[token] !== number) return;
    found.tokens += 1;
    if (owner < 0) found.dropped += 1;
    else if (at.seated[owner] !== number) found.into.set(at.seated[owner], 1 + (found.into.get(at.seated[owner]) || 0));
  });
  return found;
}

function toldOfFrame(number) {
  const { seated, tokens, dropped, into } = fates(number), others = [...into].sort((a, b) => a[0] - b[0]);
  const said = [`${seated} of ${tokens} tokens left`];
  for (const [there, count] of others) said.push(there < 0 ? `${count} joined a token of no frame` : `${count} joined frame ${there}`);
  if (dropped) said.push(`${dropped} dropped`);
  return `frame ${number}: ${said.join(", ")}`;
}

function paintFrame() {
  const { columns, width, height, gap } = now.frames, pen = $("frame").getContext("2d");
  $("frame").width = width; $("frame").height = height;
  const left = frame % columns * (width + gap), top = Math.floor(frame / columns) * (height + gap);
  $("picture").decode().then(() => pen.drawImage($("picture"), left, top, width, height, 0, 0, width, height)).catch(() => {});
  $("said").textContent = toldOfFrame(frame);
  [...$("timeline").children].forEach((bar, number) => bar.setAttribute("aria-pressed", number === frame));
}

function showVideo() {
  $("player").hidden = !now.frames;
  if (!now.frames) return stop();
  frame = Math.min(frame, now.frames.count - 1);
  $("timeline").replaceChildren(...Array.from({ length: now.frames.count }, (_, number) => {
    const bar = document.createElement("button"), { seated, tokens, dropped } = fates(number);
    for (const [name, share] of [["dropped", dropped], ["joined", tokens - dropped - seated], ["left", seated]]) {
      const part = document.createElement("i");
      part.className = name; part.style.height = `${100 * Math.max(share, 0) / Math.max(tokens, 1)}%`;
      bar.append(part);
    }
    bar.title = toldOfFrame(number); bar.type = "button";
    bar.setAttribute("aria-label", bar.title);
    bar.addEventListener("click", () => { stop(); frame = number; paintFrame(); });
    return bar;
  }));
  paintFrame();
}

function stop() { clearInterval(timer); timer = null; $("play").textContent = "play"; }

$("play").addEventListener("click", () => {
  if (timer) return stop();
  $("play").textContent = "pause";
  timer = setInterval(() => { frame = (frame + 1) % now.frames.count; paintFrame(); }, 400);
});
