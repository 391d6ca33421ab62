"""`python -m gconv.calibrate`."""

from gconv.calibrate import main

if __name__ == "__main__":
    main()
