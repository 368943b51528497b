// What a button does is said in words, asked a reason for, done, and answered.

import { count, id, listed, make, name, say, set, span } from "./dom.js";
import { who } from "./leaks.js";

const FOREVER = ["", "until somebody resumes"];
const FOR = [FOREVER, ["10 min", "10 minutes"], ["30 min", "30 minutes"], ["1 h", "1 hour"], ["4 h", "4 hours"]];
const OVER = [["5 min", "over 5 minutes, in ten steps"], ["1 min", "over 1 minute, in ten steps"], ["15 min", "over 15 minutes, in ten steps"], ["", "at once"]];
const HOW = { hold: "are held until it is resumed", reject: "are refused at once, with the reason" };

const transactions = lane => lane.active + lane.idle_in_transaction;
const goOn = n => n ? ` ${count(n, "link")} at work or inside a transaction may finish first.` : "";

function freeze({ lanes, policy, observe }) {
  const frozen = lanes.filter(lane => policy(lane.lane)?.freeze);
  const fresh = frozen.filter(lane => lane.state !== "paused"), others = lanes.filter(lane => !policy(lane.lane)?.freeze);
  const refusing = fresh.filter(lane => policy(lane.lane).on_pause === "reject").map(lane => lane.lane);
  const names = rows => listed(rows.map(row => row.lane));
  const words = () => {
    const words = [];
    if (fresh.length) words.push(["Pauses ", ...names(fresh), `: no new link and no new transaction.${goOn(fresh.reduce((n, lane) => n + transactions(lane), 0))}`]);
    else words.push(["No lane is left to pause: ", ...(frozen.length ? ["all that FREEZE pauses are paused already."] : ["none has freeze = true."])]);
    if (refusing.length) words.push(["Who comes in ", ...listed(refusing), " is refused at once; in the others they wait."]);
    if (others.length) words.push([...names(others), others.length === 1 ? " goes on." : " go on."]);
    return words;
  };
  return {
    title: ["Freeze"], words, choices: [["for", "How long", FOR]], yes: `Freeze ${count(fresh.length, "lane")}`, path: "/api/v1/freeze", observe,
  };
}

function pause({ row, policy, observe }) {
  const usual = policy(row.lane)?.on_pause ?? "hold";
  const how = [["", `those who come ${HOW[usual]}`], ...Object.entries(HOW).filter(([key]) => key !== usual).map(([key, words]) => [key, `those who come ${words}`])];
  return {
    title: ["Pause lane ", name(row.lane)],
    words: body => [[`No new link and no new transaction in `, name(row.lane), `; those who come ${HOW[body.on ?? usual]}.${goOn(transactions(row))}`]],
    choices: [["for", "How long", FOR], ["on", "Meanwhile", how]], yes: "Pause it", path: `/api/v1/lanes/${encodeURIComponent(row.lane)}/pause`, observe,
  };
}

function resume({ row, observe }) {
  const wait = row.waiting ? ` ${row.waiting} waiting since up to ${span(row.max_wait_ms)} come first.` : "";
  return {
    title: ["Resume lane ", name(row.lane)],
    words: body => [body.over
      ? [name(row.lane), ` gets a tenth of its quota of ${row.quota} more at each step.${wait} If usage grows back over its threshold, the ramp stops and pauses the lane again.`]
      : [name(row.lane), ` takes as many as its quota of ${row.quota} allows, at once.${wait}`]],
    choices: [["over", "How fast", OVER]], yes: "Resume it", path: `/api/v1/lanes/${encodeURIComponent(row.lane)}/resume`, observe,
  };
}

function reset({ row, policy, observe }) {
  const disconnects = policy(row.lane)?.reset === "disconnect";
  const what = disconnects ? "Its connection is closed, and its transaction with it."
    : "Its transaction is rolled back: its locks are free. It stays connected, and is told with an error at its next statement; Odoo then repeats the request.";
  return {
    title: [`Reset client ${row.id}`],
    words: () => [[...who(row), `, idle in its transaction for ${span(row.idle_in_transaction_ms)}.`], [what], ["If it speaks before that, nothing happens."]],
    choices: [], yes: disconnects ? "Disconnect it" : "Roll it back", path: `/api/v1/clients/${row.id}/reset`, observe,
  };
}

const KINDS = { freeze, pause, resume, reset };

async function post(path, body) {
  const reply = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: AbortSignal.timeout(30000) });
  const said = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error([said.error ?? `pgweir answered ${reply.status}`, said.hint].filter(Boolean).join(": "));
  return said.message;
}

// Opens the dialog for a kind of act; `context` has what its words are made of.
export function ask(kind, context) {
  const act = KINDS[kind](context), dialog = id("ask"), reason = id("ask-reason"), yes = id("ask-yes"), wrong = id("ask-wrong");
  const from = document.activeElement, body = {};
  const explain = () => say(id("ask-words"), ...act.words(body).map(words => make("p", {}, ...words)),
    ...(act.observe ? [make("p", { class: "bad" }, "Mode is observe: it is written down, and nothing is held, refused or reset.")] : []));
  say(id("ask-head"), ...act.title);
  id("ask-choices").replaceChildren(...act.choices.map(([key, label, options]) => {
    const choice = make("select", { id: `ask-${key}` });
    for (const [value, words] of options) choice.add(new Option(words, value));
    choice.onchange = () => {
      if (choice.value) body[key] = choice.value;
      else delete body[key];
      explain();
    };
    choice.onchange();
    return make("p", {}, make("label", { for: `ask-${key}` }, label), choice);
  }));
  explain();
  set(yes, act.yes);
  set(wrong, "");
  reason.value = "";
  yes.disabled = false;
  id("ask-no").onclick = () => dialog.close();
  dialog.onclose = () => {
    // What was pressed may have given way to another button meanwhile.
    const back = [from, ...from?.parentElement?.querySelectorAll("button") ?? []].find(button => button?.isConnected && !button.hidden);
    if (back) back.focus();
    else (from?.closest?.("section")?.querySelector("h2") ?? id(kind === "reset" ? "leaks-head" : "lanes-head")).focus();
  };
  dialog.querySelector("form").onsubmit = async event => {
    event.preventDefault();
    if (!reason.value.trim()) {
      set(wrong, "Say why: others will read it in the timeline.");
      reason.focus();
      return;
    }
    yes.disabled = true;
    set(wrong, "");
    try {
      const message = await post(act.path, { ...body, reason: reason.value.trim() });
      dialog.close();
      said(message);
    } catch (error) {
      set(wrong, error.name === "TimeoutError" ? "No answer within 30 s: look at the timeline whether it was done." : error instanceof TypeError
        ? "pgweir does not answer: nothing is known to be done." : error.message);
      yes.disabled = false;
    }
  };
  dialog.showModal();
  reason.focus();
}

let hiding = 0;
function said(message) {
  const box = id("said");
  set(box, message);
  box.classList.add("shown");
  clearTimeout(hiding);
  hiding = setTimeout(() => box.classList.remove("shown"), 12000);
}
