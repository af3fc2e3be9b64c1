-- Gives wrk its requests, and says what came of them: wrk -s bench/wrk.lua ADDRESS -- FILE again|once
-- FILE holds a request target a line. `again`: they are gone through again and again; `once`: nothing is asked for twice.

local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function init(args)
   requests, at, again, exhausted = {}, 0, args[2] == "again", false
   for target in io.lines(args[1]) do
      requests[#requests + 1] = wrk.format("GET", target, { Host = wrk.headers["Host"], Accept = "application/json" })
   end
end

function request()
   at = at + 1
   if at > #requests then
      if not again then
         exhausted = true
         wrk.thread:stop()
      end
      at = 1
   end
   return requests[at]
end

function done(summary, latency)
   local errors, exhausted = summary.errors, false
   for _, thread in ipairs(threads) do
      exhausted = exhausted or thread:get("exhausted")
   end
   io.write(string.format(
      '\n{"answers": %d, "bytes": %.0f, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "exhausted": %s, "errors": %s}\n',
      summary.requests, summary.bytes, summary.duration / 1e6,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, tostring(exhausted),
      string.format(
         '{"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}',
         errors.connect, errors.read, errors.write, errors.status, errors.timeout)))
end
