// WebSocket or event stream: which one is taken, and what an event stream may hold.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { connect } from '../../../broker/web/okome.js';
import { browser, eventStream, following, greet, json, lockManager } from './fakes.mjs';

test('sockets that do not open twice give way to the event stream, read to the same end', async () => {
  const { world, heard, stream } = following({ token: 'a.b.c', after: 'i-4' });
  world.socket.end(1006);
  await world.pass(1_000);
  world.socket.end(1006);
  await world.pass(1_000);
  assert.equal(world.sockets.length, 2);
  const [asked] = world.fetches;
  assert.equal(asked.url.href, 'http://page.test/v1/sessions/07session/events?after=i-4');
  assert.equal(asked.headers.Authorization, 'Bearer a.b.c');
  const { response, write, end } = eventStream();
  asked.resolve(response);
  write('event: hello\nid: i-4\ndata: {"node":"n1"}\n\n: hb\nevent: token\nid: i-5\ndata: {"generation_id":"g1","offset":4,"te');
  write('xt":"t5","n":1}\n\n');
  await world.settle();
  assert.equal(stream.state, 'live');
  assert.ok(heard.includes('t5'));
  end();
  await world.pass(1_000);
  assert.equal(world.sockets.length, 2);
  assert.equal(world.fetches[1].url.searchParams.get('after'), 'i-5');
});

/** A tab whose sockets do not open, while it asks for an event stream. */
async function socketless() {
  const { world, stream } = following();
  for (let i = 0; i < 2; i += 1) {
    world.socket.end(1006);
    await world.pass(1_000);
  }
  return { world, stream, come: async () => { await world.hide(true); await world.hide(false); } };
}

/** The same, in a network that lets the event stream through. */
async function blocked() {
  const tab = await socketless();
  await greeted(tab.world);
  return tab;
}

async function greeted(world) {
  const { response, write, end } = eventStream();
  world.fetches.at(-1).resolve(response);
  write('event: hello\nid: i-0\ndata: {}\n\n');
  await world.settle();
  return { write, end };
}

test('where sockets are blocked, whoever comes back to the tab does not wait for them again', async () => {
  const { world, stream, come } = await blocked();
  for (let i = 0; i < 5; i += 1) {
    await come();
    await greeted(world);
    assert.equal(stream.state, 'live');
  }
  assert.deepEqual([world.sockets.length, world.fetches.length], [2, 6]);
});

test('a socket gets another chance after five minutes, and at once in another network', async () => {
  const { world, stream, come } = await blocked();
  await world.hide(true);
  await world.pass(301_000);
  await come();
  assert.equal(world.sockets.length, 3);
  world.socket.end(1006); // one is enough now
  await world.pass(1_000);
  await greeted(world);
  await world.happen('online');
  assert.equal(world.sockets.length, 4);
  greet(world.socket);
  assert.equal(stream.state, 'live');
});

test('where sockets are blocked, a server that is away for a moment does not make it try them again', async () => {
  const { world, come } = await blocked();
  await come();
  world.fetches.at(-1).reject(new TypeError('refused'));
  await world.pass(1_000);
  assert.deepEqual([world.sockets.length, world.fetches.length], [2, 3]);
});

test('that other tabs have all the event streams says nothing of sockets', async () => {
  const { world, come } = await socketless();
  Object.assign(world.env, { navigator: { locks: { request: async (name, options, callback) => callback(null) } } });
  world.env.document.hasFocus = () => false;
  for (let i = 0; i < 3; i += 1) await come();
  assert.equal(world.sockets.length, 2);
});

test('without any WebSocket, every connection is an event stream', async () => {
  const world = browser();
  delete world.env.WebSocket;
  const stream = connect('07session', { env: world.env });
  await world.settle();
  for (let i = 1; i < 4; i += 1) {
    const { end } = await greeted(world);
    assert.equal(stream.state, 'live');
    end();
    await world.pass(1_000);
    assert.equal(world.fetches.length, i + 1);
  }
});


test('a server that is away is not taken for a network that blocks sockets', async () => {
  const { world } = following();
  for (let i = 0; i < 2; i += 1) {
    world.socket.end(1006);
    await world.pass(1_000);
  }
  world.fetches[0].reject(new TypeError('refused'));
  await world.pass(2_000);
  assert.equal(world.sockets.length, 3);
});

test('a hidden tab holds no event stream, whatever runs', async () => {
  const { world, stream } = following({ transport: 'sse' });
  const { response, write } = eventStream();
  await world.settle();
  world.fetches[0].resolve(response);
  write('event: hello\nid: i-0\ndata: {}\n\nevent: token\nid: i-1\ndata: {"generation_id":"g1","offset":0,"text":"a","n":1}\n\n');
  await world.settle();
  assert.equal(stream.running, 'g1');
  await world.hide(true);
  assert.equal(stream.state, 'idle');
  assert.ok(world.fetches[0].signal.aborted);
  await world.pass(60_000);
  assert.equal(world.fetches.length, 1);
  await world.hide(false);
  assert.equal(world.fetches[1].url.searchParams.get('after'), 'i-1');
});

test('eight tabs in sight hold three event streams; the one a person is in always has one', async () => {
  const locks = lockManager();
  const tabs = [];
  for (let n = 0; n < 8; n += 1) {
    const world = browser();
    Object.assign(world.env, { navigator: { locks } });
    world.env.document.hasFocus = () => n === 7;
    tabs.push({ world, stream: connect(`07session${n}`, { env: world.env, transport: 'sse' }) });
    await world.settle();
  }
  const open = () => tabs.map(({ world }) => world.fetches.filter(({ signal }) => !signal.aborted).length);
  assert.equal(open().reduce((sum, n) => sum + n), 3);
  assert.equal(open()[7], 1);
  assert.equal(tabs.filter(({ stream }) => stream.state === 'idle').length, 5);
  for (const { stream, world } of tabs) {
    stream.close();
    await world.settle();
  }
  assert.equal(locks.held(), 0);
});

test('event stream statuses: gone is gone, busy comes back when it was told to', async () => {
  const gone = following({ transport: 'sse' });
  await gone.world.settle();
  gone.world.fetches[0].resolve(json(404, { error: { code: 'unknown_session', message: '?' } }));
  await gone.world.pass(60_000);
  assert.equal(gone.stream.state, 'closed');
  const busy = following({ transport: 'sse' });
  await busy.world.settle();
  busy.world.fetches[0].resolve(json(503, {}, { 'Retry-After': '3' }));
  await busy.world.pass(2_900);
  assert.equal(busy.world.fetches.length, 1);
  await busy.world.pass(500);
  assert.equal(busy.world.fetches.length, 2);
});
