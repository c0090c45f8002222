"""`python3 clf.py ...` works from a plain checkout; everything is in `workflow/clf.py`."""

from workflow.clf import main

if __name__ == "__main__":
    main()
