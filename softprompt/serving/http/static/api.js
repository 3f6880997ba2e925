// What the page asks the server, and what may go wrong with that, in words.

const SAID = {
  400: "The server cannot read this request.",
  401: "The server wants an API key, and has got none or a wrong one.",
  403: "This API key may not ask this.",
  404: "There is no such prompt, or not any more.",
  408: "The text did not reach the server in time.",
  413: "The text is too large for this server.",
  422: "The server cannot use this text with this prompt.",
  429: "The server is busy.",
  500: "The server failed.",
  503: "This cannot be asked now.",
  504: "The answer was not there in time.",
};

export class Problem extends Error {
  // what: in words; detail: what the server says of it, if it says something
  constructor(what, detail = "", status = 0) {
    super(what);
    Object.assign(this, { what, detail, status });
  }
}

// relative to this page, which may stand below a path of a reverse proxy
const address = (path) => new URL(path, document.baseURI).href;

async function asked(path, key, options = {}) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(options.body && { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(address(path), { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    throw broken(error, "The server cannot be reached.", "Does it still run, and is there a network?");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

function broken(error, what, detail) {
  return error.name === "AbortError" ? error : new Problem(what, detail);
}

async function problemOf(response) {
  const { status, headers } = response;
  const said = await response.json().catch(() => null);
  const details = [sentence(said?.error?.message)];
  const seconds = Number(headers.get("Retry-After"));
  if (seconds > 0) details.unshift(`Try again in ${seconds} ${seconds === 1 ? "second" : "seconds"}.`);
  if (status >= 500 && headers.get("X-Request-Id")) details.push(`Request id: ${headers.get("X-Request-Id")}`);
  return new Problem(SAID[status] ?? `The server answers with status ${status}.`, details.filter(Boolean).join(" "), status);
}

// the server's messages are parts of a line of its log, too
export const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}`.replace(/[^.]$/, "$&.") : "");

async function json(path, key, options) {
  const response = await asked(path, key, options);
  try {
    return await response.json();
  } catch (error) {
    throw broken(error, "The answer cannot be read.", "It is no JSON, or it broke off.");
  }
}

// key: of the API, or ""
export const models = async (key) => (await json("v1/models", key)).data;
export const model = (id, key) => json(`v1/models/${encodeURIComponent(id)}`, key);

export function post(path, body, key, signal) {
  return json(path, key, { method: "POST", body: JSON.stringify(body), signal });
}

// each event of a stream, as it comes
export async function* events(path, body, key, signal) {
  const response = await asked(path, key, { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw broken(error, "The connection broke off.", "The answer is not complete.");
    }
    if (part.done) throw new Problem("The answer broke off.", "It is not complete.");
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Problem("The answer broke off.", sentence(event.error.message));
      yield event;
    }
  }
}

// the same request for a shell; a key is a variable of it, never written out
export function curl(path, body, keyed) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const parts = [
    `curl ${body.stream ? "-N " : ""}${quoted(address(path))}`,
    "-H 'Content-Type: application/json'",
    ...(keyed ? ['-H "Authorization: Bearer $SOFTPROMPT_KEY"'] : []),
    `-d ${quoted(JSON.stringify(body, null, 1))}`,
  ];
  return parts.join(" \\\n  ");
}
