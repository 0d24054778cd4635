"""`mgie train`: run one training stage from a config file."""

import argparse
import sys
from pathlib import Path

from mgie_jax.paths import argument

HELP = "train a model from a config file"
EXAMPLES = """examples:
  mgie train --config configs/default_vae.py --workdir out/vae --config.photos=photos
  mgie train --config configs/default.py --workdir out/joint --config.init=out/mllm/model \\
      --config.photos=photos --config.steps=100

Any value of the config file can be set as --config.NAME=VALUE. An interrupted run goes on where it stopped when the
same command is given again. The trained model directory is WORKDIR/model. Folders may be in a bucket: gs://BUCKET/NAME.

exit codes beside 0, 1 and 2: 130 after Ctrl-C and 75 after SIGTERM, both with the run saved; 3 where a loss is not
finite (the ids of its batch are in WORKDIR/nonfinite-STEP.json).
"""

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h, which schedulers take for "start it again"
NOT_FINITE = 3
PROFILED = (3, 6)  # updates of this run: once those that compile are over


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's arguments on its parser."""
    parser.description = "Train a model, or one stage of one, from a config file."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    # absl reads these, as ml_collections' users expect; they stand here for --help.
    parser.add_argument("--config", metavar="FILE", required=True, help="a file with get_config()")
    parser.add_argument("--workdir", metavar="DIR", type=argument, required=True, help="checkpoints, logs, the model")
    parser.add_argument("--profile", action="store_true", help="trace a few updates into WORKDIR/profile, for xprof")
    parser.set_defaults(takes_more=True)


def run(args: argparse.Namespace) -> int:
    """Train to the end. Exit codes beside the usual ones: 75 after SIGTERM, 3 for a loss that is not finite."""
    config = read_config(args.config, args.more)
    if args.profile and not config.profile:
        config.profile = PROFILED
    import jax

    from mgie_jax.compilation import enable_compilation_cache
    from mgie_jax.train import tasks
    from mgie_jax.train.interrupts import Preempted
    from mgie_jax.train.loop import NonFinite

    enable_compilation_cache()
    try:
        model = tasks.train(config, args.workdir)
    except Preempted:
        print("\nmgie: told to leave (SIGTERM); the run is saved and goes on when it is started again", file=sys.stderr)
        return TRY_AGAIN
    except NonFinite as error:
        print(f"\nmgie: error: {error}", file=sys.stderr)
        return NOT_FINITE
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename or error}: there is no such file or folder") from error
    if jax.process_index() == 0:
        print(f"Trained model: {model}")
    return 0


def read_config(path: str, overrides: list[str]):
    """The config of a file with "--config.NAME=VALUE" overrides applied, each checked against its type.

    Raises:
        ValueError: no such file, or an override that names or fits nothing.
    """
    from absl import flags
    from ml_collections import config_flags

    # What follows a colon is the argument of the file's get_config.
    if not Path(path.partition(":")[0]).is_file():
        raise ValueError(f"{path}: there is no such config file")
    values, argv = flags.FlagValues(), [sys.argv[0], f"--config={path}", *overrides]
    try:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        left = values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    if len(left) > 1:
        raise ValueError(f"unknown arguments: {' '.join(left[1:])}")
    return values.config
