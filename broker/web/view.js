// Turns and conversations as elements. Text only ever becomes text nodes: no markup is made from what a model or a person wrote.

import { blocks, spans } from './markdown.js';
import { ago, count, ending } from './words.js';

/** `h('p', { class: 'note' }, 'text', child)`; properties that are null are left out. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  use.setAttribute('href', `#i-${name}`);
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  svg.append(use);
  return svg;
}

/** One turn on the page: what was asked, the answer as it grows, how it ended. Draws again only the blocks that changed. */
export class TurnView {
  #drawn = []; // [{block, element}]
  #asked = null;

  constructor(turn, { retry }) {
    this.turn = turn;
    this.ask = h('div', { class: 'ask' });
    this.reasoning = h('div', { class: 'reasoning-text' });
    this.thinking = h('details', { class: 'reasoning', hidden: true }, h('summary', {}, 'Reasoning'), this.reasoning);
    this.answer = h('div', { class: 'answer', 'data-testid': 'answer' });
    this.draft = h('span', { class: 'draft', title: 'Provisional' });
    this.note = h('span', {});
    this.again = h('button', { type: 'button', class: 'link', onclick: () => retry(this.turn) }, 'Try again');
    this.ended = h('p', { class: 'ending', hidden: true }, this.note, this.again);
    this.meta = h('span', { class: 'meta' });
    this.copy = copyButton('Copy answer', () => this.turn.text);
    this.foot = h('div', { class: 'foot', hidden: true }, this.copy, this.meta);
    this.element = h('section', { class: 'turn' }, this.ask, h('article', { class: 'reply', 'aria-label': 'Answer' }, this.thinking, this.answer, this.ended, this.foot));
    this.draw();
  }

  draw() {
    const { turn } = this;
    this.#drawAsk();
    this.element.dataset.status = turn.status;
    this.answer.dataset.status = turn.status;
    if (turn.id) this.answer.dataset.generationId = turn.id;
    this.answer.classList.toggle('waiting', !turn.sealed && turn.status !== 'done' && !turn.text && !turn.draft);
    this.thinking.hidden = !turn.reasoning;
    if (turn.reasoning) this.reasoning.textContent = turn.reasoning;
    this.#drawText();
    const words = [turn.gap ? 'The beginning of this answer is no longer kept.' : '', ending(turn)].filter(Boolean).join(' ');
    this.ended.hidden = !words;
    this.note.textContent = words;
    this.again.hidden = !['failed', 'expired'].includes(turn.status) || turn.error?.retryable === false;
    this.foot.hidden = !turn.sealed || !turn.text;
    const tokens = turn.usage?.completion ?? (turn.next || null);
    this.meta.textContent = [turn.model, turn.worker, turn.epoch > 1 ? `epoch ${turn.epoch}` : null, tokens && count(tokens, 'token')].filter(Boolean).join(' · ');
  }

  #drawAsk() {
    const { input } = this.turn;
    if (input === this.#asked) return;
    this.#asked = input;
    const asked = input.some(({ role }) => role === 'assistant') ? input.slice(-1) : input.filter(({ role }) => role === 'user');
    this.ask.replaceChildren(...asked.map(({ content }) => h('p', { class: 'bubble' }, content)));
  }

  #drawText() {
    this.draft.remove();
    const wanted = blocks(this.turn.text);
    wanted.forEach((block, at) => {
      const drawn = this.#drawn[at];
      if (drawn && drawn.block.source === block.source && drawn.block.type === block.type && drawn.block.open === block.open) return;
      const element = (drawn && grow(drawn, block)) ?? drawBlock(block);
      if (!drawn) this.answer.append(element);
      else if (element !== drawn.element) drawn.element.replaceWith(element);
      this.#drawn[at] = { block, element };
    });
    for (const { element } of this.#drawn.splice(wanted.length)) element.remove();
    if (!this.turn.draft) return;
    this.draft.textContent = this.turn.draft;
    const last = this.answer.lastElementChild;
    (last?.tagName === 'P' ? last : this.answer).append(this.draft);
  }
}

/** Lets a block grow in place, so that what a reader has selected stays selected; null where it must be drawn anew. */
function grow({ block: old, element }, block) {
  if (old.type !== block.type || old.language !== block.language) return null;
  if (block.type === 'code') {
    growText(element.querySelector('code'), old.text, block.text);
    element.querySelector('button').replaceWith(copyButton('Copy code', () => block.text));
    return element;
  }
  if (block.type !== 'paragraph') return null;
  const before = spans(old.text);
  const after = spans(block.text);
  let same = 0;
  while (same < before.length && same < after.length && before[same].type === after[same].type && before[same].text === after[same].text) same += 1;
  if (before[same]?.type === 'text' && after[same]?.type === 'text' && after[same].text.startsWith(before[same].text)) {
    element.childNodes[same].appendData(after[same].text.slice(before[same].text.length));
    same += 1;
  }
  while (element.childNodes.length > same) element.lastChild.remove();
  element.append(...after.slice(same).map(drawSpan));
  return element;
}

function growText(element, before, after) {
  if (element.firstChild && after.startsWith(before)) element.firstChild.appendData(after.slice(before.length));
  else element.textContent = after;
}

function drawBlock(block) {
  switch (block.type) {
    case 'code':
      return h('figure', { class: 'code', 'data-language': block.language || 'text' },
        copyButton('Copy code', () => block.text), h('pre', { tabindex: '0' }, h('code', {}, block.text)));
    case 'heading':
      return h(`h${Math.min(6, block.level + 2)}`, {}, ...inline(block.text));
    case 'list':
      return h(block.ordered ? 'ol' : 'ul', { start: block.ordered && block.start !== 1 ? block.start : null },
        ...block.items.map((item) => h('li', {}, ...item.flatMap(drawInItem))));
    default:
      return h('p', {}, ...inline(block.text));
  }
}

const drawInItem = (block, at) => (at === 0 && block.type === 'paragraph' ? inline(block.text) : [drawBlock(block)]);

const SPANS = { code: 'code', strong: 'strong', emphasis: 'em' };

const inline = (text) => spans(text).map(drawSpan);

function drawSpan({ type, text, href }) {
  if (type === 'link') return h('a', { href, target: '_blank', rel: 'noopener noreferrer' }, text);
  return SPANS[type] ? h(SPANS[type], {}, text) : document.createTextNode(text);
}

function copyButton(label, text) {
  const button = h('button', { type: 'button', class: 'copy', 'aria-label': label, title: label, hidden: !navigator.clipboard }, icon('copy')); // only secure origins have one
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      return; // denied by the person or the browser: the text can still be selected
    }
    button.replaceChildren(icon('check'));
    setTimeout(() => button.replaceChildren(icon('copy')), 1500);
  });
  return button;
}

/** One row of the conversation list. */
export function conversationRow({ id, title, updated_at: updatedAt, status }, current, now) {
  return h('li', {}, h('a', { href: `/c/${encodeURIComponent(id)}`, 'data-sid': id, 'aria-current': id === current ? 'page' : null, 'data-status': status ?? null },
    h('span', { class: 'row-title' }, title || 'Untitled'),
    status === 'running' || status === 'queued'
      ? h('span', { class: 'row-live', role: 'img', 'aria-label': 'An answer is being written' })
      : h('span', { class: 'row-time' }, ago(updatedAt, now))));
}
