// The events of one session folded into turns: what was asked, what is being answered, by whom and how fast.
// Pure: the arrival time (milliseconds, monotonic) is an argument. Folding an event twice changes nothing.

import { TERMINALS } from './protocol.js';

const RATE_WINDOW = 3_000;
const FINAL = ['context_length_exceeded', 'log_full']; // failures after which the same session has no more to give

/**
 * A conversation: `turns` in order; `node` and `ingress` that serve it; `live` once history is over; `reset` counts how often the log
 * could not be continued and the turns were forgotten.
 */
export const newConversation = () => ({ turns: [], pending: null, node: null, ingress: null, live: false, resets: 0 });

const newTurn = (id) => ({
  id, // generation id; null until the server has named it
  input: [], // this turn's new messages, [{role, content}]
  text: '',
  reasoning: '',
  draft: '', // provisional tail behind `text`, never kept
  draftRev: -1,
  next: 0, // offset of the next token
  gap: false, // the log no longer had an earlier part
  tools: [], // [{id, name, arguments, result?, error?}]
  status: 'sending', // sending | queued | running | done | failed | cancelled | expired
  sealed: false, // ended: nothing may follow
  position: null, // in the queue
  epoch: null, model: null, worker: null,
  finishReason: null, usage: null, error: null,
  sentAt: null, firstTokenAt: null, samples: [], liveTokens: 0, liveSince: null, lastTokenAt: null,
});

/** The turn of a generation, or undefined. */
export const turnOf = (conversation, id) => conversation.turns.findLast((turn) => turn.id === id);

/** The turn that is not over, or undefined: at most one runs in a session. */
export const openTurn = (conversation) => {
  const last = conversation.turns.at(-1);
  return last && ['sending', 'queued', 'running'].includes(last.status) ? last : undefined;
};

/** Shows a prompt at once, before the server has named its generation. */
export function expect(conversation, prompt, now) {
  const turn = Object.assign(newTurn(null), { input: [{ role: 'user', content: prompt }], sentAt: now });
  conversation.turns.push(turn);
  conversation.pending = turn;
  return turn;
}

/** The server has named the expected turn; returns the turn that stands for it (its events may have come first). */
export function accept(conversation, turn, id) {
  if (conversation.pending === turn) conversation.pending = null;
  if (turn.id === id) return turn;
  const known = turnOf(conversation, id);
  if (known) {
    known.sentAt ??= turn.sentAt;
    if (turn.id === null) forget(conversation, turn);
    return known;
  }
  if (turn.id !== null) { // taken for another device's turn of the same words
    turn = Object.assign(newTurn(null), { input: turn.input, sentAt: turn.sentAt });
    conversation.turns.push(turn);
  }
  turn.id = id;
  turn.status = 'queued';
  return turn;
}

/** The expected turn was refused, or never arrived. */
export function forget(conversation, turn) {
  if (conversation.pending === turn) conversation.pending = null;
  const at = conversation.turns.indexOf(turn);
  if (at >= 0) conversation.turns.splice(at, 1);
}

/** Folds one event; returns the turn it changed, if it changed one. Unknown events and fields are let through untouched. */
export function fold(conversation, { event, data }, now) {
  switch (event) {
    case 'hello':
      conversation.live = false;
      conversation.node = data.node ?? conversation.node;
      return null;
    case 'served_by':
      conversation.node = data.node ?? conversation.node;
      conversation.ingress = data.ingress ?? conversation.ingress;
      return null;
    case 'caught_up':
      conversation.live = true;
      return null;
    case 'reset':
      conversation.turns = conversation.pending ? [conversation.pending] : [];
      conversation.resets += 1;
      return null;
  }
  if (!data?.generation_id) return null;
  const turn = turnOf(conversation, data.generation_id) ?? adopt(conversation, event, data);
  if (!turn || turn.sealed) return null;
  return apply(conversation, turn, event, data, now) ? turn : null;
}

/** Puts older messages (`GET …/messages`) before the turns that are known already. */
export function prepend(conversation, messages) {
  const older = newConversation();
  for (const message of messages) {
    if (['queued', 'running'].includes(message.status)) continue; // what is not finished comes by the stream
    if (!turnOf(conversation, message.generation_id)) fold(older, { event: 'message', data: message }, 0);
  }
  conversation.turns.unshift(...older.turns);
}

function adopt(conversation, event, data) {
  const { pending } = conversation;
  // The answer to a send and the events it causes come by two ways. History is no echo: it may hold the same words, asked before.
  const fresh = pending && (conversation.live || conversation.turns.length === 1) && ['queued', 'start'].includes(event);
  if (fresh && data.input?.at(-1)?.content === pending.input[0].content) {
    conversation.pending = null;
    pending.id = data.generation_id;
    return pending;
  }
  if (['draft', 'rollback'].includes(event)) return null;
  const turn = newTurn(data.generation_id);
  turn.status = event === 'queued' ? 'queued' : event === 'message' ? 'done' : 'running';
  // A prompt whose generation is not yet named stays the last.
  conversation.turns.splice(pending ? -1 : conversation.turns.length, 0, turn);
  return turn;
}

function apply(conversation, turn, event, data, now) {
  if (TERMINALS.includes(event)) {
    turn.status = event;
    turn.sealed = true;
    turn.draft = '';
    turn.finishReason = data.finish_reason ?? null;
    if (event === 'failed' || event === 'expired') turn.error = { code: data.code, message: data.message, retryable: data.retryable ?? false };
    return true;
  }
  switch (event) {
    case 'message':
      return message(turn, data, now);
    case 'queued':
      if (turn.status === 'running') return false;
      turn.status = 'queued';
      turn.position = data.position ?? null;
      turn.input = data.input ?? turn.input;
      return true;
    case 'start':
      Object.assign(turn, { status: 'running', epoch: data.epoch, model: data.model, worker: data.worker ?? turn.worker, input: data.input ?? turn.input });
      return true;
    case 'attempt':
      Object.assign(turn, { status: 'running', epoch: data.epoch, worker: data.worker ?? turn.worker, draft: '' });
      return true;
    case 'token':
    case 'reasoning':
      return tokens(conversation, turn, event, data, now);
    case 'draft':
    case 'rollback':
      if (data.offset !== turn.next || (data.rev ?? 0) < turn.draftRev) return false; // about an older tail
      turn.draftRev = data.rev ?? 0;
      turn.draft = event === 'draft' ? data.text : '';
      return true;
    case 'tool_call':
      turn.tools.push({ id: data.call_id, name: data.name, arguments: data.arguments });
      return true;
    case 'tool_result':
      Object.assign(turn.tools.find((tool) => tool.id === data.call_id) ?? {}, { result: data.result, error: data.error });
      return true;
    case 'usage':
      turn.usage = { prompt: data.prompt_tokens, completion: data.completion_tokens };
      return true;
    default:
      return false;
  }
}

function message(turn, data, now) {
  if (data.role !== 'assistant') {
    turn.input = turn.input.some(({ role, content }) => role === data.role && content === data.content)
      ? turn.input : [...turn.input, { role: data.role, content: data.content }];
    return true;
  }
  turn.text = data.content;
  turn.sealed = true;
  turn.finishReason = data.finish_reason ?? null;
  turn.status = [data.status, data.finish_reason].find((word) => TERMINALS.includes(word)) ?? 'done';
  if (data.error) turn.error = { ...data.error, retryable: !FINAL.includes(data.error.code) };
  if (data.usage) turn.usage = { prompt: data.usage.prompt_tokens, completion: data.usage.completion_tokens };
  if (turn.sentAt !== null) turn.firstTokenAt ??= now;
  return true;
}

function tokens(conversation, turn, event, data, now) {
  const { offset, n = 1, text } = data;
  if (offset < turn.next) return false; // said already
  if (offset > turn.next) turn.gap = true;
  turn.status = 'running';
  turn.next = offset + n;
  turn.draft = '';
  if (event === 'token') turn.text += text;
  else turn.reasoning += text;
  if (turn.sentAt !== null) turn.firstTokenAt ??= now;
  if (conversation.live) {
    // The first live frame only starts the clock: how long its tokens took is not known here.
    if (turn.liveSince === null) turn.liveSince = now;
    else turn.liveTokens += n;
    turn.lastTokenAt = now;
    turn.samples.push([now, n]);
    while (turn.samples[0][0] < now - RATE_WINDOW) turn.samples.shift();
  }
  return true;
}

/** Milliseconds from sending to the first token, or null where this page did not send it or nothing has come. */
export const timeToFirstToken = ({ sentAt, firstTokenAt }) => (sentAt === null || firstTokenAt === null ? null : firstTokenAt - sentAt);

/** Tokens per second as they arrive here: over the last 3 s while it runs, over the whole afterwards; null while unknown. */
export function tokenRate(turn, now) {
  if (turn.liveSince === null) return null;
  if (turn.sealed) return turn.lastTokenAt > turn.liveSince ? (turn.liveTokens * 1000) / (turn.lastTokenAt - turn.liveSince) : null;
  const recent = turn.samples.filter(([at]) => at >= now - RATE_WINDOW);
  if (!recent.length) return 0;
  const whole = turn.liveSince >= now - RATE_WINDOW;
  const count = recent.reduce((sum, [, n]) => sum + n, 0) - (whole ? recent[0][1] : 0);
  const span = whole ? now - turn.liveSince : RATE_WINDOW;
  return span < 200 ? null : (count * 1000) / span;
}
