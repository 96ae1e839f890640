"""What is in an image: packages, vulnerabilities, secrets. Pure functions over files and bytes that are handed in."""
