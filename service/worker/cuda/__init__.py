"""kernel.cu on a card: what is compiled, where it lies in the card's memory, and the driver's API."""
