"""The demo: Quire's main job on real input, on any machine that has Python.

`examine` reads one module, `graph` and `findings` draw conclusions, `report` writes them down: all pure. `survey` is the
team of agents that does so on a durable workflow, `audience` starts it, kills it, and asks the log what happened.
"""
