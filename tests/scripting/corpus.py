"""Hostile scripts. REACH: each returns "REACHED" if it got out of the sandbox. BURN: each uses all it can get.

A REACH script that is stopped by an error has not reached anything; nor has one that returns something else.
"""

REACH = {
    # what lupa gives by default
    "python_eval": 'return python.eval("1") == 1 and "REACHED"',
    "python_builtins": 'return python.builtins.open and "REACHED"',
    "python_none": 'return python.none.__class__ and "REACHED"',
    "python_as_attrgetter": 'return python.as_attrgetter(State.get) and "REACHED"',
    "python_in_require": 'return require("python") and "REACHED"',
    "attributes_of_a_function": 'return State.get.__class__ and "REACHED"',
    "globals_of_a_function": 'return State.get.__globals__ and "REACHED"',
    "mro_walk": 'return State.set.__class__.__mro__[1].__subclasses__ and "REACHED"',
    "call_with_odd_self": 'local ok, e = pcall(State.get, State) return type(e) == "userdata" and "REACHED"',
    "error_is_a_python_object": """
        for _, f in pairs(State) do for _, v in ipairs({ {}, print, 1e308, string.rep("x", 1e4) }) do
            local ok, e = pcall(f, v, v, v)
            if type(e) == "userdata" then return "REACHED" end
        end end""",
    "userdata_anywhere": """
        local seen = {}
        local function walk(t)
            if seen[t] then return end
            seen[t] = true
            for k, v in next, t do
                if type(v) == "userdata" or type(k) == "userdata" then error("REACHED", 0) end
                if type(v) == "table" then walk(v) end
                local m = type(v) ~= "string" and getmetatable(v)
                if type(m) == "table" then walk(m) end
            end
        end
        local ok, why = pcall(walk, _G)
        return not ok and why""",
    # libraries that are not there
    "os_getenv": 'return (os.getenv("PATH") or true) and "REACHED"',
    "os_execute": 'return os.execute("true") and "REACHED"',
    "os_exit": 'os.exit(7) return "REACHED"',
    "os_exit_through_pcall": 'return pcall(function() os.exit(true, true) end) and "REACHED"',
    "os_remove": 'os.remove("/tmp/quire-no-such-file") return "REACHED"',
    "os_tmpname": 'return os.tmpname() and "REACHED"',
    "io_open": 'return io.open("/etc/passwd") and "REACHED"',
    "io_popen": 'return io.popen("id") and "REACHED"',
    "io_write_to_the_pipe": 'io.write("[\\"done\\",\\"REACHED\\"]\\n") io.flush() return nil',
    "io_stdout": 'io.stdout:write("[\\"done\\",\\"REACHED\\"]\\n") io.stdout:flush()',
    "io_lines": 'for line in io.lines("/etc/passwd") do return "REACHED" end',
    "debug_registry": 'return debug.getregistry() and "REACHED"',
    "debug_upvalues": 'return debug.getupvalue(State.get, 1) and "REACHED"',
    "debug_sethook": 'debug.sethook() return "REACHED"',
    "debug_setmetatable": 'debug.setmetatable(1, {}) return "REACHED"',
    "package_loadlib": 'return package.loadlib and "REACHED"',
    "package_loaded": 'return package.loaded.os and "REACHED"',
    "require_os": 'return require("os") and "REACHED"',
    "dofile": 'return dofile("/etc/passwd") and "REACHED"',
    "loadfile": 'return loadfile("/etc/passwd") and "REACHED"',
    # code out of text and bytes
    "load_text": 'return load("return _G")() and "REACHED"',
    "load_bytecode": 'return load(string.dump(function() return os end), "x", "b")() and "REACHED"',
    "load_false_bytecode": 'return load("\\27Lua\\x54\\0\\x19\\x93\\r\\n\\x1a\\n", "x", "b") == nil and "REACHED"',
    "loadstring": 'return loadstring("return 1")() and "REACHED"',
    "string_dump": 'return string.dump(print) and "REACHED"',
    "string_dump_through_a_string": 'return ("").dump(function() end) and "REACHED"',
    "collectgarbage": 'return collectgarbage("count") and "REACHED"',
    "warn": 'warn("@on") warn("REACHED") return "REACHED"',
    # other environments
    "the_real_globals": 'return _G.os and "REACHED" or _G._G.io and "REACHED"',
    "env_upwards": 'local e = _ENV while e._G and e._G ~= e do e = e._G end return (e.os or e.io or e.debug) and "REACHED"',
    "getfenv": 'return getfenv(0) and "REACHED"',
    "setfenv": 'setfenv(1, {}) return "REACHED"',
    "thread_environment": 'return coroutine.wrap(function() return _G.debug end)() and "REACHED"',
    "metatable_of_strings": 'return type(getmetatable("")) == "table" and "REACHED"',
    "index_of_strings": 'getmetatable("").__index = function() return "REACHED" end return ("").anything',
    "metatable_of_null": 'return type(getmetatable(null)) == "table" and "REACHED"',
    "change_null": 'null.x = 1 return "REACHED"',
    "remeta_null": 'setmetatable(null, {}) return "REACHED"',
    "metatable_of_lists": 'return type(getmetatable(State.get("x", list({ 1 })))) == "table" and "REACHED"',
    "remeta_a_list": 'setmetatable(list({}), { __index = 1 }) return "REACHED"',
    "finalizer": 'setmetatable({}, { __gc = function() end }) return "REACHED"',
    "finalizer_by_another_name": 'local m = { ["__" .. "gc"] = print } setmetatable({}, m) return "REACHED"',
    # taking the bridge by surprise
    "replaced_string_functions": """
        local got
        for _, name in ipairs({ "format", "gsub", "find", "sub", "byte", "match" }) do
            string[name] = function(...) got = "REACHED" return ... end
        end
        State.get('x"y\\n')
        return got""",
    "replaced_table_functions": """
        local got
        for _, library in ipairs({ table, math, utf8, coroutine }) do
            for name in next, library do library[name] = function(...) got = "REACHED" return ... end end
        end
        State.get("x")
        return got""",
    "replaced_globals": """
        local got
        local kept, each = State.get, next
        for name, value in each, _G do
            if name ~= "_G" and name ~= "State" then _G[name] = function(...) got = "REACHED" return ... end end
        end
        kept("x")
        return got""",
    "metamethods_while_a_value_is_read": """
        local got
        local function trap() got = "REACHED" return nil end
        local meta = { __index = trap, __len = trap, __pairs = trap, __tostring = trap, __name = "x", __call = trap, __lt = trap }
        State.set("k", setmetatable({ a = setmetatable({ 1 }, meta) }, meta))
        State.delete("k")
        return got""",
    "error_object_with_a_hostile_tostring": """
        error(setmetatable({}, { __tostring = function() State.set("k", "REACHED") return "REACHED" end, __name = "REACHED" }))""",
    "level_games": 'local ok, e = pcall(error, "REACHED", 1e9) return ok and e',
    "the_step_of_others": """
        for _, key in ipairs({ "other", "steps", "_step:other", "steps/other/secret", "/steps/other" }) do
            if workflow.state.get(key) or step.state.get(key) or State.get(key) then return "REACHED" end
        end""",
    "a_step_by_its_name": 'step.name = "other" step.key = "other" return step.state.get("secret") and "REACHED"',
    "the_books_of_the_run": 'workflow.set("_run", {}) return "REACHED"',
    "the_books_of_the_run_read": 'return workflow.get("_run") and "REACHED"',
    "the_books_of_the_run_listed": 'return table.concat(workflow.list(), " "):find("_run") and "REACHED"',
    "other_workflows_by_name": 'return workflow.get("../secret") and "REACHED"',
    "other_scopes_by_name": 'return (State.get("../secret") or State.get("scope-workflow-secret")) and "REACHED"',
    "a_path_for_a_key": 'return workflow.get("/topic") and "REACHED"',
    "a_workflow_by_its_name": """
        workflow.id = "secret"
        return (workflow.get("hidden") or workflow.state.get("hidden")) and "REACHED"
        """,
    "the_doors_exchanged": 'workflow, State = State, workflow return State.get("hidden") and "REACHED"',
    "done_in_a_print": 'print("x\\n[\\"done\\",\\"REACHED\\"]") return nil',
    "done_in_a_key": 'State.get("x\\"]\\n[\\"done\\",\\"REACHED\\"]\\n") return nil',
    "done_in_an_error": 'error("x\\"]\\n[\\"done\\",\\"REACHED\\"]\\n")',
    "done_in_a_value": 'local s = "\\n[\\"done\\",\\"REACHED\\"]\\n" State.set("k", { [s] = s }) State.delete("k") return nil',
}

BURN = {
    "loop": "while true do end",
    "goto": "::again:: goto again",
    "integer_for": "for i = math.mininteger, math.maxinteger do end",
    "repeat_in_pcall": "while true do pcall(function() while true do end end) end",
    "error_in_pcall": "while true do pcall(error) end",
    "xpcall_that_never_gives_up": "local function f() xpcall(error, f) f() end while true do pcall(f) end",
    "coroutine_loop": "coroutine.wrap(function() while true do coroutine.yield() end end)() while true do end",
    "coroutine_flood": "local t = {} while true do t[#t + 1] = coroutine.create(function() coroutine.yield() end) coroutine.resume(t[#t]) end",
    "coroutines_in_coroutines": "local function f() return coroutine.wrap(f)() end while true do pcall(f) end",
    "string_rep": 'return #string.rep("x", 1 << 40)',
    "string_rep_overflow": 'return #string.rep("abc", math.maxinteger)',
    "string_doubling": 'local s = "x" while true do s = s .. s end',
    "string_doubling_in_pcall": 'while true do pcall(function() local s = "x" while true do s = s .. s end end) end',
    "table_growth": "local t = {} while true do t[#t + 1] = {} end",
    "table_growth_in_globals": "i = 0 while true do i = i + 1 _G[i] = { i } end",
    "table_concat": 'local t = {} for i = 1, 1e5 do t[i] = string.rep("x", 100) end while true do table.concat(t) end',
    "table_unpack": "while true do pcall(table.unpack, {}, 1, 1e6) end",
    "table_move": "table.move({}, 1, math.maxinteger - 1, 2)",
    "table_sort_with_a_liar": "local t = {} for i = 1, 1e5 do t[i] = i end while true do pcall(table.sort, t, function() return true end) end",
    "pattern_backtracking": 'return string.find(string.rep("a", 1e5), string.rep("a-", 100) .. "b")',
    "pattern_backtracking_in_gsub": 'return string.gsub(string.rep("a", 1e5), ".-.-.-.-b", "")',
    "pattern_depth": 'while true do pcall(string.find, string.rep("(", 1e5), string.rep("(", 1e5)) end',
    "format_width": 'while true do pcall(string.format, "%" .. string.rep("9", 1000) .. "d", 1) end',
    "format_many": 'return string.format(string.rep("%99.99f", 1e6), 1)',
    "pack_sizes": 'while true do pcall(string.pack, "!16 " .. string.rep("s8", 100), "x") pcall(string.rep, "x", -1) end',
    "deep_recursion": "local function f() return 1 + f() end return f()",
    "deep_recursion_in_pcall": "local function f() pcall(f) f() end f()",
    "tail_calls": "local function f() return f() end return f()",
    "recursion_through_metamethods": "local m = {} m.__index = function(t, k) return t[k] end return setmetatable({}, m).x",
    "recursion_through_tostring": "local t t = setmetatable({}, { __tostring = function() return tostring(t) end }) while true do pcall(tostring, t) end",
    "recursion_through_sort": "local function f() table.sort({ 1, 2, 3 }, f) end while true do pcall(f) end",
    "recursion_through_gsub": 'local function f() return string.gsub("x", ".", f) end while true do pcall(f) end',
    "close_variables": "while true do local x <close> = setmetatable({}, { __close = function() while true do end end }) end",
    "nested_source": "return " + "(" * 5000 + "1" + ")" * 5000,
    "nested_tables_in_source": "return " + "{" * 5000 + "}" * 5000,
    "billion_laughs": 'local t = {} for i = 1, 50 do t = { t, t } end State.set("k", t)',
    "value_that_holds_itself": 'local t = {} t.t = t State.set("k", t)',
    "value_too_deep": 'local t = {} for i = 1, 1e5 do t = { t } end State.set("k", t)',
    "value_too_long": 'State.set("k", string.rep("x", 2e7))',
    "value_of_escapes": 'State.set("k", string.rep("\\1", 3e6))',
    "many_values": 'for i = 1, 1e9 do State.set("k" .. i, string.rep("x", 1e5)) end',
    "many_calls": "while true do pcall(State.get, 'k') end",
    "many_prints": "while true do print('x') end",
    "one_large_print": "print(string.rep('x', 1e7))",
    "print_that_never_ends": "print(setmetatable({}, { __tostring = function() while true do end end }))",
    "many_wrong_calls": "while true do pcall(State.set, 'k', print) end",
    "many_wrong_calls_after_right_ones": """
        for i = 1, 240 do State.set("k" .. i, "x") end
        while true do pcall(State.increment, "k1") end""",
    "many_keys": "for i = 1, 1e9 do State.set('k' .. i, i) end",
    "many_lists": "for i = 1, 200 do State.set('k' .. i, i) end while true do State.list() end",
    "returned_flood": "return string.rep('x', 2e7)",
    "error_flood": "error(string.rep('x', 2e7))",
    "error_object_flood": "local t = {} for i = 1, 40 do t = { t, t } end error(t)",
    "endless_iterator": "for _ in next, setmetatable({}, { __index = function() return 1 end }) do end for _ in function() return 1 end do end",
    "utf8_flood": "while true do utf8.char(table.unpack({}, 1, 1)) for _ in utf8.codes(string.rep('x', 1e5)) do end end",
    "random_flood": "while true do math.random(0) end",
}
