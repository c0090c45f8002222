"""`python3 seq2seq.py ...` works from a plain checkout; everything is in `workflow/seq2seq.py`."""

from workflow.seq2seq import main

if __name__ == "__main__":
    main()
