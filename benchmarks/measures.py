"""What each measure brings: a ladder from the tutorial's loop to ours, then what else might help, one at a time."""

import contextlib
import statistics
import tempfile

from .children import Child, Failed, take_turns
from .loops import rates, spread

COMPILE_LIMIT = 120  # seconds; whoever waits longer for a network of this size has lost already
AUTOCAST, COMPILE = "bf16 autocast", "torch.compile"
MALLOC = "malloc keeps what is freed (glibc's settings)"
EPOCHS, STEPS_AN_EPOCH = 50, 782
KEEP_FREED = dict(MALLOC_TRIM_THRESHOLD_=str(2**32), MALLOC_MMAP_THRESHOLD_=str(2**25))  # glibc's malloc only


def ladder(precision):
    """(name -> options of each rung, the top's options): a rung is the one before it and one thing more.

    The top is ours, written out. precision: the one that pays here; where it is "fp32", bf16's rung is a dead end.
    """
    rung = dict(arm="plain")
    rungs = {"tutorial's loop, no workers": rung}
    for name, more in (("tensors on the device instead of PIL and DataLoader", dict(data="resident")),
                       ("channels last", dict(channels_last=True)),
                       (AUTOCAST, dict(precision="bf16")),
                       ("flush denormals", dict(flush=True, precision=precision)),
                       ("no .item() each step", dict(item=False))):
        rungs[f"+ {name}"] = rung = rung | more
    return rungs, rung


def variants(top):
    """The top of the ladder with one change each; none of these is in ours."""
    return {
        ".item() each step": top | dict(item=True),
        "zero_grad(set_to_none=False)": top | dict(set_to_none=False),
        "SGD(foreach=True)": top | dict(sgd=dict(foreach=True)),
        "SGD(fused=True)": top | dict(sgd=dict(fused=True)),
        "resident images stored channels last": top | dict(stored_last=True),
        "network not channels last": top | dict(channels_last=False),
        "one thread": top | dict(threads=1),
    }


def run(settings):
    """The tables, and all raw values. Most loops share one process: here memory is not asked for."""
    same = dict(settings.fields, steps=settings.measure_steps, count=settings.count)
    with contextlib.ExitStack() as stack:
        def start(arms, env=None):
            child = Child({name: options | same for name, options in arms.items()}, env)
            stack.callback(child.end)
            return child

        ours = start({"ours": dict(arm="ours")})
        precision = ours.answer()["precision"]
        rungs, top = ladder(precision)
        changed = variants(top)
        shared = start(rungs | changed)
        shared.answer()
        keeping = start({MALLOC: top}, KEEP_FREED)
        keeping.answer()
        children = dict.fromkeys(rungs, shared) | {"ours": ours} | dict.fromkeys(changed, shared) | {MALLOC: keeping}
        settings.say("measures: warm")
        compile_seconds = trouble = None
        cold = stack.enter_context(tempfile.TemporaryDirectory())  # as on a machine that has compiled nothing yet
        compiled = start({COMPILE: top | dict(compiled=True)}, dict(TORCHINDUCTOR_CACHE_DIR=cold))
        try:
            compile_seconds = compiled.answer(COMPILE_LIMIT)["first_step_seconds"]
            children[COMPILE] = compiled
        except Failed as error:  # no compiler, no support for this Python, or too slow: worth a row, not the table
            trouble = str(error)
            compiled.end()
        settings.say(f"measures: torch.compile {trouble or f'took {compile_seconds:.0f} s'}")
        results = take_turns(children, settings.rounds, settings.say)
    return dict(rounds=settings.rounds, steps=settings.measure_steps, raw=results, precision=precision,
                compile_seconds=compile_seconds, compile_trouble=trouble,
                images_per_second={name: statistics.median(rates(rounds)) for name, rounds in results.items()},
                tables=tables(results, list(rungs), precision, compile_seconds, trouble, settings))


def tables(results, rungs, precision, compile_seconds, trouble, settings):
    """The ladder, and the variants."""
    median = {name: statistics.median(rates(rounds)) for name, rounds in results.items()}
    first, top = rungs[0], rungs[-1]
    rows, before = [], first
    for name in [*rungs, "ours"]:
        what = "ours: the package's fit" if name == "ours" else name
        if name == f"+ {AUTOCAST}" and precision == "fp32":
            what += " (not kept: no faster here)"
        rows.append([what, spread(rates(results[name])), f"{median[name] / median[before]:.2f}",
                     f"{median[name] / median[first]:.2f}"])
        before = before if "not kept" in what else name
    said = f"medians of {settings.rounds} rounds of {settings.measure_steps} steps (least to most)"
    steps = dict(title=f"What each measure brings, each added to the row above, {settings.data_name}: {said}",
                 columns=["measure", "images/s", "times the row above", "times the first"], rows=rows,
                 note="Denormal numbers come late in training, if at all; these networks are fresh.")
    rows = [[name, spread(rates(rounds)), f"{median[name] / median[top]:.2f}"]
            for name, rounds in results.items() if name not in (*rungs, "ours", COMPILE)]
    if compile_seconds:
        a_step = settings.batch_size / median[COMPILE]
        whole = (EPOCHS * STEPS_AN_EPOCH * a_step) + compile_seconds
        plain = EPOCHS * STEPS_AN_EPOCH * settings.batch_size / median[top]
        rows.append([COMPILE, spread(rates(results[COMPILE])),
                     f"{median[COMPILE] / median[top]:.2f}; over {EPOCHS} epochs, with {compile_seconds:.0f} s "
                     f"for the first step: {plain / whole:.2f}"])
    else:
        rows.append([COMPILE, "-", f"given up: {trouble}"])
    return [steps, dict(title="What else was tried, each as a change to the loop above", rows=rows, note="",
                        columns=["change", "images/s", "times the loop without it"])]
