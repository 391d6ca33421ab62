"""Command line of the family."""

from experiments.speed.layers import main

if __name__ == "__main__":
    main()
