"""The command line of training: a run, and what is done with runs and checkpoints afterwards."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from model.checkpoint.manifest import CheckpointError
from model.config import ConfigError
from model.tokenizer.base import UnknownCharacterError
from training import commands
from training.config import TrainingError, require_extra
from training.flags import add_fields, given_fields
from training.presets import PRESETS

if TYPE_CHECKING:
    from training.trainer import Trainer

EPILOG = """\
other commands (each has a --help):
  python -m training resume RUN           go on with a run that was stopped or killed
  python -m training eval CHECKPOINT      measure a checkpoint's loss
  python -m training report RUN…          several runs in one picture and one table
  python -m training export CHECKPOINT    write a checkpoint for serving, or for another program
  python -m training import DIRECTORY OUT make a checkpoint of a Hugging Face GPT-2
  python -m training upgrade IN OUT       copy a checkpoint of an older Folio, with known answers for the service's self-test
  python -m training draft CHECKPOINT     count what speculation guesses from, and leave it beside a checkpoint
  python -m training sign CHECKPOINT      vouch for a checkpoint with an Ed25519 key
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status. What the user can put right is one line on standard error and status 2."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch loads: spinning threads ruin a shared CPU (5 times slower)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy loads: its products are small, threads share windows out instead
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in COMMANDS:
            return COMMANDS[arguments[0]](arguments[1:])
        return train(arguments)
    except (TrainingError, CheckpointError, ConfigError, UnknownCharacterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def train(arguments: Sequence[str]) -> int:
    """``python -m training [--preset P] [--data FILE] [--out RUN] [any field]``."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        usage="python -m training [--preset P] [--data FILE] [--out RUN] [any option below]",
        description="Train a model on a text. Every option that is not given comes from the preset.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="where the other options come from (default: default; with --init-from finetune)"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        nargs="+",
        help="UTF-8 text: files, directories (their *.txt) and globs (default: $FOLIO_DATA, else Tiny Shakespeare, downloaded)",
    )
    parser.add_argument(
        "--val-data", metavar="FILE", nargs="+", help="a text of its own to validate with (default: the last 10 %% of the text)"
    )
    parser.add_argument(
        "--init-from",
        metavar="CHECKPOINT",
        type=Path,
        help="begin with the weights of a checkpoint (or of a run's best), in its shape; characters that it does not know are added",
    )
    parser.add_argument("--out", metavar="RUN", help="directory of the run (default: runs/PRESET)")
    parser.add_argument("--dry-run", action="store_true", help="say what the run would take on this machine, and write nothing")
    add_fields(parser)
    options = parser.parse_args(arguments)
    preset = options.preset or ("finetune" if options.init_from else "default")
    given = given_fields(vars(options))
    config = dataclasses.replace(PRESETS[preset], **given)
    from model import load_checkpoint
    from training.data import load_text
    from training.distributed import join
    from training.dry_run import describe_cost
    from training.links import locate
    from training.notes import notes
    from training.run_directory import RunDirectory
    from training.trainer import Trainer
    from training.transfer import adopt, extend_vocabulary

    text = load_text(options.data, options.val_data, keep_line_ends=config.keep_line_ends)
    out = Path(options.out or f"runs/{preset}")
    init = load_checkpoint(locate(options.init_from, "best") or options.init_from) if options.init_from else None
    if init:
        config = adopt(config, init, given)
    for note in notes(config, given, text):
        print(f"note: {note}", file=sys.stderr)
    if options.dry_run:
        print(describe_cost(Trainer(config, text, RunDirectory(out), tokenizer=extend_vocabulary(config, init, text) if init else None)))
        return 0
    require_extra()
    return finish(lambda: Trainer.start(config, text, out, join(config.device), init))


def resume(arguments: Sequence[str]) -> int:
    """``python -m training resume RUN [--max-iters N [--out NEW]]``."""
    parser = argparse.ArgumentParser(prog="python -m training resume", description="Go on with a run from its last save.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory that was --out (default there: runs/PRESET)")
    parser.add_argument("--data", metavar="FILE", nargs="+", help="the run's text, if it has been moved since")
    parser.add_argument(
        "--max-iters",
        metavar="N",
        type=int,
        help="go on to N steps in a new run; WSD goes back to its plateau, as if N had been meant from the beginning",
    )
    parser.add_argument("--out", metavar="NEW", type=Path, help="directory of the new run (default: RUN-N)")
    options = parser.parse_args(arguments)
    from training.distributed import join
    from training.run_directory import RunDirectory
    from training.trainer import Trainer

    require_extra()
    train = RunDirectory.open(options.run)[1].train
    device = train.device
    if options.max_iters and options.max_iters != train.max_iters:
        out = options.out or options.run.with_name(f"{options.run.resolve().name}-{options.max_iters}")
        return finish(lambda: Trainer.extend(options.run, options.max_iters, out, options.data, join(device)))
    if options.out:
        raise TrainingError("--out goes with --max-iters: without it a run goes on where it is")
    return finish(lambda: Trainer.resume(options.run, options.data, join(device)))


def finish(build: Callable[[], Trainer]) -> int:
    """Run to the end and say how to go on, whatever ended it."""
    from training.distributed import leave

    try:
        return run_to_end(build)
    finally:
        leave()  # when nothing holds the model any more: it holds the connections, whose threads must end before the process


def run_to_end(build: Callable[[], Trainer]) -> int:
    """Train; the exit status. Raises TrainingError."""
    import torch

    from training.distributed import lost_peer
    from training.export import write_draft
    from training.interrupt import InterruptedRunError
    from training.notes import too_good

    say: Callable[[str], None] = lambda line: print(line, flush=True) if os.environ.get("RANK", "0") == "0" else None  # noqa: E731
    try:
        trainer = build()
        run, state, config = trainer.directory.path, trainer.state, trainer.config
        say(f"training {trainer.model.num_parameters:,} parameters on {trainer.device}, step {state.step} of {config.max_iters}, in {run}")
        trainer.run()
        trainer.world.barrier()  # the others have nothing to write, and would be gone while rank 0 still does
    except InterruptedRunError as interrupted:
        say(f"{interrupted}: saved at step {trainer.state.step}. Go on with: python -m training resume {run}")
        return 128 + interrupted.number
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise TrainingError(f"the GPU's memory is full: lower --batch-size or --block-size ({first_line(error)})") from None
        if not lost_peer(error):
            raise
        raise TrainingError(f"another process of this run is gone, so this one ends too: resume it ({first_line(error)})") from None
    if trainer.world.is_main:
        write_draft(run / "best", trainer.tokenizer, trainer.text)
    best = trainer.state
    if best.best_loss is not None and (word := too_good(best.best_loss)):
        say(word)
    say(f"best validation loss {best.best_loss:.4f} at step {best.best_step}. Serve it: python -m service --checkpoint {run}/best")
    return 0


def first_line(error: Exception) -> str:
    """What an error says before its stack trace."""
    return (str(error).splitlines() or [""])[0]


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "resume": resume,
    "eval": commands.evaluate,
    "report": commands.report,
    "export": commands.export,
    "import": commands.import_,
    "upgrade": commands.upgrade,
    "draft": commands.draft,
    "sign": commands.sign,
}


def end(status: int) -> NoReturn:
    """Leave. One of several processes leaves at once: now and then a thread of torch's, still there at exit, aborted a finished run."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    end(main())
