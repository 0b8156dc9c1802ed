-- One call of `commit`: check every item, then write what holds. Redis runs a script alone and logs it whole.
--
-- ARGV: 1 prefix, 2 namespace, 3 session, 4 number of the call in its session (1, 2, 3...), 5 the clock to go by in
-- milliseconds or '' for the server's own, 6 how long an idle session is remembered (ms), 7 the plan as MessagePack:
-- {names, items}, 8... bytes that the plan names by their index, counted from 1.
-- An item is {expects, records, cells}:
--   expect  {name's index, start of the head that must be there, '' for none}
--   record  {name's index, version, head that it makes, bytes' index}
--   cell    {name, index of the bytes it must hold or 0, index of the new bytes or 0, milliseconds or false}
-- Answers for each item {first, last}, or {{name's index, head, ...}, {names of cells}} where it was refused.
--
-- Nothing is written before all is checked. The first write is one that is refused when memory is short, and after a
-- first write Redis refuses none: so it is all or nothing.

if redis.replicate_commands then redis.replicate_commands() end -- the log gets what was done, not this text

local prefix, namespace, session, number = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local plan = cmsgpack.unpack(ARGV[7])
local names, items = plan[1], plan[2]
local space = prefix .. ':n:' .. namespace .. ':'
local session_key, position_key = prefix .. ':session:' .. session, prefix .. ':position'
local heads_key, feed_key, cells_key = space .. 'heads', space .. 'feed', space .. 'cells'
local BYTES, CHUNK = 7, 1000

local done = redis.call('GET', session_key)
if not done then
  return redis.error_reply('FENCED this session was ended or forgotten')
elseif tonumber(done) ~= number - 1 then
  return redis.error_reply('FENCED call ' .. number .. ' came after ' .. done)
end

local heads = {}
for start = 1, #names, CHUNK do
  local found = redis.call('HMGET', heads_key, unpack(names, start, math.min(start + CHUNK - 1, #names)))
  for i = 1, #found do heads[start + i - 1] = found[i] end
end

-- What the server lost is found before anything is put beside it: keys that were evicted, deleted or flushed.
local function lost(what) return redis.error_reply('LOST ' .. what) end

local streams = redis.call('HLEN', heads_key)
if streams ~= redis.call('ZCARD', space .. 'streams') then return lost('the heads of streams or their list') end
if redis.call('HLEN', cells_key) ~= redis.call('ZCARD', space .. 'cellnames') then return lost('cells or their list') end
if streams > 0 then
  if redis.call('EXISTS', feed_key) == 0 then return lost('the feed') end
  if not tonumber(redis.call('GET', position_key) or '') then return lost('the newest position') end
end
for i = 1, #names do
  if heads[i] then
    local low = tonumber(redis.call('HGET', space .. 'lows', names[i]) or 1)
    local there, wanted = redis.call('HLEN', space .. 'r:' .. names[i]), tonumber(string.match(heads[i], '^%d+')) - low + 1
    if there ~= wanted then return lost('records of ' .. names[i] .. ': ' .. there .. ' of ' .. wanted .. ' are there') end
  end
end

local now
local function clock()
  if not now then
    if ARGV[5] ~= '' then
      now = tonumber(ARGV[5])
    else
      local time = redis.call('TIME')
      now = time[1] * 1000 + math.floor(time[2] / 1000)
    end
  end
  return now
end

local cells, touched = {}, {} -- what each cell holds: {bytes or false}; those to write, in order

local function held(name)
  local cell = cells[name]
  if not cell then
    local stored = redis.call('HGET', cells_key, name)
    cell = {value = false}
    if stored then
      local expires, value = string.match(stored, '^(%d*) %x+ (.*)$')
      if not expires then
        -- damage: it holds nothing that anybody could expect, and is not written over
        cell.value = nil
      elseif expires == '' or tonumber(expires) > clock() then
        cell.value = value
      end
    end
    cells[name] = cell
  end
  return cell
end

local position = tonumber(redis.call('GET', position_key) or 0)
local outcomes, rows, order, feed = {}, {}, {}, {}
local changed, created = {}, {}

for i = 1, #items do
  local item = items[i]
  local moved, taken = {}, {}
  for _, expect in ipairs(item[1]) do
    local head = heads[expect[1]]
    local fits = head == false and expect[2] == ''
    if head and expect[2] ~= '' then fits = string.sub(head, 1, #expect[2]) == expect[2] end
    if not fits then
      moved[#moved + 1] = expect[1]
      moved[#moved + 1] = head or ''
    end
  end
  for _, write in ipairs(item[3]) do
    local wanted = write[2] > 0 and ARGV[BYTES + write[2]]
    if held(write[1]).value ~= wanted then taken[#taken + 1] = write[1] end
  end
  if #moved > 0 or #taken > 0 then
    outcomes[i] = {moved, taken}
  else
    local first = position + 1
    for _, record in ipairs(item[2]) do
      position = position + 1
      local stream = record[1]
      local row = rows[stream]
      if not row then
        row = {}
        rows[stream] = row
        order[#order + 1] = stream
      end
      row[#row + 1] = record[2]
      row[#row + 1] = string.format('%.0f', position) .. ' ' .. ARGV[BYTES + record[4]]
      feed[#feed + 1] = {position, names[stream], record[2]}
      if not heads[stream] then created[#created + 1] = names[stream] end
      heads[stream] = record[3]
      changed[stream] = true
    end
    for _, write in ipairs(item[3]) do
      local cell = cells[write[1]]
      cell.value = write[3] > 0 and ARGV[BYTES + write[3]]
      cell.expires = write[4] and string.format('%.0f', clock() + write[4]) or ''
      if not cell.touched then
        cell.touched = true
        touched[#touched + 1] = write[1]
      end
      -- an expiry that has come already counts for the items after this one
      cell.gone = write[4] and write[4] <= 0
      cell.kept = cell.value
      if cell.gone then cell.value = false end
    end
    outcomes[i] = #item[2] > 0 and {first, position} or {0, 0}
  end
end

-- From here on nothing may fail but the first write.

for _, entry in ipairs(feed) do
  redis.call('XADD', feed_key, string.format('%.0f-0', entry[1]), 's', entry[2], 'v', entry[3])
end
redis.call('SET', session_key, ARGV[4], 'PX', ARGV[6])
if #feed > 0 then redis.call('SET', position_key, string.format('%.0f', position)) end

for _, stream in ipairs(order) do
  local row, key = rows[stream], space .. 'r:' .. names[stream]
  for start = 1, #row, CHUNK do
    redis.call('HSET', key, unpack(row, start, math.min(start + CHUNK - 1, #row)))
  end
end

local pairs_of_heads = {}
for _, stream in ipairs(order) do
  pairs_of_heads[#pairs_of_heads + 1] = names[stream]
  pairs_of_heads[#pairs_of_heads + 1] = heads[stream]
end
for start = 1, #pairs_of_heads, CHUNK do
  redis.call('HSET', heads_key, unpack(pairs_of_heads, start, math.min(start + CHUNK - 1, #pairs_of_heads)))
end
for _, name in ipairs(created) do
  redis.call('ZADD', space .. 'streams', 0, name)
end

for _, name in ipairs(touched) do
  local cell = cells[name]
  if not cell.kept then
    redis.call('HDEL', cells_key, name)
    redis.call('ZREM', space .. 'cellnames', name)
    redis.call('ZREM', space .. 'expiring', name)
  else
    if cell.expires == '' then
      redis.call('ZREM', space .. 'expiring', name)
    else
      -- more go than come, so what expired cannot pile up
      for _, old in ipairs(redis.call('ZRANGEBYSCORE', space .. 'expiring', '-inf', clock(), 'LIMIT', 0, 2)) do
        redis.call('HDEL', cells_key, old)
        redis.call('ZREM', space .. 'cellnames', old)
        redis.call('ZREM', space .. 'expiring', old)
      end
      redis.call('ZADD', space .. 'expiring', cell.expires, name)
    end
    local sum = string.sub(redis.sha1hex(cell.expires .. ' ' .. name .. ' ' .. cell.kept), 1, 16)
    redis.call('HSET', cells_key, name, cell.expires .. ' ' .. sum .. ' ' .. cell.kept)
    redis.call('ZADD', space .. 'cellnames', 0, name)
  end
end

if #feed > 0 then redis.call('PUBLISH', prefix .. ':news', string.format('%.0f', position)) end
return outcomes
