"""Images from files: decoded and prepared beside the network, and gathered into features."""
