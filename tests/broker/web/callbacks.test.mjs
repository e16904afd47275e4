// What the caller's own functions may do: throw, close, use the stream. None of it breaks the connection, or brings a closed one back.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { connect } from '../../../broker/web/okome.js';
import { browser, eventStream, following, greet, token } from './fakes.mjs';

/** A world that keeps what is reported to it. */
function reporting() {
  const world = browser();
  const reported = [];
  world.env.reportError = (error) => reported.push(error.message);
  return { world, reported };
}

const thrower = (...when) => ({ event, state }) => {
  if (when.includes(event ?? state)) throw new Error(event ?? state);
};

test('an event that its hearer cannot take is reported, and the event stream goes on', async () => {
  const { world, reported } = reporting();
  const stream = connect('07session', { env: world.env, transport: 'sse', onEvent: thrower('token') });
  const { response, write } = eventStream();
  await world.settle();
  world.fetches[0].resolve(response);
  write('event: hello\nid: i-0\ndata: {}\n\nevent: token\nid: i-1\ndata: {"generation_id":"g1","offset":0,"text":"a","n":1}\n\n');
  write('event: done\nid: i-2\ndata: {"generation_id":"g1","offset":1}\n\n');
  await world.pass(5_000);
  assert.deepEqual([reported, stream.state, stream.cursor, world.fetches.length], [['token'], 'live', 'i-2', 1]);
});

test('so it is on a socket', async () => {
  const { world, reported } = reporting();
  const stream = connect('07session', { env: world.env, onEvent: thrower('token') });
  greet(world.socket);
  token(world.socket, 1);
  token(world.socket, 2);
  assert.deepEqual([reported, stream.state, stream.cursor], [['token', 'token'], 'live', 'i-2']);
});

test('a state that its hearer cannot take is reported, and it comes back all the same', async () => {
  const { world, reported } = reporting();
  const stream = connect('07session', { env: world.env, onState: thrower('connecting', 'reconnecting') });
  greet(world.socket);
  world.socket.end(1006);
  await world.pass(1_000);
  greet(world.socket);
  assert.equal(stream.state, 'live');
  assert.deepEqual(reported, ['reconnecting', 'reconnecting']);
});

test('what hears the first state may use what connect returns', async () => {
  const { world, reported } = reporting();
  const cursors = [];
  const stream = connect('07session', { env: world.env, after: 'i-3', onState: ({ state }) => cursors.push([state, stream.cursor]) });
  await world.settle();
  assert.deepEqual([cursors, reported], [[['connecting', 'i-3']], []]);
});

test('closed at once, it says nothing else', async () => {
  const { world, states, stream } = following();
  stream.close();
  await world.settle();
  assert.deepEqual(states, ['closed']);
});

test('closed by what hears a state or an event, it stays closed and holds nothing', async () => {
  const moments = {
    connecting: () => {},
    live: (world) => greet(world.socket),
    reconnecting: (world) => { greet(world.socket); world.socket.end(1006); },
    'reconnecting over ws': (world) => { greet(world.socket); world.socket.end(1006); },
    'reconnecting, expired': (world) => { greet(world.socket); world.socket.say('closed', { code: 'token_expired' }); world.socket.end(4401); },
    idle: (world) => { greet(world.socket); world.socket.end(1000); },
    reconnect: (world) => { greet(world.socket); world.socket.say('reconnect', { cursor: 'i-0', after_ms: 10 }); },
    token: (world) => { greet(world.socket); token(world.socket, 1); },
  };
  for (const [moment, bring] of Object.entries(moments)) {
    const world = browser();
    const told = [];
    let renewed = 0;
    const stream = connect('07session', {
      env: world.env,
      renew: async () => { renewed += 1; },
      onEvent: ({ event }) => hear(event),
      onState: ({ state, transport, reason }) => hear(state, `${state}${transport ? ` over ${transport}` : ''}`, `${state}${reason?.code === 'token_expired' ? ', expired' : ''}`),
    });
    function hear(...names) {
      told.push(names[0]);
      if (names.includes(moment)) stream.close();
    }
    await world.settle();
    if (stream.state !== 'closed') bring(world);
    await world.pass(1_000);
    for (const socket of world.sockets) token(socket, 9);
    await world.pass(600_000);
    assert.deepEqual([told.at(-1), stream.state, world.connections, renewed], ['closed', 'closed', 0, 0], moment);
  }
});
