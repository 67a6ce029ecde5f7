"""Start a server on the demo model and watch several prompts being continued at once."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    from engine.serving.demo import run as run_demo

    return run_demo()
