// The public suite against the server at CONFORMANCE_URL. Its own command finds no tests, so it is called from here.
//
// It sends no Authorization header and takes no fetch of ours, but calls the global one at every request: with the
// token added there, the whole of the real server is judged, its door included.
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

const plain = globalThis.fetch
globalThis.fetch = (input, init = {}) => {
  const headers = new Headers(init.headers ?? (input instanceof Request ? input.headers : undefined))
  headers.set("authorization", `Bearer ${process.env.CONFORMANCE_TOKEN}`)
  return plain(input, { ...init, headers })
}

runConformanceTests({ baseUrl: process.env.CONFORMANCE_URL, longPollTimeoutMs: 20_000 })
