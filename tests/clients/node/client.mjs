// node-postgres as applications use it, for tests/postgres/test_clients.py. One process serves all modes: a line of stdin is one mode,
// its connection's settings as key=value between tabs; the answer is a line "step TAB what was seen" for each step, and a line with a dot.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import net from "node:net";
import { createInterface } from "node:readline";
import { pipeline } from "node:stream/promises";
import pg from "pg";
import { from as copyFrom, to as copyTo } from "pg-copy-streams";

const ROWS = 1000;
const BIG_CHARACTERS = 300_000;

/** The driver's settings for a mode. */
function settings(mode, more) {
    const { source, ca, certificate, key, verify, ...rest } = mode;
    const ssl = rest.tls && { rejectUnauthorized: Boolean(verify), ...(ca && { ca: readFileSync(ca) }),
        ...(certificate && { cert: readFileSync(certificate), key: readFileSync(key) }) };
    const stream = () => {
        const socket = new net.Socket();
        const connect = socket.connect.bind(socket);
        // Each mode comes from an address of its own: failed logins of one are not held against the next.
        socket.connect = (port, host) => connect({ port, host, localAddress: source });
        return socket;
    };
    return { host: "127.0.0.1", database: "postgres", ssl: ssl || false, stream, ...rest, ...more };
}

/** A connected client, with the SASL mechanism it chose (or none) as `mechanism`. */
async function open(mode, more) {
    const client = new pg.Client(settings(mode, more));
    const send = client.connection.sendSASLInitialResponseMessage;
    client.mechanism = "none";
    client.connection.sendSASLInitialResponseMessage = function (mechanism, ...rest) {
        client.mechanism = mechanism;
        return send.call(this, mechanism, ...rest);
    };
    await client.connect();
    return client;
}

/** The SQLSTATE that it ends with. */
async function state(promise) {
    try {
        await promise;
        return "none";
    } catch (error) {
        return error.code ?? String(error);
    }
}

/** The first column of the first row. */
async function value(client, sql, values) {
    return (await client.query({ text: sql, values, rowMode: "array" })).rows[0][0];
}

async function simple(client) {
    const results = await client.query({ text: "select 1, 'zwei'; select null, 'größe €'", rowMode: "array" });
    return results.map((result) => result.rows[0].map(String).join(" ")).join(", ");
}

async function prepared(client) {
    const rows = [];
    for (const n of [1, 2, 3]) {
        const text = "select $1::int + 1, $2::text || '!', encode($3, 'hex')";
        const values = [n, n === 2 ? null : "größe €", Buffer.from([0, n, 255])];
        const result = await client.query({ name: "prepared", text, values, rowMode: "array" });
        rows.push(result.rows[0].map(String).join(" "));
    }
    return rows.join(", ");
}

/** Many queries on their way at once, one of them wrong. */
async function pipelined(mode) {
    const client = await open(mode, { pipeline: true });
    const queries = [...Array(100).keys()].map((n) => value(client, n === 50 ? "select $1::int / 0" : "select $1::int", [n]));
    const settled = await Promise.allSettled(queries);
    const [sum, bad] = [settled.reduce((all, one) => all + (one.value ?? 0), 0), settled[50].reason?.code];
    await client.end();
    return `${sum} ${bad}`;
}

async function transaction(client) {
    const counts = [];
    await client.query("create temp table rolled (n int)");
    await client.query("begin");
    await client.query("insert into rolled values ($1)", [1]);
    await client.query("rollback");
    counts.push(await value(client, "select count(*)::int from rolled"));
    await client.query("begin");
    await client.query("insert into rolled values ($1)", [2]);
    await client.query("savepoint s");
    await client.query("insert into rolled values ($1)", [3]);
    await client.query("rollback to s");
    await client.query("commit");
    counts.push(await value(client, "select sum(n)::int from rolled"));
    return counts.join(" ");
}

async function error(client) {
    const seen = [await state(client.query("select 1 / 0"))];
    await client.query("begin");
    seen.push(await state(client.query("select * from nowhere where n = $1", [1])), await state(client.query("select 1")));
    await client.query("rollback");
    return [...seen, await value(client, "select 1")].join(" ");
}

/** By the driver's own cancel, which names a query object; the other connection sees it run before. */
async function cancel(client, other, mode) {
    const query = new pg.Query("select pg_sleep(20)");
    const running = new Promise((resolve) => {
        query.on("error", (error) => resolve(error.code ?? String(error)));
        query.on("end", () => resolve("none"));
    });
    client.query(query);
    const asleep = "select count(*)::int from pg_stat_activity where wait_event = 'PgSleep' and pid = $1";
    while (!(await value(other, asleep, [client.processID])));
    const messenger = new pg.Client(settings(mode));
    // It is closed without an answer, and over TLS before there is any.
    messenger.connection.on("error", () => {});
    const closed = new Promise((resolve) => messenger.connection.once("end", resolve));
    messenger.cancel(client, query);
    const end = await running;
    // PostgreSQL signals the backend and then its process group, and closes when it has done both: the second may hit what comes next.
    await closed;
    return `${end} ${await value(client, "select 1")}`;
}

async function hear(listener, other) {
    await listener.query("listen pgweir_clients");
    const heard = once(listener, "notification");
    await other.query("notify pgweir_clients, 'größe €'");
    const [{ channel, payload, processId }] = await heard;
    await listener.query("unlisten *");
    return `${channel} ${payload} ${processId === other.processID} 1`;
}

/** In and out, a row that is none, and one that the client gives up. */
async function copy(client) {
    const rows = [...Array(ROWS).keys()].map((n) => `${n}\tgröße ${n}\n`).join("");
    await client.query("create temp table copied (n int, t text)");
    const into = client.query(copyFrom("copy copied from stdin"));
    await pipeline([Buffer.from(rows)], into);
    const back = [];
    await pipeline(client.query(copyTo("copy copied to stdout")), async (chunks) => {
        for await (const chunk of chunks) back.push(chunk);
    });
    const bad = await state(pipeline([Buffer.from("no number\tx\n")], client.query(copyFrom("copy copied from stdin"))));
    const given = client.query(copyFrom("copy copied from stdin"));
    given.on("error", () => {});
    given.write("1\tx\n");
    given.destroy();
    const count = await value(client, "select count(*)::int from copied");
    return `${into.rowCount} ${Buffer.concat(back).toString() === rows} ${bad} ${count}`;
}

async function big(client) {
    const sent = "größe €".repeat(BIG_CHARACTERS / 7);
    return (await value(client, "select $1::text", [sent])) === sent;
}

async function run(mode) {
    const seen = {};
    const step = async (name, what) => {
        try {
            seen[name] = await what();
        } catch (error) {
            seen[name] = `${error.code} ${error}`;
        }
    };
    // Meanwhile: a wrong password may be answered later than a right one.
    const wrong = state(open(mode, { password: "wrong" }));
    let first, second;
    try {
        [first, second] = [await open(mode), await open(mode)];
    } catch (error) {
        return { wrong: await wrong, connect: `${error.code} ${error}` };
    }
    await step("login", () => first.mechanism);
    await step("encrypted", () => Boolean(first.connection.stream.encrypted));
    await step("pid", async () => (await value(first, "select pg_backend_pid()")) === first.processID);
    await step("simple", () => simple(first));
    await step("prepared", () => prepared(first));
    await step("pipeline", () => pipelined(mode));
    await step("transaction", () => transaction(first));
    await step("error", () => error(first));
    await step("cancel", () => cancel(first, second, mode));
    await step("notify", () => hear(first, second));
    await step("copy", () => copy(first));
    await step("big", () => big(first));
    await step("after", async () => `${await value(first, "select 1")} ${await value(second, "select 2")}`);
    await Promise.all([first.end(), second.end()]);
    await step("wrong", () => wrong);
    return seen;
}

for await (const line of createInterface({ input: process.stdin })) {
    const mode = Object.fromEntries(line.split("\t").map((pair) => [pair.split("=", 1)[0], pair.slice(pair.indexOf("=") + 1)]));
    for (const [step, seen] of Object.entries(await run(mode))) {
        console.log(`${step}\t${String(seen).replaceAll(/[\n\t]/g, " ")}`);
    }
    console.log(".");
}
