-- Everything but `commit`: each function is one question or one removal, run alone and whole.
--
-- ARGV: 1 prefix, 2 namespace, 3 the function's name, 4... what it takes.
-- Values in PREFIX:n:NAMESPACE:... :
--   heads     hash   stream -> "VERSION CHAIN KIND"
--   r:STREAM  hash   version -> "POSITION CHAIN [time,author,message,kind]\nBODY"
--   feed      stream POSITION-0 -> s STREAM v VERSION
--   streams   sorted set of names; lows: hash stream -> first version kept, where some were trimmed
--   k:STREAM  hash   version -> keyframe; keyframes: how many there are
--   blobs     sorted set of names; b:NAME: its bytes
--   cells     hash   name -> "EXPIRES SUM VALUE"; cellnames, expiring: sorted sets

if redis.replicate_commands then redis.replicate_commands() end

local prefix = ARGV[1]
local space = prefix .. ':n:' .. ARGV[2] .. ':'
local CHUNK = 1000
local call = {}

local function number_of(head) return tonumber(string.match(head, '^%d+')) end

-- A number that is counted up, -1 where something else took its place.
local function counted(key) return tonumber(redis.call('GET', key) or 0) or -1 end

local function position_of(row) return row and string.match(row, '^%d+') end

-- Begin a session, ending another: whatever was sent under the old one cannot land any more. Renaming works where
-- memory is short, and keeps the count of the calls that took effect. A store that is gone is not begun anew by a handle
-- that wrote to it.
function call.session(format, old, new, ttl)
  local found = redis.call('GET', prefix .. ':format')
  if not found and old ~= '' then
    return redis.error_reply('LOST the whole store')
  elseif not found then
    redis.call('SET', prefix .. ':format', format)
  elseif found ~= format then
    return redis.error_reply('FORMAT ' .. found)
  end
  local from, to = prefix .. ':session:' .. old, prefix .. ':session:' .. new
  if old ~= '' and redis.call('EXISTS', from) == 1 then
    redis.call('RENAME', from, to)
    redis.call('PEXPIRE', to, ttl)
  else
    redis.call('SET', to, 0, 'PX', ttl)
  end
  return tonumber(redis.call('GET', to))
end

-- Say that a stream without a head was lost, if it is listed.
local function missing(stream)
  return redis.call('ZSCORE', space .. 'streams', stream) and redis.error_reply('LOST the head of ' .. stream)
end

-- The heads of all streams that are named, whatever their number.
function call.heads()
  local found = {}
  for start = 4, #ARGV, CHUNK do
    local names = {}
    for i = start, math.min(start + CHUNK - 1, #ARGV) do names[#names + 1] = ARGV[i] end
    for i, head in ipairs(redis.call('HMGET', space .. 'heads', unpack(names))) do
      local gone = not head and missing(names[i])
      if gone then return gone end
      found[#found + 1] = head
    end
  end
  return found
end

function call.read(stream, after, upto, limit, most)
  local head = redis.call('HGET', space .. 'heads', stream)
  if not head then return missing(stream) or {0} end
  local low = tonumber(redis.call('HGET', space .. 'lows', stream) or 1)
  local first = math.max(tonumber(after) + 1, low)
  local last = number_of(head)
  if upto ~= '' then last = math.min(last, tonumber(upto)) end
  last = math.min(last, first + math.min(tonumber(limit), CHUNK) - 1)
  if last < first then return {0} end
  local versions, size = {}, 0
  for version = first, last do
    versions[#versions + 1] = version
    size = size + redis.call('HSTRLEN', space .. 'r:' .. stream, version)
    if size >= tonumber(most) then break end
  end
  local rows = redis.call('HMGET', space .. 'r:' .. stream, unpack(versions))
  table.insert(rows, 1, first)
  return rows
end

function call.feed(after, limit, most)
  local found, size = {}, 0
  local entries = redis.call('XRANGE', space .. 'feed', after .. '-1', '+', 'COUNT', math.min(tonumber(limit), CHUNK))
  for _, entry in ipairs(entries) do
    local stream, version = entry[2][2], entry[2][4]
    found[#found + 1] = stream
    found[#found + 1] = version
    local row = redis.call('HGET', space .. 'r:' .. stream, version)
    found[#found + 1] = row
    size = size + (row and #row or 0)
    if size >= tonumber(most) then break end
  end
  return found
end

-- Remove versions first..last of a stream and their places in the feed.
local function remove(stream, first, last)
  local key, count = space .. 'r:' .. stream, 0
  for start = first, last, CHUNK do
    local versions, places = {}, {}
    for version = start, math.min(start + CHUNK - 1, last) do versions[#versions + 1] = version end
    for _, row in ipairs(redis.call('HMGET', key, unpack(versions))) do
      local position = position_of(row)
      if position then places[#places + 1] = position .. '-0' end
    end
    count = count + redis.call('HDEL', key, unpack(versions))
    if #places > 0 then redis.call('XDEL', space .. 'feed', unpack(places)) end
  end
  return count
end

function call.trim(stream, upto)
  local head = redis.call('HGET', space .. 'heads', stream)
  if not head then return 0 end
  local low = tonumber(redis.call('HGET', space .. 'lows', stream) or 1)
  local last = math.min(tonumber(upto), number_of(head) - 1)
  if last < low then return 0 end
  local count = remove(stream, low, last)
  redis.call('HSET', space .. 'lows', stream, last + 1) -- after the removal: where memory is short, it makes room
  return count
end

function call.drop(stream)
  local head = redis.call('HGET', space .. 'heads', stream)
  if not head then return 0 end
  local low = tonumber(redis.call('HGET', space .. 'lows', stream) or 1)
  remove(stream, low, number_of(head))
  local frames = redis.call('HLEN', space .. 'k:' .. stream)
  if frames > 0 then redis.call('DECRBY', space .. 'keyframes', frames) end
  redis.call('DEL', space .. 'r:' .. stream, space .. 'k:' .. stream)
  redis.call('HDEL', space .. 'heads', stream)
  redis.call('HDEL', space .. 'lows', stream)
  redis.call('ZREM', space .. 'streams', stream)
  return 1
end

-- stream, version, chain, body, and so on: those found with that chain get that body.
function call.rewrite()
  local found = {}
  for i = 4, #ARGV, 4 do
    local row = redis.call('HGET', space .. 'r:' .. ARGV[i], ARGV[i + 1])
    if row and string.match(row, '^%d+ (%x+) ') == ARGV[i + 2] then
      local line = string.find(row, '\n', 1, true)
      found[#found + 1] = {space .. 'r:' .. ARGV[i], ARGV[i + 1], string.sub(row, 1, line) .. ARGV[i + 3]}
    end
  end
  for _, row in ipairs(found) do redis.call('HSET', row[1], row[2], row[3]) end
  return #found
end

function call.put_keyframe(stream, version, frame)
  if redis.call('HEXISTS', space .. 'heads', stream) == 0 then return 0 end
  local new = redis.call('HSET', space .. 'k:' .. stream, version, frame)
  if new == 1 then redis.call('INCR', space .. 'keyframes') end
  return 1
end

function call.keyframe(stream, at)
  local newest
  for _, version in ipairs(redis.call('HKEYS', space .. 'k:' .. stream)) do
    local number = tonumber(version)
    if (at == '' or number <= tonumber(at)) and (not newest or number > newest) then newest = number end
  end
  if not newest then return false end
  return {newest, redis.call('HGET', space .. 'k:' .. stream, newest)}
end

function call.drop_keyframes(stream, ...)
  local gone = redis.call('HDEL', space .. 'k:' .. stream, ...)
  if gone > 0 then redis.call('DECRBY', space .. 'keyframes', gone) end
  return gone
end

function call.put_blob(name, data)
  if redis.call('SET', space .. 'b:' .. name, data, 'NX') then
    redis.call('ZADD', space .. 'blobs', 0, name)
  end
  return 1
end

function call.drop_blob(name)
  redis.call('DEL', space .. 'b:' .. name)
  return redis.call('ZREM', space .. 'blobs', name)
end

-- The cells of one page of names: the server's time in milliseconds, then name and value of each.
function call.cells(low, high, limit)
  local time = redis.call('TIME')
  local found = {time[1] * 1000 + math.floor(time[2] / 1000)}
  local names = redis.call('ZRANGEBYLEX', space .. 'cellnames', low, high, 'LIMIT', 0, math.min(tonumber(limit), CHUNK))
  for _, name in ipairs(names) do
    found[#found + 1] = name
    found[#found + 1] = redis.call('HGET', space .. 'cells', name)
  end
  return found
end

function call.stats()
  return {
    redis.call('ZCARD', space .. 'streams'), redis.call('XLEN', space .. 'feed'),
    counted(space .. 'keyframes'), redis.call('ZCARD', space .. 'blobs'),
    redis.call('HLEN', space .. 'cells'),
  }
end

-- What one stream should be and is: its head, first version, how many rows, the head's row, its keyframes.
function call.survey(stream)
  local head = redis.call('HGET', space .. 'heads', stream)
  local key = space .. 'r:' .. stream
  return {
    head, tonumber(redis.call('HGET', space .. 'lows', stream) or 1), redis.call('HLEN', key),
    head and redis.call('HGET', key, number_of(head) or 0), redis.call('HLEN', space .. 'k:' .. stream),
  }
end

-- What one page of the feed should be and is: the last place looked at, how many were sound, and those that were not.
function call.walk(after)
  local sound, wrong, last = 0, {}, ''
  local entries = redis.call('XRANGE', space .. 'feed', after .. '-1', '+', 'COUNT', CHUNK)
  for _, entry in ipairs(entries) do
    local stream, version = entry[2][2], entry[2][4]
    last = string.match(entry[1], '^%d+')
    local row = redis.call('HGET', space .. 'r:' .. stream, version)
    if position_of(row) == last then
      sound = sound + 1
    else
      wrong[#wrong + 1] = last .. ': ' .. stream .. ' v' .. version
    end
  end
  return {last, sound, wrong}
end

-- Counts that must agree, as of one moment.
function call.totals()
  local records, frames, newest = 0, 0, 0
  for _, stream in ipairs(redis.call('HKEYS', space .. 'heads')) do
    records = records + redis.call('HLEN', space .. 'r:' .. stream)
    frames = frames + redis.call('HLEN', space .. 'k:' .. stream)
  end
  local last = redis.call('XREVRANGE', space .. 'feed', '+', '-', 'COUNT', 1)[1]
  if last then newest = tonumber(string.match(last[1], '^%d+')) end
  return {
    redis.call('ZCARD', space .. 'streams'), redis.call('HLEN', space .. 'heads'),
    redis.call('ZCARD', space .. 'cellnames'), redis.call('HLEN', space .. 'cells'),
    redis.call('XLEN', space .. 'feed'), records,
    counted(space .. 'keyframes'), frames,
    counted(prefix .. ':position'), newest,
  }
end

if ARGV[3] == 'rewrite' or ARGV[3] == 'heads' then return call[ARGV[3]]() end -- more values than a call may have
return call[ARGV[3]](unpack(ARGV, 4))
