"""The stage that makes synthetic lesions: a plan of requests in, PNG files and their manifest out."""
