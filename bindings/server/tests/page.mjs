// The page at / in a headless browser, as a person uses it: a chat, a text that goes on, a stop, an
// error.
//   node page.mjs http://127.0.0.1:8080       CHROMIUM=/usr/bin/chromium
import assert from "node:assert/strict";
import {existsSync} from "node:fs";
import {createRequire} from "node:module";

// From NODE_PATH, which imports do not look at.
const {chromium} = createRequire(import.meta.url)("playwright-core");
const server = process.argv[2];
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
if (!existsSync(executablePath)) {
  console.log(`skipped: no ${executablePath}`);
  process.exit(77);
}

async function greedy(path, body) {
  const response = await fetch(server + path, {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({temperature: 0, max_tokens: 24, ...body}),
  });
  const choice = (await response.json()).choices[0];
  return choice.message?.content ?? choice.text;
}

const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});
const page = await browser.newPage();
const faults = [];
page.on("pageerror", error => faults.push(error.message));
page.on("request", request => {
  if (!request.url().startsWith(server)) faults.push("asks for " + request.url());
});
await page.goto(server + "/");
await page.waitForFunction(() => document.getElementById("model").textContent !== "");
const model = await page.textContent("#model");

const idle = () => page.waitForFunction(() => !document.getElementById("send").disabled);
async function send(text) {
  await page.fill("#text", text);
  await page.click("#send");
}
const answers = () => page.$$eval("#chat .assistant", all => all.map(p => p.textContent));

// A chat of two turns, as the API answers them.
await page.fill("#tokens", "24");
await page.fill("#temperature", "0");
const messages = [{role: "user", content: "Hello"}];
await send("Hello");
await idle();
const first = await greedy("/v1/chat/completions", {model, messages});
assert.deepEqual(await answers(), [first]);
messages.push({role: "assistant", content: first}, {role: "user", content: "And then?"});
await send("And then?");
await idle();
assert.equal((await answers())[1], await greedy("/v1/chat/completions", {model, messages}));

await page.selectOption("#mode", "continue");
await send("ROMEO:");
await idle();
assert.equal((await answers())[2], await greedy("/v1/completions", {model, prompt: "ROMEO:"}));

// Stop, pressed at the first piece of a long text, ends it where it is.
await page.fill("#tokens", "200");
await page.fill("#temperature", "1");
await page.evaluate(() => {
  const chat = document.getElementById("chat");
  new MutationObserver((_, observer) => {
    if (!chat.lastChild.matches(".assistant") || !chat.lastChild.textContent) return;
    observer.disconnect();
    document.getElementById("stop").click();
  }).observe(chat, {childList: true, subtree: true});
});
await send("JULIET:");
await idle();
assert.equal(await page.isDisabled("#stop"), true);
assert.equal((await answers()).length, 4);
assert.equal(await page.$("#chat .error"), null);

// What the server refuses is said.
await page.fill("#text", "x");
await page.$eval("#temperature", input => { input.value = "-1"; });
await page.$eval("#form", form => { form.noValidate = true; });
await page.click("#send");
await page.waitForSelector("#chat .error");
assert.match(await page.textContent("#chat .error"), /temperature/);

const widths = await page.$$eval(".bar i", bars => bars.map(bar => parseFloat(bar.style.width)));
assert.ok(widths[0] <= widths[1], `MLA's bar ${widths[0]} is wider than MHA's ${widths[1]}`);
assert.match(await page.textContent("#speed"), /^[0-9.]+$/);
assert.deepEqual(faults, []);
await browser.close();
console.log("the page works");
