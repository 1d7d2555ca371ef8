"""The ``bert-numpy`` command."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import npfp8
from bert_numpy.completion import SHELLS, completion_script
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation import Evaluation
from bert_numpy.figures import describe, draw_histogram, draw_sqnr
from bert_numpy.glue import TASKS, Task, TestSet, submission
from bert_numpy.hub import EMBEDDED, resolve
from bert_numpy.job import (
    REVIEWS,
    Job,
    calibrate_on_sentences,
    keep_calibration,
    prepare,
    run,
    saved_calibration,
    with_calibration,
)
from bert_numpy.kit.commands import add_golden_commands
from bert_numpy.loading import load, stored_recipe
from bert_numpy.model import encoder_sites, model_sites
from bert_numpy.model_card import model_card
from bert_numpy.onnx_export import export_onnx
from bert_numpy.options import (
    add_format,
    add_model,
    add_sentence_scales,
    check_output,
    chosen_recipe,
    named_recipe,
    positive,
    require_together,
)
from bert_numpy.prediction import check_prediction, predict_text
from bert_numpy.quantization import QuantizedModel, apply_recipe
from bert_numpy.quantized_checkpoint import check_target, check_writable, save_quantized
from bert_numpy.recipe import PRESETS, Recipe, preset
from bert_numpy.report import (
    comparison_row,
    print_comparison,
    print_operands,
    progress_bar,
    write_json,
    write_text,
)
from bert_numpy.squad import SQUAD, Questions
from bert_numpy.tokenization import load_tokenizer
from npfp8.matmul import ACCUMULATIONS

__all__ = ["main"]

#: The formats of a comparison, unless others are asked for.
_COMPARED = "fp32,int8,e4m3,e5m2"

_DESCRIPTION = "BERT in NumPy, with post-training quantization to FP8 and INT8."

_EPILOG = f"""\
MODEL is a folder with a safetensors checkpoint, the embedded {EMBEDDED}, or
a Hugging Face hub id (owner/name).

formats:
  fp32   no quantization, float32 throughout
  bf16   no quantization, float32 products, everything else in bfloat16
  e4m3   the paper's: every encoder product in FP8 E4M3, static scale per tensor,
         everything else in bfloat16
  e5m2, int8     the same in FP8 E5M2, in symmetric INT8
  mixed          E4M3 weights, K and V; E5M2 activations, Q and P
  int8-asymmetric                                  UINT8 activations with a zero point
  int8-percentile, int8-mse, int8-entropy, e4m3-mse   other observers than absmax
  int8-channel, e4m3-channel                       a scale for each output of a weight
  int8-token, e4m3-token, e4m3-block               scales per token, per 128 elements
  int8-outliers, int8-outliers-columns             int8-token with outliers in bfloat16:
                                                   single elements, whole columns (LLM.int8())
  int8-smooth, int8-smooth-paper, e4m3-smooth      SmoothQuant's migration
  e4m3-pow2, e4m3-weights                          power-of-two scales; only weights
  FILE.json                                        a recipe of your own
  stored                                           that of a quantized checkpoint, its only one

examples:
  bert-numpy demo
  bert-numpy compare ./my-model --task sst2 --data glue/SST-2
  bert-numpy predict {EMBEDDED} "a warm and funny film" --format e4m3

  bert-numpy evaluate ./my-model --task sst2 --data glue/SST-2 --format e4m3 --golden
  bert-numpy quantize ./my-model ./my-model-fp8 --task sst2 --data glue/SST-2 --recipe e4m3
  bert-numpy evaluate ./my-qa-model --task squad --data squad --predictions answers.json

exit codes:
  0 done   1 golden verify, check-vectors: a difference   2 input that cannot be used
  70 an error of this program   130 interrupted   141 nobody reads the output any more
"""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Name an option's default where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return action.help
        return f"{action.help} (default: %(default)s)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, see ``bert-numpy --help``."""
    arguments = _parser().parse_args(argv)
    try:
        _check_outputs(arguments)
        report = arguments.run(arguments)
        if arguments.json is not None:
            write_json(arguments.json, report)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would be written, and complained of, at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("bert-numpy: interrupted", file=sys.stderr)
        return 130
    except (BertNumpyError, OSError) as error:
        if arguments.debug:
            traceback.print_exc()
        else:
            print(f"bert-numpy: {error}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 70  # not Python's 1, which says that something was compared and differs
    return 0 if report.get("passed", True) else 1


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse files that cannot be written before the time to make their content is spent."""
    for name in ("json", "save_calibration", "predictions", "html"):
        target = getattr(arguments, name, None)
        if target not in (None, "-"):
            check_output(target)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "bert-numpy", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_HelpFormatter
    )
    parser.add_argument("--version", action="version", version=npfp8.__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], dict[str, Any]], summary: str
    ) -> argparse.ArgumentParser:
        sub = _add_command(commands, name, function, summary)
        if name == "calibration":
            sub.add_argument("file", metavar="FILE", help="what --save-calibration wrote")
        elif name != "demo":
            add_model(sub)
        return sub

    demo = command("demo", _demo, "Compare formats on the embedded model and review sentences.")
    compare = command("compare", _compare, "Compare formats on a task's development set.")
    evaluate = command("evaluate", _evaluate, "Evaluate one format on a task's development set.")
    submit = command("submit", _submit, "Write a GLUE test set's predictions for its server.")
    predict = command(
        "predict", _predict, "Classify, score, label, fill in or embed a text; answer a question."
    )
    quantize = command("quantize", _quantize, "Write a quantized checkpoint that others read too.")
    export = command("export-onnx", _export_onnx, "Write a quantized model as an ONNX file.")
    command("info", _info, "Describe a checkpoint.")
    calibration = command("calibration", _calibration, "Describe and plot a saved calibration.")
    summary = "Print a script that completes commands and options in a shell."
    completion = commands.add_parser("completion", help=summary, description=summary)
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_completion, json=None, debug=False)
    summary = "Golden outputs that other backends are checked against, and test vectors."
    golden = commands.add_parser("golden", help=summary, description=summary)
    kits = golden.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_golden_commands(partial(_add_command, kits))
    quantize.add_argument("out", metavar="OUT", help="the folder to make")
    export.add_argument("out", metavar="OUT.onnx", help="the file to write")
    submit.add_argument(
        "out",
        metavar="OUT",
        help="the file to write, or a folder for one of the name that the server expects",
    )

    for sub in (demo, compare, evaluate, submit, predict, quantize, export):
        sub.add_argument(
            "--golden",
            action="store_true",
            help="compute the same bits on every machine and in every batch, calibration included",
        )
    for sub in (demo, compare):
        sub.add_argument(
            "--formats",
            metavar="LIST",
            help="comma-separated; fp32 always runs, as the others are compared with it "
            f"(default: {_COMPARED}{', or stored' if sub is compare else ''})",
        )
    for sub in (evaluate, submit, predict, quantize, export):
        add_format(sub, default=None if sub is quantize else "fp32")
    for sub in (compare, evaluate, submit, predict):
        sub.add_argument(
            "--accumulate",
            choices=ACCUMULATIONS,
            metavar="MODE",
            help="how products of 8-bit codes are added up, instead of what the format's recipe "
            f"says (exact in every named one): {', '.join(ACCUMULATIONS)}",
        )
    for sub in (compare, evaluate, submit, quantize):
        _add_data_options(sub)
    _add_data_options(export, required=False)
    for sub in (compare, evaluate, quantize):
        sub.add_argument(
            "--limit", type=positive, metavar="N", help="evaluate only the first N examples"
        )
    evaluate.add_argument(
        "--predictions",
        metavar="FILE",
        help="squad: write the answers to FILE, in the layout that its official script reads",
    )
    calibration.add_argument(
        "--operand", metavar="PATTERN", default="*", help="only these, such as '*.scores:*'"
    )
    calibration.add_argument(
        "--plot",
        metavar="DIR",
        help="draw the operands' noise by format and each one's elements (extra: plot)",
    )
    predict.add_argument("text", metavar="TEXT", help="a text, or a question")
    predict.add_argument(
        "pair",
        metavar="SECOND_TEXT",
        nargs="?",
        help="the second text of a pair, the question's context, or a text to compare with",
    )
    add_sentence_scales(predict)
    return parser


def _add_command(
    commands: Any,
    name: str,
    function: Callable[[argparse.Namespace], dict[str, Any]],
    summary: str,
) -> argparse.ArgumentParser:
    """A command's parser, with the options that all have."""
    sub: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=_HelpFormatter
    )
    sub.set_defaults(run=function)
    sub.add_argument(
        "--json", metavar="FILE", help="write the results as JSON too; - prints them instead"
    )
    sub.add_argument("--debug", action="store_true", help="show a traceback on an error")
    return sub


def _add_data_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    add = parser.add_argument
    add("--task", required=required, metavar="NAME", help=", ".join((*TASKS, SQUAD.name)))
    add(
        "--data",
        required=required,
        metavar="DATA",
        help="the task's folder, a folder of such folders, a file to evaluate on, or a data set "
        "on the hub (nyu-mll/glue, rajpurkar/squad)",
    )
    add(
        "--calibration-samples",
        type=positive,
        metavar="N",
        default=256,
        help="training examples to calibrate on, spread evenly over the file",
    )
    add(
        "--calibration-data",
        metavar="FILE",
        help="take them from FILE instead of the training file beside the data",
    )
    add(
        "--calibration",
        metavar="FILE",
        help="take the scales from what --save-calibration wrote; nothing is calibrated",
    )
    add("--save-calibration", metavar="FILE", help="write the calibration to FILE")
    add(
        "--max-length",
        type=positive,
        metavar="N",
        help="cut inputs to N tokens (default: 128), "
        f"contexts of questions into windows (default: {SQUAD.max_length})",
    )
    add("--batch-size", type=positive, metavar="N", default=32, help="sequences at a time")


def _recipes(names: str | None, model: str, revision: str | None = None) -> list[Recipe]:
    """The recipes of a comma-separated list, fp32 first, each once; or a checkpoint's own."""
    wanted = None if names is None else [name.strip() for name in names.split(",") if name.strip()]
    own = stored_recipe(model, revision)
    if own is not None and (wanted is None or wanted == ["stored"]):
        return [own]
    if own is not None:
        raise BertNumpyError(
            f"{model}: expected format 'stored' of a quantized checkpoint, found {names!r}"
        )
    compared = ["fp32", *(_COMPARED.split(",") if wanted is None else wanted)]
    return [named_recipe(name, model) for name in dict.fromkeys(compared)]


def _completion(arguments: argparse.Namespace) -> dict[str, Any]:
    tasks = [*TASKS, SQUAD.name]
    values = {"--format": PRESETS, "--recipe": PRESETS, "--task": tasks}
    print(completion_script(_parser(), arguments.shell, values), end="")
    return {}


def _accumulated(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """The recipe with ``--accumulate`` in place of its own."""
    return replace(recipe, accumulate=arguments.accumulate or recipe.accumulate)


def _demo(arguments: argparse.Namespace) -> dict[str, Any]:
    return _comparison(
        arguments, prepare(EMBEDDED, "sst2", REVIEWS), _recipes(arguments.formats, EMBEDDED)
    )


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    recipes = _recipes(arguments.formats, arguments.model, arguments.revision)
    recipes = [_accumulated(recipe, arguments) for recipe in recipes]
    return _comparison(arguments, _prepared(arguments, recipes), recipes)


def _comparison(arguments: argparse.Namespace, job: Job, recipes: list[Recipe]) -> dict[str, Any]:
    reference = None
    rows = []
    results = run(
        job,
        recipes,
        progress_bar,
        golden=arguments.golden,
        calibration_output=getattr(arguments, "save_calibration", None),
    )
    for recipe, result in zip(recipes, results, strict=True):
        reference = reference or result
        rows.append(comparison_row(result, reference) | {"accumulate": recipe.accumulate})
    report = _header(job, arguments.golden) | {"rows": rows}
    if arguments.json != "-":
        print_comparison(f"{job.model.name}, {job.task.name}, {len(job.examples)} examples", rows)
    return report


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    recipe = chosen_recipe(arguments)
    recipe = _accumulated(recipe, arguments)
    job = _prepared(arguments, [recipe])
    if arguments.predictions is not None and not isinstance(job.examples, Questions):
        raise BertNumpyError(f"--predictions: expected task squad, found {job.task.name}")
    (result,) = run(
        job,
        [recipe],
        progress_bar,
        golden=arguments.golden,
        calibration_output=arguments.save_calibration,
    )
    row = comparison_row(result, None) | {"accumulate": recipe.accumulate}
    report = {
        **_header(job, arguments.golden),
        **row,
        "rows": [row],  # as `compare` writes them, so that one reader serves both
        **_outputs(job, result),
        "logits_sha256": hashlib.sha256(result.logits.astype("<f4").tobytes()).hexdigest(),
        "sites": {name: vars(count) for name, count in result.counts.items()},
    }
    if arguments.predictions is not None:
        write_json(arguments.predictions, report["predictions"])
    if arguments.json != "-":
        metrics = "  ".join(f"{name} {100 * value:.2f}" for name, value in result.metrics.items())
        print(
            f"{job.model.name}  {job.task.name}  {recipe.name}  {len(job.examples)} examples  "
            f"{metrics}  {result.seconds:.2f} s"
        )
    return report


def _submit(arguments: argparse.Namespace) -> dict[str, Any]:
    recipe = chosen_recipe(arguments)
    recipe = _accumulated(recipe, arguments)
    path = Path(arguments.out)
    if not path.is_dir():
        check_output(path)
    job = _prepared(arguments, [recipe], test=True)
    assert isinstance(job.task, Task)
    assert isinstance(job.examples, TestSet)
    if path.is_dir():
        path /= f"{job.task.submission_name or job.task.folder}.tsv"
    (result,) = run(
        job,
        [recipe],
        progress_bar,
        golden=arguments.golden,
        calibration_output=arguments.save_calibration,
    )
    write_text(path, submission(job.task, job.examples.ids, result.predictions))
    if arguments.json != "-":
        print(f"{path}: {len(job.examples)} predictions")
    return _header(job, arguments.golden) | {"format": recipe.name, "file": str(path)}


def _outputs(job: Job, result: Evaluation) -> dict[str, Any]:
    """Predictions and logits of each example; of questions, by their ids, the likely answers."""
    if not isinstance(job.examples, Questions):
        return {
            "predictions": result.predictions.tolist(),
            "logits": result.logits.tolist(),  # as doubles, which restore every float32
        }
    ids = [question.id for question in job.examples.items]
    n_best = [[vars(answer) for answer in best] for best in result.answers]
    return {
        "predictions": dict(zip(ids, result.predictions.tolist(), strict=True)),
        "n_best": dict(zip(ids, n_best, strict=True)),
    }


def _prepared(arguments: argparse.Namespace, recipes: list[Recipe], test: bool = False) -> Job:
    return prepare(
        arguments.model,
        arguments.task,
        arguments.data,
        calibrated=stored_recipe(arguments.model, arguments.revision) is None
        and any(recipe.calibrated for recipe in recipes),
        calibration=arguments.calibration,
        calibration_data=arguments.calibration_data,
        calibration_samples=arguments.calibration_samples,
        limit=getattr(arguments, "limit", None),
        max_length=arguments.max_length,
        batch_size=arguments.batch_size,
        test=test,
        revision=arguments.revision,
        progress_bar=progress_bar,
    )


def _header(job: Job, golden: bool) -> dict[str, Any]:
    samples = job.calibration.samples if job.calibration else len(job.calibration_texts)
    return {
        "model": job.model.name,
        "task": job.task.name,
        "examples": len(job.examples),
        "truncated": job.truncated,
        "calibration_samples": samples,
        "golden": golden,
    }


def _predict(arguments: argparse.Namespace) -> dict[str, Any]:
    recipe = chosen_recipe(arguments)
    recipe = _accumulated(recipe, arguments)
    model = load(arguments.model, arguments.revision)
    recipe.check_accumulation(model_sites(model))
    tokenizer = load_tokenizer(arguments.model, arguments.revision)
    check_prediction(model, tokenizer, arguments.text, arguments.pair)
    calibration = None
    if recipe.calibrated and not isinstance(model, QuantizedModel):
        if arguments.calibration is not None:
            calibration = saved_calibration(arguments.calibration)
        else:
            sentences = Path(arguments.calibration_data or REVIEWS / "train.tsv")
            calibration = calibrate_on_sentences(
                model,
                tokenizer,
                sentences,
                progress_bar,
                paired=arguments.pair is not None and model.config.pooling is None,
                golden=arguments.golden,
            )
            print(f"scales: from the sentences of {sentences}", file=sys.stderr)
    quantized = apply_recipe(model, recipe, calibration, arguments.golden)
    found = predict_text(quantized, tokenizer, arguments.text, arguments.pair)
    if arguments.json != "-":
        print("\n".join(found.lines))
    report = {
        "model": model.name,
        "format": recipe.name,
        "accumulate": recipe.accumulate,
        "golden": arguments.golden,
    }
    return report | found.report


def _calibration(arguments: argparse.Namespace) -> dict[str, Any]:
    calibration = saved_calibration(arguments.file)
    operands = {
        name: seen
        for name, seen in calibration.operands.items()
        if fnmatchcase(name, arguments.operand)
    }
    if not operands:
        raise BertNumpyError(
            f"{arguments.file}: expected operands that fit {arguments.operand!r}, found none"
        )
    described = {name: describe(seen) for name, seen in operands.items()}
    if arguments.plot is not None:
        folder = Path(arguments.plot)
        folder.mkdir(parents=True, exist_ok=True)
        draw_sqnr(operands, folder / "sqnr.png")
        with progress_bar(len(operands), "figures") as advance:
            for name, seen in operands.items():
                draw_histogram(name, seen, folder / f"{name.replace(':', '-')}.png")
                advance(1)
    if arguments.json != "-":
        print(f"{arguments.file}: {calibration.samples} samples")
        print_operands(described)
    return {
        "file": str(arguments.file),
        "samples": calibration.samples,
        "golden": calibration.golden,
        "operands": described,
    }


def _quantize(arguments: argparse.Namespace) -> dict[str, Any]:
    recipe, fp32 = preset(arguments.format), PRESETS["fp32"]
    check_target(Path(arguments.out))
    if stored_recipe(arguments.model, arguments.revision) is not None:
        raise BertNumpyError(f"{arguments.model}: expected a checkpoint that is not quantized yet")
    job = with_calibration(
        _prepared(arguments, [recipe]), [recipe], progress_bar, golden=arguments.golden
    )
    model = apply_recipe(job.model, recipe, job.calibration, arguments.golden)
    source = resolve(arguments.model, arguments.revision)
    check_writable(model, source)
    reference, result = run(
        job,
        [fp32, recipe],
        progress_bar,
        golden=arguments.golden,
        calibration_output=arguments.save_calibration,
    )
    rows = [comparison_row(reference, reference), comparison_row(result, reference)]
    report = _header(job, arguments.golden) | {"out": arguments.out, "rows": rows}
    save_quantized(model, source, arguments.out, model_card(report, recipe))
    if arguments.json != "-":
        print_comparison(f"{job.model.name}, {job.task.name}, {len(job.examples)} examples", rows)
        print(f"written: {arguments.out}")
    return report


def _export_onnx(arguments: argparse.Namespace) -> dict[str, Any]:
    recipe = chosen_recipe(arguments)
    require_together(arguments)
    check_output(arguments.out)
    calibration = None
    if arguments.task is not None:
        job = _prepared(arguments, [recipe])
        job = with_calibration(job, [recipe], progress_bar, golden=arguments.golden)
        model, calibration = job.model, job.calibration
    else:
        model = load(arguments.model, arguments.revision)
        if arguments.calibration is not None:
            calibration = saved_calibration(arguments.calibration)
        elif recipe.calibrated and not isinstance(model, QuantizedModel):
            raise BertNumpyError(
                f"{recipe.name}: expected --calibration FILE, or --task and --data to calibrate on"
            )
    if arguments.save_calibration is not None:
        keep_calibration(calibration, [recipe], arguments.save_calibration)
    export_onnx(apply_recipe(model, recipe, calibration), arguments.out)
    if arguments.json != "-":
        print(f"written: {arguments.out}")
    return {"model": model.name, "format": recipe.name, "out": arguments.out}


def _info(arguments: argparse.Namespace) -> dict[str, Any]:
    model = load(arguments.model, arguments.revision)
    sites = encoder_sites(model.config)
    quantizable = [
        model.weights[f"{site}.weight"].nbytes
        for site in sites
        if f"{site}.weight" in model.weights
    ]
    saved = sum(nbytes - nbytes // 4 - 4 for nbytes in quantizable)  # codes and a scale are left
    own = model.recipe if isinstance(model, QuantizedModel) else None
    parameters = sum(math.prod(weight.shape) for weight in model.weights.values())
    report: dict[str, Any] = {
        "model": model.name,
        "folder": str(resolve(arguments.model, arguments.revision)),
        **asdict(model.config),
        "head": model.config.head.name,
        "format": "fp32" if own is None else own.name,
        "parameters": parameters,
        "weight_bytes_fp32": 4 * parameters,
        "weight_bytes_8bit": model.weight_bytes - (saved if own is None else 0),
        "quantized_products": len(sites),
    }
    if arguments.json != "-":
        for key, value in report.items():
            shown = ", ".join(value) if isinstance(value, tuple) else value
            print(f"{key:<26}{f'{shown:,}' if type(shown) is int else shown}")
    return report
