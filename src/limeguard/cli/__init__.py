"""The commands: thin edges that read arguments, call one service or tool, and print its outcome."""
