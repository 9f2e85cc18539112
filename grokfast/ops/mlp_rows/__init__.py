"""Loss, accuracy and every gradient of one network of fully connected layers, a tile of rows at a time."""
