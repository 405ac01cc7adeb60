"""The one scalar that everything is a derivative of."""
