// One JSON call to the API, and what a refusal looks like.

import { parseRetryAfter } from './protocol.js';

const REQUEST_TIMEOUT = 20_000;

/** A refusal. `code` as in the API, or `unreachable`; `status` 0 when no answer came; `retryAfterMs` milliseconds or null. */
export class OkomeError extends Error {
  constructor({ code = 'unreachable', message = 'no answer', param = null, request_id = null }, status = 0, retryAfterMs = null, cause) {
    super(message, { cause });
    Object.assign(this, { name: 'OkomeError', code, status, param, requestId: request_id, retryAfterMs });
  }
}

/** 128 random bits; crypto.randomUUID exists only on secure origins, and a page on a LAN address is not one. */
export const randomId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');

const HALF = /\p{Surrogate}/gu; // of a character that somebody has cut in two

/** As JSON that the server takes: half a character becomes U+FFFD. */
export const toJson = (value) => JSON.stringify(value, (_, part) => (typeof part === 'string' ? part.replace(HALF, '\ufffd') : part));

/** One JSON call. Returns the answer's body (null when empty); throws OkomeError. */
export async function request(method, path, { body, token, key, base = '', env = globalThis } = {}) {
  const headers = { Accept: 'application/json' };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  if (token) headers.Authorization = `Bearer ${token}`;
  if (key) headers['Idempotency-Key'] = key;
  let response, text;
  try {
    const signal = AbortSignal.timeout(REQUEST_TIMEOUT);
    response = await env.fetch(base + path, { method, headers, body: body && toJson(body), cache: 'no-store', signal });
    text = await response.text();
  } catch (cause) {
    throw new OkomeError({ message: 'The server did not answer.' }, 0, null, cause);
  }
  let answer = null;
  try {
    if (text) answer = JSON.parse(text);
  } catch (cause) {
    throw new OkomeError({ code: 'malformed', message: `Not JSON (status ${response.status}).` }, response.status, null, cause);
  }
  if (response.ok) return answer;
  throw new OkomeError(answer?.error ?? { code: `http_${response.status}`, message: response.statusText }, response.status,
    parseRetryAfter(response.headers.get('Retry-After'), Date.now()));
}
