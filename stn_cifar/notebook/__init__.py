"""What the notebook needs beside the library: a picture of one's own, the notebook as one file."""
