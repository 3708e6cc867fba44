"""The commands of the command line that need more than flags; `cli` registers them."""
