"""Command line of the family."""

from experiments.grids.kernels import main

if __name__ == "__main__":
    main()
