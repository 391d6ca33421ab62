"""Command line of the family."""

from experiments.citation.networks import main

if __name__ == "__main__":
    main()
