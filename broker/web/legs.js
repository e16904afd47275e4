// Legs: one connection each, WebSocket or event stream. A leg reports `bytes()`, `event({event, id, data})` and, once, `end(what was
// learnt)`; a leg that was closed from here reports nothing more.

import { toJson } from './http.js';
import { SseParser, SUBPROTOCOL, parseRetryAfter } from './protocol.js';

export function socketLeg(env, url, token, { bytes, event, end }) {
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
  const socket = new env.WebSocket(url.href, token ? [SUBPROTOCOL, `bearer.${token}`] : [SUBPROTOCOL]);
  let over = false;
  const broken = () => {
    over = true;
    socket.close(4400);
    end({});
  };
  socket.onmessage = ({ data }) => {
    if (over) return;
    bytes();
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return broken(); // skipping it would be a hole in the text: resume at the cursor instead
    }
    event(message);
  };
  socket.onclose = ({ code }) => {
    if (over) return;
    over = true;
    end({ socketCode: code });
  };
  return {
    sse: false,
    send: (message) => socket.readyState === 1 && socket.send(toJson(message)),
    close: () => { over = true; socket.close(1000); },
  };
}

export function eventLeg(env, url, token, { bytes, event, end }) {
  const abort = new AbortController();
  const headers = { Accept: 'text/event-stream', ...(token && { Authorization: `Bearer ${token}` }) };
  const read = async () => {
    if (!(await takeSlot(env, abort.signal, () => end({ taken: true })))) return { taken: true };
    const response = await env.fetch(url.href, { headers, cache: 'no-store', signal: abort.signal });
    if (response.status !== 200) return { status: response.status, retryAfterMs: parseRetryAfter(response.headers.get('Retry-After'), Date.now()) };
    const parser = new SseParser();
    const text = new TextDecoder();
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) return {};
      bytes();
      for (const message of parser.feed(text.decode(value, { stream: true }))) {
        if (abort.signal.aborted) return {};
        event({ ...message, data: JSON.parse(message.data) });
      }
    }
  };
  read().then((ending) => abort.signal.aborted || end(ending), (error) => abort.signal.aborted || end({ error }));
  return { sse: true, close: () => abort.abort() };
}

const SLOTS = 3; // of the six connections that an HTTP/1.1 origin has for all tabs: stopping and loading must always get one

/**
 * One of the few event streams that the tabs of an origin may hold together, kept until `signal` aborts; false if none is to be had.
 * The tab a person is in takes one from another, which hears `taken()`.
 */
async function takeSlot(env, signal, taken) {
  const locks = env.navigator?.locks; // missing on insecure origins: then only being seen limits them
  if (!locks) return true;
  const hold = (slot, options) => new Promise((granted) => {
    const held = locks.request(`okome-events-${slot}`, options, (lock) => {
      granted(Boolean(lock));
      return lock && !signal.aborted && new Promise((release) => signal.addEventListener('abort', release, { once: true }));
    });
    held.catch(() => signal.aborted || taken());
  });
  for (let slot = 0; slot < SLOTS; slot += 1) {
    if (await hold(slot, { ifAvailable: true })) return true;
  }
  return env.document?.hasFocus() ? hold(Math.floor(Math.random() * SLOTS), { steal: true }) : false;
}
