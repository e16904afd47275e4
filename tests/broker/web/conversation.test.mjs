import assert from 'node:assert/strict';
import { test } from 'node:test';
import { accept, expect, fold, forget, newConversation, openTurn, prepend, timeToFirstToken, tokenRate, turnOf } from '../../../broker/web/conversation.js';

const GID = 'g1';
const event = (name, data = {}) => ({ event: name, data: { generation_id: GID, ...data } });
const start = (prompt = 'hi') => event('start', { epoch: 1, model: 'm', worker: 'w1', offset: 0, input: [{ role: 'user', content: prompt }] });
const token = (offset, text, n = 1) => event('token', { offset, text, n });
const folded = (events, conversation = newConversation()) => {
  events.forEach((one, at) => fold(conversation, one, at * 10));
  return conversation;
};

test('an answer is its tokens in order, then its end', () => {
  const { turns: [turn] } = folded([start(), token(0, 'a', 2), token(2, 'b'), event('usage', { prompt_tokens: 4, completion_tokens: 3 }), event('done', { offset: 3, finish_reason: 'stop' })]);
  assert.equal(turn.text, 'ab');
  assert.equal(turn.status, 'done');
  assert.deepEqual(turn.usage, { prompt: 4, completion: 3 });
  assert.deepEqual([turn.epoch, turn.model, turn.worker], [1, 'm', 'w1']);
});

test('folding everything twice changes nothing', () => {
  const events = [start(), token(0, 'a'), token(1, 'b'), event('done', { offset: 2 })];
  assert.deepEqual(folded([...events, ...events]).turns.map(({ text }) => text), ['ab']);
  assert.deepEqual(folded([start(), token(0, 'a'), start(), token(0, 'a'), token(1, 'b')]).turns.map(({ text }) => text), ['ab']);
});

test('nothing follows an end', () => {
  const { turns: [turn] } = folded([start(), event('cancelled', { offset: 0 }), token(0, 'ghost'), event('done', { offset: 1 })]);
  assert.deepEqual([turn.status, turn.text], ['cancelled', '']);
});

test('another worker goes on where the first one stopped', () => {
  const { turns: [turn] } = folded([start(), token(0, 'a'), event('attempt', { epoch: 2, worker: 'w2', offset: 1 }), token(1, 'b')]);
  assert.deepEqual([turn.text, turn.epoch, turn.worker], ['ab', 2, 'w2']);
});

test('a draft is a tail that tokens commit and a rollback empties; a stale one is ignored', () => {
  const conversation = folded([start(), token(0, 'a')]);
  const [turn] = conversation.turns;
  fold(conversation, event('draft', { offset: 1, text: 'bcd', rev: 2 }), 0);
  assert.equal(turn.draft, 'bcd');
  fold(conversation, event('draft', { offset: 1, text: 'old', rev: 1 }), 0);
  fold(conversation, event('draft', { offset: 0, text: 'elsewhere', rev: 3 }), 0);
  assert.equal(turn.draft, 'bcd');
  fold(conversation, token(1, 'b'), 0);
  assert.deepEqual([turn.text, turn.draft], ['ab', '']);
  fold(conversation, event('draft', { offset: 2, text: 'x', rev: 4 }), 0);
  fold(conversation, event('rollback', { offset: 2, rev: 5 }), 0);
  assert.deepEqual([turn.text, turn.draft], ['ab', '']);
});

test('finished turns come in one piece, the running one token by token', () => {
  const conversation = folded([
    { event: 'message', data: { generation_id: 'g0', role: 'user', content: 'q' } },
    { event: 'message', data: { generation_id: 'g0', role: 'assistant', content: 'answer', finish_reason: 'stop' } },
    start('next'), token(0, 'x'), { event: 'caught_up', data: { cursor: 'i-4' } }]);
  assert.deepEqual(conversation.turns.map(({ id, text, status }) => [id, text, status]), [['g0', 'answer', 'done'], [GID, 'x', 'running']]);
  assert.equal(openTurn(conversation).id, GID);
});

test('a message that says it was stopped stays stopped', () => {
  const { turns: [turn] } = folded([event('message', { role: 'user', content: 'q' }), event('message', { role: 'assistant', content: 'half', finish_reason: 'cancelled' })]);
  assert.equal(turn.status, 'cancelled');
});

test('a failure keeps its words', () => {
  const { turns: [turn] } = folded([start(), event('failed', { offset: 0, code: 'engine_failed', message: 'no', retryable: true })]);
  assert.deepEqual(turn.error, { code: 'engine_failed', message: 'no', retryable: true });
});

test('a failure keeps its words for whoever comes later, and says whether asking again is of use', () => {
  for (const [code, retryable] of [['context_length_exceeded', false], ['log_full', false], ['engine_failed', true]]) {
    const { turns: [turn] } = folded([event('message', { role: 'user', content: 'q' }),
      event('message', { role: 'assistant', content: 'half', finish_reason: 'failed', error: { code, message: 'no' } })]);
    assert.deepEqual([turn.status, turn.error], ['failed', { code, message: 'no', retryable }]);
  }
});

test('a prompt is shown at once and becomes its generation, whichever of answer and events comes first', () => {
  for (const answerFirst of [true, false]) {
    const conversation = newConversation();
    const turn = expect(conversation, 'hi', 0);
    if (answerFirst) accept(conversation, turn, GID);
    folded([start(), token(0, 'a')], conversation);
    assert.equal(accept(conversation, turn, GID), turn);
    assert.deepEqual(conversation.turns.map(({ id, text }) => [id, text]), [[GID, 'a']]);
  }
});

test('the same words asked before are not taken for the prompt that waits', () => {
  const conversation = newConversation();
  folded([{ event: 'hello', data: {} }, { event: 'message', data: { generation_id: 'g0', role: 'user', content: 'hi' } }], conversation);
  const turn = expect(conversation, 'hi', 0);
  fold(conversation, { event: 'message', data: { generation_id: 'g0', role: 'assistant', content: 'hello' } }, 0);
  accept(conversation, turn, GID);
  assert.deepEqual(conversation.turns.map(({ id }) => id), ['g0', GID]);
});

test('a prompt taken for another device\'s turn gets its own when its name is known', () => {
  const conversation = newConversation();
  conversation.live = true;
  const turn = expect(conversation, 'hi', 5);
  fold(conversation, { event: 'start', data: { ...start().data, generation_id: 'other' } }, 0);
  const mine = accept(conversation, turn, GID);
  assert.deepEqual(conversation.turns.map(({ id }) => id), ['other', GID]);
  assert.equal(mine.sentAt, 5);
});

test('a refused prompt leaves no trace', () => {
  const conversation = newConversation();
  forget(conversation, expect(conversation, 'hi', 0));
  assert.deepEqual([conversation.turns, conversation.pending], [[], null]);
});

test('a reset forgets the turns, and an answer whose beginning is gone says so', () => {
  const conversation = folded([start(), token(0, 'a'), { event: 'reset', data: { earliest: 'n-1', reason: 'aged_out' } }, token(7, 'later')]);
  assert.deepEqual(conversation.turns.map(({ text, gap }) => [text, gap]), [['later', true]]);
  assert.equal(conversation.resets, 1);
});

test('older messages are put before the known turns, none twice', () => {
  const conversation = folded([start(), token(0, 'a')]);
  prepend(conversation, [{ generation_id: 'g0', role: 'user', content: 'q' }, { generation_id: 'g0', role: 'assistant', content: 'r' }, { generation_id: GID, role: 'user', content: 'hi' }]);
  assert.deepEqual(conversation.turns.map(({ id, text }) => [id, text]), [['g0', 'r'], [GID, 'a']]);
});

test('what is kept of an answer says how it ended, and one still running is left to the stream', () => {
  const conversation = newConversation();
  prepend(conversation, [{ generation_id: 'g0', role: 'assistant', content: 'half', status: 'cancelled', finish_reason: null }, { generation_id: GID, role: 'assistant', content: 'so far', status: 'running' }]);
  assert.deepEqual(conversation.turns.map(({ id, status, sealed }) => [id, status, sealed]), [['g0', 'cancelled', true]]);
});

test('unknown events and fields are let through', () => {
  const conversation = folded([start(), event('hologram', { depth: 3 }), { event: 'weather', data: null }, token(0, 'a')]);
  assert.equal(turnOf(conversation, GID).text, 'a');
});

test('time to first token is from sending; a page that did not send knows none', () => {
  const conversation = newConversation();
  const turn = expect(conversation, 'hi', 100);
  accept(conversation, turn, GID);
  fold(conversation, start(), 200);
  fold(conversation, token(0, 'a'), 350);
  fold(conversation, token(1, 'b'), 900);
  assert.equal(timeToFirstToken(turn), 250);
  assert.equal(timeToFirstToken(folded([start(), token(0, 'a')]).turns[0]), null);
});

test('the rate counts what arrived live: history after a resume is no speed', () => {
  const conversation = newConversation();
  fold(conversation, start(), 0);
  for (let i = 0; i < 100; i += 1) fold(conversation, token(i, 'x'), 1);
  fold(conversation, { event: 'caught_up', data: {} }, 1);
  const [turn] = conversation.turns;
  assert.equal(tokenRate(turn, 1), null);
  for (let i = 0; i <= 500; i += 1) fold(conversation, token(100 + i, 'x'), i * 20);
  assert.ok(Math.abs(tokenRate(turn, 10_000) - 50) < 1, `${tokenRate(turn, 10_000)}`);
  assert.equal(tokenRate(turn, 20_000), 0);
  fold(conversation, event('done', { offset: 601 }), 30_000);
  assert.equal(tokenRate(turn, 30_000), 50);
});
