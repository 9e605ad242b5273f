"""`python -m libs.localstack run`."""

import sys

from libs.localstack.run import main

if __name__ == "__main__":
    if sys.argv[1:] != ["run"]:
        sys.exit("usage: python -m libs.localstack run")
    sys.exit(main())
