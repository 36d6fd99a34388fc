"""The plots of a report: one drawing by matplotlib serves the page (SVG) and print (PDF, PNG)."""
