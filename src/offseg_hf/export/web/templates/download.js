// Files of the page, fetched once: the browser keeps them, by their digest, until a newer model takes their place.

const CACHE = "offseg_hf";

/**
 * Fetch files [{url, bytes, sha256}] and return their contents, Uint8Array each.
 *
 * `progress(loaded, total)` counts the bytes of those that the browser does not have yet.
 */
export async function fetchAll(files, progress) {
  const cache = await openCache();
  const kept = await Promise.all(files.map(file => cache?.match(keyOf(file))));
  const total = files.reduce((sum, file, index) => sum + (kept[index] ? 0 : file.bytes), 0);
  let loaded = 0;
  return Promise.all(files.map(async (file, index) => {
    if (kept[index]) return new Uint8Array(await kept[index].arrayBuffer());
    const content = await read(file, length => progress(loaded += length, total));
    await keep(cache, file, content);
    return content;
  }));
}

/** Forget what the browser keeps of this folder beside `files`. */
export async function forgetOthers(files, folder) {
  const cache = await openCache();
  const wanted = new Set(files.map(keyOf));
  for (const request of await cache?.keys() ?? []) {
    if (request.url.startsWith(folder) && !wanted.has(request.url)) await cache.delete(request);
  }
}

/** There is none where the page is not served by https or from this machine, and in some private windows. */
async function openCache() {
  try {
    return await globalThis.caches?.open(CACHE);
  } catch {
    return undefined;
  }
}

function keyOf(file) {
  return `${file.url}?sha256=${file.sha256}`;
}

async function keep(cache, file, content) {
  try {
    await cache?.put(keyOf(file), new Response(content));
  } catch {
    // No room: it is fetched again the next time.
  }
}

async function read(file, progress) {
  const name = file.url.split("/").pop();
  let response;
  try {
    response = await fetch(file.url);
  } catch {
    throw new Error(`${name} cannot be fetched. Is this device offline?`);
  }
  if (!response.ok) throw new Error(`${name} cannot be fetched: the server answers ${response.status} ${response.statusText}`);
  const content = new Uint8Array(file.bytes), reader = response.body.getReader();
  let length = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (length + part.value.length > file.bytes) length = Infinity;
    else content.set(part.value, length);
    length += part.value.length;
    progress(part.value.length);
  }
  if (length !== file.bytes) throw new Error(`${name} is not the file that the page was made with; export the model again`);
  return content;
}
