// A browser made of parts the test holds in its hand: time moves when it says so, sockets speak when it makes them.

import { connect } from '../../../broker/web/okome.js';

const Calendar = Date; // a page makes its own the global one

export function browser() {
  let now = 1_000_000;
  let timers = [];
  const document = Object.assign(new EventTarget(), { hidden: false });
  const window = new EventTarget();
  const sockets = [];
  const fetches = [];

  class WebSocket {
    constructor(url, protocols) {
      Object.assign(this, { url: new URL(url), protocols, readyState: 1, sent: [], closedWith: null });
      sockets.push(this);
    }
    send(text) { this.sent.push(JSON.parse(text)); }
    close(code) { this.readyState = 3; this.closedWith = code; }
    // what the server does
    say(event, data = {}, id) { this.onmessage({ data: JSON.stringify({ event, id, data }) }); }
    end(code) { this.readyState = 3; this.onclose({ code }); }
  }

  const env = {
    document, window, WebSocket,
    location: { origin: 'http://page.test' },
    Date: class extends Calendar { static now() { return now; } },
    setTimeout: (run, ms) => { const timer = { run, at: now + ms }; timers.push(timer); return timer; },
    clearTimeout: (timer) => { timers = timers.filter((other) => other !== timer); },
    fetch: (url, options) => new Promise((resolve, reject) => {
      fetches.push({ url: new URL(url, 'http://page.test'), ...options, resolve, reject });
      options.signal?.addEventListener('abort', () => reject(options.signal.reason));
    }),
  };

  /** Lets promises settle. */
  const settle = async () => {
    for (let turn = 0; turn < 4; turn += 1) await new Promise((resolve) => setImmediate(resolve));
  };

  return {
    env, sockets, fetches, settle,
    get socket() { return sockets.at(-1); },
    get connections() { return sockets.filter((socket) => socket.readyState === 1).length; },
    async pass(ms) {
      const until = now + ms;
      await settle();
      for (;;) {
        const due = timers.filter(({ at }) => at <= until).sort((a, b) => a.at - b.at)[0];
        if (!due) break;
        now = Math.max(now, due.at);
        env.clearTimeout(due);
        due.run();
        await settle();
      }
      now = until;
      await settle();
    },
    async hide(hidden) {
      document.hidden = hidden;
      document.dispatchEvent(new Event('visibilitychange'));
      await settle();
    },
    async happen(name, fields = {}) {
      window.dispatchEvent(Object.assign(new Event(name), fields));
      await settle();
    },
  };
}

let focused = null;

/** As much of an element as the page asks of one. */
class FakeElement extends EventTarget {
  constructor() {
    super();
    const classes = new Set();
    Object.assign(this, { children: [], dataset: {}, style: {}, value: '', textContent: '', hidden: false });
    this.classList = {
      contains: (name) => classes.has(name),
      toggle: (name, on = !classes.has(name)) => void (on ? classes.add(name) : classes.delete(name)),
    };
  }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) {
    if (focused !== this && this.contains(focused)) focused = null;
    this.children = children;
  }
  contains(element) { return element === this || this.children.some((child) => child.contains?.(element)); }
  get firstElementChild() { return this.children[0] ?? null; }
  insertBefore(child, before) {
    this.children.splice(before ? this.children.indexOf(before) : this.children.length, 0, child);
    child.parent = this;
  }
  remove() { this.parent?.children.splice(this.parent.children.indexOf(this), 1); }
  setAttribute(name, value) {
    if (name.startsWith('data-')) this.dataset[name.slice(5)] = value;
    else this[name] = value;
  }
  focus() {
    const before = focused;
    focused = this;
    if (before !== this) before?.happen('blur');
  }
  select() { this.focus(); }
  /** False where the page has prevented what a browser would do. */
  happen(name) { return this.dispatchEvent(new Event(name, { cancelable: true })); }
}

let pages = 0;

/** The chat page in such a browser, before anything is answered: `at` is the element of an id. */
export async function loadingPage(path = '/') {
  const web = browser();
  let reloads = 0;
  const place = (address) => {
    const { pathname, hash } = new URL(address, 'http://page.test');
    Object.assign(location, { pathname, hash });
  };
  const elements = new Map();
  const at = (id) => elements.get(id) ?? elements.set(id, new FakeElement()).get(id);
  Object.defineProperty(web.env.document, 'activeElement', { get: () => focused });
  Object.assign(web.env.document, {
    getElementById: at,
    createElement: () => new FakeElement(),
    createElementNS: () => new FakeElement(),
    createTextNode: (text) => Object.assign(new FakeElement(), { textContent: text }),
  });
  Object.assign(globalThis, web.env, {
    location: { origin: 'http://page.test', search: '', reload: () => { reloads += 1; } },
    history: { pushState: (_, __, address) => place(address), replaceState: (_, __, address) => place(address) },
    localStorage: { getItem: () => null },
    matchMedia: () => ({ matches: true }),
    requestAnimationFrame: (draw) => setImmediate(draw),
    addEventListener: (...listener) => web.env.window.addEventListener(...listener),
    setInterval() {},
    clearInterval() {},
    innerHeight: 800,
  });
  place(path);
  await import(`../../../broker/web/chat.js?${(pages += 1)}`);
  /** Answers the oldest request of that method, and to a path with that end, that waits. */
  const answer = async (method, end, status, body) => {
    await web.settle();
    const waiting = web.fetches.findIndex((one) => one.method === method && one.url.pathname.endsWith(end));
    if (waiting < 0) throw new Error(`nobody asks for ${method} …${end}`);
    web.fetches.splice(waiting, 1)[0].resolve(json(status, body));
    await web.settle();
  };
  const send = async (prompt) => {
    at('composer').value = prompt;
    at('form').happen('submit');
    await web.settle();
  };
  const asked = (end, by = 'POST') => web.fetches.some(({ method, url }) => method === by && url.pathname.endsWith(end));
  const body = (end) => JSON.parse(web.fetches.find(({ url }) => url.pathname.endsWith(end)).body);
  const open = () => web.connections;
  /** The address has changed, and the page hears of it: back, forward, or another fragment. */
  const go = async (address) => {
    const { hash } = location;
    place(address);
    await web.happen('popstate');
    if (location.hash !== hash) await web.happen('hashchange');
  };
  return { at, answer, send, asked, body, open, go, focused: () => focused, reloads: () => reloads, pass: web.pass };
}

/** The same, signed in, without conversations in its list. */
export async function chatPage(path) {
  const page = await loadingPage(path);
  await page.answer('GET', '/models', 200, { data: [{ id: 'm' }] });
  await page.answer('GET', '/sessions', 200, { sessions: [] });
  return page;
}

/** A session followed in such a browser: what it says, and what of it is heard. */
export function following(options = {}) {
  const world = browser();
  const heard = [];
  const states = [];
  const stream = connect('07session', { env: world.env, onEvent: ({ event, data }) => heard.push(data?.text ?? event), onState: ({ state }) => states.push(state), ...options });
  return { world, heard, states, stream };
}

export const greet = (socket) => {
  socket.say('hello', { node: 'n1' }, 'i-0');
  socket.say('caught_up', { cursor: 'i-0' });
};
export const token = (socket, n, gid = 'g1') => socket.say('token', { generation_id: gid, offset: n - 1, text: `t${n}`, n: 1 }, `i-${n}`);

/** A streamed 200 whose body the test writes. */
export function eventStream() {
  let controller;
  const body = new ReadableStream({ start: (given) => { controller = given; } });
  const encoder = new TextEncoder();
  return {
    response: new Response(body, { headers: { 'Content-Type': 'text/event-stream' } }),
    write: (text) => controller.enqueue(encoder.encode(text)),
    end: () => controller.close(),
  };
}

export const json = (status, body, headers) => new Response(JSON.stringify(body), { status, headers });

/** What tabs of one origin share: locks that one holder has, that can be asked for without waiting, and stolen. */
export function lockManager() {
  const holders = new Map();
  return {
    held: () => holders.size,
    async request(name, { steal }, callback) {
      if (holders.has(name) && !steal) return callback(null);
      holders.get(name)?.(new DOMException('stolen', 'AbortError'));
      let lost;
      const stolen = new Promise((_, reject) => { lost = reject; });
      holders.set(name, lost);
      try {
        return await Promise.race([callback({ name }), stolen]);
      } finally {
        if (holders.get(name) === lost) holders.delete(name);
      }
    },
  };
}
