"""Make a trained YOLO smaller: prune it, repair it in closed form, distill it from the original.

    import distill

    print(distill.check("half", model="best.pt", data="data.yaml"))      # opens everything, trains nothing
    print(distill.plan("half", model="best.pt", data="data.yaml"))       # what would be cut, layer by layer
    results = distill.run("half", model="best.pt", data="data.yaml", imgsz=320, progress=True)
    print(results)                                                       # a column for each network
    results.student.map50_95, results.accepted, results.folder           # what results.json holds, typed

    student = results.folder / "student.pt"                              # any ultralytics reads it
    print(distill.evaluate(student, data="data.yaml"))
    print(distill.export(student, "onnx"))

    distill.load(path)       the torch module in a checkpoint; nothing pickled in the file is executed
    distill.check(recipe)    opens everything that a run needs
    distill.plan(recipe)     what a run would cut
    distill.run(recipe)      prunes, repairs, distills, measures, exports; writes a report
    distill.resume(folder)   goes on with a run, a comparison or a sweep
    distill.compare(recipe)  trains the same pruned network in several ways
    distill.curve(recipe)    how far one can go: accuracy over a range of budgets
    distill.sweep(recipe)    several runs that share stages, and which of them no other beats
    distill.features(path)   where losses can compare features, and what a cut keeps there
    distill.evaluate(path)   measures a checkpoint's mAP
    distill.export(path)     converts a checkpoint, and checks its outputs

A recipe is a file or the name of a shipped one, and its keys are keywords: `imgsz=320`, `prune={"flops": 0.3}`, or in
a mapping `{"distill.epochs": 5}`. `distill ls recipes` and `distill ls keys` list them in a shell.

Nothing is printed unless `progress=True` asks for what the command line shows; `progress=` also takes a function that is
called as progress(iterable, label, total, unit). Warnings go to `logging`, as logger `distill`. Wrong input is a `DistillError`,
a fault of the machine its subclass `RunError`.

The steps one by one, for any torch module: `help(prune)`. Losses for a training loop of your own: `help(distill.losses)`.
More in docs/api.md, and in the notebook docs/tutorial.ipynb.
"""

from distill.api.single import check, curve, evaluate, export, features, load, plan
from distill.api.whole import compare, resume, run, sweep
from distill.errors import DistillError, RunError

__all__ = [
    "DistillError",
    "RunError",
    "check",
    "compare",
    "curve",
    "evaluate",
    "export",
    "features",
    "load",
    "plan",
    "resume",
    "run",
    "sweep",
]
