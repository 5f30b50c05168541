"""`python -m niwaki`: the command line."""

from niwaki.stream.cli.main import main

if __name__ == "__main__":
    main()
