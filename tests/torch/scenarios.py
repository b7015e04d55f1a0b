"""How a program runs its scenarios, for test_upstream_scenarios.py and test_pool_allocator.py: the end of its text.

The program imports gc, json, os, sys, threading, traceback and torch, and has `SCENARIOS`, functions by name. Its first
argument is the allocator. It prints a JSON object: for each scenario null, or how it failed. One that hangs ends the
program after 200 seconds, with every thread's stack.
"""

RUN = """
def stuck():
    import faulthandler
    faulthandler.dump_traceback()
    os._exit(9)
watchdog = threading.Timer(200, stuck)
watchdog.daemon = True
watchdog.start()
torch.cuda.init()
outcomes = {}
for name, run in SCENARIOS.items():
    try:
        run()
        outcomes[name] = None
    except BaseException:
        outcomes[name] = traceback.format_exc()
    gc.collect()
if sys.argv[1] == "poolalloc":
    from poolalloc import _core
    _core.validate()
    assert _core.plugin_state()["failures"] == 0, _core.plugin_state()["last_failure"]
"""
"""What comes first. The lines after it, if indented, belong to what is done under poolalloc alone."""

PRINT = """
watchdog.cancel()
print(json.dumps(outcomes))
"""
"""What comes last."""
