"""Pages: what a run or a sweep found, as one HTML file that needs nothing else. jinja2 and matplotlib load on use."""
