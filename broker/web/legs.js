// Legs: one connection each, WebSocket or event stream. A leg reports `bytes()`, `event({event, id, data})` and, once, `end(what was
// learnt)`; a leg that was closed from here reports nothing more.

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
    send: (message) => socket.readyState === 1 && socket.send(JSON.stringify(message)),
    close: () => { over = true; socket.close(1000); },
  };
}

export function eventLeg(env, url, token, { bytes, event, end }) {
  const abort = new AbortController();
  const headers = { Accept: 'text/event-stream', ...(token && { Authorization: `Bearer ${token}` }) };
  const read = async () => {
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
