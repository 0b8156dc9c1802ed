-- What a script is given beside Lua itself, and how it is run.
--
-- 1. The script never holds a Python object. `ask` and `tell` are locals here; what they raise is caught here.
-- 2. What is used here was taken before the script ran, so a script that replaces a function of Lua replaces its own.

local ask, tell, json, guard, source, name, given, message_max, depth_max = ...

local error, getinfo, gsub, load, metatable_of, next = error, debug.getinfo, string.gsub, load, debug.getmetatable, next
local concat, format, match, pack, pcall, select, setmetatable = table.concat, string.format, string.match, table.pack, pcall, select, setmetatable
local sub, tonumber, tostring, type, utf8_len, xpcall = string.sub, tonumber, tostring, type, utf8.len, xpcall

local encoded, decoded, null, LIST = load(json, "=json", "t")(message_max, depth_max)

local function plain(value)
  if value == null then
    return nil
  end
  return value
end

local function readable(text)
  return utf8_len(text) and text or (gsub(text, "[\128-\255]", "?"))
end

-- calls: the verbs of each word and how many values they take, as in doors.py

local SCOPED = { get = 2, has = 1, set = 2, delete = 1, list = 1, clear = 0, increment = 2 }
local OWN = { get = 2, has = 1, set = 2, delete = 1, list = 1, increment = 2, append = 2 }

local function called(word, verb, count, ...)
  local line = '["call","' .. word .. '","' .. verb .. '"'
  for i = 1, count do
    line = line .. "," .. encoded((select(i, ...)))
  end
  if #line + 2 > message_max then
    error("it is larger than " .. message_max .. " bytes as JSON", 0)
  end
  local answer = decoded(ask(line .. "]\n"))
  if answer[1] ~= true then
    error(answer[2], 0)
  end
  return plain(answer[2])
end

local function door(word, verbs)
  local result = {}
  for verb, count in next, verbs do
    result[verb] = function(...)
      local good, value = pcall(called, word, verb, count, ...)
      if not good then -- what is no text is a Python error: there was no memory for the call
        error(word .. "." .. verb .. ": " .. (type(value) == "string" and value or "not enough memory"), 2)
      end
      return value
    end
  end
  return result
end

local function print(...)
  local parts = pack(...)
  for i = 1, parts.n do
    parts[i] = tostring(parts[i]) -- may run a metamethod: the script's own, in the script's time
  end
  local good, text = pcall(encoded, readable(concat(parts, "\t", 1, parts.n)))
  if not good then
    error("print: " .. text, 2)
  end
  pcall(tell, '["print",' .. text .. "]\n")
end

local function list(...)
  local items = pack(...)
  if items.n == 1 and type(items[1]) == "table" and metatable_of(items[1]) == nil then
    return setmetatable(items[1], LIST)
  end
  error("list takes one plain table: list{1, 2}", 2)
end

-- the script

local CHUNK = "=" .. name

local function described(fault)
  local line
  for level = 2, 30 do
    local info = getinfo(level, "Sl")
    if not info then
      break
    elseif info.source == CHUNK and info.currentline > 0 then
      line = info.currentline
      break
    end
  end
  if type(fault) ~= "string" then
    local good, text = pcall(encoded, fault)
    fault = good and "error object " .. sub(text, 1, 1000) or "an error object of type " .. type(fault)
  end
  return { fault = fault, line = line }
end

local function failed(fault, line)
  local text = encoded(readable(sub(fault, 1, 2000)))
  tell('["failed","error",' .. text .. "," .. (line and format("%d", line) or "null") .. "]\n")
end

local env = load(guard, "=guard", "t")()
local context = decoded(given)
env.null, env.list, env.print, env.input = null, list, print, plain(context.input)
env.State = door("State", SCOPED)
env.workflow = door("workflow", OWN)
env.workflow.id, env.workflow.state = plain(context.workflow), door("workflow.state", SCOPED)
env.step = { name = plain(context.step), key = plain(context.key), attempt = plain(context.attempt), state = door("step.state", SCOPED) }

local body, why = load(source, CHUNK, "t", env)
if not body then
  return failed(why, tonumber(match(why, ":(%d+):")))
end
local results = pack(xpcall(body, described))
if results[1] then
  local good, text = pcall(encoded, results[2])
  if good then
    tell('["done",' .. text .. "]\n")
  else
    failed("what the script returns: " .. text)
  end
elseif type(results[2]) == "table" then
  failed(results[2].fault, results[2].line)
else
  env, body, context = nil, nil, nil
  error(results[2], 0) -- no memory was left to describe it: the host says so
end
