"""One look for all pages: a report is one HTML file that needs no network."""
