"""Programs of several calls: graphs, what history says is to come, how to split time."""
