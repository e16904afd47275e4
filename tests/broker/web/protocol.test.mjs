import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Position, SseParser, backoff, chooseTransport, parseCursor, parseRetryAfter, retryDelay, verdict } from '../../../broker/web/protocol.js';

const token = (id) => ({ event: 'token', id, data: {} });

test('a cursor is an incarnation and a sequence; anything else is none', () => {
  assert.deepEqual(parseCursor('ab12cd34-1042'), { incarnation: 'ab12cd34', sequence: 1042 });
  assert.deepEqual(parseCursor('a-b-7'), { incarnation: 'a-b', sequence: 7 });
  for (const none of [null, undefined, '', '0', 'now', 'ab12-', '-4', 'ab12-x']) assert.equal(parseCursor(none), null);
});

test('a frame is admitted once, whatever is sent again', () => {
  const position = new Position();
  const admitted = ['i-1', 'i-2', 'i-2', 'i-1', 'i-3', 'i-3'].filter((id) => position.admit(token(id)));
  assert.deepEqual(admitted, ['i-1', 'i-2', 'i-3']);
  assert.equal(position.cursor, 'i-3');
});

test('events without an id always pass and do not move the cursor', () => {
  const position = new Position('i-5');
  assert.ok(position.admit({ event: 'draft', id: null, data: {} }));
  assert.ok(position.admit({ event: 'served_by', data: {} }));
  assert.equal(position.cursor, 'i-5');
});

test('two finished messages may end at one frame; a frame behind them may not be older', () => {
  const position = new Position();
  assert.ok(position.admit({ event: 'message', id: 'i-9', data: {} }));
  assert.ok(position.admit({ event: 'message', id: 'i-9', data: {} }));
  assert.ok(!position.admit(token('i-9')));
});

test('a greeting does not skip the history of a fresh attach, but is where "now" begins', () => {
  const fresh = new Position();
  fresh.admit({ event: 'hello', id: 'i-50', data: {} });
  assert.equal(fresh.cursor, null);
  assert.ok(fresh.admit(token('i-1')));
  const now = new Position('now');
  now.admit({ event: 'hello', id: 'i-50', data: {} });
  assert.equal(now.cursor, 'i-50');
});

test('caught_up moves the cursor forward only', () => {
  const position = new Position('i-5');
  position.admit({ event: 'caught_up', data: { cursor: 'i-3' } });
  assert.equal(position.cursor, 'i-5');
  position.admit({ event: 'caught_up', data: { cursor: 'i-8' } });
  assert.equal(position.cursor, 'i-8');
});

test('a reset forgets the cursor, and the same sequences of the new log are admitted', () => {
  const position = new Position('old-9');
  position.admit({ event: 'reset', data: { earliest: 'new-1', reason: 'incarnation' } });
  assert.equal(position.cursor, null);
  assert.ok(position.admit(token('new-1')));
});

const STREAM = '\ufeff: hi\r\nevent: hello\r\nid: i-0\r\ndata: {"a":1}\r\n\r\n: hb\nevent: token\nid: i-1\ndata: {"text":\ndata:  "é🍚"}\n\nid: i-2\n\nevent: done\rdata: x\r\r';
const EVENTS = [
  { event: 'hello', id: 'i-0', data: '{"a":1}' },
  { event: 'token', id: 'i-1', data: '{"text":\n "é🍚"}' },
  { event: 'done', id: null, data: 'x' },
];

test('the event stream is read the same however it is cut', () => {
  for (let size = 1; size <= STREAM.length; size += 1) {
    const parser = new SseParser();
    const events = [];
    for (let at = 0; at < STREAM.length; at += size) events.push(...parser.feed(STREAM.slice(at, at + size)));
    assert.deepEqual(events, EVENTS, `chunks of ${size}`);
  }
});

test('an event cut off before its blank line is not delivered', () => {
  assert.deepEqual(new SseParser().feed('event: token\nid: i-1\ndata: {}\n'), []);
});

test('an id with a NUL is ignored', () => {
  assert.deepEqual(new SseParser().feed('id: a\0b\ndata: x\n\n'), [{ event: 'message', id: null, data: 'x' }]);
});

test('what an ending asks for', () => {
  for (const socketCode of [4400, 4403, 4404]) assert.equal(verdict({ socketCode }).then, 'never');
  for (const status of [400, 403, 404]) assert.equal(verdict({ status }).then, 'never');
  for (const socketCode of [4401, 4408]) assert.equal(verdict({ socketCode }).then, 'renew');
  assert.equal(verdict({ status: 401 }).then, 'renew');
  assert.equal(verdict({ socketCode: 1000 }).then, 'rest');
  assert.equal(verdict({ status: 204 }).then, 'rest');
  for (const ending of [{}, { socketCode: 1006 }, { socketCode: 1013 }, { socketCode: 4429 }, { status: 503 }, { stalled: true }]) assert.equal(verdict(ending).then, 'retry');
});

test('the last word of the server beats the code its socket closed with', () => {
  assert.deepEqual(verdict({ closed: { code: 'overloaded', retry_after_ms: 700 }, socketCode: 1000 }), { then: 'retry', afterMs: 700, soon: false });
  assert.equal(verdict({ closed: { code: 'unknown_session' }, socketCode: 1001 }).then, 'never');
  assert.equal(verdict({ closed: { code: 'token_expired' } }).then, 'renew');
  assert.equal(verdict({ reconnect: { after_ms: 40 } }).afterMs, 40);
});

test('backoff spreads over the whole range, doubles, and is capped', () => {
  assert.equal(backoff(0, () => 0), 0);
  assert.equal(backoff(0, () => 1), 250);
  assert.equal(backoff(3, () => 1), 2000);
  assert.equal(backoff(500, () => 1), 10_000);
});

test('never back before the server said, and spread behind it', () => {
  assert.equal(retryDelay({ afterMs: 5000 }, 0, () => 0), 5000);
  assert.equal(retryDelay({ afterMs: 5000 }, 0, () => 1), 5250);
  assert.ok(retryDelay({ afterMs: null, soon: true }, 1, () => 1) <= 100);
});

test('the event stream is used once two sockets in a row did not open', () => {
  assert.deepEqual([0, 1, 2].map((failed) => chooseTransport('auto', failed)), ['ws', 'ws', 'sse']);
  assert.equal(chooseTransport('ws', 9), 'ws');
  assert.equal(chooseTransport('sse', 0), 'sse');
});

test('Retry-After is seconds or a date', () => {
  assert.equal(parseRetryAfter('7', 0), 7000);
  assert.equal(parseRetryAfter('Thu, 01 Jan 1970 00:00:10 GMT', 4000), 6000);
  for (const none of [null, '', 'soon']) assert.equal(parseRetryAfter(none, 0), null);
});
