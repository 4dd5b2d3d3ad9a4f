"""The steps of KID: which tokens are masked, what the student puts there, what it writes itself."""
