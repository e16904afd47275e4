// The chat page: one conversation on screen, the list of the others, and the wiring between them and okome.js.
// What events mean is conversation.js, how turns look is view.js, what is said in words is words.js.

import * as talk from './conversation.js';
import { connect, createSession, request } from './okome.js';
import { TurnView, conversationRow, h } from './view.js';
import { SCRIPTED_EXAMPLE, connectionState, duration, rate, refusal, titleOf } from './words.js';

const $ = (id) => document.getElementById(id);
const ui = Object.fromEntries(['app', 'skip', 'side', 'main', 'shade', 'menu', 'side-close', 'new-chat', 'conversations', 'no-conversations', 'title', 'rename', 'rename-form',
  'rename-input', 'conn', 'conn-state', 'scroll', 'welcome', 'ideas', 'messages', 'latest', 'error', 'error-text', 'error-close', 'form', 'composer', 'model',
  'stop', 'send', 'served-by', 'epoch', 'ttft', 'rate', 'stats', 'login', 'login-form', 'login-key', 'login-error'].map((id) => [id.replace(/-(\w)/g, (_, c) => c.toUpperCase()), $(id)]));

const IDEAS = ['What is the capital of France?', 'Explain photosynthesis to a child.', 'Write a short poem about rice fields in the rain.', 'List five uses of a paper clip.'];
const SESSIONS = '/v1/sessions';
const pathOf = (sid) => `${SESSIONS}/${encodeURIComponent(sid)}`;

/** What is on screen. `sid` is null until a new conversation's first message. */
let here = blank();
let sessions = [];

function blank() {
  return { sid: null, stream: null, conversation: talk.newConversation(), views: new Map(), stopWanted: false, sending: false };
}

// --- who am I ------------------------------------------------------------------------------------------------------------

const ticketOf = (fragment) => new URLSearchParams(fragment.slice(1)).get('t');

let ticket = ticketOf(location.hash); // until the server has taken or refused it
if (ticket) history.replaceState(history.state, '', location.pathname + location.search); // before anything may copy the address

let signingIn = null;
const signIn = () => (signingIn ??= askWhoIAm().finally(() => { signingIn = null; }));

async function askWhoIAm() {
  const admitted = ticket && await login({ ticket });
  ticket = null;
  if (!admitted && !(await login({}))) await askForKey();
}

/** Whether the server lets us in for these words. Throws where it does not say: they can be said again. */
async function login(words) {
  try {
    await request('POST', '/v1/login', { body: words });
    return true;
  } catch (error) {
    if (![400, 401, 403, 422].includes(error.status)) throw error;
    return false;
  }
}

function askForKey() {
  ui.app.hidden = true;
  ui.login.hidden = false;
  ui.loginKey.focus();
  return new Promise((resolve) => {
    ui.loginForm.onsubmit = async (event) => {
      event.preventDefault();
      ui.loginError.hidden = true;
      try {
        await request('POST', '/v1/login', { body: { api_key: ui.loginKey.value.trim() } });
      } catch (error) {
        ui.loginError.textContent = error.status === 401 || error.status === 403 ? 'This key is not known here.' : refusal(error, error.retryAfterMs);
        ui.loginError.hidden = false;
        return ui.loginKey.select();
      }
      ui.loginKey.value = '';
      ui.login.hidden = true;
      ui.app.hidden = false;
      resolve();
    };
  });
}

/** A call that may need a login first. */
async function authorised(call) {
  try {
    return await call();
  } catch (error) {
    if (error.status !== 401) throw error;
    await signIn();
    return call();
  }
}

/** A new cookie for one session, from the login. */
const renew = async (sid) => void (await authorised(() => request('POST', `${pathOf(sid)}/token`, { body: {} })));

// --- going from one conversation to another --------------------------------------------------------------------------------

const sidOf = (path) => /^\/c\/([\w-]{8,64})$/.exec(path)?.[1] ?? null;

function open(sid, push) {
  if (push) history.pushState(null, '', sid ? `/c/${sid}` : '/');
  showRename(false); // before the focus leaves it: that renames what is here
  here.stream?.close();
  here = blank();
  here.sid = sid;
  ui.messages.replaceChildren();
  sayNothing();
  showSide(false);
  if (sid) follow(here);
  else showConnection('idle');
  drawList();
  draw();
  if (matchMedia('(hover: hover)').matches) ui.composer.focus();
}

function follow(view, after) {
  view.stream = connect(view.sid, {
    after,
    drafts: new URLSearchParams(location.search).has('drafts'),
    renew: () => renew(view.sid),
    onEvent: (event) => view === here && heard(view, event),
    onState: (state) => view === here && stateChanged(state),
  });
}

function heard(view, event) {
  const turn = talk.fold(view.conversation, event, performance.now());
  if (turn?.sealed) {
    view.stopWanted = false;
    refreshList();
  } else if (event.event === 'start') refreshList();
  // A log that has aged out, or begins later than the conversation, leaves the rest to the record that OKOME keeps.
  if (event.event === 'caught_up' && (view.conversation.resets || !view.conversation.turns.length)) fetchOlder(view);
  draw();
}

async function fetchOlder(view) {
  view.conversation.resets = 0;
  try {
    const { messages } = await request('GET', `${pathOf(view.sid)}/messages`);
    if (view !== here) return;
    talk.prepend(view.conversation, messages);
    draw();
  } catch (error) {
    if (view === here && error.status !== 404) say(error);
  }
}

function stateChanged({ state, reason, retryMs }) {
  showConnection(state);
  if (state === 'live') sayNothing('connection');
  if (state === 'closed' && reason.code !== 'closed_here') say({ code: { 4403: 'forbidden', 4404: 'unknown_session', 403: 'forbidden', 404: 'unknown_session', 4401: 'unauthenticated', 4408: 'unauthenticated' }[reason.code] ?? reason.code, message: reason.message });
  if (state === 'reconnecting' && reason && ['overloaded', 'rate_limited', 'unavailable'].includes(reason.code)) say({ ...reason, retryAfterMs: retryMs }, 'connection');
}

// --- asking and stopping -----------------------------------------------------------------------------------------------------

async function send(prompt) {
  const view = here;
  if (!prompt.trim() || view.sending || talk.openTurn(view.conversation)) return;
  sayNothing();
  const model = ui.model.value || undefined;
  const turn = talk.expect(view.conversation, prompt, performance.now());
  view.sending = true;
  ui.composer.value = '';
  fitComposer();
  draw({ jump: true });
  try {
    if (!view.sid) {
      const session = await authorised(() => createSession({ model, title: titleOf(prompt, model) }));
      view.sid = session.session_id;
      if (view === here) history.pushState(null, '', `/c/${view.sid}`);
      follow(view);
      refreshList();
    }
    if (view.stream.state === 'closed') follow(view, view.stream.cursor);
    const { generation_id: id } = await view.stream.generate({ prompt, model });
    talk.accept(view.conversation, turn, id);
    if (view.stopWanted) await cancel(view, id);
  } catch (error) {
    talk.forget(view.conversation, turn);
    view.stopWanted = false; // it was this one's, not the next one's
    if (view !== here) return;
    if (!ui.composer.value) ui.composer.value = prompt;
    fitComposer();
    say(error);
  } finally {
    view.sending = false;
    if (view === here) draw();
    else view.stream?.close(); // opened for a conversation that nobody looks at any more
  }
}

async function stop() {
  const view = here;
  const turn = talk.openTurn(view.conversation);
  if (!turn || view.stopWanted) return;
  view.stopWanted = true; // a turn that has no name yet is cancelled as soon as it has one
  draw();
  if (turn.id) await cancel(view, turn.id);
}

/** The answer goes on where this is refused, and can be stopped again. */
async function cancel(view, id) {
  try {
    await view.stream.cancel(id);
  } catch (error) {
    view.stopWanted = false;
    if (view === here) say(error);
    draw();
  }
}

// --- what is seen --------------------------------------------------------------------------------------------------------------

let drawing = null;
let jumping = false;

/** Draws at the next frame; `jump` also goes to the end, wherever the reader is. */
function draw({ jump = false } = {}) {
  jumping ||= jump;
  drawing ??= requestAnimationFrame(() => {
    drawing = null;
    const atEnd = jumping || nearEnd();
    drawTurns();
    drawState();
    if (atEnd) ui.scroll.scrollTop = ui.scroll.scrollHeight;
    jumping = false;
    ui.latest.hidden = nearEnd();
  });
}

const nearEnd = () => ui.scroll.scrollHeight - ui.scroll.scrollTop - ui.scroll.clientHeight < 80;

function drawTurns() {
  const { turns } = here.conversation;
  for (const [turn, view] of here.views) {
    if (turns.includes(turn)) continue;
    view.element.remove();
    here.views.delete(turn);
  }
  turns.forEach((turn, at) => {
    let view = here.views.get(turn);
    if (!view) here.views.set(turn, (view = new TurnView(turn, { retry: ({ input }) => send(input.at(-1).content) })));
    else if (!view.settled) view.draw();
    view.settled = turn.sealed;
    if (ui.messages.children[at] !== view.element) ui.messages.insertBefore(view.element, ui.messages.children[at] ?? null);
  });
}

function drawState() {
  const { conversation, sid, stopWanted, sending } = here;
  const turn = talk.openTurn(conversation);
  const last = conversation.turns.at(-1);
  ui.welcome.hidden = Boolean(sid || last);
  ui.stats.classList.toggle('none', !last && !conversation.node);
  ui.messages.setAttribute('aria-busy', String(Boolean(turn)));
  ui.stop.hidden = !turn;
  ui.stop.classList.toggle('wanted', stopWanted);
  ui.send.hidden = Boolean(turn);
  ui.send.disabled = sending || !ui.composer.value.trim();
  ui.servedBy.textContent = [conversation.node, conversation.ingress].filter(Boolean).join(' · ') || '–';
  ui.epoch.textContent = last?.epoch ?? '–';
  ui.ttft.textContent = last ? duration(talk.timeToFirstToken(last)) : '–';
  ui.rate.textContent = last ? rate(talk.tokenRate(last, performance.now())) : '–';
  const title = sessions.find(({ id }) => id === sid)?.title ?? (last ? titleOf(last.input[0]?.content ?? '', last.model) : '');
  ui.title.textContent = title || (sid ? 'Conversation' : 'New conversation');
  ui.rename.hidden = !sid || !ui.renameForm.hidden;
  document.title = title ? `${title} – OKOME` : 'OKOME';
}

function showConnection(state) {
  ui.conn.dataset.state = ui.connState.dataset.state = state;
  ui.connState.textContent = connectionState(state);
}

let sayTimer = null;
let saidAbout = null;

/** Shows a refusal in words, counting down where it said when to come back. */
function say(error, about = 'request') {
  clearInterval(sayTimer);
  saidAbout = about;
  const until = error.retryAfterMs ? Date.now() + error.retryAfterMs : null;
  const show = () => {
    if (until !== null && Date.now() >= until) return sayNothing();
    ui.errorText.textContent = refusal(error, until && until - Date.now());
  };
  ui.error.hidden = false;
  show();
  if (until) sayTimer = setInterval(show, 1000);
}

function sayNothing(about = saidAbout) {
  if (about !== saidAbout) return;
  clearInterval(sayTimer);
  ui.error.hidden = true;
  ui.errorText.textContent = '';
}

function fitComposer() {
  ui.composer.style.height = 'auto';
  ui.composer.style.height = `${Math.min(ui.composer.scrollHeight, innerHeight * 0.4)}px`;
  ui.send.disabled = here.sending || !ui.composer.value.trim();
}

// --- the list, the models ---------------------------------------------------------------------------------------------------------

let refreshing = false;

async function refreshList() {
  if (refreshing) return;
  refreshing = true;
  try {
    sessions = (await authorised(() => request('GET', `${SESSIONS}?limit=50`))).sessions;
    drawList();
    draw();
  } catch (error) {
    if (error.status) say(error); // unreachable is what the connection state already says
  } finally {
    refreshing = false;
  }
}

function drawList() {
  const now = Date.now();
  const focused = document.activeElement?.dataset.sid;
  ui.conversations.replaceChildren(...sessions.map((session) => conversationRow(session, here.sid, now)));
  ui.conversations.children[sessions.findIndex(({ id }) => id === focused)]?.firstElementChild.focus({ preventScroll: true }); // the rows are new ones
  ui.conversations.hidden = !sessions.length;
  ui.noConversations.hidden = sessions.length > 0;
}

async function loadModels() {
  const { data } = await authorised(() => request('GET', '/v1/models'));
  const kept = localStorage.getItem('okome.model');
  const known = data.map(({ id }) => id).sort((a, b) => (a === 'scripted') - (b === 'scripted') || a.localeCompare(b));
  ui.model.replaceChildren(...known.map((id) => h('option', { value: id }, id)));
  if (known.includes(kept)) ui.model.value = kept;
  modelChosen();
}

function modelChosen() {
  const scripted = ui.model.value === 'scripted';
  if (scripted && !ui.composer.value.trim()) ui.composer.value = SCRIPTED_EXAMPLE;
  if (!scripted && ui.composer.value === SCRIPTED_EXAMPLE) ui.composer.value = '';
  ui.composer.classList.toggle('script', scripted);
  ui.composer.placeholder = scripted ? SCRIPTED_EXAMPLE : 'Ask something';
  fitComposer();
}

function showSide(shown) {
  if (!shown && ui.side.classList.contains('shown')) ui.menu.focus();
  ui.side.classList.toggle('shown', shown);
  ui.main.inert = shown; // on a narrow screen the list lies over it
  ui.shade.hidden = !shown;
  ui.menu.setAttribute('aria-expanded', String(shown));
  if (shown) ui.sideClose.focus();
}

async function rename(title) {
  const { sid } = here;
  showRename(false);
  if (!title || title === ui.title.textContent) return;
  const patch = () => request('PATCH', pathOf(sid), { body: { title } });
  try {
    await patch().catch(async (error) => {
      if (error.status !== 401) throw error;
      await renew(sid);
      return patch();
    });
    await refreshList();
  } catch (error) {
    say(error);
  }
}

function showRename(shown) {
  ui.renameForm.hidden = !shown;
  ui.title.hidden = shown;
  ui.rename.hidden = shown;
  if (!shown) return;
  ui.renameInput.value = ui.title.textContent;
  ui.renameInput.select();
}

// --- what people do ------------------------------------------------------------------------------------------------------------------

ui.form.addEventListener('submit', (event) => {
  event.preventDefault();
  send(ui.composer.value);
});
ui.composer.addEventListener('input', fitComposer);
ui.composer.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send(ui.composer.value);
});
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || event.isComposing) return;
  if (ui.side.classList.contains('shown')) showSide(false);
  else if (!ui.renameForm.hidden) showRename(false);
  else stop();
});
ui.skip.addEventListener('click', (event) => {
  event.preventDefault(); // the address stays the conversation's
  ui.composer.focus();
});
ui.stop.addEventListener('click', stop);
ui.model.addEventListener('change', () => {
  localStorage.setItem('okome.model', ui.model.value);
  modelChosen();
});
ui.errorClose.addEventListener('click', () => sayNothing());
ui.latest.addEventListener('click', () => draw({ jump: true }));
ui.scroll.addEventListener('scroll', () => { ui.latest.hidden = nearEnd(); }, { passive: true });
ui.newChat.addEventListener('click', () => open(null, true));
ui.menu.addEventListener('click', () => showSide(true));
ui.sideClose.addEventListener('click', () => showSide(false));
ui.shade.addEventListener('click', () => showSide(false));
ui.rename.addEventListener('click', () => showRename(true));
ui.renameForm.addEventListener('submit', (event) => {
  event.preventDefault();
  rename(ui.renameInput.value.trim());
});
ui.renameInput.addEventListener('blur', () => ui.renameForm.hidden || rename(ui.renameInput.value.trim()));
ui.side.addEventListener('click', (event) => {
  const link = event.target.closest('a');
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  open(link.dataset.sid ?? null, true);
});
addEventListener('popstate', () => {
  const sid = sidOf(location.pathname);
  if (sid !== here.sid) open(sid, false); // a change of the fragment is one of these, too
});
addEventListener('hashchange', () => ticketOf(location.hash) && location.reload()); // somebody signs in: for a browser the page is open already
document.addEventListener('visibilitychange', () => document.hidden || refreshList());
setInterval(() => talk.openTurn(here.conversation) && draw(), 250); // the rate falls while nothing comes
ui.ideas.replaceChildren(...IDEAS.map((idea) => h('li', {}, h('button', { type: 'button', onclick: () => send(idea) }, idea))));

// Nothing is sent before the conversation that the address names is open: it would begin another one.
const entered = { ...blank(), sid: sidOf(location.pathname), sending: true };
here = entered;

async function begin() {
  if (ticket) await signIn();
  ui.app.hidden = false;
  await Promise.all([loadModels(), refreshList()]); // signs in where needed: a socket without a cookie waits for a token in vain
  if (here === entered) open(here.sid, false);
}

/** Until the system answers for the first time: it may be starting. */
async function beginWhenPossible(attempt = 0) {
  try {
    await begin();
  } catch (error) {
    ui.app.hidden = false;
    const retryAfterMs = error.retryAfterMs ?? Math.min(15_000, 1000 * 2 ** attempt);
    say({ ...error, message: error.message, retryAfterMs }, 'request');
    setTimeout(() => beginWhenPossible(attempt + 1), retryAfterMs);
  }
}

beginWhenPossible();
