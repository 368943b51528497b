// Elements and words. Names come from clients: they are only ever text, each isolated so that its direction turns nothing else around.

export const id = name => document.getElementById(name);

// An element with attributes; children are elements and texts.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Characters that are not seen, or turn others around, are named: ⟨U+202E⟩.
const plain = text => text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, c => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

// What a client or a configuration calls something, or a text that has such names in it.
export const name = text => make("bdi", {}, text === "" ? "(no name)" : plain(text));

// Text that is the same is left alone: a selection in it, and a screen reader's place, survive.
export function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function attribute(element, key, value) {
  if (element.getAttribute(key) !== value) element.setAttribute(key, value);
}

// Replaces the children where what they say has changed.
export function say(element, ...parts) {
  const text = parts.map(part => typeof part === "string" ? part : `${part.tagName}\u0000${part.textContent}`).join("\u0001");
  if (element.said === text) return;
  element.said = text;
  element.replaceChildren(...parts);
}

// A list kept in step with rows: one element a key, made once, moved only where it must, so that focus stays where it is.
export function keep(list, rows, key, create, update) {
  list.kept ??= new Map();
  const wanted = new Set(rows.map(key));
  for (const [old, element] of list.kept) {
    if (wanted.has(old)) continue;
    element.remove();
    list.kept.delete(old);
  }
  rows.forEach((row, n) => {
    let element = list.kept.get(key(row));
    if (!element) list.kept.set(key(row), element = create(row));
    if (list.children[n] !== element) list.insertBefore(element, list.children[n] ?? null);
    update(element, row);
  });
}

// 75 s → "1 min 15 s": two units are enough.
export function span(ms) {
  const s = Math.floor(ms / 1000);
  if (ms < 1000) return `${ms} ms`;
  if (s < 60) return `${s} s`;
  const [small, large] = s < 3600 ? [s % 60, Math.floor(s / 60)] : s < 86400 ? [Math.floor(s / 60) % 60, Math.floor(s / 3600)]
    : [Math.floor(s / 3600) % 24, Math.floor(s / 86400)];
  const [minor, major] = s < 3600 ? ["s", "min"] : s < 86400 ? ["min", "h"] : ["h", "d"];
  return small ? `${large} ${major} ${small} ${minor}` : `${large} ${major}`;
}

// "2026-01-02T03:04:05.678Z" → "03:04:05".
export const clock = utc => utc.slice(11, 19);
export const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

// Names in a sentence: "web, live and admin".
export function listed(names) {
  return names.flatMap((each, n) => [n === 0 ? "" : n + 1 === names.length ? " and " : ", ", name(each)]).slice(1);
}
