"""What is in an image: packages, their vulnerabilities, secrets; and the documents that say so."""
