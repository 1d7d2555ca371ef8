"""The ``bert-numpy`` command."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import npfp8
from bert_numpy.assets import REVIEWS
from bert_numpy.checkpoints.hub import EMBEDDED, is_local, resolve
from bert_numpy.checkpoints.load import load, stored_recipe
from bert_numpy.checkpoints.quantized import check_writable, save_quantized, side_files
from bert_numpy.commands.completion import SHELLS, completion_script
from bert_numpy.commands.figures import describe, draw_figures
from bert_numpy.commands.golden import add_golden_commands
from bert_numpy.commands.model_card import model_card
from bert_numpy.commands.options import (
    Parser,
    add_calibration_samples,
    add_format,
    add_model,
    add_sentence_scales,
    calibrated_on_sentences,
    check_accumulate,
    check_scales,
    check_values,
    chosen_recipe,
    named_recipe,
    positive,
    refuse,
    require_together,
)
from bert_numpy.commands.outputs import check_outputs, submission_file
from bert_numpy.commands.report import (
    Outcome,
    comparison_row,
    listed,
    note_not_finite,
    print_comparison,
    print_lines,
    print_operands,
    progress_bar,
    write_json,
    write_text,
)
from bert_numpy.errors import BertNumpyError, one_line, shown
from bert_numpy.evaluation.evaluate import Evaluation, require_answers
from bert_numpy.evaluation.job import (
    Job,
    keep_calibration,
    prepare,
    require_regular,
    run,
    saved_calibration,
    with_calibration,
)
from bert_numpy.evaluation.predict import check_prediction, predict_text
from bert_numpy.export.onnx import check_exportable, export_onnx
from bert_numpy.model.model import encoder_sites, model_sites
from bert_numpy.quantization.convert import QuantizedModel, apply_recipe
from bert_numpy.quantization.recipe import PRESETS, Recipe, preset
from bert_numpy.tasks.glue import TASKS, Task, TestSet, submission
from bert_numpy.tasks.squad import SQUAD, Questions
from bert_numpy.tasks.tokenization import load_tokenizer
from npfp8.products import ACCUMULATIONS

__all__ = ["interrupted", "main"]

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
    """Run the command; returns the exit code, see ``bert-numpy --help``.

    All files are written before anything is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        _print_every_character(stream)
    arguments = argparse.Namespace(debug=False)
    try:
        try:
            arguments = _parser().parse_args(argv)
        except SystemExit:  # after --help, --version, or a usage error
            _flush_output()
            raise
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _output_error(error) from None
        check_values(arguments)
        check_outputs(arguments)
        outcome = arguments.run(arguments)
        if arguments.json not in (None, "-"):
            write_json(arguments.json, outcome.report)
        try:
            if arguments.json == "-":
                write_json("-", outcome.report)
            else:
                outcome.show()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _output_error(error) from None
        _flush_output()
    except BaseException as error:
        return _failed(error, arguments)
    return 0 if outcome.report.get("passed", True) else 1


#: What only a mistake in a program raises; all else is about what the program was given.
_MISTAKES = (
    *(AssertionError, AttributeError, LookupError, NameError, NotImplementedError, RuntimeError),
    *(StopIteration, SyntaxError, SystemError, TypeError),
)


def _failed(error: BaseException, arguments: argparse.Namespace) -> int:
    """Say what has ended the command, if anything is to be said; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        _give_up(sys.stdout)
        return 141
    if isinstance(error, KeyboardInterrupt):
        return interrupted()
    is_panic = type(error).__name__ == "PanicException"  # of a library in Rust; no Exception
    if not isinstance(error, Exception) and not is_panic:
        raise error
    if isinstance(error, _MISTAKES) and not isinstance(error, RecursionError | ValueError):
        _complain(*_traceback_of(error))
        return 70  # not Python's 1, which says that something was compared and differs
    if arguments.debug:
        _complain(*_traceback_of(error))
    elif isinstance(error, BertNumpyError):
        _complain(f"bert-numpy: {error}")
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        _complain(f"bert-numpy: {os.fsdecode(error.filename)}: {error.strerror}")
    else:
        place = getattr(arguments, "model", None) or getattr(arguments, "file", None)
        text = one_line(error)
        _complain(f"bert-numpy: {f'{place}: ' if place else ''}{text} (--debug shows where)")
    return 2


def interrupted() -> int:
    """Say that the command was interrupted; returns the exit code."""
    _complain("bert-numpy: interrupted")
    return 130


def _traceback_of(error: BaseException) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


def _complain(*lines: str) -> None:
    """Print lines on standard error; where it cannot be written to, they are lost."""
    try:
        for line in lines:
            print(shown(line), file=sys.stderr)
        sys.stderr.flush()
    except (AttributeError, OSError):
        _give_up(sys.stderr)


def _flush_output() -> None:
    """Write out what was printed; raises :class:`BertNumpyError` if that cannot be done."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _output_error(error) from None


def _output_error(error: OSError) -> BertNumpyError:
    _give_up(sys.stdout)
    return BertNumpyError(f"standard output: cannot be written: {error.strerror or error}")


def _give_up(stream: Any) -> None:
    """Drop what is left in a stream's buffer, which Python would write at the exit."""
    with suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def _print_every_character(stream: Any) -> None:
    """Have a stream escape the characters that its encoding lacks, instead of failing."""
    with suppress(AttributeError, OSError, ValueError):  # one that is no text file of Python's own
        stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "bert-numpy", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_HelpFormatter
    )
    parser.add_argument("--version", action="version", version=npfp8.__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], Outcome], summary: str
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
    for sub, kind in ((quantize, "folder"), (export, "file"), (submit, "submission")):
        sub.set_defaults(out_kind=kind)

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
    function: Callable[[argparse.Namespace], Outcome],
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
    add_calibration_samples(parser)
    add(
        "--calibration-data",
        metavar="FILE",
        help="take them from FILE instead of the training file beside the data"
        + ("" if required else "; without --task, sentences in SST-2's layout"),
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
    if wanted == []:
        raise BertNumpyError(f"--formats: expected names between commas, found {names!r}")
    own = stored_recipe(model, revision)
    if own is not None and (wanted is None or wanted == ["stored"]):
        return [own]
    if own is not None:
        raise BertNumpyError(
            f"{model}: expected format 'stored' of a quantized checkpoint, found {names!r}"
        )
    compared = ["fp32", *(_COMPARED.split(",") if wanted is None else wanted)]
    return [named_recipe(name, model) for name in dict.fromkeys(compared)]


def _completion(arguments: argparse.Namespace) -> Outcome:
    tasks = [*TASKS, SQUAD.name]
    values = {"--format": PRESETS, "--recipe": PRESETS, "--task": tasks}
    script = completion_script(_parser(), arguments.shell, values)
    return Outcome({}, lambda: print(script, end=""))


def _accumulated(recipes: list[Recipe], arguments: argparse.Namespace) -> list[Recipe]:
    """The recipes with ``--accumulate`` in place of their own."""
    if arguments.accumulate is None:
        return recipes
    check_accumulate(arguments, recipes)
    return [replace(recipe, accumulate=arguments.accumulate) for recipe in recipes]


def _demo(arguments: argparse.Namespace) -> Outcome:
    return _comparison(
        arguments, prepare(EMBEDDED, "sst2", REVIEWS), _recipes(arguments.formats, EMBEDDED)
    )


def _compare(arguments: argparse.Namespace) -> Outcome:
    recipes = _recipes(arguments.formats, arguments.model, arguments.revision)
    recipes = _accumulated(recipes, arguments)
    return _comparison(arguments, _prepared(arguments, recipes), recipes)


def _comparison(arguments: argparse.Namespace, job: Job, recipes: list[Recipe]) -> Outcome:
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
        note_not_finite(result)
    report = _header(job, arguments.golden) | {"rows": rows}
    return Outcome(report, lambda: print_comparison(_title(job), rows))


def _title(job: Job) -> str:
    return f"{job.model.name}, {job.task.name}, {len(job.examples)} examples"


def _evaluate(arguments: argparse.Namespace) -> Outcome:
    if arguments.task.lower() != SQUAD.name:
        refuse(arguments, ["predictions"], f"task squad, found {arguments.task}")
    (recipe,) = _accumulated([chosen_recipe(arguments)], arguments)
    job = _prepared(arguments, [recipe])
    (result,) = run(
        job,
        [recipe],
        progress_bar,
        golden=arguments.golden,
        calibration_output=arguments.save_calibration,
    )
    note_not_finite(result)
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
        # The official script counts a question without a prediction as wrong, too.
        given = {key: text for key, text in report["predictions"].items() if text is not None}
        write_json(arguments.predictions, given)
    metrics = "  ".join(f"{name} {100 * value:.2f}" for name, value in result.metrics.items())
    line = (
        f"{job.model.name}  {job.task.name}  {recipe.name}  {len(job.examples)} examples  "
        f"{metrics}  {result.seconds:.2f} s"
    )
    return Outcome(report, lambda: print_lines(line))


def _submit(arguments: argparse.Namespace) -> Outcome:
    (recipe,) = _accumulated([chosen_recipe(arguments)], arguments)
    job = _prepared(arguments, [recipe], test=True)
    assert isinstance(job.task, Task)
    assert isinstance(job.examples, TestSet)
    path = Path(submission_file(arguments.out, job.task))
    (result,) = run(
        job,
        [recipe],
        progress_bar,
        golden=arguments.golden,
        calibration_output=arguments.save_calibration,
    )
    require_answers(job.model, result)
    write_text(path, submission(job.task, job.examples.ids, result.predictions))
    report = _header(job, arguments.golden) | {"format": recipe.name, "file": str(path)}
    return Outcome(report, lambda: print_lines(f"{path}: {len(job.examples)} predictions"))


def _outputs(job: Job, result: Evaluation) -> dict[str, Any]:
    """Predictions and logits of each example; of questions, by their ids, the likely answers."""
    if not isinstance(job.examples, Questions):
        return {
            "predictions": listed(result.predictions),
            "logits": result.logits.tolist(),  # as doubles, which restore every float32
        }
    ids = [question.id for question in job.examples.items]
    n_best = [[vars(answer) for answer in best] for best in result.answers]
    return {
        "predictions": dict(zip(ids, listed(result.predictions), strict=True)),
        "n_best": dict(zip(ids, n_best, strict=True)),
    }


def _prepared(arguments: argparse.Namespace, recipes: list[Recipe], test: bool = False) -> Job:
    stored = stored_recipe(arguments.model, arguments.revision) is not None
    check_scales(arguments, recipes, stored=stored)
    return prepare(
        arguments.model,
        arguments.task,
        arguments.data,
        calibrated=not stored and any(recipe.calibrated for recipe in recipes),
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


def _predict(arguments: argparse.Namespace) -> Outcome:
    (recipe,) = _accumulated([chosen_recipe(arguments)], arguments)
    model = load(arguments.model, arguments.revision)
    stored = isinstance(model, QuantizedModel)
    check_scales(arguments, [recipe], stored=stored)
    recipe.check_accumulation(model_sites(model))
    tokenizer = load_tokenizer(arguments.model, arguments.revision)
    check_prediction(model, tokenizer, arguments.text, arguments.pair)
    calibration = None
    if recipe.calibrated and not stored:
        if arguments.calibration is not None:
            calibration = saved_calibration(arguments.calibration)
        else:
            calibration = calibrated_on_sentences(
                arguments,
                model,
                tokenizer,
                paired=arguments.pair is not None and model.config.pooling is None,
                golden=arguments.golden,
            )
    quantized = apply_recipe(model, recipe, calibration, arguments.golden)
    found = predict_text(quantized, tokenizer, arguments.text, arguments.pair)
    report = {
        "model": model.name,
        "format": recipe.name,
        "accumulate": recipe.accumulate,
        "golden": arguments.golden,
    }
    return Outcome(report | found.report, lambda: print_lines(*found.lines))


def _calibration(arguments: argparse.Namespace) -> Outcome:
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
        outputs = [arguments.file, *([arguments.json] if arguments.json not in (None, "-") else [])]
        with progress_bar(len(operands), "figures") as advance:
            draw_figures(operands, Path(arguments.plot), outputs, advance)

    def show() -> None:
        print_lines(f"{arguments.file}: {calibration.samples} samples")
        print_operands(described)

    report = {
        "file": str(arguments.file),
        "samples": calibration.samples,
        "golden": calibration.golden,
        "operands": described,
    }
    return Outcome(report, show)


def _quantize(arguments: argparse.Namespace) -> Outcome:
    recipe, fp32 = preset(arguments.format), PRESETS["fp32"]
    if stored_recipe(arguments.model, arguments.revision) is not None:
        raise BertNumpyError(f"{arguments.model}: expected a checkpoint that is not quantized yet")
    source = resolve(arguments.model, arguments.revision)
    side_files(source)
    job = _prepared(arguments, [recipe])
    check_writable(job.model.config, recipe, source)
    job = with_calibration(job, [recipe], progress_bar, golden=arguments.golden)
    model = apply_recipe(job.model, recipe, job.calibration, arguments.golden)
    reference, result = run(
        job,
        [fp32, recipe],
        progress_bar,
        golden=arguments.golden,
        calibration_output=arguments.save_calibration,
    )
    for evaluation in (reference, result):
        require_answers(job.model, evaluation)
    rows = [comparison_row(reference, reference), comparison_row(result, reference)]
    report = _header(job, arguments.golden) | {"out": arguments.out, "rows": rows}
    base_model = None if is_local(arguments.model) else arguments.model
    save_quantized(model, source, arguments.out, model_card(report, recipe, base_model))

    def show() -> None:
        print_comparison(_title(job), rows)
        print_lines(f"written: {arguments.out}")

    return Outcome(report, show)


def _export_onnx(arguments: argparse.Namespace) -> Outcome:
    recipe = chosen_recipe(arguments)
    require_together(arguments)
    stored = stored_recipe(arguments.model, arguments.revision) is not None
    check_scales(arguments, [recipe], stored=stored)
    needed = recipe.calibrated and not stored
    made = needed and arguments.calibration is None
    if not made:
        expected = f"a calibration to make, found {'--calibration' if needed else recipe.name}"
        refuse(arguments, ["task", "data", "golden"], expected)
    if arguments.task is None:
        refuse(arguments, ["max_length", "batch_size"], "--task with it, found none")
        if arguments.calibration_data is None:
            expected = "--task or --calibration-data with it, found neither"
            refuse(arguments, ["calibration_samples"], expected)
    calibration = None
    if arguments.task is not None:
        job = _prepared(arguments, [recipe])
        check_exportable(job.model, recipe)
        job = with_calibration(job, [recipe], progress_bar, golden=arguments.golden)
        model, calibration = job.model, job.calibration
    else:
        model = load(arguments.model, arguments.revision)
        if arguments.calibration is not None:
            calibration = saved_calibration(arguments.calibration)
        if arguments.calibration_data is not None:
            require_regular(Path(arguments.calibration_data))
        check_exportable(model, recipe)
        if calibration is None and arguments.calibration_data is not None:
            tokenizer = load_tokenizer(arguments.model, arguments.revision)
            calibration = calibrated_on_sentences(
                arguments, model, tokenizer, golden=arguments.golden
            )
        elif made:
            raise BertNumpyError(
                f"{recipe.name}: expected --calibration FILE, or --task and --data to calibrate "
                "on, or sentences, --calibration-data FILE"
            )
    quantized = apply_recipe(model, recipe, calibration)
    export_onnx(quantized, arguments.out)
    if arguments.save_calibration is not None:
        keep_calibration(calibration, [recipe], arguments.save_calibration)
    report = {"model": model.name, "format": recipe.name, "out": arguments.out}
    return Outcome(report, lambda: print_lines(f"written: {arguments.out}"))


def _info(arguments: argparse.Namespace) -> Outcome:
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
        "architecture": model.config.stated_architecture,
        "head": model.config.head.name,
        "format": "fp32" if own is None else own.name,
        "parameters": parameters,
        "weight_bytes_fp32": 4 * parameters,
        "weight_bytes_8bit": model.weight_bytes - (saved if own is None else 0),
        "quantized_products": len(sites),
    }
    del report["architecture_found"]  # the architecture says it
    lines = []
    for key, value in report.items():
        text = ", ".join(value) if isinstance(value, tuple) else value
        lines.append(f"{key:<26}{f'{text:,}' if type(text) is int else text}")
    return Outcome(report, lambda: print_lines(*lines))
