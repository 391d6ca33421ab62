"""Command line of `python -m experiments.gpu`."""

from experiments.gpu.run import main

if __name__ == "__main__":
    main()
