// What the page says to people: refusals, endings, states and numbers as words. Pure.

const SECONDS = (ms) => Math.max(1, Math.ceil(ms / 1000));

const REFUSALS = {
  overloaded: 'Every worker is busy right now.',
  rate_limited: 'That was a lot in a short time.',
  unavailable: 'New answers cannot be started at the moment; what is running goes on.',
  unreachable: 'The server does not answer.',
  unknown_session: 'This conversation does not exist, or it was deleted.',
  unknown_generation: 'This answer is no longer known.',
  forbidden: 'This conversation belongs to someone else.',
  unauthenticated: 'You are not signed in.',
  token_expired: 'Your access to this conversation has expired.',
  token_revoked: 'Access to this conversation was withdrawn.',
  generation_running: 'An answer is still being written. Stop it, or wait until it has ended.',
  too_large: 'This message is too large.',
  unknown_model: 'This model is not available.',
  context_length_exceeded: 'This conversation has become too long for the model.',
  stalled: 'The connection went silent.',
};

/** A refusal (`{code, message?, param?}`) as a sentence; `waitMs` says when trying again makes sense. */
export function refusal({ code, message, param }, waitMs = null) {
  const known = REFUSALS[code];
  const what = known ?? (message ? sentence(message) : 'Something went wrong.');
  const detail = code === 'malformed' && param && !what.toLowerCase().includes(param.toLowerCase()) ? ` (${param})` : '';
  return `${what}${detail}${waitMs === null ? '' : ` Try again in ${SECONDS(waitMs)} s.`}`;
}

const FAILURES = {
  engine_failed: 'The model failed while it was writing.',
  attempts_exhausted: 'Several workers tried and none could go on.',
  log_full: 'The log is full; the answer had to end here.',
  context_length_exceeded: REFUSALS.context_length_exceeded,
  tool_failed: 'A tool that the model called has failed.',
};

/** How an answer ended, or why it has not begun, as a sentence; '' where there is nothing to say. */
export function ending({ status, error, finishReason, position, text }) {
  switch (status) {
    case 'queued':
      return position > 0 ? `Waiting: ${position} before this one.` : '';
    case 'cancelled':
      return text ? 'Stopped.' : 'Stopped before it began.';
    case 'failed':
      return FAILURES[error?.code] ?? (error?.message ? sentence(error.message) : 'The answer failed.');
    case 'expired':
      return 'Nobody could take this in time.';
    case 'done':
      return { length: 'Reached its length limit.', content_filter: 'Held back by the content filter.' }[finishReason] ?? '';
    default:
      return '';
  }
}

const STATES = { connecting: 'Connecting', live: 'Live', reconnecting: 'Reconnecting', idle: 'Idle', closed: 'Closed' };
export const connectionState = (state) => STATES[state] ?? state;

export const duration = (ms) => (ms === null ? '–' : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`);
export const rate = (perSecond) => (perSecond === null ? '–' : `${perSecond.toFixed(perSecond < 99.95 ? 1 : 0)} tok/s`);
export const count = (n, one, many = `${one}s`) => `${n.toLocaleString('en')} ${n === 1 ? one : many}`;

/** A time (epoch milliseconds, or what Date reads) as a person would say it, seen from `now`. */
export function ago(time, now) {
  const then = new Date(time).getTime();
  if (!Number.isFinite(then)) return '';
  const minutes = Math.floor((now - then) / 60_000);
  if (minutes < 1) return 'now';
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)} h`;
  if (minutes < 7 * 24 * 60) return `${Math.floor(minutes / 1440)} d`;
  return new Date(then).toLocaleDateString('en', { day: 'numeric', month: 'short' });
}

export const SCRIPTED_EXAMPLE = '{"tokens": 200, "rate": 50, "seed": 7}';

/** A conversation's title from its first prompt. */
export function titleOf(prompt, model) {
  if (model === 'scripted') {
    try {
      const { tokens, rate: perSecond } = JSON.parse(prompt);
      if (tokens) return `Scripted: ${tokens} tokens${perSecond ? ` at ${perSecond}/s` : ''}`;
    } catch {
      // The server will name what is wrong with it; a title needs no object.
    }
  }
  const line = prompt.trim().split('\n')[0].replace(/\s+/g, ' ');
  const characters = [...line]; // of UTF-16's units, some are half a character
  return characters.length > 60 ? `${characters.slice(0, 59).join('').trimEnd()}…` : line;
}

const sentence = (text) => {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(whole) ? whole : `${whole}.`;
};
