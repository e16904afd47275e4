// A model's text as blocks: the little of Markdown that answers use. Pure; nothing here makes markup, so nothing can inject any.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)$/; // of a line without its trailing space: with it, this would take quadratic time
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^(\s*)([-*•]|\d{1,3}[.)])\s+(.*)$/;

const fenceOf = (line) => FENCE.exec(line.trimEnd());

/**
 * Text → blocks `{type, source, …}`: `paragraph` and `heading` {text, level?}, `list` {ordered, start, items}, `code` {language, text, open}.
 * `source` is the text that the block was made of: a block whose source did not change need not be drawn again.
 */
export function blocks(text) {
  const lines = text.split('\n');
  const result = [];
  let at = 0;
  while (at < lines.length) {
    const from = at;
    const line = lines[at];
    const fence = fenceOf(line);
    if (!line.trim()) {
      at += 1;
      continue;
    }
    let block;
    if (fence) {
      const closes = (candidate) => candidate.trim().startsWith(fence[1]) && !candidate.trim().slice(fence[1].length).replaceAll(fence[1][0], '');
      for (at += 1; at < lines.length && !closes(lines[at]); at += 1);
      block = { type: 'code', language: fence[2], text: lines.slice(from + 1, at).join('\n'), open: at >= lines.length };
      at += 1;
    } else if (HEADING.test(line)) {
      const [, marks, title] = HEADING.exec(line);
      block = { type: 'heading', level: marks.length, text: title };
      at += 1;
    } else if (ITEM.test(line)) {
      block = { type: 'list', ordered: /\d/.test(ITEM.exec(line)[2]), start: parseInt(ITEM.exec(line)[2], 10) || 1, items: [] };
      for (; at < lines.length && lines[at].trim() && !fenceOf(lines[at]); at += 1) {
        const item = ITEM.exec(lines[at]);
        if (item && /\d/.test(item[2]) !== block.ordered && !item[1]) break;
        if (item) block.items.push(item[3]);
        else block.items.push(`${block.items.pop()}\n${lines[at].trim()}`);
      }
    } else {
      for (at += 1; at < lines.length && lines[at].trim() && !fenceOf(lines[at]) && !HEADING.test(lines[at]) && !ITEM.test(lines[at]); at += 1);
      block = { type: 'paragraph', text: lines.slice(from, at).join('\n') };
    }
    result.push({ ...block, source: lines.slice(from, at).join('\n') });
  }
  return result;
}

const SPAN = /(`+)([^`](?:.*?[^`])?)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*|\*(?=[^\s*])([^*\n]+?)(?<=\S)\*|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/;

const LONGEST = 8_000; // characters; looking for pairs in more costs more than they are worth

/** A block's spans `{type: text | code | strong | emphasis | link, text, href?}`; only http(s) links are links. */
export function spans(text) {
  if (text.length > LONGEST) return [{ type: 'text', text }];
  const result = [];
  for (let rest = text; rest;) {
    const match = SPAN.exec(rest);
    const before = match ? rest.slice(0, match.index) : rest;
    if (before) result.push({ type: 'text', text: before });
    if (!match) break;
    const [whole, , code, strong, emphasis, label, href] = match;
    if (code !== undefined) result.push({ type: 'code', text: code });
    else if (strong !== undefined) result.push({ type: 'strong', text: strong });
    else if (emphasis !== undefined) result.push({ type: 'emphasis', text: emphasis });
    else result.push({ type: 'link', text: label, href });
    rest = rest.slice(match.index + whole.length);
  }
  return result;
}
