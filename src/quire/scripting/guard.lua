-- What a script can reach: a new table of chosen functions. Everything else of Lua is not hidden but not there.
--
-- 1. A list of what is allowed, never of what is not: what a later Lua adds stays out.
-- 2. Left out: os, io, debug, package, require, load, loadstring, dofile, loadfile, collectgarbage, warn, and lupa's
--    `python`. Without `load` there is no bytecode and no way to name another environment.
-- 3. A finalizer (`__gc`) would run inside code that is not the script's: setmetatable refuses it.
-- 4. The metatable of strings cannot be had, and shows the script's own `string` only.

local rawget, error, type, setmetatable = rawget, error, type, setmetatable

local function chosen(from, names)
  local result = {}
  for name in names:gmatch("%S+") do
    result[name] = from[name]
  end
  return result
end

local env = chosen(_G, "assert error getmetatable ipairs next pairs pcall rawequal rawget rawlen rawset select tonumber tostring type xpcall")
env.math = chosen(math, "abs acos asin atan ceil cos deg exp floor fmod huge log max maxinteger min mininteger modf pi rad random randomseed sin sqrt tan tointeger type ult")
env.string = chosen(string, "byte char find format gmatch gsub len lower match pack packsize rep reverse sub unpack upper")
env.table = chosen(table, "concat insert move pack remove sort unpack")
env.utf8 = chosen(utf8, "char charpattern codepoint codes len offset")
env.coroutine = chosen(coroutine, "close create isyieldable resume running status wrap yield")
env._VERSION = _VERSION
env._G = env

function env.setmetatable(subject, meta)
  if type(meta) == "table" and rawget(meta, "__gc") ~= nil then
    error("a script's metatable has no __gc", 2)
  end
  return setmetatable(subject, meta)
end

local strings = debug.getmetatable("")
strings.__index = env.string
strings.__metatable = false
return env
