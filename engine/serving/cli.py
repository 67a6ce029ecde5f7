"""The command line, with its commands: the only place that reads argv and the environment, and that prints.

Exit codes: 0 done, 1 a call or the engine failed, 2 a wrong option, machine or model, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence

from engine.errors import ConfigError, ModelError, TensorRTError
from engine.serving.commands import demo, doctor, generate, info, plan, serve
from engine.serving.version import version

DESCRIPTION = "Serve decoder language models with in-flight batching over gRPC."
EPILOG = "`inflight COMMAND --help` shows the options of a command."
COMMANDS = {
    "serve": serve,
    "generate": generate,
    "info": info,
    "plan": plan,
    "doctor": doctor,
    "demo": demo,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="inflight", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"inflight {version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").splitlines()[0]
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=command.__doc__,
            formatter_class=_Formatter,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults that say something, and descriptions as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except (ConfigError, ModelError) as error:
        print(f"inflight: {error}", file=sys.stderr)
        return 2
    except TensorRTError as error:
        advice = "`inflight serve --backend torch` does without TensorRT, more slowly"
        print(f"inflight: TensorRT failed: {error}\n{advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
