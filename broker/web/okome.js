// The small client of the stream plane: one session's events, each exactly once, over whatever connection can be had.
// It holds connections and timers; what they mean is decided in protocol.js. No dependency, no build step.
//
//   const session = await createSession({ title: 'Hello' });
//   const stream = connect(session.session_id, { token: session.token, onEvent: ({ event, data }) => …, onState: ({ state }) => … });
//   const { generation_id } = await stream.generate({ prompt: 'Why is the sky blue?' });

import { OkomeError, randomId, request } from './http.js';
import { eventLeg, socketLeg } from './legs.js';
import { Position, RUNNING, TERMINALS, chooseTransport, retryDelay, verdict } from './protocol.js';

export { OkomeError, request };

const OPEN_TIMEOUT = 10_000; // from opening to the first byte
const STALL_TIMEOUT = 25_000; // between bytes: two and a half heartbeats
const STALE_ON_RETURN = 12_000; // a tab that comes back trusts its socket only this long after the last byte
const BLOCKED_REST = 300_000; // a network that swallows sockets is taken for one so long
const STEADY = 5_000; // a connection that lived this long has earned a fresh backoff
const ANSWER_TIMEOUT = 5_000; // for a request on the socket; then it is said again by POST under the same key
const HIDDEN_REST = 5_000; // hidden and nothing running
const HIDDEN_RUNNING_REST = 30_000; // hidden, whatever runs
const VISIBLE_REST = 300_000; // looked at, but nothing asked and nothing said

/** `POST /v1/sessions` with `{model?, title?, metadata?, on_disconnect?}` → `{session_id, token, expires_at, events_url, ws_url}`. */
export const createSession = (body = {}, options = {}) => request('POST', '/v1/sessions', { key: randomId(), ...options, body });

/**
 * Follows a session. Options: `token` (else the session's cookie), `after` (cursor, "0", "now"; nothing = finished messages, then live),
 * `transport` ("auto" | "ws" | "sse"), `drafts`, `base` (another origin), `renew` (async, called when the token has expired; may return one),
 * `onEvent({event, id, data})`, `onState({state, transport, attempt, retryMs, reason})` with state connecting | live | reconnecting | idle | closed.
 */
export const connect = (sessionId, options = {}) => new Connection(sessionId, options);

class Connection {
  #options; #env; #path; #token;
  #position;
  #leg = null;
  #state = null;
  #attempt = 0; #failedSockets = 0; #blockedAt = null; #renewed = false; #openedAt = 0;
  #bytesAt = 0; #busyAt = 0; #hiddenAt = 0;
  #running = null; #finished = null;
  #renewing = null;
  #timers = { retry: null, watch: null, rest: null };
  #unanswered = new Map();
  #listeners = [];

  constructor(sessionId, options) {
    this.#options = { transport: 'auto', base: '', onEvent() {}, onState() {}, ...options };
    this.#env = options.env ?? globalThis;
    this.#path = `/v1/sessions/${encodeURIComponent(sessionId)}`;
    this.#token = options.token ?? null;
    this.#position = new Position(options.after ?? null);
    this.#listen();
    if (this.#hidden) this.#rest();
    else this.wake();
  }

  get cursor() { return this.#position.cursor; }
  get state() { return this.#state; }
  get running() { return this.#running; }
  get #hidden() { return this.#env.document?.hidden ?? false; }
  get #transport() { return this.#env.WebSocket ? chooseTransport(this.#options.transport, this.#failedSockets) : 'sse'; }

  /** Starts an answer: `{prompt | messages, model?, …}` → `{generation_id, cursor}`. */
  async generate(body) {
    const accepted = await this.#ask('generate', body, `${this.#path}/generations`, body);
    if (this.#finished !== accepted.generation_id) this.#running = accepted.generation_id; // its terminal may have come first
    return accepted;
  }

  /** Stops an answer; harmless when it has ended. */
  cancel(generationId) {
    return this.#ask('cancel', { generation_id: generationId }, `${this.#path}/generations/${encodeURIComponent(generationId)}/cancel`, {});
  }

  /** Connects now if nothing is connected: the tab is looked at, the network is back, something is wanted. */
  wake() {
    if (this.#state === 'closed' || this.#leg || this.#renewing) return;
    this.#busyAt = this.#env.Date.now();
    this.#open();
  }

  close() {
    if (this.#state === 'closed') return;
    this.#drop();
    for (const [target, name, listener] of this.#listeners) target.removeEventListener(name, listener);
    this.#say('closed', { reason: { code: 'closed_here' } });
  }

  // --- one leg at a time -------------------------------------------------------------------------------------------

  #open() {
    this.#drop();
    if (this.#blockedAt !== null && this.#env.Date.now() - this.#blockedAt > BLOCKED_REST) this.#tried(1);
    const transport = this.#transport;
    if (transport === 'sse' && this.#hidden) return this.#rest(); // six event streams fill an HTTP/1.1 origin: only what is seen may hold one
    const query = new URLSearchParams();
    if (this.cursor !== null) query.set('after', this.cursor);
    if (this.#options.drafts) query.set('drafts', '1');
    const url = new URL(this.#options.base || this.#env.location?.origin || 'http://localhost');
    url.pathname = `${this.#path}/${transport === 'ws' ? 'ws' : 'events'}`;
    url.search = query;
    const told = {};
    let greeted = false;
    this.#bytesAt = this.#openedAt = this.#env.Date.now();
    this.#watch(() => (greeted ? STALL_TIMEOUT : OPEN_TIMEOUT), (ending) => this.#ended(transport, greeted, ending));
    this.#leg = (transport === 'ws' ? socketLeg : eventLeg)(this.#env, url, this.#token, {
      bytes: () => { this.#bytesAt = this.#env.Date.now(); },
      event: (message) => {
        if (!greeted) {
          greeted = true;
          if (transport === 'ws') this.#tried(0);
          else this.#blockedAt ??= this.#env.Date.now(); // the server is there: it was the sockets
          if (message.event !== 'closed') this.#greeted(transport);
          if (this.#state === 'closed') return;
        }
        if (message.event === 'closed' || message.event === 'reconnect') told[message.event] = message.data ?? {};
        this.#deliver(message);
        if (message.event === 'reconnect') this.#ended(transport, greeted, told);
      },
      end: (ending) => this.#ended(transport, greeted, { ...ending, ...told }),
    });
    // Behind the leg: who hears it may close or wake this, and finds it whole.
    this.#say(this.#attempt || this.#state === 'reconnecting' ? 'reconnecting' : 'connecting', { transport });
  }

  /** So many sockets in a row did not open; that an event stream did counts no longer. */
  #tried(failedSockets) {
    this.#failedSockets = failedSockets;
    this.#blockedAt = null;
  }

  #greeted(transport) {
    this.#renewed = false;
    this.#say('live', { transport });
    for (const [id, { message }] of this.#unanswered) this.#leg?.send?.({ ...message, data: { ...message.data, request_id: id } });
    this.#considerRest();
  }

  #deliver(message) {
    const { event, data } = message;
    if (event === 'accepted' || event === 'rejected') return this.#answered(event, data);
    if (event === 'hb' || event === 'pong' || !this.#position.admit(message)) return;
    if (message.id) this.#attempt = event === 'hello' ? this.#attempt : 0;
    if (RUNNING.includes(event)) this.#running = data.generation_id;
    if (event === 'reset') this.#running = null; // what comes now says whether it still does
    const ended = TERMINALS.includes(event) || (event === 'message' && data.role === 'assistant');
    if (ended) this.#finished = data.generation_id;
    if (ended && this.#running === this.#finished) this.#running = null;
    if (this.#running || ended) this.#busyAt = this.#env.Date.now();
    this.#call(this.#options.onEvent, message);
    if (ended || event === 'reset') this.#considerRest();
  }

  async #ended(transport, greeted, ending) {
    if (this.#state === 'closed') return;
    const steady = greeted && this.#env.Date.now() - this.#openedAt > STEADY;
    if (steady) this.#attempt = 0;
    this.#drop();
    // An event stream that will not open either says the server is away, not that sockets are blocked.
    // A socket that was refused with a word of the server's (4401, 1013, …) did open.
    if (transport === 'ws' && !greeted && !ending.closed && [undefined, 1006].includes(ending.socketCode)) this.#failedSockets += 1;
    else if (transport === 'sse' && this.#blockedAt === null && !ending.taken) this.#tried(0);
    const next = verdict(ending);
    const reason = ending.closed ?? { code: ending.stalled ? 'stalled' : ending.socketCode ?? ending.status ?? 'unreachable' };
    if (next.then === 'never') return this.#say('closed', { reason });
    if (next.then === 'rest') return this.#rest();
    if (next.then === 'renew') {
      if (this.#renewed || !this.#options.renew) return this.#say('closed', { reason });
      this.#say('reconnecting', { reason });
      if (this.#state === 'closed') return;
      try {
        await this.#renew();
        this.#renewed = true;
      } catch (error) {
        if (error.status >= 400 && error.status < 500 && error.status !== 429) return this.#say('closed', { reason: error });
      }
      if (this.#state === 'idle' && !this.#hidden) return this.wake(); // the tab was left and came back meanwhile
      if (this.#state !== 'reconnecting' || this.#leg) return;
    }
    const retryMs = this.#renewed && this.#attempt === 0 ? 0 : retryDelay(next, this.#attempt, Math.random);
    this.#attempt += 1;
    this.#timers.retry = this.#env.setTimeout(() => this.#open(), retryMs);
    this.#say('reconnecting', { reason, retryMs, attempt: this.#attempt });
    this.#considerRest();
  }

  /** A new token or cookie; one request however many ask for it. */
  #renew() {
    return (this.#renewing ??= this.#options.renew().then((token) => { this.#token = token ?? this.#token; })
      .finally(() => { this.#renewing = null; }));
  }

  #drop() {
    for (const name of Object.keys(this.#timers)) this.#env.clearTimeout(this.#timers[name]);
    this.#leg?.close();
    this.#leg = null;
  }

  #watch(limit, stalled) {
    const left = this.#bytesAt + limit() - this.#env.Date.now();
    if (left <= 0) return stalled({ stalled: true });
    this.#timers.watch = this.#env.setTimeout(() => this.#watch(limit, stalled), left);
  }

  // --- rest: a tab nobody looks at holds no connection ---------------------------------------------------------------

  #rest() {
    this.#drop();
    this.#attempt = 0;
    this.#say('idle');
  }

  #considerRest() {
    this.#env.clearTimeout(this.#timers.rest);
    if (this.#state === 'closed' || this.#state === 'idle') return;
    const sse = this.#transport === 'sse' || this.#leg?.sse;
    const restAt = !this.#hidden
      ? this.#running ? Infinity : this.#busyAt + VISIBLE_REST
      : this.#hiddenAt + (sse ? 0 : this.#running || this.#unanswered.size ? HIDDEN_RUNNING_REST : HIDDEN_REST);
    if (restAt === Infinity) return;
    const left = restAt - this.#env.Date.now();
    if (left <= 0) this.#rest();
    else this.#timers.rest = this.#env.setTimeout(() => this.#considerRest(), left);
  }

  #listen() {
    const { document, window } = this.#env;
    const on = (target, name, listener) => {
      target?.addEventListener?.(name, listener, { passive: true });
      if (target?.addEventListener) this.#listeners.push([target, name, listener]);
    };
    const shown = (trusted) => {
      // Phones kill sockets of sleeping pages without a word: silence on return is a dead socket until proven otherwise.
      if (this.#state !== 'closed' && (!trusted || this.#env.Date.now() - this.#bytesAt > STALE_ON_RETURN)) this.#drop();
      this.wake();
      this.#considerRest();
    };
    this.#hiddenAt = this.#env.Date.now();
    on(document, 'visibilitychange', () => {
      this.#hiddenAt = this.#env.Date.now();
      if (this.#hidden) this.#considerRest();
      else shown(true);
    });
    on(window, 'pageshow', (event) => event.persisted && shown(false));
    on(window, 'pagehide', (event) => event.persisted && this.#state !== 'closed' && this.#rest());
    on(window, 'online', () => {
      this.#tried(0); // it may be another network
      if (!this.#hidden) shown(false);
    });
    for (const name of ['focus', 'pointerdown', 'keydown']) {
      on(window, name, () => {
        this.#busyAt = this.#env.Date.now();
        if (this.#state === 'idle' && !this.#hidden) this.wake();
      });
    }
  }

  // --- requests: on the socket while it lives, else by POST under the same key ---------------------------------------

  async #ask(name, fields, path, body) {
    const id = randomId();
    this.wake();
    if (this.#state === 'live' && this.#leg?.send) {
      const answer = await new Promise((resolve) => {
        const timer = this.#env.setTimeout(() => resolve(null), ANSWER_TIMEOUT);
        this.#unanswered.set(id, { message: { event: name, data: fields }, resolve, timer });
        this.#leg.send({ event: name, data: { ...fields, request_id: id } });
      });
      this.#env.clearTimeout(this.#unanswered.get(id)?.timer);
      this.#unanswered.delete(id);
      if (answer?.event === 'accepted') return answer.data;
      if (answer) throw new OkomeError(answer.data.error ?? {}, answer.data.error?.status ?? 0, answer.data.error?.retry_after_ms ?? null);
    }
    const post = () => request('POST', path, { body, token: this.#token, key: id, base: this.#options.base, env: this.#env });
    try {
      return await post();
    } catch (error) {
      if (error.status !== 401 || !this.#options.renew) throw error;
      await this.#renew();
      this.wake();
      return post();
    }
  }

  #answered(event, data) {
    this.#unanswered.get(data?.request_id)?.resolve({ event, data });
  }

  #say(state, detail = {}) {
    if (this.#state === 'closed') return;
    const first = this.#state === null;
    this.#state = state;
    const said = { state, attempt: this.#attempt, ...detail };
    if (!first) return this.#call(this.#options.onState, said);
    // Not from inside `connect`: who hears it may use what that returns.
    queueMicrotask(() => this.#state === state && this.#call(this.#options.onState, said));
  }

  /** What a caller's own function throws is reported as if nobody had called it, and stops nothing here. */
  #call(callback, told) {
    try {
      callback(told);
    } catch (error) {
      if (this.#env.reportError) this.#env.reportError(error);
      else console.error(error); // Node has no other
    }
  }
}
