// A model's text as blocks: the little of Markdown that answers use. Pure; nothing here makes markup, so nothing can inject any.

const HEADING = /^(#{1,6})\s+(.*)$/;
const DEEPEST = 6; // lists in lists; further in, text is text

const indentOf = (line) => /^\s*/.exec(line)[0].replaceAll('\t', '    ').length;

/** What opens code, `{mark, language, indent}`, or null. */
function fenceOf(line) {
  const text = line.trim();
  const [mark] = /^(`{3,}|~{3,})/.exec(text) ?? [];
  if (!mark) return null;
  const info = text.slice(mark.length).trim();
  if (mark[0] === '`' && info.includes('`')) return null; // code in a line may have as many marks
  return { mark, language: info.split(/\s/, 1)[0], indent: line.indexOf(mark) };
}

/** Where the code ends that is opened at a line: at the line that closes it, or behind the last one. */
function closing(lines, at, { mark }) {
  const closes = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], '');
  for (at += 1; at < lines.length && !closes(lines[at]); at += 1);
  return at;
}

/** What begins an item, `{ordered, number, indent, content, text}`, or null; `content` is where its text begins. */
function itemOf(line) {
  const [head, space, mark] = /^(\s*)([-*•]|\d{1,3}[.)])\s+/.exec(line) ?? [];
  if (head === undefined) return null;
  return { ordered: /\d/.test(mark), number: parseInt(mark, 10), indent: indentOf(space), content: indentOf(space) + mark.length + 1, text: line.slice(head.length) };
}

/** Where the item ends that begins at a line: what is further in belongs to it, and text that follows at once. */
function behindItem(lines, at, { indent }) {
  for (let end = at + 1; ;) {
    let next = end;
    while (next < lines.length && !lines[next].trim()) next += 1;
    if (next >= lines.length) return end;
    const fence = fenceOf(lines[next]);
    const other = next > end || fence || itemOf(lines[next]) || HEADING.test(lines[next]);
    if (other && indentOf(lines[next]) < indent + 2) return end;
    end = fence ? closing(lines, next, fence) + 1 : next + 1;
  }
}

/**
 * Text → blocks `{type, source, …}`: `paragraph` and `heading` {text, level?}, `list` {ordered, start, items}, `code` {language, text, open};
 * an item is blocks again. `source` is the text that the block was made of: a block whose source did not change need not be drawn again.
 */
export function blocks(text, depth = 0) {
  const lines = text.split('\n');
  const result = [];
  let at = 0;
  while (at < lines.length) {
    const from = at;
    const line = lines[at];
    const fence = fenceOf(line);
    const first = depth < DEEPEST && itemOf(line);
    if (!line.trim()) {
      at += 1;
      continue;
    }
    let block;
    if (fence) {
      at = closing(lines, at, fence);
      const inside = lines.slice(from + 1, at).map((one) => one.slice(Math.min(fence.indent, one.search(/\S|$/))));
      block = { type: 'code', language: fence.language, text: inside.join('\n'), open: at >= lines.length };
      at += 1;
    } else if (HEADING.test(line)) {
      const [, marks, title] = HEADING.exec(line);
      block = { type: 'heading', level: marks.length, text: title };
      at += 1;
    } else if (first) {
      block = { type: 'list', ordered: first.ordered, start: first.number || 1, items: [] };
      for (let item = first; item && item.ordered === first.ordered && item.indent < first.indent + 2; item = at < lines.length && itemOf(lines[at])) {
        const end = behindItem(lines, at, item);
        const inside = [' '.repeat(item.content) + item.text, ...lines.slice(at + 1, end)];
        block.items.push(blocks(inside.join('\n'), depth + 1));
        at = end;
      }
    } else {
      const ends = (one) => !one.trim() || fenceOf(one) || HEADING.test(one) || itemOf(one);
      for (at += 1; at < lines.length && !ends(lines[at]); at += 1);
      const said = lines.slice(from, at);
      block = { type: 'paragraph', text: (depth ? said.map((one) => one.trim()) : said).join('\n') };
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
