// What a client of the stream must decide: where it is in the log, what an ending means, when to come back.
// Pure: no I/O, no clock, no environment. Chance is an argument.

export const SUBPROTOCOL = 'okome.v1';
export const RUNNING = Object.freeze(['queued', 'start', 'attempt', 'token', 'reasoning']); // of a generation that has not ended
export const TERMINALS = Object.freeze(['done', 'failed', 'cancelled', 'expired']);

/** `<incarnation>-<stream sequence>` → its parts, or null for anything else ("0", "now", nothing). */
export function parseCursor(cursor) {
  const match = /^(.+)-(\d{1,16})$/.exec(cursor ?? '');
  return match && { incarnation: match[1], sequence: Number(match[2]) };
}

/** How far a client is in a session's log: what to resume after, and which events it has already seen. */
export class Position {
  #last;

  constructor(after = null) {
    this.cursor = after;
    this.#last = parseCursor(after);
  }

  /** Moves with the event; false when it was delivered before, so that a second leg can never say a token twice. */
  admit({ event, id, data }) {
    switch (event) {
      case 'hello':
        // A fresh attach has its history still ahead: only "0" and "now" take the greeting's position.
        if (this.cursor !== null && !this.#last) this.#move(id);
        return true;
      case 'caught_up': {
        const { incarnation, sequence } = parseCursor(data?.cursor) ?? {};
        if (!this.#last || (incarnation === this.#last.incarnation && sequence > this.#last.sequence)) this.#move(data?.cursor);
        return true;
      }
      case 'reset':
        this.cursor = this.#last = null;
        return true;
    }
    const next = parseCursor(id);
    if (!next) return true;
    if (this.#last && next.incarnation === this.#last.incarnation) {
      if (next.sequence < this.#last.sequence) return false;
      // Two finished messages may end at the same frame; two frames never share a sequence.
      if (next.sequence === this.#last.sequence && event !== 'message') return false;
    }
    this.#move(id);
    return true;
  }

  #move(cursor) {
    const parsed = parseCursor(cursor);
    if (!parsed) return;
    this.cursor = cursor;
    this.#last = parsed;
  }
}

const NEVER = { codes: ['malformed', 'forbidden', 'unknown_session', 'unsupported'], statuses: [400, 403, 404, 422], sockets: [4400, 4403, 4404] };
const RENEW = { codes: ['unauthenticated', 'token_expired', 'token_revoked'], statuses: [401], sockets: [4401, 4408] };
const REST = { codes: ['done'], statuses: [204], sockets: [1000] };
const SOON = [1001, 1012];

/**
 * What the end of a connection asks of the client.
 *
 * `ending` has what was learnt: `closed` and `reconnect` (the data of these events), `status` and `retryAfterMs` (an HTTP answer),
 * `socketCode`, `taken` (another tab needs the connection more). Returns `{then, afterMs}`: `never` come back, `renew` the token first, `rest` until something is wanted, or `retry`
 * after at least `afterMs` (milliseconds; null = the client's own backoff).
 */
export function verdict({ closed, reconnect, status, retryAfterMs, socketCode, taken } = {}) {
  const among = (kind) => (closed ? kind.codes.includes(closed.code) : kind.statuses.includes(status) || kind.sockets.includes(socketCode));
  if (reconnect && !closed) return { then: 'retry', afterMs: reconnect.after_ms ?? 0, soon: true };
  if (among(NEVER)) return { then: 'never', afterMs: null };
  if (among(RENEW)) return { then: 'renew', afterMs: null };
  if (taken || among(REST)) return { then: 'rest', afterMs: null };
  return { then: 'retry', afterMs: closed?.retry_after_ms ?? retryAfterMs ?? null, soon: !closed && SOON.includes(socketCode) };
}

/** Full jitter: anywhere between nothing and a ceiling that doubles, so that clients cut off together do not return together. */
export function backoff(attempt, random, { base = 250, cap = 10_000 } = {}) {
  return random() * Math.min(cap, base * 2 ** Math.min(attempt, 16));
}

/** Milliseconds until the next try: never before the server's word, spread behind it. */
export function retryDelay({ afterMs, soon }, attempt, random) {
  return (afterMs ?? 0) + backoff(soon ? Math.max(0, attempt - 1) : attempt, random, { base: soon ? 100 : 250 });
}

/** WebSocket first; the event stream once two sockets in a row did not open. */
export function chooseTransport(wanted, failedSockets) {
  return wanted === 'auto' ? (failedSockets >= 2 ? 'sse' : 'ws') : wanted;
}

/** Seconds or an HTTP date → milliseconds from `now` (epoch milliseconds), or null. */
export function parseRetryAfter(value, now) {
  if (!value) return null;
  const ms = /^\d+$/.test(value.trim()) ? Number(value) * 1000 : Date.parse(value) - now;
  return Number.isFinite(ms) ? Math.max(0, ms) : null;
}

/** An incremental `text/event-stream` reader: text in, whole events out, whatever the chunks and line ends. */
export class SseParser {
  #rest = '';
  #afterCr = false;
  #started = false;
  #data = [];
  #event = '';
  #id = null;

  /** Returns the events `{event, id, data}` completed by this chunk; `id` is null where the event carried none. */
  feed(chunk) {
    if (!chunk) return [];
    if (!this.#started) {
      this.#started = true;
      if (chunk.charCodeAt(0) === 0xfeff) chunk = chunk.slice(1);
    }
    // A CR that ended the last chunk has ended its line: the LF that may follow belongs to it.
    if (this.#afterCr && chunk[0] === '\n') chunk = chunk.slice(1);
    this.#afterCr = chunk.endsWith('\r');
    const lines = (this.#rest + chunk).split(/\r\n|\r|\n/);
    this.#rest = lines.pop();
    return lines.map((line) => this.#line(line)).filter(Boolean);
  }

  #line(line) {
    if (line === '') return this.#dispatch();
    if (line[0] === ':') return null;
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + (line[colon + 1] === ' ' ? 2 : 1));
    if (field === 'data') this.#data.push(value);
    else if (field === 'event') this.#event = value;
    else if (field === 'id' && !value.includes('\0')) this.#id = value;
    return null;
  }

  #dispatch() {
    const done = this.#data.length ? { event: this.#event || 'message', id: this.#id, data: this.#data.join('\n') } : null;
    this.#data = [];
    this.#event = '';
    this.#id = null;
    return done;
  }
}
