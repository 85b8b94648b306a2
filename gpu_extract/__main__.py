"""``python -m gpu_extract`` is the command line ``gpu-extract``."""

from gpu_extract.cli import main

if __name__ == "__main__":
    main()
