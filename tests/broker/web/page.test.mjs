import assert from 'node:assert/strict';
import { test } from 'node:test';
import { blocks, spans } from '../../../broker/web/markdown.js';
import { ago, duration, ending, rate, refusal, titleOf } from '../../../broker/web/words.js';

const shapeOf = ({ type, text, items }) => [type, text ?? items.map((item) => item.map(shapeOf))];
const shape = (text) => blocks(text).map(shapeOf);
const lines = (...texts) => texts.join('\n');
const said = (text) => [['paragraph', text]]; // an item of nothing else

test('text becomes paragraphs, lists, headings and code', () => {
  assert.deepEqual(shape('# Title\nfirst\nline\n\n- a\n- b\n  more\n\n```js\nx = 1\n\ny\n```\nafter'), [
    ['heading', 'Title'], ['paragraph', 'first\nline'], ['list', [said('a'), said('b\nmore')]], ['code', 'x = 1\n\ny'], ['paragraph', 'after']]);
});

test('code that is still being written is code', () => {
  const [block] = blocks('```python\nprint("```")\n# not a title');
  assert.deepEqual([block.type, block.language, block.open], ['code', 'python', true]);
});

test('a fence may say more than the language; code in a line opens none', () => {
  const [, code, after] = blocks('Do:\n```python title="a.py"\nx = 1\n```\nThen *this*');
  assert.deepEqual([code.language, code.text, after.text], ['python', 'x = 1', 'Then *this*']);
  assert.deepEqual(shape('```let x``` is code'), [['paragraph', '```let x``` is code']]);
  assert.equal(blocks('~~~ sh `here`\nls\n~~~')[0].language, 'sh');
});

test('lists in lists stay in their item, and numbers go on behind them', () => {
  const cooking = ['list', [[['paragraph', 'Prep'], ['list', [said('wash'), said('cut')]]], said('Cook')]];
  for (const indent of ['  ', '   ', '    ', '\t']) {
    assert.deepEqual(shape(`1. Prep\n${indent}- wash\n${indent}- cut\n2. Cook`), [cooking]);
  }
  assert.deepEqual(shape('1. Prep\n- wash\n- cut\n2. Cook'), [['list', [said('Prep')]], ['list', [said('wash'), said('cut')]], ['list', [said('Cook')]]]);
  assert.equal(blocks('1. Prep\n- wash\n2. Cook')[2].start, 2);
  assert.deepEqual(shape('- a\n  - b\n    - c\n  - d'), [['list', [[['paragraph', 'a'], ['list', [[['paragraph', 'b'], ['list', [said('c')]]], said('d')]]]]]]);
});

test('what is further in belongs to the item, over an empty line too; what is not does not', () => {
  assert.deepEqual(shape('- a\n\n  more\n- b\n\nafter'), [['list', [[['paragraph', 'a'], ['paragraph', 'more']], said('b')]], ['paragraph', 'after']]);
  assert.deepEqual(shape('- a\n# Title'), [['list', [said('a')]], ['heading', 'Title']]);
});

test('code in an item keeps its own indentation, and loses that of the item', () => {
  for (const indent of ['  ', '    ', '\t']) {
    const text = lines('1. Write:', '', '```py', 'if x:', '    y()', '', '# no title', '- no item', '```', 'then').replaceAll(/\n(?=.)/g, `\n${indent}`);
    assert.deepEqual(shape(`${text}\n2. Run`), [
      ['list', [[['paragraph', 'Write:'], ['code', 'if x:\n    y()\n\n# no title\n- no item'], ['paragraph', 'then']], said('Run')]]]);
  }
  assert.equal(blocks('- a\n  ```\n  b')[0].items[0][1].open, true);
});

test('scripted tokens and other plain text stay word for word', () => {
  const text = '7.0 7.1 7.2 7.3 ';
  assert.deepEqual(blocks(text), [{ type: 'paragraph', text, source: text }]);
  for (const plain of ['2 * 3 * 4', 'snake_case_name', '<b>not bold</b>', 'a ** b', '[x](javascript:alert(1))', '`']) {
    assert.equal(spans(plain).map(({ text: part }) => part).join(''), plain);
    assert.deepEqual(spans(plain).map(({ type }) => type), ['text']);
  }
});

test('no text is lost: every line is in some block', () => {
  const text = 'a\n\n1. x\n   - w\n\n   v\n2. y\n- z\n\n  ```a b\n  u\n\n~~~\ncode\n~~~\n## h\ntail';
  const all = text.split('\n').filter(Boolean);
  assert.deepEqual(blocks(text).flatMap(({ source }) => source.split('\n')).filter(Boolean), all);
});

test('spans: code, strong, emphasis, http links', () => {
  assert.deepEqual(spans('a `b*c*` **d** *e* [f](https://g.h/i)'), [
    { type: 'text', text: 'a ' }, { type: 'code', text: 'b*c*' }, { type: 'text', text: ' ' }, { type: 'strong', text: 'd' }, { type: 'text', text: ' ' },
    { type: 'emphasis', text: 'e' }, { type: 'text', text: ' ' }, { type: 'link', text: 'f', href: 'https://g.h/i' }]);
});

test('a text of any length is looked through in no time', () => {
  for (const hard of ['**a '.repeat(20_000), '`'.repeat(20_000), '*a'.repeat(20_000), '[x]('.repeat(20_000), '``a` '.repeat(20_000), `\`\`\`${' '.repeat(80_000)}!`,
    `${'`'.repeat(80_000)} a\``, '- '.repeat(20_000), '- a\n\n'.repeat(20_000), `- a${'\n'.repeat(80_000)}`, '- a\n  ```\n'.repeat(9_000), `- ${' '.repeat(80_000)}a\u2028b`, Array.from({ length: 400 }, (_, depth) => `${' '.repeat(2 * depth)}- a`).join('\n')]) {
    for (const text of [hard, hard.slice(0, 8_000)]) {
      const before = process.cpuUsage(); // not the clock: the machine may be busy with others
      for (const { text: inner } of blocks(text)) spans(inner ?? '');
      const took = process.cpuUsage(before).user / 1000;
      assert.ok(took < 500, `${hard.slice(0, 8)} took ${took} ms`);
    }
  }
});

test('refusals are sentences, with the time to wait', () => {
  assert.equal(refusal({ code: 'overloaded' }, 7200), 'Every worker is busy right now. Try again in 8 s.');
  assert.equal(refusal({ code: 'malformed', message: 'tokens must be a number', param: 'prompt.tokens' }), 'Tokens must be a number. (prompt.tokens)');
  assert.equal(refusal({ code: 'brand_new' }), 'Something went wrong.');
});

test('endings are said only where they say something', () => {
  assert.equal(ending({ status: 'done', finishReason: 'stop' }), '');
  assert.equal(ending({ status: 'cancelled', text: 'half' }), 'Stopped.');
  assert.match(ending({ status: 'failed', error: { code: 'engine_failed' } }), /failed/);
});

test('numbers a person can read', () => {
  assert.deepEqual([null, 87.4, 1234].map(duration), ['–', '87 ms', '1.23 s']);
  assert.deepEqual([null, 24.31, 312.6].map(rate), ['–', '24.3 tok/s', '313 tok/s']);
  assert.deepEqual([20_000, 120_000, 7_200_000, 200_000_000].map((past) => ago(1e12 - past, 1e12)), ['now', '2 min', '2 h', '2 d']);
});

test('a title is the first line of what was asked', () => {
  assert.equal(titleOf('  Why?\nBecause', 'm'), 'Why?');
  assert.equal(titleOf('{"tokens": 20, "rate": 5}', 'scripted'), 'Scripted: 20 tokens at 5/s');
  assert.equal(titleOf('{oops', 'scripted'), '{oops');
  assert.equal(titleOf('x'.repeat(99), 'm').length, 60);
  assert.equal(titleOf(`${'x'.repeat(58)}😀 and more`, 'm'), `${'x'.repeat(58)}😀…`, 'no character is cut in two');
});
