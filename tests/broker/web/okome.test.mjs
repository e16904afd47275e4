import assert from 'node:assert/strict';
import { test } from 'node:test';
import { OkomeError, connect, createSession } from '../../../broker/web/okome.js';
import { browser, following, greet, json, token } from './fakes.mjs';

test('the socket is asked for with the subprotocol, the token and the place to go on', () => {
  const { world } = following({ token: 'a.b.c', after: 'i-7', drafts: true });
  assert.equal(world.socket.url.href, 'ws://page.test/v1/sessions/07session/ws?after=i-7&drafts=1');
  assert.deepEqual(world.socket.protocols, ['okome.v1', 'bearer.a.b.c']);
  const cookie = following();
  assert.deepEqual(cookie.world.socket.protocols, ['okome.v1']);
  assert.equal(cookie.world.socket.url.search, '');
  assert.equal(following({ base: 'https://other.test' }).world.socket.url.origin, 'wss://other.test');
});

test('after a cut it goes on at the cursor, and every token is heard once', async () => {
  const { world, heard, states, stream } = following();
  await world.settle();
  greet(world.socket);
  token(world.socket, 1);
  token(world.socket, 2);
  world.socket.end(1006);
  assert.equal(stream.state, 'reconnecting');
  await world.pass(500);
  assert.equal(world.socket.url.searchParams.get('after'), 'i-2');
  world.socket.say('hello', {}, 'i-2');
  token(world.socket, 2);
  token(world.socket, 3);
  assert.deepEqual(heard.filter((one) => one.startsWith('t')), ['t1', 't2', 't3']);
  assert.deepEqual(states, ['connecting', 'live', 'reconnecting', 'reconnecting', 'live']);
});

test('a leg that was replaced is not heard any more', async () => {
  const { world, heard } = following();
  greet(world.socket);
  const first = world.socket;
  first.say('reconnect', { cursor: 'i-0', after_ms: 10 });
  await world.pass(200);
  assert.equal(world.sockets.length, 2);
  token(first, 9);
  first.end(1006);
  await world.pass(1000);
  assert.ok(!heard.includes('t9'));
  assert.equal(world.sockets.length, 2);
});

test('a leaving node says when to come back', async () => {
  const { world } = following();
  greet(world.socket);
  world.socket.say('reconnect', { cursor: 'i-0', after_ms: 800 });
  await world.pass(790);
  assert.equal(world.sockets.length, 1);
  await world.pass(200);
  assert.equal(world.sockets.length, 2);
});

test('an overloaded server is left alone as long as it asked', async () => {
  const { world } = following();
  world.socket.say('closed', { code: 'overloaded', message: 'busy', retry_after_ms: 4000 });
  world.socket.end(1013);
  await world.pass(3990);
  assert.equal(world.sockets.length, 1);
  await world.pass(300);
  assert.equal(world.sockets.length, 2);
});

test('a refusal for good is not repeated', async () => {
  for (const code of [4400, 4403, 4404]) {
    const { world, stream } = following();
    world.socket.end(code);
    await world.pass(600_000);
    assert.equal(stream.state, 'closed');
    assert.equal(world.sockets.length, 1);
  }
});

test('an expired token is renewed once; refused again, it is over', async () => {
  let renewed = 0;
  const { world, stream } = following({ token: 'old', renew: async () => { renewed += 1; return 'new'; } });
  world.socket.end(4401);
  await world.pass(10);
  assert.deepEqual(world.socket.protocols, ['okome.v1', 'bearer.new']);
  world.socket.end(4401);
  await world.pass(60_000);
  assert.equal(renewed, 1);
  assert.equal(stream.state, 'closed');
});

test('a cookie that is gone is renewed: the server waits for a token, and then says 4408', async () => {
  const { world, stream } = following({ renew: async () => undefined });
  world.socket.end(4408);
  await world.pass(10);
  greet(world.socket);
  assert.equal(stream.state, 'live');
  const nobody = following();
  nobody.world.socket.end(4408);
  await nobody.world.pass(60_000);
  assert.deepEqual([nobody.stream.state, nobody.world.sockets.length], ['closed', 1]);
});

test('a renewal that cannot be made now is tried again; one that is refused ends it', async () => {
  const answers = [new OkomeError({}, 0), new OkomeError({ code: 'unauthenticated' }, 401)];
  const { world, stream } = following({ renew: async () => { throw answers.shift(); } });
  world.socket.end(4401);
  await world.pass(1000);
  assert.equal(world.sockets.length, 2);
  world.socket.end(4401);
  await world.pass(60_000);
  assert.equal(stream.state, 'closed');
});

test('a tab that is seen again while its token is renewed connects as soon as it has one', async () => {
  for (const renewal of [() => 'new', () => { throw new OkomeError({}, 0); }]) {
    const waiting = [];
    const { world, stream } = following({ token: 'old', renew: () => new Promise((resolve) => waiting.push(resolve)).then(renewal) });
    greet(world.socket);
    world.socket.end(4401);
    await world.hide(true);
    await world.pass(6_000);
    assert.equal(stream.state, 'idle');
    await world.hide(false);
    waiting[0]();
    await world.settle();
    assert.equal(world.connections, 1);
  }
});

test('25 s without a byte is a dead connection; a heartbeat is a byte', async () => {
  const { world } = following();
  greet(world.socket);
  await world.pass(20_000);
  world.socket.say('hb');
  await world.pass(24_000);
  assert.equal(world.sockets.length, 1);
  await world.pass(2_000);
  assert.equal(world.sockets.length, 2);
  assert.equal(world.sockets[0].readyState, 3);
});

test('a message that is not JSON is a hole: it goes on at the cursor', async () => {
  const { world } = following();
  greet(world.socket);
  token(world.socket, 1);
  world.socket.onmessage({ data: '{"event": "tok' });
  await world.pass(500);
  assert.equal(world.socket.url.searchParams.get('after'), 'i-1');
});

test('hidden with nothing running, the connection is given up after 5 s, and taken up at the cursor when seen again', async () => {
  const { world, stream } = following();
  greet(world.socket);
  token(world.socket, 1);
  world.socket.say('done', { generation_id: 'g1', offset: 1 }, 'i-2');
  await world.hide(true);
  await world.pass(4_900);
  assert.equal(world.connections, 1);
  await world.pass(200);
  assert.equal(world.connections, 0);
  assert.equal(stream.state, 'idle');
  await world.hide(false);
  assert.equal(world.connections, 1);
  assert.equal(world.socket.url.searchParams.get('after'), 'i-2');
});

test('hidden while an answer runs, it is given up after 30 s, or 5 s after being hidden when the answer has ended', async () => {
  const { world, stream } = following();
  greet(world.socket);
  token(world.socket, 1);
  await world.hide(true);
  await world.pass(20_000);
  assert.equal(stream.state, 'live');
  world.socket.say('hb');
  await world.pass(10_100);
  assert.equal(stream.state, 'idle');
  await world.hide(false);
  greet(world.socket);
  token(world.socket, 2);
  await world.hide(true);
  await world.pass(8_000);
  assert.equal(stream.state, 'live');
  world.socket.say('done', { generation_id: 'g1', offset: 2 }, 'i-3');
  assert.equal(stream.state, 'idle');
});

test('a tab opened in the background connects when it is first seen', async () => {
  const world = browser();
  world.env.document.hidden = true;
  const stream = connect('07session', { env: world.env });
  await world.pass(60_000);
  assert.equal(world.sockets.length, 0);
  await world.hide(false);
  assert.equal(world.connections, 1);
  assert.equal(stream.state, 'connecting');
});

test('looked at but unused for five minutes, it rests; a touch wakes it', async () => {
  const { world, stream } = following();
  greet(world.socket);
  for (let i = 0; i < 29; i += 1) {
    await world.pass(10_000);
    world.socket.say('hb');
  }
  assert.equal(stream.state, 'live');
  await world.pass(11_000);
  assert.equal(stream.state, 'idle');
  assert.equal(world.connections, 0);
  await world.happen('pointerdown');
  assert.equal(world.connections, 1);
});

test('a page that comes back from the cache, or to a silent socket, does not trust it', async () => {
  const { world } = following();
  greet(world.socket);
  await world.happen('pageshow', { persisted: true });
  assert.equal(world.sockets.length, 2);
  greet(world.socket);
  token(world.socket, 1);
  await world.hide(true);
  await world.pass(13_000);
  assert.equal(world.sockets.length, 2);
  await world.hide(false);
  assert.equal(world.sockets.length, 3);
  assert.equal(world.connections, 1);
});

test('back online, it does not wait for its backoff', async () => {
  const { world } = following();
  world.socket.say('closed', { code: 'unavailable', retry_after_ms: 9_000 });
  world.socket.end(1013);
  const before = world.sockets.length;
  await world.happen('online');
  assert.equal(world.sockets.length, before + 1);
});

test('an answer is asked for on the socket', async () => {
  const { world, stream } = following();
  greet(world.socket);
  const asking = stream.generate({ prompt: 'hi', model: 'm' });
  const [{ event, data }] = world.socket.sent;
  assert.deepEqual([event, data.prompt, data.model], ['generate', 'hi', 'm']);
  world.socket.say('accepted', { request_id: data.request_id, generation_id: 'g1', cursor: 'i-0' });
  assert.equal((await asking).generation_id, 'g1');
  assert.equal(stream.running, 'g1');
});

test('half a character is sent as the mark of one, on the socket and by POST', async () => {
  const { world, stream } = following();
  greet(world.socket);
  const asking = stream.generate({ prompt: '\udc00a\ud83d', messages: [{ content: '😀\ud83d' }] });
  const [{ data }] = world.socket.sent;
  assert.deepEqual([data.prompt, data.messages], ['\ufffda\ufffd', [{ content: '😀\ufffd' }]]);
  await world.pass(6_000);
  const [post] = world.fetches;
  assert.equal(JSON.parse(post.body).prompt, '\ufffda\ufffd');
  post.resolve(json(202, { generation_id: 'g1', cursor: 'i-0' }));
  await asking;
});

test('an answer runs from its first thought, and no longer when it comes as a whole or its log has begun anew', async () => {
  const { world, stream } = following();
  greet(world.socket);
  world.socket.say('reasoning', { generation_id: 'g1', offset: 0, text: 'hm', n: 1 }, 'i-1');
  assert.equal(stream.running, 'g1');
  world.socket.say('message', { generation_id: 'g0', role: 'assistant', content: 'before' }, 'i-2');
  world.socket.say('message', { generation_id: 'g1', role: 'user', content: 'hi' }, 'i-2');
  assert.equal(stream.running, 'g1');
  world.socket.say('message', { generation_id: 'g1', role: 'assistant', content: 'whole' }, 'i-2');
  assert.equal(stream.running, null);
  token(world.socket, 3, 'g2');
  world.socket.say('reset', { earliest: 'j-0', reason: 'other_incarnation' });
  assert.equal(stream.running, null);
  for (let i = 0; i < 31; i += 1) {
    await world.pass(10_000);
    world.socket.say('hb');
  }
  assert.equal(stream.state, 'idle');
});

test('an answer that came as a whole before it was accepted does not run', async () => {
  const { world, stream } = following();
  greet(world.socket);
  const asking = stream.generate({ prompt: 'hi' });
  world.socket.say('message', { generation_id: 'g1', role: 'assistant', content: 'whole' }, 'i-1');
  world.socket.say('accepted', { request_id: world.socket.sent[0].data.request_id, generation_id: 'g1', cursor: 'i-0' });
  await asking;
  assert.equal(stream.running, null);
});

test('a refusal on the socket is an error with its code and its time to wait', async () => {
  const { world, stream } = following();
  greet(world.socket);
  const asking = stream.generate({ prompt: 'hi' });
  world.socket.say('rejected', { request_id: world.socket.sent[0].data.request_id, error: { code: 'rate_limited', message: 'slow', retry_after_ms: 900 } });
  await assert.rejects(asking, { code: 'rate_limited', retryAfterMs: 900 });
});

test('a request whose answer was lost is said again with the same id, and at last by POST under it', async () => {
  const { world, stream } = following();
  greet(world.socket);
  const asking = stream.generate({ prompt: 'hi' });
  const { request_id: id } = world.socket.sent[0].data;
  world.socket.end(1006);
  await world.pass(400);
  greet(world.socket);
  assert.equal(world.socket.sent[0].data.request_id, id);
  await world.pass(6_000);
  const [post] = world.fetches;
  assert.deepEqual([post.method, post.url.pathname, post.headers['Idempotency-Key']], ['POST', '/v1/sessions/07session/generations', id]);
  post.resolve(json(202, { generation_id: 'g1', cursor: 'i-0' }));
  assert.equal((await asking).generation_id, 'g1');
});

test('stop works without any connection', async () => {
  const { world, stream } = following();
  await world.hide(true);
  await world.pass(31_000);
  assert.equal(world.connections, 0);
  const stopping = stream.cancel('g1');
  assert.equal(world.fetches[0].url.pathname, '/v1/sessions/07session/generations/g1/cancel');
  world.fetches[0].resolve(json(202, {}));
  await stopping;
});

test('a POST that meets an expired cookie renews it and goes through', async () => {
  const { world, stream } = following({ transport: 'sse', renew: async () => undefined });
  const posts = () => world.fetches.filter(({ method }) => method === 'POST');
  const asking = stream.generate({ prompt: 'hi' });
  posts()[0].resolve(json(401, { error: { code: 'token_expired', message: 'old' } }));
  await world.settle();
  assert.equal(posts().length, 2);
  posts()[1].resolve(json(202, { generation_id: 'g2', cursor: 'i-0' }));
  assert.equal((await asking).generation_id, 'g2');
});

test('closed is closed: no timer, no listener, no event brings it back', async () => {
  const { world, stream, heard } = following();
  greet(world.socket);
  stream.close();
  const before = heard.length;
  token(world.socket, 1);
  await world.hide(true);
  await world.hide(false);
  await world.happen('online');
  await world.pass(600_000);
  assert.deepEqual([stream.state, world.sockets.length, heard.length], ['closed', 1, before]);
});

test('creating a session: one key, the body as given, refusals as errors', async () => {
  const world = browser();
  const creating = createSession({ model: 'm' }, { env: world.env, token: 'ok_key' });
  const [post] = world.fetches;
  assert.equal(post.body, '{"model":"m"}');
  assert.match(post.headers['Idempotency-Key'], /^[0-9a-f]{32}$/);
  post.resolve(json(429, { error: { code: 'rate_limited', message: 'slow', request_id: 'r' } }, { 'Retry-After': '2' }));
  await assert.rejects(creating, { code: 'rate_limited', status: 429, retryAfterMs: 2000, requestId: 'r' });
});
