-- JSON text from the values of a script, and back; nothing else crosses between a script and the store.
--
-- 1. What is used here was taken before the script ran; tables are read raw, so no metamethod of the script runs here.
-- 2. nil and null; true and false; integer; float; text of valid UTF-8; a table.
--    A table is a list if it came from a list or was made with `list`, or if its keys are 1..n with n > 0.
--    It is an object if all its keys are text, or if it is empty. Anything else is an error that says why.
--    null inside a list or object is the value `null`, because a table cannot hold nil.
-- 3. Errors are text, raised without a position.

local text_max, depth_max = ...

local byte, find, format, gsub, match, sub = string.byte, string.find, string.format, string.gsub, string.match, string.sub
local concat, sort = table.concat, table.sort
local kind_of, huge = math.type, math.huge
local utf8_char, utf8_len = utf8.char, utf8.len
local metatable_of = debug.getmetatable
local error, next, rawequal, rawget, rawlen = error, next, rawequal, rawget, rawlen
local setmetatable, tonumber, tostring, type = setmetatable, tonumber, tostring, type

local LIST = { __metatable = "list" }
local null = setmetatable({}, {
  __metatable = "null",
  __newindex = function() error("null has no fields", 2) end,
  __tostring = function() return "null" end,
})

-- encoding

local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }
local function escaped(char)
  return ESCAPES[char] or format("\\u%04x", byte(char))
end

local function put(out, text)
  out.size = out.size + #text
  if out.size > text_max then
    error("it is larger than " .. text_max .. " bytes as JSON", 0)
  end
  out.count = out.count + 1
  out[out.count] = text
end

local function put_text(out, text)
  if #text <= text_max and not utf8_len(text) then
    error("text that is not UTF-8; keep bytes elsewhere", 0)
  end
  put(out, '"')
  put(out, #text <= text_max and gsub(text, '[%c"\\]', escaped) or text)
  put(out, '"')
end

local function put_number(out, value)
  if kind_of(value) == "integer" then
    return put(out, format("%d", value))
  elseif value ~= value or value == huge or value == -huge then
    error(tostring(value) .. " is not JSON", 0)
  end
  local text = format("%.17g", value)
  put(out, find(text, "[.e]") and text or text .. ".0")
end

local put_value

local function put_list(out, value, depth)
  local length, seen = rawlen(value), 0
  for key in next, value do
    if kind_of(key) ~= "integer" or key < 1 or key > length then
      local shown = type(key) == "string" and format("%q", sub(key, 1, 40)) or type(key) == "number" and tostring(key)
      error("a list has the keys 1 to n, this one has " .. (shown or "a " .. type(key)), 0)
    end
    seen = seen + 1
  end
  if seen ~= length then
    error("a list with a hole; fill it with null", 0)
  end
  put(out, "[")
  for i = 1, length do
    if i > 1 then
      put(out, ",")
    end
    put_value(out, rawget(value, i), depth)
  end
  put(out, "]")
end

local function put_object(out, value, depth)
  local keys, count = {}, 0
  for key in next, value do
    if type(key) ~= "string" then
      error("an object's keys are text, this one has a " .. type(key) .. "; lists have the keys 1 to n only", 0)
    end
    count = count + 1
    keys[count] = key
  end
  sort(keys)
  put(out, "{")
  for i = 1, count do
    if i > 1 then
      put(out, ",")
    end
    put_text(out, keys[i])
    put(out, ":")
    put_value(out, rawget(value, keys[i]), depth)
  end
  put(out, "}")
end

function put_value(out, value, depth)
  local kind = type(value)
  if kind == "string" then
    put_text(out, value)
  elseif kind == "number" then
    put_number(out, value)
  elseif kind == "boolean" then
    put(out, value and "true" or "false")
  elseif value == nil or rawequal(value, null) then
    put(out, "null")
  elseif kind ~= "table" then
    error("a " .. kind .. " is not JSON", 0)
  elseif depth >= depth_max then
    error("nested deeper than " .. depth_max .. ", or it holds itself", 0)
  elseif metatable_of(value) == LIST or rawlen(value) > 0 or kind_of((next(value))) == "integer" then
    put_list(out, value, depth + 1)
  else
    put_object(out, value, depth + 1)
  end
end

local function encoded(value)
  local out = { size = 0, count = 0 }
  put_value(out, value, 0)
  return concat(out, "", 1, out.count)
end

-- decoding: what the store's side writes, which is compact and correct JSON

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
    if code == "u" then -- of control characters only: all others come as they are
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

local function decoded(text)
  return (get_value(text, 1))
end

return encoded, decoded, null, LIST
