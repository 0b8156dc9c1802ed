-- Between a script and the process that owns the store: values as JSON text, nothing else crosses.
--
-- 1. The script never holds a Python object. `ask` and `tell` are locals here; what they raise is caught here.
-- 2. What is used here was taken before the script ran; tables are read raw, so no metamethod of the script runs here.
-- 3. JSON and Lua: nil and null; true and false; integer; float; text of valid UTF-8; a table.
--    A table is a list if it came from a list or was made with `list`, or if its keys are 1..n with n > 0.
--    It is an object if all its keys are text, or if it is empty. Anything else is an error that says where.
--    null inside a list or object is the value `null`, because a table cannot hold nil.

local ask, tell, guard, source, name, given, message_max, depth_max = ...

local byte, find, format, gsub, match, rep, sub = string.byte, string.find, string.format, string.gsub, string.match, string.rep, string.sub
local concat, pack, sort, unpack = table.concat, table.pack, table.sort, table.unpack
local kind_of, mininteger, huge = math.type, math.mininteger, math.huge
local utf8_char, utf8_len = utf8.char, utf8.len
local getinfo, metatable_of = debug.getinfo, debug.getmetatable
local error, load, next, pcall, rawlen, rawget, select = error, load, next, pcall, rawlen, rawget, select
local setmetatable, tonumber, tostring, type, xpcall = setmetatable, tonumber, tostring, type, xpcall

local LIST = { __metatable = "list" }
local null = setmetatable({}, {
  __metatable = "null",
  __newindex = function() error("null has no fields", 2) end,
  __tostring = function() return "null" end,
})

-- encoding: gives text, or nil and what is wrong

local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }
local function escaped(char)
  return ESCAPES[char] or format("\\u%04x", byte(char))
end

local function new_writer()
  return { size = 0, count = 0 }
end

local function put(out, text)
  out.count = out.count + 1
  out[out.count] = text
  out.size = out.size + #text
  return out.size <= message_max or nil, "it is larger than " .. message_max .. " bytes as JSON"
end

local function put_text(out, text)
  if #text > message_max then
    return nil, "it is larger than " .. message_max .. " bytes as JSON"
  end
  if not utf8_len(text) then
    return nil, "text that is not UTF-8; keep bytes elsewhere"
  end
  return put(out, '"' .. gsub(text, '[%c"\\]', escaped) .. '"')
end

local function put_number(out, value)
  if kind_of(value) == "integer" then
    return put(out, format("%d", value))
  end
  if value ~= value or value == huge or value == -huge then
    return nil, tostring(value) .. " is not JSON"
  end
  local text = format("%.17g", value)
  return put(out, find(text, "[.e]") and text or text .. ".0")
end

local put_value

local function put_list(out, value, depth)
  local length, seen = rawlen(value), 0
  for key in next, value do
    if kind_of(key) ~= "integer" or key < 1 or key > length then
      return nil, "a list has the keys 1 to n, this one has " .. (type(key) == "string" and format("%q", sub(key, 1, 40)) or tostring(key))
    end
    seen = seen + 1
  end
  if seen ~= length then
    return nil, "a list with a hole; fill it with null"
  end
  local good, why = put(out, "[")
  for i = 1, length do
    if i > 1 then
      good, why = put(out, ",")
    end
    if good then
      good, why = put_value(out, rawget(value, i), depth)
    end
    if not good then
      return nil, why
    end
  end
  return put(out, "]")
end

local function put_object(out, value, depth)
  local keys, count = {}, 0
  for key in next, value do
    if type(key) ~= "string" then
      return nil, "an object's keys are text, this one has a " .. type(key) .. "; lists have the keys 1 to n only"
    end
    count = count + 1
    keys[count] = key
  end
  sort(keys)
  local good, why = put(out, "{")
  for i = 1, count do
    if i > 1 then
      good, why = put(out, ",")
    end
    if good then
      good, why = put_text(out, keys[i])
    end
    if good then
      good, why = put(out, ":")
    end
    if good then
      good, why = put_value(out, rawget(value, keys[i]), depth)
    end
    if not good then
      return nil, why
    end
  end
  return put(out, "}")
end

function put_value(out, value, depth)
  local kind = type(value)
  if kind == "string" then
    return put_text(out, value)
  elseif kind == "number" then
    return put_number(out, value)
  elseif kind == "boolean" then
    return put(out, value and "true" or "false")
  elseif value == nil or value == null then
    return put(out, "null")
  elseif kind ~= "table" then
    return nil, "a " .. kind .. " is not JSON"
  elseif depth >= depth_max then
    return nil, "nested deeper than " .. depth_max .. ", or it holds itself"
  elseif metatable_of(value) == LIST or kind_of((next(value))) == "integer" or rawlen(value) > 0 then
    return put_list(out, value, depth + 1)
  end
  return put_object(out, value, depth + 1)
end

local function encoded(value)
  local out = new_writer()
  local good, why = put_value(out, value, 0)
  if not good then
    return nil, why
  end
  return concat(out, "", 1, out.count)
end

-- decoding: what the owner's encoder writes, which is compact and correct JSON

local UNESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

local function get_text(text, at)
  local stop = find(text, '["\\]', at)
  if byte(text, stop) == 34 then
    return sub(text, at, stop - 1), stop + 1
  end
  local parts, count = {}, 0
  while byte(text, stop) ~= 34 do
    local code = sub(text, stop + 1, stop + 1)
    local plain, after = UNESCAPES[code] or code, stop + 2
    if code == "u" then
      plain, after = utf8_char(tonumber(sub(text, stop + 2, stop + 5), 16)), stop + 6
    end
    parts[count + 1], parts[count + 2], count = sub(text, at, stop - 1), plain, count + 2
    at = after
    stop = find(text, '["\\]', at)
  end
  parts[count + 1] = sub(text, at, stop - 1)
  return concat(parts), stop + 1
end

local WORDS = { t = { true, 4 }, f = { false, 5 }, n = { null, 4 } }

local function get_value(text, at)
  local first = sub(text, at, at)
  if first == '"' then
    return get_text(text, at + 1)
  elseif first == "{" then
    local result = {}
    at = at + 1
    while sub(text, at, at) ~= "}" do
      local key
      key, at = get_text(text, find(text, '"', at, true) + 1)
      result[key], at = get_value(text, at + 1)
    end
    return result, at + 1
  elseif first == "[" then
    local result, length = setmetatable({}, LIST), 0
    at = at + 1
    while sub(text, at, at) ~= "]" do
      length = length + 1
      result[length], at = get_value(text, sub(text, at, at) == "," and at + 1 or at)
    end
    return result, at + 1
  elseif WORDS[first] then
    return WORDS[first][1], at + WORDS[first][2]
  end
  local digits = match(text, "^[-+.%deE]+", at)
  local value = tonumber(digits)
  if kind_of(value) == "float" and not find(digits, "[.eE]") then
    error("the integer " .. sub(digits, 1, 30) .. " does not fit 64 bits; a script cannot read it", 0)
  end
  return value, at + #digits
end

local function plain(value)
  if value == null then
    return nil
  end
  return value
end

-- calls

local SCOPED = { get = 2, has = 1, set = 2, delete = 1, list = 1, clear = 0, increment = 2 }
local OWN = { get = 2, has = 1, set = 2, delete = 1, list = 1, increment = 2, append = 2 }

local function exchanged(word, verb, count, ...)
  local what = word .. "." .. verb
  local out = new_writer()
  put(out, '["call","' .. word .. '","' .. verb .. '"')
  for i = 1, count do
    put(out, ",")
    local good, why = put_value(out, (select(i, ...)), 0)
    if not good then
      return nil, what .. ": " .. why
    end
  end
  put(out, "]\n")
  local sent, answer = pcall(ask, concat(out, "", 1, out.count))
  if not sent or type(answer) ~= "string" then
    return nil, what .. ": not enough memory for the call"
  end
  local read, result = pcall(get_value, answer, 1)
  if not read then
    return nil, what .. ": " .. (type(result) == "string" and result or "not enough memory for the answer")
  end
  if result[1] ~= true then
    return nil, result[2]
  end
  return result
end

local function door(word, verbs)
  local result = {}
  for verb, count in next, verbs do
    result[verb] = function(...)
      local answer, why = exchanged(word, verb, count, ...)
      if not answer then
        error(why, 2)
      end
      return plain(answer[2])
    end
  end
  return result
end

local function text_of(value)
  -- tostring would run a metamethod of the script; that is the script's business, in the script's time
  return type(value) == "string" and value or tostring(value)
end

local function print(...)
  local parts = pack(...)
  for i = 1, parts.n do
    parts[i] = text_of(parts[i])
  end
  local line = concat(parts, "\t", 1, parts.n)
  if not utf8_len(line) then
    line = gsub(line, "[\128-\255]", "?")
  end
  local text, why = encoded(line)
  if not text then
    error("print: " .. why, 2)
  end
  pcall(tell, '["print",' .. text .. "]\n")
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
    local text = encoded(fault)
    fault = text and "error object " .. sub(text, 1, 1000) or "an error object of type " .. type(fault)
  end
  return { fault = fault, line = line }
end

local function failed(fault, line)
  fault = sub(fault, 1, 2000)
  if not utf8_len(fault) then
    fault = gsub(fault, "[\128-\255]", "?")
  end
  pcall(tell, '["failed","error",' .. (encoded(fault) or '"?"') .. "," .. (line and format("%d", line) or "null") .. "]\n")
end

local env = load(guard, "=guard", "t")()
local context = get_value(given, 1)
env.null = null
env.input = plain(context.input)
env.print = print
env.list = function(...)
  local items = pack(...)
  if items.n == 1 and type(items[1]) == "table" and metatable_of(items[1]) == nil then
    return setmetatable(items[1], LIST)
  end
  error("list takes one plain table: list{1, 2}", 2)
end
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
  local text, wrong = encoded(results[2])
  if text then
    tell('["done",' .. text .. "]\n")
  else
    failed("what the script returns: " .. wrong)
  end
elseif type(results[2]) == "table" then
  failed(results[2].fault, results[2].line)
else
  env, body, context = nil, nil, nil
  error(results[2], 0) -- no memory was left to describe it: the host says so
end
