"""Starting the processes of a training: what Accelerate, DeepSpeed and torch make odd about it."""
