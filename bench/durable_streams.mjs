// The reference server of the Durable Streams protocol with its file store, and a producer that writes an engine's
// answers to it with the protocol's own client: what somebody would build on it today. For the benchmark only.
//
//   node durable_streams.mjs HOME server PORT DIRECTORY
//   node durable_streams.mjs HOME producer PORT ENGINE_URL SERVER_URL
//
// HOME: where the packages are installed. The producer takes a chat request and answers with the stream's URL.

import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [home, role, port, ...rest] = process.argv.slice(2)
const load = (name) => import(pathToFileURL(createRequire(home + '/').resolve(name)))

async function serve(directory) {
  const { DurableStreamTestServer } = await load('@durable-streams/server')
  await new DurableStreamTestServer({ host: '127.0.0.1', port: Number(port), dataDir: directory }).start()
}

async function produce(engine, server) {
  const { DurableStream, IdempotentProducer } = await load('@durable-streams/client')
  let asked = 0

  async function answer(body) {
    const url = `${server}/chat/${process.pid}-${asked++}`
    const stream = await DurableStream.create({ url, contentType: 'text/plain' })
    relay(stream, body).catch((error) => console.error(error))
    return url
  }

  async function relay(stream, body) {
    const producer = new IdempotentProducer(stream, 'relay', { autoClaim: true, onError: console.error })
    const response = await fetch(`${engine}/v1/chat/completions`, {
      method: 'POST', body, headers: { 'content-type': 'application/json' },
    })
    let rest = ''
    for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + chunk).split('\n')
      rest = lines.pop()
      for (const line of lines) {
        if (!line.startsWith('data: ') || line === 'data: [DONE]') continue
        const text = JSON.parse(line.slice(6)).choices[0]?.delta?.content
        if (text) producer.append(text)
      }
    }
    await producer.flush()
    await producer.close()
  }

  createServer(async (request, response) => {
    if (request.method === 'GET') return response.end('ok')
    try {
      let body = ''
      for await (const chunk of request) body += chunk
      response.writeHead(201, { 'content-type': 'application/json' }).end(JSON.stringify({ url: await answer(body) }))
    } catch (error) {
      response.writeHead(500).end(String(error))
    }
  }).listen(Number(port), '127.0.0.1')
}

await (role === 'server' ? serve(...rest) : produce(...rest))
