"use strict";
// Everything that comes from the server is put in with textContent: markup in an answer stays text.

const at = (id) => document.getElementById(id);
let messages = [];
let running = null; // the AbortController of the turn under way

function headers() {
  const key = at("key").value.trim();
  const sent = { "content-type": "application/json" };
  if (key) sent.authorization = `Bearer ${key}`;
  return sent;
}

function tell(problem) {
  at("problem").textContent = problem;
  at("problem").hidden = !problem;
}

async function errorOf(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status}`;
  }
}

async function listModels() {
  const answer = await fetch("/v1/models", { headers: headers() });
  if (!answer.ok) return tell(await errorOf(answer));
  tell("");
  const before = at("model").value;
  at("model").replaceChildren(
    ...(await answer.json()).data.map((model) => {
      const option = document.createElement("option");
      option.textContent = option.value = model.id;
      option.selected = model.id === before;
      return option;
    }),
  );
}

function add(parent, tag, kind) {
  const element = document.createElement(tag);
  element.className = kind;
  parent.append(element);
  return element;
}

function addTurn(role, text) {
  const turn = add(at("turns"), "article", `turn ${role}`);
  const said = add(turn, "p", "said");
  said.textContent = text;
  return { turn, said, thought: null };
}

function think(shown, text) {
  if (!shown.thought) {
    const details = document.createElement("details");
    details.open = true;
    const summary = document.createElement("summary");
    summary.textContent = "Thoughts";
    details.append(summary);
    shown.turn.prepend(details);
    shown.thought = add(details, "p", "thought");
  }
  shown.thought.textContent += text;
}

function requestBody() {
  const system = at("system").value.trim();
  const body = {
    model: at("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    max_tokens: Number(at("max-tokens").value) || 512,
    stream: true,
    stream_options: { include_usage: true, include_cost: true },
  };
  if (at("temperature").value !== "") body.temperature = Number(at("temperature").value);
  return body;
}

function showRequest(body) {
  const text = JSON.stringify(body, null, 2);
  at("json").textContent = text;
  const key = at("key").value ? ' \\\n  -H "authorization: Bearer $NONET_API_KEY"' : "";
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  at("curl").textContent =
    `curl -N ${location.origin}/v1/chat/completions${key} \\\n  -H 'content-type: application/json' \\\n  -d '${quoted}'`;
}

async function* events(stream) {
  const decoder = new TextDecoder();
  let held = "";
  for await (const part of pieces(stream.getReader())) {
    held += decoder.decode(part, { stream: true });
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function* pieces(reader) {
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

function figures(began, first, last, usage, answer) {
  const parts = [];
  const count = usage?.completion_tokens;
  if (first) parts.push(`first token ${Math.round(first - began)} ms`);
  if (count > 1 && last > first) parts.push(`${(((count - 1) * 1000) / (last - first)).toFixed(1)} tokens/s`);
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`${usage.prompt_tokens} prompt tokens (${cached} cached)`, `${count} output tokens`);
  }
  parts.push(`cache ${answer.headers.get("x-nonet-cache") ?? "off"}`);
  parts.push(usage?.cost === undefined ? "not priced" : `cost ${usage.cost}`);
  return parts.join(" · ");
}

async function take(body, shown) {
  const began = performance.now();
  const answer = await fetch("/v1/chat/completions", {
    method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal,
  });
  if (!answer.ok) throw new Error(await errorOf(answer));
  let first = 0, last = 0, usage = null;
  for await (const event of events(answer.body)) {
    if (event.error) throw new Error(event.error.message);
    usage = event.usage ?? usage;
    const delta = event.choices?.[0]?.delta;
    if (!delta) continue;
    if (delta.content || delta.reasoning_content) {
      last = performance.now();
      first ||= last;
    }
    if (delta.reasoning_content) think(shown, delta.reasoning_content);
    if (delta.content) shown.said.textContent += delta.content;
  }
  add(shown.turn, "p", "figures").textContent = figures(began, first, last, usage, answer);
}

async function send() {
  const text = at("prompt").value.trim();
  if (!text || running) return;
  tell("");
  at("prompt").value = "";
  messages.push({ role: "user", content: text });
  addTurn("user", text);
  const body = requestBody();
  showRequest(body);
  const shown = addTurn("assistant", "");
  running = new AbortController();
  busy(true);
  try {
    await take(body, shown);
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
  } finally {
    running = null;
    busy(false);
    const said = shown.said.textContent;
    if (said) messages.push({ role: "assistant", content: said });
    else messages.pop();
  }
}

function busy(is) {
  at("send").hidden = is;
  at("stop").hidden = !is;
}

at("send").addEventListener("click", send);
at("stop").addEventListener("click", () => running?.abort());
at("new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  at("turns").replaceChildren();
  tell("");
});
at("key").addEventListener("change", listModels);
at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
listModels();
