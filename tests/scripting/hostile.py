"""A script's process in an attacker's hands: it speaks to the other side as it likes."""

import json
import os
import sys
import time


def say(*parts):
    os.write(1, json.dumps(parts).encode() + b"\n")


def flood(line):
    while True:
        os.write(1, line)


DEEDS = {
    "garbage": lambda: flood(b"\xff\xfe no json\n"),
    "no_line": lambda: flood(b"x" * 65536),
    "empty_lines": lambda: flood(b"\n"),
    "deep": lambda: flood(b"[" * 100_000 + b"\n"),
    "not_a_list": lambda: say({"done": 1}) or flood(b'{"done":1}\n'),
    "unknown_word": lambda: flood(b'["commit",1]\n'),
    "unknown_verb": lambda: flood(b'["call","State","drop"]\n'),
    "private_verb": lambda: flood(b'["call","State","__class__","x"]\n["call","workflow","replace",{}]\n'),
    "unknown_scope": lambda: flood(b'["call","secret","set","k",1]\n'),
    "unhashable_verb": lambda: flood(b'["call",["State"],{"set":1},"k",1]\n'),
    "wrong_arguments": lambda: flood(b'["call","State","set"]\n["call","State","set",1,2,3,4]\n["call"]\n'),
    "hidden_key": lambda: flood(b'["call","workflow","set","_run",1]\n'),
    "step_of_others": lambda: flood(
        b'["call","workflow.state","delete","_step:other"]\n["call","step.state:other","get","secret",null]\n'
    ),
    "keys_of_all_kinds": lambda: flood(
        b'["call","State","get",null,null]\n["call","State","get",{},1]\n["call","workflow","get",[],1]\n["call","State","list",[1]]\n'
    ),
    "nan": lambda: flood(b'["call","State","set","k",NaN]\n'),
    "huge_number": lambda: flood(b'["call","State","increment","k",1e999]\n'),
    "long_integer": lambda: flood(b'["call","State","set","k",' + b"9" * 5000 + b"]\n"),
    "surrogate": lambda: flood(b'["call","State","set","k","\\ud800"]\n'),
    "failed_oddly": lambda: flood(b'["failed",5,null,"x"]\n'),
    "print_oddly": lambda: flood(b'["print",{"x":1}]\n'),
    "print_flood": lambda: flood(b'["print","' + b"x" * 1000 + b'"]\n'),
    "call_flood_unread": lambda: flood(b'["call","State","list",null]\n' * 100),
    "set_flood": lambda: flood(b'["call","State","set","k","' + b"x" * 100_000 + b'"]\n'),
    "silence": lambda: time.sleep(600),
    "closed_pipes": lambda: (os.close(0), os.close(1), os.close(2), time.sleep(600)),
    "stderr_flood": lambda: [os.write(2, b"x" * 65536) for _ in iter(int, 1)],
    "exit": lambda: os._exit(0),
    "exit_with_a_code": lambda: (os.write(2, b"bang \xff\n"), os._exit(9)),
    "killed": lambda: os.kill(os.getpid(), 9),
    "half_a_line": lambda: (os.write(1, b'["done",'), os._exit(0)),
    "sets_then_dies": lambda: (say("call", "State", "set", "k", 1), os._exit(1)),
}

if __name__ == "__main__":
    sys.stdin.buffer.readline()
    DEEDS[sys.argv[1]]()
