"""Command line of the family."""

from experiments.conformance.libraries import main

if __name__ == "__main__":
    main()
