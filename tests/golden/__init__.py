"""Texts that every engine on every machine must give: requests, their answers' hashes, and a check for any engine (`goldens.check`)."""
