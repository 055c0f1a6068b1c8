"""What can be cut, exactly, of what people train: a table over families, with torch-pruning on the same networks.

    python -m tests.bench.coverage run coverage.jsonl [--torch-pruning FOLDER] [--only WORD] [--again]
    python -m tests.bench.coverage keep coverage.jsonl      # docs/bench/coverage.json, and docs/coverage.md from it
    python -m tests.bench.coverage page                     # docs/coverage.md from docs/bench/coverage.json

`run` adds a line of JSON for each network (tests/bench/zoo.py) and goes on after those that the file has; `--again` repeats
those that were not exact. Each network has a process of its own with a limit of CPU time, ours and torch-pruning's each. The
request is half of the FLOPs by a random cut, so a figure says what can be cut and not what is lost.

FOLDER is where `pip install --no-deps --target FOLDER torch-pruning==1.6.1` has put it. It prunes the whole network in one
step (`BasePruner`, `pruning_ratio=0.3`), the layers of the network's last child left out. Its cut is "wrong" if the outputs
differ from those of the full network with the channels that went zeroed after every layer and norm that had them.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from tests.bench.cost import peak_gb

LIMIT = 90  # seconds of the CPU for a network, its proof too
WAIT = 30 * 60  # seconds of the clock, for what hangs without computing
EXACT = 1e-8  # of the largest output, as float64 rounds
DOCS = Path(__file__).parents[2] / "docs"


def ours(name: str) -> dict[str, Any]:
    """One network: exact or not, seconds of the CPU, share of FLOPs reached, what stays."""
    import torch

    import prune
    from prune.program.raw import raw_copy, tensors
    from tests.bench.zoo import build

    model, image, adapter = build(name)
    before, start = peak_gb(), time.process_time()
    graph = prune.trace(model, image, adapter=adapter)
    plan, least = _half(graph)
    student = prune.apply(model, plan, adapter=adapter)
    seconds, memory = time.process_time() - start, peak_gb() - before
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        difference = prune.verify(model, student, plan, image, adapter=adapter)
    nothing = any(issubclass(each.category, prune.PruneWarning) for each in warned)  # is proved
    with torch.no_grad():
        adapter = adapter or prune.adapter_for(model)
        outputs = tensors(adapter.outputs(raw_copy(model, adapter).double()(image.double())))
    largest = max((each.abs().max().item() for each in outputs if each.numel()), default=0.0)
    channels = sum(len(layer.outputs) for layer in graph.layers)
    staying = {name: len(graph.layer(name).outputs) for name in graph.frozen if _is_layer(graph, name)}
    reasons: Counter[str] = Counter()
    for layer, count in staying.items():
        reasons[_general(graph.frozen[layer])] += count
    return {
        "result": "wrong" if difference > EXACT * max(1.0, largest) or nothing else "exact",
        "difference": difference,
        "seconds": round(seconds, 1),
        "gb": round(memory, 2),
        "flops": round(plan.flops_after / plan.flops_before, 3),
        "least": least,
        "parameters": round(plan.params_before / 1e6, 1),
        "stays": round(sum(staying.values()) / max(channels, 1), 2),
        "why": [[reason, round(count / max(channels, 1), 2)] for reason, count in reasons.most_common(3)],
    }


def _is_layer(graph: Any, name: str) -> bool:
    return any(layer.name == name for layer in graph.layers)


def _half(graph: Any) -> tuple[Any, float]:
    """A random cut to half of the FLOPs, or to as little as there can be."""
    import prune

    scores = prune.score(graph, "random")
    for share in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98):
        try:
            return prune.make_plan(graph, scores, flops=share, round_to=1), share
        except prune.PruneError as error:
            if "cannot be met" not in str(error):
                raise
    raise prune.PruneError("98% of the FLOPs cannot be cut")


def _general(reason: str) -> str:
    """The kind of a reason: without the names of modules."""
    parts = reason.split("'")
    return "…".join(parts[::2]) if len(parts) > 1 else reason


def theirs(name: str) -> dict[str, Any]:
    """The same network cut by torch-pruning, in one step, to 70% of the channels of every group: about half of the FLOPs."""
    import torch
    import torch_pruning
    from torch import nn

    from prune.program.raw import raw_copy, tensors
    from tests.bench.zoo import build

    model, image, adapter = build(name)
    if adapter is not None:
        model = raw_copy(model, adapter).requires_grad_(True)
    model, image = model.double(), image.double()
    full = copy.deepcopy(model)
    start = time.process_time()
    flops, _ = torch_pruning.utils.count_ops_and_params(model, image)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        image,
        importance=torch_pruning.importance.RandomImportance(),
        pruning_ratio=0.3,
        ignored_layers=_last(model),
        output_transform=lambda returned: sum(each.sum() for each in tensors(returned)),
    )
    paths, gone = {module: path for path, module in model.named_modules()}, dict[str, list[int]]()
    for group in pruner.step(interactive=True):
        for dependency, places in group:
            module = dependency.target.module
            if pruner.DG.is_out_channel_pruning_fn(dependency.handler) and isinstance(module, nn.Module):
                gone.setdefault(paths.get(module, ""), []).extend(map(int, places))
        group.prune()
    seconds = time.process_time() - start
    left, _ = torch_pruning.utils.count_ops_and_params(model, image)
    with torch.no_grad():
        after = tensors(model(image))
        before = tensors(_zeroed(full, gone)(image))
    largest = max((each.abs().max().item() for each in before if each.numel()), default=0.0)
    same = [a.shape for a in before] == [b.shape for b in after]
    far = max(((a - b).abs().max().item() for a, b in zip(before, after, strict=True)), default=0.0) if same else None
    exact = far is not None and far <= EXACT * max(1.0, largest)
    return {
        "result": "exact" if exact else "wrong",
        "difference": far,
        "seconds": round(seconds, 1),
        "flops": round(left / flops, 3),
    }


def _last(model: Any) -> list[Any]:
    """What torch-pruning's examples leave out: layers whose outputs are the model's."""
    from torch import nn

    layers = {path: module for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    head = list(model.children())[-1]
    head = list(head.children())[-1] if isinstance(head, nn.Sequential) and len(list(head.children())) else head
    inside = set(head.modules())
    return [module for module in layers.values() if module in inside] or list(layers.values())[-1:]


def _zeroed(model: Any, gone: dict[str, list[int]]) -> Any:
    """The full network with the channels that went set to zero after every layer and norm that had them."""
    from torch import nn

    norms = (nn.LayerNorm, nn.Linear)
    for path, module in model.named_modules():
        if path and gone.get(path):
            places, last = sorted(set(gone[path])), isinstance(module, norms)

            def zero(module: Any, inputs: Any, output: Any, places: list[int] = places, last: bool = last) -> Any:
                output = output.clone()
                output.movedim(-1 if last else 1, 0)[places] = 0
                return output

            if isinstance(
                module, (nn.Conv2d, nn.ConvTranspose2d, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, *norms)
            ):
                module.register_forward_hook(zero)
    return model


def child(how: str, name: str) -> dict[str, Any]:
    """What a process of its own finds, which has imported all that it needs already."""
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    process = fork.Process(target=_answer, args=(how, name, send))
    process.start()
    send.close()
    slow = {"result": "too slow", "seconds": LIMIT}
    try:
        answer = receive.recv() if receive.poll(WAIT) else slow
    except EOFError:
        process.join()
        killed = {"result": "error", "error": "the process was killed, for memory as a rule"}
        answer = slow if process.exitcode == -signal.SIGXCPU else killed
    process.kill()
    process.join()
    return answer


def _answer(how: str, name: str, send: Any) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
    try:
        answer = {"ours": ours, "theirs": theirs}[how](name)
    except Exception as error:  # noqa: BLE001 - whatever a network or torch-pruning raises is what the table shows
        lines = str(error).strip().splitlines() or [type(error).__name__]
        answer = {"result": "error", "error": f"{type(error).__name__}: {lines[0]}"[:300]}
    send.send(answer)


def _import_all(folder: str) -> None:
    """What every child needs."""
    sys.path += [folder] if folder else []
    for module in ("timm", "torchvision", "torch._dynamo", "ultralytics.nn.tasks", "prune", "torch_pruning"):
        if folder or module != "torch_pruning":
            import_module(module)


def run(path: Path, folder: str, only: str, again: bool) -> None:
    """Add a line for every network that the file lacks."""
    from tests.bench.zoo import names

    known = read(path) if path.exists() else {}
    _import_all(folder)
    for name in names():
        row = known.get(name, {"name": name})
        wrong = again and row.get("ours", {}).get("result") != "exact"
        missing = [how for how in ("ours", "theirs") if how not in row and (how == "ours" or folder)]
        missing = ["ours", *missing] if wrong and "ours" not in missing else missing
        if only not in name or not missing:
            continue
        row |= {how: child(how, name) for how in missing}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, *(f"{how} {row[how]['result']}" for how in missing), flush=True)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> the last line of it."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {row["name"]: row for row in rows}


def keep(path: Path) -> None:
    """The small file under docs."""
    rows = sorted(read(path).values(), key=lambda row: row["name"])
    versions = {package: metadata.version(package) for package in ("torch", "ultralytics", "torchvision", "timm")}
    text = ",\n".join(json.dumps(row) for row in rows)
    from tests.bench.zoo import names

    head = json.dumps({"limit": LIMIT, "listed": len(names()), "versions": versions})
    target = DOCS / "bench" / "coverage.json"
    target.write_text(f'{head[:-1]}, "networks": [\n{text}\n]}}\n')
    page()


def page() -> None:
    """docs/coverage.md."""
    kept = json.loads((DOCS / "bench" / "coverage.json").read_text())
    (DOCS / "coverage.md").write_text(render(kept))


def render(kept: dict[str, Any]) -> str:
    """The page, as Markdown."""
    rows, versions = kept["networks"], ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    parts = [
        "# Coverage",
        (
            "Written by `python -m tests.bench.coverage page` from [bench/coverage.json](bench/coverage.json): do not edit. "
            f"{versions}. Every network has random weights and one thread; it is asked for half of its FLOPs by a random cut. "
            f"Tried so far: {len(rows)} of the {kept['listed']} networks that tests/bench/zoo.py lists."
        ),
        _LEGEND.format(limit=kept["limit"]),
        _totals(rows),
    ]
    for source in ("ultralytics", "torchvision", "timm"):
        own = [row for row in rows if row["name"].startswith(f"{source}/")]
        if own:
            parts += [f"## {source}", "\n".join([*_HEADER, *map(_row, own)])]
    return "\n\n".join(parts) + "\n"


_LEGEND = """\
- exact: the outputs of the cut network are those of the full one with the cut channels zeroed, to rounding in float64.
- seconds: of the CPU, trace, plan and apply.
- too slow: over {limit} seconds of the CPU, the proof among them.
- FLOPs: the share that is left; above 0.50 what stays forbids more.
- stays: the share of channels that cannot go, outputs of the network among them, and the reason of most of them.
- torch-pruning 1.6.1: 30% of the channels of every group by random importance, in one step."""
_HEADER = (
    "| network | ours | seconds | FLOPs | stays | why | torch-pruning | seconds |",
    "|---|---|---:|---:|---:|---|---|---:|",
)


def _row(row: dict[str, Any]) -> str:
    ours, theirs = row["ours"], row.get("theirs", {})
    why = ours.get("error") or "; ".join(reason for reason, _ in ours.get("why", [])[:1])
    cells = [row["name"].partition("/")[2], ours["result"], ours.get("seconds", ""), ours.get("flops", "")]
    cells += [ours.get("stays", ""), why.replace("|", "/")[:160], theirs.get("result", ""), theirs.get("seconds", "")]
    return f"| {' | '.join(map(str, cells))} |"


def _totals(rows: list[dict[str, Any]]) -> str:
    lines = ["| networks | | exact | wrong | error | too slow |", "|---|---|---:|---:|---:|---:|"]
    for source in ("ultralytics", "torchvision", "timm"):
        for who, title in (("ours", "ours"), ("theirs", "torch-pruning")):
            own = [row[who]["result"] for row in rows if row["name"].startswith(f"{source}/") and who in row]
            counts = Counter(own)
            if own:
                numbers = " | ".join(str(counts[each]) for each in ("exact", "wrong", "error", "too slow"))
                lines.append(f"| {source}, {len(own)} | {title} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "keep", "page", "ours", "theirs"])
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("--torch-pruning", default="", metavar="FOLDER")
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args()
    if asked.what in ("ours", "theirs"):
        _import_all(asked.torch_pruning)
        print(json.dumps({"ours": ours, "theirs": theirs}[asked.what](asked.name)))
    elif asked.what == "run":
        run(Path(asked.name), asked.torch_pruning, asked.only, asked.again)
    elif asked.what == "keep":
        keep(Path(asked.name))
    else:
        page()


if __name__ == "__main__":
    main()
