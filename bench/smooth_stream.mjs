// The AI SDK's own smoothStream, with its defaults, on a clock that this file moves: nothing waits.
//
// stdin: JSON, streams of [seconds, text]. stdout: JSON, for each the pieces that come out, [seconds, length of text].
// argv[2]: the directory that `ai` is installed in.

import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const { smoothStream } = await import(pathToFileURL(createRequire(process.argv[2] + '/').resolve('ai')))

async function play(tokens) {
  let now = 0
  const delay = async (milliseconds) => {
    await new Promise(setImmediate) // until what it has said has been read
    now += (milliseconds ?? 0) / 1000
  }
  const transform = smoothStream({ _internal: { delay } })({ tools: {}, stopStream() {} })
  const writer = transform.writable.getWriter()
  const shown = []
  const reading = (async () => {
    for await (const part of transform.readable) if (part.type === 'text-delta') shown.push([now, part.text.length])
  })()
  for (const [at, text] of tokens) {
    now = Math.max(now, at) // it takes the next part when it has done with the one before
    await writer.write({ type: 'text-delta', id: '0', text })
  }
  await writer.write({ type: 'text-end', id: '0' })
  await writer.close()
  await reading
  return shown
}

let input = ''
for await (const chunk of process.stdin) input += chunk
const answers = []
for (const tokens of JSON.parse(input)) answers.push(await play(tokens))
console.log(JSON.stringify(answers))
