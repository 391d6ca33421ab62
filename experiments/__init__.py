"""Experiments: one folder per family, with a shared harness. Example: `python -m experiments.citation --help`."""

import sys

if sys.argv[:1] == ["-m"]:
    from gconv_command import end_in_one_line

    end_in_one_line()
    if not {"-h", "--help"}.isdisjoint(sys.orig_argv):  # without importing torch
        from experiments.help_first import print_help

        print_help(sys.orig_argv)
