// The chat page: what is sent is not lost, and nothing is kept open for nobody.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chatPage, loadingPage } from './fakes.mjs';

const SESSION = { session_id: '00aaaaaaaaaa', token: 'x' };
const AWAY = { error: { code: 'unavailable', message: 'try again' } };

test('a conversation that was left before it had its session holds no connection', async () => {
  const page = await chatPage();
  await page.send('hello');
  page.at('new-chat').happen('click');
  await page.answer('POST', '/v1/sessions', 201, SESSION);
  await page.answer('POST', '/generations', 202, { generation_id: 'g1', cursor: 'a-0' }); // what was sent is asked all the same
  assert.equal(page.open(), 0);
});

test('another fragment is no other conversation: the one that is beginning stays, and so does its answer', async () => {
  const page = await chatPage();
  await page.send('hello');
  await page.go('/');
  await page.answer('POST', '/v1/sessions', 201, SESSION);
  await page.answer('POST', '/generations', 202, { generation_id: 'g1', cursor: 'a-0' });
  await page.go(`/c/${SESSION.session_id}`);
  assert.equal(page.at('messages').children.length, 1);
  assert.equal(page.open(), 1);
  await page.go('/');
  assert.equal(page.at('messages').children.length, 0);
});

test('the way to the composer leaves the address alone', async () => {
  const page = await chatPage();
  assert.equal(page.at('skip').happen('click'), false);
  assert.equal(page.focused(), page.at('composer'));
});

test('a conversation that is looked at keeps its connection', async () => {
  const page = await chatPage();
  await page.send('hello');
  await page.answer('POST', '/v1/sessions', 201, SESSION);
  await page.answer('POST', '/generations', 202, { generation_id: 'g1', cursor: 'a-0' });
  assert.equal(page.open(), 1);
});

test('what is written while the page loads is kept, and sent in the conversation that the address names', async () => {
  const page = await loadingPage('/c/00bbbbbbbbbb');
  await page.send('hello');
  await page.answer('GET', '/models', 200, { data: [{ id: 'm' }] });
  await page.send('hello');
  assert.equal(page.asked(''), false);
  await page.answer('GET', '/sessions', 200, { sessions: [] });
  assert.equal(page.at('composer').value, 'hello');
  await page.send('hello');
  await page.answer('POST', '/00bbbbbbbbbb/generations', 202, { generation_id: 'g1', cursor: 'a-0' });
});

test('a ticket leaves the address at once, and is shown until the server has looked at it', async () => {
  const page = await loadingPage('/#t=abc');
  assert.equal(location.hash, '');
  for (const status of [503, 429]) {
    assert.deepEqual(page.body('/login'), { ticket: 'abc' });
    await page.answer('POST', '/login', status, AWAY);
    await page.pass(3_000);
  }
  assert.deepEqual(page.body('/login'), { ticket: 'abc' });
  await page.answer('POST', '/login', 401, { error: { code: 'unauthenticated' } });
  assert.deepEqual(page.body('/login'), {});
  await page.answer('POST', '/login', 503, AWAY);
  await page.pass(15_000);
  await page.answer('GET', '/models', 200, { data: [{ id: 'm' }] });
});

test('an address with a ticket that is opened where the page is already open loads it anew', async () => {
  const page = await chatPage();
  await page.go('/#latest');
  assert.equal(page.reloads(), 0);
  await page.go('/#t=abc');
  assert.equal(page.reloads(), 1);
});

test('a conversation that is begun while the page loads is not taken away when it has loaded', async () => {
  const page = await loadingPage('/c/00bbbbbbbbbb');
  page.at('new-chat').happen('click');
  await page.send('hello');
  await page.answer('GET', '/models', 200, { data: [{ id: 'm' }] });
  await page.answer('GET', '/sessions', 200, { sessions: [] });
  assert.equal(page.at('messages').children.length, 1);
});

test('a name that was not finished is given to no other conversation', async () => {
  const page = await chatPage('/c/00bbbbbbbbbb');
  page.at('rename').happen('click');
  page.at('rename-input').value = 'Not yet';
  await page.go('/c/00cccccccccc');
  assert.equal(page.asked('00cccccccccc', 'PATCH') || page.asked('00bbbbbbbbbb', 'PATCH'), false);
  assert.equal(page.at('rename-form').hidden, true);
  page.at('rename').happen('click');
  page.at('rename-input').value = 'Finished';
  page.at('composer').focus();
  await page.answer('PATCH', '/00cccccccccc', 200, {});
});

test('who is in the list of conversations stays there when it is drawn again', async () => {
  const page = await chatPage();
  const listed = (...ids) => page.answer('GET', '/sessions', 200, { sessions: ids.map((id) => ({ id, title: id, updated_at: 0 })) });
  const link = (row) => page.at('conversations').children[row].firstElementChild;
  document.dispatchEvent(new Event('visibilitychange'));
  await listed('00aaaaaaaaaa', '00bbbbbbbbbb');
  link(1).focus();
  document.dispatchEvent(new Event('visibilitychange'));
  await listed('00bbbbbbbbbb', '00aaaaaaaaaa');
  assert.equal(page.focused(), link(0));
  document.dispatchEvent(new Event('visibilitychange'));
  await listed('00aaaaaaaaaa');
  assert.equal(page.focused(), null);
});

test('an answer that could not be stopped goes on, and can be stopped again', async () => {
  const page = await chatPage();
  await page.send('hello');
  await page.answer('POST', '/v1/sessions', 201, SESSION);
  page.at('stop').happen('click'); // before it has a name
  await page.answer('POST', '/generations', 202, { generation_id: 'g1', cursor: 'a-0' });
  await page.answer('POST', '/g1/cancel', 503, AWAY);
  assert.equal(page.at('messages').children.length, 1);
  assert.equal(page.at('composer').value, '');
  assert.equal(page.at('error').hidden, false);
  page.at('stop').happen('click');
  await page.answer('POST', '/g1/cancel', 202, { generation_id: 'g1', status: 'running' });
});

test('who wanted to stop what was refused does not stop what is sent next', async () => {
  const page = await chatPage();
  await page.send('hello');
  await page.answer('POST', '/v1/sessions', 201, SESSION);
  page.at('stop').happen('click');
  await page.answer('POST', '/generations', 503, AWAY);
  assert.equal(page.at('composer').value, 'hello');
  assert.equal(page.at('messages').children.length, 0);
  await page.send('hello');
  await page.answer('POST', '/generations', 202, { generation_id: 'g1', cursor: 'a-0' });
  assert.equal(page.asked('/cancel'), false);
});
