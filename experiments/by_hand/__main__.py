"""Command line of the family."""

from experiments.by_hand.walk import main

if __name__ == "__main__":
    main()
